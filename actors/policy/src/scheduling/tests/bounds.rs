//! Who may wait, and who must leave for whom.

use super::{super::*, ROOMY, arrival, epoch, fair};

fn scheduler(bounds: Bounds, discipline: Discipline) -> Scheduler<u32> {
    let mut settings = fair(Capacity::of_engine(1, 100, None));
    settings.bounds = bounds;
    settings.discipline = discipline;
    Scheduler::new(&settings)
}

#[test]
fn a_tenant_at_its_own_bound_is_refused_though_there_is_room() {
    let now = epoch();
    let mut scheduler = scheduler(ROOMY, Discipline::Fifo);
    let bounded = |tenant: &str, bytes| Arrival {
        bytes,
        tenant_bounds: TenantBounds {
            requests: 2,
            bytes: 100,
        },
        ..arrival("", tenant, 1, now)
    };
    for item in 0..2 {
        scheduler.push(&bounded("a", 10), item, now).unwrap();
    }
    let full = scheduler.push(&bounded("a", 10), 9, now).unwrap_err();
    assert_eq!((full.item, full.bound), (9, Bound::TenantRequests));
    scheduler.push(&bounded("b", 10), 3, now).unwrap();
    let full = scheduler.push(&bounded("b", 91), 9, now).unwrap_err();
    assert_eq!(full.bound, Bound::TenantBytes);
    // The bounds are each tenant's own.
    let unbounded = arrival("", "c", 1, now);
    (0..5).for_each(|item| drop(scheduler.push(&unbounded, item, now).unwrap()));
}

#[test]
fn a_thousand_made_up_tenants_cannot_shut_out_one_with_a_shorter_line() {
    let now = epoch();
    let bounds = Bounds {
        requests: 2000,
        ..ROOMY
    };
    let mut scheduler = scheduler(bounds, Discipline::Fair);
    for item in 0..2000 {
        let tenant = (item % 1000).to_string();
        scheduler
            .push(&arrival("", &tenant, 1, now), item, now)
            .unwrap();
    }
    let pushed = scheduler
        .push(&arrival("", "quiet", 1, now), 9999, now)
        .unwrap();
    assert_eq!(pushed.displaced, [1999]);
    // Equals do not displace each other.
    let full = scheduler
        .push(&arrival("", "quiet", 1, now), 1, now)
        .unwrap_err();
    assert_eq!(full.bound, Bound::Requests);
    assert_eq!(scheduler.total().waiting, 2000);
}

#[test]
fn made_up_tenants_have_one_line_among_them() {
    let now = epoch();
    let bounds = Bounds {
        requests: 2000,
        ..ROOMY
    };
    let mut scheduler = scheduler(bounds, Discipline::Fair);
    for item in 0..2000 {
        let made_up = arrival("_other", &item.to_string(), 1, now);
        scheduler.push(&made_up, item, now).unwrap();
    }
    // Up to half of the queue, whoever is in it: no line of a made-up tenant is ever longer.
    for _ in 0..1000 {
        let pushed = scheduler.push(&arrival("quiet", "quiet", 1, now), 9999, now);
        assert_eq!(pushed.unwrap().displaced.len(), 1);
    }
    let full = scheduler.push(&arrival("quiet", "quiet", 1, now), 9999, now);
    assert_eq!(full.unwrap_err().bound, Bound::Requests);
    // Made-up tenants among themselves are equals, and one that comes anew displaces none of them.
    let full = scheduler.push(&arrival("_other", "new", 1, now), 9999, now);
    assert_eq!(full.unwrap_err().bound, Bound::Requests);
}

#[test]
fn retried_request_keeps_its_place_though_the_house_is_full() {
    let now = epoch();
    let bounds = Bounds {
        requests: 1,
        ..ROOMY
    };
    let mut scheduler = scheduler(bounds, Discipline::Fair);
    scheduler.push(&arrival("", "a", 1, now), 1, now).unwrap();
    let lost = scheduler.next(now).unwrap();
    scheduler.push(&arrival("", "b", 1, now), 2, now).unwrap();
    scheduler.finish(lost.key, &Outcome::FailedBeforeFirstToken, now);
    let again = Arrival {
        is_retry: true,
        ..arrival("", "a", 1, now)
    };
    let pushed = scheduler.push(&again, lost.item, now).unwrap();
    assert!(pushed.displaced.is_empty());
    assert_eq!(scheduler.total().waiting, 2);
}

#[test]
fn large_requests_leave_until_a_small_one_fits() {
    let now = epoch();
    let bounds = Bounds {
        bytes: 1000,
        ..ROOMY
    };
    let mut scheduler = scheduler(bounds, Discipline::Fair);
    let sized = |tenant: &str, bytes| Arrival {
        bytes,
        ..arrival("", tenant, 1, now)
    };
    for item in 0..4 {
        scheduler.push(&sized("large", 250), item, now).unwrap();
    }
    let pushed = scheduler.push(&sized("small", 300), 9, now).unwrap();
    assert_eq!(pushed.displaced, [3, 2]);
    let full = scheduler.push(&sized("large", 500), 9, now).unwrap_err();
    assert_eq!(full.bound, Bound::Bytes);
    assert_eq!(scheduler.total().bytes, 800);
}

#[test]
fn a_retried_request_goes_before_the_others_of_its_tenant_and_was_refunded() {
    let now = epoch();
    let mut scheduler = scheduler(ROOMY, Discipline::Fair);
    scheduler.push(&arrival("", "a", 500, now), 1, now).unwrap();
    scheduler.push(&arrival("", "a", 500, now), 2, now).unwrap();
    let first = scheduler.next(now).unwrap();
    scheduler.finish(first.key, &Outcome::FailedBeforeFirstToken, now);
    assert_eq!(super::core(&scheduler).served(), 0);
    let again = Arrival {
        is_retry: true,
        ..arrival("", "a", 500, now)
    };
    scheduler.push(&again, first.item, now).unwrap();
    assert_eq!(scheduler.next(now).unwrap().item, 1);
}

#[test]
fn calls_about_what_is_over_change_nothing_and_are_counted() {
    let now = epoch();
    let mut scheduler = scheduler(ROOMY, Discipline::Fair);
    scheduler.push(&arrival("", "a", 5, now), 1, now).unwrap();
    let key = scheduler.next(now).unwrap().key;
    let cancelled = Outcome::Cancelled { generated: 3 };
    scheduler.finish(key, &cancelled, now);
    let served = super::core(&scheduler).served();
    // The slot is used again, under another name.
    scheduler.push(&arrival("", "a", 5, now), 2, now).unwrap();
    scheduler.first_token(key, now);
    scheduler.streamed(key, 99, now);
    scheduler.finish(key, &cancelled, now);
    assert_eq!(scheduler.remove(key, now), None);
    assert_eq!(super::core(&scheduler).served(), served);
    assert_eq!(scheduler.snapshot().stale, 4);
    assert_eq!(scheduler.total().waiting, 1);
}

#[test]
fn drr_serves_who_has_least_in_the_server_and_fifo_who_came_first() {
    let now = epoch();
    for (discipline, expected) in [
        (Discipline::Fifo, [0, 1, 2, 3]),
        (Discipline::Drr, [0, 3, 1, 2]),
    ] {
        let mut settings = fair(Capacity::of_engine(1, 100, None));
        settings.discipline = discipline;
        let mut scheduler = Scheduler::new(&settings);
        for (item, tenant) in ["noisy", "noisy", "noisy", "quiet"].into_iter().enumerate() {
            scheduler
                .push(&arrival("", tenant, 1, now), item, now)
                .unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| scheduler.next(now))
            .map(|next| next.item)
            .collect();
        assert_eq!(order, expected);
    }
}

#[test]
fn who_asks_where_it_stands_hears_of_its_own_tenants_earlier_requests_only() {
    let now = epoch();
    let at = |second| now + Duration::from_secs(second);
    let mut scheduler = scheduler(ROOMY, Discipline::Fair);
    for (item, tenant, second) in [(0, "a", 1), (1, "b", 2), (2, "a", 3), (3, "a", 5)] {
        let arrival = arrival("", tenant, 1, at(second));
        scheduler.push(&arrival, item, at(second)).unwrap();
    }
    let ahead = |tenant: &str, until, most| scheduler.ahead(&tenant.into(), at(until), most);
    assert_eq!(ahead("a", 4, 100), 2);
    assert_eq!(ahead("a", 0, 100), 0);
    assert_eq!(ahead("b", 9, 100), 1);
    assert_eq!(ahead("nobody", 9, 100), 0);
    assert_eq!(ahead("a", 9, 2), 2, "no more are counted");
}

#[test]
fn looking_for_the_abandoned_costs_the_same_however_many_wait() {
    use std::cell::Cell;
    let now = epoch();
    let mut looks = Vec::new();
    for waiting in [1000, 10_000] {
        let mut settings = fair(Capacity::of_engine(1, 1, None));
        settings.bounds.requests = waiting;
        let mut scheduler = Scheduler::new(&settings);
        for id in 0..waiting {
            scheduler.push(&arrival("", "a", 10, now), id, now).unwrap();
        }
        let looked = Cell::new(0_usize);
        let none = |_: &usize| {
            looked.set(looked.get() + 1);
            false
        };
        assert!(scheduler.sweep(none, now).is_empty());
        looks.push(looked.get());
        // One is found within a turn, many in a row at once.
        let calls = (1..).find(|_| !scheduler.sweep(|id| *id == 700, now).is_empty());
        assert!(calls.unwrap() <= waiting.div_ceil(256) + 1, "{calls:?}");
        let rest = scheduler.sweep(|_| true, now).len();
        assert_eq!((rest, scheduler.total().waiting), (waiting - 1, 0));
    }
    assert_eq!(looks, [256, 256]);
}

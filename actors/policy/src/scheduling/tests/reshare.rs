//! Tenants whose entitlement changes while their requests wait.

use super::{super::*, ROOMY, arrival, epoch, fair};
use crate::cost::Usage;

fn share(group: &str, weight: u32, class: i32) -> Share {
    Share {
        class,
        group: Group {
            name: group.into(),
            weight,
        },
        weight: 1,
        queued: TenantBounds::default(),
    }
}

/// An engine for one request at a time, for which 60 of each of `a`, `b` and `c` wait.
fn crowded() -> Scheduler<&'static str> {
    let now = epoch();
    let mut scheduler = Scheduler::new(&fair(Capacity {
        headroom: 0,
        ..Capacity::of_engine(1, 100, None)
    }));
    for _ in 0..60 {
        for tenant in ["a", "b", "c"] {
            let arrival = arrival(tenant, tenant, 10, now);
            scheduler.push(&arrival, tenant, now).unwrap();
        }
    }
    scheduler
}

/// Serves so many, all alike, and counts those of `a`, `b` and `c`.
fn serve(scheduler: &mut Scheduler<&'static str>, count: usize) -> [usize; 3] {
    let mut served = [0; 3];
    for _ in 0..count {
        let next = scheduler.next(epoch()).unwrap();
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens: 10,
        };
        scheduler.finish(next.key, &Outcome::Completed(usage), epoch());
        served[["a", "b", "c"]
            .iter()
            .position(|id| *id == next.item)
            .unwrap()] += 1;
    }
    served
}

#[test]
fn what_waits_is_served_by_the_new_weight() {
    let mut scheduler = crowded();
    assert_eq!(serve(&mut scheduler, 30), [10, 10, 10]);
    scheduler.reshare(&"b".into(), |_| share("b", 3, 0));
    let [a, b, c] = serve(&mut scheduler, 50);
    assert!(b.abs_diff(30) <= 1 && a.abs_diff(c) <= 1, "{a} {b} {c}");
}

#[test]
fn what_waits_moves_to_the_new_class() {
    let mut scheduler = crowded();
    scheduler.reshare(&"c".into(), |_| share("c", 1, -1));
    assert_eq!(serve(&mut scheduler, 60), [0, 0, 60]);
    // One at a time: the item says to which.
    let mut number = 0;
    scheduler.reshare(&"b".into(), |_| {
        number += 1;
        share("b", 1, if number > 50 { -1 } else { 0 })
    });
    assert_eq!(serve(&mut scheduler, 10), [0, 10, 0]);
}

#[test]
fn what_waits_shares_with_the_new_group() {
    let mut scheduler = crowded();
    for tenant in ["b", "c"] {
        scheduler.reshare(&tenant.into(), |_| share("both", 1, 0));
    }
    let [a, b, c] = serve(&mut scheduler, 40);
    assert!(a.abs_diff(20) <= 1 && b.abs_diff(c) <= 1, "{a} {b} {c}");
}

#[test]
fn a_tenant_gains_nothing_by_a_change_of_its_share() {
    let mut scheduler = crowded();
    for _ in 0..40 {
        scheduler.reshare(&"b".into(), |_| share("b", 1, 0));
        let _ = serve(&mut scheduler, 3);
    }
    assert_eq!(serve(&mut scheduler, 30), [10, 10, 10]);
}

#[test]
fn adjusted_bounds_hold_for_who_comes() {
    for discipline in [Discipline::Fifo, Discipline::Drr, Discipline::Fair] {
        let now = epoch();
        let mut settings = fair(Capacity::of_engine(1, 100, None));
        settings.discipline = discipline;
        let mut scheduler = Scheduler::new(&settings);
        let push = |scheduler: &mut Scheduler<u32>, tenant| {
            let pushed = scheduler.push(&arrival(tenant, tenant, 1, now), 0, now);
            pushed.map(|pushed| pushed.displaced.len())
        };
        for _ in 0..10 {
            push(&mut scheduler, "a").unwrap();
        }
        settings.bounds = Bounds {
            requests: 4,
            ..ROOMY
        };
        scheduler.adjust(&settings);
        assert_eq!(scheduler.total().waiting, 10, "what waits already stays");
        assert!(push(&mut scheduler, "a").is_err());
        // The queue is full; who fills it most makes room.
        assert_eq!(push(&mut scheduler, "b"), Ok(1));
        settings.bounds = ROOMY;
        scheduler.adjust(&settings);
        assert_eq!(push(&mut scheduler, "a"), Ok(0));
    }
}

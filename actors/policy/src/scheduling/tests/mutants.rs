//! Each part that makes the difference, switched off: the properties must notice.

use super::{
    super::{settings::Mutant, *},
    arrival, epoch, fair,
    service::{self, Want},
    sim,
};

#[test]
fn without_true_up_charges_are_lost() {
    assert!(super::properties::conserves_charges(None));
    assert!(!super::properties::conserves_charges(Some(Mutant::TrueUp)));
}

#[test]
fn without_lift_time_away_is_credit() {
    let wants = [Want {
        group: 0,
        weight: 1,
        prompt: 50,
        output: 50,
    }; 2];
    let bound = service::bound(&service::settings(None));
    assert!(service::credit_after(None, 3000, false, &wants) <= bound);
    assert!(service::credit_after(Some(Mutant::Lift), 3000, false, &wants) > bound);
}

#[test]
fn without_its_guard_headroom_breaks_fairness() {
    let guarded = sim::jain_short_of_cache(None);
    let unguarded = sim::jain_short_of_cache(Some(Mutant::HeadroomGuard));
    println!("over the run and least window: guarded {guarded:.4?}, unguarded {unguarded:.4?}");
    assert!(guarded.1 >= 0.99);
    assert!(unguarded.1 < 0.95);
}

/// How many small requests go before a large one that needs most of the cache, while small ones
/// keep coming. 500 are sent.
fn passed(mutant: Option<Mutant>) -> usize {
    let now = epoch();
    let mut settings = fair(Capacity::of_engine(100, 100_000, Some(10_000)));
    settings.fair.mutant = mutant;
    settings.fair.assumed_output = 10;
    let mut scheduler = Scheduler::new(&settings);
    let mut running = std::collections::VecDeque::new();
    for round in 0..500 {
        scheduler
            .push(&arrival("", "small", 400, now), "small", now)
            .unwrap();
        if round == 100 {
            scheduler
                .push(&arrival("", "large", 6000, now), "large", now)
                .unwrap();
        }
        while let Some(next) = scheduler.next(now) {
            if next.item == "large" {
                return round - 100;
            }
            scheduler.first_token(next.key, now);
            running.push_back(next.key);
        }
        // One ends per round, as soon as there is enough to keep the cache full of small ones.
        if (running.len() > 18 || round > 100)
            && let Some(key) = running.pop_front()
        {
            scheduler.finish(key, &Outcome::Cancelled { generated: 10 }, now);
        }
    }
    500
}

#[test]
fn when_small_ones_skip_a_blocked_head_a_large_one_starves() {
    assert!(passed(None) < 60, "{}", passed(None));
    assert_eq!(passed(Some(Mutant::BlockedHead)), 500);
}

//! Who is told at once that its turn would come too late.

use std::time::{Duration, Instant};

use super::{super::*, arrival, epoch, fair};
use crate::cost::Usage;

const SECOND: Duration = Duration::from_secs(1);

/// A hundred requests of `a` wait before an engine that serves one of 200 tokens' worth a second,
/// and has done so for `seconds`.
fn saturated(discipline: Discipline, seconds: u32) -> (Scheduler<u32>, Instant) {
    let mut now = epoch();
    let mut settings = fair(Capacity::of_engine(1, 1000, None));
    settings.fair.capacity.headroom = 0;
    settings.discipline = discipline;
    settings.max_in_flight = 1;
    let mut scheduler = Scheduler::new(&settings);
    for item in 0..=100 + seconds {
        scheduler
            .push(&arrival("", "a", 100, now), item, now)
            .unwrap();
    }
    let mut running = scheduler.next(now).unwrap();
    for _ in 0..seconds {
        for _ in 0..10 {
            now += SECOND / 10;
            scheduler.tick(now);
        }
        let usage = Usage {
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 50,
        };
        scheduler.finish(running.key, &Outcome::Completed(usage), now);
        running = scheduler.next(now).unwrap();
    }
    assert_eq!(scheduler.counts(&"a".into()).waiting, 100);
    (scheduler, now)
}

fn patient(tenant: &str, seconds: u32, now: Instant) -> Arrival {
    Arrival {
        expires: now + SECOND * seconds,
        ..arrival("", tenant, 100, now)
    }
}

#[test]
fn a_request_whose_own_line_is_too_long_for_it_is_refused_at_once() {
    let (mut scheduler, now) = saturated(Discipline::Fair, 20);
    // A hundred seconds of work wait before it; half of that is believed.
    let full = scheduler.push(&patient("a", 40, now), 7, now).unwrap_err();
    assert_eq!((full.item, full.bound), (7, Bound::Expiry));
    assert!(scheduler.push(&patient("a", 70, now), 7, now).is_ok());
}

#[test]
fn a_long_line_makes_only_those_behind_it_late() {
    let (mut scheduler, now) = saturated(Discipline::Fair, 20);
    let hurried = patient("a", 1, now);
    let session = Arrival {
        flow: Some("another".into()),
        ..hurried.clone()
    };
    let urgent = Arrival {
        class: -1,
        ..hurried
    };
    for arrival in [patient("b", 1, now), session, urgent] {
        assert!(scheduler.push(&arrival, 7, now).is_ok(), "{arrival:?}");
    }
}

#[test]
fn nobody_is_refused_by_a_forecast_without_data() {
    for (discipline, seconds) in [(Discipline::Fair, 0), (Discipline::Fifo, 20)] {
        let (mut scheduler, now) = saturated(discipline, seconds);
        assert!(scheduler.push(&patient("a", 1, now), 7, now).is_ok());
    }
}

#[test]
fn an_engine_that_hangs_or_starts_again_teaches_nothing() {
    let (mut scheduler, mut now) = saturated(Discipline::Fair, 20);
    for _ in 0..600 {
        now += SECOND / 10;
        scheduler.tick(now);
    }
    assert!(scheduler.push(&patient("a", 70, now), 7, now).is_ok());
}

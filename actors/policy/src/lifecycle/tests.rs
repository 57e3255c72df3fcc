//! Behaviour, and what holds whatever happens.

use proptest::prelude::*;

use super::*;
use crate::backoff::MAX_FAILURES;
use crate::epoch;

fn after(events: &[Event]) -> (Lifecycle, Effect) {
    let (mut life, mut last) = (Lifecycle::new(), Effect::None);
    for event in events {
        last = life.on(*event, epoch(), 0);
    }
    (life, last)
}

const TO_READY: [Event; 4] = [
    Event::Fetched,
    Event::Wanted,
    Event::Granted,
    Event::Verified,
];

#[test]
fn a_wanted_model_asks_for_a_place_and_then_starts_once() {
    let (life, effect) = after(&[Event::Fetched, Event::Wanted]);
    assert_eq!(
        (life.state(), effect),
        (
            State::Waiting {
                from: SleepLevel::Cold
            },
            Effect::Demand
        )
    );
    let (mut life, effect) = after(&[Event::Fetched, Event::Wanted, Event::Granted]);
    assert_eq!(effect, Effect::Spawn(Generation(1)));
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::None);
    assert_eq!(life.on(Event::Granted, epoch(), 0), Effect::None);
}

#[test]
fn a_crash_backs_off_and_the_next_start_has_a_new_generation() {
    let (mut life, _) = after(&TO_READY);
    life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
    assert!(matches!(life.state(), State::Backoff { attempt: 1, .. }));
    assert!(life.retry_at().is_some());
    assert_eq!(life.on(Event::RetryDue, epoch(), 0), Effect::Demand);
    assert_eq!(
        life.on(Event::Granted, epoch(), 0),
        Effect::Spawn(Generation(2))
    );
}

#[test]
fn a_failure_that_trying_again_cannot_mend_breaks_at_once() {
    let (mut life, _) = after(&TO_READY);
    let effect = life.on(Event::Exited(FailureClass::BadModel), epoch(), 0);
    assert_eq!(effect, Effect::RefuseWaiting);
    assert_eq!(
        (life.state(), life.retry_at()),
        (
            State::Broken {
                class: FailureClass::BadModel
            },
            None
        )
    );
}

#[test]
fn crash_loop_breaks_and_gets_one_more_try_after_the_cool_down() {
    let (mut life, _) = after(&[Event::Fetched, Event::Wanted]);
    for _ in 0..MAX_FAILURES {
        life.on(Event::Granted, epoch(), 0);
        life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
        if matches!(life.state(), State::Backoff { .. }) {
            life.on(Event::RetryDue, epoch(), 0);
        }
    }
    assert_eq!(
        life.state(),
        State::Broken {
            class: FailureClass::Crashed
        }
    );
    assert!(life.retry_at().is_some());
    assert_eq!(life.on(Event::RetryDue, epoch(), 0), Effect::Demand);
}

#[test]
fn broken_model_that_serves_again_has_all_its_tries_back() {
    let (mut life, _) = after(&[Event::Fetched, Event::Wanted]);
    for _ in 0..MAX_FAILURES {
        life.on(Event::Granted, epoch(), 0);
        life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
        life.on(Event::RetryDue, epoch(), 0);
    }
    life.on(Event::Granted, epoch(), 0);
    life.on(Event::Verified, epoch(), 0);
    assert_eq!(life.state(), State::Ready);
    life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
    assert!(matches!(life.state(), State::Backoff { attempt: 1, .. }));
}

#[test]
fn download_that_failed_breaks_the_model_until_it_is_there() {
    let class = FailureClass::Download;
    let (mut life, effect) = after(&[Event::FetchFailed(class)]);
    assert_eq!(
        (life.state(), effect),
        (State::Broken { class }, Effect::RefuseWaiting)
    );
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::None);
    life.on(Event::Fetched, epoch(), 0);
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::Demand);
}

#[test]
fn an_inherited_engine_serves_without_a_start_and_the_next_start_is_above_it() {
    let (mut life, effect) = after(&[
        Event::Fetched,
        Event::Wanted,
        Event::Inherited(Generation(7)),
    ]);
    assert_eq!(
        (life.state(), effect),
        (State::Adopting, Effect::Adopt(Generation(7)))
    );
    assert_eq!(life.on(Event::Granted, epoch(), 0), Effect::None);
    assert_eq!(life.on(Event::Verified, epoch(), 0), Effect::None);
    assert_eq!(life.state(), State::Ready);
    life.on(Event::Exited(FailureClass::Crashed), epoch(), 0);
    life.on(Event::RetryDue, epoch(), 0);
    assert_eq!(
        life.on(Event::Granted, epoch(), 0),
        Effect::Spawn(Generation(8))
    );
}

#[test]
fn an_inherited_engine_that_cannot_be_used_is_no_failure_and_another_starts() {
    let (mut life, _) = after(&[Event::Fetched, Event::Inherited(Generation(7))]);
    let effect = life.on(Event::Exited(FailureClass::Canary), epoch(), 0);
    assert_eq!(effect, Effect::Demand);
    assert_eq!(
        life.on(Event::Granted, epoch(), 0),
        Effect::Spawn(Generation(8))
    );
    let (mut life, _) = after(&[Event::Fetched, Event::Inherited(Generation(7))]);
    assert_eq!(life.on(Event::Unwanted, epoch(), 0), Effect::Stop);
}

#[test]
fn an_inherited_engine_that_sleeps_goes_on_sleeping_and_wakes_when_it_is_wanted() {
    let (mut life, effect) = after(&[
        Event::Fetched,
        Event::Inherited(Generation(7)),
        Event::FoundAsleep(SleepLevel::L1),
    ]);
    assert_eq!(
        (life.state(), effect),
        (
            State::Asleep {
                level: SleepLevel::L1
            },
            Effect::None
        )
    );
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::Demand);
    assert_eq!(
        life.on(Event::Granted, epoch(), 0),
        Effect::Wake(SleepLevel::L1)
    );
    assert_eq!(life.generation(), Generation(7));
}

fn asleep_at(level: SleepLevel) -> Lifecycle {
    let (mut life, _) = after(&TO_READY);
    life.supports(SleepLevels::default().with(level));
    for event in [Event::Reclaim { to: level }, Event::Drained, Event::Demoted] {
        life.on(event, epoch(), 0);
    }
    assert_eq!(life.state(), State::Asleep { level });
    life
}

#[test]
fn a_model_drains_before_it_goes_to_sleep_and_proves_itself_after() {
    let (mut life, _) = after(&TO_READY);
    life.supports([SleepLevel::L1].into_iter().collect());
    let mut on = |event| life.on(event, epoch(), 0);
    assert_eq!(on(Event::Reclaim { to: SleepLevel::L1 }), Effect::Drain);
    assert_eq!(on(Event::Drained), Effect::Demote(SleepLevel::L1));
    assert_eq!(on(Event::Demoted), Effect::None);
    assert_eq!(on(Event::Wanted), Effect::Demand);
    assert_eq!(on(Event::Granted), Effect::Wake(SleepLevel::L1));
    assert_eq!(on(Event::Woken), Effect::Verify);
    assert_eq!(on(Event::Verified), Effect::None);
    assert_eq!(
        (life.state(), life.generation()),
        (State::Ready, Generation(1))
    );
}

#[test]
fn a_level_that_broke_its_promise_is_barred_and_the_next_start_is_cold() {
    let mut life = asleep_at(SleepLevel::L1);
    life.supports([SleepLevel::L1, SleepLevel::L2].into_iter().collect());
    let wake = [Event::Wanted, Event::Granted, Event::Woken];
    for event in wake {
        life.on(event, epoch(), 0);
    }
    assert_eq!(life.on(Event::VerifyFailed, epoch(), 0), Effect::Stop);
    life.on(Event::Exited(FailureClass::Stopped), epoch(), 0);
    assert_eq!(life.state(), State::Cold);
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::Demand);
    assert_eq!(
        life.on(Event::Granted, epoch(), 0),
        Effect::Spawn(Generation(2))
    );
    life.on(Event::Verified, epoch(), 0);
    life.on(Event::Reclaim { to: SleepLevel::L1 }, epoch(), 0);
    assert_eq!(life.state(), State::Draining { to: SleepLevel::L2 });
}

#[test]
fn a_pinned_model_is_not_reclaimed_but_its_operator_may_unload_it() {
    let (mut life, _) = after(&TO_READY);
    life.on(Event::Pin(true), epoch(), 0);
    assert_eq!(
        life.on(
            Event::Reclaim {
                to: SleepLevel::Cold
            },
            epoch(),
            0
        ),
        Effect::None
    );
    assert_eq!(
        life.on(
            Event::Sleep {
                to: SleepLevel::Cold
            },
            epoch(),
            0
        ),
        Effect::Drain
    );
}

#[test]
fn a_level_that_the_engine_lacks_is_not_gone_to() {
    let (mut life, _) = after(&TO_READY);
    life.on(
        Event::Reclaim {
            to: SleepLevel::Parked,
        },
        epoch(),
        0,
    );
    assert_eq!(life.on(Event::Drained, epoch(), 0), Effect::Stop);
}

#[test]
fn dismissed_engine_drains_whoever_pinned_it_and_one_that_is_broken_gets_another_chance() {
    let (mut life, _) = after(&TO_READY);
    life.on(Event::Pin(true), epoch(), 0);
    assert_eq!(life.on(Event::Dismissed, epoch(), 0), Effect::Drain);
    assert_eq!(life.on(Event::Dismissed, epoch(), 0), Effect::None);
    assert_eq!(life.on(Event::Drained, epoch(), 0), Effect::Stop);
    let (mut life, _) = after(&[Event::Fetched, Event::Wanted, Event::Granted]);
    life.on(Event::Exited(FailureClass::BadFlag), epoch(), 0);
    assert!(life.state().has_failed());
    life.on(Event::Dismissed, epoch(), 0);
    assert_eq!(life.on(Event::Wanted, epoch(), 0), Effect::Demand);
}

fn event() -> impl Strategy<Value = Event> {
    let class = prop_oneof![Just(FailureClass::Crashed), Just(FailureClass::BadFlag)];
    let level = || prop::sample::select(&SleepLevel::ALL[..]);
    prop_oneof![
        1 => Just(Event::Fetched),
        1 => Just(Event::Dismissed),
        3 => Just(Event::Wanted),
        3 => Just(Event::Granted),
        1 => (1..9_u64).prop_map(|n| Event::Inherited(Generation(n))),
        1 => prop::sample::select(&SleepLevel::ASLEEP[..]).prop_map(Event::FoundAsleep),
        1 => Just(Event::Progressed(Phase::Loading)),
        3 => Just(Event::Woken),
        1 => Just(Event::WakeFailed),
        5 => Just(Event::Verified),
        1 => Just(Event::VerifyFailed),
        2 => level().prop_map(|to| Event::Reclaim { to }),
        1 => level().prop_map(|to| Event::Sleep { to }),
        1 => any::<bool>().prop_map(Event::Pin),
        3 => Just(Event::Drained),
        3 => Just(Event::Demoted),
        1 => Just(Event::DemoteFailed),
        1 => class.prop_map(Event::Exited),
        2 => Just(Event::RetryDue),
        1 => Just(Event::Unwanted),
    ]
}

/// What the shell sees besides the machine: the engine's process, and the requests that run on it.
#[derive(Default)]
struct World {
    engine: Option<Generation>,
    running: usize,
}

impl World {
    /// The shell reports only what can be: the end of an engine that lives, and that nobody runs.
    fn can_be(&self, event: Event) -> bool {
        let is_end = matches!(event, Event::Exited(_));
        let is_drained = event == Event::Drained;
        (!is_end || self.engine.is_some()) && (!is_drained || self.running == 0)
    }

    fn check(&mut self, life: &mut Lifecycle, event: Event) -> Result<(), TestCaseError> {
        let (before, barred) = (life.state(), life.barred());
        if matches!(event, Event::Exited(_)) {
            *self = Self::default();
        }
        let effect = life.on(event, epoch(), 0);
        match effect {
            Effect::Spawn(generation) | Effect::Adopt(generation) => {
                prop_assert_eq!(self.engine, None, "a second engine of the same model");
                self.engine = Some(generation);
            }
            Effect::Drain | Effect::Demote(_) | Effect::Wake(_) | Effect::Verify | Effect::Stop => {
                prop_assert_eq!(
                    self.engine,
                    Some(life.generation()),
                    "for an engine that is gone"
                );
            }
            Effect::None | Effect::Demand | Effect::RefuseWaiting => {}
        }
        if matches!(effect, Effect::Demote(_)) || effect == Effect::Stop && event != Event::Unwanted
        {
            prop_assert_eq!(
                self.running,
                0,
                "{:?} cut requests off in {:?}",
                event,
                before
            );
        }
        if let Effect::Demote(level) = effect {
            prop_assert!(life.levels().contains(level), "{level} is not to be had");
            prop_assert!(before.level().is_none_or(|from| from < level), "not deeper");
        }
        if let (Some(from), Some(to)) = (before.level(), life.state().level()) {
            prop_assert!(from <= to || from == SleepLevel::Ready, "served unproven");
        }
        prop_assert_eq!(
            life.state().has_engine(),
            self.engine.is_some(),
            "{}",
            life.state()
        );
        // That of the engine before is none of the next one's.
        let is_lifted = event == Event::Dismissed;
        prop_assert!(
            is_lifted || barred.iter().all(|level| life.barred().contains(level)),
            "a bar was lifted"
        );
        Ok(())
    }
}

proptest! {
    #[test]
    fn engine_and_requests_are_safe_whatever_happens(
        levels in prop::collection::vec(prop::sample::select(&SleepLevel::ASLEEP[..]), 0..4),
        events in prop::collection::vec((event(), 0..3_usize), 0..300),
    ) {
        let (mut life, mut world) = (Lifecycle::new(), World::default());
        life.supports(levels.into_iter().collect());
        for (event, arriving) in events {
            if world.can_be(event) {
                world.check(&mut life, event)?;
            }
            world.running = if life.state().admits() {
                world.running + arriving
            } else {
                world.running.saturating_sub(arriving)
            };
        }
    }
}

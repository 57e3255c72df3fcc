//! Who is told to start, and what that is charged as.

use std::time::{Duration, Instant};

use crate::{
    ModelId, epoch,
    lifecycle::{Phase, SleepLevel, State},
    residency::{
        Demand, DeviceMemory, DeviceSelector, Footprint, Memory, MemoryReading, Needs, Order,
        OrderKind, Resident, Settings, Tracker, Until,
    },
};

const GIB: u64 = 1 << 30;

fn needs(gib: u64) -> Needs {
    Needs {
        memory: Memory::Estimated(Footprint {
            weights: gib * GIB,
            ..Footprint::default()
        }),
        devices: DeviceSelector::Gpus(Vec::new()),
        width: 1,
        costs: None,
    }
}

fn reading(gpus: &[(&str, u64)]) -> MemoryReading {
    let device = |(index, (uuid, used)): (u32, &(&str, u64))| DeviceMemory {
        id: (*uuid).into(),
        index,
        total: 80 * GIB,
        used: used * GIB,
    };
    MemoryReading::Devices((0..).zip(gpus).map(device).collect())
}

fn at(state: State, order: u64) -> Demand {
    Demand {
        state,
        order,
        ..Demand::default()
    }
}

const WAITING: State = State::Waiting {
    from: SleepLevel::Cold,
};

/// The books of these engines on one GPU of 80 GiB, all of which wait.
fn waiting(engines: &[(&str, Needs)]) -> (Tracker, Instant) {
    let now = epoch();
    let mut tracker = Tracker::new(Settings::default(), now);
    tracker.observe(&reading(&[("GPU-a", 0)]), None);
    for (name, needs) in engines {
        tracker.register(ModelId::from(*name), needs.clone(), now);
        tracker.update(&ModelId::from(*name), at(WAITING, 0), now);
    }
    (tracker, now)
}

#[test]
fn starts_on_one_gpu_go_one_after_the_other_and_memory_is_charged_before_it_is_taken() {
    let (mut tracker, now) = waiting(&[("a", needs(30)), ("b", needs(30))]);
    let first = tracker.decide(now);
    assert_eq!(first.len(), 1);
    let (engine, order) = (first[0].engine.clone(), first[0].number);
    assert_eq!(tracker.memory()[0].taken, 30 * GIB);
    assert!(tracker.decide(now).is_empty(), "an order is given once");
    // A demand from before the order does not undo it.
    tracker.update(&engine, at(WAITING, 0), now);
    assert_eq!(tracker.memory()[0].taken, 30 * GIB);
    tracker.update(&engine, at(State::Ready, order), now);
    let second = tracker.decide(now);
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].engine, engine);
    assert_eq!(tracker.memory()[0].taken, 60 * GIB);
}

#[test]
fn what_others_use_is_not_given_away() {
    let (mut tracker, now) = waiting(&[("a", needs(30))]);
    tracker.observe(&reading(&[("GPU-a", 60)]), None);
    assert!(tracker.decide(now).is_empty());
    tracker.observe(&reading(&[("GPU-a", 40)]), None);
    assert_eq!(tracker.decide(now).len(), 1);
    // Its own memory, as it loads, is no foreign one.
    tracker.observe(&reading(&[("GPU-a", 70)]), None);
    assert_eq!(tracker.memory()[0].taken, 70 * GIB);
}

#[test]
fn nothing_starts_on_a_gpu_that_does_not_answer() {
    let (mut tracker, now) = waiting(&[("a", needs(30))]);
    tracker.observe(&MemoryReading::Lost, None);
    assert!(tracker.decide(now).is_empty());
    tracker.observe(&reading(&[("GPU-a", 0)]), None);
    assert_eq!(tracker.decide(now).len(), 1);
}

#[test]
fn engine_keeps_to_the_gpus_it_may_use() {
    let second = Needs {
        devices: DeviceSelector::Gpus(vec!["1".to_owned()]),
        ..needs(30)
    };
    let now = epoch();
    let mut tracker = Tracker::new(Settings::default(), now);
    tracker.observe(&reading(&[("GPU-a", 0), ("GPU-b", 0)]), None);
    tracker.register(ModelId::from("a"), second, now);
    tracker.update(&ModelId::from("a"), at(WAITING, 0), now);
    let orders = tracker.decide(now);
    let here = OrderKind::Grant {
        devices: vec!["GPU-b".into()],
        is_prefetch: false,
    };
    assert_eq!(orders[0].kind, here);
}

#[test]
fn engine_whose_gpus_are_not_here_starts_on_no_other_and_says_so() {
    let only = |name: &str| DeviceSelector::Gpus(vec![name.to_owned()]);
    let elsewhere = Needs {
        devices: only("GPU-z"),
        ..needs(30)
    };
    let spread = Needs {
        devices: only("0"),
        width: 2,
        ..needs(30)
    };
    let (mut tracker, now) = waiting(&[("elsewhere", elsewhere), ("spread", spread)]);
    assert!(tracker.decide(now).is_empty());
    let until = |one: &Resident| one.until;
    let told: Vec<_> = tracker.residents().iter().map(until).collect();
    assert_eq!(told, [Some(Until::Device); 2]);
}

#[test]
fn nobody_says_that_there_is_no_gpu_before_the_first_reading() {
    let now = epoch();
    let mut tracker = Tracker::new(Settings::default(), now);
    tracker.register(ModelId::from("a"), needs(30), now);
    tracker.update(&ModelId::from("a"), at(WAITING, 0), now);
    assert!(tracker.decide(now).is_empty());
    assert_ne!(tracker.residents()[0].until, Some(Until::Device));
}

#[test]
fn what_the_next_engine_needs_counts_from_the_end_of_the_one_before() {
    let (mut tracker, now) = waiting(&[("a", needs(30))]);
    let Order {
        engine,
        number: order,
        ..
    } = tracker.decide(now).remove(0);
    tracker.update(&engine, at(State::Ready, order), now);
    tracker.register(engine.clone(), needs(50), now);
    tracker.update(&engine, at(State::Ready, order), now);
    assert_eq!(tracker.memory()[0].taken, 30 * GIB);
    tracker.update(&engine, at(State::Cold, order), now);
    assert_eq!(tracker.memory()[0].taken, 0);
    tracker.update(&engine, at(WAITING, order), now);
    assert_eq!(tracker.decide(now).len(), 1);
    assert_eq!(tracker.memory()[0].taken, 50 * GIB);
    tracker.unregister(&engine);
    assert_eq!(tracker.memory()[0].taken, 0);
    assert!(tracker.residents().is_empty());
}

#[test]
fn what_a_start_took_is_what_the_next_one_is_expected_to_take() {
    let (mut tracker, now) = waiting(&[("a", needs(1))]);
    let Order {
        engine,
        number: order,
        ..
    } = tracker.decide(now).remove(0);
    let before = tracker.residents()[0].costs[SleepLevel::Cold].promote;
    let phase = Phase::Spawned;
    tracker.update(&engine, at(State::Starting { phase }, order), now);
    let later = now + before * 10;
    tracker.update(&engine, at(State::Ready, order), later);
    assert!(tracker.residents()[0].costs[SleepLevel::Cold].promote > before * 2);
}

/// One room for two that are asked in turns, with silence enough between to load either.
#[test]
fn who_is_next_in_turn_is_granted_the_room_that_is_made_for_it_before_it_is_asked() {
    let (mut tracker, mut now) = waiting(&[("a", needs(50)), ("b", needs(50))]);
    let minute = Duration::from_secs(60);
    let said = |state, order, asked_at| Demand {
        asked_at: Some(asked_at),
        may_prefetch: state == State::Cold,
        ..at(state, order)
    };
    let (a, b) = (ModelId::from("a"), ModelId::from("b"));
    let mut asked = [now; 2];
    for turn in 0..20 {
        now += minute;
        asked[turn % 2] = now;
        tracker.update(&a, said(State::Cold, 0, asked[0]), now);
        tracker.update(&b, said(State::Cold, 0, asked[1]), now);
    }
    // It was b's turn last, and b is in memory.
    tracker.update(&b, said(WAITING, 0, asked[1]), now);
    let Order { number: order, .. } = tracker.decide(now).remove(0);
    tracker.update(&b, said(State::Ready, order, asked[1]), now);
    now += minute / 10;
    let reclaim = tracker.decide(now).remove(0);
    let order = reclaim.number;
    assert_eq!(
        (&reclaim.engine, reclaim.kind),
        (&b, OrderKind::Reclaim(SleepLevel::Cold))
    );
    tracker.update(&b, said(State::Cold, order, asked[1]), now);
    let Order {
        engine: next,
        kind: grant,
        ..
    } = tracker.decide(now).remove(0);
    let ahead = OrderKind::Grant {
        devices: vec!["GPU-a".into()],
        is_prefetch: true,
    };
    assert_eq!((next, grant), (a, ahead));
}

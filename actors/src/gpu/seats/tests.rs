//! Who is told to start, and what that is charged as.

use kvwarden_policy::lifecycle::Rungs;

use super::*;
use crate::engine::Footprint;

const GIB: u64 = 1 << 30;

fn needs(gib: u64) -> Needs {
    Needs {
        footprint: Footprint {
            weights: gib * GIB,
            ..Footprint::default()
        },
        is_elsewhere: false,
        is_on_host: false,
        gpus: Vec::new(),
        width: 1,
        costs: None,
    }
}

fn reading(gpus: &[(&str, u64)]) -> Reading {
    let device = |(index, (uuid, used)): (u32, &(&str, u64))| DeviceReading {
        index,
        uuid: (*uuid).to_owned(),
        total: 80 * GIB,
        used: used * GIB,
        ..DeviceReading::default()
    };
    Reading::Devices {
        devices: (0..).zip(gpus).map(device).collect(),
    }
}

fn at(state: State, order: u64) -> Claim {
    Claim {
        state,
        order,
        rungs: Rungs::default(),
        ..Claim::default()
    }
}

const WAITING: State = State::Waiting { from: Rung::Cold };

/// The seats of these engines on one GPU of 80 GiB, all of which wait.
fn waiting(engines: &[(&str, Needs)]) -> (Seats, Instant) {
    let now = tokio::time::Instant::now().into_std();
    let mut seats = Seats::new(residency::Settings::default(), now);
    seats.see(&reading(&[("GPU-a", 0)]), None);
    for (name, needs) in engines {
        seats.enlist(ModelId::from(*name), needs.clone(), now);
        seats.claim(&ModelId::from(*name), at(WAITING, 0), now);
    }
    (seats, now)
}

#[test]
fn starts_on_one_gpu_go_one_after_the_other_and_memory_is_charged_before_it_is_taken() {
    let (mut seats, now) = waiting(&[("a", needs(30)), ("b", needs(30))]);
    let first = seats.decide(now);
    assert_eq!(first.len(), 1);
    let (engine, order, _) = first[0].clone();
    assert_eq!(seats.memory()[0].taken, 30 * GIB);
    assert!(seats.decide(now).is_empty(), "an order is given once");
    // A claim from before the order does not undo it.
    seats.claim(&engine, at(WAITING, 0), now);
    assert_eq!(seats.memory()[0].taken, 30 * GIB);
    seats.claim(&engine, at(State::Ready, order), now);
    let second = seats.decide(now);
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].0, engine);
    assert_eq!(seats.memory()[0].taken, 60 * GIB);
}

#[test]
fn what_others_use_is_not_given_away() {
    let (mut seats, now) = waiting(&[("a", needs(30))]);
    seats.see(&reading(&[("GPU-a", 60)]), None);
    assert!(seats.decide(now).is_empty());
    seats.see(&reading(&[("GPU-a", 40)]), None);
    assert_eq!(seats.decide(now).len(), 1);
    // Its own memory, as it loads, is no foreign one.
    seats.see(&reading(&[("GPU-a", 70)]), None);
    assert_eq!(seats.memory()[0].taken, 70 * GIB);
}

#[test]
fn nothing_starts_on_a_gpu_that_does_not_answer() {
    let (mut seats, now) = waiting(&[("a", needs(30))]);
    let lost = Reading::Lost {
        reason: "GPU is lost".to_owned(),
    };
    seats.see(&lost, None);
    assert!(seats.decide(now).is_empty());
    seats.see(&reading(&[("GPU-a", 0)]), None);
    assert_eq!(seats.decide(now).len(), 1);
}

#[test]
fn engine_keeps_to_the_gpus_it_may_use() {
    let second = Needs {
        gpus: vec!["1".to_owned()],
        ..needs(30)
    };
    let now = tokio::time::Instant::now().into_std();
    let mut seats = Seats::new(residency::Settings::default(), now);
    seats.see(&reading(&[("GPU-a", 0), ("GPU-b", 0)]), None);
    seats.enlist(ModelId::from("a"), second, now);
    seats.claim(&ModelId::from("a"), at(WAITING, 0), now);
    let orders = seats.decide(now);
    let here = Order::Grant {
        devices: vec!["GPU-b".into()],
        is_prefetch: false,
    };
    assert_eq!(orders[0].2, here);
}

#[test]
fn what_the_next_engine_needs_counts_from_the_end_of_the_one_before() {
    let (mut seats, now) = waiting(&[("a", needs(30))]);
    let (engine, order, _) = seats.decide(now).remove(0);
    seats.claim(&engine, at(State::Ready, order), now);
    seats.enlist(engine.clone(), needs(50), now);
    seats.claim(&engine, at(State::Ready, order), now);
    assert_eq!(seats.memory()[0].taken, 30 * GIB);
    seats.claim(&engine, at(State::Cold, order), now);
    assert_eq!(seats.memory()[0].taken, 0);
    seats.claim(&engine, at(WAITING, order), now);
    assert_eq!(seats.decide(now).len(), 1);
    assert_eq!(seats.memory()[0].taken, 50 * GIB);
    seats.delist(&engine);
    assert_eq!(seats.memory()[0].taken, 0);
    assert!(seats.residents().is_empty());
}

#[test]
fn what_a_start_took_is_what_the_next_one_is_expected_to_take() {
    let (mut seats, now) = waiting(&[("a", needs(1))]);
    let (engine, order, _) = seats.decide(now).remove(0);
    let before = seats.residents()[0].costs[Rung::Cold].promote;
    let phase = kvwarden_policy::lifecycle::Phase::Spawned;
    seats.claim(&engine, at(State::Starting { phase }, order), now);
    let later = now + before * 10;
    seats.claim(&engine, at(State::Ready, order), later);
    assert!(seats.residents()[0].costs[Rung::Cold].promote > before * 2);
}

/// One room for two that are asked in turns, with silence enough between to load either.
#[test]
fn who_is_next_in_turn_is_granted_the_room_that_is_made_for_it_before_it_is_asked() {
    let (mut seats, mut now) = waiting(&[("a", needs(50)), ("b", needs(50))]);
    let minute = std::time::Duration::from_secs(60);
    let said = |state, order, asked_at| Claim {
        asked_at: Some(asked_at),
        may_prefetch: state == State::Cold,
        ..at(state, order)
    };
    let (a, b) = (ModelId::from("a"), ModelId::from("b"));
    let mut asked = [now; 2];
    for turn in 0..20 {
        now += minute;
        asked[turn % 2] = now;
        seats.claim(&a, said(State::Cold, 0, asked[0]), now);
        seats.claim(&b, said(State::Cold, 0, asked[1]), now);
    }
    // It was b's turn last, and b is in memory.
    seats.claim(&b, said(WAITING, 0, asked[1]), now);
    let (_, order, _) = seats.decide(now).remove(0);
    seats.claim(&b, said(State::Ready, order, asked[1]), now);
    now += minute / 10;
    let (victim, order, reclaim) = seats.decide(now).remove(0);
    assert_eq!((&victim, reclaim), (&b, Order::Reclaim(Rung::Cold)));
    seats.claim(&b, said(State::Cold, order, asked[1]), now);
    let (next, _, grant) = seats.decide(now).remove(0);
    let ahead = Order::Grant {
        devices: vec!["GPU-a".into()],
        is_prefetch: true,
    };
    assert_eq!((next, grant), (a, ahead));
}

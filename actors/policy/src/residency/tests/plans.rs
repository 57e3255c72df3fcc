//! What a plan never does, and what it does in the cases that matter.

use std::{collections::HashSet, time::Duration};

use proptest::prelude::*;

use crate::{
    DeviceId,
    lifecycle::{SleepLevel, State},
    residency::{
        Action, BySleepLevel, Cost, Demand, Device, Forecast, Ledger, Model, Settings, Snapshot,
        Until, Why, plan,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn device(index: usize, taken: u64) -> Device {
    Device {
        id: format!("gpu-{index}").into(),
        capacity: 80,
        taken,
        is_changing: false,
        is_quarantined: false,
    }
}

/// Cold and not wanted; 10 s to load.
fn model(name: &str, gib: u64) -> Model {
    Model {
        id: name.into(),
        level: SleepLevel::Cold,
        is_changing: false,
        devices: Vec::new(),
        width: 1,
        allowed: (0..4).map(|index| device(index, 0).id).collect(),
        bytes: BySleepLevel::from_fn(|level| match level {
            SleepLevel::Ready => gib,
            SleepLevel::Parked => gib / 2,
            SleepLevel::L1 | SleepLevel::L2 => 1,
            SleepLevel::Cold => 0,
        }),
        costs: BySleepLevel::from_fn(|level| Cost {
            demote: Duration::ZERO,
            promote: SECOND * [0, 1, 3, 5, 10][level as usize],
        }),
        next: Forecast::default(),
        is_promised: false,
        demand: Demand {
            state: State::Cold,
            drain: SECOND,
            may_prefetch: true,
            ..Demand::default()
        },
    }
}

fn ready(name: &str, gib: u64, on: &[usize]) -> Model {
    let cold = model(name, gib);
    Model {
        level: SleepLevel::Ready,
        devices: on
            .iter()
            .map(|index| format!("gpu-{index}").into())
            .collect(),
        width: on.len(),
        demand: Demand {
            state: State::Ready,
            rate: 0.1,
            soon: 0.25,
            ..cold.demand
        },
        ..cold
    }
}

fn wanted(name: &str, gib: u64) -> Model {
    let mut model = model(name, gib);
    model.demand.state = State::Waiting {
        from: SleepLevel::Cold,
    };
    (model.demand.queued, model.demand.rate) = (1, 0.1);
    model
}

/// Devices are as full as these models make them.
fn snapshot(devices: usize, models: Vec<Model>) -> Snapshot {
    let taken = |index: usize| {
        let id: DeviceId = format!("gpu-{index}").into();
        let here = models.iter().filter(|model| model.devices.contains(&id));
        here.map(|model| model.bytes[model.level]).sum()
    };
    Snapshot {
        settings: Settings::default(),
        devices: (0..devices)
            .map(|index| device(index, taken(index)))
            .collect(),
        models,
    }
}

fn starts(snapshot: &Snapshot) -> Vec<(String, Vec<String>)> {
    let start = |action| match action {
        Action::Start { model, devices } => Some((
            model.to_string(),
            devices.iter().map(ToString::to_string).collect(),
        )),
        Action::Demote { .. } | Action::Wait { .. } => None,
    };
    plan(snapshot)
        .actions
        .into_iter()
        .filter_map(start)
        .collect()
}

fn only(snapshot: &Snapshot) -> Action {
    let mut actions = plan(snapshot).actions;
    assert_eq!(actions.len(), 1, "{actions:?}");
    actions.remove(0)
}

#[test]
fn a_model_starts_where_the_least_room_is_left_over() {
    let snapshot = snapshot(2, vec![ready("a", 30, &[1]), wanted("b", 40)]);
    assert_eq!(
        starts(&snapshot),
        [("b".to_owned(), vec!["gpu-1".to_owned()])]
    );
}

#[test]
fn a_tensor_parallel_model_takes_several_devices_at_once() {
    let mut large = wanted("large", 70);
    large.width = 2;
    let snapshot = snapshot(3, vec![ready("a", 30, &[1]), large]);
    let devices = vec!["gpu-0".to_owned(), "gpu-2".to_owned()];
    assert_eq!(starts(&snapshot), [("large".to_owned(), devices)]);
}

#[test]
fn a_victim_goes_no_deeper_than_it_has_to() {
    let mut victim = ready("a", 60, &[0]);
    victim.demand.levels = [SleepLevel::Parked, SleepLevel::L1].into_iter().collect();
    for (gib, depth) in [
        (40, SleepLevel::Parked),
        (70, SleepLevel::L1),
        (80, SleepLevel::Cold),
    ] {
        let snapshot = snapshot(1, vec![victim.clone(), wanted("b", gib)]);
        let demoted = Action::Demote {
            model: "a".into(),
            to: depth,
            why: Why::Outweighed("b".into()),
        };
        assert_eq!(only(&snapshot), demoted);
    }
}

#[test]
fn a_busy_victim_is_let_be_until_the_wait_is_too_long() {
    let mut busy = ready("a", 60, &[0]);
    (busy.demand.in_flight, busy.demand.rate) = (8, 2.0);
    let mut waits = wanted("b", 60);
    waits.demand.rent = 20.0;
    let wait = Action::Wait {
        model: "b".into(),
        until: Until::Worth,
    };
    assert_eq!(only(&snapshot(1, vec![busy.clone(), waits.clone()])), wait);
    waits.demand.oldest_wait = Settings::default().max_wait(SECOND * 10);
    let barrier = Action::Demote {
        model: "a".into(),
        to: SleepLevel::Cold,
        why: Why::Overdue("b".into()),
    };
    assert_eq!(only(&snapshot(1, vec![busy, waits])), barrier);
}

#[test]
fn room_that_was_made_for_a_model_is_its_own_though_others_are_more_urgent() {
    let mut rare = wanted("rare", 60);
    let mut hot = wanted("hot", 60);
    let demand = &mut hot.demand;
    (demand.queued, demand.rate, demand.oldest_wait) = (20, 2.0, SECOND * 1000);
    let first = |models: Vec<Model>| starts(&snapshot(1, models)).remove(0).0;
    assert_eq!(first(vec![rare.clone(), hot.clone()]), "hot");
    rare.is_promised = true;
    assert_eq!(first(vec![rare.clone(), hot.clone()]), "rare");
    // It needs a second device, which is not free yet: nobody takes the first from it meanwhile.
    let other = Model {
        is_changing: true,
        ..ready("other", 60, &[1])
    };
    rare.width = 2;
    let mut half = snapshot(2, vec![rare, hot, other]);
    half.devices[1].is_changing = true;
    assert_eq!(starts(&half), []);
}

#[test]
fn swaps_that_take_long_are_forced_less_often_unless_a_wait_was_set() {
    let minute = SECOND * 60;
    let mut settings = Settings::default();
    assert_eq!(settings.max_wait(SECOND), minute * 2);
    assert_eq!(settings.max_wait(minute), minute * 8);
    settings.max_wait = Some(SECOND);
    assert_eq!(settings.max_wait(minute), SECOND);
}

/// `idle` is in memory, `next` is not; either is the next with certainty.
fn expecting(idle: Forecast, next: Forecast) -> Snapshot {
    let idle = Model {
        next: idle,
        ..ready("idle", 60, &[0])
    };
    let next = Model {
        next,
        ..model("next", 60)
    };
    snapshot(1, vec![idle, next])
}

#[test]
fn who_is_expected_takes_the_place_of_who_is_not_before_it_is_asked() {
    let expected = expecting(Forecast::default(), Forecast::sure(20.0));
    let demoted = Action::Demote {
        model: "idle".into(),
        to: SleepLevel::Cold,
        why: Why::Foreseen("next".into()),
    };
    assert_eq!(only(&expected), demoted);
    let mut free = expected.clone();
    free.models.remove(0);
    free.devices[0].taken = 0;
    assert_eq!(starts(&free)[0].0, "next");
}

#[test]
fn nobody_is_loaded_ahead_while_it_may_harm() {
    let quiet = |what: &str, change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = expecting(Forecast::default(), Forecast::sure(20.0));
        change(&mut snapshot);
        assert_eq!(plan(&snapshot).orders().count(), 0, "{what}");
    };
    quiet("switched off", &|it| it.settings.prefetch = false);
    quiet("not allowed", &|it| {
        it.models[1].demand.may_prefetch = false;
    });
    quiet("the victim is busy", &|it| {
        it.models[0].demand.in_flight = 1;
    });
    quiet("the victim is pinned", &|it| {
        it.models[0].demand.is_pinned = true;
    });
    quiet("the device changes", &|it| it.devices[0].is_changing = true);
    quiet("the victim comes first", &|it| {
        it.models[0].next = Forecast::sure(20.0);
        it.models[1].next = Forecast::default();
    });
    quiet("it comes at once anyway", &|it| {
        it.models[1].next = Forecast::sure(0.1);
    });
    quiet("another device makes room for it already", &|it| {
        it.models[0].is_changing = true;
        it.devices[0].is_changing = true;
        it.devices.push(device(1, 0));
        it.models.push(ready("beside", 60, &[1]));
        it.devices[1].taken = it.models[2].bytes[SleepLevel::Ready];
    });
    quiet("somebody waits", &|it| {
        let mut waits = wanted("waits", 200);
        waits.demand.rate = 0.0;
        it.models.push(waits);
    });
}

#[test]
fn who_waits_while_others_go_down_for_it_drives_nobody_else_out() {
    let going = Model {
        is_changing: true,
        ..ready("going", 60, &[0])
    };
    let mut waits = wanted("waits", 60);
    waits.is_promised = true;
    waits.demand.rent = 1e6;
    let mut two = snapshot(2, vec![going, ready("beside", 60, &[1]), waits]);
    two.devices[0].is_changing = true;
    let wait = Action::Wait {
        model: "waits".into(),
        until: Until::Changed,
    };
    assert_eq!(only(&two), wait);
}

#[test]
fn a_pinned_model_stays_whoever_waits() {
    let mut pinned = ready("a", 60, &[0]);
    pinned.demand.is_pinned = true;
    let mut waits = wanted("b", 60);
    waits.demand.oldest_wait = SECOND * 10_000;
    let wait = Action::Wait {
        model: "b".into(),
        until: Until::Room,
    };
    assert_eq!(only(&snapshot(1, vec![pinned, waits])), wait);
}

#[test]
fn a_sleeper_that_cannot_wake_where_it_is_moves() {
    let mut pinned = ready("a", 60, &[0]);
    pinned.demand.is_pinned = true;
    let mut sleeper = ready("b", 60, &[0]);
    (sleeper.level, sleeper.demand.queued) = (SleepLevel::L1, 1);
    sleeper.demand.state = State::Waiting {
        from: SleepLevel::L1,
    };
    let stuck = Action::Demote {
        model: "b".into(),
        to: SleepLevel::Cold,
        why: Why::Stuck,
    };
    assert_eq!(only(&snapshot(2, vec![pinned, sleeper])), stuck);
}

#[test]
fn who_is_overdue_keeps_devices_from_being_taken_while_one_of_them_changes() {
    let mut large = wanted("large", 70);
    (large.width, large.demand.oldest_wait) = (2, SECOND * 1000);
    let mut changing = snapshot(2, vec![large, wanted("small", 10)]);
    changing.devices[0].is_changing = true;
    assert_eq!(starts(&changing), []);
    changing.devices[0].is_changing = false;
    assert_eq!(starts(&changing).len(), 1);
}

#[test]
fn nothing_starts_on_a_device_whose_memory_did_not_come_back() {
    let mut snapshot = snapshot(1, vec![wanted("a", 10)]);
    snapshot.devices[0].is_quarantined = true;
    assert_eq!(starts(&snapshot), []);
}

#[test]
fn a_model_that_nobody_wanted_for_long_is_stopped() {
    let mut idle = ready("a", 60, &[0]);
    (idle.demand.idle_ttl, idle.demand.idle_for) = (Some(SECOND * 60), SECOND * 60);
    let stopped = Action::Demote {
        model: "a".into(),
        to: SleepLevel::Cold,
        why: Why::Idle,
    };
    assert_eq!(only(&snapshot(1, vec![idle])), stopped);
}

#[test]
fn the_larger_of_what_is_charged_and_what_is_measured_counts() {
    let (gpu, a): (DeviceId, _) = ("gpu".into(), "a".into());
    let mut ledger = Ledger::new([(gpu.clone(), 80)]);
    ledger.charge(&a, std::slice::from_ref(&gpu), 30);
    assert_eq!(ledger.taken(&gpu), 30);
    ledger.measure(&gpu, Some(35), Some(2));
    assert_eq!(ledger.taken(&gpu), 35);
    ledger.measure(&gpu, None, Some(10));
    assert_eq!((ledger.taken(&gpu), ledger.charged(&a, &gpu)), (40, 30));
    ledger.release(&a);
    assert_eq!(ledger.taken(&gpu), 10);
    assert_eq!(ledger.devices(|_| false)[0].capacity, 80);
}

/// Up to four devices and a dozen models at rest that nobody asks for, one of which is expected.
fn calm_snapshot() -> impl Strategy<Value = Snapshot> {
    (any_snapshot(), 0..12_usize).prop_map(|(mut snapshot, next)| {
        for (index, model) in snapshot.models.iter_mut().enumerate() {
            (model.demand.state, model.is_changing) = (State::Cold, false);
            (model.demand.queued, model.demand.oldest_wait) = (0, Duration::ZERO);
            if index == next {
                model.next = Forecast::sure(60.0);
            }
        }
        for device in &mut snapshot.devices {
            device.is_changing = false;
        }
        snapshot
    })
}

/// Up to four devices and a dozen models in any state.
fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let one = (
        (1..70_u64, 1..3_usize, 0..4_usize, 0..5_usize),
        (any::<bool>(), any::<bool>(), any::<bool>()),
        (0..4_usize, 0..5_usize, 0.0..2.0_f64, 0..300_u64),
    );
    (1..5_usize, prop::collection::vec(one, 0..12)).prop_map(|(devices, models)| {
        let mut made = Vec::new();
        for (index, (place, is, load)) in models.into_iter().enumerate() {
            let (gib, width, at, level) = place;
            let (is_changing, is_wanted, is_pinned) = is;
            let (in_flight, queued, rate, waits) = load;
            let level = SleepLevel::ALL[level];
            let on: Vec<usize> = (0..width.min(devices))
                .map(|next| (at + next) % devices)
                .collect();
            let name = format!("m{index}");
            let mut model = if level == SleepLevel::Cold {
                model(&name, gib)
            } else {
                ready(&name, gib, &on)
            };
            (model.level, model.width) = (level, on.len());
            model.is_changing = is_changing && level != SleepLevel::Cold;
            let demand = &mut model.demand;
            if is_wanted && level != SleepLevel::Ready {
                demand.state = State::Waiting { from: level };
            }
            demand.levels = SleepLevel::ALL.into_iter().collect();
            (demand.rate, demand.is_pinned) = (rate, is_pinned);
            demand.in_flight = if level == SleepLevel::Ready {
                in_flight
            } else {
                0
            };
            demand.queued = queued;
            demand.oldest_wait = SECOND * u32::try_from(waits).unwrap();
            made.push(model);
        }
        let mut snapshot = snapshot(devices, made);
        for device in &mut snapshot.devices {
            let mut models = snapshot.models.iter();
            device.is_changing =
                models.any(|one| one.is_changing && one.devices.contains(&device.id));
        }
        snapshot
    })
}

proptest! {
    #[test]
    fn plans_keep_to_what_is_there(snapshot in prop_oneof![any_snapshot(), calm_snapshot()]) {
        let mut touched: HashSet<DeviceId> = HashSet::new();
        let find = |id: &crate::ModelId| snapshot.models.iter().find(|model| model.id == *id).unwrap();
        let device = |id: &DeviceId| snapshot.devices.iter().find(|device| device.id == *id).unwrap();
        for action in plan(&snapshot).actions {
            match action {
                Action::Start { model, devices } => {
                    let model = find(&model);
                    let is_expected = model.next != Forecast::default();
                    prop_assert!((model.is_wanted() || is_expected) && !model.is_changing);
                    prop_assert_eq!(devices.len(), model.width);
                    for id in devices {
                        let device = device(&id);
                        prop_assert!(!device.is_changing && !device.is_quarantined);
                        let more = model.bytes[SleepLevel::Ready] - model.bytes[model.level];
                        prop_assert!(device.taken + more <= device.capacity, "over the budget");
                        prop_assert!(touched.insert(id), "two transitions of one device");
                    }
                }
                Action::Demote { model, to, .. } => {
                    let model = find(&model);
                    prop_assert!(to > model.level && model.demand.levels.contains(to));
                    prop_assert!(!model.demand.is_pinned || model.is_wanted(), "a pinned victim");
                    prop_assert!(!model.is_changing);
                    for id in &model.devices {
                        prop_assert!(!device(id).is_changing);
                    }
                    touched.extend(model.devices.iter().cloned());
                }
                Action::Wait { model, .. } => prop_assert!(find(&model).is_wanted()),
            }
        }
        prop_assert_eq!(plan(&snapshot), plan(&snapshot));
    }
}

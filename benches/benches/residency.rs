//! What one plan costs. The goal (L5) is a millisecond for 64 models.

use std::time::Duration;

use divan::Bencher;
use kvwarden_policy::{
    lifecycle::{SleepLevel, State},
    residency::{BySleepLevel, Costs, Demand, Device, Forecast, Model, Settings, Snapshot, plan},
    simulation::rng::SplitMix,
};

fn main() {
    divan::main();
}

const GIB: u64 = 1 << 30;

/// Models of all sizes fill the devices, and the rest of them wait, each for others to leave.
fn full(devices: usize, models: usize) -> Snapshot {
    let mut rng = SplitMix::new(1);
    let mut snapshot = Snapshot {
        settings: Settings::default(),
        devices: (0..devices)
            .map(|index| Device {
                id: format!("gpu-{index}").into(),
                capacity: 141 * GIB,
                taken: 0,
                is_changing: false,
                is_quarantined: false,
            })
            .collect(),
        models: Vec::new(),
    };
    let everywhere: Vec<_> = snapshot.devices.iter().map(|it| it.id.clone()).collect();
    for index in 0..models {
        let ready = GIB + rng.next_u64() % (8 * GIB);
        let at = index % devices;
        let device = &mut snapshot.devices[at];
        let is_there = device.taken + ready <= device.capacity && index % 4 != 0;
        if is_there {
            device.taken += ready;
        }
        let place = is_there.then(|| device.id.clone());
        let from = SleepLevel::Cold;
        let (level, state) = match is_there {
            true => (SleepLevel::Ready, State::Ready),
            false => (from, State::Waiting { from }),
        };
        snapshot.models.push(Model {
            id: format!("model-{index}").into(),
            level,
            is_changing: false,
            devices: place.into_iter().collect(),
            width: 1,
            allowed: everywhere.clone(),
            bytes: BySleepLevel::from_fn(|level| match level {
                SleepLevel::Ready => ready,
                SleepLevel::Parked => ready / 2,
                SleepLevel::L1 | SleepLevel::L2 => GIB / 2,
                SleepLevel::Cold => 0,
            }),
            costs: Costs::prior(ready),
            next: Forecast::default(),
            is_promised: false,
            demand: Demand {
                state,
                levels: SleepLevel::ASLEEP.into_iter().collect(),
                drain: Duration::from_secs(2),
                in_flight: index % 3,
                queued: usize::from(!is_there),
                rent: rng.unit(),
                oldest_wait: Duration::from_secs(rng.next_u64() % 100),
                rate: rng.unit(),
                soon: rng.unit(),
                may_prefetch: true,
                is_pinned: index % 10 == 9,
                idle_ttl: Some(Duration::from_secs(600)),
                ..Demand::default()
            },
        });
    }
    // What is left free goes to somebody else, so that everybody who waits needs victims.
    for device in &mut snapshot.devices {
        device.taken = device.capacity;
    }
    snapshot
}

/// Every waiting model looks for its victims on every device.
#[divan::bench(args = [(1, 16), (1, 64), (2, 64), (4, 64), (4, 256)])]
fn plan_when_full(bencher: Bencher, (devices, models): (usize, usize)) {
    let snapshot = full(devices, models);
    bencher.bench_local(|| plan(&snapshot));
}

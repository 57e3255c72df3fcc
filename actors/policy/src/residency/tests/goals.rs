//! Goals L1, L2 and L5 in virtual time. All figures are SIMULATED.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use proptest::prelude::*;

use crate::{
    epoch,
    lifecycle::Rung,
    residency::sim::{
        Policy, PolicyName, Request, Served, Sim, Tally, World,
        cells::{Cell, Room},
    },
};

/// Tuning saw 1 to 4, and one look at 101 to 103 led to the present rate; these were never seen.
const HELD_OUT: RangeInclusive<u64> = 201..=205;

fn run(world: &World, requests: Vec<Request>, name: PolicyName) -> (Vec<Served>, Tally) {
    let (mut all, policy) = (Vec::new(), Policy::new(name, world, &requests));
    let tally = Sim::new(world, policy, epoch()).run(requests, |served| all.push(served));
    (all, tally)
}

/// Seconds stalled in a cell, all seeds together.
fn stall(cell: Cell, name: PolicyName) -> f64 {
    let world = cell.world();
    let of_seed = |seed| -> f64 {
        let (served, _) = run(&world, cell.requests(seed), name);
        served.iter().map(|one| one.stall.as_secs_f64()).sum()
    };
    HELD_OUT.map(of_seed).sum()
}

/// How much longer each policy stalls than ours: of all seconds, and the mean over cells (geometric,
/// so that dear reloads do not decide alone).
struct Ratios(BTreeMap<PolicyName, (f64, f64)>);

impl Ratios {
    fn of(table: &[(Cell, Vec<f64>)]) -> Self {
        let ratio = |at: usize| {
            let total = |at: usize| table.iter().map(|(_, row)| row[at]).sum::<f64>();
            let logs = table.iter().map(|(_, row)| (row[at] / row[0]).ln());
            let cells = f64::from(u32::try_from(table.len()).unwrap());
            (total(at) / total(0), (logs.sum::<f64>() / cells).exp())
        };
        let names = PolicyName::ALL.into_iter().enumerate();
        Self(names.map(|(at, name)| (name, ratio(at))).collect())
    }
}

/// Not goals: below them something got worse. A tenth under the geometric means that were reached.
const FLOORS: [(PolicyName, f64); 4] = [
    (PolicyName::Lru, 1.05),
    (PolicyName::KvwardenPy, 1.25),
    (PolicyName::Gdsf, 1.1),
    (PolicyName::Lfu, 1.3),
];

/// The goals: 1.2 times less than llama-swap and at most 1.5 times more than the clairvoyant planner,
/// which are met over all cells; 1.5 less than LRU, 2 less than the Python KVWarden's score and no
/// cell 5 % worse than LRU, which are not. Not even the clairvoyant planner is 1.5 better than LRU.
#[test]
fn stalls_less_than_other_rules_on_seeds_that_tuning_never_saw() {
    let row = |cell: Cell| PolicyName::ALL.map(|name| stall(cell, name)).to_vec();
    let table: Vec<(Cell, Vec<f64>)> = Cell::all().map(|cell| (cell, row(cell))).collect();
    println!(
        "SIMULATED: seconds stalled\n{:26}{:>12?}",
        "cell",
        PolicyName::ALL
    );
    for (cell, row) in &table {
        println!("{:26}{row:>12.0?}", cell.name());
    }
    for room in [Room::One, Room::Half] {
        let of_room = |row: &&(Cell, Vec<f64>)| row.0.room == room;
        let part: Vec<_> = table.iter().filter(of_room).cloned().collect();
        println!("{room:?}: {:.2?}", Ratios::of(&part).0);
    }
    let ratios = Ratios::of(&table);
    println!("all: {:.2?}", ratios.0);
    let worse = table.iter().filter(|(_, row)| row[0] > 1.05 * row[1]);
    let worse: Vec<String> = worse.map(|(cell, _)| cell.name()).collect();
    println!("over 5 % worse than LRU: {worse:?}");
    let (llama_swap, clairvoyant) = (
        ratios.0[&PolicyName::LlamaSwap],
        ratios.0[&PolicyName::Clairvoyant],
    );
    assert!(llama_swap.0.min(llama_swap.1) >= 1.2);
    assert!(clairvoyant.0.min(clairvoyant.1) >= 1.0 / 1.5);
    for (name, floor) in FLOORS {
        assert!(ratios.0[&name].1 >= floor, "{name}");
    }
}

/// One device that holds one of these models.
fn crowded(models: usize) -> World {
    let cell = Cell::named("zipf-one-middling").unwrap();
    let mut world = cell.world();
    world.models.truncate(models);
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nobody_waits_longer_than_the_barrier_and_the_swaps_before_it(
        models in 2..5_usize,
        gaps in prop::collection::vec((0.0..3.0_f64, 0..5_usize, 0.1..20.0_f64), 50..800),
    ) {
        let world = crowded(models);
        let mut at = 0.0;
        let request = |(gap, model, service): (f64, usize, f64)| {
            at += gap;
            Request {
                at: Duration::from_secs_f64(at),
                // The first is wanted all the time, the others now and then.
                model: if gap < 2.0 { 0 } else { model % models },
                weight: 1.0,
                service: Duration::from_secs_f64(service),
            }
        };
        let requests = gaps.into_iter().map(request).collect();
        let (served, _) = run(&world, requests, PolicyName::Kvwarden);
        let cost = world.models[0].costs[Rung::Cold];
        let swap = cost.demote + cost.promote + Duration::from_secs(21);
        let most = world.settings.max_wait + swap * u32::try_from(models).unwrap();
        let longest = served.iter().map(|one| one.stall).max().unwrap();
        prop_assert!(longest <= most, "{longest:?} of {most:?}");
    }
}

#[test]
fn every_request_is_served_exactly_once_under_every_rule() {
    let cell = Cell::named("flash-crowd-half-cheap").unwrap();
    for name in PolicyName::ALL {
        let requests = cell.requests(1);
        let mut sent = vec![0; cell.world().models.len()];
        requests.iter().for_each(|request| sent[request.model] += 1);
        let (served, _) = run(&cell.world(), requests, name);
        served.iter().for_each(|one| sent[one.model] -= 1);
        assert!(sent.iter().all(|left| *left == 0), "{name}: {sent:?}");
    }
}

#[test]
fn a_hundred_thousand_swaps_remember_no_more_than_one() {
    let mut world = crowded(2);
    for spec in &mut world.models {
        spec.costs[Rung::Cold].demote = Duration::from_millis(50);
        spec.costs[Rung::Cold].promote = Duration::from_millis(50);
    }
    let request = |number: usize| Request {
        at: Duration::from_secs(2) * u32::try_from(number).unwrap(),
        model: number % 2,
        weight: 1.0,
        service: Duration::from_millis(10),
    };
    let policy = Policy::new(PolicyName::Kvwarden, &world, &[]);
    let tally = Sim::new(&world, policy, epoch()).run((0..100_001).map(request), |_| {});
    assert!(tally.starts > 100_000, "{tally:?}");
    assert!(tally.most_live < 10, "{tally:?}");
}

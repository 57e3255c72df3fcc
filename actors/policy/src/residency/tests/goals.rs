//! Goals L1, L2 and L5 in virtual time. All figures are SIMULATED.

use std::{ops::RangeInclusive, time::Duration};

use proptest::prelude::*;

use crate::{
    epoch,
    lifecycle::SleepLevel,
    simulation::swapping::{
        Policy, PolicyName, Request, Served, Sim, Tally, World,
        cells::{Cell, Room},
        search::least_stall,
    },
};

/// Tuning saw 1 to 10 and older versions were tried on 101 to 405; these were never seen.
const HELD_OUT: RangeInclusive<u64> = 501..=505;

pub(super) fn run(world: &World, requests: Vec<Request>, name: PolicyName) -> (Vec<Served>, Tally) {
    let (mut all, policy) = (Vec::new(), Policy::new(name, world, &requests));
    let tally = Sim::new(world, policy, epoch()).run(requests, |served| all.push(served));
    (all, tally)
}

/// A cell under all rules, all seeds together, in seconds.
struct Row {
    cell: Cell,
    stall: Vec<f64>,
    p99: Vec<f64>,
    longest: Vec<f64>,
    /// The best schedule of the search, or of a planner that knows the future where that is better.
    least: f64,
}

impl Row {
    fn of(cell: Cell) -> Self {
        let world = cell.world();
        let (mut stall, mut p99, mut longest) = (Vec::new(), Vec::new(), Vec::new());
        let mut least: Vec<f64> = HELD_OUT
            .map(|seed| {
                least_stall(&world, &cell.requests(seed))
                    .unwrap()
                    .as_secs_f64()
            })
            .collect();
        for name in PolicyName::ALL {
            let mut all = Vec::new();
            for (seed, least) in HELD_OUT.zip(&mut least) {
                let (served, _) = run(&world, cell.requests(seed), name);
                let of_seed: Vec<f64> = served.iter().map(|one| one.stall.as_secs_f64()).collect();
                *least = least.min(of_seed.iter().sum());
                all.extend(of_seed);
            }
            all.sort_by(f64::total_cmp);
            stall.push(all.iter().sum());
            p99.push(all[all.len() * 99 / 100]);
            longest.push(all[all.len() - 1]);
        }
        let least = least.iter().sum();
        Self {
            cell,
            stall,
            p99,
            longest,
            least,
        }
    }
}

/// How many times ours something is over these cells.
fn times(rows: &[&Row], of: impl Fn(&Row) -> f64) -> (f64, f64) {
    times_ours(rows.iter().map(|row| (row.stall[0], of(row))))
}

/// How many times ours theirs is, of pairs of both: of all seconds, and the mean over cells
/// (geometric, so that dear reloads do not decide alone).
pub(super) fn times_ours(cells: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    let cells: Vec<(f64, f64)> = cells.collect();
    let total = |of: fn(&(f64, f64)) -> f64| cells.iter().map(of).sum::<f64>();
    let logs = total(|(ours, theirs)| (theirs / ours).ln());
    let mean = (logs / f64::from(u32::try_from(cells.len()).unwrap())).exp();
    (total(|cell| cell.1) / total(|cell| cell.0), mean)
}

fn print(rows: &[Row]) {
    let names = PolicyName::ALL.map(PolicyName::as_str);
    println!("SIMULATED, seconds: stall of all requests; p99; longest\n{names:?} least");
    for row in rows {
        let name = row.cell.name();
        println!("{name:26}{:>9.0?} {:.0}", row.stall, row.least);
        println!("{:26}{:>9.1?}\n{:26}{:>9.1?}", "", row.p99, "", row.longest);
    }
    let is_one = |row: &&Row| row.cell.room == Room::One;
    let (one, half): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_one);
    for (part, rows) in [
        ("all", &rows.iter().collect()),
        ("one", &one),
        ("half", &half),
    ] {
        for (at, name) in names.iter().enumerate() {
            println!("{part:5}{name:12} {:.3?}", times(rows, |row| row.stall[at]));
        }
        println!(
            "{part:5}{:12} {:.3?}",
            "least",
            times(rows, |row| row.least)
        );
    }
}

/// Not goals: below them something got worse. A tenth under the geometric means that were reached.
const FLOORS: [(PolicyName, f64); 5] = [
    (PolicyName::Lru, 1.34),
    (PolicyName::Ollama, 1.6),
    (PolicyName::KvwardenPy, 1.72),
    (PolicyName::Gdsf, 1.5),
    (PolicyName::Lfu, 1.76),
];

/// The goals that are met: in total 1.5 times less than LRU, and 1.2 times less than llama-swap. Those
/// that are not: 2 times less than the Python KVWarden's score, at most 1.5 times what a clairvoyant
/// planner stalls, and no cell 5 % worse than LRU.
#[test]
fn stalls_less_than_other_rules_on_seeds_that_tuning_never_saw() {
    let rows: Vec<Row> = Cell::all().map(Row::of).collect();
    print(&rows);
    let worse = |row: &&Row| row.stall[0] > 1.05 * row.stall[1];
    let worse: Vec<String> = rows
        .iter()
        .filter(worse)
        .map(|row| row.cell.name())
        .collect();
    println!("over 5 % worse than LRU: {worse:?}");
    let of = |name: PolicyName| {
        let at = PolicyName::ALL.iter().position(|one| *one == name).unwrap();
        times(&rows.iter().collect::<Vec<_>>(), |row| row.stall[at])
    };
    let llama_swap = of(PolicyName::LlamaSwap);
    assert!(llama_swap.0.min(llama_swap.1) >= 1.2);
    assert!(of(PolicyName::Lru).0 >= 1.5);
    for (name, floor) in FLOORS {
        assert!(of(name).1 >= floor, "{name}");
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
        let cost = world.models[0].costs[SleepLevel::Cold];
        let swap = cost.demote + cost.promote + Duration::from_secs(21);
        let most = world.settings.max_wait(swap) + swap * u32::try_from(models).unwrap();
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
        spec.costs[SleepLevel::Cold].demote = Duration::from_millis(50);
        spec.costs[SleepLevel::Cold].promote = Duration::from_millis(50);
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

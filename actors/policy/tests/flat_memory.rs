//! Goal L5: a hundred thousand swaps need no more memory than ten thousand. Every byte of the heap
//! counts, so this has a process of its own.

use std::{
    alloc::System,
    time::{Duration, Instant},
};

use kvwarden_policy::{
    lifecycle::SleepLevel,
    simulation::{
        rng::SplitMix,
        swapping::{Policy, PolicyName, Request, Sim, Tally, World, cells::Cell},
    },
};
use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};

#[global_allocator]
static HEAP: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What may differ by chance, such as in how long a queue was. A byte for each swap is 90 KiB.
const SLACK: usize = 4 << 10;

/// One device, and room for one of its models, which are reloaded faster than requests come.
fn world() -> World {
    let mut world = Cell::named("zipf-one-cheap").expect("a cell").world();
    for spec in &mut world.models {
        spec.costs[SleepLevel::Cold].demote = Duration::from_millis(50);
        spec.costs[SleepLevel::Cold].promote = Duration::from_millis(50);
    }
    world
}

/// Each for another model than the one before, after gaps of all lengths.
fn requests(models: usize) -> impl Iterator<Item = Request> {
    let mut rng = SplitMix::new(1);
    let mut at = Duration::ZERO;
    (0..).map(move |number| {
        at += Duration::from_secs_f64(2.0 * 1000_f64.powf(rng.unit()));
        Request {
            at,
            model: number % models,
            weight: 1.0,
            service: Duration::from_millis(10),
        }
    })
}

/// The most bytes that were in use at once, and what was done.
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn peak_of(swaps: usize, world: &World) -> (usize, Tally) {
    HEAP.reset_peak_memory();
    let policy = Policy::new(PolicyName::Kvwarden, world, &[]);
    let requests = requests(world.models.len()).take(swaps);
    let tally = Sim::new(world, policy, Instant::now()).run(requests, |_| {});
    (HEAP.get_peak_memory(), tally)
}

#[test]
fn a_hundred_thousand_swaps_take_no_more_memory_than_ten_thousand() {
    let world = world();
    let (few, _) = peak_of(10_000, &world);
    let (many, tally) = peak_of(100_000, &world);
    println!("10,000 swaps: {few} bytes, 100,000: {many}; {tally:?}");
    assert!(tally.starts + tally.wakes >= 99_000, "{tally:?}");
    assert!(many <= few + SLACK, "{few} and {many} bytes");
}

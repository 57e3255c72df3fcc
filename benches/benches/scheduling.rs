//! What one decision costs. The goal (F6) is 10 us at the 99th percentile with 10,000 tenants and
//! 100,000 requests in line.

use std::time::{Duration, Instant};

use divan::Bencher;
use kvwarden_policy::{
    cost::Usage,
    scheduling::{
        Arrival, Bounds, Capacity, Discipline, FairSettings, Group, Key, Outcome, Scheduler,
        Settings, TenantBounds,
    },
};

fn main() {
    divan::main();
}

const TENANTS: usize = 10_000;
const QUEUED: usize = 100_000;
const RUNNING: usize = 1024;

struct Bench {
    scheduler: Scheduler<usize>,
    running: std::collections::VecDeque<(Key, usize)>,
    now: Instant,
}

fn settings(discipline: Discipline) -> Settings {
    let mut capacity = Capacity::of_engine(RUNNING as u64, 1 << 40, Some(1 << 40));
    // Then exactly one place is free when one request ends, and nobody finds headroom: the longest
    // search there is.
    capacity.headroom = 0;
    Settings {
        discipline,
        bounds: Bounds {
            requests: 2 * QUEUED,
            bytes: u64::MAX,
        },
        max_in_flight: RUNNING,
        fair: FairSettings::new(capacity),
    }
}

fn arrival(index: usize, now: Instant) -> Arrival {
    // Sizes that differ, so that virtual times do.
    let prompt_tokens = 10 + (index as u64).wrapping_mul(2_654_435_761) % 1000;
    Arrival {
        tenant: format!("tenant-{}", index % TENANTS).into(),
        weight: 1,
        group: Group {
            name: "default".into(),
            weight: 1,
        },
        flow: None,
        class: 0,
        prompt_tokens,
        max_tokens: Some(100),
        choices: 1,
        bytes: 1000,
        tenant_bounds: TenantBounds::default(),
        expires: now + Duration::from_secs(60) + Duration::from_micros(index as u64),
        is_retry: false,
    }
}

// === impl Bench ===

impl Bench {
    /// Every tenant has its line, and the engine is full.
    fn loaded(discipline: Discipline) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a benchmark starts somewhere")]
        let now = Instant::now();
        let mut scheduler = Scheduler::new(&settings(discipline));
        for index in 0..QUEUED + RUNNING {
            let arrival = arrival(index, now);
            assert!(scheduler.push(&arrival, index, now).is_ok());
        }
        let mut bench = Self {
            scheduler,
            running: std::collections::VecDeque::new(),
            now,
        };
        bench.dispatch();
        bench
    }

    fn dispatch(&mut self) {
        while let Some(next) = self.scheduler.next(self.now) {
            self.scheduler.first_token(next.key, self.now);
            self.running.push_back((next.key, next.item));
        }
    }

    fn end_one(&mut self) -> usize {
        let Some((key, item)) = self.running.pop_front() else {
            unreachable!("the engine is full");
        };
        let usage = Usage {
            prompt_tokens: 100,
            cached_tokens: 10,
            completion_tokens: 10 + item as u64 % 200,
        };
        self.scheduler
            .finish(key, &Outcome::Completed(usage), self.now);
        item
    }
}

/// One request ends, the next one is chosen and starts, and its tenant asks again.
#[divan::bench(args = [Discipline::Fair, Discipline::Drr, Discipline::Fifo])]
fn finish_choose_start_push(bencher: Bencher, discipline: Discipline) {
    let mut bench = Bench::loaded(discipline);
    bencher.bench_local(|| {
        let item = bench.end_one();
        bench.dispatch();
        let arrival = arrival(item, bench.now);
        assert!(bench.scheduler.push(&arrival, item, bench.now).is_ok());
    });
}

/// The choice alone, when nothing fits: what every event costs while the engine is full.
#[divan::bench]
fn choose_while_full(bencher: Bencher) {
    let mut bench = Bench::loaded(Discipline::Fair);
    bencher.bench_local(|| bench.scheduler.next(bench.now).is_none());
}

/// The choice and its charge alone.
#[divan::bench(sample_size = 1, sample_count = 10_000)]
fn choose_and_start(bencher: Bencher) {
    let bench = std::cell::RefCell::new(Bench::loaded(Discipline::Fair));
    bencher
        .with_inputs(|| {
            let mut bench = bench.borrow_mut();
            bench.dispatch();
            let item = bench.end_one();
            let now = bench.now;
            let arrival = arrival(item, now);
            assert!(bench.scheduler.push(&arrival, item, now).is_ok());
        })
        .bench_local_values(|()| {
            let mut bench = bench.borrow_mut();
            let now = bench.now;
            let next = bench.scheduler.next(now);
            if let Some(next) = &next {
                bench.running.push_back((next.key, next.item));
            }
            next.is_some()
        });
}

/// What the 100 ms tick costs per running request whose answer outgrew its estimate.
#[divan::bench]
fn true_up(bencher: Bencher) {
    let mut bench = Bench::loaded(Discipline::Fair);
    let mut tokens = 1000;
    bencher.bench_local(|| {
        let Some((key, item)) = bench.running.pop_front() else {
            return;
        };
        tokens += 1;
        bench.scheduler.streamed(key, tokens, bench.now);
        bench.running.push_back((key, item));
    });
}

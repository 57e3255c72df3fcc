//! What one decision costs. `cargo bench -p kvwarden-benches`

use std::time::{Duration, Instant};

use divan::{Bencher, black_box};
use kvwarden_policy::{
    bucket::TokenBucket,
    queue::{Arrival, Limits, Queue},
};

fn main() {
    divan::main();
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark needs some instant to count from"
)]
fn epoch() -> Instant {
    Instant::now()
}

/// One yes or no of a tenant's bucket.
#[divan::bench]
fn bucket_take(bencher: Bencher<'_, '_>) {
    let now = epoch();
    let mut bucket = TokenBucket::full(1_000_000_000, 1_000_000_000, now);
    bencher.bench_local(|| bucket.take(black_box(1), now));
}

/// One request in and one out, with this many waiting.
#[divan::bench(args = [100, 10_000, 100_000])]
fn queue_push_and_next(bencher: Bencher<'_, '_>, waiting: usize) {
    let now = epoch();
    let mut queue = Queue::new(Limits {
        max_running: usize::MAX,
        max_waiting: usize::MAX,
        long_prompt_tokens: 2048,
        long_patience: Duration::from_secs(5),
    });
    let mut arrived = 0_u64;
    let mut arrive = |queue: &mut Queue<u64>| {
        arrived += 1;
        let priority = i32::try_from(arrived % 7).unwrap_or(0);
        let prompt_tokens = arrived * 37 % 4096;
        let arrival = Arrival {
            priority,
            prompt_tokens,
            expires: now + Duration::from_secs(60),
        };
        queue.push(arrival, arrived, now).is_ok()
    };
    for _ in 0..waiting {
        arrive(&mut queue);
    }
    bencher.bench_local(|| {
        arrive(&mut queue);
        queue.next(now)
    });
}

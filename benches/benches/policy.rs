//! What one decision costs. `cargo bench -p kvwarden-benches`

use std::time::Instant;

use divan::{Bencher, black_box};
use kvwarden_policy::bucket::TokenBucket;

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

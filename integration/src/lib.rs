//! The harness of the integration tests: the real binary, real processes, real sockets.
//!
//! A test starts a [`Server`] with a configuration of its own and talks to it through a [`Client`]
//! or, where timing and hang-ups matter, an [`Exchange`] on a bare socket. Everything a server
//! leaves behind is found by the temporary directory it was given, so tests run side by side.
//! Nothing here sleeps for a fixed time: [`eventually`] asks until a deadline.
//!
//! # Behaviour > where it is tested
//!
//! First the fast tests: pure decisions, actors in virtual time, one module alone. Then the tests with
//! the real binary (below `integration/tests` where no folder is named), on simulated engines but in
//! the files called `real_*`. `sim/fairness.rs` is run by `--test sim fairness`.
//!
//! | behaviour | fast | real binary, real engines |
//! |---|---|---|
//! | fair shares, service gap, forecasts | `actors/policy/src/scheduling/tests` | `sim/fairness.rs` `src/lab/bench/tests/sim.rs` |
//! | queue: bounds, deadlines, sessions, tiers | `actors/policy/src/scheduling/tests/bounds.rs` `actors/src/tests.rs` | `sim/caps.rs` `sim/limits.rs` |
//! | limits of tenants, exact `retry-after` | `actors/policy/src/bucket.rs` `actors/policy/src/quota.rs` `actors/src/tests.rs` | `sim/limits.rs` `sim/caps.rs` |
//! | who asks: keys, headers | `src/config/tests/tenants.rs` | `sim/caps.rs` `sim/limits.rs` |
//! | streams: bytes, usage, one error event | `src/http/format/tests` `src/http/pipe.rs` | `sim/streams.rs` `sdk.rs` `real_engines.rs` `real_answers.rs` |
//! | whole answers, routes, errors in OpenAI's form | `src/http/refusal.rs` `src/http/request/envelope.rs` `src/http/format/tests/assemble.rs` | `sim/answers.rs` `sim/routes.rs` `sdk.rs` `real_engines.rs` `real_answers.rs` |
//! | hang-ups give everything back | `actors/src/tests.rs` `actors/src/tests/disorder.rs` | `sim/hang_ups.rs` `chaos/hang_ups.rs` `real_engines.rs` |
//! | clients that read or send slowly | `src/http/pipe.rs` | `sim/readers.rs` `chaos/slow_clients.rs` |
//! | retries before the first token | `actors/src/model/tests/failures.rs` | `sim/retries.rs` `chaos/crashes.rs` `real_engines.rs` |
//! | servers that answer in odd ways, within bounds | `src/http/format/tests/event.rs` `src/http/relay/source.rs` `src/http/relay/tally.rs` | `sim/upstreams` |
//! | connections to engines: framing, reuse, hang-ups | `src/http/upstream/tests` | `sim/upstreams/ends.rs` `sim/upstreams/errors.rs` |
//! | fields that an engine's clients may set | `src/http/request/envelope.rs` `src/http/request/hints.rs` | `sim/fields.rs` |
//! | an engine's start, its place and its first token | `actors/policy/src/lifecycle/tests.rs` `actors/src/model/tests/starts.rs` | `sim/life.rs` `chaos/faults.rs` `real_engines.rs` |
//! | crashes, waits between tries, broken models | `actors/policy/src/backoff.rs` `actors/policy/src/failure/tests.rs` `actors/src/model/tests/failures.rs` | `sim/life.rs` `chaos/crashes.rs` `chaos/real_engines.rs` |
//! | engines that hang, starts that stall | `actors/policy/src/stall/tests.rs` `actors/policy/src/startup.rs` `actors/src/model/tests/stalls.rs` | `sim/stalls.rs` `chaos/faults.rs` `chaos/real_engines.rs` |
//! | which models are in memory, loading ahead | `actors/policy/src/residency/tests` `actors/src/model/tests/starts.rs` | `sim/residency.rs` `chaos/swaps.rs` `real_residency.rs` |
//! | making room: drain, sleep, wake, prove | `actors/policy/src/lifecycle/tests.rs` `actors/src/model/tests/swaps.rs` | `sim/residency.rs` `chaos/swaps.rs` `chaos/real_engines.rs` |
//! | KV that outlives its engine | `actors/src/engine/saved_kv/tests.rs` | `real_residency.rs` |
//! | operators load, sleep and pin | `actors/src/model/tests/targets.rs` `actors/src/tests/operators.rs` `src/cli/wish.rs` | `sim/control.rs` `sim/residency.rs` `src/cli/tests/wishes.rs` |
//! | several engines of one model | `actors/policy/src/routing.rs` `actors/src/model/tests/replicas.rs` | `sim/residency.rs` `sim/reload.rs` `sim/health.rs` |
//! | adoption after a crash of kvwarden | `actors/src/model/tests/starts.rs` `actors/src/process/orphans.rs` | `sim/adoption.rs` `chaos/kills.rs` `real_adoption.rs` |
//! | takeover by another process | `actors/src/model/tests/ends.rs` `src/serve/takeover/quiescence.rs` | `sim/takeover.rs` `chaos/takeover.rs` `real_adoption.rs` `chaos/real_engines.rs` |
//! | reading the configuration again | `actors/src/model/tests/configuration.rs` `src/config/tests/change.rs` | `sim/reload.rs` `chaos/reloads.rs` |
//! | drain and the end of kvwarden | `actors/src/model/tests/ends.rs` | `sim/life.rs` `chaos/kills.rs` |
//! | shims: no engine is left behind | `actors/src/process/tree.rs` `actors/src/process/cgroup.rs` | `src/shim/tests/main.rs` `sim/life.rs` `sim/adoption.rs` `chaos/kills.rs` |
//! | engines' arguments and environment | `actors/src/engine/tests.rs` | `real_engines.rs` |
//! | devices and their memory | `actors/src/device/tests.rs` | `gpu.rs` `integration/gpu/run.sh` |
//! | usage by tenant, the log of events | `src/journal/tests.rs` | `sim/usage.rs` `sim/health.rs` |
//! | metrics, status, health | `src/metrics.rs` | `sim/operators.rs` `sim/health.rs` `sim/golden.rs` |
//! | what `check` says of a configuration | `src/config/tests` | `src/cli/tests/main.rs` `sim/golden.rs` |
//! | the commands and their help | `src/cli/client.rs` `src/cli/status.rs` | `src/cli/tests/main.rs` `sim/operators.rs` `sim/golden.rs` |
//! | `doctor` | `src/cli/doctor/checks` | `src/cli/tests/main.rs` `sim/operators.rs` |
//! | `engine install` | `src/install/tests.rs` `src/install/recipe_tests.rs` | `real_engines.rs` |
//! | secrets stay out of argv, logs, other tenants' caches | `src/http/salt.rs` | `sim/operators.rs` `sim/adoption.rs` |
//! | the simulated engine | `actors/policy/src/simulation/engine/tests.rs` | `src/sim/tests/main.rs` |
//! | `bench` and `replay` | `src/lab/bench/stats/mod.rs` `src/lab/bench/load/tests.rs` `src/journal/log.rs` | `src/lab/bench/tests/sim.rs` `src/cli/tests/replay.rs` |
//! | memory and descriptors do not grow | `actors/policy/tests/flat_memory.rs` | `chaos/soak.rs` `chaos/streams.rs` `chaos/swaps.rs` |
//! | which folder may import which | | `layers/main.rs` |

mod binary;
pub mod caller;
mod client;
pub mod engine;
mod exchange;
mod fake_tree;
mod footprint;
mod knocking;
mod metrics;
mod server;
pub mod sse;
mod stub;
mod tree;
mod upstream;
mod wait;

pub use binary::{kvwarden, workspace};
pub use caller::Caller;
pub use client::{Client, Reply};
pub use exchange::{Answer, Exchange};
pub use fake_tree::FakeTree;
pub use footprint::{Footprint, open_files};
pub use knocking::{Knocked, Knocking};
pub use metrics::Metrics;
pub use server::{Ended, Server, Sibling, free_port, said};
pub use stub::{Act, Stub};
pub use tree::{EngineProcess, Process};
pub use upstream::{Asked, Framing, Part, Says, Upstream};
pub use wait::{Stopwatch, eventually, eventually_within};

/// The SHA-256 of an API key, as configurations hold it.
#[must_use]
pub fn key_hash(key: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(key.as_bytes());
    digest
        .iter()
        .fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::workspace;

    #[test]
    fn table_of_behaviours_names_files_that_exist() {
        let rows = include_str!("lib.rs").lines();
        let cells = rows
            .filter(|line| line.starts_with("//! | "))
            .flat_map(|row| row.split('`').skip(1).step_by(2));
        let files = cells.filter(|cell| cell.contains(['/', '.']));
        let mut count = 0;
        for file in files {
            let is_there = |folder: &str| workspace().join(folder).join(file).exists();
            assert!(is_there("") || is_there("integration/tests"), "{file}");
            count += 1;
        }
        assert!(count > 100, "{count}");
    }
}

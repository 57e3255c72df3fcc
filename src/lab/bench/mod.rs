//! `kvwarden bench`: what a scheduling policy does to a quiet tenant and to throughput, measured.
//!
//! It starts its own servers (children of this binary, each with a generated configuration), runs the
//! same seeded open-loop plans against each, and reports latency and throughput side by side, since
//! either alone can be bought with the other.
//!
//! The rules, broken by many published figures, are in the code and not in the operator's hands: one
//! warm-up cut for every arm, arms interleaved, latency from the planned moment, tokens served beside
//! every latency, requests that never finished counted as at least as slow as the time they had, and
//! a run that fails if the load generator was short of CPU, or says by how much where it shares the
//! engine's cores.
//!
//! What it never does: pass a simulation off as a measurement. Whatever came from the simulated
//! engine says SIMULATED in the table, in the JSON and in the picture.
//!
//! ```text
//!  cli ─ Options ─▶ fairness ─▶ capacity (step model, or a closed loop)
//!                      ├▶ runner, per round and arm:
//!                      │    arm (configuration) ─▶ server (child) ◀─ load (open loop), watch (10 Hz)
//!                      └▶ stats ─▶ report: table, JSON, JSONL, SVG, PNG
//! ```

pub mod arm;
pub mod capacity;
pub mod fairness;
pub mod hero;
pub mod load;
pub mod model;
pub mod options;
pub mod progress;
pub mod report;
pub mod runner;
pub mod server;
pub mod stats;
pub mod watch;
pub mod workload;

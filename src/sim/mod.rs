//! A simulated inference engine that speaks vLLM's dialect: `kvwarden sim-engine`.
//!
//! It runs as a child process like any other engine, so supervision, routing and fairness can be
//! tested and measured without a GPU. Timing comes from a step model and scheduling from
//! [`kvwarden_policy::simulation::engine`]; the text is made up. It says so: every answer carries
//! `x-kvwarden-simulated: true` and its models are owned by `kvwarden-sim`.
//!
//! What it never does: compute anything, use a GPU, or stand in for a measurement of one.
//!
//! ```text
//!  completions, control, ... ──Command──▶ engine (owns the batch, sleeps through steps)
//!         ▲                                  │
//!         └───────── watch<Progress> ◀───────┘      stats, memory: behind a mutex, for /metrics
//! ```
//!
//! Handlers and the engine share one thread, so a token costs a wake-up within it. Progress is the
//! newest state, not a queue: a client that reads slowly gets several tokens in one chunk, as vLLM's
//! output collector does it, and costs no memory.

mod answer;
mod app;
mod args;
mod completions;
mod control;
mod embeddings;
mod engine;
mod error;
mod faults;
mod handle;
mod http;
mod memory;
mod request;
mod server;
mod stats;
mod stream;
mod text;
mod tokenize;
mod tokenizer;

pub use self::{args::SimArgs, server::run};

//! What is made up: an engine that batches, models that take turns in memory, and the random numbers
//! and step times both go by. Tests, benches, the simulated engine and replays run on it; the server
//! decides nothing by it.

pub mod engine;
pub mod rng;
pub mod steps;
pub mod swapping;

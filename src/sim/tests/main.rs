//! The simulated engine as its clients and its supervisor see it: the real binary, over HTTP.

// Clippy's leave to unwrap in tests reaches helpers only where they say that they are tests.
#[cfg(test)]
mod api;
#[cfg(test)]
mod control;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod sleep_levels;

//! A whole bench against the simulated engine: the real binary, its own servers, real sockets.

// Clippy's leave to unwrap in tests reaches helpers only where they say that they are tests.
#[cfg(test)]
mod sim;

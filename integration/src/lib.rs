//! The harness of the integration tests: the real binary, real processes, real sockets.
//!
//! A test starts a [`Server`] with a configuration of its own and talks to it through a [`Client`]
//! or, where timing and hang-ups matter, an [`Exchange`] on a bare socket. Everything a server
//! leaves behind is found by the temporary directory it was given, so tests run side by side.
//! Nothing here sleeps for a fixed time: [`eventually`] asks until a deadline.

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

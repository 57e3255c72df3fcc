//! kvwarden shares the GPUs of one node fairly between tenants.
//!
//! It stands between OpenAI clients and the inference engines of one machine. It starts and
//! supervises the engines, decides whose request goes next, and serves one API in front of them.
//!
//! ```text
//!  clients ── HTTP ──▶ http ── Admit ──▶ Router ── Reserve ──▶ Tenant
//!                       │                  ▲ │ ◀── Reserved ────┘
//!                       │           Demand │ │ Enqueue
//!                       │   Grant, Reclaim ▼ ▼
//!                       │ ◀──── Permit ── Model ── Spawn, Signal ─▶ Gpu ── task per engine
//!                       │                   ▲ ◀── EngineNews ─────────────┘      │
//!                       │                   └── FirstToken, SlotFreed            │ Unix socket
//!                       │                                                        ▼
//!                       └───────── bytes of requests and answers ──────▶ engine ◀─ shim
//! ```
//!
//! # Where things are
//!
//! | crate, folder | knows | never |
//! |---|---|---|
//! | `kvwarden-policy` (actors/policy) | the decisions: queue, buckets, lifecycle, backoff | an actor, a socket, a clock |
//! | `kvwarden-actors` (actors) | who tells whom what; engines as processes | HTTP of clients, files of users |
//! | `kvwarden` (src) | argv, files, HTTP, Prometheus text | a decision |
//!
//! Cargo enforces the direction: `kvwarden` → `kvwarden-actors` → `kvwarden-policy`.
//!
//! # What always holds
//!
//! - No byte of a request or an answer passes a mailbox: actors hand out the right to use an engine
//!   (a [`Permit`](kvwarden_actors::Permit)), and the HTTP task streams by itself.
//! - Whoever drops a ticket or a permit gives back what it holds, so a client that hangs up frees
//!   its place without any code for it.
//! - Every engine is the child of a shim that kills its whole tree when kvwarden is gone and no other
//!   adopts it in time.
//! - At any moment one process is in charge of the engines of a state directory: also while another
//!   takes over ([`serve::takeover`]), and none stops an engine that the other still streams from.
//! - Only an exact list of routes reaches an engine, and engines listen on loopback only, with a
//!   key of their own per start.
//! - Every queue, buffer and map that a client can grow has a limit in the configuration.

#![expect(
    unreachable_pub,
    reason = "the modules are private so that rustc finds what nobody uses; within the binary `pub` says enough"
)]

pub mod cli;
mod config;
mod http;
mod install;
mod journal;
mod lab;
mod layout;
mod metrics;
pub mod panic;
mod serve;
mod shim;
mod sim;
mod terminal;
mod weights;

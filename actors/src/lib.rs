//! The actors of kvwarden: thin shells around `kvwarden-policy`.
//!
//! Each tenant, each model and the GPU set is an actor, and so is the router. They share one
//! thread, carry no bytes of any answer, and never wait inside a handler. [`protocol`] is the list
//! of everything they say to each other.

pub mod device;
pub mod engine;
pub mod files;
pub mod gpu;
mod ledger;
pub mod model;
mod observer;
pub mod overview;
pub mod process;
pub mod protocol;
pub mod router;
pub mod tenant;
mod ticket;
mod vitals;

use std::time::Duration;

pub use gpu::Gpu;
pub use ledger::Ledger;
pub use model::Model;
pub use observer::EngineObserver;
pub use overview::Overview;
pub use router::Router;
pub use tenant::Tenant;
pub use ticket::{
    Admission, Held, Permit, RateLimits, Refusal, RequestHints, Reservation, Spent, Ticket,
};
pub use vitals::Vitals;

/// How often a model looks at its queue's deadlines and at requests whose client hung up.
const TICK: Duration = Duration::from_millis(100);

/// How often the other actors measure their mailbox.
const PULSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;

//! Which models are in memory: who makes room for whom, how deep, and above all when.
//!
//! [`plan`] is pure: the same [`Snapshot`] gives the same [`Plan`], so a decision can be replayed
//! from a log. It is asked again whenever something happened and keeps nothing in between; the
//! [`Tracker`] does: it takes in the [`Demand`] of every model and what the driver says, makes the
//! snapshot and numbers the orders. What was ordered shows in the next snapshot as a model or device
//! that is changing, and nothing that is changing is touched. So each device has at most one
//! transition at a time, and each model at most one start.
//!
//! A model in memory is worth what it would cost to be without it ([`value`]). One that waits pays
//! rent, the seconds its requests have waited. Room is made when the rent, and what is spent anyway,
//! outweighs the cheapest set of victims ([`victims`], exact): little is enough for idle victims,
//! much is needed to stop busy ones. Whoever has waited for [`Settings::max_wait`] gets a place at
//! any price but a pinned model's. Room that was made for a model is its own: it goes first. And while
//! nobody waits, who is expected next ([`Succession`]) may come in before it is asked.

mod cost;
mod demand;
mod entry;
mod gaps;
mod ledger;
mod needs;
pub(crate) mod placement;
pub(crate) mod planner;
mod prefetch;
mod rate;
mod snapshot;
mod succession;
mod tracker;
pub(crate) mod value;
mod victims;

#[cfg(test)]
mod tests;

pub use cost::{BySleepLevel, Cost, Costs};
pub use demand::Demand;
pub use ledger::Ledger;
pub use needs::{DeviceSelector, DeviceSize, Footprint, HOST, Memory, Needs};
pub use rate::Rate;
pub use snapshot::{Action, Device, Model, Plan, Settings, Snapshot, Until, Why};
pub use succession::{Forecast, Succession};
pub use tracker::{DeviceMemory, MemoryReading, Order, OrderKind, Resident, Tracker};

/// What to do, given what there is.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    planner::Planner::new(snapshot, &value::value).plan()
}

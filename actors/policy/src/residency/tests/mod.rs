//! Exactness, bounds, and the comparison with other rules in virtual time.

mod exact;
mod goals;
mod plans;
mod traces;
mod tracker;

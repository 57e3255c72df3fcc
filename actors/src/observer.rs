//! Who is told of everything that becomes of engines.

use std::fmt;

use kvwarden_policy::{ModelId, lifecycle::State, residency::Action};

/// Is told what happens when it happens. It is called on the actors' thread, so it must not wait.
pub trait EngineObserver: fmt::Debug + Send + Sync {
    /// An engine's state changed.
    fn became(&self, engine: &ModelId, state: State);

    /// The planner ordered an engine to start or to make room.
    fn ordered(&self, action: &Action);
}

/// Nobody listens.
impl EngineObserver for () {
    fn became(&self, _: &ModelId, _: State) {}

    fn ordered(&self, _: &Action) {}
}

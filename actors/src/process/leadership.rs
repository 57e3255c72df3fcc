//! Who decides about engines while one kvwarden takes over from another.
//!
//! At any moment one process leads. The one that gave its leadership away looks on: its streams go on,
//! but it plans, starts, changes, stops and writes down nothing. The one that leads now finds engines
//! in use: its predecessor still runs requests on them. Whatever would end such an engine waits until
//! those requests have ended.

use std::collections::BTreeSet;

use kvwarden_policy::ModelId;
use tokio::sync::watch;

/// Engines that the predecessor still runs requests on; none as long as it has not said.
pub type InUse = Option<BTreeSet<ModelId>>;

/// The leadership over the engines, as those see it who act on them.
#[derive(Clone, Debug)]
pub struct Leadership {
    is_held: watch::Receiver<bool>,
    in_use: watch::Receiver<InUse>,
}

/// Takes the leadership from this process and gives it back.
#[derive(Debug)]
pub struct LeadershipHandle(watch::Sender<bool>);

// === impl Leadership ===

impl Leadership {
    /// Of a process that leads. `in_use` says which engines its predecessor still uses; once the
    /// sender is dropped, it uses none.
    #[must_use]
    pub fn new(in_use: watch::Receiver<InUse>) -> (Self, LeadershipHandle) {
        let handle = watch::Sender::new(true);
        let is_held = handle.subscribe();
        (Self { is_held, in_use }, LeadershipHandle(handle))
    }

    /// Of a process that has no predecessor and will have no successor.
    #[must_use]
    pub fn sole() -> Self {
        let (_, nobody) = watch::channel(None);
        Self::new(nobody).0
    }

    /// Whether this process decides.
    #[must_use]
    pub fn is_held(&self) -> bool {
        *self.is_held.borrow()
    }

    /// Whether the predecessor still uses an engine.
    #[must_use]
    pub fn is_in_use(&self, engine: &ModelId) -> bool {
        // The sender is gone with the predecessor.
        self.in_use.has_changed().is_ok() && includes(&self.in_use.borrow(), engine)
    }

    /// Waits until the predecessor uses an engine no more.
    pub async fn until_unused(&self, engine: &ModelId) {
        let mut in_use = self.in_use.clone();
        if self.is_in_use(engine) {
            tracing::info!(%engine, "waits for requests of the kvwarden before this one");
        }
        // An error says that the predecessor is gone.
        let _ = in_use.wait_for(|in_use| !includes(in_use, engine)).await;
    }
}

// === impl LeadershipHandle ===

impl LeadershipHandle {
    /// From now on this process looks on.
    pub fn give_up(&self) {
        self.0.send_replace(false);
    }

    /// It decides again.
    pub fn take_back(&self) {
        self.0.send_replace(true);
    }
}

fn includes(in_use: &InUse, engine: &ModelId) -> bool {
    in_use.as_ref().is_none_or(|all| all.contains(engine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn engine_is_unused_when_its_requests_ended_or_their_process_did() {
        let (tell, in_use) = watch::channel(None);
        let (leadership, _handle) = Leadership::new(in_use);
        let (a, b) = (ModelId::from("a"), ModelId::from("b"));
        assert!(leadership.is_in_use(&a), "before anything is known");
        tell.send_replace(Some(BTreeSet::from([b.clone()])));
        leadership.until_unused(&a).await;
        assert!(leadership.is_in_use(&b));
        drop(tell);
        leadership.until_unused(&b).await;
        assert!(!leadership.is_in_use(&b));
    }

    #[test]
    fn leadership_is_given_up_and_taken_back() {
        let (leadership, handle) = Leadership::new(watch::channel(None).1);
        assert!(leadership.is_held());
        handle.give_up();
        assert!(!leadership.is_held());
        handle.take_back();
        assert!(leadership.is_held());
        assert!(!Leadership::sole().is_in_use(&"a".into()));
    }
}

//! Who decides about engines while one kvwarden takes over from another.
//!
//! At any moment one process is in charge. The one that gave its charge away looks on: its streams go
//! on, but it plans, starts, changes, stops and writes down nothing. The one that was given it finds
//! guests: requests that its predecessor still runs on engines. Whatever would end an engine waits
//! until its guests have left.

use std::collections::BTreeSet;

use kvwarden_policy::ModelId;
use tokio::sync::watch;

/// Engines with guests; none as long as nobody said.
pub type Lodged = Option<BTreeSet<ModelId>>;

/// The charge of the engines, as those see it who act on them.
#[derive(Clone, Debug)]
pub struct Charge {
    is_held: watch::Receiver<bool>,
    lodged: watch::Receiver<Lodged>,
}

/// Takes the charge from this process and gives it back.
#[derive(Debug)]
pub struct Mandate(watch::Sender<bool>);

// === impl Charge ===

impl Charge {
    /// Of a process that has it, and that a predecessor's guests are told of through `lodged`. They
    /// have left when its sender is gone.
    #[must_use]
    pub fn new(lodged: watch::Receiver<Lodged>) -> (Self, Mandate) {
        let mandate = watch::Sender::new(true);
        let is_held = mandate.subscribe();
        (Self { is_held, lodged }, Mandate(mandate))
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
    pub fn has_guests(&self, engine: &ModelId) -> bool {
        // The sender is gone with the predecessor.
        self.lodged.has_changed().is_ok() && lodges(&self.lodged.borrow(), engine)
    }

    /// Comes back once an engine has no guests.
    pub async fn vacated(&self, engine: &ModelId) {
        let mut lodged = self.lodged.clone();
        if self.has_guests(engine) {
            tracing::info!(%engine, "waits for requests of the kvwarden before this one");
        }
        // An error says that the predecessor is gone.
        let _ = lodged.wait_for(|lodged| !lodges(lodged, engine)).await;
    }
}

impl Mandate {
    /// From now on this process looks on.
    pub fn give_up(&self) {
        self.0.send_replace(false);
    }

    /// It decides again.
    pub fn take_back(&self) {
        self.0.send_replace(true);
    }
}

fn lodges(lodged: &Lodged, engine: &ModelId) -> bool {
    lodged.as_ref().is_none_or(|all| all.contains(engine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn engine_is_vacated_when_its_guests_left_or_their_process_ended() {
        let (tell, lodged) = watch::channel(None);
        let (charge, _mandate) = Charge::new(lodged);
        let (a, b) = (ModelId::from("a"), ModelId::from("b"));
        assert!(charge.has_guests(&a), "before anything is known");
        tell.send_replace(Some(BTreeSet::from([b.clone()])));
        charge.vacated(&a).await;
        assert!(charge.has_guests(&b));
        drop(tell);
        charge.vacated(&b).await;
        assert!(!charge.has_guests(&b));
    }

    #[test]
    fn charge_is_given_up_and_taken_back() {
        let (charge, mandate) = Charge::new(watch::channel(None).1);
        assert!(charge.is_held());
        mandate.give_up();
        assert!(!charge.is_held());
        mandate.take_back();
        assert!(charge.is_held());
        assert!(!Charge::sole().has_guests(&"a".into()));
    }
}

//! Whom a model speaks to.

use actix::{Addr, Recipient, WeakAddr, WeakRecipient};

use crate::{
    Gpu, Router,
    protocol::{Demand, Register, Removed, Signal, Spawn, Unregister},
};

/// The router and the GPU set, as far as a model knows them: by the messages they take. So a test
/// can stand in for both.
pub struct Peers {
    pub(super) demand: WeakRecipient<Demand>,
    pub(super) removed: WeakRecipient<Removed>,
    pub(super) register: Recipient<Register>,
    pub(super) unregister: Recipient<Unregister>,
    pub(super) spawn: Recipient<Spawn>,
    pub(super) signal: Recipient<Signal>,
}

impl Peers {
    /// The real ones.
    #[must_use]
    pub fn new(router: &WeakAddr<Router>, gpu: &Addr<Gpu>) -> Self {
        Self {
            demand: router.clone().into(),
            removed: router.clone().into(),
            register: gpu.clone().into(),
            unregister: gpu.clone().into(),
            spawn: gpu.clone().into(),
            signal: gpu.clone().into(),
        }
    }
}

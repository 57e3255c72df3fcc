//! What all requests share, and how many of them there may be.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use actix::Addr;
use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _};
use kvwarden_actors::{Router, process::leadership::Leadership};
use tokio::sync::watch;

use super::{salt::Salts, view::View};
use crate::{config::Config, journal::events::EventLog, metrics::Metrics};

/// What all requests share.
pub struct Shared {
    /// The directory of actors.
    pub router: Addr<Router>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where it is written down, if it is.
    pub events: Option<Arc<EventLog>>,
    /// Cache partitions of tenants.
    pub salts: Salts,
    /// Whether this process still decides about engines.
    pub leadership: Leadership,
    /// When this process began to serve.
    pub since: SystemTime,
    view: ArcSwap<View>,
    held: AtomicUsize,
    is_cut: watch::Sender<bool>,
    /// How many starts and reclaims of each engine the metrics have counted.
    pub(super) counted: Mutex<HashMap<String, Counted>>,
}

impl Shared {
    /// What requests share under this configuration.
    #[must_use]
    pub fn new(
        config: &Config,
        router: Addr<Router>,
        metrics: Arc<Metrics>,
        events: Option<Arc<EventLog>>,
        leadership: Leadership,
    ) -> Self {
        Self {
            router,
            metrics,
            events,
            salts: Salts::new(),
            leadership,
            since: SystemTime::now(),
            view: ArcSwap::from_pointee(View::new(config, None)),
            held: AtomicUsize::new(0),
            is_cut: watch::Sender::new(false),
            counted: Mutex::default(),
        }
    }

    /// Ends every stream, as if its engine had.
    pub fn cut_streams(&self) {
        self.is_cut.send_replace(true);
    }

    /// Comes back when streams are to end.
    pub(super) fn until_cut(&self) -> impl Future<Output = ()> + use<> {
        let mut is_cut = self.is_cut.subscribe();
        // An error says that nobody is left who could cut anything.
        async move { drop(is_cut.wait_for(|is_cut| *is_cut).await) }
    }

    /// The configuration as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Another configuration from now on.
    pub fn show(&self, config: &Config) {
        let before = self.view();
        self.view.store(Arc::new(View::new(config, Some(&before))));
    }
}

/// One of the requests that `limits.max_in_flight` lets this node hold at once, given back when dropped.
pub(super) struct InFlightSlot(Arc<Shared>);

impl InFlightSlot {
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        let limit = shared.view().limits.max_in_flight;
        let one_more = |held| (held < limit).then_some(held + 1);
        let taken = shared
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Self(shared.clone()))
    }

    /// A body that holds the slot until the client has taken all of it.
    pub(super) fn held_by<S: Stream>(self, body: S) -> impl Stream<Item = S::Item> {
        body.inspect(move |_| {
            let _held = &self;
        })
    }
}

impl Drop for InFlightSlot {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the metrics have counted of an engine, whose actor only tells sums.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) starts: u64,
    pub(super) reclaimed: u64,
    pub(super) prefetches: u64,
    pub(super) prefetch_hits: u64,
}

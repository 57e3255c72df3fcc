//! What becomes of engines, as the metrics and the event log have it; and the node's description,
//! without which the log means nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::Addr;
use kvwarden_actors::{
    EngineObserver, Overview, Router,
    protocol::{ListActors, Snapshot},
};
use kvwarden_policy::{
    ModelId,
    lifecycle::{SleepLevel, State},
    residency::{self, Action},
    simulation::swapping::{Spec, World},
};
use prometheus_client::metrics::{family::Family, histogram::Histogram};
use tokio::time::Instant;

use crate::{
    journal::{
        events::EventLog,
        log::{Event, Header, Line, What},
    },
    metrics::{self, Metrics, OfSleepLevel},
};

/// How often the node is looked at: what its models cost changes with every swap.
const INTERVAL: Duration = Duration::from_secs(30);

/// Counts how long engines take on their way, and writes down where they went.
#[derive(Debug)]
pub struct Observer {
    wake: Family<OfSleepLevel, Histogram>,
    demote: Family<OfSleepLevel, Histogram>,
    events: Option<Arc<EventLog>>,
    /// Another process writes down what becomes of engines.
    is_relieved: AtomicBool,
    /// Where each engine stands, and since when.
    since: Mutex<HashMap<ModelId, (State, Instant)>>,
}

// === impl Observer ===

impl Observer {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(metrics: &Metrics, events: Option<Arc<EventLog>>) -> Self {
        Self {
            wake: metrics.wake.clone(),
            demote: metrics.demote.clone(),
            events,
            is_relieved: AtomicBool::new(false),
            since: Mutex::default(),
        }
    }

    /// Another process has taken over: engines are its own to write about, so that nothing is written
    /// twice.
    pub fn relieve(&self) {
        self.is_relieved.store(true, Ordering::Relaxed);
    }

    /// How long a way took is known where it ends.
    fn time(&self, engine: &ModelId, state: State) {
        if matches!(state, State::Verifying { .. }) {
            return; // the last part of the way up
        }
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let before = since.insert(engine.clone(), (state, Instant::now()));
        let Some((before, since)) = before else {
            return;
        };
        let (histogram, level) = match (before, state) {
            (State::Waking { from }, State::Ready) => (&self.wake, from),
            (State::Demoting { to }, State::Asleep { .. } | State::Cold) => (&self.demote, to),
            (State::Stopping, State::Cold) => (&self.demote, SleepLevel::Cold),
            _ => return,
        };
        let labels = OfSleepLevel {
            rung: metrics::level(level).to_owned(),
        };
        let took = since.elapsed().as_secs_f64();
        histogram.get_or_create(&labels).observe(took);
    }

    fn say(&self, engine: &ModelId, what: What) {
        if let Some(events) = &self.events
            && !self.is_relieved.load(Ordering::Relaxed)
        {
            events.say(Line::Event(Event {
                t: events.now(),
                engine: engine.to_string(),
                what,
            }));
        }
    }
}

impl EngineObserver for Observer {
    fn became(&self, engine: &ModelId, state: State) {
        self.time(engine, state);
        self.say(engine, What::Became { state });
    }

    fn ordered(&self, action: &Action) {
        match action {
            Action::Start { model, devices } => {
                let devices = devices.iter().map(ToString::to_string).collect();
                self.say(model, What::Start { devices });
            }
            Action::Demote { model, to, why } => {
                let why = serde_json::to_value(why).unwrap_or_default();
                self.say(model, What::Demote { to: *to, why });
            }
            Action::Wait { .. } => {}
        }
    }
}

/// Writes down what there is whenever that changed, for as long as it is polled.
pub async fn describe(router: Addr<Router>, events: Arc<EventLog>) {
    let mut last = None;
    loop {
        let header = header(&router).await;
        if header != last
            && let Some(header) = header
        {
            last = Some(header.clone());
            events.say(Line::Header(header));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Writes down what there is in the end.
pub async fn describe_once(router: &Addr<Router>, events: &EventLog) {
    if let Some(header) = header(router).await {
        events.say(Line::Header(header));
    }
}

async fn header(router: &Addr<Router>) -> Option<Header> {
    let overview = Overview::of(router).await.ok()?;
    let actors = router.send(ListActors).await.ok()?;
    let snapshot = actors.gpu.send(Snapshot::default()).await.ok()?;
    let models = overview.models.iter().map(|model| model.id.clone());
    Some(Header::of(&world(&snapshot, models)))
}

/// What the planner sees, and models that it does not: they take nothing.
fn world(snapshot: &residency::Snapshot, models: impl Iterator<Item = ModelId>) -> World {
    let device = |device: &residency::Device| (device.id.clone(), device.capacity);
    let mut world = World {
        settings: snapshot.settings,
        devices: snapshot.devices.iter().map(device).collect(),
        models: snapshot.models.iter().map(spec).collect(),
    };
    let known: Vec<_> = world.models.iter().map(|spec| spec.id.clone()).collect();
    let unknown = models.filter(|id| !known.contains(id));
    world.models.extend(unknown.map(weightless));
    world
}

fn spec(model: &residency::Model) -> Spec {
    Spec {
        id: model.id.clone(),
        width: model.width,
        allowed: model.allowed.clone(),
        bytes: model.bytes,
        levels: model.demand.levels,
        costs: model.costs,
        is_pinned: model.demand.is_pinned,
        idle_ttl: model.demand.idle_ttl,
    }
}

fn weightless(id: ModelId) -> Spec {
    Spec {
        id,
        width: 1,
        allowed: Vec::new(),
        bytes: residency::BySleepLevel::default(),
        levels: kvwarden_policy::lifecycle::SleepLevels::default(),
        costs: residency::Costs::default(),
        is_pinned: false,
        idle_ttl: None,
    }
}

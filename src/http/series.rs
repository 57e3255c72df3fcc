//! The metrics of each pair of a model and a tenant, looked up once and kept.
//!
//! A family finds a metric by labels, which are strings, under a lock. A request needs six of them, so
//! it takes handles instead. There are as many as the configuration has pairs, `_other` and `_unknown`
//! included: what requests say makes none. Each is resolved at its first use, so that nothing is
//! exported that was never counted. Handles of two configurations for the same labels count as one.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, OnceLock},
};

use kvwarden_actors::router::OTHERS;
use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};

use crate::metrics::{self, Metrics};

/// The label of a model or engine that is not known.
pub(super) const UNKNOWN: &str = "_unknown";

/// The label of whoever was not let in: what they call themselves makes no series.
pub(super) const STRANGER: &str = "_unauthenticated";

/// How a request ended, as the label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Answered in full.
    Ok,
    /// Not answered, or not to the end.
    Error,
    /// Refused by a limit.
    Rejected,
    /// The request itself was wrong.
    ClientError,
    /// The client hung up, or did not read.
    ClientGone,
}

/// The metrics of a model's requests of a tenant.
#[derive(Debug)]
pub(super) struct Series {
    /// The model's label.
    pub model: Arc<str>,
    /// The tenant's label.
    pub tenant: Arc<str>,
    engine: &'static str,
    arrived: OnceLock<Counter>,
    ended: [OnceLock<Counter>; Status::ALL.len()],
    retried: OnceLock<Counter>,
    tokens_input: OnceLock<Counter>,
    tokens_generated: OnceLock<Counter>,
    latency: OnceLock<Histogram>,
    ttft: OnceLock<Histogram>,
}

/// The series of all models and tenants that a configuration names.
pub(super) struct SeriesTable {
    /// Where in each row.
    tenants: HashMap<Arc<str>, usize>,
    /// By any name of a model.
    models: HashMap<String, Arc<Row>>,
    unknown: Row,
    stranger: Arc<Series>,
}

/// A model, and its series by tenant.
struct Row {
    model: Arc<str>,
    engine: &'static str,
    series: Vec<OnceLock<Arc<Series>>>,
}

// === impl Status ===

impl Status {
    const ALL: [Self; 5] = [
        Self::Ok,
        Self::Error,
        Self::Rejected,
        Self::ClientError,
        Self::ClientGone,
    ];

    /// The label's value.
    #[must_use]
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Rejected => "rejected",
            Self::ClientError => "client_error",
            Self::ClientGone => "client_gone",
        }
    }
}

// === impl Series ===

impl Series {
    fn new(model: Arc<str>, engine: &'static str, tenant: Arc<str>) -> Self {
        Self {
            model,
            tenant,
            engine,
            arrived: OnceLock::new(),
            ended: Default::default(),
            retried: OnceLock::new(),
            tokens_input: OnceLock::new(),
            tokens_generated: OnceLock::new(),
            latency: OnceLock::new(),
            ttft: OnceLock::new(),
        }
    }

    /// Requests of the tenant, for any model.
    pub(super) fn arrived(&self, metrics: &Metrics) -> &Counter {
        resolve(&self.arrived, &metrics.tenant_requests, || {
            metrics::Tenant {
                tenant: self.tenant.to_string(),
            }
        })
    }

    /// Requests that ended like this.
    pub(super) fn ended(&self, status: Status, metrics: &Metrics) -> &Counter {
        resolve(&self.ended[status as usize], &metrics.requests, || {
            metrics::Request {
                model: self.model.to_string(),
                tenant: self.tenant.to_string(),
                status: status.as_str().to_owned(),
                engine: self.engine.to_owned(),
            }
        })
    }

    /// Requests of the model that got another engine.
    pub(super) fn retried(&self, metrics: &Metrics) -> &Counter {
        resolve(&self.retried, &metrics.requests_retried, || self.by_model())
    }

    /// Prompt tokens of the model.
    pub(super) fn tokens_input(&self, metrics: &Metrics) -> &Counter {
        let family = &metrics.tokens_input;
        resolve(&self.tokens_input, family, || self.by_model())
    }

    /// Output tokens of the model.
    pub(super) fn tokens_generated(&self, metrics: &Metrics) -> &Counter {
        let family = &metrics.tokens_generated;
        resolve(&self.tokens_generated, family, || self.by_model())
    }

    /// Arrival to last byte, of the model.
    pub(super) fn latency(&self, metrics: &Metrics) -> &Histogram {
        resolve(&self.latency, &metrics.request_latency, || self.by_model())
    }

    /// Arrival to the first token.
    pub(super) fn ttft(&self, metrics: &Metrics) -> &Histogram {
        resolve(&self.ttft, &metrics.tenant_ttft, || metrics::ModelTenant {
            model: self.model.to_string(),
            tenant: self.tenant.to_string(),
        })
    }

    fn by_model(&self) -> metrics::Model {
        metrics::Model {
            model: self.model.to_string(),
        }
    }
}

fn resolve<'a, L: Clone + Hash + Eq, M: Clone>(
    handle: &'a OnceLock<M>,
    family: &Family<L, M>,
    labels: impl FnOnce() -> L,
) -> &'a M {
    handle.get_or_init(|| M::clone(&family.get_or_create(&labels())))
}

// === impl SeriesTable ===

impl SeriesTable {
    /// `models` are all names of each, its canonical one and its engine; `tenants` those with a label
    /// of their own.
    pub(super) fn new<'a>(
        models: impl IntoIterator<Item = (Vec<String>, &'a str, &'static str)>,
        tenants: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let tenants = tenants.into_iter().chain([OTHERS]);
        let tenants = tenants.enumerate().map(|(at, name)| (name.into(), at));
        let tenants: HashMap<Arc<str>, usize> = tenants.collect();
        let row = |model: &str, engine| Row {
            model: model.into(),
            engine,
            series: (0..tenants.len()).map(|_| OnceLock::new()).collect(),
        };
        let models = models.into_iter().flat_map(|(names, model, engine)| {
            let row = Arc::new(row(model, engine));
            names.into_iter().map(move |name| (name, row.clone()))
        });
        Self {
            models: models.collect(),
            unknown: row(UNKNOWN, UNKNOWN),
            stranger: Arc::new(Series::new(UNKNOWN.into(), UNKNOWN, STRANGER.into())),
            tenants,
        }
    }

    /// A model's canonical name, by any of its names.
    pub(super) fn canonical(&self, name: &str) -> Option<&str> {
        Some(&self.models.get(name)?.model)
    }

    /// Of whoever was not let in.
    pub(super) fn of_stranger(&self) -> Arc<Series> {
        self.stranger.clone()
    }

    /// Of a tenant whose model is not known yet. Tenants that the configuration does not name have
    /// one together.
    pub(super) fn of_tenant(&self, tenant: &str) -> Arc<Series> {
        self.at(&self.unknown, tenant)
    }

    /// Of a model by any of its names, and a tenant.
    pub(super) fn of(&self, model: &str, tenant: &str) -> Option<Arc<Series>> {
        Some(self.at(self.models.get(model)?, tenant))
    }

    fn at(&self, row: &Row, tenant: &str) -> Arc<Series> {
        let named = self.tenants.get_key_value(tenant);
        let others = || self.tenants.get_key_value(OTHERS);
        let (name, at) = named
            .or_else(others)
            .unwrap_or_else(|| unreachable!("every table has `{OTHERS}`"));
        let series = || Arc::new(Series::new(row.model.clone(), row.engine, name.clone()));
        row.series[*at].get_or_init(series).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(tenants: &[&'static str]) -> SeriesTable {
        let names = vec!["m".to_owned(), "short".to_owned()];
        SeriesTable::new([(names, "m", "sim")], tenants.iter().copied())
    }

    #[test]
    fn statuses_are_where_they_are_looked_for() {
        for (at, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, at);
        }
    }

    #[test]
    fn pairs_are_resolved_once_and_bounded_by_the_configuration() {
        let table = table(&["t"]);
        let series = table.of("short", "t").unwrap();
        assert!(Arc::ptr_eq(&series, &table.of("m", "t").unwrap()));
        assert_eq!((&*series.model, &*series.tenant), ("m", "t"));
        let (a, b) = (table.of("m", "made"), table.of("m", "up"));
        assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
        assert!(table.of("gpt-7", "t").is_none());
        assert_eq!(&*table.of_tenant("t").model, UNKNOWN);
        assert_eq!(&*table.of_stranger().tenant, STRANGER);
        assert_eq!(&*table.of_tenant(STRANGER).tenant, OTHERS, "a made-up name");
    }

    #[test]
    fn handles_of_the_next_configuration_count_on_and_nothing_is_shown_that_was_not_counted() {
        let metrics = Metrics::register();
        let (before, after) = (table(&["t"]), table(&["t", "new"]));
        for table in [&before, &after] {
            let series = table.of("m", "t").unwrap();
            series.ended(Status::Ok, &metrics).inc();
        }
        // A tenant that got its name since is no stranger any more.
        let (strange, named) = (before.of("m", "new"), after.of("m", "new"));
        strange.unwrap().ended(Status::Ok, &metrics).inc();
        named.unwrap().ended(Status::Error, &metrics).inc();
        let text = metrics.open_metrics().unwrap();
        let requests = |tenant: &str, status: &str| {
            format!(
                "requests_total{{model=\"m\",tenant=\"{tenant}\",status=\"{status}\",engine=\"sim\"}}"
            )
        };
        for (series, count) in [
            (requests("t", "ok"), 2),
            (requests("_other", "ok"), 1),
            (requests("new", "error"), 1),
        ] {
            assert!(text.contains(&format!("{series} {count}")), "{text}");
        }
        let shown = text.lines().filter(|line| line.contains("model=\"m\""));
        assert_eq!(shown.count(), 3, "{text}");
    }
}

//! What is counted about one request. Dropping the record counts it, so nothing ends uncounted.

use std::{sync::Arc, time::Duration};

use kvwarden_actors::Refusal;
use kvwarden_policy::cost::Usage;
use tokio::time::Instant;

use super::{Shared, refusal::Failure};
use crate::{
    journal::log::{Arrival, Line, Refused},
    metrics,
};

/// The label of a model or engine that is not known.
const UNKNOWN: &str = "_unknown";

/// The label of whoever was not let in: what they call themselves makes no series.
const STRANGER: &str = "_unauthenticated";

/// One request's way into the metrics.
pub struct Record {
    shared: Arc<Shared>,
    arrived: Instant,
    tenant: String,
    model: String,
    engine: &'static str,
    outcome: Outcome,
    has_first_token: bool,
    waited: Option<Duration>,
    usage: Usage,
    refused: Option<&'static str>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The client hung up, unless something else is set.
    Gone {
        is_streaming: bool,
    },
    /// The client did not read.
    Stalled,
    Ok,
    /// Refused by a limit.
    Rejected,
    /// The request itself was wrong.
    ClientError,
    Error,
}

impl Record {
    /// A request of this tenant arrived.
    #[must_use]
    pub fn new(shared: Arc<Shared>, tenant: &str) -> Self {
        let tenant = shared.view().tenant_label(tenant).to_owned();
        Self::labelled(shared, tenant)
    }

    /// A request of nobody we know arrived.
    #[must_use]
    pub fn of_stranger(shared: Arc<Shared>) -> Self {
        Self::labelled(shared, STRANGER.to_owned())
    }

    fn labelled(shared: Arc<Shared>, tenant: String) -> Self {
        let labels = metrics::Tenant {
            tenant: tenant.clone(),
        };
        shared.metrics.tenant_requests.get_or_create(&labels).inc();
        Self {
            shared,
            arrived: Instant::now(),
            tenant,
            model: UNKNOWN.to_owned(),
            engine: UNKNOWN,
            outcome: Outcome::Gone {
                is_streaming: false,
            },
            has_first_token: false,
            waited: None,
            usage: Usage::default(),
            refused: None,
        }
    }

    /// The tenant's label.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// It is for this model, by any of its names. Names that nobody configured stay out of the
    /// labels.
    pub fn wants(&mut self, model: &str) {
        if let Some((model, engine)) = self.shared.view().model_labels(model) {
            self.model = model.to_string();
            self.engine = engine;
        }
    }

    /// It was handed to an engine.
    pub fn admitted(&mut self, permit: &kvwarden_actors::Permit) {
        self.waited = Some(permit.waited());
        self.shared.metrics.admission_admitted.inc();
        self.shared
            .metrics
            .admission_wait
            .observe(permit.waited().as_secs_f64());
    }

    /// It waits for another engine, since its own went away before the first token.
    pub fn retried(&self) {
        let labels = metrics::Model {
            model: self.model.clone(),
        };
        self.shared
            .metrics
            .requests_retried
            .get_or_create(&labels)
            .inc();
    }

    /// Its answer is on the way to the client.
    pub fn streaming(&mut self) {
        self.outcome = Outcome::Gone { is_streaming: true };
    }

    /// Its first token came. Only the first call counts.
    pub fn first_token(&mut self) {
        if std::mem::replace(&mut self.has_first_token, true) {
            return;
        }
        let labels = metrics::ModelTenant {
            model: self.model.clone(),
            tenant: self.tenant.clone(),
        };
        let ttft = self.arrived.elapsed().as_secs_f64();
        self.shared
            .metrics
            .tenant_ttft
            .get_or_create(&labels)
            .observe(ttft);
    }

    /// It was answered in full.
    pub fn done(&mut self, usage: Option<Usage>) {
        self.outcome = Outcome::Ok;
        let labels = metrics::Model {
            model: self.model.clone(),
        };
        let metrics = &self.shared.metrics;
        if let Some(usage) = usage {
            self.usage = usage;
            metrics
                .tokens_input
                .get_or_create(&labels)
                .inc_by(usage.prompt_tokens);
            metrics
                .tokens_generated
                .get_or_create(&labels)
                .inc_by(usage.completion_tokens);
        }
        let latency = self.arrived.elapsed().as_secs_f64();
        metrics
            .request_latency
            .get_or_create(&labels)
            .observe(latency);
    }

    /// It got no answer.
    pub fn failed(mut self, failure: &Failure) {
        self.outcome = outcome(failure);
        self.refused = Some(failure.reason());
        if self.outcome != Outcome::Rejected {
            return;
        }
        let metrics = &self.shared.metrics;
        let reason = failure.reason().to_owned();
        if is_own_limit(failure) {
            let labels = metrics::Rejection {
                tenant: self.tenant.clone(),
                reason,
            };
            metrics
                .tenant_requests_rejected
                .get_or_create(&labels)
                .inc();
        } else {
            let labels = metrics::Reason { reason };
            metrics.admission_rejected.get_or_create(&labels).inc();
        }
    }

    /// Its client does not read the answer, which is cut.
    pub fn stalled(&mut self) {
        self.outcome = Outcome::Stalled;
    }

    /// Its stream broke off.
    pub fn broken(&mut self, reason: &'static str) {
        self.outcome = Outcome::Error;
        self.disconnected(reason);
    }

    /// What the event log says of it. Of strangers it says nothing: they could fill it.
    fn line(&self, t: f64, status: &str) -> Option<Line> {
        let (model, tenant) = (self.model.clone(), self.tenant.clone());
        if tenant == STRANGER {
            return None;
        }
        Some(match self.refused.filter(|_| self.waited.is_none()) {
            Some(refused) => Line::Refused(Refused {
                t,
                model,
                tenant,
                refused: refused.to_owned(),
            }),
            // Who hung up before anything was known of it asked for nothing.
            None if model == UNKNOWN => return None,
            None => Line::Arrival(Arrival {
                t,
                weight: self.shared.view().weight(&tenant).into(),
                model,
                tenant,
                prompt_tokens: self.usage.prompt_tokens,
                output_tokens: self.usage.completion_tokens,
                waited: self.waited.map(|waited| waited.as_secs_f64()),
                status: Some(status.to_owned()),
            }),
        })
    }

    fn disconnected(&self, reason: &str) {
        let labels = metrics::Reason {
            reason: reason.to_owned(),
        };
        self.shared
            .metrics
            .sse_stream_disconnect
            .get_or_create(&labels)
            .inc();
    }
}

/// Whose doing it was: a limit's, the request's own, or ours and the engine's.
fn outcome(failure: &Failure) -> Outcome {
    let is_unknown = matches!(failure, Failure::Refused(Refusal::UnknownModel(_)));
    let is_refused = matches!(
        failure,
        Failure::NodeFull | Failure::BodiesFull { .. } | Failure::Refused(_)
    );
    if is_refused && !is_unknown {
        Outcome::Rejected
    } else if failure.status().is_client_error() {
        Outcome::ClientError
    } else {
        Outcome::Error
    }
}

fn is_own_limit(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::BodiesFull { .. }
            | Failure::Refused(
                Refusal::RequestRate { .. }
                    | Refusal::TokenRate { .. }
                    | Refusal::DailyTokens { .. }
                    | Refusal::LargerThanBudget { .. }
                    | Refusal::Concurrency { .. }
                    | Refusal::TenantQueueFull { .. }
            )
    )
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Error => "error",
            Outcome::Rejected => "rejected",
            Outcome::ClientError => "client_error",
            Outcome::Stalled => {
                self.disconnected("slow_reader");
                "client_gone"
            }
            Outcome::Gone { is_streaming } => {
                if is_streaming {
                    self.disconnected("client_gone");
                }
                "client_gone"
            }
        };
        if let Some(events) = &self.shared.events
            && let Some(line) = self.line(events.time(self.arrived.into_std()), status)
        {
            events.say(line);
        }
        let labels = metrics::Request {
            model: std::mem::take(&mut self.model),
            tenant: std::mem::take(&mut self.tenant),
            status: status.to_owned(),
            engine: self.engine.to_owned(),
        };
        self.shared.metrics.requests.get_or_create(&labels).inc();
    }
}

//! What is counted about one request. Dropping the record counts it, so nothing ends uncounted.

use std::sync::Arc;

use kvwarden_actors::Refusal;
use kvwarden_policy::cost::Usage;
use tokio::time::Instant;

use super::{Shared, refusal::Failure};
use crate::metrics;

/// The label of a model or engine that is not known.
const UNKNOWN: &str = "_unknown";

/// One request's way into the metrics.
pub struct Record {
    shared: Arc<Shared>,
    arrived: Instant,
    tenant: String,
    model: String,
    engine: &'static str,
    outcome: Outcome,
    has_first_token: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The client hung up, unless something else is set.
    Gone {
        is_streaming: bool,
    },
    Ok,
    Rejected,
    Error,
}

impl Record {
    /// A request of this tenant arrived.
    #[must_use]
    pub fn new(shared: Arc<Shared>, tenant: &str) -> Self {
        let tenant = shared.tenant_label(tenant).to_owned();
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
        }
    }

    /// It is for this model, by any of its names. Names that nobody configured stay out of the
    /// labels.
    pub fn wants(&mut self, model: &str) {
        if let Some((model, engine)) = self.shared.model_labels(model) {
            model.clone_into(&mut self.model);
            self.engine = engine;
        }
    }

    /// It was handed to an engine.
    pub fn admitted(&mut self, permit: &kvwarden_actors::Permit) {
        self.shared.metrics.admission_admitted.inc();
        self.shared
            .metrics
            .admission_wait
            .observe(permit.waited().as_secs_f64());
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
    pub fn failed(&mut self, failure: &Failure) {
        let metrics = &self.shared.metrics;
        let reason = failure.reason().to_owned();
        let is_refused = matches!(failure, Failure::NodeFull | Failure::Refused(_));
        if matches!(failure, Failure::Refused(refusal) if is_own_limit(refusal)) {
            let labels = metrics::Rejection {
                tenant: self.tenant.clone(),
                reason,
            };
            metrics
                .tenant_requests_rejected
                .get_or_create(&labels)
                .inc();
        } else if is_refused {
            let labels = metrics::Reason { reason };
            metrics.admission_rejected.get_or_create(&labels).inc();
        }
        self.outcome = if is_refused {
            Outcome::Rejected
        } else {
            Outcome::Error
        };
    }

    /// Its stream broke off.
    pub fn broken(&mut self, reason: &'static str) {
        self.outcome = Outcome::Error;
        self.disconnected(reason);
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

fn is_own_limit(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::RequestRate { .. }
            | Refusal::TokenRate { .. }
            | Refusal::DailyTokens { .. }
            | Refusal::LargerThanBudget { .. }
            | Refusal::Concurrency { .. }
            | Refusal::TenantQueueFull { .. }
    )
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Error => "error",
            Outcome::Rejected => "rejected",
            Outcome::Gone { is_streaming } => {
                if is_streaming {
                    self.disconnected("client_gone");
                }
                "client_gone"
            }
        };
        let labels = metrics::Request {
            model: std::mem::take(&mut self.model),
            tenant: std::mem::take(&mut self.tenant),
            status: status.to_owned(),
            engine: self.engine.to_owned(),
        };
        self.shared.metrics.requests.get_or_create(&labels).inc();
    }
}

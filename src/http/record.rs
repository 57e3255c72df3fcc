//! What is counted about one request. Dropping the record counts it, so nothing ends uncounted.

use std::{sync::Arc, time::Duration};

use kvwarden_actors::{Permit, Refusal};
use kvwarden_policy::cost::Usage;
use tokio::time::Instant;

use super::{
    refusal::Failure,
    series::{STRANGER, Series, Status},
    shared::Shared,
};
use crate::{
    journal::log::{Arrival, Line, Refused},
    metrics,
};

/// What an answer is counted against, lent to who reads it: the engine's place that it takes, and the
/// request's record.
pub(super) struct Account<'a> {
    /// The engine's place.
    pub permit: &'a mut Permit,
    /// The request's record.
    pub record: &'a mut Record,
}

/// One request's way into the metrics.
pub(super) struct Record {
    shared: Arc<Shared>,
    arrived: Instant,
    series: Arc<Series>,
    /// Its model is known.
    has_model: bool,
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
    pub(super) fn new(shared: Arc<Shared>, tenant: &str) -> Self {
        let series = shared.view().series.of_tenant(tenant);
        Self::counted(shared, series)
    }

    /// A request of nobody we know arrived.
    #[must_use]
    pub(super) fn of_stranger(shared: Arc<Shared>) -> Self {
        let series = shared.view().series.of_stranger();
        Self::counted(shared, series)
    }

    fn counted(shared: Arc<Shared>, series: Arc<Series>) -> Self {
        series.arrived(&shared.metrics).inc();
        Self {
            shared,
            arrived: Instant::now(),
            series,
            has_model: false,
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
    pub(super) fn tenant(&self) -> &str {
        &self.series.tenant
    }

    /// The model's label.
    #[must_use]
    pub(super) fn model(&self) -> &str {
        &self.series.model
    }

    /// It is for this model, by any of its names. Names that nobody configured stay out of the
    /// labels.
    pub(super) fn wants(&mut self, model: &str) {
        if let Some(series) = self.shared.view().series.of(model, &self.series.tenant) {
            self.series = series;
            self.has_model = true;
        }
    }

    /// It was handed to an engine.
    pub(super) fn admitted(&mut self, permit: &Permit) {
        self.waited = Some(permit.waited());
        self.shared.metrics.admission_admitted.inc();
        self.shared
            .metrics
            .admission_wait
            .observe(permit.waited().as_secs_f64());
    }

    /// It waits for another engine, since its own went away before the first token.
    pub(super) fn retried(&self) {
        self.series.retried(&self.shared.metrics).inc();
    }

    /// Its answer is on the way to the client.
    pub(super) fn streaming(&mut self) {
        self.outcome = Outcome::Gone { is_streaming: true };
    }

    /// Its first token came. Only the first call counts.
    pub(super) fn first_token(&mut self) {
        if std::mem::replace(&mut self.has_first_token, true) {
            return;
        }
        let ttft = self.arrived.elapsed().as_secs_f64();
        self.series.ttft(&self.shared.metrics).observe(ttft);
    }

    /// It was answered in full.
    pub(super) fn done(&mut self, usage: Option<Usage>) {
        self.outcome = Outcome::Ok;
        let (metrics, series) = (&self.shared.metrics, &self.series);
        if let Some(usage) = usage {
            self.usage = usage;
            series.tokens_input(metrics).inc_by(usage.prompt_tokens);
            let generated = series.tokens_generated(metrics);
            generated.inc_by(usage.completion_tokens);
        }
        let latency = self.arrived.elapsed().as_secs_f64();
        series.latency(metrics).observe(latency);
    }

    /// It got no answer.
    pub(super) fn failed(mut self, failure: &Failure) {
        self.outcome = outcome(failure);
        self.refused = Some(failure.reason());
        if self.outcome != Outcome::Rejected {
            return;
        }
        let metrics = &self.shared.metrics;
        let reason = failure.reason().to_owned();
        if is_own_limit(failure) {
            let labels = metrics::Rejection {
                tenant: self.tenant().to_owned(),
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
    pub(super) fn stalled(&mut self) {
        self.outcome = Outcome::Stalled;
    }

    /// Its stream broke off.
    pub(super) fn broken(&mut self, reason: &'static str) {
        self.outcome = Outcome::Error;
        self.disconnected(reason);
    }

    /// What the event log says of it. Of strangers it says nothing: they could fill it.
    fn line(&self, t: f64, status: &str) -> Option<Line> {
        if self.tenant() == STRANGER {
            return None;
        }
        let model = self.series.model.to_string();
        let tenant = self.tenant().to_owned();
        Some(match self.refused.filter(|_| self.waited.is_none()) {
            Some(refused) => Line::Refused(Refused {
                t,
                model,
                tenant,
                refused: refused.to_owned(),
            }),
            // Who hung up before anything was known of it asked for nothing.
            None if !self.has_model => return None,
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
            Outcome::Ok => Status::Ok,
            Outcome::Error => Status::Error,
            Outcome::Rejected => Status::Rejected,
            Outcome::ClientError => Status::ClientError,
            Outcome::Stalled => {
                self.disconnected("slow_reader");
                Status::ClientGone
            }
            Outcome::Gone { is_streaming } => {
                if is_streaming {
                    self.disconnected("client_gone");
                }
                Status::ClientGone
            }
        };
        if let Some(events) = &self.shared.events
            && let Some(line) = self.line(events.time(self.arrived.into_std()), status.as_str())
        {
            events.say(line);
        }
        self.series.ended(status, &self.shared.metrics).inc();
    }
}

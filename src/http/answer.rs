//! The head of every answer: an engine's, whole or as events, and every refusal.

use std::{error::Error, io, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    body::SizedStream,
    http::{StatusCode, header},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use kvwarden_actors::{Permit, RateLimits, Refusal};
use kvwarden_policy::bucket::Level;
use serde_json::json;

use super::{
    refusal::{Failure, Form},
    shared::InFlightSlot,
    upstream::{RetryHints, UpstreamResponse},
};

/// Longer than this no SDK sleeps: it would try again after a second or two of its own instead.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What is said at the head of an answer, however that comes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    limits: RateLimits,
    is_simulated: bool,
}

impl Head {
    /// Before the engine said anything.
    pub(super) fn of(permit: &Permit) -> Self {
        Self {
            limits: permit.rate_limits(),
            is_simulated: permit.endpoint.kind.dialect().is_simulated(),
        }
    }

    /// Of an engine's response.
    pub(super) fn answered(response: &UpstreamResponse, permit: &Permit) -> Self {
        let mut head = Self::of(permit);
        head.is_simulated |= response.is_simulated;
        head
    }

    fn builder(self) -> HttpResponseBuilder {
        let mut builder = HttpResponse::Ok();
        rate_limit_headers(&mut builder, &self.limits);
        if self.is_simulated {
            builder.insert_header(("x-kvwarden-simulated", "true"));
        }
        builder
    }
}

/// An answer that comes as events.
pub(super) fn events<S, E>(head: Head, events: S) -> HttpResponse
where
    S: Stream<Item = Result<Bytes, E>> + 'static,
    E: Into<Box<dyn Error>> + 'static,
{
    head.builder()
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        // nginx would collect the stream otherwise.
        .insert_header(("x-accel-buffering", "no"))
        .content_type("text/event-stream; charset=utf-8")
        .streaming(events)
}

/// An answer that is all here.
pub(super) fn whole(head: Head, answer: Bytes, slot: InFlightSlot) -> HttpResponse {
    let length = answer.len() as u64;
    let answer = stream::iter([Ok::<_, io::Error>(answer)]);
    head.builder()
        .content_type("application/json")
        .body(SizedStream::new(length, slot.held_by(answer)))
}

impl Failure {
    /// The answer to the client.
    #[must_use]
    pub fn response(&self) -> HttpResponse {
        let Form {
            status,
            kind,
            code,
            reason,
        } = self.form();
        let mut response = HttpResponse::build(status);
        if let Self::Engine { error, retry, .. } = self {
            retry_hints(&mut response, retry);
            return response.json(json!({ "error": error }));
        }
        if self.is_final() {
            response.insert_header(("x-should-retry", "false"));
        }
        if let Self::Refused(refusal) = self {
            limit_headers(&mut response, refusal);
        }
        response.insert_header(("x-kvwarden-dropped-reason", reason.as_str()));
        if let Some(name) = reason.llm_d() {
            response.insert_header(("x-llm-d-request-dropped-reason", name));
        }
        if matches!(
            self,
            Self::NodeFull | Self::BodiesFull { .. } | Self::Unresponsive(_)
        ) {
            retry_after(&mut response, Duration::from_secs(1));
        }
        if let Self::WrongMethod { allowed, .. } = self {
            response.insert_header((header::ALLOW, *allowed));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(json!({ "error": {
            "message": self.to_string(), "type": kind, "param": self.param(), "code": code,
        }}))
    }
}

/// The engine's own words about asking again.
fn retry_hints(response: &mut HttpResponseBuilder, hints: &RetryHints) {
    let RetryHints {
        retry_after,
        retry_after_ms,
        should_retry,
    } = hints;
    for (name, value) in [
        ("retry-after", retry_after),
        ("retry-after-ms", retry_after_ms),
        ("x-should-retry", should_retry),
    ] {
        if let Some(value) = value {
            response.insert_header((name, value.clone()));
        }
    }
}

fn limit_headers(response: &mut HttpResponseBuilder, refusal: &Refusal) {
    match refusal {
        Refusal::RequestRate {
            limit,
            retry_after: wait,
        } => {
            level_headers(response, "requests", limit);
            retry_after(response, *wait);
        }
        Refusal::TokenRate {
            limit,
            retry_after: wait,
            ..
        } => {
            level_headers(response, "tokens", limit);
            retry_after(response, *wait);
        }
        Refusal::DailyTokens {
            retry_after: wait, ..
        } => {
            retry_after(response, *wait);
            if *wait > LONGEST_SLEEP {
                response.insert_header(("x-should-retry", "false"));
            }
        }
        // Trying again can't help; OpenAI's SDKs would otherwise.
        Refusal::LargerThanBudget { .. }
        | Refusal::Broken {
            retry_after: None, ..
        } => {
            response.insert_header(("x-should-retry", "false"));
        }
        // When a place will be free is unknown; a second is short enough not to waste one.
        Refusal::Concurrency { .. }
        | Refusal::TenantQueueFull { .. }
        | Refusal::QueueFull { .. }
        | Refusal::QueueTimeout { .. }
        | Refusal::DeadlineOutOfReach
        | Refusal::DeadlinePassed
        | Refusal::Draining => {
            retry_after(response, Duration::from_secs(1));
        }
        Refusal::Broken {
            retry_after: Some(wait),
            ..
        } => retry_after(response, *wait),
        Refusal::UnknownModel(_) => {}
    }
}

/// Both forms, rounded up: a client that waits that long is let in.
fn retry_after(response: &mut HttpResponseBuilder, wait: Duration) {
    let millis = wait.as_nanos().div_ceil(1_000_000);
    response.insert_header(("retry-after", millis.div_ceil(1000).to_string()));
    response.insert_header(("retry-after-ms", millis.to_string()));
}

/// `x-ratelimit-*` of an answer that was let in.
fn rate_limit_headers(response: &mut HttpResponseBuilder, limits: &RateLimits) {
    if let Some(level) = &limits.requests {
        level_headers(response, "requests", level);
    }
    if let Some(level) = &limits.tokens {
        level_headers(response, "tokens", level);
    }
}

fn level_headers(response: &mut HttpResponseBuilder, what: &str, level: &Level) {
    let reset = format!("{}ms", level.reset.as_nanos().div_ceil(1_000_000));
    response.insert_header((format!("x-ratelimit-limit-{what}"), level.limit.to_string()));
    response.insert_header((
        format!("x-ratelimit-remaining-{what}"),
        level.remaining.to_string(),
    ));
    response.insert_header((format!("x-ratelimit-reset-{what}"), reset));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_is_used_up_says_when_it_ends_and_not_to_try_before() {
        let after = |seconds| {
            let refusal = Refusal::DailyTokens {
                wanted: 10,
                limit: 100,
                retry_after: Duration::from_secs(seconds),
            };
            Failure::from(refusal).response()
        };
        let header = |response: &HttpResponse, name| {
            let value = response.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (long, short) = (after(7200), after(5));
        assert_eq!(header(&long, "retry-after").as_deref(), Some("7200"));
        assert_eq!(header(&long, "x-should-retry").as_deref(), Some("false"));
        assert_eq!(header(&short, "x-should-retry"), None);
        let reason = header(&long, "x-kvwarden-dropped-reason");
        assert_eq!(reason.as_deref(), Some("tokens_per_day"));
        assert_eq!(long.status(), StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn every_refusal_says_why_and_in_llm_ds_words_where_it_has_some() {
        let late = Failure::from(Refusal::DeadlinePassed).response();
        assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
        let headers = late.headers();
        assert_eq!(
            headers.get("x-kvwarden-dropped-reason").unwrap(),
            "deadline"
        );
        let llm_d = headers.get("x-llm-d-request-dropped-reason").unwrap();
        assert_eq!(llm_d, "rejected-ttl-expired");
        let unknown = Failure::Unauthorized("who?").response();
        let reason = unknown.headers().get("x-kvwarden-dropped-reason").unwrap();
        assert_eq!(reason, "invalid_api_key");
    }

    #[test]
    fn retry_after_is_rounded_up_in_both_units() {
        let level = Level {
            limit: 60,
            remaining: 0,
            reset: Duration::from_secs(60),
        };
        let wait = Duration::from_nanos(1_000_000_001);
        let refusal = Refusal::RequestRate {
            limit: level,
            retry_after: wait,
        };
        let response = Failure::from(refusal).response();
        let header = |name| {
            response
                .headers()
                .get(name)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(
            (header("retry-after"), header("retry-after-ms")),
            ("2".into(), "1001".into())
        );
        assert_eq!(header("x-ratelimit-reset-requests"), "60000ms");
    }
}

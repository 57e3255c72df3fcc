//! Every way to say no, as HTTP: the only place that knows status codes.
//!
//! Whose fault it is stands in the code: 4xx the request or its tenant's own limits, 503 this node,
//! 502 an engine. The body has OpenAI's shape, the headers are the ones its SDKs read.

use std::{fmt, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder,
    http::{StatusCode, header},
};
use kvwarden_actors::{RateLimits, Refusal};
use kvwarden_policy::bucket::Level;
use serde_json::{Map, Value, json, value::RawValue};

use super::reason::Reason;

/// Longer than this no SDK sleeps: it would try again after a second or two of its own instead.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A request that can't be right whoever sends it whenever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest {
    /// What is wrong and what to do.
    pub message: String,
    /// The field it is about.
    pub param: Option<String>,
}

impl BadRequest {
    /// Bad, for this reason.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            param: None,
        }
    }

    /// About this field.
    #[must_use]
    pub fn param(mut self, name: &str) -> Self {
        self.param = Some(name.to_owned());
        self
    }
}

/// Why a request got no answer from an engine.
#[derive(Debug)]
pub enum Failure {
    /// Malformed.
    Bad(BadRequest),
    /// The body is larger than the limit.
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The tenant's request bodies fill what it may hold of them.
    BodiesFull {
        /// The limit in bytes.
        limit: usize,
    },
    /// The body did not arrive in time.
    SlowBody,
    /// Not JSON by its own header.
    NotJson,
    /// The API key is unknown, or none was given where one is needed.
    Unauthorized(&'static str),
    /// This key may not see that.
    Forbidden(&'static str),
    /// The configuration can't be read again, in full sentences.
    Config(String),
    /// No such route.
    NoRoute {
        /// What was asked for.
        path: String,
    },
    /// An actor said no.
    Refused(Refusal),
    /// As many requests as this node holds are queued or streaming.
    NodeFull,
    /// The engine could not be reached, or went away before it answered.
    Unreachable(String),
    /// The engine answered with an error.
    Engine {
        /// Its status.
        status: StatusCode,
        /// Its `error` object, as it is.
        error: Value,
    },
}

impl From<BadRequest> for Failure {
    fn from(bad: BadRequest) -> Self {
        Self::Bad(bad)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A failure as clients and operators see it.
struct Form {
    status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// OpenAI's `code`.
    code: &'static str,
    reason: Reason,
}

const fn form(status: StatusCode, kind: &'static str, reason: Reason) -> Form {
    Form {
        status,
        kind,
        code: reason.as_str(),
        reason,
    }
}

/// As OpenAI says it: clients compare this code, and the type tells which limit it was.
const fn rate_limit(kind: &'static str, reason: Reason) -> Form {
    Form {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind,
        code: "rate_limit_exceeded",
        reason,
    }
}

const INVALID: &str = "invalid_request_error";
const LIMITED: &str = "rate_limit_error";
const SERVER: &str = "server_error";

impl Failure {
    fn form(&self) -> Form {
        match self {
            Self::Bad(_) => form(StatusCode::BAD_REQUEST, INVALID, Reason::InvalidRequest),
            Self::TooLarge { .. } => {
                form(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Reason::BodyTooLarge)
            }
            Self::BodiesFull { .. } => form(
                StatusCode::TOO_MANY_REQUESTS,
                LIMITED,
                Reason::TenantBodiesFull,
            ),
            Self::SlowBody => form(StatusCode::REQUEST_TIMEOUT, INVALID, Reason::BodyTimeout),
            Self::NotJson => form(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Reason::NotJson),
            Self::Unauthorized(_) => form(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                Reason::InvalidApiKey,
            ),
            Self::Forbidden(_) => {
                form(StatusCode::FORBIDDEN, "permission_error", Reason::Forbidden)
            }
            Self::Config(_) => form(
                StatusCode::UNPROCESSABLE_ENTITY,
                INVALID,
                Reason::ConfigRefused,
            ),
            Self::NoRoute { .. } => form(StatusCode::NOT_FOUND, INVALID, Reason::UnknownRoute),
            Self::NodeFull => form(StatusCode::SERVICE_UNAVAILABLE, SERVER, Reason::NodeFull),
            Self::Unreachable(_) => {
                form(StatusCode::BAD_GATEWAY, SERVER, Reason::EngineUnreachable)
            }
            Self::Engine { status, .. } => form(*status, SERVER, Reason::EngineError),
            Self::Refused(refusal) => refused(refusal),
        }
    }

    /// The status it will have.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.form().status
    }

    /// Why, in one word, for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.form().reason.as_str()
    }

    fn param(&self) -> Option<&str> {
        if let Self::Bad(bad) = self {
            return bad.param.as_deref();
        }
        matches!(self, Self::Refused(Refusal::UnknownModel(_))).then_some("model")
    }

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
        if let Self::Engine { error, .. } = self {
            return response.json(json!({ "error": error }));
        }
        if let Self::Refused(refusal) = self {
            limit_headers(&mut response, refusal);
        }
        response.insert_header(("x-kvwarden-dropped-reason", reason.as_str()));
        if let Some(name) = reason.llm_d() {
            response.insert_header(("x-llm-d-request-dropped-reason", name));
        }
        if matches!(self, Self::NodeFull | Self::BodiesFull { .. }) {
            retry_after(&mut response, Duration::from_secs(1));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(json!({ "error": {
            "message": self.to_string(), "type": kind, "param": self.param(), "code": code,
        }}))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(bad) => f.write_str(&bad.message),
            Self::TooLarge { limit } => write!(
                f,
                "the request body is larger than {limit} bytes; the operator sets limits.max_body"
            ),
            Self::BodiesFull { limit } => write!(
                f,
                "request bodies of this tenant already hold {limit} bytes; try again"
            ),
            Self::SlowBody => f.write_str("the request body did not arrive in time"),
            Self::NotJson => f.write_str("send the body as JSON, with `content-type: application/json` and no content-encoding"),
            Self::Unauthorized(why) | Self::Forbidden(why) => f.write_str(why),
            Self::Config(why) => f.write_str(why),
            Self::NoRoute { path } => write!(
                f,
                "there is no {path} here; served are /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /tokenize, /health, /metrics and /kvwarden/status"
            ),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NodeFull => f.write_str("this node holds as many requests as it can; try again"),
            Self::Unreachable(_) => f.write_str("the model's engine did not answer; try again"),
            Self::Engine { status, .. } => write!(f, "the model's engine answered {status}"),
        }
    }
}

fn refused(refusal: &Refusal) -> Form {
    let unavailable = |reason| form(StatusCode::SERVICE_UNAVAILABLE, SERVER, reason);
    let limited = |reason| form(StatusCode::TOO_MANY_REQUESTS, LIMITED, reason);
    match refusal {
        Refusal::UnknownModel(_) => form(StatusCode::NOT_FOUND, INVALID, Reason::ModelNotFound),
        Refusal::RequestRate { .. } => rate_limit("requests", Reason::RequestsPerMinute),
        Refusal::TokenRate { .. } => rate_limit("tokens", Reason::TokensPerMinute),
        Refusal::DailyTokens { .. } => rate_limit("tokens", Reason::TokensPerDay),
        Refusal::LargerThanBudget { .. } => limited(Reason::LargerThanBudget),
        Refusal::Concurrency { .. } => limited(Reason::MaxConcurrentRequests),
        Refusal::TenantQueueFull { .. } => limited(Reason::TenantQueueFull),
        Refusal::QueueFull { .. } => unavailable(Reason::QueueFull),
        Refusal::QueueTimeout { .. } => unavailable(Reason::QueueTimeout),
        Refusal::DeadlineOutOfReach | Refusal::DeadlinePassed => unavailable(Reason::Deadline),
        Refusal::Broken { .. } => unavailable(Reason::EngineBroken),
        Refusal::Draining => unavailable(Reason::ShuttingDown),
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
pub fn rate_limit_headers(response: &mut HttpResponseBuilder, limits: &RateLimits) {
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

/// An engine's error answer in OpenAI's shape, whatever shape it came in.
#[must_use]
pub fn engine_failure(status: StatusCode, body: &[u8]) -> Failure {
    // Our key was refused: nothing the client could mend.
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Failure::Unreachable(format!("the engine refused our key ({status})"));
    }
    let error = match serde_json::from_slice(body) {
        Ok(Value::Object(answer)) => error_of(status, answer),
        Ok(_) | Err(_) => error_object(status, String::from_utf8_lossy(body).trim()),
    };
    Failure::Engine { status, error }
}

/// An error that an engine sent as an event, in place of an answer.
#[must_use]
pub fn event_failure(error: &RawValue) -> Failure {
    let error: Value = serde_json::from_str(error.get()).unwrap_or(Value::Null);
    let code = error
        .get("code")
        .and_then(Value::as_u64)
        .and_then(|code| u16::try_from(code).ok());
    let status = code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    let error = if error.is_object() {
        error
    } else {
        error_object(status, &text_of(&error))
    };
    Failure::Engine { status, error }
}

fn error_of(status: StatusCode, mut answer: Map<String, Value>) -> Value {
    if let Some(error) = answer.remove("error") {
        return whole_error(status, error);
    }
    // SGLang: the error's fields without an envelope. FastAPI: only a detail.
    match answer.get("message").or_else(|| answer.get("detail")) {
        Some(message) => error_object(status, without_source_lines(&text_of(message))),
        None => error_object(status, "the engine gave no reason"),
    }
}

/// The engine's own words, and what it left out (llama.cpp: `param`): the SDKs read all four.
fn whole_error(status: StatusCode, error: Value) -> Value {
    let Value::Object(mut error) = error else {
        return error_object(status, &text_of(&error));
    };
    if let Value::Object(usual) = error_object(status, "the engine gave no reason") {
        for (key, value) in usual {
            error.entry(key).or_insert(value);
        }
    }
    Value::Object(error)
}

fn error_object(status: StatusCode, message: &str) -> Value {
    let kind = if status.is_client_error() {
        INVALID
    } else {
        SERVER
    };
    json!({ "message": message, "type": kind, "param": null, "code": status.as_u16() })
}

fn text_of(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// SGLang shows its own file paths behind a blank line.
fn without_source_lines(message: &str) -> &str {
    message
        .find("\n\n  File ")
        .map_or(message, |at| message[..at].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> Value {
        let status = StatusCode::from_u16(status).unwrap();
        let Failure::Engine { error, .. } = engine_failure(status, body.as_bytes()) else {
            panic!("an engine's error stays one: {body}");
        };
        error
    }

    #[test]
    fn every_engines_error_gets_openais_shape() {
        let vllm =
            r#"{"error":{"message":"bad","type":"Bad Request","param":"body.t","code":400}}"#;
        assert_eq!(error(400, vllm)["param"], "body.t");
        let sglang = r#"{"object":"error","message":"bad\n\n  File \"/x.py\"","type":"Bad Request","param":null,"code":400}"#;
        assert_eq!(error(400, sglang)["message"], "bad");
        assert_eq!(
            error(404, r#"{"detail":"Not Found"}"#)["message"],
            "Not Found"
        );
        assert_eq!(
            error(500, "Internal Server Error")["message"],
            "Internal Server Error"
        );
        assert_eq!(error(503, "")["type"], SERVER);
        let llamacpp = r#"{"error":{"code":400,"message":"bad","type":"invalid_request_error"}}"#;
        assert_eq!(error(400, llamacpp).get("param"), Some(&Value::Null));
    }

    #[test]
    fn an_engine_that_refuses_our_key_is_our_fault() {
        let failure = engine_failure(StatusCode::UNAUTHORIZED, br#"{"error":"Unauthorized"}"#);
        assert_eq!(failure.status(), StatusCode::BAD_GATEWAY);
    }

    #[test]
    fn an_error_event_keeps_its_status() {
        let raw = RawValue::from_string(r#"{"message":"full","code":503}"#.to_owned()).unwrap();
        assert_eq!(
            event_failure(&raw).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let raw = RawValue::from_string(r#""odd""#.to_owned()).unwrap();
        assert_eq!(event_failure(&raw).status(), StatusCode::BAD_GATEWAY);
    }

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

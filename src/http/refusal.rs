//! Every way to say no, as HTTP: the only place that knows status codes. [`answer`](super::answer)
//! writes them down.
//!
//! Whose fault it is stands in the code: 4xx the request or its tenant's own limits, 503 this node,
//! 502 an engine. The body has OpenAI's shape, the headers are the ones its SDKs read.

use std::fmt;

use actix_web::http::StatusCode;
use kvwarden_actors::{Refusal, overview::OverviewError};
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    limits::{MAX_ERROR, MAX_HEADERS},
    reason::Reason,
    upstream::RetryHints,
};

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
    /// The route takes other methods.
    WrongMethod {
        /// What was asked.
        method: String,
        /// What may be asked, as the header says it.
        allowed: &'static str,
    },
    /// The header lines are larger than the limit.
    HeadersTooLarge,
    /// An actor said no.
    Refused(Refusal),
    /// As many requests as this node holds are queued or streaming.
    NodeFull,
    /// An actor that was asked about itself did not answer in time.
    Unresponsive(OverviewError),
    /// The engine could not be reached, or went away before it answered.
    Unreachable(String),
    /// What the engine sent is no answer, for this reason. Another try would get the same.
    Unusable(String),
    /// The engine refused our key with this status: the configuration's fault.
    KeyRefused(StatusCode),
    /// The engine answered with an error.
    Engine {
        /// Its status.
        status: StatusCode,
        /// Its `error` object, as it is.
        error: Value,
        /// What it says about asking again.
        retry: Box<RetryHints>,
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

impl From<OverviewError> for Failure {
    fn from(error: OverviewError) -> Self {
        match error {
            OverviewError::Timeout { .. } => Self::Unresponsive(error),
            OverviewError::Ended(_) => Self::Refused(Refusal::Draining),
        }
    }
}

/// A failure as clients and operators see it.
pub(super) struct Form {
    pub(super) status: StatusCode,
    /// OpenAI's `type`.
    pub(super) kind: &'static str,
    /// OpenAI's `code`.
    pub(super) code: &'static str,
    pub(super) reason: Reason,
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
    pub(super) fn form(&self) -> Form {
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
            Self::WrongMethod { .. } => {
                form(StatusCode::METHOD_NOT_ALLOWED, INVALID, Reason::WrongMethod)
            }
            Self::HeadersTooLarge => form(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                INVALID,
                Reason::HeadersTooLarge,
            ),
            Self::NodeFull => form(StatusCode::SERVICE_UNAVAILABLE, SERVER, Reason::NodeFull),
            Self::Unresponsive(_) => form(
                StatusCode::SERVICE_UNAVAILABLE,
                SERVER,
                Reason::ActorTimeout,
            ),
            Self::Unreachable(_) | Self::Unusable(_) | Self::KeyRefused(_) => {
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

    /// Another try would end the same way, and SDKs have to be told so.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Unusable(_) | Self::KeyRefused(_))
    }

    pub(super) fn param(&self) -> Option<&str> {
        if let Self::Bad(bad) = self {
            return bad.param.as_deref();
        }
        matches!(self, Self::Refused(Refusal::UnknownModel(_))).then_some("model")
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
            Self::WrongMethod { method, allowed } => {
                write!(f, "this is no route for {method}, but for {allowed}")
            }
            Self::HeadersTooLarge => write!(
                f,
                "the header lines of the request take more than {MAX_HEADERS} bytes"
            ),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NodeFull => f.write_str("this node holds as many requests as it can; try again"),
            Self::Unresponsive(error) => write!(f, "{error}; try again"),
            Self::Unreachable(_) => f.write_str("the model's engine did not answer; try again"),
            Self::Unusable(why) => write!(f, "the model's engine gave no answer that can be used: {why}"),
            Self::KeyRefused(_) => f.write_str("the model's engine refuses this server's own key; only its operator can mend that"),
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

/// An engine's error answer in OpenAI's shape, whatever shape it came in.
#[must_use]
pub fn engine_failure(status: StatusCode, retry: RetryHints, body: &[u8]) -> Failure {
    // Our key was refused: nothing the client could mend.
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return Failure::KeyRefused(status);
    }
    let error = match serde_json::from_slice(body) {
        Ok(Value::Object(answer)) => error_of(status, answer),
        Ok(_) | Err(_) => error_object(status, String::from_utf8_lossy(body).trim()),
    };
    Failure::Engine {
        status,
        error,
        retry: Box::new(retry),
    }
}

const NO_REASON: &str = "the engine gave no reason";

/// An error that an engine sent in place of an answer, or within one, under a status that says all is well.
#[must_use]
pub fn told_failure(error: &RawValue) -> Failure {
    let error = Some(error.get()).filter(|error| error.len() <= MAX_ERROR);
    let error = error.and_then(|error| serde_json::from_str(error).ok());
    let error: Value = error.unwrap_or_else(|| NO_REASON.into());
    // `errors` is a list; the first says what went wrong first.
    let error = error.get(0).cloned().unwrap_or(error);
    let status = status_of(&error).unwrap_or(StatusCode::BAD_GATEWAY);
    Failure::Engine {
        status,
        error: whole_error(status, error),
        retry: Box::default(),
    }
}

/// The status that an error names: in numbers, or by a type that has one.
fn status_of(error: &Value) -> Option<StatusCode> {
    let number = |field: &Value| {
        let text = field.as_str().and_then(|text| text.parse().ok());
        let code = field.as_u64().or(text)?;
        let status = StatusCode::from_u16(u16::try_from(code).ok()?).ok()?;
        (status.is_client_error() || status.is_server_error()).then_some(status)
    };
    let fields = ["code", "status", "status_code"];
    let told = fields
        .iter()
        .find_map(|name| error.get(name).and_then(number));
    let by_type = || match error.get("type")?.as_str()? {
        INVALID | "BadRequestError" => Some(StatusCode::BAD_REQUEST),
        LIMITED | "insufficient_quota" => Some(StatusCode::TOO_MANY_REQUESTS),
        _ => None,
    };
    told.or_else(by_type)
}

fn error_of(status: StatusCode, mut answer: Map<String, Value>) -> Value {
    if let Some(error) = answer.remove("error") {
        return whole_error(status, error);
    }
    if let Some(Value::Array(mut errors)) = answer.remove("errors")
        && !errors.is_empty()
    {
        return whole_error(status, errors.swap_remove(0));
    }
    // SGLang: the error's fields without an envelope. FastAPI: only a detail.
    match answer.get("message").or_else(|| answer.get("detail")) {
        Some(message) => error_object(status, without_source_lines(&text_of(message))),
        None => error_object(status, NO_REASON),
    }
}

/// The engine's own words, and what it left out (llama.cpp: `param`): the SDKs read all four.
fn whole_error(status: StatusCode, error: Value) -> Value {
    let Value::Object(mut error) = error else {
        return error_object(status, &text_of(&error));
    };
    if let Value::Object(usual) = error_object(status, NO_REASON) {
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
        let failure = engine_failure(status, RetryHints::default(), body.as_bytes());
        let Failure::Engine { error, .. } = failure else {
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
    fn a_list_of_errors_says_the_first() {
        let list = r#"{"errors":[{"message":"no such field"},{"message":"and no body"}]}"#;
        assert_eq!(error(422, list)["message"], "no such field");
        assert_eq!(error(422, list)["code"], 422);
        assert_eq!(error(400, r#"{"errors":["odd"]}"#)["message"], "odd");
        assert!(error(400, r#"{"errors":[]}"#)["message"].is_string());
    }

    #[test]
    fn an_engine_that_refuses_our_key_is_our_fault_and_not_asked_again() {
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let body = br#"{"error":"Unauthorized"}"#;
            let failure = engine_failure(status, RetryHints::default(), body);
            assert_eq!(failure.status(), StatusCode::BAD_GATEWAY);
            assert!(failure.is_final());
        }
    }

    #[test]
    fn an_error_under_200_has_the_status_that_it_names() {
        let status = |error: &str| {
            let raw = RawValue::from_string(error.to_owned()).unwrap();
            told_failure(&raw).status().as_u16()
        };
        for (error, expected) in [
            (r#"{"message":"full","code":503}"#, 503),
            (r#"{"message":"full","code":"429"}"#, 429),
            (r#"{"message":"full","status":529}"#, 529),
            (
                r#"{"message":"bad","type":"invalid_request_error","code":null}"#,
                400,
            ),
            (r#"{"message":"slow down","type":"rate_limit_error"}"#, 429),
            (r#"{"message":"odd","code":200}"#, 502),
            (r#"[{"message":"first","code":404},{"code":500}]"#, 404),
            (r#""odd""#, 502),
        ] {
            assert_eq!(status(error), expected, "{error}");
        }
    }
}

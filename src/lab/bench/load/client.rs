//! One tenant's connections, and one request over them.

use std::{rc::Rc, time::Duration};

use actix_service::ServiceExt as _;
use actix_tls::connect::{Connection, Connector as TcpConnector};
use actix_web::{
    http::{StatusCode, Uri, header},
    rt::net::TcpStream,
};
use awc::{
    ClientResponse,
    error::{ConnectError, SendRequestError},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use kvwarden_policy::cost::Usage;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{plan::Shot, sample::Outcome};
use crate::http::format::{
    event::{self, Event},
    sse::Splitter,
};

/// Connecting on this machine takes microseconds; a full accept queue makes it seconds, and that
/// waiting counts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Servers close connections after 5 s of silence and more; closing ours first means that a request
/// hardly ever goes out on a dying one.
const IDLE: Duration = Duration::from_secs(3);

/// Longest event; what is asked for here makes a few hundred bytes each.
const MAX_EVENT: usize = 4 << 20;

/// Longest refusal that is read for its code.
const MAX_REFUSAL: usize = 64 << 10;

/// Where requests go, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Base URL without `/v1`.
    pub base: String,
    /// The model's name there.
    pub model: String,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<String>,
    /// What the server understands beyond OpenAI's fields.
    pub dialect: Dialect,
}

/// How an answer is kept from ending before its planned length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `ignore_eos` and `min_tokens`: vLLM, SGLang, the simulated engine; llama.cpp knows the first
    /// and ignores the second.
    IgnoreEos,
    /// OpenAI's fields alone: answers may be shorter than planned.
    Plain,
}

/// A tenant's own client. Its pool has no limit: one would be a hidden queue.
#[derive(Clone)]
pub(super) struct Tenant {
    http: awc::Client,
    target: Rc<Target>,
    name: String,
    completions: String,
}

/// What is seen of a request while it runs; it outlives a request that is given up.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// When it was sent.
    pub(super) sent: Option<Instant>,
    /// When each event with text came.
    pub(super) events: Vec<Instant>,
    /// The engine's count.
    pub(super) usage: Option<Usage>,
    /// The server said that its engine is simulated.
    pub(super) is_simulated: bool,
}

/// A client for many long streams at once, without connections yet.
fn streaming_client() -> awc::Client {
    // awc has no switch for TCP_NODELAY, and without it small writes wait for 40 ms.
    let tcp = TcpConnector::default().service();
    let tcp = tcp.map(|connection: Connection<Uri, TcpStream>| {
        if let Err(error) = connection.io_ref().set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        connection
    });
    let connector = awc::Connector::new()
        .connector(tcp)
        .timeout(CONNECT_TIMEOUT)
        .conn_keep_alive(IDLE)
        // The default of 100 silently queues the 101st stream; queueing is our own.
        .limit(0);
    let client = awc::Client::builder()
        .connector(connector)
        .disable_timeout()
        .disable_redirects()
        .no_default_headers();
    client.finish()
}

// === impl Target ===

impl Target {
    /// The body of a streamed completion.
    pub(super) fn body(&self, prompt: &str, shot: &Shot) -> Bytes {
        let mut body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": shot.output_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if self.dialect == Dialect::IgnoreEos {
            body["ignore_eos"] = true.into();
            body["min_tokens"] = shot.output_tokens.into();
        }
        body.to_string().into()
    }
}

// === impl Tenant ===

impl Tenant {
    /// A client without connections.
    pub(super) fn new(target: Rc<Target>, name: &str) -> Self {
        Self {
            http: streaming_client(),
            completions: format!("{}/v1/completions", target.base),
            name: name.to_owned(),
            target,
        }
    }

    /// Where it sends.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends one request and reads its answer to the end.
    pub(super) async fn exchange(&self, body: Bytes, trace: &mut Trace) -> Outcome {
        trace.sent = Some(Instant::now());
        let mut response = match self.post(body).await {
            Ok(response) => response,
            Err(error) => return failed(error.to_string()),
        };
        trace.is_simulated = response.headers().contains_key("x-kvwarden-simulated");
        if response.status() != StatusCode::OK {
            let body = response.body().limit(MAX_REFUSAL).await;
            return refusal(response.status(), &body.unwrap_or_default());
        }
        read_stream(response, trace).await
    }

    async fn post(&self, body: Bytes) -> Result<ClientResponse, SendRequestError> {
        match self.try_post(body.clone()).await {
            // The server closed a pooled connection as we picked it; nothing was answered. The
            // time lost counts, since latency is taken from the plan.
            Err(
                SendRequestError::Send(_) | SendRequestError::Connect(ConnectError::Disconnected),
            ) => self.try_post(body).await,
            other => other,
        }
    }

    async fn try_post(&self, body: Bytes) -> Result<ClientResponse, SendRequestError> {
        let mut request = self
            .http
            .post(self.completions.as_str())
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .insert_header(("x-tenant-id", self.name.as_str()));
        if let Some(key) = &self.target.api_key {
            request = request.bearer_auth(key);
        }
        let response = request.no_decompress().send_body(body).await?;
        // The payload's type depends on decompression, which is off; box it back to the usual one.
        Ok(response.map_body(|_, payload| payload))
    }
}

/// Reads events until `[DONE]`, the end, or an error in the stream.
async fn read_stream(mut response: ClientResponse, trace: &mut Trace) -> Outcome {
    let mut splitter = Splitter::default();
    let cut = |why: &str| Outcome::Cut {
        why: why.to_owned(),
    };
    let mut is_done = false;
    while let Some(chunk) = response.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return cut(&error.to_string()),
        };
        let now = Instant::now();
        splitter.push(chunk);
        if splitter.pending() > MAX_EVENT {
            return cut("an event without an end");
        }
        while let Some(event) = splitter.next_event() {
            match event::read(&event) {
                Event::Chunk(chunk) => {
                    if chunk.tokens > 0 {
                        trace.events.push(now);
                    }
                    if let Some(usage) = chunk.usage {
                        trace.usage = Some(usage);
                    }
                }
                Event::Failed(error) => return failed_in_stream(error.get(), trace),
                // Read on to the end of the body: only then can the connection be used again.
                Event::Done => is_done = true,
                Event::Comment => {}
            }
        }
    }
    match is_done {
        true => Outcome::Ok,
        false => cut("the body ended before [DONE]"),
    }
}

/// vLLM refuses a stream with 200 and an error as its first event.
fn failed_in_stream(error: &str, trace: &Trace) -> Outcome {
    let error: Value = serde_json::from_str(error).unwrap_or_default();
    let code = text_of(&error["code"]);
    let status = error["code"].as_u64();
    match status.and_then(|code| u16::try_from(code).ok()) {
        Some(status) if trace.events.is_empty() => Outcome::Refused { status, code },
        _ => Outcome::Cut { why: code },
    }
}

/// 429 and 503 are refusals: the server could have, and would not. Everything else is a failure.
fn refusal(status: StatusCode, body: &[u8]) -> Outcome {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = text_of(&body["error"]["code"]);
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Outcome::Refused {
            status: status.as_u16(),
            code,
        },
        status => {
            let message = text_of(&body["error"]["message"]);
            failed(format!("{} {code} {message}", status.as_u16()))
        }
    }
}

fn failed(why: String) -> Outcome {
    Outcome::Failed { why }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_failures() {
        let body = br#"{"error":{"code":"requests_per_minute","message":"slow down"}}"#;
        let expected = Outcome::Refused {
            status: 429,
            code: "requests_per_minute".to_owned(),
        };
        assert_eq!(refusal(StatusCode::TOO_MANY_REQUESTS, body), expected);
        assert!(matches!(
            refusal(StatusCode::BAD_GATEWAY, b"<html>"),
            Outcome::Failed { .. }
        ));
    }

    #[test]
    fn vllm_refusal_within_a_200_is_a_refusal() {
        let refused = failed_in_stream(r#"{"code":503,"message":"full"}"#, &Trace::default());
        assert!(matches!(refused, Outcome::Refused { status: 503, .. }));
        let begun = Trace {
            events: vec![Instant::now()],
            ..Trace::default()
        };
        let cut = failed_in_stream(r#"{"code":503,"message":"gone"}"#, &begun);
        assert!(matches!(cut, Outcome::Cut { .. }));
    }
}

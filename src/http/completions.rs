//! The way of one request: tenant, body, permit, engine, answer.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use kvwarden_actors::{Permit, Ticket, gpu::engine::EngineKind, protocol::Admit};
use kvwarden_policy::{TenantId, cost::RequestSize};
use tokio::time::Instant;

use super::{
    Place, Shared,
    envelope::Ask,
    record::Record,
    refusal::{self, BadRequest, Failure, engine_failure},
    relay::{Manner, Relay},
    request_id, sse,
    terms::read_terms,
    tokenize,
    upstream::{Answer, Engines},
};

/// Largest answer that is held in memory; a long completion with logprobs stays under 8 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// What a route does with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Generates text, streamed or not.
    Generate,
    /// Answers at once (embeddings).
    Compute,
    /// Counts tokens; costs the engine next to nothing.
    Tokenize,
}

/// Handles a `POST` that an engine answers.
pub async fn forward(
    task: Task,
    path: &'static str,
    request: HttpRequest,
    payload: web::Payload,
    shared: web::Data<Arc<Shared>>,
    engines: web::Data<Engines>,
) -> HttpResponse {
    let shared = shared.get_ref().clone();
    let tenant = match shared.identity.tenant(&request) {
        Ok(tenant) => tenant,
        Err(failure) => return failure.response(),
    };
    let record = Record::new(shared.clone(), tenant.as_str());
    let exchange = Exchange {
        task,
        path,
        request: &request,
        shared: &shared,
        engines: &engines,
    };
    match exchange.run(tenant, payload, record).await {
        Ok(response) => response,
        Err((failure, mut record)) => {
            if let Failure::Unreachable(why) = &failure {
                tracing::warn!(
                    request_id = request_id(&request),
                    why,
                    "no answer from the engine"
                );
            }
            record.failed(&failure);
            failure.response()
        }
    }
}

/// One request and what it needs on its way.
struct Exchange<'a> {
    task: Task,
    path: &'static str,
    request: &'a HttpRequest,
    shared: &'a Arc<Shared>,
    engines: &'a Engines,
}

/// A step's outcome; a failure carries the record, which counts it.
type Step<T> = Result<T, (Failure, Record)>;

impl Exchange<'_> {
    async fn run(
        &self,
        tenant: TenantId,
        payload: web::Payload,
        mut record: Record,
    ) -> Step<HttpResponse> {
        let Some(place) = Place::take(self.shared) else {
            return Err((Failure::NodeFull, record));
        };
        let body = match self.read_body(payload).await {
            Ok(body) => body,
            Err(failure) => return Err((failure, record)),
        };
        let mut ask = match Ask::parse(&body) {
            Ok(ask) => ask,
            Err(bad) => return Err((bad.into(), record)),
        };
        record.wants(&ask.model);
        let mut permit = match self.permit(tenant.clone(), &ask).await {
            Ok(permit) => permit,
            Err(failure) => return Err((failure, record)),
        };
        record.admitted(&permit);
        let streams_upstream = self.adapt(&mut ask, &tenant, &permit);
        if !streams_upstream {
            permit.acknowledge_unseen();
        }
        let sent = ask.members.to_bytes();
        // An id that two requests share would make vLLM refuse the second.
        let id = format!("{}-{:08x}", request_id(self.request), rand::random::<u32>());
        let answer = match self
            .engines
            .post(&permit.endpoint, self.path, &id, sent)
            .await
        {
            Ok(answer) => answer,
            Err(why) => {
                permit.engine_unreachable();
                return Err((Failure::Unreachable(why), record));
            }
        };
        if !answer.status.is_success() {
            permit.engine_failed();
            let status = answer.status;
            let body = collect(answer).await.unwrap_or_default();
            return Err((engine_failure(status, &body), record));
        }
        if !streams_upstream || !answer.is_stream() {
            return self.whole(answer, permit, record).await;
        }
        let mut response = self.head(&permit, &answer);
        let strips_usage = ask.stream && !ask.wants_usage;
        let manner = Manner {
            strips_usage,
            idle: self.shared.limits.stream_idle_timeout,
        };
        let relay = Relay::open(answer, permit, record, place, manner).await?;
        if !ask.stream {
            return Ok(match relay.assemble().await {
                Ok(whole) => response.content_type("application/json").body(whole),
                Err(failure) => failure.response(),
            });
        }
        response
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            // nginx would collect the stream otherwise.
            .insert_header(("x-accel-buffering", "no"))
            .content_type("text/event-stream; charset=utf-8");
        Ok(response.streaming(relay.into_stream()))
    }

    async fn read_body(&self, mut payload: web::Payload) -> Result<Bytes, Failure> {
        require_json(self.request)?;
        let limit = self.shared.limits.max_body;
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = payload.next().await {
                let chunk = chunk.map_err(|_| BadRequest::new("the request body broke off"))?;
                if body.len() + chunk.len() > limit {
                    return Err(Failure::TooLarge { limit });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        let deadline = self.shared.limits.body_timeout;
        tokio::time::timeout(deadline, read)
            .await
            .unwrap_or(Err(Failure::SlowBody))
    }

    fn size(&self, ask: &Ask<'_>) -> RequestSize {
        match self.task {
            Task::Generate => ask.size,
            // Nothing is generated.
            Task::Compute | Task::Tokenize => RequestSize {
                max_tokens: Some(0),
                ..ask.size
            },
        }
    }

    async fn permit(&self, tenant: TenantId, ask: &Ask<'_>) -> Result<Permit, Failure> {
        let terms = read_terms(self.request.headers(), &ask.members, Instant::now())?;
        let (ticket, answer) = Ticket::new(tenant, ask.model.clone(), self.size(ask), terms);
        self.shared.router.do_send(Admit(ticket));
        match answer.await {
            Ok(answer) => Ok(answer?),
            // The ticket was dropped unanswered: its actor is gone.
            Err(_) => Err(kvwarden_actors::Refusal::Draining.into()),
        }
    }

    /// Sets the fields that are ours. Tells whether the engine is asked for a stream.
    fn adapt(&self, ask: &mut Ask<'_>, tenant: &TenantId, permit: &Permit) -> bool {
        let engine = permit.endpoint.kind;
        ask.members.set("model", &permit.endpoint.served_name);
        let salt = ask.drop_ours();
        if self.task == Task::Tokenize {
            tokenize::adapt(&mut ask.members, engine);
        }
        if self.task != Task::Generate {
            return false;
        }
        if engine.orders_by_priority() {
            ask.members.set("priority", &permit.tag());
        }
        if engine.salts_prefix_cache() {
            let salt = self.shared.salts.of(tenant, salt.as_deref());
            ask.members.set("cache_salt", &salt);
        }
        // A stream tells when the prefill is over and how many tokens came, which is what the fair
        // queue goes by, and every engine aborts it when the client hangs up.
        if ask.stream || !ask.has_tools() || !engine.aborts_unstreamed() {
            ask.set_streaming();
            return true;
        }
        // vLLM refuses stream_options without a stream.
        ask.members.remove("stream_options");
        false
    }

    async fn whole(
        &self,
        answer: Answer,
        mut permit: Permit,
        mut record: Record,
    ) -> Step<HttpResponse> {
        let mut response = self.head(&permit, &answer);
        let content_type = answer.content_type.clone();
        let Some(mut body) = collect(answer).await else {
            permit.engine_failed();
            let failure = Failure::Unreachable("the answer broke off".to_owned());
            return Err((failure, record));
        };
        if sse::is_aborted(&body) {
            permit.engine_failed();
            let failure = Failure::Unreachable("the engine gave the request up".to_owned());
            return Err((failure, record));
        }
        if self.task == Task::Generate {
            record.first_token();
        }
        permit.first_token();
        let usage = sse::usage_of(&body);
        if let Some(usage) = usage {
            permit.report(usage);
        }
        record.done(usage);
        if self.task == Task::Tokenize {
            body = tokenize::answer(body, permit.endpoint.kind);
        }
        let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
        Ok(response.content_type(content_type).body(body))
    }

    fn head(&self, permit: &Permit, answer: &Answer) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(answer.status);
        refusal::rate_limit_headers(&mut response, &permit.rate_limits());
        if answer.is_simulated || permit.endpoint.kind == EngineKind::Sim {
            response.insert_header(("x-kvwarden-simulated", "true"));
        }
        response
    }
}

/// A browser page of another site can send anything but this content type without asking first,
/// so requiring it keeps such pages out. Compressed bodies are not unpacked.
pub(super) fn require_json(request: &HttpRequest) -> Result<(), Failure> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let media = header(header::CONTENT_TYPE).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim();
    let is_json = media.eq_ignore_ascii_case("application/json");
    let is_plain = header(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    if is_json && is_plain {
        Ok(())
    } else {
        Err(Failure::NotJson)
    }
}

async fn collect(answer: Answer) -> Option<Bytes> {
    let mut body = answer.body;
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.ok()?;
        if whole.len() + chunk.len() > MAX_ANSWER {
            return None;
        }
        whole.extend_from_slice(&chunk);
    }
    Some(whole.freeze())
}

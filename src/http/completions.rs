//! The way of one request: tenant, body, permit, as many attempts as it takes, answer.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, body::SizedStream, http::header, web};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kvwarden_actors::{Answer, Permit, Refusal, Ticket, protocol::Admit};
use kvwarden_policy::{TenantId, cost::RequestSize};
use tokio::{sync::oneshot, time::Instant};

use super::{
    Place, Shared,
    attempt::{Attempt, Miss, Reached},
    loading::{self, Streamed},
    record::Record,
    refusal::Failure,
    request::{body::Body, envelope::Ask, terms::read_terms},
    request_id,
    upstream::Engines,
};

/// How often a request goes back into the queue because its engine went away before the first
/// token. A request that kills its engine must not do so for ever.
const MAX_RETRIES: u32 = 2;

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
    let tenant = match shared.view().identity.tenant(&request) {
        Ok(tenant) => tenant,
        Err(failure) => {
            Record::of_stranger(shared).failed(&failure);
            return failure.response();
        }
    };
    let record = Record::new(shared.clone(), tenant.as_str());
    let streamed = Streamed::default();
    let exchange = Exchange {
        task,
        path,
        request,
        shared: shared.clone(),
        engines: engines.get_ref().clone(),
        streamed: streamed.clone(),
    };
    let coming = Box::pin(exchange.answer(tenant, payload, record));
    loading::or_comments(coming, &streamed, &shared).await
}

/// One request and what it needs on its way.
struct Exchange {
    task: Task,
    path: &'static str,
    request: HttpRequest,
    shared: Arc<Shared>,
    engines: Engines,
    streamed: Streamed,
}

/// A step's outcome; a failure carries the record, which counts it.
type Step<T> = Result<T, (Failure, Record)>;

impl Exchange {
    async fn answer(self, tenant: TenantId, payload: web::Payload, record: Record) -> HttpResponse {
        let (failure, record) = match self.run(tenant, payload, record).await {
            Ok(response) => return response,
            Err(failed) => failed,
        };
        if let Failure::Unreachable(why) = &failure {
            let request_id = request_id(&self.request);
            tracing::warn!(request_id, why, "no answer from the engine");
        }
        record.failed(&failure);
        failure.response()
    }

    async fn run(
        &self,
        tenant: TenantId,
        payload: web::Payload,
        mut record: Record,
    ) -> Step<HttpResponse> {
        let Some(place) = Place::take(&self.shared) else {
            return Err((Failure::NodeFull, record));
        };
        let view = self.shared.view();
        let bounds = (&view.bodies, &view.limits);
        let body = match Body::receive(&self.request, payload, bounds, record.tenant()).await {
            Ok(body) => body,
            Err(failure) => return Err((failure, record)),
        };
        let mut ask = match Ask::parse(&body.bytes) {
            Ok(ask) => ask,
            Err(bad) => return Err((bad.into(), record)),
        };
        record.wants(&ask.model);
        if ask.stream {
            // Set once: this is the only place.
            let _ = self.streamed.set(ask.model.clone());
        }
        let permit = match self.permit(tenant.clone(), &ask).await {
            Ok(permit) => permit,
            Err(failure) => return Err((failure, record)),
        };
        record.admitted(&permit);
        let salt = ask.drop_ours();
        let attempt = Attempt {
            task: self.task,
            path: self.path,
            request_id: request_id(&self.request),
            shared: &self.shared,
            engines: &self.engines,
            tenant: &tenant,
            salt,
        };
        let reached = answered(&attempt, &mut ask, permit, record).await?;
        let is_streamed = ask.stream;
        // A long answer does not hold its question.
        drop(body);
        Ok(self.respond(reached, is_streamed, place).await)
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
        turn(answer).await
    }

    async fn respond(&self, reached: Reached, is_streamed: bool, place: Place) -> HttpResponse {
        match reached {
            Reached::Stream(mut head, relay) if is_streamed => {
                let outlet = relay.into_body(self.shared.view().limits.client_stall_timeout);
                head.insert_header((header::CACHE_CONTROL, "no-cache"))
                    // nginx would collect the stream otherwise.
                    .insert_header(("x-accel-buffering", "no"))
                    .content_type("text/event-stream; charset=utf-8")
                    .streaming(with(place, outlet.into_stream()))
            }
            Reached::Stream(mut head, relay) => match relay.assemble().await {
                Ok(answer) => head
                    .content_type("application/json")
                    .body(whole(answer, place)),
                Err(failure) => failure.response(),
            },
            Reached::Whole(mut head, answer) => head.body(whole(answer, place)),
        }
    }
}

/// Tries until an engine gave a first token, or said why it does not.
async fn answered(
    attempt: &Attempt<'_>,
    ask: &mut Ask<'_>,
    mut permit: Permit,
    mut record: Record,
) -> Step<Reached> {
    let mut retries = 0;
    loop {
        let (why, mut lost) = match attempt.run(ask, permit, record).await {
            Ok(reached) => return Ok(reached),
            Err(Miss::Failed(failure, record)) => return Err((failure, record)),
            Err(Miss::Lost {
                why,
                permit,
                record: same,
            }) => {
                record = same;
                (why, permit)
            }
        };
        if retries == MAX_RETRIES {
            lost.engine_failed();
            return Err((Failure::Unreachable(why), record));
        }
        retries += 1;
        tracing::info!(endpoint = ?lost.endpoint, why, retries, "lost before the first token; once more");
        record.retried();
        permit = match turn(lost.requeue()).await {
            Ok(permit) => permit,
            Err(failure) => return Err((failure, record)),
        };
    }
}

/// Waits for a ticket's turn.
async fn turn(answer: oneshot::Receiver<Answer>) -> Result<Permit, Failure> {
    match answer.await {
        Ok(answer) => Ok(answer?),
        // The ticket was dropped unanswered: its actor is gone.
        Err(_) => Err(Refusal::Draining.into()),
    }
}

/// A body that holds its request's place until the client has taken it.
fn with<S: stream::Stream>(place: Place, body: S) -> impl stream::Stream<Item = S::Item> {
    body.inspect(move |_| {
        let _held = &place;
    })
}

fn whole(
    answer: Bytes,
    place: Place,
) -> SizedStream<impl stream::Stream<Item = std::io::Result<Bytes>>> {
    let length = answer.len() as u64;
    SizedStream::new(length, with(place, stream::iter([Ok(answer)])))
}

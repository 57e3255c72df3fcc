//! The way of one request: tenant, body, permit, as many attempts as it takes, answer.
//!
//! An [`Exchange`] owns what is counted about its request and lends it to each attempt; only a stream
//! takes it along, since it outlives the exchange.

use std::{convert::Infallible, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{HeaderName, HeaderValue},
    web,
};
use futures_util::stream;
use kvwarden_actors::{Admission, Permit, Refusal, Ticket, protocol::Admit};
use kvwarden_policy::{TenantId, cost::RequestSize};
use tokio::{sync::oneshot, time::Instant};

use super::{
    answer,
    attempt::{Attempt, AttemptError, Opened, Task},
    format::split,
    limits::MAX_RETRIES,
    record::{Account, Record},
    refusal::Failure,
    request::{body::Body, envelope::ParsedRequest, hints::read_hints, request_id},
    shared::{InFlightSlot, Shared},
    upstream::Engines,
    waiting::{self, Waiting},
};

/// Handles a `POST` that an engine answers.
pub(super) async fn forward(
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
    let waiting = Waiting::default();
    let exchange = Exchange {
        task,
        path,
        record: Record::new(shared.clone(), tenant.as_str()),
        tenant,
        request,
        shared: shared.clone(),
        engines: engines.get_ref().clone(),
        waiting: waiting.clone(),
    };
    let coming = Box::pin(exchange.answer(payload));
    waiting::or_comments(coming, waiting, shared).await
}

const IGNORED_FIELDS: HeaderName = HeaderName::from_static("x-kvwarden-ignored-fields");

/// One request and what it needs on its way.
struct Exchange {
    task: Task,
    path: &'static str,
    tenant: TenantId,
    request: HttpRequest,
    shared: Arc<Shared>,
    engines: Engines,
    waiting: Waiting,
    record: Record,
}

/// A request that an engine answers.
struct Begun {
    slot: InFlightSlot,
    permit: Box<Permit>,
    opened: Opened,
    client: Client,
    /// The fields of the request that went no further.
    ignored: Option<HeaderValue>,
}

/// What the client wants.
#[derive(Clone, Copy, Debug)]
struct Client {
    /// A stream.
    is_streamed: bool,
    /// The stream's usage.
    wants_usage: bool,
}

// === impl Exchange ===

impl Exchange {
    async fn answer(mut self, payload: web::Payload) -> HttpResponse {
        let failure = match self.begin(payload).await {
            Ok(begun) => {
                let ignored = begun.ignored.clone();
                let mut response = self.respond(begun).await;
                if let Some(names) = ignored {
                    response.headers_mut().insert(IGNORED_FIELDS, names);
                }
                return response;
            }
            Err(failure) => failure,
        };
        if let Failure::Unreachable(why) | Failure::Unusable(why) = &failure {
            let request_id = request_id(&self.request);
            tracing::warn!(request_id, why, "no answer from the engine");
        }
        if let Failure::KeyRefused(status) = failure {
            self.shared.view().key_refused(self.record.model(), status);
        }
        self.record.failed(&failure);
        failure.response()
    }

    /// Up to the first token. What the request itself takes in memory is given back then: a long
    /// answer does not hold its question.
    async fn begin(&mut self, payload: web::Payload) -> Result<Begun, Failure> {
        let slot = InFlightSlot::take(&self.shared).ok_or(Failure::NodeFull)?;
        let view = self.shared.view();
        let bounds = (&view.bodies, &view.limits);
        let body = Body::receive(&self.request, payload, bounds, self.record.tenant()).await?;
        let mut parsed = ParsedRequest::parse(&body.bytes)?;
        self.record.wants(&parsed.model);
        if parsed.stream {
            self.waiting.wants_stream(&self.tenant, &parsed.model);
        }
        let permit = self.permit(&parsed).await?;
        self.record.admitted(&permit);
        let (opened, permit) = self.attempts(&mut parsed, permit).await?;
        Ok(Begun {
            slot,
            permit,
            opened,
            client: Client {
                is_streamed: parsed.stream,
                wants_usage: parsed.wants_usage,
            },
            ignored: parsed.ignored_fields(),
        })
    }

    fn size(&self, parsed: &ParsedRequest<'_>) -> RequestSize {
        match self.task {
            Task::Generate => parsed.size,
            // Nothing is generated.
            Task::Compute | Task::Tokenize => RequestSize {
                max_tokens: Some(0),
                ..parsed.size
            },
        }
    }

    async fn permit(&self, parsed: &ParsedRequest<'_>) -> Result<Box<Permit>, Failure> {
        let headers = self.request.headers();
        let hints = read_hints(headers, &parsed.members, parsed.stream, Instant::now())?;
        let (tenant, model) = (self.tenant.clone(), parsed.model.clone());
        let (ticket, admission) = Ticket::new(tenant, model, self.size(parsed), hints);
        self.shared.router.do_send(Admit(ticket));
        self.turn(admission).await
    }

    /// Tries until an engine gave a first token, or said why it does not.
    async fn attempts(
        &mut self,
        parsed: &mut ParsedRequest<'_>,
        mut permit: Box<Permit>,
    ) -> Result<(Opened, Box<Permit>), Failure> {
        let attempt = Attempt {
            task: self.task,
            path: self.path,
            request_id: request_id(&self.request),
            shared: &self.shared,
            engines: &self.engines,
            tenant: &self.tenant,
            salt: parsed.take_salt(),
            waiting: &self.waiting,
        };
        let mut retries = 0;
        loop {
            let mut account = Account {
                permit: &mut permit,
                record: &mut self.record,
            };
            let why = match attempt.run(parsed, &mut account).await {
                Ok(opened) => return Ok((opened, permit)),
                Err(AttemptError::Failed(failure)) => return Err(failure),
                Err(AttemptError::Lost(why)) => why,
            };
            if retries == MAX_RETRIES {
                permit.engine_failed();
                return Err(Failure::Unreachable(why));
            }
            retries += 1;
            tracing::info!(endpoint = ?permit.endpoint, why, retries, "lost before the first token; once more");
            self.record.retried();
            permit = self.turn(permit.requeue()).await?;
        }
    }

    async fn respond(mut self, begun: Begun) -> HttpResponse {
        let Begun {
            slot,
            mut permit,
            opened,
            client,
            ..
        } = begun;
        match opened {
            Opened::Stream(head, relay) if client.is_streamed => {
                let patience = self.shared.view().limits.client_stall_timeout;
                let events = relay.into_body(permit, self.record, patience);
                answer::events(head, slot.held_by(events))
            }
            Opened::Stream(head, relay) => {
                let (permit, record) = (&mut permit, &mut self.record);
                match relay.assemble(&mut Account { permit, record }).await {
                    Ok(whole) => answer::whole(head, whole, slot),
                    Err(failure) => failure.response(),
                }
            }
            Opened::Whole(head, whole) if client.is_streamed => {
                match split::as_events(&whole, client.wants_usage) {
                    Some(events) => {
                        let events = stream::iter(events.into_iter().map(Ok::<_, Infallible>));
                        answer::events(head, slot.held_by(events))
                    }
                    None => Failure::Unusable(NO_EVENTS.to_owned()).response(),
                }
            }
            Opened::Whole(head, whole) => answer::whole(head, whole, slot),
        }
    }

    /// Waits for a ticket's turn. The permit is large, and every future that it passes through would have
    /// room for it.
    async fn turn(&self, admission: oneshot::Receiver<Admission>) -> Result<Box<Permit>, Failure> {
        self.waiting.queued();
        match admission.await {
            Ok(admission) => Ok(Box::new(admission?)),
            // The ticket was dropped unanswered: its actor is gone.
            Err(_) => Err(Refusal::Draining.into()),
        }
    }
}

const NO_EVENTS: &str = "it is no stream, and nothing that could be made one";

//! A request on its way: first a [`Ticket`] that waits, then a [`Permit`] that runs.
//!
//! Whoever drops one gives back what it holds, so a client that hangs up needs no code anywhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::Addr;
use kvwarden_policy::{
    ModelId, TenantId,
    bucket::Level,
    cost::{RequestSize, Usage},
    failure::FailureClass,
    quota::Day,
    scheduling::{Bound, Group, Key, Outcome, Share, TenantBounds},
    tier::Tier,
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    Model, Tenant,
    engine::Endpoint,
    protocol::{FirstToken, Settle, SlotFreed},
    router::SHARED_OTHERS,
};

/// Why a request was turned away. Its HTTP form is known to the HTTP side alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody serves a model of that name.
    #[error("model `{0}` does not exist")]
    UnknownModel(String),
    /// The tenant's requests per minute are used up.
    #[error("rate limit of {} requests per minute reached", limit.limit)]
    RequestRate {
        /// The bucket as it stands.
        limit: Level,
        /// When one more request fits.
        retry_after: Duration,
    },
    /// The tenant's tokens per minute are used up.
    #[error("rate limit of {} tokens per minute reached: this request may use {wanted}", limit.limit)]
    TokenRate {
        /// Tokens the request may use.
        wanted: u64,
        /// The bucket as it stands.
        limit: Level,
        /// When the request fits.
        retry_after: Duration,
    },
    /// The tenant's tokens of the day are used up.
    #[error(
        "limit of {limit} tokens per day reached: this request may use {wanted}; the day ends at midnight UTC"
    )]
    DailyTokens {
        /// Tokens the request may use.
        wanted: u64,
        /// Tokens of a day.
        limit: u64,
        /// When the next day begins.
        retry_after: Duration,
    },
    /// The request alone is more than the tenant may use in a minute, or a day.
    #[error(
        "this request may use {wanted} tokens, more than the tenant's {limit} per {per}; lower max_tokens"
    )]
    LargerThanBudget {
        /// Tokens the request may use.
        wanted: u64,
        /// Tokens the tenant may use at once.
        limit: u64,
        /// Of how long a time they are the budget.
        per: &'static str,
    },
    /// As many requests of the tenant wait or run as it may have.
    #[error("{limit} requests of this tenant are already queued or running")]
    Concurrency {
        /// How many it may have.
        limit: u32,
    },
    /// As many requests of the tenant wait for this model as may.
    #[error("this tenant's requests fill its part of the queue: {bound}")]
    TenantQueueFull {
        /// Which bound.
        bound: Bound,
    },
    /// The model's queue is full.
    #[error("{waiting} requests already wait for this model")]
    QueueFull {
        /// How many wait.
        waiting: usize,
    },
    /// Its turn did not come in time.
    #[error("the request waited {} s for its turn", waited.as_secs())]
    QueueTimeout {
        /// How long it waited.
        waited: Duration,
    },
    /// Its client will have given up before its turn comes.
    #[error(
        "more of this tenant's requests wait for this model than will be served before the request's deadline"
    )]
    DeadlineOutOfReach,
    /// Its client gave up before its turn came.
    #[error("the request's deadline passed while it waited for its turn")]
    DeadlinePassed,
    /// The model's engine can't be brought to life.
    #[error(
        "the engine of this model is broken ({class}); `kvwarden status` shows its operator why"
    )]
    Broken {
        /// What kind of failure. No more than that: an engine's last words may hold prompts.
        class: FailureClass,
        /// When one more start will be tried, if one will.
        retry_after: Option<Duration>,
    },
    /// The node is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// Where the tenant stands with its limits; goes into `x-ratelimit-*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests per minute.
    pub requests: Option<Level>,
    /// Tokens per minute.
    pub tokens: Option<Level>,
}

/// What a client asks for besides its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHints {
    /// Which of its tenant's sessions this is part of; they share their tenant's part equally.
    pub session: Option<Arc<str>>,
    /// How soon, as far as its tenant may choose.
    pub tier: Tier,
    /// When its client gives up.
    pub deadline: Option<Instant>,
    /// What its prompt begins with, as a number: requests with the same one share a prefix cache.
    pub prefix: Option<u64>,
    /// Its client wants a stream.
    pub is_streamed: bool,
}

/// What a ticket becomes.
pub type Admission = Result<Permit, Refusal>;

/// A request's place in line.
pub struct Ticket {
    /// Who asks.
    pub tenant: TenantId,
    /// The model, by any of its names.
    pub model: String,
    /// How large it is.
    pub size: RequestSize,
    /// What its client asks for besides.
    pub hints: RequestHints,
    /// What its tenant is entitled to; the tenant sets it.
    pub share: Share,
    /// Until when it wants to wait; its model sets it, once.
    pub(crate) expires: Option<std::time::Instant>,
    reservation: Option<Reservation>,
    /// None while a permit carries the ticket.
    reply: Option<oneshot::Sender<Admission>>,
}

impl Ticket {
    /// A ticket, and where its answer arrives.
    #[must_use]
    pub fn new(
        tenant: TenantId,
        model: String,
        size: RequestSize,
        hints: RequestHints,
    ) -> (Self, oneshot::Receiver<Admission>) {
        let (reply, answer) = oneshot::channel();
        (
            Self {
                tenant,
                model,
                size,
                hints,
                // Until its tenant has said.
                share: Share {
                    class: 0,
                    group: Group {
                        name: Arc::clone(&SHARED_OTHERS),
                        weight: 1,
                    },
                    weight: 1,
                    queued: TenantBounds::default(),
                },
                expires: None,
                reservation: None,
                reply: Some(reply),
            },
            answer,
        )
    }

    /// Turns the request away.
    pub fn refuse(mut self, why: Refusal) {
        answer(self.reply.take(), Err(why));
    }

    /// Nobody waits for the answer any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(crate) fn hold(&mut self, reservation: Reservation) {
        self.reservation = Some(reservation);
    }

    pub(crate) fn admit(mut self, endpoint: Arc<Endpoint>, model: &Addr<Model>, turn: Turn) {
        let reply = self.reply.take();
        let permit = Permit {
            endpoint,
            turn,
            model: model.clone(),
            ticket: Some(self),
            is_retry: false,
            has_first_token: false,
            has_failed: false,
            is_unreachable: false,
            usage: None,
        };
        answer(reply, Ok(permit));
    }
}

/// The client may have hung up at this moment. Then nobody reads the answer, and a permit in it is
/// dropped here.
fn answer(reply: Option<oneshot::Sender<Admission>>, answer: Admission) {
    if let Some(reply) = reply {
        let _ = reply.send(answer);
    }
}

/// What is held against a tenant's limits.
pub struct Reservation {
    pub(crate) tenant: Addr<Tenant>,
    pub(crate) held: Held,
    pub(crate) limits: RateLimits,
    pub(crate) spent: Option<Spent>,
}

/// What a request may use, and of which day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// How large it is.
    pub size: RequestSize,
    /// Tokens it may use.
    pub tokens: u64,
    /// The day it came.
    pub day: Day,
}

/// What a request that reached an engine used.
#[derive(Clone, Debug)]
pub struct Spent {
    /// Of which model.
    pub model: ModelId,
    /// How much.
    pub usage: Usage,
    /// The engine counted it; otherwise it is as far as can be told of an answer that was cut.
    pub is_exact: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tenant.do_send(Settle {
            held: self.held,
            spent: self.spent.take(),
        });
    }
}

/// The right to use one of an engine's places. The HTTP task streams engine to client itself and
/// drops this at the end, whatever the end was.
pub struct Permit {
    /// Where the engine is.
    pub endpoint: Arc<Endpoint>,
    turn: Turn,
    model: Addr<Model>,
    /// Taken out when the permit ends.
    ticket: Option<Ticket>,
    is_retry: bool,
    has_first_token: bool,
    has_failed: bool,
    is_unreachable: bool,
    usage: Option<Usage>,
}

/// A request's turn, as its model counts it.
pub(crate) struct Turn {
    pub(crate) model: ModelId,
    pub(crate) key: Key,
    pub(crate) waited: Duration,
    pub(crate) tag: i64,
    /// Tokens of its prompt, by what the model has learned of its tokenizer.
    pub(crate) prompt_tokens: u64,
    /// Its answer comes whole.
    pub(crate) is_hidden: bool,
    pub(crate) tokens: Arc<Tokens>,
}

/// Tokens of a request that runs, over all choices. Permit and model tell each other, the model at its
/// own tick, so that no token costs a message.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Streamed so far.
    pub(crate) streamed: AtomicU64,
    /// Generated so far by the model's estimate, where nothing is streamed.
    pub(crate) estimated: AtomicU64,
}

impl Tokens {
    fn generated(&self) -> u64 {
        let estimated = self.estimated.load(Ordering::Relaxed);
        self.streamed.load(Ordering::Relaxed).max(estimated)
    }
}

impl Permit {
    /// How long the request waited for its turn.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.turn.waited
    }

    /// Where it belongs in the engine's own queue, lower first.
    #[must_use]
    pub fn tag(&self) -> i64 {
        self.turn.tag
    }

    /// Where the tenant stands with its limits.
    #[must_use]
    pub fn rate_limits(&self) -> RateLimits {
        let held = self.ticket.as_ref().and_then(|it| it.reservation.as_ref());
        held.map_or_else(RateLimits::default, |held| held.limits)
    }

    /// The engine answered: its prefill of this request is over. Only the first call counts. An answer
    /// that comes whole is over as well, and the model hears that anyway.
    pub fn first_token(&mut self) {
        if !std::mem::replace(&mut self.has_first_token, true) && !self.turn.is_hidden {
            self.model.do_send(FirstToken(self.turn.key));
        }
    }

    /// The engine sent `tokens` more. A chunk may hold several; counting it as one is the lower
    /// bound that is used when the answer is cut before its usage arrives.
    pub fn streamed(&mut self, tokens: u64) {
        self.turn
            .tokens
            .streamed
            .fetch_add(tokens, Ordering::Relaxed);
    }

    /// Puts the request back to the head of its tenant's line, as if it had never run: its engine
    /// went away before the first token. What it waits for is answered as before.
    #[must_use]
    pub fn requeue(mut self) -> oneshot::Receiver<Admission> {
        let (reply, answer) = oneshot::channel();
        self.has_failed = true;
        self.is_retry = true;
        if let Some(ticket) = &mut self.ticket {
            ticket.reply = Some(reply);
        }
        answer
    }

    /// The engine could not be reached; the next request should not go there at once.
    pub fn engine_unreachable(&mut self) {
        self.has_failed = true;
        self.is_unreachable = true;
    }

    /// The engine failed. If it gave no token, the tenant is charged nothing.
    pub fn engine_failed(&mut self) {
        self.has_failed = true;
    }

    /// What the engine says the request used; the last call counts.
    pub fn report(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// For an answer that was cut: its prompt, and what came or was probably generated. Hanging up before the first token is no
    /// way around a token limit; an engine that failed before it costs nothing.
    fn estimated_usage(&self) -> Usage {
        if self.has_failed && !self.has_first_token {
            return Usage::default();
        }
        Usage {
            prompt_tokens: self.turn.prompt_tokens,
            cached_tokens: 0,
            completion_tokens: self.turn.tokens.generated(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(mut ticket) = self.ticket.take() else {
            return;
        };
        let size = ticket.size;
        let estimated = self.estimated_usage();
        if let Some(held) = &mut ticket.reservation
            && !self.is_retry
        {
            held.spent = Some(Spent {
                model: self.turn.model.clone(),
                usage: self.usage.unwrap_or(estimated),
                is_exact: self.usage.is_some(),
            });
        }
        let outcome = match self.usage {
            Some(usage) => Outcome::Completed(usage),
            None if self.has_failed && !self.has_first_token => Outcome::FailedBeforeFirstToken,
            None => Outcome::Cancelled {
                generated: estimated.completion_tokens,
            },
        };
        self.model.do_send(SlotFreed {
            key: self.turn.key,
            size,
            outcome,
            is_unreachable: self.is_unreachable,
            // Otherwise dropped here, which gives back what it holds.
            retry: self.is_retry.then_some(ticket),
        });
    }
}

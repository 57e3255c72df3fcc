//! One tenant: its buckets, its concurrency, what it used.
//!
//! It says yes or no at once and never makes a request wait. What it grants travels with the
//! ticket as a [`Reservation`] and comes back when ticket or permit is dropped.

use std::time::Duration;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{
    TenantId,
    bucket::{TokenBucket, Verdict},
    cost::{PromptEstimator, Usage},
    scheduling::Group,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    PULSE, Refusal, Reservation, Router, Ticket, Vitals,
    protocol::{Pulse, Reserve, Reserved, Retire, Settle, Snapshot},
    router::OTHERS,
    ticket::{RateLimits, Share},
};

/// An unnamed tenant that nobody used for this long is forgotten. Longer than a minute, so that
/// its buckets are full again and nothing is gained by coming back as a stranger.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What a tenant may use. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lower goes first.
    pub priority: i32,
    /// Its part beside other tenants' parts.
    pub weight: u32,
    /// Requests per minute, and at once after a pause.
    pub requests: Option<(u32, u32)>,
    /// Tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests queued and running at once.
    pub concurrency: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            priority: 0,
            weight: 1,
            requests: None,
            tokens_per_minute: None,
            concurrency: None,
        }
    }
}

/// One tenant.
pub struct Tenant {
    id: TenantId,
    is_named: bool,
    limits: Limits,
    requests: Option<TokenBucket>,
    tokens: Option<TokenBucket>,
    estimator: PromptEstimator,
    in_flight: u32,
    admitted: u64,
    refused: u64,
    used: Usage,
    last_seen: Instant,
    router: WeakAddr<Router>,
    vitals: Vitals,
}

/// A tenant's observable state.
#[derive(Clone, Debug, Serialize)]
pub struct TenantState {
    /// Its name.
    pub id: TenantId,
    /// The configuration names it.
    pub is_named: bool,
    /// Requests queued and running.
    pub in_flight: u32,
    /// Requests let in.
    pub admitted: u64,
    /// Requests turned away by its own limits.
    pub refused: u64,
    /// What its finished requests used.
    pub used: Usage,
    /// How busy it is.
    pub vitals: Vitals,
}

// === impl Tenant ===

impl Tenant {
    /// A tenant that the configuration names.
    #[must_use]
    pub fn named(id: TenantId, limits: Limits, router: WeakAddr<Router>) -> Self {
        let now = Instant::now();
        let bucket = |(rate, burst): (u64, u64)| TokenBucket::full(rate, burst, now.into_std());
        Self {
            id,
            is_named: true,
            requests: limits
                .requests
                .map(|(rate, burst)| bucket((rate.into(), burst.into()))),
            tokens: limits.tokens_per_minute.map(|rate| bucket((rate, rate))),
            limits,
            estimator: PromptEstimator::default(),
            in_flight: 0,
            admitted: 0,
            refused: 0,
            used: Usage::default(),
            last_seen: now,
            router,
            vitals: Vitals::default(),
        }
    }

    /// A tenant that only requests name; it is forgotten when they stop.
    #[must_use]
    pub fn unnamed(id: TenantId, limits: Limits, router: WeakAddr<Router>) -> Self {
        Self {
            is_named: false,
            ..Self::named(id, limits, router)
        }
    }

    /// Holds `wanted` tokens and one request against the limits, or says which of them is reached.
    fn check(&mut self, wanted: u64, now: Instant) -> Result<(), Refusal> {
        let now = now.into_std();
        if let Some(limit) = self.limits.concurrency
            && self.in_flight >= limit
        {
            return Err(Refusal::Concurrency { limit });
        }
        if let Some(bucket) = &mut self.requests
            && let Verdict::Denied { retry_after } = bucket.take(1, now)
        {
            return Err(Refusal::RequestRate {
                limit: bucket.level(now),
                retry_after,
            });
        }
        let Some(bucket) = &mut self.tokens else {
            return Ok(());
        };
        let verdict = bucket.take(wanted, now);
        let limit = bucket.level(now);
        let why = match verdict {
            Verdict::Granted => return Ok(()),
            Verdict::Denied { retry_after } => Refusal::TokenRate {
                wanted,
                limit,
                retry_after,
            },
            Verdict::TooLarge => Refusal::LargerThanBudget {
                wanted,
                limit: limit.limit,
            },
        };
        if let Some(requests) = &mut self.requests {
            requests.refund(1);
        }
        Err(why)
    }

    fn rate_limits(&self, now: Instant) -> RateLimits {
        RateLimits {
            requests: self
                .requests
                .as_ref()
                .map(|bucket| bucket.level(now.into_std())),
            tokens: self
                .tokens
                .as_ref()
                .map(|bucket| bucket.level(now.into_std())),
        }
    }

    /// A tenant that the configuration names is entitled by itself. All others together are entitled
    /// like one, so that made-up names add nothing to what their author gets.
    fn share(&self) -> Share {
        let name = if self.is_named {
            self.id.as_str()
        } else {
            OTHERS
        };
        let group = Group {
            name: name.into(),
            weight: self.limits.weight,
        };
        Share {
            class: self.limits.priority,
            group,
        }
    }

    fn admit(&mut self, mut ticket: Ticket, tokens: u64, ctx: &Context<Self>) {
        let Some(router) = self.router.upgrade() else {
            return ticket.refuse(Refusal::Draining);
        };
        self.in_flight += 1;
        self.admitted += 1;
        ticket.share = self.share();
        ticket.hold(Reservation {
            tenant: ctx.address(),
            tokens,
            limits: self.rate_limits(Instant::now()),
            used: None,
        });
        router.do_send(Reserved(ticket));
    }
}

impl Actor for Tenant {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(PULSE, |_, ctx| ctx.address().do_send(Pulse(Instant::now())));
    }
}

impl Handler<Reserve> for Tenant {
    type Result = ();

    fn handle(&mut self, Reserve(ticket): Reserve, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let now = Instant::now();
        self.last_seen = now;
        let wanted = self.estimator.reservation(&ticket.size);
        match self.check(wanted, now) {
            Ok(()) => self.admit(ticket, wanted, ctx),
            Err(why) => {
                self.refused += 1;
                ticket.refuse(why);
            }
        }
    }
}

impl Handler<Settle> for Tenant {
    type Result = ();

    fn handle(&mut self, Settle { reserved, used }: Settle, _: &mut Context<Self>) {
        self.vitals.handled();
        self.in_flight = self.in_flight.saturating_sub(1);
        let used = used.unwrap_or_default();
        self.used.prompt_tokens += used.prompt_tokens;
        self.used.cached_tokens += used.cached_tokens;
        self.used.completion_tokens += used.completion_tokens;
        if let Some(bucket) = &mut self.tokens {
            bucket.refund(reserved);
            bucket.charge(used.total(), Instant::now().into_std());
        }
    }
}

impl Handler<Pulse> for Tenant {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
        let is_idle = self.in_flight == 0 && self.last_seen.elapsed() >= FORGET_AFTER;
        if !self.is_named
            && is_idle
            && let Some(router) = self.router.upgrade()
        {
            router.do_send(Retire(self.id.clone()));
        }
    }
}

impl Handler<Retire> for Tenant {
    type Result = ();

    fn handle(&mut self, _: Retire, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<Snapshot<TenantState>> for Tenant {
    type Result = MessageResult<Snapshot<TenantState>>;

    fn handle(&mut self, _: Snapshot<TenantState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(TenantState {
            id: self.id.clone(),
            is_named: self.is_named,
            in_flight: self.in_flight,
            admitted: self.admitted,
            refused: self.refused,
            used: self.used,
            vitals: self.vitals,
        })
    }
}

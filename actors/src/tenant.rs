//! One tenant: its buckets, its concurrency, what it used.
//!
//! It says yes or no at once and never makes a request wait. What it grants travels with the
//! ticket as a [`Reservation`] and comes back when ticket or permit is dropped.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, MessageResult, WeakAddr};
use kvwarden_policy::{
    TenantId,
    bucket::{TokenBucket, Verdict},
    cost::{PromptEstimator, Usage},
    quota::{DailyQuota, Day},
    scheduling::{Group, Share, TenantBounds},
    tier::{Tier, Tiers},
};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Held, Ledger, Model, PULSE, Refusal, Reservation, Router, Ticket, Vitals,
    protocol::{Enqueue, Expire, Pulse, Reserve, SetLimits, Settle, Snapshot},
    router::SHARED_OTHERS,
    ticket::RateLimits,
};

/// An unnamed tenant that nobody used for this long, and that owes nothing, is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What a tenant may use. `None` is unlimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lower goes first.
    pub priority: i32,
    /// Its part beside other tenants' parts; of its group, if it has one.
    pub weight: u32,
    /// The tenants it shares one entitlement with; by itself if there is none.
    pub group: Option<Group>,
    /// Which service tiers it may choose.
    pub tiers: Tiers,
    /// Requests per minute, and at once after a pause.
    pub requests: Option<(u32, u32)>,
    /// Tokens per minute.
    pub tokens_per_minute: Option<u64>,
    /// Tokens per UTC day.
    pub tokens_per_day: Option<u64>,
    /// Requests queued and running at once.
    pub concurrency: Option<u32>,
    /// How much may wait for one model.
    pub queued: TenantBounds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            priority: 0,
            weight: 1,
            group: None,
            tiers: Tiers::default(),
            requests: None,
            tokens_per_minute: None,
            tokens_per_day: None,
            concurrency: None,
            queued: TenantBounds::default(),
        }
    }
}

impl Limits {
    /// A tenant that the configuration names is entitled by itself or with its group. All others
    /// together are entitled like one, so that made-up names add nothing to what their author gets.
    fn share(&self, alone: Arc<str>, tier: Tier) -> Share {
        let (group, weight) = match &self.group {
            Some(group) => (group.clone(), self.weight),
            None => {
                let (name, weight) = (alone, self.weight);
                (Group { name, weight }, 1)
            }
        };
        Share {
            class: self.tiers.class(tier, self.priority),
            group,
            weight,
            queued: self.queued,
        }
    }
}

/// What a tenant may use, and by what right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// What it may use.
    pub limits: Limits,
    /// The configuration names it; otherwise it is forgotten when its requests stop.
    pub is_named: bool,
}

impl Params {
    /// What a request of that tenant and tier is entitled to in front of an engine.
    pub(crate) fn share(&self, tenant: &TenantId, tier: Tier) -> Share {
        let alone = if self.is_named {
            tenant.shared()
        } else {
            Arc::clone(&SHARED_OTHERS)
        };
        self.limits.share(alone, tier)
    }
}

/// One tenant.
pub struct Tenant {
    id: TenantId,
    params: Params,
    is_expiring: bool,
    requests: Option<TokenBucket>,
    tokens: Option<TokenBucket>,
    day: Option<DailyQuota>,
    estimator: PromptEstimator,
    in_flight: u32,
    admitted: u64,
    refused: u64,
    used: Usage,
    last_seen: Instant,
    router: WeakAddr<Router>,
    ledger: Arc<dyn Ledger>,
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
    /// A tenant that has used nothing.
    #[must_use]
    pub fn new(
        id: TenantId,
        params: Params,
        router: WeakAddr<Router>,
        ledger: Arc<dyn Ledger>,
    ) -> Self {
        let mut tenant = Self {
            id,
            params,
            is_expiring: false,
            requests: None,
            tokens: None,
            day: None,
            estimator: PromptEstimator::default(),
            in_flight: 0,
            admitted: 0,
            refused: 0,
            used: Usage::default(),
            last_seen: Instant::now(),
            router,
            ledger,
            vitals: Vitals::default(),
        };
        tenant.resize();
        tenant
    }

    /// Buckets of the size that its limits say. One that is there keeps what was used of it.
    fn resize(&mut self) {
        let Limits {
            requests,
            tokens_per_minute,
            tokens_per_day,
            ..
        } = self.params.limits;
        let requests = requests.map(|(rate, burst)| (rate.into(), burst.into()));
        resize(&mut self.requests, requests);
        resize(&mut self.tokens, tokens_per_minute.map(|rate| (rate, rate)));
        let today = Day::of(SystemTime::now());
        let spent = || self.ledger.spent_on(&self.id, today);
        match (&mut self.day, tokens_per_day) {
            (Some(day), Some(tokens)) => day.resize(tokens),
            (day, tokens) => {
                *day = tokens.map(|tokens| DailyQuota::resumed(tokens, today, spent()));
            }
        }
    }

    /// Holds `wanted` tokens and one request against the limits, or says which of them is reached.
    fn check(&mut self, wanted: u64, now: Instant) -> Result<(), Refusal> {
        let now = now.into_std();
        if let Some(limit) = self.params.limits.concurrency
            && self.in_flight >= limit
        {
            return Err(Refusal::Concurrency { limit });
        }
        self.take_request(now)?;
        let tokens = self.take_tokens(wanted, now);
        if tokens.is_err()
            && let Some(bucket) = &mut self.requests
        {
            bucket.refund(1);
        }
        tokens
    }

    fn take_request(&mut self, now: std::time::Instant) -> Result<(), Refusal> {
        if let Some(bucket) = &mut self.requests
            && let Verdict::Denied { retry_after } = bucket.take(1, now)
        {
            let limit = bucket.level(now);
            return Err(Refusal::RequestRate { limit, retry_after });
        }
        Ok(())
    }

    fn take_tokens(&mut self, wanted: u64, now: std::time::Instant) -> Result<(), Refusal> {
        if let Some(bucket) = &mut self.tokens {
            let verdict = bucket.take(wanted, now);
            let limit = bucket.level(now);
            granted(verdict, (wanted, limit.limit, "minute"), |retry_after| {
                Refusal::TokenRate {
                    wanted,
                    limit,
                    retry_after,
                }
            })?;
        }
        let day = self.take_of_day(wanted);
        if day.is_err()
            && let Some(bucket) = &mut self.tokens
        {
            bucket.refund(wanted);
        }
        day
    }

    fn take_of_day(&mut self, wanted: u64) -> Result<(), Refusal> {
        let Some(quota) = &mut self.day else {
            return Ok(());
        };
        let limit = quota.per_day();
        let verdict = quota.take(wanted, SystemTime::now());
        granted(verdict, (wanted, limit, "day"), |retry_after| {
            Refusal::DailyTokens {
                wanted,
                limit,
                retry_after,
            }
        })
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

    /// Its buckets are full and its day is whole: coming back as a stranger would gain nothing.
    fn owes_nothing(&self) -> bool {
        let limits = self.rate_limits(Instant::now());
        let is_whole = |quota: &DailyQuota| quota.is_whole(SystemTime::now());
        self.day.as_ref().is_none_or(is_whole)
            && [limits.requests, limits.tokens]
                .iter()
                .flatten()
                .all(|level| level.reset.is_zero())
    }

    fn admit(&mut self, mut ticket: Ticket, model: &Addr<Model>, tokens: u64, ctx: &Context<Self>) {
        self.in_flight += 1;
        self.admitted += 1;
        ticket.share = self.params.share(&self.id, ticket.hints.tier);
        let size = ticket.size;
        let day = self.day.as_ref().map(DailyQuota::today).unwrap_or_default();
        ticket.hold(Reservation {
            tenant: ctx.address(),
            held: Held { size, tokens, day },
            limits: self.rate_limits(Instant::now()),
            spent: None,
        });
        // Whom it let in, a model that leaves still serves; one that is gone can't.
        if model.connected() {
            model.do_send(Enqueue(ticket));
        } else {
            let name = ticket.model.clone();
            ticket.refuse(Refusal::UnknownModel(name));
        }
    }
}

/// To a rate per minute and a burst.
fn resize(bucket: &mut Option<TokenBucket>, to: Option<(u64, u64)>) {
    let now = Instant::now().into_std();
    match (bucket.as_mut(), to) {
        (Some(bucket), Some((rate, burst))) => bucket.resize(rate, burst, now),
        (_, to) => *bucket = to.map(|(rate, burst)| TokenBucket::full(rate, burst, now)),
    }
}

/// `budget`: tokens wanted, tokens there are at most, and of how long a time.
fn granted(
    verdict: Verdict,
    (wanted, limit, per): (u64, u64, &'static str),
    denied: impl FnOnce(Duration) -> Refusal,
) -> Result<(), Refusal> {
    match verdict {
        Verdict::Granted => Ok(()),
        Verdict::Denied { retry_after } => Err(denied(retry_after)),
        Verdict::TooLarge => Err(Refusal::LargerThanBudget { wanted, limit, per }),
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

    fn handle(&mut self, Reserve { ticket, model }: Reserve, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let now = Instant::now();
        self.last_seen = now;
        let wanted = self.estimator.reservation(&ticket.size);
        match self.check(wanted, now) {
            Ok(()) => self.admit(ticket, &model, wanted, ctx),
            Err(why) => {
                self.refused += 1;
                ticket.refuse(why);
            }
        }
    }
}

impl Handler<Settle> for Tenant {
    type Result = ();

    fn handle(&mut self, Settle { held, spent }: Settle, _: &mut Context<Self>) {
        self.vitals.handled();
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(spent) = &spent {
            if spent.is_exact {
                self.estimator.learn(&held.size, spent.usage.prompt_tokens);
            }
            self.ledger.spent(&self.id, spent);
        }
        let used = spent.map(|spent| spent.usage).unwrap_or_default();
        self.used.prompt_tokens += used.prompt_tokens;
        self.used.cached_tokens += used.cached_tokens;
        self.used.completion_tokens += used.completion_tokens;
        if let Some(bucket) = &mut self.tokens {
            bucket.refund(held.tokens);
            bucket.charge(used.total(), Instant::now().into_std());
        }
        if let Some(quota) = &mut self.day {
            quota.settle(held.day, held.tokens, used.total());
        }
    }
}

impl Handler<Pulse> for Tenant {
    type Result = ();

    fn handle(&mut self, Pulse(sent): Pulse, _: &mut Context<Self>) {
        self.vitals.pulse(sent);
        let is_idle = self.in_flight == 0 && self.last_seen.elapsed() >= FORGET_AFTER;
        if !self.params.is_named
            && !self.is_expiring
            && is_idle
            && self.owes_nothing()
            && let Some(router) = self.router.upgrade()
        {
            self.is_expiring = true;
            router.do_send(Expire(self.id.clone()));
        }
    }
}

impl Handler<SetLimits> for Tenant {
    type Result = ();

    fn handle(&mut self, SetLimits(params): SetLimits, _: &mut Context<Self>) {
        self.vitals.handled();
        self.params = params;
        self.is_expiring = false;
        self.resize();
    }
}

impl Handler<Expire> for Tenant {
    type Result = ();

    fn handle(&mut self, _: Expire, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<Snapshot<TenantState>> for Tenant {
    type Result = MessageResult<Snapshot<TenantState>>;

    fn handle(&mut self, _: Snapshot<TenantState>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(TenantState {
            id: self.id.clone(),
            is_named: self.params.is_named,
            in_flight: self.in_flight,
            admitted: self.admitted,
            refused: self.refused,
            used: self.used,
            vitals: self.vitals,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_counts_inside_the_group_and_a_tenant_without_one_is_its_own() {
        let limits = Limits {
            weight: 3,
            ..Limits::default()
        };
        let share = limits.share("alone".into(), Tier::Standard);
        assert_eq!((&*share.group.name, share.group.weight), ("alone", 3));
        assert_eq!(share.weight, 1);
        let group = Group {
            name: "org".into(),
            weight: 2,
        };
        let limits = Limits {
            group: Some(group.clone()),
            ..limits
        };
        let share = limits.share("alone".into(), Tier::Standard);
        assert_eq!((share.group, share.weight), (group, 3));
    }
}

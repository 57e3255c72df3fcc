//! Who waits for a model and who runs on it: the queue's side of the actor.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use actix::{AsyncContext, Context, Handler};
use kvwarden_policy::{
    lifecycle::{Event, State},
    scheduling::{Arrival, Bound, Full, Outcome},
};
use tokio::time::Instant;

use super::{LOST_PAUSE, Model, UNREACHABLE_PAUSE};
use crate::{
    Refusal, Ticket,
    protocol::{EngineWaiting, Enqueue, FirstToken, SlotFreed},
    ticket::Turn,
};

impl Model {
    /// Hands free places to whoever is next.
    pub(super) fn dispatch(&mut self, ctx: &Context<Self>) {
        let Some(endpoint) = self.endpoint.clone() else {
            return;
        };
        if self
            .paused_until
            .is_some_and(|until| Instant::now() < until)
        {
            return;
        }
        let now = Instant::now().into_std();
        while let Some(next) = self.queue.next(now) {
            if next.item.is_abandoned() {
                self.queue
                    .finish(next.key, &Outcome::FailedBeforeFirstToken, now);
                continue;
            }
            self.record.dispatched += 1;
            let streamed = Arc::<AtomicU64>::default();
            self.running.insert(next.key, streamed.clone());
            let turn = Turn {
                key: next.key,
                waited: next.waited,
                tag: next.tag,
                streamed,
            };
            next.item.admit(endpoint.clone(), &ctx.address(), turn);
        }
    }

    /// Charges what was streamed since the last look.
    pub(super) fn true_up(&mut self, now: std::time::Instant) {
        for (key, streamed) in &self.running {
            self.queue
                .streamed(*key, streamed.load(Ordering::Relaxed), now);
        }
        self.queue.tick(now);
    }

    pub(super) fn refuse_waiting(&mut self) {
        let why = self.broken();
        for ticket in self.queue.remove_if(|_| true, Instant::now().into_std()) {
            ticket.refuse(why.clone());
        }
    }

    fn arrival(&self, ticket: &Ticket, now: Instant) -> Arrival {
        let Ticket { size, share, .. } = ticket;
        let timeout = now + self.params.queue_timeout;
        let expires = ticket.terms.deadline.map_or(timeout, |at| at.min(timeout));
        Arrival {
            tenant: ticket.tenant.clone(),
            weight: share.weight,
            group: share.group.clone(),
            flow: ticket.terms.session.clone(),
            class: share.class,
            prompt_tokens: self.estimator.tokens(size),
            max_tokens: size.max_tokens,
            choices: size.choices,
            bytes: size.body_bytes,
            tenant_bounds: share.queued,
            expires: expires.into_std(),
            is_retry: false,
        }
    }

    /// Lets a request wait, unless there is no place for it or nothing to wait for.
    fn enter(&mut self, mut ticket: Ticket, arrival: Arrival, now: Instant, ctx: &Context<Self>) {
        if self.drain.is_some() {
            return ticket.refuse(Refusal::Draining);
        }
        if let State::Broken { .. } = self.life.state() {
            return ticket.refuse(self.broken());
        }
        // However often it is tried, it has one deadline.
        let expires = *ticket.expires.get_or_insert(arrival.expires);
        let arrival = Arrival { expires, ..arrival };
        match self.queue.push(&arrival, ticket, now.into_std()) {
            Ok(pushed) => pushed
                .displaced
                .into_iter()
                .for_each(|out| self.refuse_full(out, None)),
            Err(Full { item, bound }) => return self.refuse_full(item, Some(bound)),
        }
        self.happen(Event::Wanted, ctx);
        self.dispatch(ctx);
    }

    /// A tenant that fills the queue hears so; others hear that the node is busy.
    fn refuse_full(&self, ticket: Ticket, bound: Option<Bound>) {
        ticket.refuse(match bound {
            None => Refusal::TenantQueueFull {
                bound: Bound::Requests,
            },
            Some(bound @ (Bound::TenantRequests | Bound::TenantBytes)) => {
                Refusal::TenantQueueFull { bound }
            }
            Some(Bound::Requests | Bound::Bytes) => Refusal::QueueFull {
                waiting: self.queue.total().waiting,
            },
            Some(Bound::Expiry) => Refusal::DeadlineOutOfReach,
        });
    }

    pub(super) fn clean_queue(&mut self, now: Instant) {
        drop(self.queue.remove_if(Ticket::is_abandoned, now.into_std()));
        let waited = self.params.queue_timeout;
        for ticket in self.queue.remove_expired(now.into_std()) {
            let has_deadline = ticket.terms.deadline.is_some_and(|at| at <= now);
            ticket.refuse(if has_deadline {
                Refusal::DeadlinePassed
            } else {
                Refusal::QueueTimeout { waited }
            });
        }
    }
}

impl Handler<Enqueue> for Model {
    type Result = ();

    fn handle(&mut self, Enqueue(ticket): Enqueue, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let now = Instant::now();
        let arrival = self.arrival(&ticket, now);
        self.enter(ticket, arrival, now, ctx);
    }
}

impl Handler<FirstToken> for Model {
    type Result = ();

    fn handle(&mut self, FirstToken(key): FirstToken, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.queue.first_token(key, Instant::now().into_std());
        self.dispatch(ctx);
    }
}

impl Handler<EngineWaiting> for Model {
    type Result = ();

    fn handle(&mut self, news: EngineWaiting, _: &mut Context<Self>) {
        self.vitals.handled();
        if news.generation != self.life.generation() {
            self.record.stale += 1;
            return;
        }
        self.engine_waiting = news.waiting;
        self.queue
            .engine_waiting(news.waiting, Instant::now().into_std());
    }
}

impl Handler<SlotFreed> for Model {
    type Result = ();

    fn handle(&mut self, freed: SlotFreed, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.running.remove(&freed.key);
        let now = Instant::now();
        if freed.is_unreachable {
            self.paused_until = Some(now + UNREACHABLE_PAUSE);
        } else if freed.retry.is_some() {
            self.paused_until = self.paused_until.max(Some(now + LOST_PAUSE));
        }
        self.queue.finish(freed.key, &freed.outcome, now.into_std());
        if let Outcome::Completed(usage) = freed.outcome {
            self.estimator.learn(&freed.size, usage.prompt_tokens);
        }
        if let Some(ticket) = freed.retry {
            self.record.retried += 1;
            let arrival = Arrival {
                is_retry: true,
                ..self.arrival(&ticket, now)
            };
            self.enter(ticket, arrival, now, ctx);
        }
        self.dispatch(ctx);
    }
}

//! Who waits for a model and who runs on it: the queue's side of the actor.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use actix::{AsyncContext, Context, Handler};
use kvwarden_policy::{
    lifecycle::State,
    routing::{self, Load},
    scheduling::{Arrival, Bound, Dispatch, Full, Key, Outcome},
};
use tokio::time::Instant;

use super::{LOST_PAUSE, Model, UNREACHABLE_PAUSE};
use crate::{
    Refusal, Ticket,
    protocol::{EngineSays, Enqueue, FirstToken, PlaceInLine, SlotFreed, Standing},
    ticket::Turn,
};

/// A request that runs.
pub(super) struct Running {
    /// On which engine.
    replica: usize,
    /// Tokens of its prompt, until its first token comes.
    unacked: u64,
    streamed: Arc<AtomicU64>,
    /// How much of that was seen.
    seen: u64,
    since: Instant,
}

impl Running {
    /// The engine of that index is gone; those behind it moved up.
    pub(super) fn moved_up(&mut self, gone: usize) {
        self.replica -= usize::from(self.replica > gone);
    }
}

impl Model {
    /// Hands free places to whoever is next, each on the engine that suits it.
    pub(super) fn dispatch(&mut self, ctx: &Context<Self>) {
        let now = Instant::now();
        loop {
            let loads = self.loads(now);
            if loads.is_empty() {
                return;
            }
            let Some(next) = self.queue.next(now.into_std()) else {
                return;
            };
            let patience = self.params.scheduling.fair.capacity.step_tokens;
            match routing::choose(&loads, next.item.hints.prefix, patience) {
                Some(at) if !next.item.is_abandoned() => self.send(next, at, now, ctx),
                Some(_) | None => {
                    let outcome = Outcome::FailedBeforeFirstToken;
                    self.queue.finish(next.key, &outcome, now.into_std());
                }
            }
        }
    }

    fn loads(&self, now: Instant) -> Vec<Load> {
        let room = self.params.scheduling.fair.capacity.engine_sequences();
        let replicas = self.replicas.iter().enumerate();
        replicas
            .filter(|(_, replica)| replica.open(now).is_some())
            .map(|(at, replica)| replica.load(at, room))
            .collect()
    }

    fn send(&mut self, next: Dispatch<Ticket>, at: usize, now: Instant, ctx: &Context<Self>) {
        let prompt_tokens = self.estimator.tokens(&next.item.size);
        let replica = &mut self.replicas[at];
        let Some(endpoint) = replica.endpoint.clone() else {
            return;
        };
        replica.record.dispatched += 1;
        replica.occupancy.running += 1;
        replica.occupancy.unacked += prompt_tokens;
        let streamed = Arc::<AtomicU64>::default();
        let running = Running {
            replica: at,
            unacked: prompt_tokens,
            streamed: streamed.clone(),
            seen: 0,
            since: now,
        };
        self.running.insert(next.key, running);
        let turn = Turn {
            model: self.params.id.clone(),
            key: next.key,
            waited: next.waited,
            tag: next.tag,
            prompt_tokens,
            streamed,
        };
        next.item.admit(endpoint, &ctx.address(), turn);
    }

    /// A request's first token came: the engine has computed its prompt.
    fn acknowledge(&mut self, key: Key) {
        if let Some(running) = self.running.get_mut(&key) {
            let acked = std::mem::take(&mut running.unacked);
            self.replicas[running.replica].occupancy.unacked -= acked;
        }
    }

    /// A request left its engine.
    fn leave(&mut self, key: Key) -> Option<usize> {
        self.acknowledge(key);
        let running = self.running.remove(&key)?;
        self.replicas[running.replica].occupancy.running -= 1;
        self.learn_service_time(running.since.elapsed());
        Some(running.replica)
    }

    /// Charges what was streamed since the last look.
    pub(super) fn true_up(&mut self, now: std::time::Instant) {
        for (key, running) in &mut self.running {
            let streamed = running.streamed.load(Ordering::Relaxed);
            self.replicas[running.replica].signs.progress += streamed - running.seen;
            running.seen = streamed;
            self.queue.streamed(*key, streamed, now);
        }
        self.queue.tick(now);
    }

    /// Refuses what waits, unless another engine of the model may serve it yet.
    pub(super) fn refuse_waiting(&mut self) {
        if !self.is_broken() {
            return;
        }
        self.refuse_all(&self.broken(), Instant::now());
    }

    pub(super) fn refuse_all(&mut self, why: &Refusal, now: Instant) {
        for ticket in self.queue.remove_if(|_| true, now.into_std()) {
            ticket.refuse(why.clone());
        }
    }

    /// Whether what comes now could be served without anybody who starts an engine for it.
    pub(super) fn may_serve(&self) -> bool {
        let mut states = self.replicas.iter().map(|replica| replica.life.state());
        states.any(|state| matches!(state, State::Ready | State::Starting { .. }))
    }

    fn arrival(&self, ticket: &Ticket, now: Instant) -> Arrival {
        let Ticket { size, share, .. } = ticket;
        let timeout = now + self.params.queue_timeout;
        let expires = ticket.hints.deadline.map_or(timeout, |at| at.min(timeout));
        Arrival {
            tenant: ticket.tenant.clone(),
            weight: share.weight,
            group: share.group.clone(),
            flow: ticket.hints.session.clone(),
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
        if self.drain.is_some() || (self.has_resigned && !self.may_serve()) {
            return ticket.refuse(Refusal::Draining);
        }
        if self.is_broken() {
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
        self.want(ctx);
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
            let has_deadline = ticket.hints.deadline.is_some_and(|at| at <= now);
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
        self.on_request();
        let now = Instant::now();
        let arrival = self.arrival(&ticket, now);
        self.enter(ticket, arrival, now, ctx);
    }
}

impl Handler<PlaceInLine> for Model {
    type Result = Standing;

    fn handle(&mut self, asked: PlaceInLine, _: &mut Context<Self>) -> Standing {
        self.vitals.handled();
        let until = asked.since.into_std();
        Standing {
            state: self.lead().life.state(),
            ahead: self.queue.ahead(&asked.tenant, until, asked.most),
        }
    }
}

impl Handler<FirstToken> for Model {
    type Result = ();

    fn handle(&mut self, FirstToken(key): FirstToken, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.acknowledge(key);
        self.queue.first_token(key, Instant::now().into_std());
        self.dispatch(ctx);
    }
}

impl Handler<EngineSays> for Model {
    type Result = ();

    fn handle(&mut self, news: EngineSays, _: &mut Context<Self>) {
        self.vitals.handled();
        let Some(at) = self.current(&news.engine, news.generation) else {
            return;
        };
        let replica = &mut self.replicas[at];
        replica.waiting = news.waiting;
        replica.signs.work = news.work;
        // The fullest counts: that others' queues are empty does not help who waits in this one.
        let fullest = self
            .replicas
            .iter()
            .filter_map(|replica| replica.waiting)
            .max();
        self.queue
            .engine_waiting(fullest, Instant::now().into_std());
    }
}

impl Handler<SlotFreed> for Model {
    type Result = ();

    fn handle(&mut self, freed: SlotFreed, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let replica = self.leave(freed.key);
        let now = Instant::now();
        let pause = if freed.is_unreachable {
            Some(UNREACHABLE_PAUSE)
        } else {
            freed.retry.as_ref().map(|_| LOST_PAUSE)
        };
        if let (Some(at), Some(pause)) = (replica, pause) {
            let replica = &mut self.replicas[at];
            replica.paused_until = replica.paused_until.max(Some(now + pause));
        }
        self.queue.finish(freed.key, &freed.outcome, now.into_std());
        if let Outcome::Completed(usage) = freed.outcome {
            self.estimator.learn(&freed.size, usage.prompt_tokens);
            if let Some(at) = replica {
                self.replicas[at].signs.progress += 1;
            }
        }
        if let Some(at) = replica {
            self.drained(at, ctx);
        }
        if let Some(ticket) = freed.retry {
            if let Some(at) = replica {
                self.replicas[at].record.retried += 1;
            }
            let arrival = Arrival {
                is_retry: true,
                ..self.arrival(&ticket, now)
            };
            self.enter(ticket, arrival, now, ctx);
        }
        self.dispatch(ctx);
    }
}

//! Who waits for a model and who runs on it: the queue's side of the actor.

use std::sync::{Arc, atomic::Ordering};

use actix::{AsyncContext, Context, Handler};
use kvwarden_policy::{
    lifecycle::State,
    routing::{self, Load},
    scheduling::{Arrival, Bound, Dispatch, Full, Key, Outcome},
};
use tokio::time::Instant;

use super::{LOST_PAUSE, Model, UNREACHABLE_PAUSE};
use crate::{
    Refusal, TICK, Ticket,
    protocol::{EngineSays, Enqueue, FirstToken, PlaceInLine, SlotFreed, Standing, Wake},
    ticket::{Tokens, Turn},
};

/// A request that runs.
pub(super) struct Running {
    /// On which engine.
    replica: usize,
    /// Tokens of its prompt, until its first token comes.
    unacked: u64,
    tokens: Arc<Tokens>,
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
        while let Some(key) = self.queue.overdue(now.into_std()) {
            self.acknowledge(key);
        }
        self.hand_out(now, ctx);
        self.wake_in_time(now, ctx);
    }

    fn hand_out(&mut self, now: Instant, ctx: &Context<Self>) {
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

    /// What waits for the end of a prompt that is not seen should not have to wait for the tick.
    fn wake_in_time(&mut self, now: Instant, ctx: &Context<Self>) {
        let Some(at) = self.queue.wakes_at().map(Instant::from_std) else {
            return;
        };
        let is_set = self.wakes_at.is_some_and(|set| now < set && set <= at);
        if is_set || at >= now + TICK {
            return;
        }
        self.wakes_at = Some(at);
        let model = ctx.address();
        actix_rt::spawn(async move {
            tokio::time::sleep_until(at).await;
            model.do_send(Wake);
        });
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
        // It is asked for a stream where it would compute to the end after its client hung up.
        let aborts_unstreamed = endpoint.kind.dialect().quirks.aborts_unstreamed;
        let is_hidden = aborts_unstreamed && !next.item.hints.is_streamed;
        if is_hidden {
            self.queue.hide(next.key);
        }
        let tokens = Arc::<Tokens>::default();
        let running = Running {
            replica: at,
            unacked: prompt_tokens,
            tokens: tokens.clone(),
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
            is_hidden,
            tokens,
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
        let running = self.running.remove(&key)?;
        let occupancy = &mut self.replicas[running.replica].occupancy;
        occupancy.unacked -= running.unacked;
        occupancy.running -= 1;
        self.learn_service_time(running.since.elapsed());
        Some(running.replica)
    }

    /// Charges what was streamed or probably generated since the last look. What is only estimated is
    /// no sign of life.
    pub(super) fn true_up(&mut self, now: std::time::Instant) {
        for (key, running) in &mut self.running {
            let streamed = running.tokens.streamed.load(Ordering::Relaxed);
            if streamed > 0 {
                self.replicas[running.replica].signs.progress += streamed - running.seen;
                running.seen = streamed;
                self.queue.streamed(*key, streamed, now);
            } else if let Some(estimated) = self.queue.estimate(*key, now) {
                running.tokens.estimated.store(estimated, Ordering::Relaxed);
            }
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
        let waiting = self.queue.remove_if(|_| true, now.into_std());
        let lost = self.lost.drain(..).map(|(_, ticket)| ticket);
        for ticket in waiting.into_iter().chain(lost) {
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
        drop(self.queue.sweep(Ticket::is_abandoned, now.into_std()));
        self.lost.retain(|(_, ticket)| !ticket.is_abandoned());
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

impl Handler<Wake> for Model {
    type Result = ();

    fn handle(&mut self, _: Wake, ctx: &mut Context<Self>) {
        self.vitals.handled();
        self.dispatch(ctx);
    }
}

impl Handler<SlotFreed> for Model {
    type Result = ();

    fn handle(&mut self, freed: SlotFreed, ctx: &mut Context<Self>) {
        self.vitals.handled();
        let replica = self.leave(freed.key);
        let now = Instant::now();
        self.queue.finish(freed.key, &freed.outcome, now.into_std());
        if let Outcome::Completed(usage) = freed.outcome {
            self.estimator.learn(&freed.size, usage.prompt_tokens);
        }
        if let Some(at) = replica {
            self.was_left(at, &freed, now);
            self.drained(at, ctx);
        }
        if let Some(ticket) = freed.retry {
            self.retry(ticket, replica, now, ctx);
        }
        self.dispatch(ctx);
    }
}

impl Model {
    /// What the end of a request says of its engine.
    fn was_left(&mut self, at: usize, freed: &SlotFreed, now: Instant) {
        let replica = &mut self.replicas[at];
        if let Outcome::Completed(_) = freed.outcome {
            replica.signs.progress += 1;
        }
        // Nobody can be served there. A request that was lost says nothing of others.
        if freed.is_unreachable {
            replica.paused_until = replica.paused_until.max(Some(now + UNREACHABLE_PAUSE));
        }
        replica.record.retried += u64::from(freed.retry.is_some());
    }

    /// A request that was lost on an engine which goes on serving waits before it is sent once more.
    fn retry(&mut self, ticket: Ticket, replica: Option<usize>, now: Instant, ctx: &Context<Self>) {
        let serves = |at: usize| self.replicas[at].open(now).is_some();
        if self.drain.is_none() && replica.is_some_and(serves) {
            self.lost.push_back((now + LOST_PAUSE, ticket));
        } else {
            self.enter_again(ticket, ctx);
        }
    }

    pub(super) fn send_again(&mut self, now: Instant, ctx: &Context<Self>) {
        while let Some((_, ticket)) = self.lost.pop_front_if(|(due, _)| *due <= now) {
            self.enter_again(ticket, ctx);
        }
    }

    fn enter_again(&mut self, ticket: Ticket, ctx: &Context<Self>) {
        let now = Instant::now();
        let arrival = Arrival {
            is_retry: true,
            ..self.arrival(&ticket, now)
        };
        self.enter(ticket, arrival, now, ctx);
    }
}

//! The fair discipline: work-conserving, by tokens, above an engine that knows no tenants.
//!
//! Service is what tokens cost, and who received least per weight goes next: virtual token counters
//! (VTC: Sheng et al., "Fairness in Serving Large Language Models", OSDI'24), at every level of a
//! tree (Parekh and Gallager, "A generalized processor sharing approach", 1993; Bennett and Zhang
//! 1996). A request is charged at dispatch its prompt and a tenth of what answers of its tenant
//! usually cost, the rest of its output as it comes, and the signed difference at its end.
//! `max_tokens` only bounds the estimate, so lying about it moves nothing.
//!
//! Requests go to the engine only as far as it can work on them at once (`window`): what it
//! queues, it serves in its own order. A small part of the window stays free for tenants far below
//! their share (`pick`), so that they need not wait for someone's end.
//!
//! Invariants: what was charged is the price of what ended plus, of what runs, what was charged
//! ahead or has come if that is more; limits hold at every moment, except that one request larger than
//! a limit may run alone; what waits while there is room for the head of the line is nothing.

#[cfg(test)]
mod audit;
mod forecast;
mod lanes;
mod lengths;
mod node;
mod pace;
mod pick;
mod roster;
mod running;
mod tree;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub(super) use self::window::TOLERATED_WAITING;
use self::{
    forecast::Throughput,
    lanes::{Length, Waiting},
    lengths::Lengths,
    node::NodeId,
    pace::Pace,
    tree::{ROOT, Tree},
    window::{Load, Space, Window},
};
use super::{
    settings::{Capacity, FairSettings, Grains, Mutant, TOKEN},
    types::{Arrival, Share, WindowState},
};

/// One request, as far as fairness is concerned.
#[derive(Clone, Copy, Debug)]
struct Job {
    leaf: NodeId,
    class: i32,
    length: Length,
    place: i64,
    since: Instant,
    prompt_tokens: u64,
    max_tokens: u64,
    sequences: u64,
    run: Option<Dispatched>,
}

/// What a running request has been charged and occupies.
#[derive(Clone, Copy, Debug)]
struct Dispatched {
    started: Instant,
    tag: Grains,
    /// Output that is paid for, over all choices: what was charged for at dispatch, or has come if
    /// that is more.
    paid: u64,
    /// Output that cache is reserved for: expected, or come if that is more.
    reserved: u64,
    charged: Grains,
    load: Load,
    /// Its prefill is over.
    is_acked: bool,
    /// When tokens were last counted, and how many; from the first token on, if that is seen.
    counted: Option<(Instant, u64)>,
}

/// The decisions of one engine's queue. Requests are named by their slot; the scheduler around it
/// makes sure that a slot means what it meant before.
#[derive(Debug)]
pub struct FairCore {
    settings: FairSettings,
    tree: Tree,
    window: Window,
    pace: Pace,
    throughput: Throughput,
    /// Answers of all tenants.
    lengths: Lengths,
    /// By slot; meaningful from the request's arrival to its end.
    jobs: Vec<Job>,
    /// What waits, by class and place.
    ages: BTreeMap<i32, BTreeSet<(i64, u32)>>,
    /// Dispatches so far.
    turns: u64,
    /// The highest tag whose first token has come.
    tag_time: Grains,
}

// === impl FairCore ===

impl FairCore {
    pub(super) fn new(settings: FairSettings) -> Self {
        Self {
            settings,
            tree: Tree::new(),
            window: Window::new(settings.capacity),
            pace: Pace::new(settings.capacity.chunk_tokens),
            throughput: Throughput::default(),
            lengths: Lengths::assume(settings.assumed_output),
            jobs: Vec::new(),
            ages: BTreeMap::new(),
            turns: 0,
            tag_time: 0,
        }
    }

    pub(super) fn enqueue(&mut self, slot: u32, arrival: &Arrival, place: i64, now: Instant) {
        let length = self.length(arrival);
        let leaf = self.tree.leaf(arrival, self.lengths);
        let job = Job {
            leaf,
            class: arrival.class,
            length,
            place,
            since: now,
            prompt_tokens: arrival.prompt_tokens,
            max_tokens: arrival.max_tokens.unwrap_or(u64::MAX),
            sequences: arrival.sequences(),
            run: None,
        };
        let at = slot as usize;
        if self.jobs.len() <= at {
            self.jobs.resize(at + 1, job);
        }
        self.jobs[at] = job;
        self.tree.enqueue(leaf, job.class, self.lift());
        self.line_up(slot);
    }

    /// A request waits no longer; it costs nothing.
    pub(super) fn dequeue(&mut self, slot: u32) {
        let job = *self.job(slot);
        self.step_out(slot);
        self.tree.dequeue(job.leaf, job.class);
    }

    /// A waiting request's tenant is entitled otherwise from now on. It waits twice for a moment, so
    /// that no line is empty by that and nobody lifted.
    pub(super) fn reshare(&mut self, slot: u32, share: &Share) {
        let before = *self.job(slot);
        self.step_out(slot);
        let (leaf, class) = (self.tree.moved(before.leaf, share), share.class);
        self.tree.enqueue(leaf, class, self.lift());
        self.tree.dequeue(before.leaf, before.class);
        self.jobs[slot as usize] = Job {
            leaf,
            class,
            ..before
        };
        self.line_up(slot);
    }

    /// The window has its size from [`allow`](Self::allow).
    pub(super) fn adjust(&mut self, settings: FairSettings) {
        self.settings = settings;
    }

    /// How far behind its siblings' time somebody starts that comes back.
    fn lift(&self) -> Option<Grains> {
        let credit = Grains::from(self.settings.credit) * TOKEN;
        (!self.settings.lacks(Mutant::Lift)).then_some(credit)
    }

    fn line_up(&mut self, slot: u32) {
        let job = *self.job(slot);
        let since = job.since;
        let lanes = &mut self.tree.node_mut(job.leaf).lanes;
        lanes.insert(job.class, job.length, job.place, Waiting { slot, since });
        let ages = self.ages.entry(job.class).or_default();
        ages.insert((job.place, slot));
    }

    fn step_out(&mut self, slot: u32) {
        let job = *self.job(slot);
        let lanes = &mut self.tree.node_mut(job.leaf).lanes;
        lanes.remove(job.class, job.length, job.place);
        if let Some(ages) = self.ages.get_mut(&job.class) {
            ages.remove(&(job.place, slot));
            if ages.is_empty() {
                self.ages.remove(&job.class);
            }
        }
    }

    /// Who goes now, and its place in the engine's own order.
    pub(super) fn next(&mut self, now: Instant) -> Option<(u32, i64)> {
        let (slot, space) = self.pick(now)?;
        let job = *self.job(slot);
        let (mut load, expected) = self.need(&job);
        let paid = expected.saturating_mul(u64::from(self.settings.upfront_percent)) / 100;
        if space == Space::Headroom {
            load.guests = load.unacked;
        }
        let price = self.settings.price;
        let charged = price.prompt(job.prompt_tokens) + price.output(paid);
        let tag = self.tag(job.leaf, charged);
        // Charged before it leaves the line: who comes next starts where this one is then.
        self.tree.charge(job.leaf, charged);
        self.tree.start(job.leaf, load);
        self.dequeue(slot);
        self.turns += 1;
        self.jobs[slot as usize].run = Some(Dispatched {
            started: now,
            tag,
            paid,
            reserved: expected,
            charged,
            load,
            is_acked: false,
            counted: None,
        });
        let tokens = tag.div_euclid(TOKEN);
        Some((slot, i64::try_from(tokens).unwrap_or(i64::MAX)))
    }

    pub(super) fn tick(&mut self, now: Instant) {
        let root = self.tree.node(ROOT);
        let is_saturated = !self.ages.is_empty() && root.load.sequences > 0;
        self.throughput.look(root.served, is_saturated, now);
        if self.window.is_due(now) {
            let lateness = self.pace.look();
            self.window.follow(lateness, now);
        }
    }

    pub(super) fn engine_waiting(&mut self, waiting: Option<u64>, now: Instant) {
        self.window.engine_waiting(waiting, now);
    }

    pub(super) fn allow(&mut self, capacity: Capacity) {
        self.pace.allow(capacity.chunk_tokens);
        self.window.allow(capacity);
    }

    pub(super) fn window(&self) -> WindowState {
        let used = self.tree.node(ROOT).load;
        self.window.state(used, self.pace.step())
    }

    /// A step's time as streams have shown it lately.
    pub(super) fn seen_step(&self) -> Option<Duration> {
        self.pace.fresh_step()
    }

    /// What the engine probably has to compute of a request's prompt.
    pub(super) fn prefill(&self, slot: u32) -> u64 {
        let job = self.job(slot);
        let tenant = self.tree.node(self.tree.tenant_of(job.leaf));
        tenant.uncached.of(job.prompt_tokens)
    }

    fn length(&self, arrival: &Arrival) -> Length {
        if arrival.prompt_tokens >= self.settings.long_prompt_tokens {
            Length::Long
        } else {
            Length::Short
        }
    }

    fn job(&self, slot: u32) -> &Job {
        &self.jobs[slot as usize]
    }

    /// What a request will occupy, and its expected output over all choices.
    ///
    /// The mean is enough for the KV cache as well: what is expected of `n` answers that start
    /// together is n t P(length > t) at most at any time t, and that is n times the mean at most
    /// (Markov's inequality).
    fn need(&self, job: &Job) -> (Load, u64) {
        let tenant = self.tree.node(self.tree.tenant_of(job.leaf));
        let expected = tenant.lengths.mean().min(job.max_tokens);
        let output = expected.saturating_mul(job.sequences);
        let load = Load {
            sequences: job.sequences,
            unacked: job.prompt_tokens,
            guests: 0,
            kv: job.prompt_tokens.saturating_add(output),
        };
        (load, output)
    }

    /// Start-time tags (SFQ: Goyal, Vin and Cheng, SIGCOMM'96) order what the engine still queues.
    /// They start where its work is now, so a newcomer passes what was dispatched before it and has
    /// not begun. One level, since the window bounds what they can move.
    fn tag(&mut self, leaf: NodeId, charge: Grains) -> Grains {
        let tenant = self.tree.tenant_of(leaf);
        let weight = self.tree.flat_weight(tenant);
        let time = self.tag_time;
        let node = self.tree.node_mut(tenant);
        let tag = node.last_tag.max(time);
        node.last_tag = tag + charge / weight;
        tag
    }
}

//! Random calls in any order: nothing leaks, limits hold, charges add up, runs repeat.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{
    super::{
        settings::{Grains, Mutant},
        *,
    },
    arrival, core, epoch, fair,
};
use crate::cost::Usage;

#[derive(Clone, Debug)]
enum Op {
    Push(Push),
    Next,
    FirstToken(usize),
    Stream(usize, u64),
    Complete(usize, u64),
    Cancel(usize),
    Fail(usize),
    Remove(usize),
    Abandon(u64),
    Expire,
    Tick(u64),
    EngineWaiting(Option<u64>),
    Reshare(Push),
    Adjust(usize),
}

#[derive(Clone, Debug)]
struct Push {
    group: u8,
    tenant: u8,
    flow: Option<u8>,
    weight: u32,
    class: i32,
    prompt: u64,
    max_tokens: Option<u64>,
    choices: u32,
    lives_ms: u64,
}

fn push() -> impl Strategy<Value = Push> {
    let who = (
        0_u8..3,
        0_u8..4,
        prop::option::of(0_u8..20),
        0_u32..4,
        -1_i32..2,
    );
    let size = (
        1_u64..900,
        prop::option::of(1_u64..300),
        1_u32..4,
        1_u64..5000,
    );
    (who, size).prop_map(
        |((group, tenant, flow, weight, class), (prompt, max_tokens, choices, lives_ms))| Push {
            group,
            tenant,
            flow,
            weight,
            class,
            prompt,
            max_tokens,
            choices,
            lives_ms,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let which = any::<usize>;
    prop_oneof![
        8 => push().prop_map(Op::Push),
        6 => Just(Op::Next),
        4 => which().prop_map(Op::FirstToken),
        4 => (which(), 1_u64..300).prop_map(|(i, n)| Op::Stream(i, n)),
        3 => (which(), 0_u64..300).prop_map(|(i, n)| Op::Complete(i, n)),
        1 => which().prop_map(Op::Cancel),
        1 => which().prop_map(Op::Fail),
        1 => which().prop_map(Op::Remove),
        1 => (2_u64..9).prop_map(Op::Abandon),
        1 => Just(Op::Expire),
        2 => (1_u64..400).prop_map(Op::Tick),
        1 => prop::option::of(0_u64..9).prop_map(Op::EngineWaiting),
        1 => push().prop_map(Op::Reshare),
        1 => (1_usize..60).prop_map(Op::Adjust),
    ]
}

struct Running {
    key: Key,
    prompt: u64,
    sequences: u64,
    streamed: u64,
}

struct World {
    scheduler: Scheduler<(u64, u64, u64)>,
    capacity: Capacity,
    waiting: Vec<Key>,
    running: Vec<Running>,
    now: Instant,
    pushed: u64,
    gone: u64,
    /// What all that ended really cost.
    cost: Grains,
    log: Vec<(u64, i64)>,
}

// === impl World ===

impl World {
    fn new(settings: &Settings, start: Instant) -> Self {
        Self {
            scheduler: Scheduler::new(settings),
            capacity: settings.fair.capacity,
            waiting: Vec::new(),
            running: Vec::new(),
            now: start,
            pushed: 0,
            gone: 0,
            cost: 0,
            log: Vec::new(),
        }
    }

    fn push(&mut self, push: &Push) {
        let mut arrival = arrival("", "", push.prompt, self.now);
        arrival.group.name = push.group.to_string().into();
        arrival.group.weight = push.weight;
        // A tenant id belongs to one group.
        arrival.tenant = format!("{}/{}", push.group, push.tenant).into();
        arrival.weight = push.weight;
        arrival.flow = push.flow.map(|flow| flow.to_string().into());
        arrival.class = push.class;
        arrival.max_tokens = push.max_tokens;
        arrival.choices = push.choices;
        arrival.tenant_bounds.requests = 12;
        arrival.expires = self.now + Duration::from_millis(push.lives_ms);
        let item = (self.pushed, push.prompt, u64::from(push.choices));
        match self.scheduler.push(&arrival, item, self.now) {
            Ok(pushed) => {
                self.waiting.push(pushed.key);
                self.pushed += 1;
                self.gone += pushed.displaced.len() as u64;
            }
            Err(full) => assert_eq!(full.item, item),
        }
    }

    fn next(&mut self) {
        let before = self.window();
        let Some(next) = self.scheduler.next(self.now) else {
            let is_idle = self.running.is_empty();
            assert!(
                !is_idle || self.scheduler.total().waiting == 0,
                "work conservation"
            );
            return;
        };
        let (id, prompt, sequences) = next.item;
        self.log.push((id, next.tag));
        self.running.push(Running {
            key: next.key,
            prompt,
            sequences,
            streamed: 0,
        });
        let after = self.window();
        let capacity = &self.capacity;
        let is_alone = before.sequences == 0;
        assert!(is_alone || after.sequences <= capacity.engine_sequences());
        let most = before.unacked_prefill_limit + capacity.step_tokens + 900;
        assert!(before.unacked_prefill < most);
        let kv = capacity.kv_tokens.unwrap_or(u64::MAX);
        assert!(before.kv == 0 || after.kv <= kv / 100 * 95);
    }

    fn window(&self) -> WindowState {
        self.scheduler.snapshot_window().unwrap()
    }

    fn end(&mut self, which: usize, outcome: impl Fn(&Running) -> Outcome) {
        if self.running.is_empty() {
            return;
        }
        let one = self.running.swap_remove(which % self.running.len());
        let outcome = outcome(&one);
        self.scheduler.finish(one.key, &outcome, self.now);
        self.gone += 1;
        self.cost += match outcome {
            Outcome::Completed(usage) => {
                let computed = usage.prompt_tokens - usage.cached_tokens;
                Grains::from(10 * computed + usage.cached_tokens + 20 * usage.completion_tokens)
                    * 100_000
            }
            Outcome::Cancelled { generated } => {
                Grains::from(one.prompt + 2 * generated) * 1_000_000
            }
            Outcome::FailedBeforeFirstToken => 0,
        };
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Push(push) => self.push(push),
            Op::Next => self.next(),
            Op::FirstToken(which) if !self.running.is_empty() => {
                let key = self.running[which % self.running.len()].key;
                self.scheduler.first_token(key, self.now);
            }
            Op::Stream(which, tokens) if !self.running.is_empty() => {
                let at = which % self.running.len();
                let one = &mut self.running[at];
                one.streamed += tokens;
                self.scheduler.streamed(one.key, one.streamed, self.now);
            }
            Op::FirstToken(_) | Op::Stream(..) => {}
            Op::Complete(which, more) => self.end(*which, |one| {
                Outcome::Completed(Usage {
                    prompt_tokens: one.prompt,
                    cached_tokens: one.prompt / 3,
                    completion_tokens: one.streamed + more * one.sequences,
                })
            }),
            Op::Cancel(which) => self.end(*which, |one| Outcome::Cancelled {
                generated: one.streamed,
            }),
            Op::Fail(which) => self.end(*which, |_| Outcome::FailedBeforeFirstToken),
            Op::Remove(which) => {
                if !self.waiting.is_empty() {
                    let key = self.waiting.swap_remove(which % self.waiting.len());
                    let removed = self.scheduler.remove(key, self.now);
                    self.gone += u64::from(removed.is_some());
                }
            }
            Op::Abandon(part) => {
                let out = self
                    .scheduler
                    .remove_if(|(id, ..)| id % part == 0, self.now);
                self.gone += out.len() as u64;
            }
            Op::Expire => self.gone += self.scheduler.remove_expired(self.now).len() as u64,
            Op::Tick(ms) => {
                self.now += Duration::from_millis(*ms);
                self.scheduler.tick(self.now);
            }
            Op::Reshare(to) => {
                // Of any group into this one.
                for group in 0..3 {
                    let tenant = format!("{group}/{}", to.tenant).into();
                    self.scheduler.reshare(&tenant, |_| Share {
                        class: to.class,
                        group: Group {
                            name: to.group.to_string().into(),
                            weight: to.weight,
                        },
                        weight: to.weight,
                        queued: TenantBounds::default(),
                    });
                }
            }
            Op::Adjust(requests) => {
                let mut settings = small();
                settings.bounds.requests = *requests;
                self.scheduler.adjust(&settings);
            }
            Op::EngineWaiting(waiting) => self.scheduler.engine_waiting(*waiting, self.now),
        }
        let total = self.scheduler.total();
        assert_eq!(total.running, self.running.len());
        assert_eq!(
            total.waiting as u64 + total.running as u64 + self.gone,
            self.pushed
        );
    }

    /// Ends everything, one way or another.
    fn wind_up(&mut self) {
        while !self.running.is_empty() {
            self.end(0, |one| Outcome::Cancelled {
                generated: one.streamed,
            });
        }
        self.gone += self.scheduler.remove_if(|_| true, self.now).len() as u64;
    }
}

fn small() -> Settings {
    let mut settings = fair(Capacity::of_engine(5, 600, Some(6000)));
    settings.fair.assumed_output = 40;
    settings.fair.class_patience = Duration::from_millis(300);
    settings.bounds.requests = 40;
    settings
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_leaks_limits_hold_and_charges_are_what_was_used(
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut world = World::new(&small(), epoch());
        for op in &ops {
            world.apply(op);
            core(&world.scheduler).audit();
        }
        world.wind_up();
        prop_assert!(core(&world.scheduler).is_empty());
        prop_assert_eq!(core(&world.scheduler).served(), world.cost, "charge conservation");
        prop_assert_eq!(world.scheduler.total(), Counts::default());
        prop_assert!(world.scheduler.snapshot().tenants.is_empty());
        prop_assert_eq!(world.gone, world.pushed);
    }

    #[test]
    fn the_same_calls_give_the_same_answers(ops in prop::collection::vec(op(), 1..300)) {
        let start = epoch();
        let mut runs = [World::new(&small(), start), World::new(&small(), start)];
        for world in &mut runs {
            ops.iter().for_each(|op| world.apply(op));
        }
        prop_assert_eq!(&runs[0].log, &runs[1].log);
    }

    #[test]
    fn what_waits_behind_a_free_window_is_nothing(ops in prop::collection::vec(op(), 1..300)) {
        let mut settings = small();
        settings.fair.capacity.kv_tokens = None;
        let mut world = World::new(&settings, epoch());
        for op in &ops {
            world.apply(op);
            while world.log.len() < world.pushed.try_into().unwrap() {
                let before = world.log.len();
                world.next();
                if world.log.len() == before {
                    break;
                }
            }
            let window = world.window();
            // Three choices is the most that a head may lack.
            let is_full = window.sequences + 3 > window.sequences_limit
                || window.unacked_prefill >= window.unacked_prefill_limit;
            prop_assert!(is_full || world.scheduler.total().waiting == 0);
        }
    }
}

#[test]
fn forgotten_tenants_and_sessions_take_no_memory() {
    let now = epoch();
    let mut scheduler = Scheduler::new(&fair(Capacity::of_engine(8, 100, None)));
    for round in 0..20_000_u32 {
        let mut arrival = arrival("made up", &round.to_string(), 1, now);
        arrival.flow = Some((round % 7).to_string().into());
        let key = scheduler.push(&arrival, round, now).unwrap().key;
        if round % 2 == 0 {
            scheduler.remove(key, now);
        } else if let Some(next) = scheduler.next(now) {
            scheduler.finish(next.key, &Outcome::Cancelled { generated: 1 }, now);
        }
    }
    let nodes = core(&scheduler).nodes();
    assert!(nodes < 4200, "{nodes}");
    let mut scheduler = Scheduler::new(&fair(Capacity::of_engine(8, 100, None)));
    // What waits keeps the tenant from being forgotten with its sessions.
    scheduler.push(&arrival("", "a", 1, now), 0, now).unwrap();
    for round in 0..20_000_u32 {
        let mut arrival = arrival("", "a", 1, now);
        arrival.flow = Some(round.to_string().into());
        let key = scheduler.push(&arrival, round, now).unwrap().key;
        scheduler.remove(key, now);
    }
    let nodes = core(&scheduler).nodes();
    assert!(nodes < 30, "{nodes}");
}

#[test]
fn a_low_class_waits_but_does_not_starve() {
    let now = epoch();
    let mut scheduler = Scheduler::new(&fair(Capacity::of_engine(1, 100, None)));
    let mut low = arrival("", "a", 1, now);
    low.class = 9;
    scheduler.push(&low, "low", now).unwrap();
    let mut served = Vec::new();
    for second in 0..30 {
        let now = now + Duration::from_secs(second);
        scheduler
            .push(&arrival("", "b", 1, now), "high", now)
            .unwrap();
        scheduler
            .push(&arrival("", "b", 1, now), "high", now)
            .unwrap();
        let next = scheduler.next(now).unwrap();
        scheduler.finish(next.key, &Outcome::Cancelled { generated: 1 }, now);
        served.push(next.item);
    }
    let low = served.iter().position(|item| *item == "low").unwrap();
    assert!((5..=16).contains(&low), "{low}");
}

/// Whether what is charged in the end is what was used, for answers longer than expected.
pub(super) fn conserves_charges(mutant: Option<Mutant>) -> bool {
    let mut settings = small();
    settings.fair.mutant = mutant;
    let mut world = World::new(&settings, epoch());
    let push = Push {
        group: 0,
        tenant: 0,
        flow: None,
        weight: 1,
        class: 0,
        prompt: 10,
        max_tokens: None,
        choices: 1,
        lives_ms: 1000,
    };
    for op in [
        Op::Push(push),
        Op::Next,
        Op::Stream(0, 100),
        Op::Complete(0, 50),
    ] {
        world.apply(&op);
    }
    core(&world.scheduler).served() == world.cost
}

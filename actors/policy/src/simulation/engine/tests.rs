//! Properties of the scheduler over random traffic, and the promises its callers rely on.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::epoch as now;
use crate::simulation::steps::{A100_8B, StepLoad, TINY};

fn limits(policy: Policy) -> Limits {
    Limits {
        max_num_seqs: 4,
        max_num_batched_tokens: 48,
        long_prefill_token_threshold: 0,
        kv_blocks: 16,
        max_model_len: 256,
        policy,
    }
}

fn batch(limits: Limits) -> Batch {
    Batch::new(limits, TINY.model).unwrap()
}

fn request(prompt: u32, max_tokens: u32) -> Request {
    Request {
        prompt: Prompt::opaque(prompt),
        max_tokens,
        limit: u32::MAX,
        priority: 0,
    }
}

/// Steps until nothing is left and returns what ended.
fn run_out(batch: &mut Batch) -> Vec<Finished> {
    let mut finished = Vec::new();
    while let Some(step) = batch.step(now()) {
        finished.extend(step.finished);
    }
    finished
}

/// Every total the batch keeps up to date, against the same total counted from scratch.
fn audit(batch: &Batch) {
    let mut held = HashSet::new();
    let mut private = 0;
    let mut growing = [0; BLOCK_TOKENS as usize];
    for index in batch.running.values() {
        let sequence = batch.sequence(*index);
        let computed = match sequence.phase {
            Phase::Waiting => panic!("a waiting sequence is listed as running"),
            Phase::Prefilling { computed, .. } => computed,
            Phase::Decoding {
                since, computed, ..
            } => {
                let computed = computed + steps_since(since, batch.clock);
                if computed.is_multiple_of(BLOCK_TOKENS) {
                    let next = usize::try_from((batch.clock + 1) % 16).unwrap();
                    growing[next] += 1;
                }
                computed
            }
        };
        held.extend(sequence.shared.iter().copied());
        private += computed.div_ceil(BLOCK_TOKENS) - u32::try_from(sequence.shared.len()).unwrap();
    }
    let next = usize::try_from((batch.clock + 1) % 16).unwrap();
    assert_eq!(batch.growing[next], growing[next]);
    assert_eq!(
        batch.kv_used(),
        private + u32::try_from(held.len()).unwrap()
    );
    assert!(batch.kv_used() + batch.kv_cached() <= batch.limits.kv_blocks);
    assert!(batch.running() <= batch.limits.max_num_seqs as usize);
    assert_eq!(
        batch.running(),
        batch.prefilling.len() + batch.decoding.len()
    );
}

#[derive(Clone, Debug)]
enum Op {
    Submit {
        family: u32,
        prompt: u32,
        max_tokens: u32,
        limit: u32,
        priority: i32,
        salt: Option<u8>,
    },
    Step,
    Abort(prop::sample::Index),
    DropKv,
}

fn op() -> impl Strategy<Value = Op> {
    let submit = (
        0..3u32,
        1..200u32,
        0..90u32,
        0..90u32,
        -2..3i32,
        prop::option::of(0..2u8),
    );
    prop_oneof![
        6 => submit.prop_map(|(family, prompt, max_tokens, limit, priority, salt)| Op::Submit {
            family, prompt, max_tokens, limit, priority, salt,
        }),
        12 => Just(Op::Step),
        2 => any::<prop::sample::Index>().prop_map(Op::Abort),
        1 => Just(Op::DropKv),
    ]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1..6u32, 6..80u32, 0..30u32, 16..40u32, any::<bool>()).prop_map(
        |(seqs, budget, threshold, blocks, by_priority)| Limits {
            max_num_seqs: seqs,
            max_num_batched_tokens: budget,
            long_prefill_token_threshold: threshold,
            kv_blocks: blocks,
            max_model_len: 256,
            policy: if by_priority {
                Policy::Priority
            } else {
                Policy::Fcfs
            },
        },
    )
}

struct Run {
    batch: Batch,
    expected: HashMap<Key, u32>,
    seen: HashMap<Key, u32>,
    steps: Vec<Step>,
}

impl Run {
    fn apply(&mut self, op: &Op, at: Instant) {
        match op {
            Op::Submit {
                family,
                prompt,
                max_tokens,
                limit,
                priority,
                salt,
            } => {
                let ids: Vec<u32> = (0..*prompt).map(|id| id * 3 + family / 2).collect();
                let salt = salt.map(|salt| salt.to_string());
                let request = Request {
                    prompt: Prompt::from_ids(salt.as_deref(), &ids),
                    max_tokens: *max_tokens,
                    limit: *limit,
                    priority: *priority,
                };
                let key = self.batch.submit(at, request).unwrap();
                let target = (*max_tokens).min(*limit).min(256 - prompt);
                assert!(
                    self.expected.insert(key, target).is_none(),
                    "a key came back"
                );
            }
            Op::Step => self.step(at),
            Op::Abort(pick) => {
                let mut keys: Vec<Key> = self.expected.keys().copied().collect();
                keys.sort();
                if !keys.is_empty() {
                    let key = *pick.get(&keys);
                    let had = self.batch.abort(key);
                    assert_eq!(had, Some(self.seen.get(&key).copied().unwrap_or(0)));
                    assert_eq!(self.batch.abort(key), None);
                    self.expected.remove(&key);
                }
            }
            Op::DropKv => {
                self.batch.drop_kv();
                assert_eq!((self.batch.kv_used(), self.batch.kv_cached()), (0, 0));
            }
        }
        audit(&self.batch);
    }

    fn step(&mut self, at: Instant) {
        let Some(step) = self.batch.step(at) else {
            assert!(self.expected.is_empty(), "idle with requests left");
            return;
        };
        let limits = self.batch.limits();
        assert!(step.load.tokens() <= u64::from(limits.max_num_batched_tokens));
        assert!(
            step.load.tokens() > 0,
            "a step that does nothing would spin for ever"
        );
        assert!(step.preempted.is_empty() || step.admitted.is_empty());
        assert_eq!(step.duration, TINY.model.duration(&step.load));
        let mut new_tokens = 0;
        for key in self.batch.decoding() {
            let seen = self.seen.entry(key).or_default();
            *seen += 1;
            new_tokens += 1;
            assert_eq!(self.batch.generated(key), Some(*seen));
        }
        for end in &step.finished {
            let target = self
                .expected
                .remove(&end.key)
                .expect("ended twice or never began");
            assert_eq!(end.generated, target);
            let seen = self.seen.entry(end.key).or_default();
            if target > 0 {
                *seen += 1;
                new_tokens += 1;
            }
            assert_eq!(*seen, target, "a token went missing");
        }
        assert_eq!(new_tokens, step.new_tokens);
        self.steps.push(step);
    }
}

fn run(limits: &Limits, ops: &[Op], at: Instant) -> Vec<Step> {
    let mut run = Run {
        batch: batch(limits.clone()),
        expected: HashMap::new(),
        seen: HashMap::new(),
        steps: Vec::new(),
    };
    for op in ops {
        run.apply(op, at);
    }
    let mut left = 100_000;
    while !run.batch.is_idle() {
        run.apply(&Op::Step, at);
        left -= 1;
        assert!(left > 0, "does not come to an end");
    }
    assert!(run.expected.is_empty());
    assert_eq!(run.batch.kv_used(), 0, "blocks leaked");
    assert_eq!(run.batch.decoding_kv, 0);
    assert_eq!(run.batch.growing, [0; 16]);
    assert_eq!(run.batch.vacant.len(), run.batch.slots.len());
    run.steps
}

proptest! {
    #[test]
    fn any_traffic_respects_the_limits_and_ends_exactly_once(
        limits in any_limits(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let at = now();
        let first = run(&limits, &ops, at);
        let second = run(&limits, &ops, at);
        prop_assert_eq!(first, second, "the same traffic gave two histories");
    }

    #[test]
    fn waiting_requests_are_admitted_in_order(priorities in prop::collection::vec(-5..5i32, 1..40)) {
        for policy in [Policy::Fcfs, Policy::Priority] {
            let mut batch = batch(Limits { max_num_seqs: 1, ..limits(policy) });
            let mut order: Vec<(i32, Key)> = priorities
                .iter()
                .map(|priority| {
                    let request = Request { priority: *priority, ..request(5, 2) };
                    (*priority, batch.submit(now(), request).unwrap())
                })
                .collect();
            if policy == Policy::Priority {
                order.sort_by_key(|(priority, _)| *priority);
            }
            let ended: Vec<Key> = run_out(&mut batch).iter().map(|end| end.key).collect();
            prop_assert_eq!(ended, order.into_iter().map(|(_, key)| key).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_prefix_is_shared_under_the_same_salt_only(
        shared in 0..200u32,
        salts in (prop::option::of("[a-c]{0,2}"), prop::option::of("[a-c]{0,2}")),
    ) {
        let mut batch = batch(limits(Policy::Fcfs));
        let ids = |rest: u32| (0..shared).chain([rest; 20]).collect::<Vec<u32>>();
        let mut cached = |salt: &Option<String>, rest| {
            let prompt = Prompt::from_ids(salt.as_deref(), &ids(rest));
            batch.submit(now(), Request { prompt, ..request(1, 1) }).unwrap();
            run_out(&mut batch)[0].cached_tokens
        };
        prop_assert_eq!(cached(&salts.0, 7), 0);
        let expected = if salts.0 == salts.1 { shared / 16 * 16 } else { 0 };
        prop_assert_eq!(cached(&salts.1, 1_000_000), expected);
    }
}

#[test]
fn a_full_batch_runs_at_the_speed_of_the_formula() {
    let limits = Limits::of_preset(&A100_8B, Policy::Fcfs);
    let mut batch = Batch::new(limits, A100_8B.model).unwrap();
    for _ in 0..256 {
        batch.submit(now(), request(32, 400)).unwrap();
    }
    while batch.decoding().len() < 256 {
        batch.step(now()).unwrap();
    }
    let mut kv_tokens = batch.decoding_kv;
    for _ in 0..100 {
        let step = batch.step(now()).unwrap();
        kv_tokens += 256;
        let load = StepLoad {
            decoding_sequences: 256,
            prefill_tokens: 0,
            kv_tokens,
        };
        assert_eq!(step.load, load);
        assert_eq!(step.new_tokens, 256);
        assert_eq!(step.duration, A100_8B.model.duration(&load));
    }
}

#[test]
fn decodes_go_on_beside_a_long_prompt() {
    let mut batch = batch(limits(Policy::Fcfs));
    let short = batch.submit(now(), request(8, 50)).unwrap();
    batch.step(now()).unwrap();
    let long = batch.submit(now(), request(150, 5)).unwrap();
    // 47 tokens a step are left for it: four steps.
    for _ in 0..3 {
        let step = batch.step(now()).unwrap();
        assert_eq!(
            (step.load.decoding_sequences, step.load.prefill_tokens),
            (1, 47)
        );
        assert!(step.first_tokens.is_empty());
    }
    let step = batch.step(now()).unwrap();
    assert_eq!(step.first_tokens, [long]);
    assert_eq!(batch.generated(short), Some(5));
}

#[test]
fn the_threshold_leaves_room_for_a_second_prompt() {
    let mut batch = batch(Limits {
        long_prefill_token_threshold: 30,
        ..limits(Policy::Fcfs)
    });
    batch.submit(now(), request(150, 5)).unwrap();
    let short = batch.submit(now(), request(18, 5)).unwrap();
    let step = batch.step(now()).unwrap();
    assert_eq!(step.load.prefill_tokens, 48);
    assert_eq!(step.first_tokens, [short]);
}

#[test]
fn out_of_blocks_the_latest_starts_over_and_loses_no_token() {
    let mut batch = batch(limits(Policy::Fcfs));
    // 2 x (7 + 128 tokens) need 18 blocks in the end, and there are 16.
    let first = batch.submit(now(), request(7, 128)).unwrap();
    let second = batch.submit(now(), request(7, 128)).unwrap();
    let mut preempted = Vec::new();
    let mut finished = Vec::new();
    while let Some(step) = batch.step(now()) {
        preempted.extend(step.preempted);
        finished.extend(step.finished.iter().map(|end| (end.key, end.generated)));
    }
    assert_eq!(preempted, [second]);
    assert_eq!(finished, [(first, 128), (second, 128)]);
}

#[test]
fn out_of_blocks_the_lowest_priority_starts_over() {
    let mut batch = batch(limits(Policy::Priority));
    let low = Request {
        priority: 9,
        ..request(7, 128)
    };
    let low = batch.submit(now(), low).unwrap();
    batch.submit(now(), request(7, 128)).unwrap();
    let mut preempted = Vec::new();
    while let Some(step) = batch.step(now()) {
        preempted.extend(step.preempted);
    }
    assert_eq!(preempted, [low]);
}

#[test]
fn a_prompt_that_gives_way_does_not_stall_the_one_it_gives_way_to() {
    let mut batch = batch(Limits {
        max_num_seqs: 2,
        long_prefill_token_threshold: 1,
        ..limits(Policy::Priority)
    });
    // Chunks of one token, blocks for 256, and the worse one stands first in the list.
    batch.submit(now(), request(129, 0)).unwrap();
    batch.step(now()).unwrap();
    let better = Request {
        priority: -1,
        ..request(129, 0)
    };
    batch.submit(now(), better).unwrap();
    while let Some(step) = batch.step(now()) {
        assert!(step.load.tokens() > 0);
    }
}

#[test]
fn the_least_recently_used_prefix_is_evicted_first() {
    let mut batch = batch(limits(Policy::Fcfs));
    let mut cached = |first: u32, tokens: u32| {
        let ids: Vec<u32> = (first..first + tokens).collect();
        let prompt = Prompt::from_ids(None, &ids);
        batch
            .submit(
                now(),
                Request {
                    prompt,
                    ..request(1, 1)
                },
            )
            .unwrap();
        run_out(&mut batch)[0].cached_tokens
    };
    assert_eq!(cached(0, 97), 0);
    assert_eq!(cached(1_000, 97), 0);
    assert_eq!(cached(0, 97), 96);
    // 12 blocks are cached, 4 are empty: 8 more evict 4 of the older prefix, its tail first.
    assert_eq!(cached(2_000, 127), 0);
    assert_eq!(cached(0, 97), 96);
    assert_eq!(cached(1_000, 97), 32);
}

#[test]
fn cached_prefixes_are_forgotten_only_while_nothing_runs() {
    let mut batch = batch(limits(Policy::Fcfs));
    let ids: Vec<u32> = (0..64).collect();
    let prompt = Prompt::from_ids(None, &ids);
    let request = Request {
        prompt,
        ..request(1, 3)
    };
    batch.submit(now(), request.clone()).unwrap();
    batch.step(now()).unwrap();
    assert_eq!(batch.reset_prefix_cache(), Err(InUse));
    run_out(&mut batch);
    assert_eq!(batch.kv_cached(), 4);
    assert_eq!(batch.reset_prefix_cache(), Ok(()));
    batch.submit(now(), request).unwrap();
    assert_eq!(run_out(&mut batch)[0].cached_tokens, 0);
}

#[test]
fn prefill_alone_is_a_request_too() {
    let mut batch = batch(limits(Policy::Fcfs));
    batch.submit(now(), request(60, 0)).unwrap();
    let finished = run_out(&mut batch);
    assert_eq!(finished[0].generated, 0);
    assert_eq!(batch.clock, 2);
}

#[test]
fn what_never_fits_is_refused_at_the_door() {
    let mut batch = batch(limits(Policy::Fcfs));
    assert_eq!(batch.submit(now(), request(0, 1)), Err(Unfit::EmptyPrompt));
    let too_long = Unfit::PromptTooLong { max_model_len: 256 };
    assert_eq!(batch.submit(now(), request(256, 1)), Err(too_long));
    batch.submit(now(), request(255, 100)).unwrap();
    let end = run_out(&mut batch)[0];
    assert_eq!((end.generated, end.reason), (1, FinishReason::Length));

    let model = TINY.model;
    let broken = |change: fn(&mut Limits)| {
        let mut limits = limits(Policy::Fcfs);
        change(&mut limits);
        Batch::new(limits, model).map(|_| ()).unwrap_err()
    };
    assert_eq!(broken(|l| l.max_num_seqs = 0), LimitsError::Zero);
    assert_eq!(
        broken(|l| l.max_num_batched_tokens = 3),
        LimitsError::BudgetBelowSequences
    );
    assert_eq!(
        broken(|l| l.kv_blocks = 15),
        LimitsError::CacheBelowModelLen
    );
}

#[test]
fn waiting_is_measured_by_the_callers_clock() {
    let mut batch = batch(limits(Policy::Fcfs));
    let at = now();
    batch.submit(at, request(5, 1)).unwrap();
    let step = batch.step(at + Duration::from_millis(30)).unwrap();
    assert_eq!(step.admitted[0].waited, Duration::from_millis(30));
    assert!(!step.admitted[0].resumed);
}

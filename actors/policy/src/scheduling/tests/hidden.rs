//! What is assumed of requests of which nothing is seen, step by step. A step has 1000 tokens here and
//! takes 10 ms once an answer has shown it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{super::*, arrival, core, epoch, fair};
use crate::{cost::Usage, scheduling::settings::TOKEN};

struct Bench {
    scheduler: Scheduler<()>,
    now: Instant,
}

impl Bench {
    /// After one answer of 100 tokens in a second.
    fn new() -> Self {
        let mut capacity = Capacity::of_engine(8, 1000, None);
        capacity.chunk_tokens = 1000;
        let mut bench = Self {
            scheduler: Scheduler::new(&fair(capacity)),
            now: epoch(),
        };
        let key = bench.dispatch(10, None);
        bench.pass(1000);
        bench.complete(key, 100);
        bench.pass(100);
        bench
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        while self.scheduler.overdue(self.now).is_some() {}
        self.scheduler.tick(self.now);
    }

    fn push(&mut self, prompt: u64, max_tokens: Option<u64>) {
        let mut arrival = arrival("", "a", prompt, self.now);
        arrival.max_tokens = max_tokens;
        self.scheduler.push(&arrival, (), self.now).unwrap();
    }

    fn dispatch(&mut self, prompt: u64, max_tokens: Option<u64>) -> Key {
        self.push(prompt, max_tokens);
        let key = self.scheduler.next(self.now).unwrap().key;
        self.scheduler.hide(key);
        key
    }

    fn complete(&mut self, key: Key, completion_tokens: u64) {
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens,
        };
        self.scheduler
            .finish(key, &Outcome::Completed(usage), self.now);
    }

    fn estimate(&mut self, key: Key) -> u64 {
        self.scheduler.estimate(key, self.now).unwrap()
    }

    fn unacked(&self) -> u64 {
        let window = self.scheduler.snapshot_window();
        window.unwrap().unacked_prefill
    }

    fn served(&self) -> i128 {
        core(&self.scheduler).served() / TOKEN
    }
}

#[test]
fn prompt_counts_as_computed_once_it_can_be() {
    let mut bench = Bench::new();
    // Half a step's worth of prompt, a little slower than a full step.
    bench.dispatch(500, None);
    bench.pass(5);
    assert_eq!(bench.unacked(), 500);
    bench.pass(1);
    assert_eq!(bench.unacked(), 0);
}

#[test]
fn prompts_of_several_requests_are_computed_one_after_the_other() {
    let mut bench = Bench::new();
    bench.dispatch(800, None);
    bench.dispatch(800, None);
    bench.pass(10);
    assert_eq!(bench.unacked(), 800);
    bench.pass(9);
    assert_eq!(bench.unacked(), 0);
}

#[test]
fn who_waits_for_a_prompt_wakes_when_it_is_over() {
    let mut bench = Bench::new();
    bench.dispatch(1600, None);
    assert_eq!(bench.scheduler.wakes_at(), None, "nobody waits");
    bench.push(10, None);
    assert_eq!(bench.scheduler.next(bench.now), None);
    let at = bench.scheduler.wakes_at().unwrap();
    assert_eq!((at - bench.now).as_millis(), 18);
    bench.pass(18);
    assert!(bench.scheduler.next(bench.now).is_some());
}

#[test]
fn tokens_come_at_the_pace_of_answers_and_end_at_their_limit() {
    let mut bench = Bench::new();
    let key = bench.dispatch(10, Some(60));
    bench.pass(10);
    assert_eq!(bench.estimate(key), 0, "its prompt");
    bench.pass(505);
    assert_eq!(bench.estimate(key), 51);
    bench.pass(10_000);
    assert_eq!(bench.estimate(key), 60);
}

#[test]
fn usage_settles_whatever_was_estimated() {
    let mut bench = Bench::new();
    let before = bench.served();
    let key = bench.dispatch(10, None);
    bench.pass(10_000);
    bench.estimate(key);
    assert!(bench.served() - before > 1000);
    bench.complete(key, 3);
    assert_eq!(bench.served() - before, 10 + 2 * 3);
}

#[test]
fn hanging_up_before_the_answer_costs_what_was_probably_generated() {
    let mut bench = Bench::new();
    let before = bench.served();
    let key = bench.dispatch(10, Some(1_000_000));
    bench.pass(1015);
    let outcome = Outcome::Cancelled { generated: 0 };
    bench.scheduler.finish(key, &outcome, bench.now);
    // Half a step and more for the prompt, and then a token in each of 10 ms.
    assert_eq!(bench.served() - before, 10 + 2 * 100);
}

#[test]
fn request_of_which_something_is_seen_is_estimated_no_more() {
    let mut bench = Bench::new();
    let key = bench.dispatch(10, None);
    bench.scheduler.first_token(key, bench.now);
    bench.pass(1000);
    assert_eq!(bench.scheduler.estimate(key, bench.now), None);
}

#[test]
fn cut_answers_and_failures_teach_no_pace() {
    let mut bench = Bench::new();
    for outcome in [
        Outcome::Cancelled { generated: 1 },
        Outcome::FailedBeforeFirstToken,
    ] {
        let key = bench.dispatch(10, None);
        bench.pass(5000);
        bench.scheduler.finish(key, &outcome, bench.now);
    }
    let key = bench.dispatch(10, None);
    bench.pass(515);
    assert_eq!(bench.estimate(key), 51);
}

#[test]
fn no_prompt_counts_as_computed_while_requests_wait_inside_the_engine() {
    let mut bench = Bench::new();
    bench.dispatch(500, None);
    bench.scheduler.engine_waiting(Some(3), bench.now);
    bench.pass(2900);
    assert_eq!(bench.unacked(), 500);
    bench.scheduler.engine_waiting(Some(0), bench.now);
    bench.pass(0);
    assert_eq!(bench.unacked(), 0);
}

#[test]
fn engine_that_said_so_and_fell_silent_is_believed_for_seconds() {
    let mut bench = Bench::new();
    bench.dispatch(500, None);
    bench.scheduler.engine_waiting(Some(3), bench.now);
    bench.pass(3000);
    assert_eq!(bench.unacked(), 0);
}

#[test]
fn prefix_that_a_tenants_cache_has_is_not_waited_for() {
    let mut bench = Bench::new();
    for _ in 0..40 {
        let key = bench.dispatch(1000, None);
        bench.pass(20);
        let usage = Usage {
            prompt_tokens: 1000,
            cached_tokens: 900,
            completion_tokens: 1,
        };
        bench
            .scheduler
            .finish(key, &Outcome::Completed(usage), bench.now);
    }
    bench.pass(1000);
    bench.dispatch(2000, None);
    bench.pass(10);
    assert_eq!(bench.unacked(), 0);
}

/// Every answer has 100 tokens. How long one takes changes from a second to three and back, so that the
/// estimate is over 100 for two thirds of the time.
#[test]
fn shares_of_liar_and_honest_are_alike_on_an_engine_whose_pace_changes() {
    let mut scheduler = Scheduler::new(&fair(Capacity::of_engine(8, 1000, None)));
    let mut now = epoch();
    let mut running: VecDeque<(Instant, Key, usize)> = VecDeque::new();
    let mut ended = [0_i32; 2];
    for tick in 0..20_000_u32 {
        now += Duration::from_millis(100);
        for (tenant, claim) in [("honest", 100), ("liar", 1900)] {
            while scheduler.counts(&tenant.into()).waiting < 8 {
                let mut arrival = arrival(tenant, tenant, 10, now);
                arrival.max_tokens = Some(claim);
                scheduler
                    .push(&arrival, usize::from(claim > 100), now)
                    .unwrap();
            }
        }
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens: 100,
        };
        while let Some((_, key, who)) = running.pop_front_if(|(end, ..)| *end <= now) {
            scheduler.finish(key, &Outcome::Completed(usage), now);
            ended[who] += 1;
        }
        while scheduler.overdue(now).is_some() {}
        for (_, key, _) in &running {
            scheduler.estimate(*key, now);
        }
        scheduler.tick(now);
        let takes = if tick / 100 % 2 == 0 { 1000 } else { 3000 };
        while let Some(next) = scheduler.next(now) {
            scheduler.hide(next.key);
            let end = now + Duration::from_millis(takes);
            let at = running.partition_point(|(other, ..)| *other <= end);
            running.insert(at, (end, next.key, next.item));
        }
    }
    let [honest, liar] = ended;
    assert!(honest > 3000, "{honest}");
    assert!((honest - liar).abs() * 100 <= honest, "{honest} {liar}");
}

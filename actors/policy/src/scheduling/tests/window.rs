//! How the window follows the engine: by first tokens that come late or in time, and by the slow
//! audit of the engine's own queue. A step has 1000 tokens here and takes 10 ms.

use std::time::{Duration, Instant};

use super::{super::*, arrival, epoch, fair};

const STEP: u64 = 1000;

/// A scheduler whose engine's pace is known.
struct Bench {
    scheduler: Scheduler<()>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let mut capacity = Capacity::of_engine(8, STEP, None);
        capacity.chunk_tokens = STEP;
        let mut bench = Self {
            scheduler: Scheduler::new(&fair(capacity)),
            now: epoch(),
        };
        let key = bench.dispatch(10);
        bench.scheduler.first_token(key, bench.now);
        for token in 2..12 {
            bench.pass(10);
            bench.scheduler.streamed(key, token, bench.now);
        }
        bench.finish(key);
        bench.tick();
        assert_eq!(bench.window().step_us, Some(10_000));
        // The way there and back takes no time: what comes later waited inside the engine.
        bench.prefill(10);
        bench.tick();
        bench
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    fn tick(&mut self) {
        self.pass(100);
        self.scheduler.tick(self.now);
    }

    fn push(&mut self, prompt: u64) {
        let arrival = arrival("", "a", prompt, self.now);
        self.scheduler.push(&arrival, (), self.now).unwrap();
    }

    fn dispatch(&mut self, prompt: u64) -> Key {
        self.push(prompt);
        self.scheduler.next(self.now).unwrap().key
    }

    fn finish(&mut self, key: Key) {
        let outcome = Outcome::Cancelled { generated: 0 };
        self.scheduler.finish(key, &outcome, self.now);
    }

    /// A prompt of one step whose first token takes so long.
    fn prefill(&mut self, ms: u64) {
        let key = self.dispatch(10);
        self.pass(ms);
        self.scheduler.first_token(key, self.now);
        self.finish(key);
    }

    /// Two prompts that fill the window each: the second has to wait for the first one's token.
    fn press(&mut self) {
        let prompt = self.limit();
        let first = self.dispatch(prompt);
        self.push(prompt);
        assert_eq!(self.scheduler.next(self.now), None);
        self.pass(10 * prompt.div_ceil(STEP));
        self.scheduler.first_token(first, self.now);
        self.finish(first);
        let second = self.scheduler.next(self.now).unwrap().key;
        self.pass(10 * prompt.div_ceil(STEP));
        self.scheduler.first_token(second, self.now);
        self.finish(second);
    }

    fn waits(&mut self, waiting: Option<u64>) {
        self.scheduler.engine_waiting(waiting, self.now);
    }

    fn window(&self) -> WindowState {
        self.scheduler.snapshot_window().unwrap()
    }

    fn limit(&self) -> u64 {
        self.window().unacked_prefill_limit
    }
}

#[test]
fn window_starts_at_one_step_and_first_tokens_in_time_leave_it_there() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.prefill(10);
        // Half a step for the running one to end, and one more: tolerated.
        bench.prefill(25);
        bench.prefill(25);
        bench.tick();
    }
    assert_eq!(bench.limit(), STEP);
}

#[test]
fn first_tokens_that_come_late_shrink_the_window_down_to_half_a_step() {
    let mut bench = Bench::new();
    let late = |bench: &mut Bench| {
        bench.prefill(10);
        bench.prefill(26);
        bench.prefill(26);
        bench.tick();
    };
    late(&mut bench);
    assert_eq!(bench.limit(), 850);
    late(&mut bench);
    // 722.5, rounded up.
    assert_eq!(bench.limit(), 723);
    for _ in 0..20 {
        late(&mut bench);
    }
    assert_eq!(bench.limit(), STEP / 2);
}

#[test]
fn single_late_first_token_is_no_reason() {
    let mut bench = Bench::new();
    bench.prefill(10);
    bench.prefill(10);
    bench.prefill(500);
    bench.tick();
    assert_eq!(bench.limit(), STEP);
}

#[test]
fn window_grows_by_an_eighth_of_a_step_while_it_is_the_limit_up_to_four_steps() {
    let mut bench = Bench::new();
    bench.press();
    bench.tick();
    assert_eq!(bench.limit(), STEP + STEP / 8);
    // Nothing had to wait for it since.
    bench.prefill(10);
    bench.tick();
    assert_eq!(bench.limit(), STEP + STEP / 8);
    for _ in 0..40 {
        bench.press();
        bench.tick();
    }
    assert_eq!(bench.limit(), 4 * STEP);
}

#[test]
fn window_moves_once_in_a_hundred_milliseconds() {
    let mut bench = Bench::new();
    bench.press();
    bench.tick();
    bench.press();
    bench.scheduler.tick(bench.now);
    assert_eq!(bench.limit(), STEP + STEP / 8);
}

#[test]
fn queue_inside_the_engine_shrinks_the_window_once_a_second() {
    let mut bench = Bench::new();
    bench.waits(Some(3));
    bench.pass(999);
    bench.waits(Some(3));
    assert_eq!(bench.limit(), STEP);
    bench.pass(1);
    bench.waits(Some(3));
    assert_eq!(bench.limit(), 850);
    bench.pass(500);
    bench.waits(Some(3));
    assert_eq!(bench.limit(), 850);
    bench.pass(500);
    bench.waits(Some(3));
    assert_eq!(bench.limit(), 723);
}

#[test]
fn short_brief_and_unknown_queues_inside_the_engine_change_nothing() {
    for between in [Some(2), Some(0), None] {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.waits(Some(50));
            bench.pass(900);
            bench.waits(between);
            bench.pass(900);
        }
        assert_eq!(bench.limit(), STEP, "{between:?}");
    }
}

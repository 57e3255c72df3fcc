//! Saturated hours in which nothing hangs, and every kind of hang, on a simulated clock.

use proptest::prelude::*;

use super::*;
use crate::{
    epoch,
    simulation::{
        engine::{Batch, Limits, Policy, Prompt, Request},
        rng::SplitMix,
        steps::{A100_8B, StepModel},
    },
};

const WINDOW: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);
/// How often an engine's page is read, and how long that may take.
const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);
/// From the last thing that moves to the verdict: a look may be on its way, and ticks are no points.
const FOUND: Duration = Duration::from_millis(28_000 + 200);

/// Which thread answers for an engine's own count of iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// One beside the engine's, which forgets to one time in seven: vLLM.
    Beside,
    /// The engine's own, between two steps: llama.cpp.
    Between,
}

/// A saturated engine, and what is seen of it from outside.
struct World {
    rng: SplitMix,
    batch: Batch,
    page: Page,
    begin: Instant,
    /// Since the begin.
    now: Duration,
    step_ends: Option<Duration>,
    new_tokens: u64,
    steps: u64,
    /// From then on no step begins, and none that runs comes to its end.
    hangs_at: Duration,
    /// When the look that is under way began.
    look: Option<Duration>,
    signs: Signs,
    stall: Stall,
    asked: u32,
}

impl World {
    /// Steps take `slowness` times as long as on the hardware that the preset stands for.
    fn new(seed: u64, slowness: u64, page: Page) -> Self {
        let model = StepModel {
            base: A100_8B.model.base * slowness,
            per_decoding_sequence: A100_8B.model.per_decoding_sequence * slowness,
            per_prefill_token: A100_8B.model.per_prefill_token * slowness,
            per_kv_token: A100_8B.model.per_kv_token * slowness,
        };
        let limits = Limits::of_preset(&A100_8B, Policy::Fcfs);
        Self {
            rng: SplitMix::new(seed),
            batch: Batch::new(limits, model).unwrap(),
            page,
            begin: epoch(),
            now: Duration::ZERO,
            step_ends: None,
            new_tokens: 0,
            steps: 0,
            hangs_at: Duration::MAX,
            look: None,
            signs: Signs::default(),
            stall: Stall::default(),
            asked: 0,
        }
    }

    /// Long prompts and deep queues at all times; answers of a token to several hundred.
    fn saturate(&mut self) {
        while self.batch.waiting() < 64 {
            let request = Request {
                prompt: Prompt::opaque(1 + self.rng.below(30_000)),
                max_tokens: 1 + self.rng.below(600),
                limit: u32::MAX,
                priority: 0,
            };
            self.batch.submit(self.begin + self.now, request).unwrap();
        }
    }

    fn work(&mut self) {
        while self.step_ends.is_none_or(|end| end <= self.now) {
            let begins = self.step_ends.unwrap_or(self.now);
            if self.step_ends.take().is_some() {
                self.signs.progress += std::mem::take(&mut self.new_tokens);
                if self.page == Page::Between {
                    self.answer();
                }
            }
            self.saturate();
            let step = self.batch.step(self.begin + begins).unwrap();
            let end = begins + step.duration;
            if end >= self.hangs_at {
                self.step_ends = Some(Duration::MAX);
                return;
            }
            self.steps += 1;
            self.new_tokens = step.new_tokens;
            self.step_ends = Some(end);
        }
    }

    fn answer(&mut self) {
        if self.look.take().is_some() {
            self.signs.work = Some(self.steps);
        }
    }

    fn watch(&mut self) {
        match self.look {
            Some(began) if self.now >= began + ANSWER => {
                self.look = None;
                self.signs.work = None;
            }
            Some(_) => {}
            None if self.now.as_millis().is_multiple_of(LOOK.as_millis()) => {
                self.look = Some(self.now);
            }
            None => {}
        }
        if self.page == Page::Beside && self.look.is_some() {
            self.answer();
            if self.rng.below(7) == 0 {
                self.signs.work = None;
            }
        }
    }

    /// A tick later. The proof that a suspected engine is asked for is left out: it can only help.
    fn tick(&mut self) -> Verdict {
        self.now += TICK;
        self.work();
        self.watch();
        let signs = Signs {
            running: self.batch.running() as u64,
            ..self.signs
        };
        let verdict = self.stall.look(self.begin + self.now, signs, WINDOW);
        self.asked += u32::from(verdict == Verdict::Suspect);
        verdict
    }
}

#[test]
fn saturated_hour_is_no_hang() {
    // The slowest takes 10 s for a step of 2,048 tokens, and a long prompt takes it minutes.
    for (seed, slowness) in [(1, 1), (2, 10), (3, 30), (4, 60)] {
        for page in [Page::Beside, Page::Between] {
            let mut world = World::new(seed, slowness, page);
            while world.now < Duration::from_secs(3600) {
                let verdict = world.tick();
                let at = world.now;
                assert_ne!(
                    verdict,
                    Verdict::Hung,
                    "{page:?}, {slowness} times slower, at {at:?}"
                );
            }
            assert_eq!(world.asked, 0, "{page:?}, {slowness} times slower");
        }
    }
}

#[test]
fn engine_that_hangs_is_found_in_time_whatever_it_was_doing() {
    for seed in 0..20 {
        for page in [Page::Beside, Page::Between] {
            let mut world = World::new(seed, 1 + seed % 10, page);
            world.hangs_at = Duration::from_millis(60_000 + 737 * seed);
            let (mut moved, mut last) = (Duration::ZERO, Signs::default());
            while world.tick() != Verdict::Hung {
                if (world.signs.progress, world.signs.work.max(last.work))
                    != (last.progress, last.work)
                {
                    moved = world.now;
                    last = Signs {
                        work: world.signs.work.max(last.work),
                        ..world.signs
                    };
                }
                assert!(world.now < Duration::from_secs(120), "not found");
            }
            let took = world.now - moved;
            assert!(took <= FOUND, "{page:?}, seed {seed}: {took:?}");
        }
    }
}

fn busy(progress: u64, work: Option<u64>) -> Signs {
    Signs {
        running: 256,
        progress,
        work,
    }
}

/// What is made of signs at these seconds.
fn verdicts(looks: &[(u64, Signs)]) -> Vec<Verdict> {
    let (mut stall, begin) = (Stall::default(), epoch());
    let looks = looks.iter();
    looks
        .map(|(second, signs)| {
            let now = begin + Duration::from_secs(*second);
            stall.look(now, *signs, WINDOW)
        })
        .collect()
}

#[test]
fn engine_that_stands_still_is_asked_and_then_given_up_once() {
    use Verdict::{Fine, Hung, Suspect};
    // It does not answer any more, and new requests and lost clients make no difference.
    let still = |running| Signs {
        running,
        ..busy(7, None)
    };
    let looks = [
        (0, busy(7, Some(3))),
        (19, still(9)),
        (20, still(2)),
        (27, still(3)),
        (28, still(4)),
        (60, still(4)),
    ];
    assert_eq!(verdicts(&looks), [Fine, Fine, Suspect, Fine, Hung, Fine]);
}

#[test]
fn whatever_moves_after_the_question_clears_the_suspicion() {
    use Verdict::{Fine, Suspect};
    for moved in [busy(8, None), busy(7, Some(4))] {
        let looks = [
            (0, busy(7, Some(3))),
            (20, busy(7, None)),
            (27, moved),
            (46, moved),
            (47, moved),
        ];
        assert_eq!(verdicts(&looks), [Fine, Suspect, Fine, Fine, Suspect]);
    }
}

#[test]
fn time_without_work_does_not_count() {
    let hours = (0..5).map(|hour| hour * 3600);
    let looks: Vec<_> = hours
        .flat_map(|second| [(second, Signs::default()), (second, busy(0, None))])
        .collect();
    assert!(verdicts(&looks).iter().all(|v| *v == Verdict::Fine));
}

proptest! {
    #[test]
    fn nothing_is_suspected_while_anything_moves(
        looks in prop::collection::vec((1..190_u32, any::<bool>(), any::<bool>(), 0..3_u64), 1..200),
    ) {
        let (mut stall, mut now) = (Stall::default(), epoch());
        let (mut progress, mut iterations) = (0, 0);
        for (ticks, streams, tells, running) in looks {
            now += TICK * ticks;
            // At each look one of the two has moved.
            if streams {
                progress += 1;
            } else {
                iterations += 1;
            }
            let told = (tells || !streams).then_some(iterations);
            let signs = Signs { running, progress, work: told };
            prop_assert_eq!(stall.look(now, signs, WINDOW), Verdict::Fine);
        }
    }
}

//! Messages in any order, late, repeated and wrong: the books stay right.

use std::time::Duration;

use kvwarden_policy::{
    Generation, ModelId, failure::FailureClass, lifecycle::SleepLevel, simulation::rng::SplitMix,
};
use tokio::{sync::oneshot::Receiver, time::Instant};

use super::{DEADLINE, Node, Setup};
use crate::{
    Admission, Permit,
    engine::{EngineEnd, News},
    model::Occupancy,
    protocol::{Drain, EngineNews, Grant, Reclaim, SetTarget, Target},
};

const SEEDS: u64 = 30;
const MESSAGES: u32 = 150;

/// Who waits and who runs, as the clients know it.
#[derive(Default)]
struct Clients {
    waiting: Vec<Receiver<Admission>>,
    running: Vec<Permit>,
}

impl Clients {
    /// Those whose turn has come run, those who were refused are gone.
    fn look(&mut self) {
        for mut answer in std::mem::take(&mut self.waiting) {
            match answer.try_recv() {
                Ok(Ok(permit)) => self.running.push(permit),
                Ok(Err(_)) => {}
                Err(_) => self.waiting.push(answer),
            }
        }
    }

    /// One that runs goes on, ends, or fails.
    fn act(&mut self, rng: &mut SplitMix) {
        let Some(mut permit) = self.running.pop() else {
            return;
        };
        match rng.below(5) {
            0 => {
                permit.first_token();
                self.running.insert(0, permit);
            }
            1 => permit.engine_failed(),
            2 => permit.engine_unreachable(),
            3 => self.waiting.push(permit.requeue()),
            _ => {}
        }
    }
}

fn news(rng: &mut SplitMix) -> EngineNews {
    let reason = "as the test likes it".to_owned();
    let what = match rng.below(7) {
        0 => News::Demoted,
        1 => News::DemoteFailed { reason },
        2 => News::Woken,
        3 => News::WakeFailed { reason },
        4 => News::Verified,
        5 => News::VerifyFailed { reason },
        _ => News::Exited(EngineEnd::new(FailureClass::Crashed, reason)),
    };
    EngineNews {
        engine: ModelId::from("m"),
        generation: Generation(rng.below(4).into()),
        what,
    }
}

fn tell(node: &Node, rng: &mut SplitMix) {
    let engine = ModelId::from("m");
    let order = rng.below(20).into();
    let level = SleepLevel::ALL[rng.below(5) as usize];
    let target = [
        Target::Load,
        Target::Sleep(level),
        Target::Pin(rng.below(2) == 0),
    ];
    match rng.below(4) {
        0 => node.model.do_send(Grant {
            engine,
            order,
            devices: Vec::new(),
            is_prefetch: rng.below(2) == 0,
            inherited: None,
        }),
        1 => node.model.do_send(Reclaim {
            engine,
            order,
            to: level,
        }),
        2 => node.model.do_send(SetTarget {
            model: engine,
            target: target[rng.below(3) as usize],
        }),
        _ => node.model.do_send(news(rng)),
    }
}

async fn disorder(seed: u64) {
    let node = Node::start(Setup {
        max_running: 3,
        max_waiting: 20,
        ..Setup::default()
    })
    .await;
    let mut rng = SplitMix::named(seed, "disorder");
    let mut clients = Clients::default();
    for _ in 0..MESSAGES {
        match rng.below(8) {
            0..=2 => clients.waiting.push(node.ask("t", "m")),
            3 => drop(clients.waiting.pop()),
            4 => clients.look(),
            5 => clients.act(&mut rng),
            _ => tell(&node, &mut rng),
        }
        if rng.below(4) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let deadline = Instant::now() + Duration::from_millis(1);
    node.router.do_send(Drain { deadline });
    drop(clients.running);
    for answer in clients.waiting {
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("seed {seed}: a request never ends"));
        assert!(answer.is_ok(), "seed {seed}: a request was forgotten");
    }
    let state = node.until(|state| state.running + state.waiting == 0).await;
    for engine in state.engines {
        assert_eq!(engine.occupancy, Occupancy::default(), "seed {seed}");
    }
    assert_eq!(node.tenants().await[0].in_flight, 0, "seed {seed}");
}

#[actix_rt::test]
async fn whatever_comes_when_every_request_ends_once_and_gives_everything_back() {
    for seed in 0..SEEDS {
        disorder(seed).await;
    }
}

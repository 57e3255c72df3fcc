//! The actors together, with an attached engine that answers everything with 200.

mod cost;
mod disorder;
mod operators;
mod overview;
mod resigned;
pub(crate) mod server;

use std::{sync::Arc, time::Duration};

use actix::{Actor, Addr};
use kvwarden_policy::{
    ModelId, TenantId,
    cost::{RequestSize, Usage},
    lifecycle::State,
    residency,
    scheduling::{Bound, Bounds, Capacity, Discipline, FairSettings, Settings, TenantBounds},
    tier::Tier,
};
use tokio::{sync::oneshot::Receiver, time::Instant};

use crate::{
    Admission, Gpu, Model, Permit, Refusal, RequestHints, Router, Ticket,
    engine::{Attached, EngineKind, EngineSpec},
    gpu,
    model::{self, EngineParams, ModelState},
    protocol::{Admit, Configure, Drain, ListActors, Preparation, Prepared, Snapshot},
    router::{OTHERS, Unnamed},
    tenant::{self, TenantState},
};

use server::server;

/// Longer than any event here takes, even on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(20);

struct Node {
    router: Addr<Router>,
    model: Addr<Model>,
}

#[derive(Clone)]
pub(crate) struct Setup {
    max_running: usize,
    max_waiting: usize,
    queue_timeout: Duration,
    limits: tenant::Limits,
    unnamed: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            max_running: 1,
            max_waiting: 10,
            queue_timeout: DEADLINE,
            limits: tenant::Limits::default(),
            unnamed: 10,
        }
    }
}

impl Setup {
    /// One named tenant `t` and that model.
    fn configure(&self) -> Configure {
        Configure {
            tenants: vec![(TenantId::from("t"), self.limits.clone())],
            unnamed: Unnamed {
                limits: tenant::Limits::default(),
                at_most: self.unnamed,
            },
            models: vec![self.model()],
        }
    }

    /// One model `m` (alias `short`) on somebody else's server.
    pub(crate) fn model(&self) -> model::Params {
        model::Params {
            id: ModelId::from("m"),
            names: vec!["m".to_owned(), "short".to_owned()],
            engines: vec![EngineParams {
                name: ModelId::from("m"),
                kind: EngineKind::Attach,
                revision: 0,
                costs: None,
            }],
            scheduling: Settings {
                discipline: Discipline::Fair,
                bounds: Bounds {
                    requests: self.max_waiting,
                    bytes: u64::MAX,
                },
                max_in_flight: self.max_running,
                fair: FairSettings::new(Capacity {
                    sequences: self.max_running as u64,
                    headroom: 0,
                    step_tokens: 2048,
                    chunk_tokens: 2048,
                    kv_tokens: None,
                }),
            },
            queue_timeout: self.queue_timeout,
            stall_timeout: DEADLINE,
            broken_pause: DEADLINE,
            autostart: true,
            is_pinned: false,
            idle_ttl: None,
            rate: residency::Rate::default(),
            observer: Arc::new(()),
        }
    }
}

impl Node {
    /// One model `m` (alias `short`), one named tenant `t`, ready to serve.
    async fn start(setup: Setup) -> Self {
        let here = std::env::temp_dir();
        let gpu = Gpu::new(gpu::Params {
            shim: "/nonexistent".into(),
            run_dir: here.clone(),
            log_dir: here,
            memory: None,
            tuning: gpu::Tuning {
                start_stall_timeout: DEADLINE,
                ..gpu::Tuning::default()
            },
            leadership: crate::process::leadership::Leadership::sole(),
            observer: Arc::new(()),
        });
        let gpu = gpu.start();
        let router = Router::new(gpu.clone(), Arc::new(())).start();
        router.do_send(setup.configure());
        gpu.do_send(gpu::SetRouter(router.downgrade()));
        let model = router.send(ListActors).await.unwrap().models.remove(0).1;
        let spec = Attached {
            base: server(|_| ("200 OK", "{}")),
            api_key: None,
            served_name: "m".to_owned(),
        };
        model.do_send(Prepared {
            engine: ModelId::from("m"),
            revision: 0,
            how: Preparation::Done(Arc::new(EngineSpec::Attached(spec))),
        });
        let node = Self { router, model };
        node.until(|state| state.state == State::Ready).await;
        node
    }

    fn ask(&self, tenant: &str, model: &str) -> Receiver<Admission> {
        let hints = RequestHints {
            is_streamed: true,
            ..RequestHints::default()
        };
        self.ask_on(hints, tenant, model)
    }

    fn ask_whole(&self, tenant: &str) -> Receiver<Admission> {
        self.ask_on(RequestHints::default(), tenant, "m")
    }

    fn ask_on(&self, hints: RequestHints, tenant: &str, model: &str) -> Receiver<Admission> {
        let size = RequestSize {
            prompt_bytes: 400,
            images: 0,
            body_bytes: 500,
            max_tokens: Some(100),
            choices: 1,
        };
        let tenant = TenantId::from(tenant);
        let (ticket, answer) = Ticket::new(tenant, model.to_owned(), size, hints);
        self.router.do_send(Admit(ticket));
        answer
    }

    async fn state(&self) -> ModelState {
        self.model.send(Snapshot::default()).await.unwrap()
    }

    async fn tenants(&self) -> Vec<TenantState> {
        let mut states = Vec::new();
        for (_, tenant) in self.router.send(ListActors).await.unwrap().tenants {
            states.push(tenant.send(Snapshot::default()).await.unwrap());
        }
        states
    }

    async fn until_used(&self, tenant: &str, tokens: u64) {
        let begun = Instant::now();
        loop {
            let tenants = self.tenants().await;
            let is_it = |state: &&TenantState| state.id.as_str() == tenant;
            if tenants.iter().find(is_it).unwrap().used.total() == tokens {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{tenants:?}");
        }
    }

    async fn until(&self, is_so: impl Fn(&ModelState) -> bool) -> ModelState {
        let begun = Instant::now();
        loop {
            let state = self.state().await;
            if is_so(&state) {
                return state;
            }
            assert!(begun.elapsed() < DEADLINE, "still {state:?}");
            tokio::task::yield_now().await;
        }
    }
}

pub(crate) async fn permit(answer: Receiver<Admission>) -> Permit {
    let answer = tokio::time::timeout(DEADLINE, answer)
        .await
        .unwrap()
        .unwrap();
    answer.unwrap_or_else(|refusal| panic!("refused: {refusal}"))
}

pub(crate) async fn refusal(answer: Receiver<Admission>) -> Refusal {
    let answer = tokio::time::timeout(DEADLINE, answer)
        .await
        .unwrap()
        .unwrap();
    answer.err().unwrap()
}

#[actix_rt::test]
async fn dropped_permit_frees_its_place_for_the_next() {
    let node = Node::start(Setup::default()).await;
    let first = permit(node.ask("t", "m")).await;
    let second = node.ask("t", "short");
    node.until(|state| state.waiting == 1 && state.running == 1)
        .await;
    drop(first);
    drop(permit(second).await);
    node.until(|state| state.running == 0).await;
}

#[actix_rt::test]
async fn client_that_hangs_up_while_queued_leaves_nothing_behind() {
    let node = Node::start(Setup::default()).await;
    let running = permit(node.ask("t", "m")).await;
    drop(node.ask("t", "m"));
    let behind = node.ask("t", "m");
    drop(running);
    drop(permit(behind).await);
    node.until(|state| state.running == 0 && state.waiting == 0)
        .await;
    assert_eq!(node.tenants().await[0].in_flight, 0);
}

#[actix_rt::test]
async fn request_put_back_lets_others_pass_for_a_moment_and_then_goes_before_what_waits() {
    let node = Node::start(Setup::default()).await;
    let first = permit(node.ask("t", "m")).await;
    let behind = node.ask("t", "m");
    let last = node.ask("t", "m");
    node.until(|state| state.waiting == 2).await;
    let again = first.requeue();
    let passed = permit(behind).await;
    let state = node.until(|state| state.waiting == 2).await;
    assert_eq!(state.record.retried, 1);
    tokio::time::sleep(Duration::from_millis(400)).await;
    drop(passed);
    let again = permit(again).await;
    assert_eq!(node.tenants().await[0].in_flight, 2);
    drop(again);
    drop(permit(last).await);
    let tenants = node.tenants().await;
    assert_eq!((tenants[0].in_flight, tenants[0].admitted), (0, 3));
}

#[actix_rt::test]
async fn request_put_back_whose_engine_stays_away_is_refused_in_time() {
    let queue_timeout = Duration::from_millis(300);
    let node = Node::start(Setup {
        queue_timeout,
        ..Setup::default()
    })
    .await;
    let mut lost = permit(node.ask("t", "m")).await;
    // Nothing is sent to such an engine for longer than this request waits.
    lost.engine_unreachable();
    assert_eq!(
        refusal(lost.requeue()).await,
        Refusal::QueueTimeout {
            waited: queue_timeout
        }
    );
}

#[actix_rt::test]
async fn unknown_model_is_refused_before_its_tenant_is_charged() {
    let node = Node::start(Setup::default()).await;
    let why = refusal(node.ask("t", "gpt-7")).await;
    assert_eq!(why, Refusal::UnknownModel("gpt-7".to_owned()));
    assert_eq!(node.tenants().await[0].admitted, 0);
}

#[actix_rt::test]
async fn tenant_that_fills_the_queue_is_told_so() {
    let node = Node::start(Setup {
        max_waiting: 1,
        ..Setup::default()
    })
    .await;
    let _running = permit(node.ask("t", "m")).await;
    let _waiting = node.ask("t", "m");
    assert_eq!(
        refusal(node.ask("t", "m")).await,
        Refusal::TenantQueueFull {
            bound: Bound::TenantRequests
        }
    );
}

#[actix_rt::test]
async fn tenant_at_its_own_part_of_the_queue_is_refused_and_another_waits() {
    let waiting = |requests, bytes| tenant::Limits {
        queued: TenantBounds { requests, bytes },
        ..tenant::Limits::default()
    };
    for (limits, bound) in [
        (waiting(1, u64::MAX), Bound::TenantRequests),
        (waiting(10, 999), Bound::TenantBytes),
    ] {
        let node = Node::start(Setup {
            limits,
            ..Setup::default()
        })
        .await;
        let _running = permit(node.ask("t", "m")).await;
        let _waiting = node.ask("t", "m");
        let why = refusal(node.ask("t", "m")).await;
        assert_eq!(why, Refusal::TenantQueueFull { bound });
        let _stranger = node.ask("stranger", "m");
        node.until(|state| state.waiting == 2).await;
    }
}

#[actix_rt::test]
async fn request_whose_deadline_passes_in_the_queue_is_refused() {
    let node = Node::start(Setup::default()).await;
    let _running = permit(node.ask("t", "m")).await;
    let hints = RequestHints {
        deadline: Some(Instant::now() + Duration::from_millis(150)),
        ..RequestHints::default()
    };
    let why = refusal(node.ask_on(hints, "t", "m")).await;
    assert_eq!(why, Refusal::DeadlinePassed);
}

#[actix_rt::test]
async fn session_does_not_wait_behind_the_line_of_another() {
    let node = Node::start(Setup::default()).await;
    let running = permit(node.ask("t", "m")).await;
    let of = |session: &str| RequestHints {
        session: Some(session.into()),
        ..RequestHints::default()
    };
    let mut busy = [(); 3].map(|()| node.ask_on(of("busy"), "t", "m"));
    let other = node.ask_on(of("other"), "t", "m");
    node.until(|state| state.waiting == 4).await;
    drop(running);
    let _running = permit(other).await;
    assert!(busy.iter_mut().all(|answer| answer.try_recv().is_err()));
}

#[actix_rt::test]
async fn flexible_request_waits_behind_its_tenants_others() {
    let node = Node::start(Setup::default()).await;
    let running = permit(node.ask("t", "m")).await;
    let hints = RequestHints {
        tier: Tier::Flex,
        ..RequestHints::default()
    };
    let mut flexible = node.ask_on(hints, "t", "m");
    let standard = node.ask("t", "m");
    node.until(|state| state.waiting == 2).await;
    drop(running);
    let running = permit(standard).await;
    assert!(flexible.try_recv().is_err());
    drop(running);
    drop(permit(flexible).await);
}

#[actix_rt::test]
async fn day_of_tokens_is_used_up_by_what_was_really_used() {
    let limits = tenant::Limits {
        tokens_per_day: Some(390),
        ..tenant::Limits::default()
    };
    let node = Node::start(Setup {
        limits,
        ..Setup::default()
    })
    .await;
    let mut used = permit(node.ask("t", "m")).await;
    used.report(Usage {
        prompt_tokens: 95,
        cached_tokens: 0,
        completion_tokens: 96,
    });
    drop(used);
    node.until_used("t", 191).await;
    let Refusal::DailyTokens { limit, .. } = refusal(node.ask("t", "m")).await else {
        panic!("191 of 390 are used, and the next may use 200");
    };
    assert_eq!(limit, 390);
}

#[actix_rt::test]
async fn tenant_learns_how_many_tokens_its_bytes_are() {
    let limits = tenant::Limits {
        tokens_per_minute: Some(100_000),
        ..tenant::Limits::default()
    };
    let node = Node::start(Setup {
        limits,
        ..Setup::default()
    })
    .await;
    // A byte of this tenant's language is a token.
    for round in 1..=40 {
        let mut used = permit(node.ask("t", "m")).await;
        used.report(Usage {
            prompt_tokens: 400,
            cached_tokens: 0,
            completion_tokens: 0,
        });
        drop(used);
        node.until_used("t", 400 * round).await;
    }
    let running = permit(node.ask("t", "m")).await;
    let held = 100_000 - running.rate_limits().tokens.unwrap().remaining;
    assert!(held > 16_000 + 430, "100 of them are the answer's: {held}");
}

#[actix_rt::test]
async fn cut_answer_is_billed_by_what_was_learned_of_its_model() {
    let node = Node::start(Setup::default()).await;
    for round in 1..=100 {
        let mut used = permit(node.ask("t", "m")).await;
        used.report(Usage {
            prompt_tokens: 300,
            cached_tokens: 0,
            completion_tokens: 0,
        });
        drop(used);
        node.until_used("t", 300 * round).await;
    }
    let mut cut = permit(node.ask("t", "m")).await;
    cut.first_token();
    cut.streamed(7);
    drop(cut);
    node.until(|state| state.running == 0).await;
    let billed = node.tenants().await[0].used.total() - 300 * 100;
    assert!((294 + 7..=306 + 7).contains(&billed), "{billed}");
}

#[actix_rt::test]
async fn first_token_is_told_once_and_not_at_all_of_an_answer_that_comes_whole() {
    let node = Node::start(Setup::default()).await;
    let mut handled = Vec::new();
    for is_whole in [false, true] {
        let asked = if is_whole {
            node.ask_whole("t")
        } else {
            node.ask("t", "m")
        };
        let mut permit = permit(asked).await;
        let before = node.state().await.vitals.handled;
        permit.first_token();
        permit.first_token();
        drop(permit);
        handled.push(node.state().await.vitals.handled - before);
    }
    assert_eq!(handled, [2, 1], "first token and end, and the end");
}

#[actix_rt::test]
async fn hanging_up_before_a_whole_answer_is_billed_by_what_was_probably_generated() {
    let node = Node::start(Setup::default()).await;
    // One answer of 100 tokens in half a second.
    let mut whole = permit(node.ask_whole("t")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    whole.report(Usage {
        prompt_tokens: 100,
        cached_tokens: 0,
        completion_tokens: 100,
    });
    drop(whole);
    node.until_used("t", 200).await;
    let cut = permit(node.ask_whole("t")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(cut);
    node.until(|state| state.running == 0).await;
    let billed = node.tenants().await[0].used.total() - 200;
    assert!((110..=200).contains(&billed), "{billed}");
}

#[actix_rt::test]
async fn request_whose_turn_does_not_come_in_time_is_refused() {
    let queue_timeout = Duration::from_millis(150);
    let node = Node::start(Setup {
        queue_timeout,
        ..Setup::default()
    })
    .await;
    let _running = permit(node.ask("t", "m")).await;
    let why = refusal(node.ask("t", "m")).await;
    assert_eq!(
        why,
        Refusal::QueueTimeout {
            waited: queue_timeout
        }
    );
}

#[actix_rt::test]
async fn tokens_that_were_reserved_and_not_used_come_back() {
    let limits = tenant::Limits {
        tokens_per_minute: Some(210),
        ..tenant::Limits::default()
    };
    let node = Node::start(Setup {
        limits,
        max_running: 8,
        ..Setup::default()
    })
    .await;
    let mut used = permit(node.ask("t", "m")).await;
    // 100 prompt and 100 output tokens are held, so another 200 do not fit.
    assert!(matches!(
        refusal(node.ask("t", "m")).await,
        Refusal::TokenRate { wanted: 200, .. }
    ));
    used.report(Usage {
        prompt_tokens: 5,
        cached_tokens: 0,
        completion_tokens: 3,
    });
    drop(used);
    node.until_used("t", 8).await;
    drop(permit(node.ask("t", "m")).await);
}

#[actix_rt::test]
async fn tenant_at_its_concurrency_is_refused_and_another_is_not() {
    let limits = tenant::Limits {
        concurrency: Some(1),
        ..tenant::Limits::default()
    };
    let node = Node::start(Setup {
        limits,
        max_running: 8,
        ..Setup::default()
    })
    .await;
    let _held = permit(node.ask("t", "m")).await;
    assert_eq!(
        refusal(node.ask("t", "m")).await,
        Refusal::Concurrency { limit: 1 }
    );
    drop(permit(node.ask("stranger", "m")).await);
}

#[actix_rt::test]
async fn strangers_beyond_the_limit_share_one_tenant() {
    let node = Node::start(Setup {
        unnamed: 2,
        max_running: 8,
        ..Setup::default()
    })
    .await;
    for name in ["a", "b", "c", "d"] {
        drop(permit(node.ask(name, "m")).await);
    }
    let names: Vec<_> = node
        .tenants()
        .await
        .iter()
        .map(|tenant| tenant.id.to_string())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.iter().any(|name| name == OTHERS), "{names:?}");
}

#[actix_rt::test]
async fn drain_lets_the_running_end_and_the_new_wait_for_another_server() {
    let node = Node::start(Setup::default()).await;
    let running = permit(node.ask("t", "m")).await;
    node.router.do_send(Drain {
        deadline: Instant::now() + DEADLINE,
    });
    assert_eq!(refusal(node.ask("t", "m")).await, Refusal::Draining);
    assert_eq!(node.state().await.state, State::Ready);
    drop(running);
    node.until(|state| state.state == State::Cold).await;
}

#[actix_rt::test]
async fn drain_past_its_deadline_stops_the_engine_under_a_running_request() {
    let node = Node::start(Setup::default()).await;
    let _running = permit(node.ask("t", "m")).await;
    let waiting = node.ask("t", "m");
    node.router.do_send(Drain {
        deadline: Instant::now(),
    });
    assert_eq!(refusal(waiting).await, Refusal::Draining);
    node.until(|state| state.state == State::Cold).await;
}

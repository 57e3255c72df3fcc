//! What operators see while actors don't answer.

use actix::{Actor as _, Addr};
use actix_rt::Arbiter;
use actix_web::{App, body::to_bytes, http::StatusCode, test};
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use kvwarden_actors::{
    Gpu, Router,
    gpu::{self, Tuning},
    process::leadership::Leadership,
};

use super::*;
use crate::{
    config::{Changes, Config, Environment, Overrides},
    metrics::Metrics,
};

/// Reads nothing again.
struct Never;

impl Reload for Never {
    fn reload(&self) -> LocalBoxFuture<'_, Result<Changes, Failure>> {
        async { Err(Refusal::Draining.into()) }.boxed_local()
    }

    fn last(&self) -> Value {
        Value::Null
    }
}

/// Keeps the thread of an arbiter busy until the returned sender is dropped.
fn hold(arbiter: &Arbiter) -> std::sync::mpsc::Sender<()> {
    let (release, held) = std::sync::mpsc::channel();
    arbiter.spawn_fn(move || {
        let _ = held.recv();
    });
    release
}

/// Router and GPU set, each on a thread of its own.
struct Node {
    router: Addr<Router>,
    threads: [Arbiter; 2],
}

impl Node {
    fn start() -> Self {
        let threads = [Arbiter::new(), Arbiter::new()];
        let here = std::env::temp_dir();
        let params = gpu::Params {
            shim: "/nonexistent".into(),
            run_dir: here.clone(),
            log_dir: here,
            memory: None,
            tuning: Tuning::default(),
            leadership: Leadership::sole(),
            observer: Arc::new(()),
        };
        let gpu = Gpu::start_in_arbiter(&threads[1].handle(), |_| Gpu::new(params));
        let router =
            Router::start_in_arbiter(&threads[0].handle(), |_| Router::new(gpu, Arc::new(())));
        Self { router, threads }
    }

    /// The answer to a `GET`.
    async fn get(&self, path: &str) -> (StatusCode, String) {
        let (models, env) = (["m".to_owned()], Environment::new());
        let overrides = Overrides {
            engine: Some(kvwarden_actors::engine::EngineKind::Sim),
            ..Overrides::default()
        };
        let config = Config::from_flags(&models, &env, &overrides);
        let config = config.unwrap().config;
        let (metrics, leadership) = (Arc::new(Metrics::register()), Leadership::sole());
        let shared = Arc::new(Shared::new(
            &config,
            self.router.clone(),
            metrics,
            None,
            leadership,
        ));
        let reload: Arc<dyn Reload> = Arc::new(Never);
        let app = App::new()
            .app_data(web::Data::new(shared))
            .app_data(web::Data::from(reload))
            .configure(crate::http::routes);
        let app = test::init_service(app).await;
        let request = test::TestRequest::get().uri(path).to_request();
        let response = test::call_service(&app, request).await;
        let status = response.status();
        let body = to_bytes(response.into_body()).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[actix_web::test]
async fn stuck_gpu_is_named_and_blanks_nothing() {
    let node = Node::start();
    let _release = hold(&node.threads[1]);
    let (status, body) = node.get("/kvwarden/status").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["unresponsive_actors"], json!(["gpu"]));
    assert_eq!(body["router"]["models"], 0);
    let (status, body) = node.get("/health").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("degraded"), "{body}");
    let (status, body) = node.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("actor=\"router\""), "{body}");
    assert!(!body.contains("actor=\"gpu\""), "{body}");
}

#[actix_web::test]
async fn stuck_router_is_no_shutdown() {
    let node = Node::start();
    let _release = hold(&node.threads[0]);
    for path in ["/health", "/kvwarden/status", "/v1/models"] {
        let (status, body) = node.get(path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(body.contains("actor_timeout"), "{body}");
    }
    let (status, _) = node.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
}

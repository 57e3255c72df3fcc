//! A slow look at an engine's own `/metrics`: how many requests wait inside it.
//!
//! The queue goes by what it sees itself; this only finds out when that went wrong. So an engine
//! that tells nothing is served as well, and one that has no such page is not asked again.

use std::{sync::Arc, time::Duration};

use actix::WeakAddr;
use awc::{Client, http::StatusCode};
use tokio::task::JoinHandle;

use super::Model;
use crate::{gpu::engine::Endpoint, prometheus, protocol::EngineWaiting};

/// How often is looked, and how long a look may take.
const PERIOD: Duration = Duration::from_secs(1);

/// Largest page that is read; vLLM's has 200 KiB.
const MAX_PAGE: usize = 4 << 20;

/// The task that looks. It ends when this is dropped.
pub(super) struct Audit(JoinHandle<()>);

impl Audit {
    pub(super) fn of(endpoint: Arc<Endpoint>, model: WeakAddr<Model>) -> Self {
        Self(actix_rt::spawn(look_on(endpoint, model)))
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a look showed.
enum Look {
    Waiting(Option<u64>),
    NoSuchPage,
}

async fn look_on(endpoint: Arc<Endpoint>, model: WeakAddr<Model>) {
    let client = Client::builder()
        .timeout(PERIOD)
        .disable_redirects()
        .finish();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Look::Waiting(waiting) = look(&client, &endpoint).await else {
            return;
        };
        let Some(model) = model.upgrade() else {
            return;
        };
        model.do_send(EngineWaiting {
            engine: endpoint.model.clone(),
            generation: endpoint.generation,
            waiting,
        });
    }
}

async fn look(client: &Client, endpoint: &Endpoint) -> Look {
    let mut request = client.get(format!("{}/metrics", endpoint.base));
    if let Some(key) = &endpoint.api_key {
        request = request.bearer_auth(key);
    }
    let Ok(mut answer) = request.send().await else {
        return Look::Waiting(None);
    };
    if answer.status() == StatusCode::NOT_FOUND {
        return Look::NoSuchPage;
    }
    let page = answer.body().limit(MAX_PAGE).await.unwrap_or_default();
    let waiting = prometheus::gauge(&String::from_utf8_lossy(&page), &prometheus::WAITING);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a gauge of whole requests; the cast saturates"
    )]
    Look::Waiting(waiting.map(|waiting| waiting as u64))
}

//! A slow poll of an engine's own `/metrics`: how many requests wait inside it, and whether it
//! computes.
//!
//! The queue goes by what it sees itself; this only finds out when that went wrong. So an engine
//! that tells nothing is served as well, and one that has no such page is not asked again.

use std::{sync::Arc, time::Duration};

use actix::WeakAddr;
use awc::{Client, http::StatusCode};
use tokio::task::JoinHandle;

use super::Model;
use crate::{
    engine::{Endpoint, gauges},
    protocol::EngineSays,
};

/// How often it is asked for.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an answer may take. llama.cpp answers between two steps, and one of a long prompt takes
/// seconds on a CPU.
const ANSWER: Duration = Duration::from_secs(10);

/// Largest page that is read; vLLM's has 200 KiB.
const MAX_PAGE: usize = 4 << 20;

/// The task that polls. It ends when this is dropped.
pub(super) struct MetricsPoller(JoinHandle<()>);

impl MetricsPoller {
    pub(super) fn start(endpoint: Arc<Endpoint>, model: WeakAddr<Model>) -> Self {
        Self(actix_rt::spawn(poll_forever(endpoint, model)))
    }
}

impl Drop for MetricsPoller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a poll showed.
enum Poll {
    Page(String),
    NoSuchPage,
}

async fn poll_forever(endpoint: Arc<Endpoint>, model: WeakAddr<Model>) {
    let client = Client::builder()
        .timeout(ANSWER)
        .disable_redirects()
        .finish();
    loop {
        tokio::time::sleep(PERIOD).await;
        let Poll::Page(page) = poll(&client, &endpoint).await else {
            return;
        };
        let Some(model) = model.upgrade() else {
            return;
        };
        model.do_send(EngineSays {
            engine: endpoint.model.clone(),
            generation: endpoint.generation,
            waiting: gauges::waiting(&page, endpoint.kind).map(whole),
            // Only whether it changes matters, and a share of memory changes by fractions.
            work: gauges::work(&page, endpoint.kind).map(f64::to_bits),
        });
    }
}

async fn poll(client: &Client, endpoint: &Endpoint) -> Poll {
    let mut request = client.get(format!("{}/metrics", endpoint.base));
    if let Some(key) = &endpoint.api_key {
        request = request.bearer_auth(key);
    }
    let Ok(mut answer) = request.send().await else {
        return Poll::Page(String::new());
    };
    if answer.status() == StatusCode::NOT_FOUND {
        return Poll::NoSuchPage;
    }
    let page = answer.body().limit(MAX_PAGE).await.unwrap_or_default();
    Poll::Page(String::from_utf8_lossy(&page).into_owned())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of whole things; the cast saturates"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

//! A slow poll of an engine's own `/metrics`: how many requests wait inside it, and whether it
//! computes.
//!
//! The queue goes by what it sees itself; this only finds out when that went wrong. So an engine
//! that tells nothing is served as well, and one that has no such page is not asked again.

use std::{sync::Arc, time::Duration};

use actix::WeakAddr;
use awc::http::StatusCode;
use tokio::task::JoinHandle;

use super::Model;
use crate::{
    engine::{
        Endpoint,
        control::{Control, ControlError},
        gauges,
    },
    protocol::EngineSays,
};

/// How often it is asked for.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an answer may take. llama.cpp answers between two steps, and one of a long prompt takes
/// seconds on a CPU.
const ANSWER: Duration = Duration::from_secs(10);

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

async fn poll_forever(endpoint: Arc<Endpoint>, model: WeakAddr<Model>) {
    let control = Control::new(&endpoint);
    loop {
        tokio::time::sleep(PERIOD).await;
        let page = match control.text("/metrics", ANSWER).await {
            Ok(page) => page,
            Err(ControlError::Refused { status, .. }) if status == StatusCode::NOT_FOUND => return,
            // A page that tells nothing.
            Err(ControlError::Refused { .. } | ControlError::Silent { .. }) => String::new(),
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of whole things; the cast saturates"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

//! What all handlers know.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::HttpRequest;

use super::{
    error::ApiError,
    handle::{Choice, Handle, InFlightRequest},
    stats::Board,
};

/// What handlers know.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) names: Arc<[String]>,
    pub(super) api_key: Option<Arc<str>>,
    pub(super) max_model_len: u32,
    pub(super) front_end: Duration,
    pub(super) seed: u64,
    /// Unix seconds of the start.
    pub(super) created: u64,
    pub(super) requests: Arc<AtomicU64>,
    pub(super) engine: Handle,
    pub(super) board: Board,
}

/// What `created` says in answers.
pub(super) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

// === impl App ===

impl App {
    /// The name used in answers.
    pub(super) fn model(&self) -> &str {
        self.names.first().map_or("sim", String::as_str)
    }

    /// Whether this is the model a request means; none at all means the only one there is.
    pub(super) fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(model) if !self.names.iter().any(|name| name == model) => {
                Err(ApiError::UnknownModel {
                    model: model.to_owned(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The number of this request, unique in this process.
    pub(super) fn number(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// Hands a request to the engine once the simulated front end has dealt with it.
    pub(super) async fn submit(
        &self,
        number: u64,
        priority: i32,
        choices: Vec<Choice>,
    ) -> InFlightRequest {
        if !self.front_end.is_zero() {
            tokio::time::sleep(self.front_end).await;
        }
        self.engine.submit(number, priority, choices)
    }

    /// The id shown to the client: its own X-Request-Id if it sent one, as in vLLM.
    pub(super) fn response_id(&self, kind: &str, request: &HttpRequest, number: u64) -> String {
        let given = request
            .headers()
            .get("x-request-id")
            .and_then(|value| value.to_str().ok());
        match given {
            Some(id) => format!("{kind}-{id}"),
            None => format!("{kind}-{:08x}{number:08x}", self.created & 0xffff_ffff),
        }
    }
}

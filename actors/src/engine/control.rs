//! Questions and orders to an engine, beside the requests of clients: small JSON both ways, each
//! within a time.

use std::time::Duration;

use awc::{
    Client,
    http::{Method, StatusCode},
};
use serde_json::Value;

use super::Endpoint;

/// vLLM's description of its API is half a megabyte, its page of metrics 200 KiB.
const MAX_ANSWER: usize = 4 << 20;
/// How much of an engine's complaint is repeated.
const MAX_COMPLAINT: usize = 300;

/// One engine, spoken to as its operator.
pub(crate) struct Control<'a> {
    endpoint: &'a Endpoint,
    client: Client,
}

/// An engine that did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It answered something else than 2xx.
    #[error("{path} answered {status}: {text}")]
    Refused {
        /// What was asked.
        path: String,
        /// The answer's status.
        status: StatusCode,
        /// The beginning of the answer.
        text: String,
    },
    /// It did not answer.
    #[error("{path} was not answered: {reason}")]
    Silent {
        /// What was asked.
        path: String,
        /// What the HTTP client says.
        reason: String,
    },
}

impl<'a> Control<'a> {
    pub(crate) fn new(endpoint: &'a Endpoint) -> Self {
        let client = Client::builder().disable_redirects().finish();
        Self { endpoint, client }
    }

    /// What is answered at `path`; null where the answer is no JSON.
    pub(crate) async fn get(&self, path: &str, within: Duration) -> Result<Value, ControlError> {
        let body = self.ask(Method::GET, path, None, within).await?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    /// What is answered at `path`, as it is.
    pub(crate) async fn text(&self, path: &str, within: Duration) -> Result<String, ControlError> {
        let body = self.ask(Method::GET, path, None, within).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Posts `body` to `path`.
    pub(crate) async fn post(
        &self,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value, ControlError> {
        let answer = self.ask(Method::POST, path, Some(body), within).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Vec<u8>, ControlError> {
        let answer = tokio::time::timeout(within, self.exchange(method, path, body)).await;
        let late = |_| Err(format!("nothing within {} s", within.as_secs()));
        let (status, body) = answer.unwrap_or_else(late).map_err(|reason| {
            let path = path.to_owned();
            ControlError::Silent { path, reason }
        })?;
        if status.is_success() {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        Err(ControlError::Refused {
            path: path.to_owned(),
            status,
            text: text.chars().take(MAX_COMPLAINT).collect(),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let url = format!("{}{path}", self.endpoint.base);
        // The time for the whole exchange is the caller's.
        let mut request = self.client.request(method, url).timeout(Duration::MAX);
        if let Some(key) = &self.endpoint.api_key {
            request = request.bearer_auth(key);
        }
        let sent = match body {
            Some(body) => request.send_json(body).await,
            None => request.send().await,
        };
        let mut response = sent.map_err(|error| error.to_string())?;
        let body = response.body().limit(MAX_ANSWER).await;
        let body = body.map_err(|error| error.to_string())?;
        Ok((response.status(), body.to_vec()))
    }
}

//! Whether an engine works: it says so, and then it proves it with one token.

use std::time::Duration;

use awc::{Client, ClientRequest};
use serde_json::json;

use super::engine::Endpoint;

/// How often an engine that loads is asked whether it is done.
const POLL: Duration = Duration::from_millis(200);
/// How long one question may take. SGLang's `/health` runs a token and takes a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the first token may take; the first one compiles kernels.
const FIRST_TOKEN: Duration = Duration::from_secs(120);

pub(super) struct Probe<'a> {
    endpoint: &'a Endpoint,
    client: Client,
}

impl<'a> Probe<'a> {
    pub(super) fn new(endpoint: &'a Endpoint) -> Self {
        let client = Client::builder()
            .timeout(ANSWER)
            .disable_redirects()
            .finish();
        Self { endpoint, client }
    }

    /// Comes back once `/health` says 200.
    pub(super) async fn until_healthy(&self) {
        loop {
            let answer = self.get("/health").send().await;
            if answer.is_ok_and(|response| response.status().is_success()) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks for one token.
    ///
    /// # Errors
    /// What went wrong, in a sentence. An engine that serves no completions (an embedding model)
    /// answers 4xx, which proves that it answers.
    pub(super) async fn canary(&self) -> Result<(), String> {
        let url = format!("{}/v1/completions", self.endpoint.base);
        let body = json!({
            "model": self.endpoint.served_name, "prompt": "Hi", "max_tokens": 1, "temperature": 0,
        });
        let request = self.authorized(self.client.post(url)).timeout(FIRST_TOKEN);
        match request.send_json(&body).await {
            Ok(response) if response.status().is_server_error() => Err(format!(
                "healthy, but its first token failed with {}",
                response.status()
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("healthy, but gave no first token: {error}")),
        }
    }

    /// Asks for the list of models, which every OpenAI-compatible server has.
    ///
    /// # Errors
    /// What went wrong, in a sentence.
    pub(super) async fn lists_models(&self) -> Result<(), String> {
        let base = &self.endpoint.base;
        match self.get("/v1/models").send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(format!("{base}/v1/models answered {}", response.status())),
            Err(error) => Err(format!("{base} does not answer: {error}")),
        }
    }

    fn get(&self, path: &str) -> ClientRequest {
        self.authorized(self.client.get(format!("{}{path}", self.endpoint.base)))
    }

    fn authorized(&self, request: ClientRequest) -> ClientRequest {
        match &self.endpoint.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

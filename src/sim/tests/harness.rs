//! One running engine and the questions tests ask it.

use std::{
    io::Read,
    net::TcpListener,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use awc::{Client, ClientResponse, error::SendRequestError, http::StatusCode};
use futures_util::StreamExt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// Far beyond anything that is waited for, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

pub(crate) struct Engine {
    child: Child,
    pub(crate) port: u16,
    key: Option<&'static str>,
}

pub(crate) struct Events {
    response: ClientResponse,
    unread: Vec<u8>,
}

/// A request that makes a long stream of small steps.
pub(crate) fn chat(content: &str, max_tokens: u32) -> Value {
    json!({
        "model": "sim",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

/// `body` as a stream.
pub(crate) fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body
}

/// Waits for an event with a deadline.
pub(crate) async fn within<F: Future>(what: &str, event: F) -> F::Output {
    timeout(DEADLINE, event)
        .await
        .unwrap_or_else(|_| panic!("still waiting for {what}"))
}

// === impl Engine ===

impl Engine {
    /// Starts one and waits until it is healthy.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let engine = Self::spawn(flags, None);
        engine.ready().await;
        engine
    }

    pub(crate) async fn start_with_key(key: &'static str) -> Self {
        let engine = Self::spawn(&["--preset", "tiny"], Some(key));
        engine.ready().await;
        engine
    }

    pub(crate) fn spawn(flags: &[&str], key: Option<&'static str>) -> Self {
        let any = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = any.local_addr().unwrap().port();
        drop(any);
        Self::spawn_on(port, flags, key)
    }

    pub(crate) fn spawn_on(port: u16, flags: &[&str], key: Option<&'static str>) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_kvwarden"))
            .args(["sim-engine", "--port", &port.to_string()])
            .args(flags)
            .env("VLLM_API_KEY", key.unwrap_or(""))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, port, key }
    }

    pub(crate) async fn ready(&self) {
        within("the engine to be healthy", async {
            while self.try_get("/health").await.is_err() {
                sleep(POLL).await;
            }
        })
        .await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn client() -> Client {
        Client::builder().timeout(DEADLINE).finish()
    }

    pub(crate) async fn try_get(&self, path: &str) -> Result<StatusCode, SendRequestError> {
        let response = Self::client().get(self.url(path)).send().await?;
        assert_eq!(header(&response, "x-kvwarden-simulated"), "true");
        Ok(response.status())
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let mut request = Self::client().get(self.url(path));
        if let Some(key) = self.key {
            request = request.bearer_auth(key);
        }
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn send(&self, path: &str, body: &Value) -> ClientResponse {
        let mut request = Self::client().post(self.url(path));
        if let Some(key) = self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send_json(body).await.unwrap();
        assert_eq!(header(&response, "x-kvwarden-simulated"), "true");
        response
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        read(self.send(path, body).await).await
    }

    pub(crate) async fn chat(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Sends a body that may be no JSON at all.
    pub(crate) async fn post_raw(&self, path: &str, body: &'static str) -> (u16, Value) {
        let request = Self::client().post(self.url(path));
        read(request.send_body(body).await.unwrap()).await
    }

    pub(crate) async fn stream(&self, body: Value) -> Events {
        let response = self.send("/v1/chat/completions", &streamed(body)).await;
        assert_eq!(response.status(), 200);
        assert!(header(&response, "content-type").starts_with("text/event-stream"));
        Events {
            response,
            unread: Vec::new(),
        }
    }

    /// The value of one sample, such as `num_requests_running` or `..._total{finished_reason="abort"`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let mut response = Self::client()
            .get(self.url("/metrics"))
            .send()
            .await
            .unwrap();
        let page = String::from_utf8(response.body().await.unwrap().to_vec()).unwrap();
        let (name, label) = name.split_once('{').unwrap_or((name, ""));
        let sample = page
            .lines()
            .find(|line| line.starts_with(&format!("vllm:{name}{{")) && line.contains(label))
            .unwrap_or_else(|| panic!("no {name} in\n{page}"));
        sample.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        within(&format!("{name} to be {value}"), async {
            while (self.metric(name).await - value).abs() > 1e-9 {
                sleep(POLL).await;
            }
        })
        .await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        within("the engine to exit", async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                sleep(POLL).await;
            }
        })
        .await
    }

    /// What it wrote to stderr; call it after the exit.
    pub(crate) fn last_words(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

// === impl Events ===

impl Events {
    /// The next event's data. `None` at the end of the body, however it came.
    pub(crate) async fn next(&mut self) -> Option<String> {
        within("an event", async {
            loop {
                if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
                    let event: Vec<u8> = self.unread.drain(..end + 2).collect();
                    let text = String::from_utf8(event).unwrap();
                    return Some(text.strip_prefix("data: ").unwrap().trim().to_owned());
                }
                match self.response.next().await {
                    Some(Ok(bytes)) => self.unread.extend_from_slice(&bytes),
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await
    }

    /// The next chunk of the stream.
    pub(crate) async fn chunk(&mut self) -> Value {
        serde_json::from_str(&self.next().await.expect("the stream ended")).unwrap()
    }

    /// Reads until the first token has come.
    pub(crate) async fn first_token(&mut self) {
        while self.chunk().await["choices"][0]["delta"]["content"] == "" {}
    }

    /// The reason in the last chunk that has one. Reads to the end.
    pub(crate) async fn finish_reason(&mut self) -> Option<String> {
        let mut reason = None;
        while let Some(event) = self.next().await {
            let chunk: Value = serde_json::from_str(&event).unwrap_or_default();
            if let Some(name) = chunk["choices"][0]["finish_reason"].as_str() {
                reason = Some(name.to_owned());
            }
        }
        reason
    }
}

fn header<'a, S>(response: &'a ClientResponse<S>, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

async fn read(mut response: ClientResponse) -> (u16, Value) {
    let body = response.body().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

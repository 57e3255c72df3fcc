//! A client as any program has one: one request, one whole answer.

use std::{fmt, time::Duration};

use serde_json::Value;
use ureq::{Agent, Body, http::Response};

/// What an answer may take; a real engine on a busy CPU needs seconds for a sentence.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends requests to one server under one identity.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    headers: Vec<(String, String)>,
}

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8000`.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        Self {
            agent,
            base: base.into(),
            headers: Vec::new(),
        }
    }

    /// The same client with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same client as another tenant.
    #[must_use]
    pub fn tenant(self, tenant: &str) -> Self {
        self.header("x-tenant-id", tenant)
    }

    /// The same client with an API key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// `GET path`.
    ///
    /// # Panics
    /// If no answer comes.
    #[must_use]
    pub fn get(&self, path: &str) -> Reply {
        let reply = self.try_get(path);
        reply.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `GET path`, where it may be that nobody answers.
    ///
    /// # Errors
    /// What the HTTP client says.
    pub fn try_get(&self, path: &str) -> Result<Reply, ureq::Error> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        Reply::read(request.call()?)
    }

    /// `POST path` with JSON.
    ///
    /// # Panics
    /// If no answer comes.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(
            "POST",
            path,
            "application/json",
            body.to_string().as_bytes(),
        )
    }

    /// `POST path` with JSON, where it may be that nobody answers.
    ///
    /// # Errors
    /// What the HTTP client says.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<Reply, ureq::Error> {
        let body = body.to_string();
        self.try_send("POST", path, "application/json", body.as_bytes())
    }

    /// Any request with any body.
    ///
    /// # Panics
    /// If no answer comes.
    #[must_use]
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Reply {
        let reply = self.try_send(method, path, content_type, body);
        reply.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Reply, ureq::Error> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", content_type);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).expect("a valid request");
        self.agent.run(request).and_then(Reply::read)
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    fn read(mut response: Response<Body>) -> Result<Self, ureq::Error> {
        let text = |value: &ureq::http::HeaderValue| {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        let headers = response.headers().iter();
        Ok(Self {
            status: response.status().as_u16(),
            headers: headers
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body: response.body_mut().read_to_vec()?,
        })
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        Some(value)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }

    /// This answer, if it has that status.
    ///
    /// # Panics
    /// If it has another.
    #[must_use]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "unexpected status of {self}");
        self
    }

    /// `error` of an answer in OpenAI's shape.
    ///
    /// # Panics
    /// If the answer has another status or another shape.
    #[must_use]
    pub fn expect_error(self, status: u16) -> Value {
        let json = self.expect(status).json();
        let error = json.get("error").cloned().unwrap_or_default();
        let text = |key| error.get(key).is_some_and(Value::is_string);
        assert!(text("message") && text("type"), "no OpenAI error: {json}");
        let has = |key| error.get(key).is_some();
        assert!(
            has("param") && has("code"),
            "incomplete OpenAI error: {json}"
        );
        error
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text().chars().take(2000).collect();
        write!(f, "{} {:?} {text}", self.status, self.headers)
    }
}

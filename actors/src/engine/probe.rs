//! Whether an engine works: it says so, and then it proves it with a few tokens.

use std::time::Duration;

use awc::http::StatusCode;
use serde_json::{Value, json};

use super::{
    Endpoint,
    command::OwnServer,
    control::{Control, ControlError},
};

/// How often an engine that loads is asked whether it is done.
const POLL: Duration = Duration::from_millis(200);
/// How long one question may take. SGLang's `/health` runs a token and takes a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the first token may take; the first one compiles kernels.
const FIRST_TOKEN: Duration = Duration::from_secs(120);
/// Enough that weights which are not the model's own are unlikely to give the same.
const TOKENS: u32 = 4;
/// Enough to show that it computes; a saturated engine may take seconds for each.
const ONE_TOKEN: u32 = 1;

/// Answers in a row that what is asked for does not exist, after which something else has the port. A
/// proxy may answer so until the server behind it is up.
const STRANGE_ANSWERS: u32 = 150;

enum Health {
    Up,
    NotYet,
    NoSuchPath,
}

pub(crate) struct Probe<'a> {
    endpoint: &'a Endpoint,
    control: Control<'a>,
}

/// What an engine answered to a prompt that is always the same. None where it serves no
/// completions (an embedding model) and thereby proved only that it answers.
pub type Canary = Option<String>;

impl<'a> Probe<'a> {
    pub(crate) fn new(endpoint: &'a Endpoint) -> Self {
        let control = Control::new(endpoint);
        Self { endpoint, control }
    }

    /// Comes back once the path that tells whether it is up says 2xx. It is `/health` where it is not
    /// `own`, or `/v1/models` of a server that has no such path.
    ///
    /// # Errors
    /// When something else than an engine answers, in a sentence.
    pub(crate) async fn until_healthy(&self, own: Option<&str>) -> Result<(), String> {
        let paths = up_at(own);
        let mut strange = 0;
        while strange < STRANGE_ANSWERS {
            match self.health(&paths).await {
                Health::Up => return Ok(()),
                Health::NotYet => strange = 0,
                Health::NoSuchPath => strange += 1,
            }
            tokio::time::sleep(POLL).await;
        }
        let waited = (POLL * STRANGE_ANSWERS).as_secs();
        Err(format!(
            "what answers at its port is no inference server: for {waited} s {} was not found there",
            paths.join(" or ")
        ))
    }

    /// Asks a server that was up whether it still is; of the author's own nothing else is known.
    ///
    /// # Errors
    /// What went wrong, in a sentence.
    pub(crate) async fn is_there(&self, own: Option<&OwnServer>) -> Result<(), String> {
        let Some(own) = own else {
            return self.lists_models().await;
        };
        let paths = up_at(own.probe.as_deref());
        match self.health(&paths).await {
            Health::Up => Ok(()),
            Health::NotYet | Health::NoSuchPath => {
                let (base, paths) = (&self.endpoint.base, paths.join(" or "));
                Err(format!("{base} does not say at {paths} that it is up"))
            }
        }
    }

    async fn health(&self, paths: &[&str]) -> Health {
        for path in paths {
            match self.control.get(path, ANSWER).await {
                Ok(_) => return Health::Up,
                Err(ControlError::Refused {
                    status: StatusCode::NOT_FOUND,
                    ..
                }) => {}
                Err(_) => return Health::NotYet,
            }
        }
        Health::NoSuchPath
    }

    /// Asks for a few tokens.
    ///
    /// # Errors
    /// What went wrong, in a sentence.
    pub(crate) async fn canary(&self) -> Result<Canary, String> {
        self.tokens(TOKENS, FIRST_TOKEN).await
    }

    /// Whether an engine that was proved before still computes. Not what: it may be busy, and what
    /// it computes beside other work may differ in the last digit.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub(crate) async fn still_works(&self, within: Duration) -> Result<(), String> {
        let canary = self.tokens(ONE_TOKEN, within).await?;
        if canary.is_some() != self.endpoint.canary.is_some() {
            return Err("it does not take its canary any more".to_owned());
        }
        Ok(())
    }

    async fn tokens(&self, tokens: u32, within: Duration) -> Result<Canary, String> {
        let prompt = json!({ "prompt": "Hi" });
        let answer = self.ask("/v1/completions", prompt, tokens, within).await;
        let Err(ControlError::Refused {
            status: StatusCode::NOT_FOUND,
            ..
        }) = answer
        else {
            return judged(answer, |choice| choice["text"].as_str().map(str::to_owned));
        };
        // Some servers only chat.
        let prompt = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
        let answer = self
            .ask("/v1/chat/completions", prompt, tokens, within)
            .await;
        judged(answer, |choice| {
            let message = choice["message"].as_object()?;
            Some(format!("{message:?}"))
        })
    }

    async fn ask(
        &self,
        path: &str,
        mut body: Value,
        tokens: u32,
        within: Duration,
    ) -> Result<Value, ControlError> {
        body["model"] = self.endpoint.served_name.as_str().into();
        body["max_tokens"] = tokens.into();
        body["temperature"] = 0.into();
        self.control.post(path, &body, within).await
    }

    /// Asks for the list of models, which every OpenAI-compatible server has.
    ///
    /// # Errors
    /// What went wrong, in a sentence.
    pub(crate) async fn lists_models(&self) -> Result<(), String> {
        let answer = self.control.get("/v1/models", ANSWER).await;
        let base = &self.endpoint.base;
        answer.map(drop).map_err(|error| match error {
            ControlError::Refused { status, path, .. } => {
                format!("{base}{path} answered {status}")
            }
            ControlError::Silent { reason, .. } => format!("{base} does not answer: {reason}"),
        })
    }
}

/// Where a server says that it is up.
fn up_at(own: Option<&str>) -> Vec<&str> {
    own.map_or(vec!["/health", "/v1/models"], |own| vec![own])
}

/// What an answer proves: with which text, if with any.
fn judged(
    answer: Result<Value, ControlError>,
    text: impl Fn(&Value) -> Canary,
) -> Result<Canary, String> {
    match answer {
        Ok(answer) => Ok(text(&answer["choices"][0])),
        // Engines take minutes to listen, and meanwhile another program may get their port.
        Err(ControlError::Refused {
            status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
            ..
        }) => Err("it refuses its own key: another program has its port".to_owned()),
        Err(ControlError::Refused { status, .. }) if !status.is_server_error() => Ok(None),
        Err(ControlError::Refused { status, .. }) => {
            Err(format!("healthy, but its first token failed with {status}"))
        }
        Err(ControlError::Silent { reason, .. }) => {
            Err(format!("healthy, but gave no first token: {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::{Generation, lifecycle::SleepLevels};

    use super::*;
    use crate::{engine::EngineKind, tests::server::server};

    #[actix_rt::test]
    async fn stranger_at_an_engines_port_does_not_pass_for_it() {
        let endpoint = endpoint(server(|_| ("401 Unauthorized", "")));
        let answer = Probe::new(&endpoint).canary().await;
        assert!(answer.unwrap_err().contains("its own key"));
    }

    fn endpoint(base: String) -> Endpoint {
        Endpoint {
            model: "m".into(),
            kind: EngineKind::Vllm,
            generation: Generation(1),
            base,
            api_key: Some("ours".to_owned()),
            served_name: "m".to_owned(),
            levels: SleepLevels::default(),
            canary: None,
        }
    }

    #[actix_rt::test]
    async fn own_server_is_there_if_it_says_so_where_its_author_said() {
        let endpoint = endpoint(server(|request| match request.starts_with("GET /up ") {
            true => ("200 OK", "{}"),
            false => ("404 Not Found", "{}"),
        }));
        let probe = Probe::new(&endpoint);
        let at = |probe: Option<&str>| OwnServer {
            probe: probe.map(str::to_owned),
            ..OwnServer::default()
        };
        assert_eq!(probe.is_there(Some(&at(Some("/up")))).await, Ok(()));
        let unknown = probe.is_there(Some(&at(None))).await.unwrap_err();
        assert!(unknown.contains("/health or /v1/models"), "{unknown}");
        assert!(probe.is_there(None).await.is_err());
    }
}

//! One attempt at an answer: a permit, an engine, and its first token or the lack of it.

use bytes::Bytes;
use kvwarden_actors::Permit;
use kvwarden_policy::TenantId;

use super::{
    answer::Head,
    format::event::{self, Event},
    limits::{MAX_ANSWER, MAX_ERROR, UNSEEN},
    record::Account,
    refusal::{Failure, engine_failure, told_failure},
    relay::{Asked, Broken, Form, OpenError, Patience, Relay, RelayOptions, Source},
    request::envelope::ParsedRequest,
    shared::Shared,
    tokenize,
    upstream::{Engines, Fault, UpstreamResponse},
    waiting::Waiting,
};

/// What a route does with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Generates text, streamed or not.
    Generate,
    /// Answers at once (embeddings).
    Compute,
    /// Counts tokens; costs the engine next to nothing.
    Tokenize,
}

/// What stays the same from one attempt to the next.
pub(super) struct Attempt<'a> {
    /// What the route does.
    pub task: Task,
    /// Where the engine is asked.
    pub path: &'static str,
    /// The request's id, as the client knows it.
    pub request_id: &'a str,
    /// What all requests share.
    pub shared: &'a Shared,
    /// The client to engines.
    pub engines: &'a Engines,
    /// Whose request it is.
    pub tenant: &'a TenantId,
    /// The client's own partition of its tenant's prefix cache.
    pub salt: Option<String>,
    /// Who tells its client to wait.
    pub waiting: &'a Waiting,
}

/// An engine answers.
pub(super) enum Opened {
    /// In a stream, of which the first token is here.
    Stream(Head, Box<Relay>),
    /// All at once, and this is all.
    Whole(Head, Bytes),
}

/// Nothing came that a client could use.
pub(super) enum AttemptError {
    /// The engine said no, or it would not help to ask again.
    Failed(Failure),
    /// The engine went away before its first token, for this reason: another could still give it.
    Lost(String),
}

impl From<Failure> for AttemptError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<OpenError> for AttemptError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Failed(failure) => Self::Failed(failure),
            OpenError::Lost(why) => Self::Lost(why.to_owned()),
        }
    }
}

impl AttemptError {
    /// Nobody could mend it by asking again.
    fn unusable(why: &str) -> Self {
        Self::Failed(Failure::Unusable(why.to_owned()))
    }

    fn silent() -> Self {
        Self::Failed(Failure::Unreachable(Broken::Idle.why().to_owned()))
    }
}

impl Attempt<'_> {
    /// Asks the engine that the permit is for, and waits for its first token.
    ///
    /// # Errors
    /// When none comes.
    pub(super) async fn run(
        &self,
        parsed: &mut ParsedRequest<'_>,
        account: &mut Account<'_>,
    ) -> Result<Opened, AttemptError> {
        let opened = self.open(parsed, account).await;
        if let Err(AttemptError::Failed(_)) = opened {
            account.permit.engine_failed();
        }
        opened
    }

    async fn open(
        &self,
        parsed: &mut ParsedRequest<'_>,
        account: &mut Account<'_>,
    ) -> Result<Opened, AttemptError> {
        let is_streamed = self.adapt(parsed, account.permit)?;
        self.waiting.asked(Head::of(account.permit));
        let mut response = self.ask(parsed, account.permit, is_streamed).await?;
        let head = Head::answered(&response, account.permit);
        self.waiting.asked(head);
        let kind = response.content_type.take();
        let mut source = self.source(response, is_streamed);
        if self.task != Task::Generate || source.form().await.map_err(lost)? == Form::Whole {
            let whole = self.whole(&mut source, kind.as_deref(), account).await?;
            return Ok(Opened::Whole(head, whole));
        }
        let options = RelayOptions {
            strips_usage: parsed.stream && !parsed.wants_usage,
            asked: Asked {
                choices: parsed.size.choices,
                of_each_prompt: parsed.size.choices / parsed.prompts.max(1),
            },
        };
        let mut relay = Relay::new(source, options);
        relay.open(account, self.waiting).await?;
        Ok(Opened::Stream(head, relay))
    }

    fn source(&self, response: UpstreamResponse, is_streamed: bool) -> Source {
        let idle = self.shared.view().limits.stream_idle_timeout;
        let unseen = idle * UNSEEN;
        let patience = Patience {
            // A whole answer comes when it is done, and shows nothing before.
            idle: if is_streamed { idle } else { unseen },
            unseen,
        };
        Source::new(response.body, self.shared.until_cut(), patience)
    }

    /// The engine's response. A server that does not know `stream_options`, which the client did not ask
    /// for, is asked without them: its usage remains unknown.
    async fn ask(
        &self,
        parsed: &mut ParsedRequest<'_>,
        permit: &mut Permit,
        is_streamed: bool,
    ) -> Result<UpstreamResponse, AttemptError> {
        let answered = self.post(parsed, permit).await;
        let Err(AttemptError::Failed(Failure::Engine { status, error, .. })) = &answered else {
            return answered;
        };
        let names_options = || error.to_string().contains("stream_options");
        if !is_streamed || parsed.wants_usage || status.as_u16() != 400 || !names_options() {
            return answered;
        }
        parsed.members.remove("stream_options");
        Box::pin(self.post(parsed, permit)).await
    }

    async fn post(
        &self,
        parsed: &ParsedRequest<'_>,
        permit: &mut Permit,
    ) -> Result<UpstreamResponse, AttemptError> {
        // An id that two requests share would make vLLM refuse the second.
        let id = format!("{}-{:08x}", self.request_id, rand::random::<u32>());
        let (engines, sent) = (self.engines, parsed.members.to_bytes());
        let posted = engines.post(&permit.endpoint, self.path, &id, sent);
        let idle = self.shared.view().limits.stream_idle_timeout;
        let posted = tokio::time::timeout(idle * UNSEEN, posted).await;
        let posted = posted.map_err(|_| AttemptError::silent())?;
        let response = posted.map_err(|unanswered| match unanswered.fault {
            Fault::Unreachable => {
                permit.engine_unreachable();
                AttemptError::Lost(unanswered.why)
            }
            Fault::Lost => AttemptError::Lost(unanswered.why),
            Fault::Unusable => AttemptError::Failed(Failure::Unusable(unanswered.why)),
        })?;
        let status = response.status;
        if status.is_success() {
            return if status.as_u16() == 200 {
                Ok(response)
            } else {
                let why = format!("the engine answered with the status {status}");
                Err(AttemptError::Failed(Failure::Unusable(why)))
            };
        }
        Err(Box::pin(self.refused(response)).await)
    }

    /// An engine's own error.
    async fn refused(&self, mut response: UpstreamResponse) -> AttemptError {
        let (status, retry) = (response.status, std::mem::take(&mut response.retry));
        // Nothing is computed any more, so that nothing excuses a silence.
        let body = self.source(response, true).whole(MAX_ERROR).await;
        let body = body.unwrap_or_default();
        AttemptError::Failed(engine_failure(status, retry, &body))
    }

    /// Sets the fields that are ours; each attempt sets them anew. Tells whether the engine is asked for a stream.
    fn adapt(&self, parsed: &mut ParsedRequest<'_>, permit: &Permit) -> Result<bool, AttemptError> {
        let dialect = permit.endpoint.kind.dialect();
        parsed.restrict_to(&dialect.fields);
        parsed.members.set("model", &permit.endpoint.served_name);
        if self.task == Task::Tokenize {
            tokenize::adapt(&mut parsed.members, dialect).map_err(Failure::from)?;
        }
        if self.task != Task::Generate {
            return Ok(false);
        }
        if dialect.quirks.orders_by_priority {
            parsed.members.set("priority", &permit.tag());
        }
        if dialect.quirks.salts_prefix_cache {
            let salt = self.shared.salts.of(self.tenant, self.salt.as_deref());
            parsed.members.set("cache_salt", &salt);
        }
        // Otherwise its answer would be computed to the end after the client hung up.
        if parsed.stream || !dialect.quirks.aborts_unstreamed {
            parsed.set_streaming();
            return Ok(true);
        }
        // vLLM refuses stream_options without a stream.
        parsed.members.remove("stream_options");
        Ok(false)
    }

    /// An answer that comes in one piece.
    async fn whole(
        &self,
        source: &mut Source,
        kind: Option<&str>,
        Account { permit, record }: &mut Account<'_>,
    ) -> Result<Bytes, AttemptError> {
        let body = source.whole(MAX_ANSWER).await.map_err(|broken| {
            // Of an answer that has begun, another try would cost it all again.
            if broken == Broken::Lost && source.has_begun() {
                AttemptError::Failed(Failure::Unreachable(broken.why().to_owned()))
            } else {
                lost(broken)
            }
        })?;
        let usage = match event::read_answer(&body) {
            Ok(Event::Failed(error)) => return Err(AttemptError::Failed(told_failure(&error))),
            Ok(Event::Chunk(chunk)) if chunk.is_aborted => {
                return Err(AttemptError::Lost(ABORTED.to_owned()));
            }
            Ok(Event::Chunk(chunk)) => chunk.usage,
            Ok(Event::Comment | Event::Done) => None,
            Err(_) if body.is_empty() && kind.is_some_and(is_events) => {
                return Err(AttemptError::Lost(NO_EVENT.to_owned()));
            }
            Err(_) if body.is_empty() => return Err(AttemptError::unusable(EMPTY)),
            Err(_) => {
                let kind = kind.unwrap_or("nothing");
                return Err(AttemptError::unusable(&format!(
                    "it calls itself {kind} and is not JSON"
                )));
            }
        };
        if self.task == Task::Generate {
            record.first_token();
        }
        permit.first_token();
        if let Some(usage) = usage {
            permit.report(usage);
        }
        record.done(usage);
        if self.task == Task::Tokenize {
            return Ok(tokenize::answer(body, permit.endpoint.kind.dialect()));
        }
        Ok(body)
    }
}

const ABORTED: &str = "the engine gave the request up";
const NO_EVENT: &str = "its stream ended before the first event";
const EMPTY: &str = "it is empty";

fn is_events(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default();
    media.trim().eq_ignore_ascii_case("text/event-stream")
}

fn lost(broken: Broken) -> AttemptError {
    OpenError::from(broken).into()
}

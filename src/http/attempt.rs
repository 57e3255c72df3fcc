//! One attempt at an answer: a permit, an engine, and its first token or the lack of it.

use actix_web::{HttpResponseBuilder, http::header::TryIntoHeaderPair};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use kvwarden_actors::Permit;
use kvwarden_policy::TenantId;

use super::{
    answer,
    format::event::{self, Event},
    record::Account,
    refusal::{Failure, engine_failure},
    relay::{OpenError, Relay, RelayOptions},
    request::envelope::ParsedRequest,
    shared::Shared,
    tokenize,
    upstream::{Engines, Fault, UpstreamResponse},
};

/// Largest answer that is held in memory; a long completion with logprobs stays under 8 MiB.
const MAX_ANSWER: usize = 64 << 20;

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
}

/// An engine answers.
pub(super) enum Opened {
    /// In a stream, of which the first token is here.
    Stream(HttpResponseBuilder, Box<Relay>),
    /// All at once, and this is all.
    Whole(HttpResponseBuilder, Bytes),
}

/// Nothing came that a client could use.
pub(super) enum AttemptError {
    /// The engine said no, or it would not help to ask again.
    Failed(Failure),
    /// The engine went away before its first token, for this reason: another could still give it.
    Lost(String),
}

impl Opened {
    /// Adds a header to the answer.
    pub(super) fn insert_header(&mut self, header: impl TryIntoHeaderPair) {
        let (Self::Stream(head, _) | Self::Whole(head, _)) = self;
        head.insert_header(header);
    }
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
        let adapted = self.adapt(parsed, account.permit);
        let streams_upstream = adapted.inspect_err(|_| account.permit.engine_failed())?;
        if !streams_upstream {
            account.permit.acknowledge_unseen();
        }
        let response = self.post(parsed, account.permit).await?;
        if !streams_upstream || !response.is_stream() {
            return self.whole(response, account).await;
        }
        let head = answer::head(&response, account.permit);
        let options = RelayOptions {
            strips_usage: parsed.stream && !parsed.wants_usage,
            idle: self.shared.view().limits.stream_idle_timeout,
        };
        let body = response.body.take_until(Box::pin(self.shared.until_cut()));
        let relay = Relay::open(Box::pin(body), account, options).await?;
        Ok(Opened::Stream(head, Box::new(relay)))
    }

    /// The engine's response, if it says that all is well.
    async fn post(
        &self,
        parsed: &ParsedRequest<'_>,
        permit: &mut Permit,
    ) -> Result<UpstreamResponse, AttemptError> {
        // An id that two requests share would make vLLM refuse the second.
        let id = format!("{}-{:08x}", self.request_id, rand::random::<u32>());
        let (engines, sent) = (self.engines, parsed.members.to_bytes());
        let posted = engines.post(&permit.endpoint, self.path, &id, sent).await;
        let response = posted.map_err(|unanswered| {
            match unanswered.fault {
                Fault::Unreachable => permit.engine_unreachable(),
                Fault::Lost => {}
                Fault::Unusable => {
                    permit.engine_failed();
                    return AttemptError::Failed(Failure::Unreachable(unanswered.why));
                }
            }
            AttemptError::Lost(unanswered.why)
        })?;
        if response.status.is_success() {
            return Ok(response);
        }
        permit.engine_failed();
        let status = response.status;
        let body = collect(response).await.unwrap_or_default();
        Err(AttemptError::Failed(engine_failure(status, &body)))
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
        // A stream tells when the prefill is over and how many tokens came, which is what the fair
        // queue goes by, and every engine aborts it when the client hangs up.
        if parsed.stream || !parsed.has_tools() || !dialect.quirks.aborts_unstreamed {
            parsed.set_streaming();
            return Ok(true);
        }
        // vLLM refuses stream_options without a stream.
        parsed.members.remove("stream_options");
        Ok(false)
    }

    async fn whole(
        &self,
        response: UpstreamResponse,
        Account { permit, record }: &mut Account<'_>,
    ) -> Result<Opened, AttemptError> {
        let head = answer::head(&response, permit);
        let Some(mut body) = collect(response).await else {
            return Err(AttemptError::Lost("the answer broke off".to_owned()));
        };
        let usage = match event::read_answer(&body) {
            Ok(Event::Chunk(chunk)) if chunk.is_aborted => {
                let why = "the engine gave the request up";
                return Err(AttemptError::Lost(why.to_owned()));
            }
            Ok(Event::Chunk(chunk)) => chunk.usage,
            Ok(Event::Comment | Event::Done | Event::Failed(_)) | Err(_) => None,
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
            body = tokenize::answer(body, permit.endpoint.kind.dialect());
        }
        Ok(Opened::Whole(head, body))
    }
}

async fn collect(response: UpstreamResponse) -> Option<Bytes> {
    let mut body = response.body;
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.ok()?;
        if whole.len() + chunk.len() > MAX_ANSWER {
            return None;
        }
        whole.extend_from_slice(&chunk);
    }
    Some(whole.freeze())
}

//! One attempt at an answer: a permit, an engine, and its first token or the lack of it.

use actix_web::{HttpResponse, HttpResponseBuilder};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use kvwarden_actors::Permit;
use kvwarden_policy::TenantId;

use super::{
    Shared,
    completions::Task,
    format::sse,
    record::Record,
    refusal::{self, Failure, engine_failure},
    relay::{Manner, Relay},
    request::envelope::Ask,
    tokenize,
    upstream::{Answer, Engines},
};

/// Largest answer that is held in memory; a long completion with logprobs stays under 8 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// What stays the same from one attempt to the next.
pub struct Attempt<'a> {
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
pub enum Reached {
    /// In a stream, of which the first token is here.
    Stream(HttpResponseBuilder, Box<Relay>),
    /// All at once, and this is all.
    Whole(HttpResponseBuilder, Bytes),
}

/// Nothing came that a client could use.
pub enum Miss {
    /// The engine said no, or it would not help to ask again.
    Failed(Failure, Record),
    /// The engine went away before its first token.
    Lost {
        /// For the log.
        why: String,
        /// To be tried once more with, or dropped.
        permit: Box<Permit>,
        /// Of the request.
        record: Record,
    },
}

impl Miss {
    pub(super) fn lost(why: impl Into<String>, permit: Permit, record: Record) -> Self {
        Self::Lost {
            why: why.into(),
            permit: Box::new(permit),
            record,
        }
    }
}

impl Attempt<'_> {
    /// Asks the engine that the permit is for, and waits for its first token.
    ///
    /// # Errors
    /// When none comes.
    pub async fn run(
        &self,
        ask: &mut Ask<'_>,
        mut permit: Permit,
        record: Record,
    ) -> Result<Reached, Miss> {
        let streams_upstream = self.adapt(ask, &permit);
        if !streams_upstream {
            permit.acknowledge_unseen();
        }
        let sent = ask.members.to_bytes();
        // An id that two requests share would make vLLM refuse the second.
        let id = format!("{}-{:08x}", self.request_id, rand::random::<u32>());
        let posted = self
            .engines
            .post(&permit.endpoint, self.path, &id, sent)
            .await;
        let answer = match posted {
            Ok(answer) => answer,
            Err(unanswered) => {
                if unanswered.is_unreachable {
                    permit.engine_unreachable();
                }
                return Err(Miss::lost(unanswered.why, permit, record));
            }
        };
        if !answer.status.is_success() {
            permit.engine_failed();
            let status = answer.status;
            let body = collect(answer).await.unwrap_or_default();
            return Err(Miss::Failed(engine_failure(status, &body), record));
        }
        if !streams_upstream || !answer.is_stream() {
            return self.whole(answer, permit, record).await;
        }
        let head = self.head(&permit, &answer);
        let manner = Manner {
            strips_usage: ask.stream && !ask.wants_usage,
            idle: self.shared.view().limits.stream_idle_timeout,
        };
        let answer = Answer {
            body: Box::pin(answer.body.take_until(Box::pin(self.shared.until_cut()))),
            ..answer
        };
        let relay = Relay::open(answer, permit, record, manner).await?;
        Ok(Reached::Stream(head, Box::new(relay)))
    }

    /// Sets the fields that are ours; each attempt sets them anew. Tells whether the engine is asked for a stream.
    fn adapt(&self, ask: &mut Ask<'_>, permit: &Permit) -> bool {
        let dialect = permit.endpoint.kind.dialect();
        ask.members.set("model", &permit.endpoint.served_name);
        if self.task == Task::Tokenize {
            tokenize::adapt(&mut ask.members, dialect);
        }
        if self.task != Task::Generate {
            return false;
        }
        if dialect.quirks.orders_by_priority {
            ask.members.set("priority", &permit.tag());
        }
        if dialect.quirks.salts_prefix_cache {
            let salt = self.shared.salts.of(self.tenant, self.salt.as_deref());
            ask.members.set("cache_salt", &salt);
        }
        // A stream tells when the prefill is over and how many tokens came, which is what the fair
        // queue goes by, and every engine aborts it when the client hangs up.
        if ask.stream || !ask.has_tools() || !dialect.quirks.aborts_unstreamed {
            ask.set_streaming();
            return true;
        }
        // vLLM refuses stream_options without a stream.
        ask.members.remove("stream_options");
        false
    }

    async fn whole(
        &self,
        answer: Answer,
        mut permit: Permit,
        mut record: Record,
    ) -> Result<Reached, Miss> {
        let mut head = self.head(&permit, &answer);
        let content_type = answer.content_type.clone();
        let body = collect(answer).await;
        let lost = match &body {
            None => Some("the answer broke off"),
            Some(body) if sse::is_aborted(body) => Some("the engine gave the request up"),
            Some(_) => None,
        };
        if let Some(why) = lost {
            return Err(Miss::lost(why, permit, record));
        }
        let mut body = body.unwrap_or_default();
        if self.task == Task::Generate {
            record.first_token();
        }
        permit.first_token();
        let usage = sse::usage_of(&body);
        if let Some(usage) = usage {
            permit.report(usage);
        }
        record.done(usage);
        if self.task == Task::Tokenize {
            body = tokenize::answer(body, permit.endpoint.kind.dialect());
        }
        head.content_type(content_type.unwrap_or_else(|| "application/json".to_owned()));
        Ok(Reached::Whole(head, body))
    }

    fn head(&self, permit: &Permit, answer: &Answer) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(answer.status);
        refusal::rate_limit_headers(&mut response, &permit.rate_limits());
        if answer.is_simulated || permit.endpoint.kind.dialect().is_simulated() {
            response.insert_header(("x-kvwarden-simulated", "true"));
        }
        response
    }
}

async fn collect(answer: Answer) -> Option<Bytes> {
    let mut body = answer.body;
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

//! An engine's stream on its way to the client, event by event, byte for byte.
//!
//! It reads up to the first token before anything is promised to the client: an engine that goes
//! away before can be replaced by another, and vLLM reports some refusals as the first event of a 200.
//! Until then the permit and the record are lent to it. A stream on its way to the client has them for
//! itself: end, error and hang-up all release the permit by dropping it.

use std::{collections::VecDeque, io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::LocalBoxStream};
use kvwarden_actors::Permit;
use kvwarden_policy::cost::Usage;
use serde_json::json;

use super::{
    format::{
        assemble::{Assembly, Unmergeable},
        event::{self, Event},
        sse::Splitter,
    },
    pipe::{self, Reader, Writer},
    record::{Account, Record},
    refusal::{Failure, event_failure},
};

/// Largest event: an image of 8 MB in a delta is real, one without an end is not.
const MAX_EVENT: usize = 64 << 20;

/// Why a stream broke off that nothing came through for too long.
const IDLE: &str = "idle_timeout";

/// A stream being passed on.
pub(super) struct Relay {
    body: LocalBoxStream<'static, io::Result<Bytes>>,
    splitter: Splitter,
    ready: VecDeque<Bytes>,
    usage: Option<Usage>,
    options: RelayOptions,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// `[DONE]` was passed on; only the end of the body is missing.
    Done,
    Ended {
        /// With everything passed on.
        well: bool,
    },
}

/// How a stream is passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayOptions {
    /// The client did not ask for usage, so what the engine says of it is taken out.
    pub strips_usage: bool,
    /// How long the engine may be silent.
    pub idle: Duration,
}

/// Nothing came that a client could use.
pub(super) enum OpenError {
    /// The engine said no, or it would not help to ask again.
    Failed(Failure),
    /// The engine went away, for this reason.
    Lost(&'static str),
}

impl Relay {
    /// Waits for the first token, or for whatever else shows that the engine works on the answer.
    /// Until then nothing is promised to the client, and another engine could still give it.
    ///
    /// # Errors
    /// When the engine's first word is an error, or it goes away before it says any.
    pub(super) async fn open(
        body: LocalBoxStream<'static, io::Result<Bytes>>,
        account: &mut Account<'_>,
        options: RelayOptions,
    ) -> Result<Self, OpenError> {
        let mut relay = Self {
            body,
            splitter: Splitter::default(),
            ready: VecDeque::new(),
            usage: None,
            options,
            state: State::Open,
        };
        let failed = |account: &mut Account<'_>, failure| {
            account.permit.engine_failed();
            OpenError::Failed(failure)
        };
        loop {
            let event = match relay.pull().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(OpenError::Lost("the stream ended before its first token")),
                Err(IDLE) => return Err(failed(account, Failure::Unreachable(IDLE.to_owned()))),
                Err(broken) => return Err(OpenError::Lost(broken)),
            };
            let is_begun = match event::read(&event) {
                Event::Failed(error) => return Err(failed(account, event_failure(&error))),
                Event::Chunk(chunk) if chunk.is_aborted => {
                    return Err(OpenError::Lost("the engine gave the request up"));
                }
                // A ping, or who speaks: neither is part of the answer.
                Event::Comment => false,
                Event::Chunk(chunk) => !chunk.is_opening,
                Event::Done => true,
            };
            let event = relay.take(event, account);
            relay.ready.extend(event);
            if is_begun {
                return Ok(relay);
            }
        }
    }

    /// The next event for the client. After an error there is one last event that tells so: a
    /// clean close would pass for success with the SDKs.
    async fn next(&mut self, account: &mut Account<'_>) -> Option<Bytes> {
        if let Some(event) = self.ready.pop_front() {
            return Some(event);
        }
        loop {
            if let State::Ended { .. } = self.state {
                return None;
            }
            match self.pull().await {
                Ok(Some(event)) => {
                    if let Some(event) = self.take(event, account) {
                        return Some(event);
                    }
                }
                Ok(None) if self.state == State::Done => self.finish(),
                Ok(None) => return Some(self.break_off("engine_closed", account)),
                // After `[DONE]` nothing is lost by a connection that ends badly.
                Err(_) if self.state == State::Done => self.finish(),
                Err(reason) => return Some(self.break_off(reason, account)),
            }
        }
    }

    /// Passes all events on, as fast as the client takes them. The engine's place is given back
    /// when the engine is done, however far the client is, or when the client lets an event wait
    /// for longer than `patience`.
    pub(super) fn into_body(
        self,
        permit: Permit,
        mut record: Record,
        patience: Duration,
    ) -> Reader {
        record.streaming();
        pipe::spawn(patience, |writer| self.pass_on(permit, record, writer))
    }

    async fn pass_on(mut self, mut permit: Permit, mut record: Record, writer: Writer) {
        let mut account = Account {
            permit: &mut permit,
            record: &mut record,
        };
        while let Some(event) = self.next(&mut account).await {
            if writer.put(event).await.is_err() {
                record.stalled();
                return writer.end_with(last_words(
                    "the client did not read the answer",
                    "slow_reader",
                ));
            }
        }
    }

    /// The answer as a client gets it that did not ask for a stream.
    ///
    /// # Errors
    /// When the engine stopped before the end.
    pub(super) async fn assemble(mut self, account: &mut Account<'_>) -> Result<Bytes, Failure> {
        let mut whole = Assembly::default();
        while let Some(event) = self.next(account).await {
            whole.add(&event).map_err(unreadable)?;
        }
        if self.state == (State::Ended { well: true }) {
            let answer = whole.finish(self.usage).map_err(unreadable)?;
            return Ok(answer.into());
        }
        Err(Failure::Unreachable(
            "the engine stopped before the answer was complete".to_owned(),
        ))
    }

    async fn pull(&mut self) -> Result<Option<Bytes>, &'static str> {
        loop {
            if let Some(event) = self.splitter.next_event() {
                return Ok(Some(event));
            }
            match tokio::time::timeout(self.options.idle, self.body.next()).await {
                Err(_) => return Err(IDLE),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err("engine_error"),
                Ok(Some(Ok(chunk))) => {
                    self.splitter.push(chunk);
                    if self.splitter.pending() > MAX_EVENT {
                        return Err("oversized_event");
                    }
                }
            }
        }
    }

    /// Reads an event by the way; nothing comes back if it is not for the client.
    fn take(&mut self, event: Bytes, account: &mut Account<'_>) -> Option<Bytes> {
        let Account { permit, record } = account;
        match event::read(&event) {
            Event::Comment => Some(event),
            Event::Done => {
                self.state = State::Done;
                record.done(self.usage);
                Some(event)
            }
            Event::Failed(_) => {
                permit.engine_failed();
                record.broken("engine_error");
                self.state = State::Ended { well: false };
                Some(event)
            }
            Event::Chunk(chunk) if chunk.is_aborted => {
                Some(self.break_off("engine_aborted", account))
            }
            Event::Chunk(chunk) => {
                if chunk.tokens > 0 {
                    record.first_token();
                    permit.first_token();
                    permit.streamed(chunk.tokens.into());
                }
                if let Some(usage) = chunk.usage {
                    self.count(usage, permit);
                }
                if !chunk.has_usage || !self.options.strips_usage {
                    return Some(event);
                }
                event::without_usage(&event)
            }
        }
    }

    /// llama.cpp tells the usage of each choice by itself; the others tell the sum.
    fn count(&mut self, usage: Usage, permit: &mut Permit) {
        let is_per_choice = permit.endpoint.kind.dialect().quirks.usage_is_per_choice;
        let before = self
            .usage
            .filter(|_| is_per_choice)
            .map_or(0, |u| u.completion_tokens);
        let usage = Usage {
            completion_tokens: usage.completion_tokens + before,
            ..usage
        };
        self.usage = Some(usage);
        permit.report(usage);
    }

    fn finish(&mut self) {
        self.state = State::Ended { well: true };
    }

    fn break_off(&mut self, reason: &'static str, account: &mut Account<'_>) -> Bytes {
        tracing::warn!(endpoint = ?account.permit.endpoint, reason, "stream broke off");
        self.state = State::Ended { well: false };
        account.record.broken(reason);
        account.permit.engine_failed();
        last_words(
            "the model's engine stopped before the answer was complete",
            reason,
        )
    }
}

/// The error event that ends an answer which is not whole.
fn last_words(message: &str, code: &str) -> Bytes {
    let error = json!({ "error": {
        "message": message, "type": "server_error", "param": null, "code": code,
    }});
    Bytes::from(format!("data: {error}\n\n"))
}

fn unreadable(error: Unmergeable) -> Failure {
    Failure::Unreachable(format!(
        "the engine's answer cannot be put together: {error}"
    ))
}

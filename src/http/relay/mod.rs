//! An engine's stream on its way to the client, event by event, byte for byte.
//!
//! It reads up to the first token before anything of the answer is promised to the client: an engine that
//! goes away before can be replaced by another, and vLLM reports some refusals as the first event of a
//! 200. Until then the permit and the record are lent to it. A stream on its way to the client has them
//! for itself: end, error and hang-up all release the permit by dropping it.
//!
//! The end is `[DONE]`, whatever follows, or the body's own end behind the `finish_reason` of every choice.

mod source;
mod tally;

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use kvwarden_actors::Permit;
use serde_json::json;

use self::{source::Heard, tally::Tally};
pub(super) use self::{
    source::{Broken, Form, Patience, Source},
    tally::Asked,
};
use super::{
    format::{
        assemble::{Assembly, Unmergeable},
        event::{self, Choices, Chunk, Event, Reader as EventReader},
        usage::Unasked,
    },
    limits::{MAX_ANSWER, MAX_BEFORE_TOKEN},
    pipe::{self, Put, Reader, Stalled},
    record::{Account, Record},
    refusal::{Failure, told_failure},
    waiting::{ENGINE, Waiting},
};

/// A stream being passed on.
pub(super) struct Relay {
    source: Source,
    reader: EventReader,
    /// What goes on next: what came up to the first token, and what was held.
    ready: VecDeque<Bytes>,
    tally: Tally,
    /// Of a client that did not ask for usage.
    unasked: Option<Unasked>,
    begun: Choices,
    finished: Choices,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

/// How a stream is passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayOptions {
    /// The client did not ask for usage, so what the engine says of it is taken out.
    pub strips_usage: bool,
    /// What the engine was asked for.
    pub asked: Asked,
}

/// Nothing came that a client could use.
pub(super) enum OpenError {
    /// The engine said no, or it would not help to ask again.
    Failed(Failure),
    /// The engine went away, for this reason.
    Lost(&'static str),
}

/// What an event is to who reads it.
enum Said {
    Comment,
    Part(Chunk),
    Done,
    Failed(Failure),
    Aborted,
}

impl From<Broken> for OpenError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Lost | Broken::Cut => Self::Lost(broken.why()),
            Broken::Idle => Self::Failed(Failure::Unreachable(broken.why().to_owned())),
            Broken::Malformed | Broken::Oversized | Broken::Blank => {
                Self::Failed(Failure::Unusable(broken.why().to_owned()))
            }
        }
    }
}

// === impl Relay ===

impl Relay {
    /// Of what this source gives. It is large, and every future that it passes through would have room
    /// for it.
    pub(super) fn new(source: Source, options: RelayOptions) -> Box<Self> {
        Box::new(Self {
            source,
            reader: EventReader::default(),
            ready: VecDeque::new(),
            tally: Tally::new(options.asked),
            unasked: options.strips_usage.then(Unasked::default),
            begun: Choices::default(),
            finished: Choices::default(),
            state: State::Open,
        })
    }

    /// Waits for the first token, or for whatever else shows that the engine works on the answer.
    /// Until then nothing of it is promised to the client, and another engine could still give it.
    ///
    /// # Errors
    /// When the engine's first word is an error, or it goes away before it says any.
    pub(super) async fn open(
        &mut self,
        account: &mut Account<'_>,
        waiting: &Waiting,
    ) -> Result<(), OpenError> {
        self.begin(account, waiting).await?;
        if let Some(comments) = waiting.unheard() {
            self.ready.push_front(comments);
        }
        Ok(())
    }

    async fn begin(
        &mut self,
        account: &mut Account<'_>,
        waiting: &Waiting,
    ) -> Result<(), OpenError> {
        let mut before = 0;
        loop {
            let event = match self.source.next().await {
                Heard::Event(event) => event,
                // The client is told to wait by who waits for the first token.
                Heard::Silence => continue,
                Heard::End(rest) => match rest.filter(|rest| self.is_end(rest)) {
                    Some(rest) => rest,
                    None => return Err(OpenError::Lost("its stream ended before the first token")),
                },
                Heard::Broken(broken) => return Err(broken.into()),
            };
            before += event.len();
            match self.hear(&event, account) {
                Said::Comment => waiting.say(&event),
                Said::Part(chunk) => {
                    self.pass(event, &chunk);
                    if !chunk.is_opening {
                        return Ok(());
                    }
                }
                Said::Done => {
                    self.end(account);
                    self.ready.push_back(event);
                    return Ok(());
                }
                Said::Failed(failure) => return Err(OpenError::Failed(failure)),
                Said::Aborted => return Err(OpenError::Lost("it gave the request up")),
            }
            if before > MAX_BEFORE_TOKEN {
                let why = "it sends comments and no token";
                return Err(OpenError::Failed(Failure::Unusable(why.to_owned())));
            }
        }
    }

    /// The next event for the client. After an error there is one last event that tells so: a
    /// clean close would pass for success with the SDKs.
    async fn next(&mut self, account: &mut Account<'_>) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.state == State::Ended {
                return None;
            }
            let event = match self.source.next().await {
                Heard::Event(event) => event,
                Heard::Silence => return self.behind_held(ENGINE),
                Heard::End(rest) => match self.last(rest, account) {
                    Ok(Some(rest)) => rest,
                    Ok(None) => return self.held(),
                    Err(reason) => {
                        let last_words = self.break_off(reason, account);
                        return self.behind_held(last_words);
                    }
                },
                Heard::Broken(broken) => {
                    let last_words = self.break_off(broken.reason(), account);
                    return self.behind_held(last_words);
                }
            };
            match self.hear(&event, account) {
                Said::Part(chunk) => {
                    self.pass(event, &chunk);
                    continue;
                }
                Said::Comment => {}
                Said::Done => self.end(account),
                Said::Failed(_) => self.fail("engine_error", account),
                Said::Aborted => {
                    let last_words = self.break_off("engine_aborted", account);
                    return self.behind_held(last_words);
                }
            }
            return self.behind_held(event);
        }
    }

    /// Passes all events on, as fast as the client takes them. The engine's place is given back
    /// when the engine is done, however far the client is, or when the client lets an event wait
    /// for longer than `patience`.
    pub(super) fn into_body(
        mut self: Box<Self>,
        mut permit: Box<Permit>,
        mut record: Record,
        patience: Duration,
    ) -> Reader {
        record.streaming();
        // An async function would hold each of its arguments twice, for as long as the stream goes on.
        pipe::spawn(patience, |writer| async move {
            let mut account = Account {
                permit: &mut permit,
                record: &mut record,
            };
            while let Some(event) = self.next(&mut account).await {
                if self.state == State::Ended && self.ready.is_empty() {
                    writer.end_with(event);
                    break;
                }
                match writer.put(event).await {
                    Ok(Put::AtOnce) => {}
                    Ok(Put::Late) => self.source.listen_again(),
                    Err(Stalled) => {
                        account.record.stalled();
                        return writer.end_with(last_words(
                            "the client did not read the answer",
                            "slow_reader",
                        ));
                    }
                }
            }
            drop((permit, record));
            self.source.linger().await;
        })
    }

    /// The answer as a client gets it that did not ask for a stream.
    ///
    /// # Errors
    /// When the engine stopped before the end.
    pub(super) async fn assemble(
        mut self: Box<Self>,
        account: &mut Account<'_>,
    ) -> Result<Bytes, Failure> {
        let assembled = self.collect(account).await;
        match &assembled {
            Ok(_) => self.source.let_go(),
            Err(_) if self.state == State::Open => self.fail("engine_error", account),
            Err(_) => {}
        }
        assembled
    }

    async fn collect(&mut self, account: &mut Account<'_>) -> Result<Bytes, Failure> {
        let mut whole = Assembly::default();
        for event in std::mem::take(&mut self.ready) {
            whole.add(&event).map_err(|error| unreadable(&error))?;
        }
        while self.state == State::Open {
            let event = match self.source.next().await {
                Heard::Event(event) => event,
                Heard::Silence => continue,
                Heard::End(rest) => match self.last(rest, account) {
                    Ok(Some(rest)) => rest,
                    Ok(None) => break,
                    Err(reason) => return Err(self.stopped(reason, account)),
                },
                Heard::Broken(broken) => return Err(self.stopped(broken.reason(), account)),
            };
            match self.hear(&event, account) {
                Said::Comment => {}
                Said::Part(_) => match self.reader.more(&event) {
                    Some(text) => whole.add_more(&event, text),
                    None => whole.add(&event),
                }
                .map_err(|error| unreadable(&error))?,
                Said::Done => self.end(account),
                Said::Failed(failure) => return Err(failure),
                Said::Aborted => return Err(self.stopped("engine_aborted", account)),
            }
            if whole.len() > MAX_ANSWER {
                return Err(Failure::Unusable(Broken::Oversized.why().to_owned()));
            }
        }
        let answer = whole
            .finish(self.tally.total())
            .map_err(|error| unreadable(&error))?;
        Ok(answer.into())
    }

    /// Reads an event by the way, and counts what is in it.
    fn hear(&mut self, event: &Bytes, account: &mut Account<'_>) -> Said {
        let chunk = match self.reader.read(event) {
            Event::Comment => return Said::Comment,
            Event::Done => return Said::Done,
            Event::Failed(error) => return Said::Failed(told_failure(&error)),
            Event::Chunk(chunk) if chunk.is_aborted => return Said::Aborted,
            Event::Chunk(chunk) => chunk,
        };
        let Account { permit, record } = account;
        self.begun.extend(chunk.begun);
        self.finished.extend(chunk.finished);
        if chunk.tokens > 0 {
            record.first_token();
            permit.first_token();
            permit.streamed(chunk.tokens.into());
        }
        if chunk.tokens > 0 || chunk.has_usage || !chunk.finished.is_empty() {
            self.source.progressed();
        }
        if let Some(usage) = chunk.usage {
            self.tally.add(usage, &chunk);
            // Of a choice alone it is less than what was used, should the others be cut.
            let is_part = permit.endpoint.kind.dialect().quirks.usage_is_per_choice;
            if let Some(total) = self.tally.total()
                && (!is_part || self.tally.is_whole())
            {
                permit.report(total);
            }
        }
        Said::Part(chunk)
    }

    /// A part of the answer goes on, as its client asked for it.
    fn pass(&mut self, event: Bytes, chunk: &Chunk) {
        match &mut self.unasked {
            None => self.ready.push_back(event),
            Some(unasked) => self
                .ready
                .extend(unasked.pass(event, chunk).into_iter().flatten()),
        }
    }

    /// Anything else goes on, behind what is held.
    fn behind_held(&mut self, event: Bytes) -> Option<Bytes> {
        match self.held() {
            None => Some(event),
            Some(held) => {
                self.ready.push_back(event);
                Some(held)
            }
        }
    }

    fn held(&mut self) -> Option<Bytes> {
        self.unasked.as_mut().and_then(Unasked::held)
    }

    /// The body is over, but for an event that lacks its blank line: it is given back if the answer is
    /// whole with it.
    ///
    /// # Errors
    /// When the answer is not whole.
    fn last(
        &mut self,
        rest: Option<Bytes>,
        account: &mut Account<'_>,
    ) -> Result<Option<Bytes>, &'static str> {
        let rest = rest.filter(|rest| self.is_end(rest));
        if rest.is_none() {
            if !self.is_whole() {
                return Err("engine_closed");
            }
            self.end(account);
        }
        Ok(rest)
    }

    /// Every choice has its `finish_reason`.
    fn is_whole(&self) -> bool {
        !self.begun.is_empty() && self.finished.contain(self.begun)
    }

    /// Nothing comes after this event.
    fn is_end(&self, event: &Bytes) -> bool {
        match event::read(event) {
            Event::Done => true,
            Event::Chunk(chunk) => {
                let (mut begun, mut finished) = (self.begun, self.finished);
                begun.extend(chunk.begun);
                finished.extend(chunk.finished);
                !begun.is_empty() && finished.contain(begun)
            }
            Event::Failed(_) => true,
            Event::Comment => false,
        }
    }

    /// The answer is whole.
    fn end(&mut self, account: &mut Account<'_>) {
        self.state = State::Ended;
        let usage = self.tally.total();
        if let Some(usage) = usage {
            account.permit.report(usage);
        }
        account.record.done(usage);
    }

    /// The answer won't be whole.
    fn fail(&mut self, reason: &'static str, account: &mut Account<'_>) {
        self.state = State::Ended;
        account.record.broken(reason);
        account.permit.engine_failed();
    }

    fn break_off(&mut self, reason: &'static str, account: &mut Account<'_>) -> Bytes {
        tracing::warn!(endpoint = ?account.permit.endpoint, reason, "stream broke off");
        self.fail(reason, account);
        last_words(STOPPED, reason)
    }

    fn stopped(&mut self, reason: &'static str, account: &mut Account<'_>) -> Failure {
        tracing::warn!(endpoint = ?account.permit.endpoint, reason, "answer broke off");
        self.fail(reason, account);
        Failure::Unreachable(STOPPED.to_owned())
    }
}

const STOPPED: &str = "the model's engine stopped before the answer was complete";

/// The error event that ends an answer which is not whole.
fn last_words(message: &str, code: &str) -> Bytes {
    let error = json!({ "error": {
        "message": message, "type": "server_error", "param": null, "code": code,
    }});
    Bytes::from(format!("data: {error}\n\n"))
}

fn unreadable(error: &Unmergeable) -> Failure {
    Failure::Unusable(format!("its events cannot be put together: {error}"))
}

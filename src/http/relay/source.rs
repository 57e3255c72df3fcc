//! The body of an engine's answer as it is read: whole or event by event, within its bounds of bytes and
//! time. It decides nothing about what it says.
//!
//! One timer serves a body for as long as it comes. It is set anew when it fires, not with every read.

use std::{
    io::ErrorKind,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, Stream as _, future::poll_fn};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::super::{
    format::sse::{Splitter, looks_like_events},
    limits::{LINGER, MAX_ANSWER, MAX_BLANK, SILENCE},
    upstream::Body,
};

/// The body of an answer.
pub(in crate::http) struct Source {
    body: Body,
    /// Comes back when all streams are to end.
    cut: Pin<Box<dyn Future<Output = ()>>>,
    has_begun: bool,
    /// What was read to see what it is.
    beginning: Bytes,
    splitter: Splitter,
    is_over: bool,
    clock: Clock,
}

/// How long an engine may be silent.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct Patience {
    /// Without a byte.
    pub idle: Duration,
    /// Without anything that shows that the answer gets further.
    pub unseen: Duration,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Form {
    /// As events.
    Events,
    /// In one piece.
    Whole,
}

/// What comes next of a stream.
#[derive(Debug)]
pub(super) enum Heard {
    /// A whole event.
    Event(Bytes),
    /// Nothing for as long as a client may be left without a word.
    Silence,
    /// The end of the body, and an event that lacks its own.
    End(Option<Bytes>),
    /// No more, though that was not the end.
    Broken(Broken),
}

/// Why the rest of a body does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Broken {
    /// The connection is gone.
    Lost,
    /// What comes is not HTTP.
    Malformed,
    /// It is larger than anything we hold.
    Oversized,
    /// It is blank, as far as we read.
    Blank,
    /// The engine is silent for too long.
    Idle,
    /// We end all streams.
    Cut,
}

enum Piece {
    Bytes(Bytes),
    Silence,
    End,
    Broken(Broken),
}

struct Clock {
    timer: Pin<Box<Sleep>>,
    patience: Patience,
    /// The last byte came.
    heard: Instant,
    /// The answer got further.
    progressed: Instant,
    /// The client heard something.
    told: Instant,
}

// === impl Broken ===

impl Broken {
    /// In one word, for metrics and clients.
    pub(in crate::http) fn reason(self) -> &'static str {
        match self {
            Self::Lost | Self::Malformed | Self::Blank => "engine_error",
            Self::Oversized => "oversized_event",
            Self::Idle => "idle_timeout",
            Self::Cut => "engine_closed",
        }
    }

    /// In a sentence's end.
    pub(in crate::http) fn why(self) -> &'static str {
        match self {
            Self::Lost => "its connection broke off",
            Self::Malformed => "what it sends is not HTTP",
            Self::Oversized => "it is larger than 64 MiB",
            Self::Blank => "it sends blanks and no answer",
            Self::Idle => "it was silent for too long",
            Self::Cut => "this server shuts down",
        }
    }
}

// === impl Source ===

impl Source {
    /// Of this body, which is cut when `cut` comes back.
    pub(in crate::http) fn new(
        body: Body,
        cut: impl Future<Output = ()> + 'static,
        patience: Patience,
    ) -> Self {
        Self {
            body,
            cut: Box::pin(cut),
            has_begun: false,
            beginning: Bytes::new(),
            splitter: Splitter::default(),
            is_over: false,
            clock: Clock::new(patience),
        }
    }

    /// Reads as much as it takes to see how the answer is written, whatever its content type says.
    ///
    /// # Errors
    /// When nothing comes.
    pub(in crate::http) async fn form(&mut self) -> Result<Form, Broken> {
        loop {
            match self.piece().await {
                Piece::Bytes(piece) => self.beginning = join(&self.beginning, piece),
                Piece::Silence => continue,
                Piece::End => return Ok(Form::Whole),
                Piece::Broken(broken) => return Err(broken),
            }
            if looks_like_events(&self.beginning) {
                self.splitter.push(std::mem::take(&mut self.beginning));
                return Ok(Form::Events);
            }
            if !is_blank(&self.beginning) {
                return Ok(Form::Whole);
            }
            if self.beginning.len() > MAX_BLANK {
                return Err(Broken::Blank);
            }
        }
    }

    /// Something of it came.
    pub(in crate::http) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Reads all of it, `most` bytes.
    ///
    /// # Errors
    /// When it does not come to its end, or is more.
    pub(in crate::http) async fn whole(&mut self, most: usize) -> Result<Bytes, Broken> {
        let mut first = std::mem::take(&mut self.beginning);
        let mut more = BytesMut::new();
        while !self.is_over {
            match self.piece().await {
                Piece::Bytes(piece) if first.len() + more.len() + piece.len() > most => {
                    return Err(Broken::Oversized);
                }
                // The usual answer is one piece, which is not copied.
                Piece::Bytes(piece) if first.is_empty() && more.is_empty() => first = piece,
                Piece::Bytes(piece) => {
                    if more.is_empty() {
                        more.reserve(first.len() + piece.len());
                        more.extend_from_slice(&first);
                        first = Bytes::new();
                    }
                    more.extend_from_slice(&piece);
                }
                Piece::Silence | Piece::End => {}
                Piece::Broken(broken) => return Err(broken),
            }
        }
        Ok(if more.is_empty() {
            first
        } else {
            more.freeze()
        })
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            if let Some(event) = self.splitter.next_event() {
                return Heard::Event(event);
            }
            match self.piece().await {
                Piece::Bytes(piece) => {
                    self.splitter.push(piece);
                    if self.splitter.pending() > MAX_ANSWER {
                        return Heard::Broken(Broken::Oversized);
                    }
                }
                Piece::Silence => return Heard::Silence,
                Piece::End => return Heard::End(self.splitter.rest()),
                Piece::Broken(broken) => return Heard::Broken(broken),
            }
        }
    }

    /// The last bytes brought the answer further.
    pub(super) fn progressed(&mut self) {
        self.clock.progressed = self.clock.heard;
    }

    /// Nobody listened for a while, which is no silence of the engine.
    pub(super) fn listen_again(&mut self) {
        self.clock.listen_again();
    }

    /// The answer is whole. The end of its body is waited for a little, so that its connection can be used
    /// again.
    pub(super) async fn linger(&mut self) {
        let end = async {
            while !self.is_over {
                if let Piece::Broken(_) = self.piece().await {
                    return;
                }
            }
        };
        // What comes so late is not worth its wait.
        let _ = timeout(LINGER, end).await;
    }

    /// As [`linger`](Self::linger), by itself. Usually the end came with the end of the answer.
    pub(super) fn let_go(mut self) {
        if !matches!(self.piece().now_or_never(), Some(Piece::End)) {
            actix_web::rt::spawn(async move { self.linger().await });
        }
    }

    async fn piece(&mut self) -> Piece {
        poll_fn(|task| self.poll_piece(task)).await
    }

    fn poll_piece(&mut self, task: &mut Context<'_>) -> Poll<Piece> {
        if self.is_over {
            return Poll::Ready(Piece::End);
        }
        let Poll::Ready(came) = Pin::new(&mut self.body).poll_next(task) else {
            if self.cut.as_mut().poll(task).is_ready() {
                // Nobody lingers for its end, and what came back once must not be asked again.
                self.is_over = true;
                return Poll::Ready(Piece::Broken(Broken::Cut));
            }
            return self.clock.poll(task);
        };
        Poll::Ready(match came {
            Some(Ok(piece)) => {
                self.has_begun = true;
                self.clock.hear();
                Piece::Bytes(piece)
            }
            Some(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                Piece::Broken(Broken::Malformed)
            }
            Some(Err(_)) => Piece::Broken(Broken::Lost),
            None => {
                self.is_over = true;
                Piece::End
            }
        })
    }
}

fn join(before: &Bytes, piece: Bytes) -> Bytes {
    if before.is_empty() {
        return piece;
    }
    [before.as_ref(), piece.as_ref()].concat().into()
}

/// Nothing is said yet: blanks, or the beginning of a byte order mark.
fn is_blank(beginning: &[u8]) -> bool {
    let text = beginning.trim_ascii_start();
    text.len() < 4 && b"\xef\xbb\xbf".starts_with(text)
}

// === impl Clock ===

impl Clock {
    fn new(patience: Patience) -> Self {
        let now = Instant::now();
        Self {
            timer: Box::pin(sleep_until(now + SILENCE.min(patience.idle))),
            patience,
            heard: now,
            progressed: now,
            told: now,
        }
    }

    fn hear(&mut self) {
        self.heard = Instant::now();
        self.told = self.heard;
    }

    fn listen_again(&mut self) {
        self.hear();
        self.progressed = self.heard;
    }

    /// When the engine's time is over.
    fn end(&self) -> Instant {
        let Patience { idle, unseen } = self.patience;
        (self.heard + idle).min(self.progressed + unseen)
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Piece> {
        loop {
            ready!(self.timer.as_mut().poll(task));
            let now = Instant::now();
            if now >= self.end() {
                return Poll::Ready(Piece::Broken(Broken::Idle));
            }
            let is_silent = now >= self.told + SILENCE;
            if is_silent {
                self.told = now;
            }
            let due = self.end().min(self.told + SILENCE);
            self.timer.as_mut().reset(due);
            if is_silent {
                return Poll::Ready(Piece::Silence);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::poll_fn;
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Patience = Patience {
        idle: Duration::from_secs(120),
        unseen: Duration::from_secs(600),
    };

    async fn next(clock: &mut Clock) -> Piece {
        poll_fn(|task| clock.poll(task)).await
    }

    fn seconds(since: Instant) -> u64 {
        since.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_every_five_seconds_until_the_engines_time_is_over() {
        let began = Instant::now();
        let mut clock = Clock::new(PATIENCE);
        for told in 1..24 {
            assert!(matches!(next(&mut clock).await, Piece::Silence));
            assert_eq!(seconds(began), told * 5);
        }
        let end = next(&mut clock).await;
        assert!(matches!(end, Piece::Broken(Broken::Idle)));
        assert_eq!(seconds(began), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_begins_anew_with_every_byte() {
        let began = Instant::now();
        let mut clock = Clock::new(PATIENCE);
        for _ in 0..100 {
            advance(Duration::from_secs(4)).await;
            clock.hear();
            clock.progressed = clock.heard;
        }
        assert!(matches!(next(&mut clock).await, Piece::Silence));
        assert_eq!(seconds(began), 405);
    }

    #[tokio::test(start_paused = true)]
    async fn comments_of_an_engine_keep_it_alive_for_a_time_only() {
        let began = Instant::now();
        let mut clock = Clock::new(PATIENCE);
        let over = loop {
            tokio::select! {
                piece = next(&mut clock) => break piece,
                () = tokio::time::sleep(Duration::from_secs(1)) => clock.hear(),
            }
        };
        assert!(matches!(over, Piece::Broken(Broken::Idle)));
        assert_eq!(seconds(began), 600);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_listened_is_no_silence() {
        let began = Instant::now();
        let mut clock = Clock::new(PATIENCE);
        advance(PATIENCE.unseen).await;
        clock.listen_again();
        assert!(matches!(next(&mut clock).await, Piece::Silence));
        assert_eq!(seconds(began), 605);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_shorter_than_a_silence_is_kept() {
        let idle = Duration::from_millis(300);
        let began = Instant::now();
        let mut clock = Clock::new(Patience { idle, ..PATIENCE });
        let end = next(&mut clock).await;
        assert!(matches!(end, Piece::Broken(Broken::Idle)));
        assert_eq!(began.elapsed(), idle);
    }
}

//! Tells a streaming client to wait, so that neither it nor a proxy between gives up: a comment after
//! every [`SILENCE`], whatever is silent, and what the engine says itself at once. SDKs ignore comments
//! (Server-sent events, WHATWG HTML 9.2.6).
//!
//! The status is 200 from the first of them on; what goes wrong later is told as an event. Nothing else
//! goes out before the first token, so that until then another engine may still give the answer.

use std::{
    cell::{Cell, OnceCell, RefCell},
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use actix_web::{
    HttpResponse,
    body::{BoxBody, MessageBody as _, to_bytes},
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt as _,
    future::{self, poll_fn},
    stream,
};
use kvwarden_actors::protocol::{Locate, PlaceInLine, Standing};
use kvwarden_policy::{TenantId, lifecycle::State};
use tokio::time::{Instant, sleep, timeout};

use super::{
    answer::{self, Head},
    limits::{MAX_AHEAD, SILENCE, STANDING},
    shared::Shared,
};

/// What a client hears while nothing else is known.
pub(super) const ENGINE: Bytes = Bytes::from_static(b": waiting for the engine\n\n");

/// An answer that is on its way.
pub(super) type Coming = Pin<Box<dyn Future<Output = HttpResponse>>>;

/// What a request waits for, as far as its client may hear of it.
#[derive(Clone, Default)]
pub(super) struct Waiting(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// Set once the client is known to want a stream.
    streamed: OnceCell<Streamed>,
    stage: Cell<Stage>,
    head: Cell<Head>,
    /// What the engine said that is no part of the answer.
    said: RefCell<BytesMut>,
}

struct Streamed {
    tenant: TenantId,
    model: String,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    /// On its way in.
    #[default]
    Received,
    /// In its model's queue, since then.
    Queued(Instant),
    /// With an engine.
    Asked,
}

/// The answer and whoever waits for it.
struct Wait {
    coming: Coming,
    waiting: Waiting,
    shared: Arc<Shared>,
}

/// What happens to a request that waits.
enum Step {
    /// It waits no more.
    Answered(HttpResponse),
    /// Its client hears this.
    Told(Bytes),
}

// === impl Waiting ===

impl Waiting {
    /// The client wants a stream, of this model.
    pub(super) fn wants_stream(&self, tenant: &TenantId, model: &str) {
        let streamed = Streamed {
            tenant: tenant.clone(),
            model: model.to_owned(),
        };
        // Set once: a request is parsed once.
        let _ = self.0.streamed.set(streamed);
    }

    /// The request waits for its turn.
    pub(super) fn queued(&self) {
        self.0.stage.set(Stage::Queued(Instant::now()));
    }

    /// An engine has the request; an answer that begins now has this head.
    pub(super) fn asked(&self, head: Head) {
        self.0.stage.set(Stage::Asked);
        self.0.head.set(head);
    }

    /// The engine says this, which is no part of the answer.
    pub(super) fn say(&self, comment: &[u8]) {
        if self.0.streamed.get().is_some() {
            self.0.said.borrow_mut().extend_from_slice(comment);
        }
    }

    /// What the engine said and the client has not heard, which is part of the stream then.
    pub(super) fn unheard(&self) -> Option<Bytes> {
        let said = self.0.said.take();
        (!said.is_empty()).then(|| said.freeze())
    }

    /// What the client hears after a silence.
    async fn comment(self, shared: Arc<Shared>) -> Bytes {
        sleep(SILENCE).await;
        match (self.0.stage.get(), self.0.streamed.get()) {
            (Stage::Queued(since), Some(streamed)) => streamed.place(since, &shared).await,
            (Stage::Received | Stage::Asked, _) | (Stage::Queued(_), None) => ENGINE,
        }
    }
}

impl Streamed {
    async fn place(&self, since: Instant, shared: &Shared) -> Bytes {
        let standing = timeout(STANDING, self.standing(since, shared));
        let Some(standing) = standing.await.ok().flatten() else {
            return ENGINE;
        };
        if standing.state != State::Ready {
            return format!(": loading {}\n\n", self.model).into();
        }
        let more = if standing.ahead < MAX_AHEAD {
            ""
        } else {
            " or more"
        };
        format!(
            ": queued, {}{more} ahead of this request\n\n",
            standing.ahead
        )
        .into()
    }

    async fn standing(&self, since: Instant, shared: &Shared) -> Option<Standing> {
        let name = Locate(self.model.clone());
        let model = shared.router.send(name).await.ok()??;
        let asked = PlaceInLine {
            tenant: self.tenant.clone(),
            since,
            most: MAX_AHEAD,
        };
        model.send(asked).await.ok()
    }
}

// === impl Wait ===

/// The answer, or the beginning of a stream that it will be part of.
pub(super) async fn or_comments(
    coming: Coming,
    waiting: Waiting,
    shared: Arc<Shared>,
) -> HttpResponse {
    let mut wait = Wait {
        coming,
        waiting,
        shared,
    };
    match wait.step().await {
        Step::Answered(answer) => answer,
        Step::Told(first) => wait.into_stream(first),
    }
}

impl Wait {
    /// A request sets what its client is told as it is polled, so that nobody has to be woken for it. Only
    /// of a stream the time is taken.
    async fn step(&mut self) -> Step {
        let mut silence = None;
        poll_fn(|task| {
            if let Poll::Ready(answer) = self.coming.as_mut().poll(task) {
                return Poll::Ready(Step::Answered(answer));
            }
            if let Some(said) = self.waiting.unheard() {
                return Poll::Ready(Step::Told(said));
            }
            if self.waiting.0.streamed.get().is_none() {
                return Poll::Pending;
            }
            let silence = silence.get_or_insert_with(|| {
                let comment = self.waiting.clone().comment(self.shared.clone());
                Box::pin(comment)
            });
            silence.as_mut().poll(task).map(Step::Told)
        })
        .await
    }

    fn into_stream(self, first: Bytes) -> HttpResponse {
        let head = self.waiting.0.head.get();
        let rest = stream::unfold(Some(self), |wait| async {
            let mut wait = wait?;
            Some(match wait.step().await {
                Step::Told(comment) => (stream::iter([comment]).left_stream(), Some(wait)),
                Step::Answered(answer) => {
                    // Of a stream that has begun nothing is lost.
                    let said = stream::iter(wait.waiting.unheard());
                    (said.chain(events(answer).await).right_stream(), None)
                }
            })
        });
        let all = stream::iter([first]).chain(rest.flatten());
        answer::events(head, all.map(Ok::<_, Infallible>))
    }
}

/// What is left of an answer within a stream: its events, or what went wrong as the only one.
async fn events(answer: HttpResponse) -> impl Stream<Item = Bytes> {
    if answer.status().is_success() {
        return chunks(answer.into_body()).left_stream();
    }
    let error = to_bytes(answer.into_body()).await.unwrap_or_default();
    let event = [b"data: ", error.as_ref(), b"\n\n"].concat();
    stream::once(future::ready(Bytes::from(event))).right_stream()
}

/// A body's chunks. One that breaks off has told so before, as an event.
fn chunks(mut body: BoxBody) -> impl Stream<Item = Bytes> {
    let chunks = stream::poll_fn(move |task| Pin::new(&mut body).poll_next(task));
    chunks.filter_map(|chunk| future::ready(chunk.ok()))
}

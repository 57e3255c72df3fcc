//! A stream whose model is still being loaded gets comments until it begins, so that neither its
//! client nor a proxy between gives up. SDKs ignore them (Server-sent events, WHATWG HTML 9.2.6).
//!
//! The status is 200 by then; what goes wrong later is told as an event.

use std::{cell::OnceCell, convert::Infallible, pin::Pin, rc::Rc, time::Duration};

use actix_web::{
    HttpResponse,
    body::{BoxBody, MessageBody as _, to_bytes},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future, stream};
use kvwarden_actors::protocol::{Locate, Snapshot};
use kvwarden_policy::lifecycle::State;

use super::{answer, shared::Shared};

/// How long a stream may stay silent.
const PERIOD: Duration = Duration::from_secs(5);

const COMMENT: Bytes = Bytes::from_static(b": loading\n\n");

/// An answer that is on its way.
pub(super) type Coming = Pin<Box<dyn Future<Output = HttpResponse>>>;

/// The model of a request that turned out to want a stream.
pub(super) type Streamed = Rc<OnceCell<String>>;

/// The answer, or the beginning of a stream that it will be part of.
pub(super) async fn or_comments(
    mut coming: Coming,
    streamed: &Streamed,
    shared: &Shared,
) -> HttpResponse {
    loop {
        match tokio::time::timeout(PERIOD, &mut coming).await {
            Ok(answer) => return answer,
            Err(_) => {
                if let Some(model) = streamed.get()
                    && is_loading(model, shared).await
                {
                    return comments(coming);
                }
            }
        }
    }
}

async fn is_loading(name: &str, shared: &Shared) -> bool {
    let state = async {
        let model = shared.router.send(Locate(name.to_owned())).await.ok()??;
        model.send(Snapshot::<State>::default()).await.ok()
    };
    let state = tokio::time::timeout(PERIOD, state).await.ok().flatten();
    state.is_some_and(|state| state != State::Ready)
}

fn comments(coming: Coming) -> HttpResponse {
    let waiting = stream::unfold(Some(coming), |coming| async {
        let mut coming = coming?;
        match tokio::time::timeout(PERIOD, &mut coming).await {
            Err(_) => Some((stream::iter([COMMENT]).left_stream(), Some(coming))),
            Ok(answer) => Some((events(answer).await.right_stream(), None)),
        }
    });
    let comments = stream::iter([COMMENT]).chain(waiting.flatten());
    answer::events(HttpResponse::Ok(), comments.map(Ok::<_, Infallible>))
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

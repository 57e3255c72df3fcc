//! One request over one connection, up to the head of its answer.

use std::{
    future::poll_fn,
    io::{self, IoSlice, Write as _},
    ops::Range,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, buf::Chain};
use kvwarden_actors::engine::Endpoint;

use super::{
    Fault, Unanswered,
    beginning::{Beginning, Begun},
    body::{Body, Open},
    head::Head,
    pool::Engine,
    socket::{Base, Socket},
};

/// A request that goes out, and the beginning of its answer.
struct Asking<'a> {
    engine: &'a Engine,
    socket: Socket,
    request: Chain<&'a [u8], &'a [u8]>,
    is_sending: bool,
    beginning: Beginning,
    /// Something of an answer came.
    is_answered: bool,
}

/// The connection was of no use.
pub(super) struct Broken {
    /// Something of an answer came.
    pub(super) is_answered: bool,
    error: io::Error,
}

/// The head of a request. It asks for no coding, since none would be undone.
///
/// # Errors
/// When the engine's key can't stand in one.
pub(super) fn request_head(
    base: &Base,
    to: &Endpoint,
    path: &str,
    request_id: &str,
    length: usize,
) -> Result<Vec<u8>, Unanswered> {
    let mut head = Vec::with_capacity(384);
    let mut add = |parts: &[&str]| {
        for part in parts {
            head.extend_from_slice(part.as_bytes());
        }
    };
    add(&["POST ", &base.prefix, path, " HTTP/1.1\r\nhost: "]);
    add(&[&base.authority, "\r\nx-request-id: ", request_id]);
    add(&["\r\ncontent-type: application/json\r\naccept-encoding: identity"]);
    if let Some(key) = &to.api_key {
        if key.contains(|letter: char| letter.is_ascii_control()) {
            return Err(Unanswered {
                fault: Fault::Unusable,
                why: "the engine's API key can't stand in a header".to_owned(),
            });
        }
        add(&["\r\nauthorization: Bearer ", key]);
    }
    // Writing to memory does not fail.
    let _ = write!(head, "\r\ncontent-length: {length}\r\n\r\n");
    Ok(head)
}

/// Asks, and waits for the head of the answer.
pub(super) async fn ask(
    engine: &Rc<Engine>,
    socket: Socket,
    head: &[u8],
    body: &[u8],
) -> Result<(Head, Body), Broken> {
    let mut asking = Asking {
        engine,
        socket,
        request: head.chain(body),
        is_sending: true,
        beginning: Beginning::default(),
        is_answered: false,
    };
    let begun = poll_fn(|context| asking.poll(context)).await;
    let (begun, rest) = begun.map_err(|error| Broken {
        is_answered: asking.is_answered,
        error,
    })?;
    let open = Open {
        engine: engine.clone(),
        socket: asking.socket,
        framing: begun.framing,
        // An answer before the end of its question: the rest of it would be the next question.
        is_kept: begun.is_kept && !asking.request.has_remaining(),
    };
    // What was read is still there: nothing else ran since.
    let body = Body::new(open, &mut engine.scratch.borrow_mut()[rest]);
    Ok((begun.head, body))
}

// === impl Asking ===

impl Asking<'_> {
    /// Once the head is here: it, and where in what was just read the body begins.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Begun, Range<usize>)>> {
        // An engine can answer, and hang up, before it has read everything. So a write that fails is
        // not the last word: what is to be read tells what became of the request.
        if self.is_sending && self.poll_send(context).is_ready() {
            self.is_sending = false;
        }
        self.poll_begun(context)
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.request.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 2];
            let filled = self.request.chunks_vectored(&mut slices);
            let written = ready!(self.socket.poll_write(context, &slices[..filled]))?;
            self.request.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Begun, Range<usize>)>> {
        loop {
            let mut scratch = self.engine.scratch.borrow_mut();
            let read = ready!(self.socket.poll_read(context, &mut scratch))?;
            if read == 0 {
                let why = "the engine closed the connection without an answer";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
            self.is_answered = true;
            if let Some((begun, at)) = self.beginning.take(&scratch[..read])? {
                return Poll::Ready(Ok((begun, at..read)));
            }
        }
    }
}

// === impl Broken ===

impl From<Broken> for Unanswered {
    fn from(Broken { error, .. }: Broken) -> Self {
        let fault = match error.kind() == io::ErrorKind::InvalidData {
            true => Fault::Unusable,
            false => Fault::Lost,
        };
        let why = error.to_string();
        Self { fault, why }
    }
}

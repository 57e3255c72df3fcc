//! The body of an answer, read off its connection by whoever polls it.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;

use super::{framing::Framing, pool::Engine, socket::Socket};

/// The body of an engine's response, as it comes. Dropping it before its end closes the connection,
/// which aborts the request.
///
/// A body that ends before the end its head promised is an error of kind `UnexpectedEof`, one that
/// breaks the rules of HTTP is `InvalidData`.
pub struct Body {
    /// What came with the head.
    first: Option<io::Result<Bytes>>,
    open: Option<Open>,
}

/// A body of which something is missing.
pub(super) struct Open {
    pub(super) engine: Rc<Engine>,
    pub(super) socket: Socket,
    pub(super) framing: Framing,
    /// The connection can be used again behind the body.
    pub(super) is_kept: bool,
}

/// What was read.
struct Taken {
    piece: Bytes,
    is_last: bool,
}

// === impl Body ===

impl Body {
    /// Begins with what came behind the head.
    pub(super) fn new(mut open: Open, beginning: &mut [u8]) -> Self {
        let taken = take(&mut open.framing, &mut open.is_kept, beginning);
        let mut body = Self {
            first: None,
            open: Some(open),
        };
        body.first = body.settle(taken);
        body
    }

    /// At the end of the body its connection is for the next request, or closed.
    fn settle(&mut self, taken: io::Result<Taken>) -> Option<io::Result<Bytes>> {
        if !matches!(&taken, Ok(Taken { is_last: false, .. })) {
            let open = self.open.take();
            if let Some(open) = open.filter(|open| open.is_kept && taken.is_ok()) {
                open.engine.put_back(open.socket);
            }
        }
        let piece = taken.map(|taken| Some(taken.piece).filter(|piece| !piece.is_empty()));
        piece.transpose()
    }
}

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        while let Some(open) = &mut self.open {
            let taken = ready!(open.poll(context));
            if let Some(piece) = self.settle(taken) {
                return Poll::Ready(Some(piece));
            }
        }
        Poll::Ready(None)
    }
}

// === impl Open ===

impl Open {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Taken>> {
        let mut scratch = self.engine.scratch.borrow_mut();
        let read = ready!(self.socket.poll_read(context, &mut scratch))?;
        if read > 0 {
            let read = &mut scratch[..read];
            return Poll::Ready(take(&mut self.framing, &mut self.is_kept, read));
        }
        self.is_kept = false;
        Poll::Ready(self.framing.end().map(|()| Taken {
            piece: Bytes::new(),
            is_last: true,
        }))
    }
}

/// What is kept of what was read is copied: it is small, and a buffer of its own for each connection
/// would be held while it waits.
fn take(framing: &mut Framing, is_kept: &mut bool, read: &mut [u8]) -> io::Result<Taken> {
    let decoded = framing.decode(read)?;
    // Nobody asked for what is behind the end, so what it is nobody knows.
    *is_kept &= decoded.end.is_none_or(|behind| behind == 0);
    Ok(Taken {
        piece: Bytes::copy_from_slice(&read[decoded.body]),
        is_last: decoded.end.is_some(),
    })
}

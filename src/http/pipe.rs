//! What an engine sent and its client has not taken yet, bounded in bytes and in time.
//!
//! actix asks a body for more only while the client's socket takes it. So the body can't be what
//! holds the engine's place: of a client that stops reading it would never hear again. A task reads
//! the engine into a pipe, sees how long the oldest event waits, and ends by itself; the body takes
//! from the pipe. Both run on one thread, and an event passes as the pointer it is.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::limits::MAX_BEHIND;

#[derive(Default)]
struct Pipe {
    waiting: RefCell<VecDeque<(Instant, Bytes)>>,
    bytes: Cell<usize>,
    is_over: Cell<bool>,
    /// Who waits for an event, and who for room. One thread has both ends, so this is all it takes.
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

/// The engine's end. Dropping it ends the body once everything is taken.
pub(super) struct Writer {
    pipe: Rc<Pipe>,
    patience: Duration,
}

/// The client's end. Dropping it, as actix does when the client hangs up, ends the task that reads
/// the engine, unless that let go of its own end before.
pub(super) struct Reader {
    pipe: Rc<Pipe>,
    reading: JoinHandle<()>,
}

/// The client let an event wait for longer than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stalled;

/// An event waits for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// There was room for it.
    AtOnce,
    /// It had to wait for room, and the engine was not read meanwhile.
    Late,
}

/// Runs `read` with one end of a pipe, and returns the other.
pub(super) fn spawn<F: Future<Output = ()> + 'static>(
    patience: Duration,
    read: impl FnOnce(Writer) -> F,
) -> Reader {
    let pipe = Rc::<Pipe>::default();
    let writer = Writer {
        pipe: pipe.clone(),
        patience,
    };
    Reader {
        pipe,
        reading: actix_web::rt::spawn(read(writer)),
    }
}

// === impl Pipe ===

impl Pipe {
    fn put(&self, event: Bytes) {
        self.bytes.set(self.bytes.get() + event.len());
        self.waiting.borrow_mut().push_back((Instant::now(), event));
        wake(&self.reader);
    }

    fn take(&self) -> Option<Bytes> {
        let (_, event) = self.waiting.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - event.len());
        wake(&self.writer);
        Some(event)
    }

    /// Comes back once an event was taken that waits now.
    async fn taken(&self) {
        let before = self.waiting.borrow().len();
        poll_fn(|task| {
            if self.waiting.borrow().len() < before {
                return Poll::Ready(());
            }
            self.writer.set(Some(task.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Since when the oldest event waits.
    fn oldest(&self) -> Option<Instant> {
        let waiting = self.waiting.borrow();
        waiting.front().map(|(since, _)| *since)
    }
}

// === impl Writer ===

impl Writer {
    /// Lets an event wait for the client, once there is room for it.
    ///
    /// # Errors
    /// When the oldest event waits for too long. It is the oldest that counts: a client that takes
    /// one now and then is too slow as well.
    pub(super) async fn put(&self, event: Bytes) -> Result<Put, Stalled> {
        let mut put = Put::AtOnce;
        while let Some(oldest) = self.pipe.oldest() {
            let deadline = oldest + self.patience;
            if Instant::now() >= deadline {
                return Err(Stalled);
            }
            if self.pipe.bytes.get() < MAX_BEHIND {
                break;
            }
            // What came of it is seen above.
            let _ = timeout_at(deadline, self.pipe.taken()).await;
            put = Put::Late;
        }
        self.pipe.put(event);
        Ok(put)
    }

    /// Puts in the last event, room or not.
    pub(super) fn end_with(self, event: Bytes) {
        self.pipe.put(event);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.pipe.is_over.set(true);
        wake(&self.pipe.reader);
    }
}

// === impl Reader ===

impl Stream for Reader {
    type Item = io::Result<Bytes>;

    /// Everything that comes, until the other end is dropped.
    fn poll_next(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(event) = self.pipe.take() {
            return Poll::Ready(Some(Ok(event)));
        }
        if self.pipe.is_over.get() {
            return Poll::Ready(None);
        }
        self.pipe.reader.set(Some(task.waker().clone()));
        Poll::Pending
    }
}

fn wake(waiting: &Cell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.pipe.is_over.get() {
            self.reading.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use tokio::{sync::oneshot, time::advance};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const QUARTER: Bytes = Bytes::from_static(&[b'x'; MAX_BEHIND / 4]);

    /// A pipe whose engine sends for ever, and what became of it.
    fn endless() -> (Reader, oneshot::Receiver<Stalled>) {
        let (tell, told) = oneshot::channel();
        let reader = spawn(PATIENCE, async move |writer| {
            while writer.put(QUARTER).await.is_ok() {}
            let _ = tell.send(Stalled);
            writer.end_with(Bytes::from_static(b"cut"));
        });
        (reader, told)
    }

    #[actix_web::test]
    async fn what_was_put_in_comes_out_in_order_and_ends() {
        let reader = spawn(PATIENCE, async |writer| {
            for text in ["a", "b", "c"] {
                writer.put(text.into()).await.unwrap();
            }
        });
        let all: Vec<_> = reader.map(|event| event.unwrap()).collect().await;
        assert_eq!(all.concat(), b"abc");
    }

    #[actix_web::test]
    async fn event_that_waited_for_room_is_known_as_such() {
        let (tell, told) = oneshot::channel();
        let reader = spawn(PATIENCE, async move |writer| {
            let mut puts = Vec::new();
            for _ in 0..5 {
                puts.push(writer.put(QUARTER).await.unwrap());
            }
            let _ = tell.send(puts);
        });
        assert_eq!(reader.count().await, 5);
        let puts = told.await.unwrap();
        assert_eq!(puts[..4], [Put::AtOnce; 4]);
        assert_eq!(puts[4], Put::Late);
    }

    #[actix_web::test]
    async fn client_that_does_not_read_holds_a_bounded_amount_until_it_is_cut() {
        tokio::time::pause();
        let (reader, stalled) = endless();
        assert_eq!(stalled.await, Ok(Stalled));
        let all: Vec<_> = reader.map(|event| event.unwrap()).collect().await;
        assert_eq!(all.len(), 5);
        assert_eq!(all[4], "cut");
    }

    #[actix_web::test]
    async fn client_that_keeps_up_is_never_cut_and_one_that_trickles_is() {
        tokio::time::pause();
        let (mut stream, mut stalled) = endless();
        // Four events wait at most, so each waits 24 s.
        for _ in 0..100 {
            advance(PATIENCE / 5).await;
            stream.next().await.unwrap().unwrap();
        }
        assert!(stalled.try_recv().is_err());
        while stalled.try_recv().is_err() {
            advance(PATIENCE / 2).await;
            stream.next().await.unwrap().unwrap();
        }
    }

    #[actix_web::test]
    async fn client_that_hangs_up_ends_the_reading_of_the_engine() {
        let (alive, ended) = oneshot::channel::<()>();
        let reader = spawn(PATIENCE, async move |_writer| {
            std::future::pending::<()>().await;
            drop(alive);
        });
        drop(reader);
        assert!(ended.await.is_err());
    }
}

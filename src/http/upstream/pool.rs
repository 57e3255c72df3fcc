//! The connections to engines that nobody uses at the moment.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::{Rc, Weak},
    time::Duration,
};

use tokio::time::{Instant, interval};

use super::{
    IDLE,
    socket::{Base, Socket},
};
use crate::http::limits::MAX_IDLE_CONNECTIONS;

/// How much is read at once. One such buffer serves all connections of a worker, so a stream that
/// waits for its next token holds none.
const READ: usize = 64 << 10;

/// How often is looked for connections that were idle for too long.
const SWEEP: Duration = Duration::from_secs(1);

/// By the engine's base URL.
type ByBase = HashMap<String, Rc<Engine>>;

/// The engines that a worker asks.
pub(super) struct Pool {
    engines: RefCell<ByBase>,
    scratch: Rc<Scratch>,
}

/// What was just read.
pub(super) type Scratch = RefCell<Box<[u8]>>;

/// Whoever uses one of its connections, to the last byte of an answer, holds it.
pub(super) struct Engine {
    /// Where it is.
    pub(super) base: Base,
    /// Shared by all engines.
    pub(super) scratch: Rc<Scratch>,
    /// The one that was used last is at the back and is taken first: those that a burst left over age.
    idle: RefCell<VecDeque<(Instant, Socket)>>,
}

// === impl Pool ===

impl Pool {
    /// An empty one, which is swept for as long as it is held.
    pub(super) fn new() -> Rc<Self> {
        let pool = Rc::new(Self {
            engines: RefCell::default(),
            scratch: Rc::new(RefCell::new(vec![0; READ].into())),
        });
        actix_web::rt::spawn(close_idle(Rc::downgrade(&pool)));
        pool
    }

    /// The engine at `base`, unless that is no address of one.
    pub(super) fn engine(&self, base: &str) -> Option<Rc<Engine>> {
        let mut engines = self.engines.borrow_mut();
        if let Some(engine) = engines.get(base) {
            return Some(engine.clone());
        }
        let engine = Rc::new(Engine {
            base: Base::parse(base)?,
            scratch: self.scratch.clone(),
            idle: RefCell::default(),
        });
        engines.insert(base.to_owned(), engine.clone());
        Some(engine)
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.engines.borrow_mut().retain(|_, engine| {
            let mut idle = engine.idle.borrow_mut();
            while idle
                .pop_front_if(|(since, _)| now - *since >= IDLE)
                .is_some()
            {}
            !idle.is_empty() || Rc::strong_count(engine) > 1
        });
    }
}

/// Closes what nobody used for a while, also at engines that are gone.
async fn close_idle(pool: Weak<Pool>) {
    let mut looks = interval(SWEEP);
    loop {
        looks.tick().await;
        match pool.upgrade() {
            Some(pool) => pool.sweep(),
            None => return,
        }
    }
}

// === impl Engine ===

impl Engine {
    /// A connection that was used before and that the engine has not closed, as far as is known.
    pub(super) fn take(&self) -> Option<Socket> {
        let mut idle = self.idle.borrow_mut();
        while let Some((since, socket)) = idle.pop_back() {
            if since.elapsed() >= IDLE {
                idle.clear();
            } else if socket.is_quiet() {
                return Some(socket);
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub(super) fn put_back(&self, socket: Socket) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == MAX_IDLE_CONNECTIONS {
            idle.pop_front();
        }
        idle.push_back((Instant::now(), socket));
    }
}

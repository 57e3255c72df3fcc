//! Clients that cost little: a closed loop, one at a fixed rate, and streams that go on.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinHandle, spawn_local},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    answer,
    histogram::Histogram,
    http::{Framing, READ, read_head, unchunked},
    peer::{self, Peer},
    trial::Question,
};

/// An answer, or the next piece of one, takes no longer on any proxy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Load before anything is counted.
const WARM_UP: Duration = Duration::from_millis(700);
/// Streams opened a second: a proxy that is flooded by its beginning is another measurement.
const OPENED_A_SECOND: f64 = 2000.0;
/// How an event begins.
const EVENT: &[u8] = b"data: ";

/// Where requests go, and their bytes, which take turns.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    to: SocketAddr,
    requests: Rc<[Vec<u8>]>,
    next: Rc<Cell<usize>>,
    /// The status of a right answer.
    status: u16,
}

impl Call {
    /// Asks a question through `peer`, which listens at `port`.
    pub(crate) fn new(peer: Peer, port: u16, backend: u16, question: Question) -> Self {
        Self::of(
            port,
            [request(question, "m", &peer.headers(backend))].into(),
        )
    }

    /// Asks a question of so many models, named by [`crate::peer::model`], for so many tenants.
    pub(crate) fn of_many(port: u16, question: Question, models: u32, tenants: u32) -> Self {
        let requests = (0..tenants.max(models)).map(|n| {
            let tenant = format!("x-tenant-id: {}\r\n", peer::tenant(n % tenants));
            request(question, &peer::model(n % models), &tenant)
        });
        Self::of(port, requests.collect())
    }

    fn of(port: u16, requests: Rc<[Vec<u8>]>) -> Self {
        Self {
            to: ([127, 0, 0, 1], port).into(),
            requests,
            next: Rc::default(),
            status: 200,
        }
    }

    /// Asks with a key.
    pub(crate) fn with_key(self, question: Question, key: &str) -> Self {
        let request = request(question, "m", &format!("authorization: Bearer {key}\r\n"));
        Self {
            requests: [request].into(),
            ..self
        }
    }

    /// Expects that the key is not known.
    pub(crate) fn refused(self) -> Self {
        Self {
            status: 401,
            ..self
        }
    }

    fn request(&self) -> &[u8] {
        let next = self.next.get();
        self.next.set((next + 1) % self.requests.len());
        &self.requests[next]
    }
}

fn request(question: Question, model: &str, headers: &str) -> Vec<u8> {
    let body = question.body(model);
    let (path, length) = (question.path(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A connection that is kept.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    /// Whoever answers closes it then.
    is_last: bool,
}

impl Connection {
    async fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            read: Vec::with_capacity(READ),
            is_last: false,
        })
    }

    /// Asks and reads the answer to its end, giving each piece of the body to `take`.
    async fn ask(&mut self, call: &Call, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
        self.stream.write_all(call.request()).await?;
        self.read.clear();
        let head = read_head(&mut self.stream, &mut self.read).await?;
        let (status, mut framing) = parsed(&self.read[..head])?;
        self.is_last = memmem::find(&self.read[..head], b"onnection: close").is_some();
        let mut refusal = Vec::new();
        let mut from = head;
        loop {
            let piece = &self.read[from..];
            if status == call.status {
                take(piece);
            } else {
                refusal.extend_from_slice(piece);
            }
            if framing.ends_with(piece) {
                break;
            }
            self.read.clear();
            from = 0;
            if self.stream.read_buf(&mut self.read).await? == 0 {
                break;
            }
        }
        if status != call.status {
            bail!("{status} {}", String::from_utf8_lossy(&refusal));
        }
        Ok(())
    }
}

fn parsed(head: &[u8]) -> anyhow::Result<(u16, Framing)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(head)?;
    let framing = Framing::of(response.headers, Framing::UntilClose);
    Ok((response.code.context("no status")?, framing))
}

/// One answer, whole.
pub(crate) async fn once(call: &Call) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    let asked = async {
        let mut connection = Connection::open(call.to).await?;
        connection
            .ask(call, |piece| body.extend_from_slice(piece))
            .await
    };
    timeout(PATIENCE, asked).await.context("no answer")??;
    Ok(unchunked(&body).unwrap_or(body))
}

/// Asks so often, one after the other, whatever the answers; `heard` is told of events.
pub(crate) async fn repeat(
    call: &Call,
    times: u32,
    mut heard: impl FnMut(u64),
) -> anyhow::Result<()> {
    let mut connection = Connection::open(call.to).await?;
    for _ in 0..times {
        let mut count = Events::default();
        let asked = connection.ask(call, |piece| heard(count.of(piece)));
        timeout(PATIENCE, asked).await.context("no answer")??;
        if connection.is_last {
            connection = Connection::open(call.to).await?;
        }
    }
    Ok(())
}

/// What the clients of one trial count, and whether they go on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    is_over: Cell<bool>,
    answers: Cell<u64>,
    events: Cell<u64>,
    times: RefCell<Histogram>,
    failed: RefCell<Option<String>>,
}

impl Tally {
    fn fail(&self, error: &anyhow::Error) {
        if !self.is_over.get() {
            self.failed.borrow_mut().get_or_insert(format!("{error:#}"));
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        match self.failed.borrow().as_ref() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }
}

/// What was counted in a window.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) answers: f64,
    pub(crate) events: f64,
    pub(crate) took: Duration,
    pub(crate) times: Histogram,
    pub(crate) live: f64,
}

/// A load that runs until it is ended.
#[derive(Debug)]
pub(crate) struct Load {
    tally: Rc<Tally>,
    tasks: Vec<JoinHandle<()>>,
    last_heard: Vec<Rc<Cell<Option<Instant>>>>,
}

impl Load {
    /// This many clients, each asking anew as soon as it has its answer.
    pub(crate) async fn closed(call: &Call, clients: u32) -> Self {
        let tally = Rc::new(Tally::default());
        let tasks = (0..clients)
            .map(|_| spawn_local(ask_on(call.clone(), Rc::clone(&tally))))
            .collect();
        sleep(WARM_UP).await;
        Self {
            tally,
            tasks,
            last_heard: Vec::new(),
        }
    }

    /// Requests at a rate, whether or not those before are answered.
    pub(crate) async fn open(call: &Call, a_second: u32) -> Self {
        let tally = Rc::new(Tally::default());
        let task = spawn_local(ask_at(call.clone(), a_second, Rc::clone(&tally)));
        sleep(WARM_UP).await;
        Self {
            tally,
            tasks: vec![task],
            last_heard: Vec::new(),
        }
    }

    /// Streams that go on, one beside the other, each event due a `pace` after the one before.
    /// `began` is when the backend did.
    pub(crate) async fn streams(call: &Call, streams: u32, began: Instant, pace: Duration) -> Self {
        let tally = Rc::new(Tally::default());
        let (mut tasks, mut last_heard) = (Vec::new(), Vec::new());
        let start = Instant::now();
        for stream in 0..streams {
            sleep_until(start + Duration::from_secs_f64(f64::from(stream) / OPENED_A_SECOND)).await;
            let heard = Rc::new(Cell::new(None));
            last_heard.push(Rc::clone(&heard));
            let listener = Listener {
                tally: Rc::clone(&tally),
                began,
                pace,
                heard,
            };
            tasks.push(spawn_local(listener.listen(call.clone())));
        }
        sleep(WARM_UP + pace * 4).await;
        Self {
            tally,
            tasks,
            last_heard,
        }
    }

    /// Counts for a while.
    pub(crate) async fn count(&self, window: Duration) -> anyhow::Result<Counted> {
        self.tally.check()?;
        self.tally.times.take();
        let (answers, events) = (self.tally.answers.get(), self.tally.events.get());
        let start = Instant::now();
        sleep(window).await;
        let took = start.elapsed();
        self.tally.check()?;
        let is_live = |heard: &&Rc<Cell<Option<Instant>>>| {
            heard
                .get()
                .is_some_and(|at| at.elapsed() < Duration::from_secs(1))
        };
        Ok(Counted {
            answers: float(self.tally.answers.get() - answers),
            events: float(self.tally.events.get() - events),
            took,
            times: self.tally.times.take(),
            live: float(self.last_heard.iter().filter(is_live).count() as u64),
        })
    }

    /// Hangs up all of it.
    pub(crate) async fn end(self) {
        self.tally.is_over.set(true);
        for task in &self.tasks {
            task.abort();
        }
        // The backend notices.
        sleep(Duration::from_millis(200)).await;
    }
}

/// Counts stay far below what a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

async fn ask_on(call: Call, tally: Rc<Tally>) {
    let asked = async {
        let mut connection = Connection::open(call.to).await?;
        while !tally.is_over.get() {
            let start = Instant::now();
            let mut count = Events::default();
            connection
                .ask(&call, |piece| {
                    tally.events.set(tally.events.get() + count.of(piece));
                })
                .await?;
            tally.times.borrow_mut().add(start.elapsed());
            tally.answers.set(tally.answers.get() + 1);
        }
        anyhow::Ok(())
    };
    if let Err(error) = asked.await {
        tally.fail(&error);
    }
}

async fn ask_at(call: Call, a_second: u32, tally: Rc<Tally>) {
    let idle: Rc<RefCell<Vec<Connection>>> = Rc::default();
    let mut due = Instant::now();
    while !tally.is_over.get() {
        due += Duration::from_secs(1) / a_second;
        sleep_until(due).await;
        let (call, idle, tally) = (call.clone(), Rc::clone(&idle), Rc::clone(&tally));
        spawn_local(async move {
            if let Err(error) = ask_one(&call, &idle, &tally).await {
                tally.fail(&error);
            }
        });
    }
}

async fn ask_one(
    call: &Call,
    idle: &RefCell<Vec<Connection>>,
    tally: &Tally,
) -> anyhow::Result<()> {
    let kept = idle.borrow_mut().pop();
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(call.to).await?,
    };
    let start = Instant::now();
    connection.ask(call, |_| ()).await?;
    tally.times.borrow_mut().add(start.elapsed());
    tally.answers.set(tally.answers.get() + 1);
    idle.borrow_mut().push(connection);
    Ok(())
}

/// Counts events, also those that are cut by the end of a piece.
#[derive(Debug, Default)]
struct Events {
    /// How much of an event's beginning the last piece ended with.
    begun: usize,
}

impl Events {
    fn of(&mut self, piece: &[u8]) -> u64 {
        let rest = &EVENT[self.begun..];
        let is_whole = self.begun > 0 && piece.starts_with(rest);
        let inside = memmem::find_iter(piece, EVENT).count() as u64;
        self.begun = (1..EVENT.len())
            .rev()
            .find(|len| piece.ends_with(&EVENT[..*len]))
            .unwrap_or(0);
        inside + u64::from(is_whole)
    }
}

/// One client of a stream that goes on.
struct Listener {
    tally: Rc<Tally>,
    began: Instant,
    pace: Duration,
    heard: Rc<Cell<Option<Instant>>>,
}

impl Listener {
    async fn listen(self, call: Call) {
        let mut count = Events::default();
        let (mut due, mut events) = (None, 0_u64);
        let asked = async {
            let mut connection = Connection::open(call.to).await?;
            connection
                .ask(&call, |piece| {
                    let now = Instant::now();
                    self.heard.set(Some(now));
                    let came = count.of(piece);
                    if due.is_none() && events == 0 {
                        due = answer::due(piece).map(|since| self.began + since);
                    }
                    self.note(now, due, events..events + came);
                    events += came;
                })
                .await?;
            bail!("a stream that goes on has ended")
        };
        let ended: anyhow::Result<()> = asked.await;
        if let Err(error) = ended {
            self.tally.fail(&error);
        }
    }

    /// How late these events are, where it is known when they were due.
    fn note(&self, now: Instant, due: Option<Instant>, events: std::ops::Range<u64>) {
        self.tally
            .events
            .set(self.tally.events.get() + (events.end - events.start));
        let Some(due) = due else { return };
        let mut times = self.tally.times.borrow_mut();
        for event in events {
            let steps = u32::try_from(event).unwrap_or(u32::MAX);
            times.add(now.saturating_duration_since(due + self.pace * steps));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_they_are_cut() {
        let text = b"data: {}\n\ndata: 1\n\ndata: [DONE]\n\n";
        for cut in 0..text.len() {
            let mut count = Events::default();
            let (one, other) = text.split_at(cut);
            assert_eq!(count.of(one) + count.of(other), 3, "{cut}");
        }
    }
}

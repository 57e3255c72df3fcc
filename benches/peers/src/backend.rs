//! An engine that costs next to nothing: it answers at once, or gives tokens at a pace. It runs on
//! the thread of whoever asks, so what it does at a time is decided by setting it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    time::Duration,
};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::spawn_local,
    time::{Instant, sleep_until},
};

use crate::{
    answer::{self, Events, Plan, STREAM_HEAD},
    http::{Framing, READ, read_head},
};

/// How many connections may wait to be accepted: proxies open thousands at once.
const BACKLOG: u32 = 16_384;

#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) plan: Cell<Plan>,
    pub(crate) pace: Cell<Pace>,
    /// Events that the one client has, for [`Pace::Heard`].
    pub(crate) heard: Cell<u64>,
    pub(crate) hears: Notify,
    /// Answers whose caller hung up.
    pub(crate) aborted: Cell<u64>,
    /// Requests for an answer that came.
    pub(crate) asked: Cell<u64>,
    /// When it began; answers' ids count from here.
    pub(crate) began: Instant,
    ready: RefCell<Ready>,
}

/// When tokens come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    AtOnce,
    /// A step apart.
    Each(Duration),
    /// Each once the client has the one before.
    Heard,
}

/// Answers are made once and sent often.
type Ready = HashMap<(Shape, Plan), Rc<[u8]>>;

/// What kind of answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Shape {
    Whole,
    Stream { with_usage: bool },
    Completion,
    Embedding,
    Tokens,
    Models,
    Nothing,
}

impl Backend {
    /// Listens at a port of its own.
    pub(crate) async fn start() -> io::Result<(Rc<Self>, u16)> {
        let backend = Rc::new(Self {
            plan: Cell::new(Plan {
                tokens: 1,
                calls_tools: false,
            }),
            pace: Cell::new(Pace::AtOnce),
            heard: Cell::new(0),
            hears: Notify::new(),
            aborted: Cell::new(0),
            asked: Cell::new(0),
            began: Instant::now(),
            ready: RefCell::default(),
        });
        let port = backend.listen(0).await?;
        Ok((backend, port))
    }

    /// Listens at one more port.
    pub(crate) async fn listen(self: &Rc<Self>, port: u16) -> io::Result<u16> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(([127, 0, 0, 1], port).into())?;
        let listener = socket.listen(BACKLOG)?;
        let port = listener.local_addr()?.port();
        spawn_local(Rc::clone(self).accept(listener));
        Ok(port)
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let backend = Rc::clone(&self);
            spawn_local(async move {
                // A caller that hangs up between two requests is no fault.
                let _ = backend.serve(stream).await;
            });
        }
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut read = Vec::with_capacity(READ);
        loop {
            let head = read_head(&mut stream, &mut read).await?;
            let mut framing = framing(&read[..head])?;
            let mut is_whole = framing.ends_with(&read[head..]);
            while !is_whole {
                let before = read.len();
                if stream.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
                is_whole = framing.ends_with(&read[before..]);
            }
            let shape = shape(&read[..head], &read[head..]);
            read.clear();
            self.asked.set(self.asked.get() + 1);
            if let Err(error) = self.answer(&mut stream, shape).await {
                self.aborted.set(self.aborted.get() + 1);
                return Err(error);
            }
        }
    }

    async fn answer(&self, stream: &mut TcpStream, shape: Shape) -> io::Result<()> {
        let plan = self.plan.get();
        match (shape, self.pace.get()) {
            (Shape::Stream { .. }, Pace::AtOnce) => {}
            (Shape::Stream { with_usage }, pace) => {
                return self.stream(stream, with_usage, pace).await;
            }
            (Shape::Whole, Pace::Each(step)) => {
                hold(stream, Instant::now() + step * plan.tokens).await?;
            }
            _ => {}
        }
        let answer = self.ready(shape, plan);
        stream.write_all(&answer).await
    }

    /// Each event is due a step after the one before, whenever that one was sent.
    async fn stream(&self, stream: &mut TcpStream, with_usage: bool, pace: Pace) -> io::Result<()> {
        let plan = self.plan.get();
        let mut due = Instant::now();
        let events = Events::new(plan, with_usage, due - self.began);
        self.heard.set(0);
        stream.write_all(STREAM_HEAD.as_bytes()).await?;
        stream.write_all(&events.opening).await?;
        for sent in 0..plan.tokens {
            match pace {
                Pace::AtOnce => {}
                Pace::Each(step) => {
                    due += step;
                    hold(stream, due).await?;
                }
                Pace::Heard => self.until_heard(sent).await,
            }
            stream.write_all(&events.token).await?;
        }
        stream.write_all(&events.closing).await
    }

    /// The opening may come with the first token.
    async fn until_heard(&self, tokens: u32) {
        while tokens > 0 && self.heard.get() <= u64::from(tokens) {
            self.hears.notified().await;
        }
    }

    fn ready(&self, shape: Shape, plan: Plan) -> Rc<[u8]> {
        let mut ready = self.ready.borrow_mut();
        let answer = ready
            .entry((shape, plan))
            .or_insert_with(|| bytes(shape, plan).into());
        Rc::clone(answer)
    }
}

/// Waits, unless the caller hangs up.
async fn hold(stream: &mut TcpStream, until: Instant) -> io::Result<()> {
    let mut byte = [0];
    tokio::select! {
        biased;
        () = sleep_until(until) => Ok(()),
        read = stream.read(&mut byte) => match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::Error::other("a request before the last one was answered")),
        },
    }
}

fn framing(head: &[u8]) -> io::Result<Framing> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(head).map_err(io::Error::other)?;
    Ok(Framing::of(request.headers, Framing::Length(0)))
}

fn shape(head: &[u8], body: &[u8]) -> Shape {
    let has = |text: &str| memmem::find(body, text.as_bytes()).is_some();
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let is_at = |path: &str| memmem::find(line, path.as_bytes()).is_some();
    if is_at("/chat/completions") {
        return match has("\"stream\":true") || has("\"stream\": true") {
            true => Shape::Stream {
                with_usage: has("\"include_usage\":true") || has("\"include_usage\": true"),
            },
            false => Shape::Whole,
        };
    }
    match () {
        () if is_at("/completions") => Shape::Completion,
        () if is_at("/embeddings") => Shape::Embedding,
        () if is_at("/tokenize") => Shape::Tokens,
        () if is_at("/models") => Shape::Models,
        () => Shape::Nothing,
    }
}

fn bytes(shape: Shape, plan: Plan) -> Vec<u8> {
    let body = match shape {
        Shape::Stream { with_usage } => {
            return Events::new(plan, with_usage, Duration::ZERO).burst(plan.tokens);
        }
        Shape::Nothing => return answer::framed("200 OK", "text/plain", ""),
        Shape::Whole => answer::whole(plan),
        Shape::Completion => answer::completion(),
        Shape::Embedding => answer::embedding(),
        Shape::Tokens => answer::tokens(),
        Shape::Models => answer::models(),
    };
    answer::framed("200 OK", "application/json", &body)
}

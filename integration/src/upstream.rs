//! An OpenAI-compatible server whose answer is chosen by the model that is asked for.
//!
//! [`Stub`](crate::Stub) gives one answer. This one gives each model its own, so that a test shows many
//! ways to answer behind one kvwarden, and counts how often each was computed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use serde_json::Value;

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// In chunks, one for each part.
    Chunked,
    /// By its length.
    Length,
    /// By the end of the connection.
    Close,
    /// By a length that is never reached.
    Promised(usize),
}

/// A part of an answer.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes, in a packet of their own.
    Bytes(Vec<u8>),
    /// The same bytes again and again, so often or until nobody reads them.
    Repeat(Vec<u8>, usize),
    /// Nothing, until the test calls [`Upstream::go_on`].
    Wait,
    /// The end of the connection.
    Hangup,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Says {
    status: u16,
    fields: Vec<String>,
    framing: Framing,
    waits: bool,
    preface: Vec<u8>,
    parts: Vec<Part>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// Its body.
    pub body: Value,
}

/// The server. It serves as long as the test process lives.
#[derive(Debug)]
pub struct Upstream {
    port: u16,
    models: Vec<String>,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    go: Sender<()>,
}

struct Site<F> {
    says: F,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    goes: Mutex<Receiver<()>>,
}

// === impl Says ===

impl Says {
    /// Events, one chunk for each.
    #[must_use]
    pub fn events<T: Into<Vec<u8>>>(events: impl IntoIterator<Item = T>) -> Self {
        let mut says = Self::body("text/event-stream", "");
        says.framing = Framing::Chunked;
        let bytes = events.into_iter().map(|event| Part::Bytes(event.into()));
        says.parts = bytes.collect();
        says
    }

    /// A body in one piece.
    #[must_use]
    pub fn body(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut says = Self {
            status: 200,
            fields: Vec::new(),
            framing: Framing::Length,
            waits: false,
            preface: Vec::new(),
            parts: vec![Part::Bytes(body.into())],
        };
        if !content_type.is_empty() {
            says.fields.push(format!("content-type: {content_type}"));
        }
        says
    }

    /// JSON.
    #[must_use]
    pub fn json(body: &Value) -> Self {
        Self::body("application/json", body.to_string())
    }

    /// With this status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With one more header field.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.fields.push(field.to_owned());
        self
    }

    /// With this content type in place of its own; none if it is empty.
    #[must_use]
    pub fn typed(mut self, content_type: &str) -> Self {
        self.fields
            .retain(|field| !field.starts_with("content-type"));
        if !content_type.is_empty() {
            self.fields.push(format!("content-type: {content_type}"));
        }
        self
    }

    /// Framed like this.
    #[must_use]
    pub fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Not even its head comes before the test calls [`Upstream::go_on`].
    #[must_use]
    pub fn late(mut self) -> Self {
        self.waits = true;
        self
    }

    /// These bytes come before its head.
    #[must_use]
    pub fn preface(mut self, bytes: &str) -> Self {
        self.preface = bytes.into();
        self
    }

    /// With one more part, in this place.
    #[must_use]
    pub fn with(mut self, at: usize, part: Part) -> Self {
        self.parts.insert(at, part);
        self
    }

    fn head(&self) -> String {
        let length = match self.framing {
            Framing::Chunked => "transfer-encoding: chunked".to_owned(),
            Framing::Close => "connection: close".to_owned(),
            Framing::Promised(length) => format!("content-length: {length}"),
            Framing::Length => {
                let bytes = self.parts.iter().map(Part::len);
                format!("content-length: {}", bytes.sum::<usize>())
            }
        };
        let fields: String = self
            .fields
            .iter()
            .map(|field| format!("{field}\r\n"))
            .collect();
        format!("HTTP/1.1 {} So\r\n{fields}{length}\r\n\r\n", self.status)
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Repeat(bytes, times) => bytes.len() * times,
            Self::Wait | Self::Hangup => 0,
        }
    }
}

// === impl Upstream ===

impl Upstream {
    /// A server of these models. `says` chooses the answer to each POST.
    ///
    /// # Panics
    /// If no port is free.
    #[must_use]
    pub fn start<F>(models: &[&str], says: F) -> Self
    where
        F: Fn(&Asked) -> Says + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let connections = Arc::<AtomicUsize>::default();
        let (go, goes) = channel();
        let site = Arc::new(Site {
            says,
            asked: Arc::clone(&asked),
            connections: Arc::clone(&connections),
            goes: Mutex::new(goes),
        });
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let site = Arc::clone(&site);
                std::thread::spawn(move || site.serve(connection));
            }
        });
        Self {
            port,
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            asked,
            connections,
            go,
        }
    }

    /// The configuration of its models.
    #[must_use]
    pub fn config(&self) -> String {
        let port = self.port;
        let models = self.models.iter().map(|model| {
            format!(
                "[[models]]\nid = \"{model}\"\nengine = \"attach\"\nurl = \"http://127.0.0.1:{port}\"\n"
            )
        });
        models.collect()
    }

    /// The requests for a model that came.
    #[must_use]
    pub fn asked(&self, model: &str) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let of_model = asked.iter().filter(|asked| asked.body["model"] == model);
        of_model.cloned().collect()
    }

    /// Connections on which an answer was asked for.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Lets one wait pass.
    pub fn go_on(&self) {
        // Whoever waits may have lost its connection; then nobody is held up.
        let _ = self.go.send(());
    }
}

impl<F: Fn(&Asked) -> Says> Site<F> {
    fn serve(&self, connection: TcpStream) {
        let Ok(mut write) = connection.try_clone() else {
            return;
        };
        let _ = write.set_nodelay(true);
        let mut reader = BufReader::new(connection);
        let mut is_new = true;
        while let Some((method, asked)) = read_request(&mut reader) {
            let says = if method == "POST" {
                let new = usize::from(std::mem::take(&mut is_new));
                self.connections.fetch_add(new, Ordering::Relaxed);
                let says = (self.says)(&asked);
                let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(asked);
                says
            } else {
                Says::body("application/json", r#"{"object":"list","data":[]}"#)
            };
            if self.answer(&mut write, &says).is_none() || says.framing == Framing::Close {
                let _ = write.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }

    /// None where the connection is to end.
    fn answer(&self, write: &mut TcpStream, says: &Says) -> Option<()> {
        if says.waits {
            self.wait()?;
        }
        let head = [&says.preface, says.head().as_bytes()].concat();
        write.write_all(&head).ok()?;
        let is_chunked = says.framing == Framing::Chunked;
        let mut send = |bytes: &[u8]| {
            let chunk = if is_chunked {
                [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
            } else {
                bytes.to_vec()
            };
            write.write_all(&chunk).ok()
        };
        for part in &says.parts {
            match part {
                Part::Bytes(bytes) if bytes.is_empty() => {}
                Part::Bytes(bytes) => send(bytes)?,
                Part::Repeat(bytes, times) => (0..*times).try_for_each(|_| send(bytes))?,
                Part::Wait => self.wait()?,
                Part::Hangup => return None,
            }
        }
        if is_chunked {
            write.write_all(b"0\r\n\r\n").ok()?;
        }
        match says.framing {
            // The rest never comes, and nobody hangs up.
            Framing::Promised(_) => self.wait(),
            Framing::Chunked | Framing::Length | Framing::Close => Some(()),
        }
    }

    fn wait(&self) -> Option<()> {
        let goes = self.goes.lock().unwrap_or_else(PoisonError::into_inner);
        goes.recv().ok()
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Asked)> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some((method, Asked { path, body }))
}

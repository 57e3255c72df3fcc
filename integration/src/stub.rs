//! An OpenAI-compatible server that says exactly what a test wants it to say.
//!
//! kvwarden reaches it as an attached engine. It shows what no honest engine can: bytes in an
//! order of our choosing, a connection that breaks in mid-answer, an error as the first event.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
};

/// One thing the stub does while it answers.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends bytes at once.
    Send(Vec<u8>),
    /// Waits until the test calls [`Stub::go_on`].
    Wait,
    /// Resets the connection.
    Reset,
}

/// The stub. It serves as long as the test process lives.
#[derive(Debug)]
pub struct Stub {
    /// Where it listens.
    pub port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    go: Sender<()>,
}

impl Stub {
    /// A stub that answers every POST by `script`, head and body, and `GET /v1/models` as an
    /// attached engine must.
    ///
    /// # Panics
    /// If no port is free.
    #[must_use]
    pub fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (go, goes) = channel();
        let (seen, goes) = (Arc::clone(&requests), Arc::new(Mutex::new(goes)));
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (seen, goes, script) = (Arc::clone(&seen), Arc::clone(&goes), script.clone());
                std::thread::spawn(move || serve(connection, &seen, &goes, &script));
            }
        });
        Self { port, requests, go }
    }

    /// A script that streams `pieces`, each in a packet of its own, and ends the body.
    #[must_use]
    pub fn stream(pieces: &[&str]) -> Vec<Act> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut acts = vec![Act::Send(head.into())];
        acts.extend(pieces.iter().map(|piece| Self::piece(piece)));
        acts.push(Act::Send("0\r\n\r\n".into()));
        acts
    }

    /// One piece of a stream.
    #[must_use]
    pub fn piece(text: &str) -> Act {
        Act::Send(format!("{:x}\r\n{text}\r\n", text.len()).into())
    }

    /// A script that answers with one whole body.
    #[must_use]
    pub fn answer(status: &str, content_type: &str, body: &str) -> Vec<Act> {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        vec![Act::Send((head + body).into())]
    }

    /// The configuration of a model named `stub` that this serves.
    #[must_use]
    pub fn config(&self) -> String {
        format!(
            "[[models]]\nid = \"stub\"\nengine = \"attach\"\nurl = \"http://127.0.0.1:{}/base\"\n",
            self.port
        )
    }

    /// Requests that came, as `METHOD target` and, after an empty line, the body.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let seen = self.requests.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets one [`Act::Wait`] pass.
    pub fn go_on(&self) {
        // Whoever waits may have lost its connection; then nobody is held up.
        let _ = self.go.send(());
    }
}

fn serve(
    connection: TcpStream,
    seen: &Mutex<Vec<String>>,
    goes: &Mutex<Receiver<()>>,
    script: &[Act],
) {
    let Ok(write) = connection.try_clone() else {
        return;
    };
    let _ = write.set_nodelay(true);
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader) {
        let is_post = request.starts_with("POST");
        let mut known = seen.lock().unwrap_or_else(PoisonError::into_inner);
        known.push(request);
        drop(known);
        let models = Stub::answer(
            "200 OK",
            "application/json",
            r#"{"object":"list","data":[]}"#,
        );
        let acts = if is_post { script } else { &models };
        for act in acts {
            match act {
                Act::Send(bytes) => {
                    if (&write).write_all(bytes).is_err() {
                        return;
                    }
                }
                Act::Wait => {
                    let goes = goes.lock().unwrap_or_else(PoisonError::into_inner);
                    if goes.recv().is_err() {
                        return;
                    }
                }
                Act::Reset => {
                    let _ = write.shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut request, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        request.push_str(if request.is_empty() { line } else { &lower });
        request.push('\n');
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    request.push('\n');
    request.push_str(&String::from_utf8_lossy(&body));
    Some(request)
}

//! A server of a few lines, for tests of what asks engines.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

/// Answers every request by its first line, with a status and a body, for as long as the test runs.
/// Where it listens.
pub(crate) fn server(
    answer: impl Fn(&str) -> (&'static str, &'static str) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]);
            let (status, body) = answer(request.lines().next().unwrap_or_default());
            let head = "content-type: application/json\r\nconnection: close";
            let length = body.len();
            // Whoever asked may have hung up.
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}"
            );
        }
    });
    base
}

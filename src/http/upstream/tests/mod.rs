mod answers;
mod connections;
mod pieces;

use std::{future::Future, rc::Rc, time::Duration};

use actix_web::rt;
use bytes::Bytes;
use futures_util::StreamExt as _;
use kvwarden_actors::engine::{Endpoint, EngineKind};
use kvwarden_policy::{Generation, lifecycle::SleepLevels};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::http::upstream::{Body, Engines, Unanswered, UpstreamResponse};

const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

fn endpoint(base: String) -> Endpoint {
    Endpoint {
        model: "m".into(),
        kind: EngineKind::Attach,
        generation: Generation(1),
        base,
        api_key: None,
        served_name: "m".to_owned(),
        levels: SleepLevels::default(),
        canary: None,
    }
}

/// An engine that does `serve` with each connection, of which it tells the number.
async fn engine<F: Future<Output = ()> + 'static>(
    serve: impl Fn(usize, TcpStream) -> F + 'static,
) -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    rt::spawn(async move {
        for number in 0.. {
            let (connection, _) = listener.accept().await.unwrap();
            connection.set_nodelay(true).unwrap();
            rt::spawn(serve(number, connection));
        }
    });
    endpoint(base)
}

/// Head and body of the next request on a connection, unless it ends before.
async fn request(connection: &mut TcpStream) -> Option<String> {
    let (mut request, mut piece) = (Vec::new(), [0; 65536]);
    loop {
        let read = connection
            .read(&mut piece)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        request.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.split_once("content-length: ").unwrap().1;
        let length = length.lines().next().unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return Some(text.into_owned());
        }
    }
}

/// Writes in pieces, each of which goes out by itself.
async fn write(connection: &mut TcpStream, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        // The other end may be gone.
        if connection.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn post(engines: &Engines, to: &Endpoint) -> Result<UpstreamResponse, Unanswered> {
    let asked = engines.post(to, "/v1/x", "id", Bytes::from_static(b"{}"));
    timeout(Duration::from_secs(10), asked).await.unwrap()
}

async fn read(mut body: Body) -> std::io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    while let Some(piece) = timeout(Duration::from_secs(10), body.next()).await.unwrap() {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole)
}

/// Asks and reads the answer, which must be `hello`.
async fn hello(engines: &Engines, to: &Endpoint) {
    let response = post(engines, to).await.unwrap();
    assert_eq!(read(response.body).await.unwrap(), b"hello");
}

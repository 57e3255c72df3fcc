//! When a connection is used again, closed, or asked once more.

use std::cell::Cell;

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::super::{Fault, pool::Pool, socket::Socket};
use super::*;
use crate::http::limits::MAX_IDLE_CONNECTIONS;

/// An engine that answers every request of a connection with `bytes`, and how many connections it got.
async fn repeating(bytes: &'static [u8]) -> (Endpoint, Rc<Cell<usize>>) {
    let connections = Rc::<Cell<usize>>::default();
    let counted = connections.clone();
    let to = engine(move |_, mut connection| {
        counted.set(counted.get() + 1);
        async move {
            while request(&mut connection).await.is_some() {
                write(&mut connection, bytes, usize::MAX).await;
            }
        }
    })
    .await;
    (to, connections)
}

/// An engine that answers with `bytes` and tells when its connections end.
async fn watching(bytes: &'static [u8]) -> (Endpoint, UnboundedReceiver<usize>) {
    let (tell, told) = unbounded_channel();
    let to = engine(move |number, mut connection| {
        let tell = tell.clone();
        async move {
            request(&mut connection).await;
            write(&mut connection, bytes, usize::MAX).await;
            while request(&mut connection).await.is_some() {}
            let _ = tell.send(number);
        }
    })
    .await;
    (to, told)
}

/// Waits until the engine's end of connection `number` is over.
async fn ended(told: &mut UnboundedReceiver<usize>, number: usize) {
    let told = timeout(Duration::from_secs(10), told.recv()).await.unwrap();
    assert_eq!(told, Some(number));
}

#[actix_web::test]
async fn answer_that_ended_leaves_its_connection_to_the_next() {
    for bytes in [
        WHOLE,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 No\r\ncontent-length: 5\r\n\r\nhello",
    ] {
        let (to, connections) = repeating(bytes).await;
        let engines = Engines::new();
        for _ in 0..3 {
            hello(&engines, &to).await;
        }
        assert_eq!(connections.get(), 1, "{}", String::from_utf8_lossy(bytes));
    }
}

#[actix_web::test]
async fn connection_that_may_hold_something_else_is_not_used_again() {
    for bytes in [
        &b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 5\r\n\r\nhello"[..],
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nmore",
    ] {
        let (to, connections) = repeating(bytes).await;
        let engines = Engines::new();
        for _ in 0..3 {
            hello(&engines, &to).await;
        }
        assert_eq!(connections.get(), 3, "{}", String::from_utf8_lossy(bytes));
    }
}

#[actix_web::test]
async fn body_that_is_dropped_before_its_end_closes_the_connection() {
    for bytes in [
        &b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
    ] {
        let (to, mut told) = watching(bytes).await;
        let engines = Engines::new();
        let mut response = post(&engines, &to).await.unwrap();
        assert_eq!(response.body.next().await.unwrap().unwrap(), "hello");
        drop(response);
        ended(&mut told, 0).await;
    }
}

#[actix_web::test]
async fn request_that_is_given_up_before_its_answer_closes_the_connection() {
    let (to, mut told) = watching(b"").await;
    let engines = Engines::new();
    let mut asked = Box::pin(engines.post(&to, "/", "id", Bytes::new()));
    let waited = timeout(Duration::from_millis(1), &mut asked).await;
    assert!(waited.is_err());
    drop(asked);
    ended(&mut told, 0).await;
}

#[actix_web::test]
async fn what_is_no_answer_closes_the_connection() {
    let (to, mut told) = watching(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    let engines = Engines::new();
    post(&engines, &to).await.err().unwrap();
    ended(&mut told, 0).await;
}

#[actix_web::test]
async fn connection_that_the_engine_closed_meanwhile_costs_no_answer() {
    let answered = Rc::<Cell<usize>>::default();
    let to = engine(move |_, mut connection| {
        let answered = answered.clone();
        async move {
            request(&mut connection).await;
            write(&mut connection, WHOLE, usize::MAX).await;
            answered.set(answered.get() + 1);
        }
    })
    .await;
    let engines = Engines::new();
    for _ in 0..20 {
        hello(&engines, &to).await;
    }
}

#[actix_web::test]
async fn connection_that_breaks_under_a_request_is_asked_once_more_only_if_it_was_used_before() {
    // Each connection answers once, and is closed with the second request unanswered.
    let requests = Rc::<Cell<usize>>::default();
    let counted = requests.clone();
    let to = engine(move |_, mut connection| {
        let counted = counted.clone();
        async move {
            for bytes in [WHOLE, b""] {
                request(&mut connection).await;
                counted.set(counted.get() + 1);
                write(&mut connection, bytes, usize::MAX).await;
            }
        }
    })
    .await;
    let engines = Engines::new();
    hello(&engines, &to).await;
    hello(&engines, &to).await;
    assert_eq!(requests.get(), 3);

    let requests = Rc::<Cell<usize>>::default();
    let counted = requests.clone();
    let to = engine(move |_, mut connection| {
        let counted = counted.clone();
        async move {
            request(&mut connection).await;
            counted.set(counted.get() + 1);
        }
    })
    .await;
    let unanswered = post(&engines, &to).await.err().unwrap();
    assert_eq!((unanswered.fault, requests.get()), (Fault::Lost, 1));
}

#[actix_web::test]
async fn answer_that_began_is_never_asked_for_again() {
    let requests = Rc::<Cell<usize>>::default();
    let counted = requests.clone();
    let to = engine(move |_, mut connection| {
        let counted = counted.clone();
        async move {
            for bytes in [WHOLE, b"H"] {
                request(&mut connection).await;
                counted.set(counted.get() + 1);
                write(&mut connection, bytes, usize::MAX).await;
            }
        }
    })
    .await;
    let engines = Engines::new();
    hello(&engines, &to).await;
    let unanswered = post(&engines, &to).await.err().unwrap();
    assert_eq!((unanswered.fault, requests.get()), (Fault::Lost, 2));
}

#[actix_web::test]
async fn idle_connections_are_closed_before_engines_close_them() {
    let (to, mut told) = watching(WHOLE).await;
    let engines = Engines::new();
    hello(&engines, &to).await;
    tokio::time::pause();
    let since = tokio::time::Instant::now();
    // Time runs on by itself while nothing else can.
    ended(&mut told, 0).await;
    assert!(
        since.elapsed() <= Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    assert!(
        since.elapsed() >= Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
}

#[actix_web::test]
async fn idle_connections_to_one_engine_are_bounded() {
    let (client, mut others) = (Pool::new(), Vec::new());
    let engine = client.engine("unix:/nowhere").unwrap();
    for _ in 0..MAX_IDLE_CONNECTIONS + 10 {
        let (ours, other) = UnixStream::pair().unwrap();
        others.push(other);
        engine.put_back(Socket::Unix(ours));
    }
    let mut taken = Vec::new();
    while let Some(socket) = engine.take() {
        taken.push(socket);
    }
    assert_eq!(taken.len(), MAX_IDLE_CONNECTIONS);
}

#[actix_web::test]
async fn answer_that_comes_before_the_end_of_its_question_is_an_answer() {
    let connections = Rc::<Cell<usize>>::default();
    let counted = connections.clone();
    let to = engine(move |_, mut connection| {
        counted.set(counted.get() + 1);
        async move {
            let mut some = [0; 100];
            connection.read_exact(&mut some).await.unwrap();
            let bytes = b"HTTP/1.1 413 Large\r\ncontent-length: 5\r\n\r\nhello";
            write(&mut connection, bytes, usize::MAX).await;
            std::future::pending::<()>().await;
        }
    })
    .await;
    let engines = Engines::new();
    for _ in 0..2 {
        let large = Bytes::from(vec![b'x'; 32 << 20]);
        let response = engines.post(&to, "/", "id", large).await.unwrap();
        assert_eq!(response.status.as_u16(), 413);
        assert_eq!(read(response.body).await.unwrap(), b"hello");
    }
    assert_eq!(connections.get(), 2);
}

#[actix_web::test]
async fn large_questions_and_answers_arrive_whole() {
    let to = engine(async |_, mut connection| {
        while let Some(asked) = request(&mut connection).await {
            let (_, body) = asked.split_once("\r\n\r\n").unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            write(&mut connection, head.as_bytes(), usize::MAX).await;
            write(&mut connection, body.as_bytes(), 100_000).await;
        }
    })
    .await;
    let engines = Engines::new();
    let large: String = (0..200_000).map(|number| format!("{number} ")).collect();
    for _ in 0..2 {
        let response = engines.post(&to, "/", "id", large.clone().into()).await;
        let body = read(response.unwrap().body).await.unwrap();
        assert!(body == large.as_bytes());
    }
}

#[actix_web::test]
async fn request_says_all_an_engine_needs_and_nothing_else() {
    let (tell, mut told) = unbounded_channel();
    let mut to = engine(move |_, mut connection| {
        let tell = tell.clone();
        async move {
            tell.send(request(&mut connection).await.unwrap()).unwrap();
            write(&mut connection, WHOLE, usize::MAX).await;
        }
    })
    .await;
    let host = to.base["http://".len()..].to_owned();
    to.base.push_str("/below");
    to.api_key = Some("secret".to_owned());
    let engines = Engines::new();
    hello(&engines, &to).await;
    let asked = told.recv().await.unwrap();
    assert_eq!(
        asked,
        format!(
            "POST /below/v1/x HTTP/1.1\r\nhost: {host}\r\nx-request-id: id\r\n\
             content-type: application/json\r\naccept-encoding: identity\r\n\
             authorization: Bearer secret\r\ncontent-length: 2\r\n\r\n{{}}"
        )
    );
    to.api_key = Some("two\r\nlines: 1".to_owned());
    let unanswered = post(&engines, &to).await.err().unwrap();
    assert_eq!(unanswered.fault, Fault::Unusable);
    assert!(!unanswered.why.contains("lines"), "{}", unanswered.why);
}

#[actix_web::test]
async fn engine_that_nobody_can_be_at_is_unreachable() {
    let engines = Engines::new();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    for base in [
        gone,
        "unix:/nowhere".to_owned(),
        "http://name.invalid:1".to_owned(),
    ] {
        let unanswered = post(&engines, &endpoint(base)).await.err().unwrap();
        assert_eq!(unanswered.fault, Fault::Unreachable);
    }
    let unanswered = post(&engines, &endpoint("https://h".to_owned())).await;
    assert_eq!(unanswered.err().unwrap().fault, Fault::Unusable);
}

#[actix_web::test]
async fn engine_on_a_unix_socket_is_asked_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let listener = UnixListener::bind(&path).unwrap();
    rt::spawn(async move {
        // One connection is enough for all requests.
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut piece = [0; 4096];
        while connection.read(&mut piece).await.is_ok_and(|read| read > 0) {
            connection.write_all(WHOLE).await.unwrap();
        }
    });
    let (engines, to) = (Engines::new(), endpoint(format!("unix:{}", path.display())));
    hello(&engines, &to).await;
    hello(&engines, &to).await;
}

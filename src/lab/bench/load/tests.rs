//! The generator against servers that misbehave on purpose.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{Instant, sleep},
};

use super::*;

const MS: Duration = Duration::from_millis(1);
const ROLE: &str = "data: {\"choices\":[{\"text\":\"\"}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"text\":\"sea\"}]}\n\n";
const END: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

/// A server that does this with every connection, and how many it accepted.
async fn serve(script: impl AsyncFn(TcpStream) + 'static) -> (Rc<Target>, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        base: format!("http://{}", listener.local_addr().unwrap()),
        model: "m".to_owned(),
        api_key: None,
        dialect: Dialect::IgnoreEos,
    };
    let accepted = Rc::new(Cell::new(0));
    let (count, script) = (accepted.clone(), Rc::new(script));
    drop(spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let script = script.clone();
            drop(spawn_local(async move { script(stream).await }));
            count.set(count.get() + 1);
        }
    }));
    (Rc::new(target), accepted)
}

async fn head(stream: &mut TcpStream) {
    let mut read = [0; 4096];
    assert_ne!(stream.read(&mut read).await.unwrap(), 0);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
}

async fn say(stream: &mut TcpStream, text: &str) {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    stream.write_all(chunk.as_bytes()).await.unwrap();
}

async fn end(stream: &mut TcpStream) {
    say(stream, END).await;
    stream.write_all(b"0\r\n\r\n").await.unwrap();
}

/// Answers at once, whole.
async fn prompt_server(mut stream: TcpStream) {
    head(&mut stream).await;
    say(&mut stream, &format!("{ROLE}{TOKEN}")).await;
    end(&mut stream).await;
}

fn at(millis: &[u64]) -> Vec<Shot> {
    let shot = |at: &u64| Shot {
        at: Duration::from_millis(*at),
        prompt_tokens: 3,
        output_tokens: 2,
    };
    millis.iter().map(shot).collect()
}

fn load(tenant: &str) -> Load {
    Load {
        tenant: tenant.to_owned(),
        rate: 1.0,
        prompt: Lengths::Uniform { min: 3, max: 3 },
        output: Lengths::Uniform { min: 2, max: 2 },
    }
}

fn limits(lasting: Duration) -> Limits {
    Limits {
        lasting,
        grace: 200 * MS,
        max_lag: Duration::from_secs(5),
    }
}

async fn try_run(
    target: &Rc<Target>,
    plans: &[(Load, Vec<Shot>)],
    limits: Limits,
) -> Result<Run, RunError> {
    run(target, plans, Prompts::default(), 1, limits, &Rc::default()).await
}

/// What became of one tenant's requests, sent at these milliseconds.
async fn samples(target: &Rc<Target>, millis: &[u64], lasting: Duration) -> Vec<Sample> {
    let plans = [(load("a"), at(millis))];
    let run = try_run(target, &plans, limits(lasting)).await.unwrap();
    run.samples
}

#[actix_rt::test]
async fn hanging_server_does_not_hold_back_later_requests() {
    let silent = async |mut stream: TcpStream| {
        head(&mut stream).await;
        std::future::pending::<()>().await;
    };
    let (target, accepted) = serve(silent).await;
    let samples = samples(&target, &[0, 20, 40, 60, 80], 100 * MS).await;
    assert_eq!(accepted.get(), 5, "each was sent though none was answered");
    for sample in samples {
        assert_eq!(sample.outcome, Outcome::Unfinished);
        assert!(sample.ended >= 300 * MS, "{sample:?}");
    }
}

#[actix_rt::test]
async fn empty_first_chunk_is_no_first_token() {
    let dawdling = async |mut stream: TcpStream| {
        head(&mut stream).await;
        say(&mut stream, ROLE).await;
        sleep(50 * MS).await;
        say(&mut stream, TOKEN).await;
        end(&mut stream).await;
    };
    let (target, _) = serve(dawdling).await;
    let sample = samples(&target, &[0], MS).await.remove(0);
    assert_eq!(sample.outcome, Outcome::Ok);
    assert!(sample.ttft().unwrap() >= 50 * MS);
    assert_eq!(sample.usage.unwrap().completion_tokens, 2);
}

#[actix_rt::test]
async fn tenants_share_no_connection() {
    // Keeps connections open, so that a pool would use them again.
    let keeping = async |mut stream: TcpStream| {
        let mut read = [0; 4096];
        while stream.read(&mut read).await.is_ok_and(|n| n > 0) {
            let body = format!("{TOKEN}{END}");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.unwrap();
        }
    };
    let (target, accepted) = serve(keeping).await;
    let plans = ["a", "b"].map(|tenant| (load(tenant), at(&[0, 100, 200])));
    let run = try_run(&target, &plans, limits(250 * MS)).await.unwrap();
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.outcome == Outcome::Ok)
    );
    assert_eq!(accepted.get(), 2, "one kept connection for each tenant");
}

#[actix_rt::test]
async fn saturated_client_refuses_to_report() {
    let (target, _) = serve(prompt_server).await;
    let plans = [(load("a"), at(&[0, 50, 100, 150, 200]))];
    let strict = Limits {
        max_lag: 20 * MS,
        ..limits(250 * MS)
    };
    let hog = async {
        sleep(30 * MS).await;
        // A thread that computes while it should send.
        std::thread::sleep(150 * MS);
    };
    let (result, ()) = tokio::join!(try_run(&target, &plans, strict), hog);
    let Err(RunError::Saturated { lag, .. }) = result else {
        panic!("{result:?}");
    };
    assert!(lag.p99 >= 90 * MS, "{lag:?}");
}

#[actix_rt::test]
async fn late_send_counts_from_the_planned_moment() {
    let (target, _) = serve(prompt_server).await;
    let hog = async {
        sleep(20 * MS).await;
        std::thread::sleep(130 * MS);
    };
    let (samples, ()) = tokio::join!(samples(&target, &[50], 100 * MS), hog);
    let sample = &samples[0];
    // Planned at 50 ms, and nothing could be sent before 150 ms.
    assert!(sample.ttft().unwrap() >= 100 * MS, "{sample:?}");
    assert!(sample.sent - sample.scheduled >= 90 * MS, "{sample:?}");
}

#[actix_rt::test]
async fn refusals_are_kept_and_not_retried() {
    let refusing = async |mut stream: TcpStream| {
        let mut read = [0; 4096];
        assert_ne!(stream.read(&mut read).await.unwrap(), 0);
        let body = r#"{"error":{"code":"queue_full"}}"#;
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let (target, accepted) = serve(refusing).await;
    let expected = Outcome::Refused {
        status: 503,
        code: "queue_full".to_owned(),
    };
    let samples = samples(&target, &[0, 10, 20], 50 * MS).await;
    assert!(samples.iter().all(|sample| sample.outcome == expected));
    assert_eq!(accepted.get(), 3);
}

/// The figure behind "can this machine offer the load": printed, and bounded from below loosely,
/// since a test machine is shared.
#[actix_rt::test]
async fn hundreds_of_streams_a_second_from_one_thread() {
    let (target, _) = serve(prompt_server).await;
    let every_ms: Vec<u64> = (0..600).map(|n| n * 1000 / 600).collect();
    let plans = [(load("a"), at(&every_ms))];
    let begin = Instant::now();
    let run = try_run(&target, &plans, limits(Duration::from_secs(1)));
    let run = run.await.unwrap();
    let took = begin.elapsed();
    println!("600 streams in {took:?}, lag {:?}", run.lag);
    assert!(
        run.samples
            .iter()
            .all(|sample| sample.outcome == Outcome::Ok)
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
}

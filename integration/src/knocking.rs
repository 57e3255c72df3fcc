//! Clients that come all the time, for tests in which none may be turned away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use crate::{Client, Stopwatch};

/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(3);

/// Three clients: one whose every question is a new connection, one whose every request to a model is,
/// and one that keeps its connection.
#[derive(Debug)]
pub struct Knocking {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Knocked>>,
}

/// How they fared.
#[derive(Debug, Default)]
pub struct Knocked {
    /// Answers with status 200.
    pub answered: usize,
    /// Everything else that came of a request.
    pub failed: Vec<String>,
    /// The longest that one took.
    pub slowest: Duration,
}

impl Knocking {
    /// Begins. `body` is posted to `path`.
    #[must_use]
    pub fn start(client: &Client, path: &str, body: &Value) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let new = client.clone().header("connection", "close");
        let post = Some((path.to_owned(), body.clone()));
        let clients = [
            (new.clone(), None),
            (new, post.clone()),
            (client.clone(), post),
        ];
        let clients = clients.into_iter().map(|(client, post)| {
            let is_over = is_over.clone();
            thread::spawn(move || knock(&client, post.as_ref(), &is_over))
        });
        let clients = clients.collect();
        Self { is_over, clients }
    }

    /// Ends.
    ///
    /// # Panics
    /// If a client did.
    #[must_use]
    pub fn stop(self) -> Knocked {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Knocked::default();
        for client in self.clients {
            let one = client.join().expect("a client reports");
            all.answered += one.answered;
            all.failed.extend(one.failed);
            all.slowest = all.slowest.max(one.slowest);
        }
        all
    }
}

fn knock(client: &Client, post: Option<&(String, Value)>, is_over: &AtomicBool) -> Knocked {
    let mut knocked = Knocked::default();
    while !is_over.load(Ordering::Relaxed) {
        let watch = Stopwatch::start();
        let reply = match post {
            Some((path, body)) => client.try_post(path, body),
            None => client.try_get("/v1/models"),
        };
        match reply {
            Ok(reply) if reply.status == 200 => knocked.answered += 1,
            Ok(reply) => knocked.failed.push(reply.to_string()),
            Err(error) => knocked.failed.push(error.to_string()),
        }
        knocked.slowest = knocked.slowest.max(watch.elapsed());
        thread::sleep(PAUSE);
    }
    knocked
}

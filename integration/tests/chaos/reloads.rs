//! R7: the configuration is read again and again while clients ask.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use kvwarden_integration::{Server, eventually_within, sse};
use serde_json::{Value, json};

use crate::{CHAT, rounds};

const GIVE_UP: Duration = Duration::from_secs(60);

const CLIENTS: u64 = 8;

/// Answers between two readings, so that each is tried on more than one request.
const BETWEEN: u64 = 2 * CLIENTS;

const TENANTS: &str = "[tenants.a]\n[tenants.b]\n";

const MODEL: &str = "[[models]]\nid = \"m\"\nengine = \"sim\"\n";

const OTHER: &str = "[[models]]\nid = \"other\"\nengine = \"sim\"\npreset = \"tiny\"\n";

const REPLICA: &str = "[[models]]\nreplica_of = \"m\"\nengine = \"sim\"\n";

/// Each changes something else, the dearest first.
fn good(round: u32) -> String {
    match round % 10 {
        0 => format!("{TENANTS}{MODEL}max_model_len = 4096\n"),
        1 => format!("{TENANTS}{MODEL}max_model_len = 4096\n{REPLICA}{OTHER}"),
        2 => format!(
            "{TENANTS}weight = 3\npriority = -1\n{MODEL}aliases = [\"n\"]\nqueue_size = 99\n"
        ),
        3 => format!("[limits]\nmax_in_flight = 500\n[tenants.b]\n{MODEL}max_concurrent = 9\n"),
        4 => format!(
            "[tenant_defaults]\nweight = 2\n{TENANTS}[tenants.c]\n{MODEL}{REPLICA}{REPLICA}"
        ),
        5 => format!(
            "{TENANTS}group = \"g\"\n[groups.g]\nweight = 2\n{MODEL}{REPLICA}preset = \"tiny\"\n"
        ),
        6 => format!("{TENANTS}max_concurrent_requests = 64\n{OTHER}{MODEL}pinned = true\n"),
        7 => format!(
            "[gpu]\nmax_wait = \"9s\"\n{TENANTS}rate_limit_rpm = 100000\n{MODEL}env = {{ A = \"b\" }}\n"
        ),
        8 => format!("{TENANTS}{MODEL}stop_grace = \"5s\"\nlong_prompt_tokens = 64\n"),
        _ => format!("{TENANTS}{MODEL}"),
    }
}

/// Writes a file that is refused, each for another reason.
fn write_bad(server: &Server, round: u32) {
    server.configure(&match round % 6 {
        0 => format!("{TENANTS}{MODEL}[[models"),
        1 => format!("{TENANTS}{MODEL}no_such_key = 1\n"),
        2 => format!("{TENANTS}{MODEL}{MODEL}"),
        3 => format!("{TENANTS}weight = 0\n{MODEL}"),
        _ => String::new(),
    });
    let file = server.home().join("kvwarden.toml");
    match round % 6 {
        4 => fs::remove_file(file).expect("the file was there"),
        5 => fs::write(file, "").expect("the file is written"),
        _ => {}
    }
}

fn request(number: u64) -> Value {
    json!({
        "model": "m", "stream": number.is_multiple_of(2), "max_tokens": 5 + number % 40, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
    })
}

/// One answer after the other until it is enough; what was wrong with one.
fn ask(
    server: &Server,
    client: u64,
    is_over: &AtomicBool,
    answered: &AtomicU64,
) -> Result<(), String> {
    let tenant = if client.is_multiple_of(2) { "a" } else { "b" };
    let client_of = server.client().tenant(tenant);
    let mut number = client;
    while !is_over.load(Ordering::Relaxed) {
        let reply = client_of.post(CHAT, &request(number));
        let is_whole = if number.is_multiple_of(2) {
            sse::data(&reply.body)
                .last()
                .is_some_and(|last| last == "[DONE]")
        } else {
            reply.text().contains("\"finish_reason\":\"length\"")
        };
        if reply.status != 200 || !is_whole {
            is_over.store(true, Ordering::Relaxed);
            return Err(format!("request {number} of {tenant}: {reply}"));
        }
        answered.fetch_add(1, Ordering::Relaxed);
        number += CLIENTS + 1;
    }
    Ok(())
}

#[test]
fn no_request_fails_while_the_configuration_is_read_again() {
    let (bad, goods) = (rounds(6, 30), rounds(4, 10));
    let server = Server::start(&good(9));
    let (is_over, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let (server, is_over, answered) = (&server, &is_over, &answered);
                    move || ask(server, client, is_over, answered)
                })
            })
            .collect();
        let mut tried = 0;
        for round in 0..goods {
            while tried < bad * (round + 1) / goods {
                write_bad(&server, tried);
                let last = server.hang_up();
                assert!(last["error"].is_string(), "bad file {tried}: {last}");
                tried += 1;
            }
            server.configure(&good(round));
            let last = server.hang_up();
            assert!(last["changes"].is_object(), "good file {round}: {last}");
            let enough = answered.load(Ordering::Relaxed) + BETWEEN;
            eventually_within(GIVE_UP, "more answers, or a wrong one", || {
                let is_enough = answered.load(Ordering::Relaxed) >= enough;
                (is_enough || is_over.load(Ordering::Relaxed)).then_some(())
            });
        }
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client
                .join()
                .expect("a client")
                .unwrap_or_else(|why| panic!("{why}"));
        }
    });
    let answered = answered.into_inner();
    println!("R7: {bad} bad and {goods} good reloads, {answered} requests meanwhile, none failed");
}

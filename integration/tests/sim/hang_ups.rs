//! A client that hangs up holds nothing, neither here nor in the engine.

use kvwarden_integration::{Server, engine::Gauges, eventually};

use crate::{CHAT, SLOW, chat, endless};

fn one_at_a_time() -> Server {
    Server::start(&format!("{SLOW}max_concurrent = 1\n"))
}

fn wait_for_running(engine: &Gauges, count: u64) {
    eventually(&format!("the engine to run {count}"), || {
        (engine.running() == count).then_some(())
    });
}

fn wait_for_queue(server: &Server, depth: f64) {
    eventually(&format!("{depth} in the queue"), || {
        let now = server.metrics().sum("kvwarden_admission_queue_depth", &[]);
        (now == Some(depth)).then_some(())
    });
}

#[test]
fn hung_up_stream_frees_its_slot_and_aborts_the_engine() {
    let server = one_at_a_time();
    let engine = Gauges::of(&server.engine());
    let mut answer = server.exchange(CHAT, "t", &endless()).answer();
    let _ = answer.until("content");
    wait_for_running(&engine, 1);
    drop(answer);
    wait_for_running(&engine, 0);
    let next = server.client().post(CHAT, &chat("slow", 2));
    assert_eq!(next.status, 200, "{next}");
    let lost = server
        .metrics()
        .sum("kvwarden_sse_stream_disconnect_total", &[]);
    assert_eq!(lost, Some(1.0));
}

#[test]
fn hung_up_client_of_a_whole_answer_aborts_the_engine() {
    let server = one_at_a_time();
    let engine = Gauges::of(&server.engine());
    let exchange = server.exchange(CHAT, "t", &chat("slow", 30_000));
    wait_for_running(&engine, 1);
    assert!(exchange.is_unanswered());
    drop(exchange);
    wait_for_running(&engine, 0);
}

#[test]
fn client_that_hangs_up_in_the_queue_never_reaches_the_engine() {
    let server = one_at_a_time();
    let engine = Gauges::of(&server.engine());
    let mut running = server.exchange(CHAT, "t", &endless()).answer();
    let _ = running.until("content");
    let queued = server.exchange(CHAT, "t", &endless());
    wait_for_queue(&server, 1.0);
    drop(queued);
    wait_for_queue(&server, 0.0);
    drop(running);
    wait_for_running(&engine, 0);
    let admitted = server
        .metrics()
        .sum("kvwarden_admission_admitted_total", &[]);
    assert_eq!(admitted, Some(1.0));
    assert_eq!(engine.waiting(), 0);
}

#[test]
fn hundred_hung_up_clients_leave_nothing_behind() {
    let server = Server::start(&format!("{SLOW}max_concurrent = 8\n"));
    let engine = Gauges::of(&server.engine());
    let clients: Vec<_> = (0..100)
        .map(|_| server.exchange(CHAT, "t", &endless()))
        .collect();
    wait_for_queue(&server, 92.0);
    drop(clients);
    wait_for_queue(&server, 0.0);
    wait_for_running(&engine, 0);
    let held = server.metrics().sum("kvwarden_admission_in_flight", &[]);
    assert_eq!(held, Some(0.0));
}

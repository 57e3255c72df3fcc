//! One process takes over from another: for clients nothing happens.

use std::{
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    time::Duration,
};

use kvwarden_integration::{Knocking, Server, eventually, eventually_within, sse};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
        },
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{CHAT, SLOW, TINY, chat, endless, streamed, streams::assert_one_error_at_the_end};

const SOON: Duration = Duration::from_secs(30);

fn record(server: &Server, model: &str) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"][model]["record"].clone()
}

/// Waits until the newest process has adopted the engine, and sees that it loaded none.
fn assert_adopted(server: &Server, model: &str) {
    eventually_within(SOON, "the engine to be adopted", || {
        (record(server, model)["adoptions"] == 1).then_some(())
    });
    assert_eq!(record(server, model)["starts"], 0);
}

fn finish(body: &[u8]) -> Value {
    let last = sse::chunks(body).pop().expect("a chunk");
    last["choices"][0]["finish_reason"].clone()
}

#[test]
fn takeover_refuses_no_connection_and_cuts_no_stream() {
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let mut streams: Vec<_> = (0..20)
        .map(|_| server.exchange(CHAT, "t", &streamed("slow", 250)).answer())
        .collect();
    for stream in &mut streams {
        let _ = stream.until("content");
    }
    let knocking = Knocking::start(&server.client(), CHAT, &chat("slow", 2));
    let mut elder = server.take_over(SLOW);
    assert_adopted(&server, "slow");
    for mut stream in streams {
        let rest = stream.rest().expect("a whole stream");
        assert_eq!(finish(&rest), "length");
    }
    let ended = elder.wait_for_end();
    let knocked = knocking.stop();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(knocked.failed, Vec::<String>::new());
    assert!(knocked.answered > 20, "{knocked:?}");
    assert_eq!(server.engine(), engine, "the same process, port and key");
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

#[test]
fn each_successor_can_be_taken_over_from_and_the_last_one_ends_everything() {
    let mut server = Server::start(TINY);
    let engine = server.engine();
    for _ in 0..2 {
        let mut elder = server.take_over(TINY);
        assert_adopted(&server, "org/tiny-model");
        assert!(elder.wait_for_end().status.success());
        assert_eq!(server.engine(), engine);
        let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
    }
    let socket = fs::metadata(server.home().join("state/takeover.sock"));
    let mode = socket.expect("it listens").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(server.terminate().status.success());
    server.wait_until_nothing_is_left(SOON);
}

#[test]
fn where_none_serves_a_successor_just_serves() {
    let mut server = Server::launch_with(TINY, &["--takeover"], Vec::new());
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
}

#[test]
fn successor_that_cannot_serve_leaves_everything_as_it_was() {
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let mut stream = server.exchange(CHAT, "t", &streamed("slow", 150)).answer();
    let _ = stream.until("content");
    let mut refused = server.successor("[[models]]\nid = 3\n");
    assert_eq!(refused.wait_for_end().status.code(), Some(2));
    // An engine that could not be adopted.
    let unreadable = server.home().join("state/run/unreadable.json");
    fs::write(&unreadable, "{").expect("a file is written");
    let mut failing = server.successor(SLOW);
    assert_eq!(failing.wait_for_end().status.code(), Some(1));
    assert_eq!(
        server.count("is not understood"),
        1,
        "{}",
        server.log_tail()
    );
    fs::remove_file(unreadable).expect("it is still there");
    // Its own log of events, after the other has let go of it.
    let events = "[log]\nevents = \"/proc/nobody/can/write.jsonl\"\n";
    let mut late = server.successor(&format!("{events}{SLOW}"));
    assert_eq!(late.wait_for_end().status.code(), Some(1));
    eventually("the first to go on", || {
        (server.count("this process goes on") >= 1).then_some(())
    });
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    let rest = stream.rest().expect("a whole stream");
    assert_eq!(finish(&rest), "length");
    assert_eq!(server.engine(), engine);
    // It is in charge again.
    engine.kill();
    eventually_within(SOON, "another engine", || {
        let engines = server.engines();
        engines.into_iter().find(|next| next.pid != engine.pid)
    });
    server.wait_until_ready(SOON);
    let mut elder = server.take_over(SLOW);
    assert!(elder.wait_for_end().status.success());
}

#[test]
fn killed_successor_costs_no_engine() {
    let mut server = Server::start(SLOW);
    let engine = server.engine();
    let mut successor = server.successor(SLOW);
    eventually("it to begin", || {
        (server.count("taking over") == 1).then_some(())
    });
    successor.kill();
    eventually_within(SOON, "somebody to serve", || {
        if server.has_ended() {
            // It had handed over a moment before.
            server.start_again(SLOW);
        }
        let health = server.client().try_get("/health").ok()?;
        (health.status == 200).then_some(())
    });
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
    assert_eq!(server.engines(), [engine]);
}

#[test]
fn request_that_waits_for_a_starting_engine_is_answered_by_the_one_that_has_it() {
    let slow_start = format!("{TINY}extra_args = [\"--fault-slow-start\", \"4s\"]\n");
    let mut server = Server::launch(&slow_start);
    eventually("the port to open", || {
        server.client().try_get("/health").ok()
    });
    let early = server.exchange(CHAT, "t", &chat("tiny", 2));
    let mut elder = server.take_over(&slow_start);
    let engine = server.engine();
    assert_eq!(early.answer().status, 200);
    assert!(elder.wait_for_end().status.success());
    server.wait_until_ready(SOON);
    assert_adopted(&server, "org/tiny-model");
    assert_eq!(server.engines(), [engine]);
}

#[test]
fn engine_with_another_configuration_is_replaced_once_its_streams_have_ended() {
    let mut server = Server::start(SLOW);
    let old = server.engine();
    let mut stream = server.exchange(CHAT, "t", &streamed("slow", 250)).answer();
    let _ = stream.until("content");
    let mut elder = server.take_over(&format!("{SLOW}max_concurrent = 7\n"));
    let rest = stream.rest().expect("a whole stream");
    assert_eq!(finish(&rest), "length");
    assert!(elder.wait_for_end().status.success());
    eventually_within(SOON, "another engine to run alone", || {
        let engines = server.engines();
        assert!(engines.len() < 2, "two engines at once: {engines:?}");
        engines.into_iter().find(|engine| engine.pid != old.pid)
    });
    server.wait_until_ready(SOON);
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

#[test]
fn elder_ends_streams_when_its_time_is_over_and_their_engine_goes_on() {
    let config = format!("[limits]\ndrain_timeout = \"3s\"\n{SLOW}");
    let mut server = Server::start(&config);
    let engine = server.engine();
    let mut stream = server.exchange(CHAT, "t", &endless()).answer();
    let _ = stream.until("content");
    let mut elder = server.take_over(&config);
    let rest = stream.rest().expect("the connection is ended well");
    assert_one_error_at_the_end(&rest);
    assert!(elder.wait_for_end().status.success());
    assert_adopted(&server, "slow");
    assert_eq!(server.engines(), [engine]);
    let _ = server.client().post(CHAT, &chat("slow", 2)).expect(200);
}

#[test]
fn peer_of_another_version_is_refused_in_words_and_nothing_happens() {
    let server = Server::start(TINY);
    let flags = SockFlag::SOCK_CLOEXEC;
    let peer = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    let path = server.home().join("state/takeover.sock");
    let address = UnixAddr::new(&path).expect("a short path");
    connect(peer.as_raw_fd(), &address).expect("it listens");
    let hello = json!({"say": "hello", "protocol": 99, "of": "a later version"}).to_string();
    send(peer.as_raw_fd(), hello.as_bytes(), MsgFlags::empty()).expect("it is sent");
    let mut reply = [0; 4096];
    let length = recv(peer.as_raw_fd(), &mut reply, MsgFlags::empty()).expect("a reply");
    let reply: Value = serde_json::from_slice(&reply[..length]).expect("JSON");
    assert_eq!(reply["say"], "refused", "{reply}");
    assert!(reply["reason"].to_string().contains("99"), "{reply}");
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
}

/// What a service manager would hear.
struct Manager(UnixDatagram);

impl Manager {
    /// Waits for a message that begins with `begin`, and returns the rest of it.
    fn until(&self, begin: &str) -> String {
        eventually_within(SOON, begin, || {
            let mut packet = [0; 4096];
            let length = match self.0.recv(&mut packet) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            };
            let text = String::from_utf8_lossy(&packet[..length]).into_owned();
            let found = text.lines().find_map(|line| line.strip_prefix(begin));
            found.map(str::to_owned)
        })
    }
}

#[test]
fn sigusr2_starts_a_successor_and_the_service_manager_can_follow() {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).expect("it listens"));
    let blocking = manager.0.set_nonblocking(true);
    blocking.expect("a socket can be non-blocking");
    let env = vec![
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "1000000".to_owned()),
    ];
    let mut server = Server::launch_with(TINY, &[], env);
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    assert!(manager.until("STATUS=").contains("of 1 models"));
    server.wait_until_ready(SOON);
    let engine = server.engine();
    server.signal(Signal::SIGUSR2);
    manager.until("RELOADING=1");
    let next: i32 = manager.until("MAINPID=").parse().expect("a process id");
    manager.until("READY=1");
    assert!(server.wait_for_end().status.success());
    manager.until("WATCHDOG=1");
    assert_eq!(server.engine(), engine);
    let _ = server.client().post(CHAT, &chat("tiny", 2)).expect(200);
    kill(Pid::from_raw(next), Signal::SIGTERM).expect("it lives");
    manager.until("STOPPING=1");
    server.wait_until_nothing_is_left(SOON);
}

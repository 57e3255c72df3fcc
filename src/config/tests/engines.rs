//! What engines are told, and what they must not be.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use kvwarden_actors::gpu::engine::EngineKind;

use super::*;
use crate::config::ModelSource;

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::load_str(text, Path::new("node.toml"), &env, &Overrides::default())
}

#[test]
fn model_inherits_from_its_engine() {
    let text = r#"
[engines.vllm]
extra_args = ["--first"]
env = { A = "engine", B = "engine" }
start_timeout = "1h"
stop_grace = "5s"
[[models]]
id = "m"
engine = "vllm"
extra_args = ["--second"]
env = { B = "model" }
stop_grace = "1s"
"#;
    let model = &load(text).models[0];
    assert_eq!(model.flags.extra_args, ["--first", "--second"]);
    let env = [("A", "engine"), ("B", "model")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(model.flags.env, env.into());
    assert_eq!(
        (model.start_timeout.as_secs(), model.stop_grace.as_secs()),
        (3600, 1)
    );
}

#[test]
fn cpu_engines_are_marked_and_run_fewer_requests() {
    let model = &load(&model("vllm-cpu", "")).models[0];
    assert_eq!(
        (model.engine, model.environment),
        (EngineKind::Vllm, Some("vllm-cpu"))
    );
    assert!(model.flags.cpu);
    assert_eq!(model.flags.capacity.sequences, 8);
}

#[test]
fn unknown_engine_table_is_answered_with_the_nearest() {
    let (told, help) = told(&format!("[engines.llama-cpp]\n{MODEL}"));
    assert_eq!(
        told,
        "engines.llama-cpp: kvwarden starts no engine called `llama-cpp`"
    );
    assert!(help.starts_with("did you mean `llamacpp`?"), "{help}");
}

#[test]
fn simulated_engine_has_no_other_executable() {
    let (told, _) = told(&format!(
        "[engines.sim]\nexecutable = \"/bin/true\"\n{MODEL}"
    ));
    assert!(told.starts_with("engines.sim.executable: "), "{told}");
}

#[test]
fn keys_that_mean_nothing_to_an_engine_are_refused() {
    let misfits = [
        ("llamacpp", "dtype = \"bfloat16\""),
        ("llamacpp", "tensor_parallel_size = 2"),
        ("llamacpp", "kv_cache = \"1GiB\""),
        ("sim", "tensor_parallel_size = 2"),
        ("sim", "source = \"a/b\""),
        ("vllm", "preset = \"tiny\""),
        ("vllm", "threads = 2"),
        ("vllm-cpu", "tensor_parallel_size = 2"),
        ("sglang", "kv_cache = \"1GiB\""),
        ("vllm-cpu", "gpu_memory_utilization = 0.5"),
        ("vllm", "url = \"http://127.0.0.1:1\""),
    ];
    for (engine, line) in misfits {
        let source = "source = \"pypi:p/f.gguf\"\n";
        let source = if engine == "llamacpp" { source } else { "" };
        let (told, help) = told(&model(engine, &format!("{source}{line}")));
        assert!(told.contains("means nothing to the engine"), "{told}");
        assert!(help.starts_with("leave it out: "), "{help}");
    }
}

#[test]
fn arguments_that_kvwarden_sets_itself_are_refused() {
    let refused = [
        ("vllm", "--port"),
        ("vllm", "--host=0.0.0.0"),
        ("vllm", "--api_key"),
        ("sglang", "--served-model-name"),
        ("sim", "--port"),
    ];
    for (engine, arg) in refused {
        let problem = problem(&model(
            engine,
            &format!("extra_args = [\"--ok\", \"{arg}\"]"),
        ));
        assert_eq!(problem.key, "models[0].extra_args[1]");
        assert!(
            problem.message.ends_with("is set by kvwarden"),
            "{}",
            problem.message
        );
    }
    let (told, _) = told(&format!(
        "[engines.vllm]\nextra_args = [\"--host\"]\n{MODEL}"
    ));
    assert!(told.starts_with("engines.vllm.extra_args[0]"), "{told}");
}

#[test]
fn variables_that_kvwarden_sets_itself_are_refused() {
    let (told, _) = told(&model("vllm", "env = { VLLM_API_KEY = \"x\" }"));
    assert_eq!(
        told,
        "models[0].env.VLLM_API_KEY: `VLLM_API_KEY` is set by kvwarden"
    );
    let text = format!("[engines.vllm-cpu]\nenv.VLLM_CPU_KVCACHE_SPACE = \"1\"\n{MODEL}");
    assert!(problem(&text).help.unwrap().contains("`kv_cache`"));
}

#[test]
fn argument_that_has_a_key_is_answered_with_it() {
    let (told, help) = told(&model("vllm", "extra_args = [\"--max-num-seqs\", \"8\"]"));
    assert_eq!(
        told,
        "models[0].extra_args[0]: `--max-num-seqs` is set from `max_concurrent`"
    );
    assert!(help.contains("`max_concurrent`"));
}

#[test]
fn attach_goes_by_its_url_and_key() {
    let text = model(
        "attach",
        "url = \"http://127.0.0.1:8001/\"\napi_key_env = \"KEY\"",
    );
    let model = with_env(&text, &[("KEY", "s")])
        .unwrap()
        .config
        .models
        .remove(0);
    let base = "http://127.0.0.1:8001".to_owned();
    assert_eq!(
        model.source,
        ModelSource::Url {
            base,
            api_key_env: Some("KEY".to_owned())
        }
    );
    assert_eq!(model.environment, None);
}

#[test]
fn attach_refuses_urls_that_cannot_work() {
    let told = |keys: &str| told(&model("attach", keys));
    assert_eq!(told("").0, "models[0].url: `attach` needs a `url`");
    assert!(told("url = \"ftp://h\"").0.ends_with("is not an http URL"));
    assert!(
        told("url = \"127.0.0.1:8001\"")
            .0
            .ends_with("is not an http URL")
    );
    assert!(
        told("url = \"https://h\"")
            .0
            .ends_with("https is not spoken to engines")
    );
    let (message, help) = told("url = \"http://h:1/v1/\"");
    assert!(message.ends_with("the URL ends in /v1"));
    assert!(help.contains(r#"url = "http://h:1""#), "{help}");
}

#[test]
fn variable_that_is_not_set_is_refused() {
    let text = model("attach", "url = \"http://h:1\"\napi_key_env = \"KEY\"");
    for env in [&[][..], &[("KEY", "")]] {
        let problems = with_env(&text, env).unwrap_err().problems;
        assert_eq!(
            problems[0].message,
            "the environment variable KEY is not set"
        );
    }
}

#[test]
fn unknown_preset_is_answered_with_the_nearest() {
    let (told, help) = told(&model("sim", "preset = \"a100\""));
    assert_eq!(told, "models[0].preset: no preset is called `a100`");
    assert!(help.starts_with("did you mean `a100-8b`?"), "{help}");
}

#[test]
fn executable_is_found_beside_the_file_and_on_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vllm");
    std::fs::write(&program, "").unwrap();
    let load = |executable: &str| {
        let env = [("PATH".to_owned(), dir.path().display().to_string())].into();
        let text = model("vllm", &format!("executable = \"{executable}\""));
        let file = dir.path().join("node.toml");
        Config::load_str(&text, &file, &env, &Overrides::default())
    };
    let refused = |executable| load(executable).unwrap_err().problems.remove(0).message;
    assert!(refused("./vllm").ends_with("is not executable"));
    assert!(refused("./missing").ends_with("does not exist"));
    assert!(refused("missing").ends_with("does not exist"));
    assert!(refused(".").ends_with("is a directory"));

    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for executable in ["./vllm", "vllm"] {
        let model = load(executable).unwrap().config.models.remove(0);
        let found = model.executable.unwrap();
        assert_eq!(
            found.canonicalize().unwrap(),
            PathBuf::from(&program).canonicalize().unwrap()
        );
        assert_eq!(model.environment, None);
    }
}

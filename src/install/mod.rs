//! Private environments for engines, and model files out of Python packages.
//!
//! Each engine lives in a directory of its own under `Layout::data`, made from a recipe with `uv`;
//! engines ask for different versions of torch and cannot share one. The last thing an install
//! writes is a marker. Without it a directory is partial, whatever is in it, and is made anew: uv
//! has the downloads in its cache. All calls block.

mod environment;
mod error;
pub mod fetch;
mod growth;
mod lock;
mod packages;
pub mod progress;
pub(crate) mod python;
pub mod recipe;
mod run;
pub mod step;
pub(crate) mod uv;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use environment::{Environment, State};
pub use error::InstallError;

use self::{
    environment::{MARKER, Marker, clear, environment, ready, refuse_if_in_use},
    error::at,
    growth::Growth,
    lock::Lock,
    progress::{Event, Progress},
    recipe::{RECIPES, Recipe},
    run::Runner,
    step::Paths,
};
use crate::layout::Layout;

/// An environment that is ready to start its engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The environment's interpreter.
    pub python: PathBuf,
    /// The script it runs to start the engine.
    pub launcher: PathBuf,
    /// The engine's version.
    pub version: String,
}

/// What the user may choose about an install.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The interpreter to make the environment from.
    pub python: Option<PathBuf>,
    /// Make it anew although it is ready.
    pub force: bool,
}

// === what callers do ===

/// The environment of that name, installed first unless it is ready.
pub fn ensure(
    name: &str,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<Installed, InstallError> {
    install(name, &Options::default(), layout, progress)
}

/// As [`ensure`], with a choice of interpreter and of starting over.
pub fn install(
    name: &str,
    options: &Options,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<Installed, InstallError> {
    let recipe = known(name)?;
    let root = layout.engine(recipe.name);
    if let Some(marker) = ready(recipe, &root).filter(|_| !options.force) {
        return installed(recipe, &root, marker);
    }
    let waiting = || progress.report(Event::Waiting { what: recipe.name });
    let lock = Lock::take(&lock_path(layout, recipe), waiting)?;
    // It may have become ready while this waited.
    if let Some(marker) = ready(recipe, &root).filter(|_| !options.force) {
        return installed(recipe, &root, marker);
    }
    refuse_if_in_use(recipe, &root)?;
    let marker = make(recipe, options, layout, &lock, progress)?;
    installed(recipe, &root, marker)
}

/// Every environment there could be, and what is there of it.
#[must_use]
pub fn list(layout: &Layout) -> Vec<Environment> {
    RECIPES
        .iter()
        .map(|recipe| environment(recipe, layout))
        .collect()
}

/// Deletes an environment. Returns whether there was one.
pub fn remove(name: &str, layout: &Layout) -> Result<bool, InstallError> {
    let recipe = known(name)?;
    let root = layout.engine(recipe.name);
    if !root.exists() {
        return Ok(false);
    }
    let _lock = Lock::take(&lock_path(layout, recipe), || {})?;
    refuse_if_in_use(recipe, &root)?;
    clear(&root)?;
    Ok(true)
}

// === how ===

fn make(
    recipe: &Recipe,
    options: &Options,
    layout: &Layout,
    lock: &Lock,
    progress: &dyn Progress,
) -> Result<Marker, InstallError> {
    let root = layout.engine(recipe.name);
    progress.report(Event::Started {
        what: recipe.name,
        bytes: Some(recipe.bytes),
    });
    let python = python::find(options.python.as_deref(), recipe.python)?;
    require_compiler(recipe)?;
    clear(&root)?;
    fs::create_dir_all(&root).map_err(at(&root))?;
    require_space(&root, recipe.bytes)?;
    let uv = uv::ensure(layout, &python, progress)?;

    let growth = Some(Growth::new(&root, &uv));
    let runner = Runner {
        log: root.join("install.log"),
        lock,
        growth,
        progress,
    };
    let paths = Paths {
        root,
        uv,
        python: python.path,
        python_version: python.version,
    };
    let mut output = String::new();
    for step in recipe.steps(&paths) {
        output = runner.step(&step)?;
    }

    let version = version_in(&output).to_owned();
    let marker = Marker {
        recipe: recipe.revision,
        version,
        installed_at: unix_now(),
        python: paths.python,
    };
    let text = serde_json::to_string_pretty(&marker).map_err(io::Error::from);
    let path = paths.root.join(MARKER);
    run::write_file(&path, &text.map_err(at(&path))?)?;
    progress.report(Event::OnDisk(growth::tree_bytes(&paths.root)));
    progress.report(Event::Finished {
        what: recipe.name,
        version: Some(&marker.version),
    });
    Ok(marker)
}

fn installed(recipe: &Recipe, root: &Path, marker: Marker) -> Result<Installed, InstallError> {
    // This program may be newer than the environment, and its arguments then fit its launcher.
    for (path, text) in recipe.own_files(root, &environment::site_packages(root)?) {
        if fs::read_to_string(&path).ok().as_deref() != Some(text) {
            run::write_file(&path, text)?;
        }
    }
    Ok(Installed {
        python: root.join("venv/bin/python"),
        launcher: recipe.launcher_path(root),
        version: marker.version,
    })
}

fn known(name: &str) -> Result<&'static Recipe, InstallError> {
    recipe::find(name).ok_or_else(|| InstallError::UnknownEngine {
        name: name.to_owned(),
        known: RECIPES.iter().map(|recipe| recipe.name).collect(),
    })
}

/// What compiling the stub libraries takes.
pub(crate) const COMPILER_TOOLS: [&str; 4] = ["cc", "readelf", "nm", "ldconfig"];

fn require_compiler(recipe: &Recipe) -> Result<(), InstallError> {
    if !recipe.needs_compiler {
        return Ok(());
    }
    let missing: Vec<_> = COMPILER_TOOLS
        .into_iter()
        .filter(|tool| python::on_path(tool).is_none())
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(InstallError::NoCompiler { missing })
    }
}

fn require_space(root: &Path, needed: u64) -> Result<(), InstallError> {
    let stat = nix::sys::statvfs::statvfs(root)
        .map_err(io::Error::from)
        .map_err(at(root))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free >= needed {
        return Ok(());
    }
    Err(InstallError::NoSpace {
        dir: root.to_owned(),
        free,
        needed,
    })
}

fn version_in(output: &str) -> &str {
    let line = output
        .lines()
        .find_map(|line| line.strip_prefix(recipe::VERSION_MARK));
    line.map_or("unknown", str::trim)
}

fn lock_path(layout: &Layout, recipe: &Recipe) -> PathBuf {
    layout
        .data
        .join("engines")
        .join(format!("{}.lock", recipe.name))
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

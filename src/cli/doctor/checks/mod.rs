//! The checks, in the order they are shown: from what the operator wrote to what the kernel offers.

mod clock;
mod config;
mod disk;
mod engines;
mod gpu;
mod leftovers;
mod limits;
mod listen;
mod process;
mod python;

use std::{net::SocketAddr, path::Path};

use kvwarden_actors::device;

use super::{Check, machine};
use crate::{
    config::{Config, Loaded, NodeLimits, Overrides, process_environment},
    install::{
        self, Environment,
        recipe::{RECIPES, Recipe},
    },
    layout::Layout,
};

/// What `kvwarden serve` listens on unless it is told otherwise.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8000);

/// The engines whose private environments matter.
#[derive(Clone, Debug)]
struct Needs {
    /// A configuration names them; otherwise they are all there could be, and none has to work.
    are_known: bool,
    recipes: Vec<&'static Recipe>,
}

// === impl Needs ===

impl Needs {
    fn of(config: Option<&Config>) -> Self {
        let is_named = |recipe: &&Recipe, config: &Config| {
            let mut environments = config.models.iter().map(|model| model.environment);
            environments.any(|environment| environment == Some(recipe.name))
        };
        let recipes = RECIPES.iter();
        Self {
            are_known: config.is_some(),
            recipes: match config {
                Some(config) => recipes.filter(|recipe| is_named(recipe, config)).collect(),
                None => recipes.collect(),
            },
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.recipes.iter().any(|recipe| recipe.name == name)
    }

    /// Without those that are installed.
    fn missing(&self, environments: &[Environment]) -> Self {
        let is_ready = |recipe: &Recipe| {
            let mut states = environments.iter();
            states.any(|environment| {
                environment.name == recipe.name
                    && matches!(environment.state, install::State::Ready { .. })
            })
        };
        let recipes = self.recipes.iter().copied();
        Self {
            are_known: self.are_known,
            recipes: recipes.filter(|recipe| !is_ready(recipe)).collect(),
        }
    }

    /// A finding that keeps these engines from working.
    fn unmet(
        &self,
        name: &'static str,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        if self.are_known {
            Check::problem(name, finding, fix)
        } else {
            Check::warning(name, finding, fix)
        }
    }
}

/// Takes every reading and judges it.
pub(super) fn all(config_file: Option<&Path>) -> Vec<Check> {
    let loaded =
        config_file.map(|file| Config::load(file, &process_environment(), &Overrides::default()));
    let config = match &loaded {
        Some(Ok(Loaded { config, .. })) => Some(config),
        Some(Err(_)) | None => None,
    };
    let layout = layout(config);
    let needs = Needs::of(config);
    let environments = install::list(&layout);

    let mut checks = vec![config::file(config_file, loaded.as_ref())];
    checks.push(listen(config));
    checks.extend(directories(&layout, &needs.missing(&environments)));
    checks.extend(installing(&layout, &needs.missing(&environments)));
    let states = environments.iter();
    checks.extend(states.map(|environment| engines::environment(environment, &needs)));
    let trees = machine::engine_trees();
    checks.extend(gpus(&needs, trees.as_deref().unwrap_or_default()));
    checks.extend(resources(config, &needs));
    checks.push(process::cgroups(&machine::cgroups()));
    checks.push(process::kernel(&machine::kernel()));
    checks.push(leftovers::processes(&trees));
    let (now, program) = machine::clock();
    checks.push(clock::sane(now, program));
    checks
}

fn layout(config: Option<&Config>) -> Layout {
    let layout = Layout::from_env();
    Layout {
        data: config
            .and_then(|config| config.data_dir.clone())
            .unwrap_or(layout.data),
        state: config
            .and_then(|config| config.state_dir.clone())
            .unwrap_or(layout.state),
    }
}

fn listen(config: Option<&Config>) -> Check {
    let address = config.map_or(DEFAULT_LISTEN, |config| config.listen);
    listen::address(address, machine::occupant(address))
}

fn directories(layout: &Layout, missing: &Needs) -> [Check; 4] {
    let data = machine::directory(&layout.data);
    let state = machine::directory(&layout.state);
    [
        disk::data(&data),
        disk::space(&data.path, data.free, missing),
        disk::state(&state, machine::user()),
        disk::socket_path(&layout.run()),
    ]
}

fn installing(layout: &Layout, missing: &Needs) -> [Check; 3] {
    let found = install::python::all();
    let absent = install::COMPILER_TOOLS
        .into_iter()
        .filter(|tool| install::python::on_path(tool).is_none());
    [
        python::version(&found, missing),
        python::environments(&found, install::uv::find(layout), missing),
        python::compiler(&absent.collect::<Vec<_>>(), missing),
    ]
}

fn gpus(needs: &Needs, engines: &[machine::EngineTree]) -> [Check; 2] {
    let reading = device::read();
    let processes = reading.processes();
    let names = machine::names(processes.iter().map(|process| process.pid));
    [
        gpu::driver(&reading, machine::nvidia_devices(), needs),
        gpu::memory(&reading, &processes, engines, &names),
    ]
}

fn resources(config: Option<&Config>, needs: &Needs) -> [Check; 3] {
    let limits = config.map_or_else(NodeLimits::default, |config| config.limits.clone());
    [
        limits::open_files(machine::open_files(), limits.max_in_flight),
        limits::memory(machine::memory(), needs),
        limits::shared_memory(machine::shared_memory(), needs),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs of a configuration that names these engines.
    pub(super) fn known(names: &[&str]) -> Needs {
        let recipes = RECIPES.iter();
        Needs {
            are_known: true,
            recipes: recipes
                .filter(|recipe| names.contains(&recipe.name))
                .collect(),
        }
    }

    /// Needs without a configuration.
    pub(super) fn unknown() -> Needs {
        Needs::of(None)
    }

    #[test]
    fn configuration_says_which_engines_matter() {
        let text = "[[models]]\nid = \"m\"\nengine = \"sim\"\n";
        let loaded = Config::load_str(
            text,
            "n.toml".as_ref(),
            &process_environment(),
            &Overrides::default(),
        );
        let needs = Needs::of(Some(&loaded.unwrap().config));
        assert!(needs.are_known && needs.recipes.is_empty());
        assert_eq!(unknown().recipes.len(), RECIPES.len());
    }

    #[test]
    fn what_is_installed_is_not_missing() {
        let environment = Environment {
            name: "vllm",
            state: install::State::Ready {
                version: "1".to_owned(),
            },
            bytes: 1,
            path: "/x".into(),
        };
        let missing = known(&["vllm", "sglang"]).missing(&[environment]);
        assert!(missing.contains("sglang") && !missing.contains("vllm"));
    }
}

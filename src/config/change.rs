//! What another configuration changes in the one that runs, and what of it has to wait for a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use kvwarden_actors::engine::EngineFlags;
use kvwarden_policy::lifecycle::SleepLevels;
use serde::{Deserialize, Serialize};

use super::{Config, ModelConfig, file::GpuTable};

/// What changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Tenants, by name.
    pub tenants: Difference,
    /// Models, by name.
    pub models: Difference,
    /// Engines of models that stay which give way to others.
    pub engines: Vec<String>,
    /// Tables and keys of the node as a whole.
    pub settings: Vec<String>,
    /// Keys whose new value counts from the next start of kvwarden.
    pub needs_restart: Vec<String>,
}

/// What became of things that have names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// New ones.
    pub added: Vec<String>,
    /// Those of which something else is said.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

/// What runs once `wanted` has taken the place of `running`, and what that changes.
#[must_use]
pub fn plan(running: &Config, wanted: Config) -> (Config, Changes) {
    let needs_restart = needs_restart(running, &wanted);
    let next = without_restart(running, wanted);
    let before = &running.models;
    let changes = Changes {
        tenants: difference(&by_tenant(running), &by_tenant(&next)),
        models: difference(&by_model(before), &by_model(&next.models)),
        engines: other_engines(before, &next.models),
        settings: settings(running, &next),
        needs_restart,
    };
    (next, changes)
}

/// Stands for all that an engine is prepared by: another number, another engine.
#[must_use]
pub fn revision(model: &ModelConfig) -> u64 {
    let levels = model.flags.levels;
    let all = (engine(model), levels, model.start_timeout, model.stop_grace);
    let mut hasher = DefaultHasher::new();
    format!("{all:?}").hash(&mut hasher);
    hasher.finish()
}

/// What another engine is needed for. Everything else said of a model is its queue's, or the planner's,
/// or counts from the engine's next start.
fn engine(model: &ModelConfig) -> impl PartialEq + fmt::Debug {
    // Of a server that somebody else runs only the queue before it is ours.
    let is_ours = model.engine.dialect().is_started();
    let flags = EngineFlags {
        levels: SleepLevels::default(),
        ..model.flags.clone()
    };
    let ours = is_ours.then_some((
        &model.environment,
        &model.executable,
        flags,
        model.residency.memory,
        &model.residency.gpus,
    ));
    (&model.id, model.engine, &model.source, ours)
}

/// The new configuration with the old one's values where only a restart can change them.
fn without_restart(running: &Config, wanted: Config) -> Config {
    let running = running.clone();
    let models = wanted.models.into_iter().map(|model| ModelConfig {
        scheduling: same(&running.models, &model).map_or(model.scheduling, |old| old.scheduling),
        ..model
    });
    Config {
        models: models.collect(),
        listen: running.listen,
        workers: running.workers,
        gpu: GpuTable {
            memory: running.gpu.memory,
            ..wanted.gpu
        },
        events: running.events,
        keep_usage: running.keep_usage,
        log_level: running.log_level,
        data_dir: running.data_dir,
        state_dir: running.state_dir,
        ..wanted
    }
}

fn needs_restart(running: &Config, wanted: &Config) -> Vec<String> {
    let keys = [
        ("listen", running.listen != wanted.listen),
        ("workers", running.workers != wanted.workers),
        ("log_level", running.log_level != wanted.log_level),
        ("data_dir", running.data_dir != wanted.data_dir),
        ("state_dir", running.state_dir != wanted.state_dir),
        ("gpu.memory", running.gpu.memory != wanted.gpu.memory),
        (
            "log",
            (&running.events, running.keep_usage) != (&wanted.events, wanted.keep_usage),
        ),
    ];
    let disciplines = wanted.models.iter().filter(|model| {
        let before = same(&running.models, model);
        !model.is_replica() && before.is_some_and(|old| old.scheduling != model.scheduling)
    });
    changed(&keys)
        .chain(disciplines.map(|model| format!("scheduling of {}", model.id)))
        .collect()
}

fn settings(running: &Config, next: &Config) -> Vec<String> {
    changed(&[
        ("auth", running.auth != next.auth),
        ("limits", running.limits != next.limits),
        ("gpu.max_wait", running.gpu.max_wait != next.gpu.max_wait),
        ("gpu.prefetch", running.gpu.prefetch != next.gpu.prefetch),
        (
            "tenant_defaults",
            running.tenant_defaults != next.tenant_defaults,
        ),
    ])
    .collect()
}

fn changed(keys: &[(&'static str, bool)]) -> impl Iterator<Item = String> {
    let changed = keys.iter().filter(|(_, is_changed)| *is_changed);
    changed.map(|(key, _)| (*key).to_owned())
}

fn other_engines(before: &[ModelConfig], after: &[ModelConfig]) -> Vec<String> {
    let is_other = |model: &&ModelConfig| {
        let old = same(before, model);
        old.is_some_and(|old| engine(old) != engine(model))
    };
    let others = after.iter().filter(is_other);
    others.map(|model| model.engine_name.to_string()).collect()
}

/// The engine of the same name.
fn same<'a>(models: &'a [ModelConfig], model: &ModelConfig) -> Option<&'a ModelConfig> {
    let mut models = models.iter();
    models.find(|other| other.engine_name == model.engine_name)
}

fn by_tenant(config: &Config) -> BTreeMap<&str, impl PartialEq> {
    let tenants = config.tenants.iter();
    tenants.map(|tenant| (tenant.id.as_str(), tenant)).collect()
}

/// Models with all their engines.
fn by_model(models: &[ModelConfig]) -> BTreeMap<&str, Vec<&ModelConfig>> {
    let mut by_model = BTreeMap::<_, Vec<_>>::new();
    for model in models {
        by_model.entry(model.id.as_str()).or_default().push(model);
    }
    by_model
}

fn difference<T: PartialEq>(before: &BTreeMap<&str, T>, after: &BTreeMap<&str, T>) -> Difference {
    let names = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
    let mut difference = Difference::default();
    for name in names {
        let list = match (before.get(name), after.get(name)) {
            (None, _) => &mut difference.added,
            (_, None) => &mut difference.removed,
            (Some(old), Some(new)) if old != new => &mut difference.changed,
            (Some(_), Some(_)) => continue,
        };
        list.push((*name).to_owned());
    }
    difference
}

// === impl Changes ===

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenants,
            models,
            engines,
            settings,
            needs_restart,
        } = self;
        let lines = [
            ("tenants added", &tenants.added),
            ("tenants changed", &tenants.changed),
            ("tenants removed", &tenants.removed),
            ("models added", &models.added),
            ("models changed", &models.changed),
            ("models removed", &models.removed),
            ("engines that give way to new ones", engines),
            ("settings changed", settings),
            ("changes once kvwarden is restarted", needs_restart),
        ];
        if *self == Self::default() {
            return f.write_str("nothing changed");
        }
        let lines = lines.iter().filter(|(_, names)| !names.is_empty());
        let lines = lines.map(|(what, names)| format!("{what}: {}", names.join(", ")));
        f.write_str(&lines.collect::<Vec<_>>().join("; "))
    }
}

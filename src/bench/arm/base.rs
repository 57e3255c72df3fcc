//! The configuration of each arm's server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum as _;
use kvwarden_policy::steps::{self, Preset};
use toml::{Table, Value};

use super::{Arm, Instance};
use crate::{
    bench::workload::{Party, Role, Workload},
    config::{Config, Engine, Overrides, process_environment},
};

/// The model's name in generated configurations.
const MODEL: &str = "bench";

/// How long a kept engine waits for the next server: between two benches of a script.
const KEPT: &str = "2m";

/// What every arm's configuration is made from.
#[derive(Clone, Debug)]
pub struct Base {
    table: Table,
    dir: PathBuf,
    engine: Engine,
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
        let mut base = Self {
            table,
            dir: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            engine: Engine::Vllm,
        };
        let model = base.model();
        let model = model.with_context(|| format!("{} has no [[models]]", path.display()))?;
        let is_gguf = text_in(model, "source").is_some_and(|source| source.ends_with(".gguf"));
        let named = text_in(model, "engine").and_then(|name| Engine::from_str(name, false).ok());
        base.engine = named.unwrap_or(match is_gguf {
            true => Engine::Llamacpp,
            false => Engine::Vllm,
        });
        Ok(base)
    }

    /// One model on this engine.
    ///
    /// # Errors
    /// When the engine can't be started from here.
    pub fn of_engine(engine: Engine, preset: &Preset, source: String) -> anyhow::Result<Self> {
        let mut model = Table::new();
        let mut set = |key: &str, value: Value| model.insert(key.to_owned(), value);
        set("id", MODEL.into());
        set("engine", engine.name().into());
        match engine {
            Engine::Sim => {
                set("preset", preset.name.into());
                set("max_concurrent", i64::from(preset.max_num_seqs).into());
            }
            Engine::Attach => anyhow::bail!("to bench a running server, give --base-url"),
            Engine::Vllm | Engine::Sglang => {
                set("source", source.into());
            }
            // Few enough slots for a processor to fill them all.
            Engine::VllmCpu | Engine::SglangCpu => {
                set("source", source.into());
                set("max_concurrent", 8.into());
                set("max_model_len", 2048.into());
                set("env", one_thread(engine).into());
                if engine == Engine::VllmCpu {
                    // In a process of its own the worker is waited for by `sched_yield` in a loop,
                    // which on few cores keeps others from waking up for seconds.
                    let within = ["--distributed-executor-backend", "uni"];
                    set("extra_args", within.map(Value::from).to_vec().into());
                }
            }
            Engine::Llamacpp => {
                set("source", source.into());
                set("max_concurrent", 4.into());
                set("max_model_len", 2048.into());
                set("threads", 1.into());
            }
        }
        let table = Table::from_iter([("models".to_owned(), Value::Array(vec![model.into()]))]);
        Ok(Self {
            table,
            dir: std::env::current_dir()?,
            engine,
        })
    }

    /// Whether engine and load generator have to share the machine's processor.
    #[must_use]
    pub fn shares_cores(&self) -> bool {
        matches!(
            self.engine,
            Engine::Llamacpp | Engine::VllmCpu | Engine::SglangCpu
        )
    }

    /// Sizes of requests that suit the engine, as part of the goals' own.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let preset = self.model().and_then(|model| text_in(model, "preset"));
        let is_tiny = preset == Some(steps::TINY.name);
        match self.shares_cores() || is_tiny {
            true => 0.125,
            false => 1.0,
        }
    }

    /// The first model's table.
    fn model(&self) -> Option<&Table> {
        self.table.get("models")?.as_array()?.first()?.as_table()
    }

    /// The name clients ask for.
    #[must_use]
    pub fn model_name(&self) -> String {
        let id = self.model().and_then(|model| text_in(model, "id"));
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
        let mut limits = Table::from_iter([
            ("max_in_flight".to_owned(), 1_000_000.into()),
            ("queue_timeout".to_owned(), "2h".into()),
            ("stream_idle_timeout".to_owned(), "30m".into()),
            ("drain_timeout".to_owned(), "0s".into()),
        ]);
        if instance.keeps_engine {
            limits.insert("orphan_grace".to_owned(), KEPT.into());
        }
        set("limits", Value::Table(limits));
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

/// More threads than there are free cores wait for each other by spinning, and make an engine many
/// times slower.
fn one_thread(engine: Engine) -> Table {
    let mut env = Table::from_iter([("OMP_NUM_THREADS".to_owned(), "1".into())]);
    if engine == Engine::VllmCpu {
        env.insert("VLLM_CPU_OMP_THREADS_BIND".to_owned(), "nobind".into());
        // Or it would not leave the worker within its own process.
        env.insert("VLLM_ENABLE_V1_MULTIPROCESSING".to_owned(), "0".into());
    }
    env
}

fn text_in<'t>(table: &'t Table, key: &str) -> Option<&'t str> {
    table.get(key)?.as_str()
}

fn tenants(instance: Instance<'_>, workload: &Workload) -> Table {
    let table = |party: &Party| {
        let mut tenant = Table::new();
        tenant.insert("weight".to_owned(), i64::from(party.weight).into());
        if instance.arm == Arm::Bucket && party.role == Role::Noisy {
            let rpm = i64::from(instance.bucket_rpm);
            tenant.insert("rate_limit_rpm".to_owned(), rpm.into());
            // A second's worth: a minute's would let the flood in for most of a run.
            tenant.insert("rate_limit_burst".to_owned(), (rpm / 60).max(1).into());
        }
        (party.load.tenant.clone(), Value::Table(tenant))
    };
    workload.parties.iter().map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{model::default_source, workload::Shape};

    const ENGINES: [Engine; 6] = [
        Engine::Sim,
        Engine::Llamacpp,
        Engine::VllmCpu,
        Engine::SglangCpu,
        Engine::Vllm,
        Engine::Sglang,
    ];

    fn config(engine: Engine, arm: Arm) -> (Base, String) {
        let small = default_source(Engine::Llamacpp).unwrap();
        let is_llamacpp = engine == Engine::Llamacpp;
        let source = if is_llamacpp { &small } else { "org/model" }.to_owned();
        let base = Base::of_engine(engine, &steps::H100_8B, source).unwrap();
        let floods = Shape::Unequal.floods(3, 1.0);
        let workload = Workload::new(floods, &[4, 2], 1, 5000.0, 1.0);
        let instance = Instance {
            arm,
            port: 1234,
            state_dir: Path::new("/tmp/bench"),
            keeps_engine: true,
            bucket_rpm: 600,
        };
        let text = base.config(instance, &workload);
        (base, text)
    }

    #[test]
    fn generated_configurations_are_accepted() {
        for engine in ENGINES {
            for arm in [Arm::Solo, Arm::Fifo, Arm::Bucket, Arm::Drr, Arm::Fair] {
                let (base, text) = config(engine, arm);
                assert_eq!(base.problem(&text), None, "{text}");
            }
        }
    }

    #[test]
    fn only_the_bucket_arm_limits_anybody() {
        let of = |arm| config(Engine::Sim, arm).1;
        assert!(of(Arm::Bucket).contains("rate_limit_rpm = 600"));
        assert!(!of(Arm::Fifo).contains("rate_limit"));
        assert!(of(Arm::Fair).contains("weight = 4"));
    }

    #[test]
    fn own_file_says_what_its_engine_can_take() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            Base::read(file.path())
        };
        let gguf = of("[[models]]\nid = 'm'\nsource = 'm.gguf'").unwrap();
        assert!(gguf.shares_cores() && gguf.scale() < 1.0);
        let gpu = of("[[models]]\nid = 'm'\nengine = 'vllm'").unwrap();
        assert!(!gpu.shares_cores() && (gpu.scale() - 1.0).abs() < 1e-9);
        assert!(of("listen = '127.0.0.1:0'").is_err());
    }
}

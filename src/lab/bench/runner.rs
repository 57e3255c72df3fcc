//! Runs: a server for each, the same plans against all, watched while they last.

use std::{cell::RefCell, rc::Rc, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, interval};

use super::{
    arm::{Arm, Base, Instance},
    capacity::{self, Capacity},
    load::{self, Dialect, Live, Load, Prompts, Run, RunError, Shot, Target, probe},
    options::Options,
    progress::Display,
    server::{Place, Server},
    watch::{self, Look},
    workload::{Party, Role, Workload},
};

/// How often the display is redrawn.
const DRAW: Duration = Duration::from_millis(250);

/// How often a run is made before the machine counts as too busy.
const TRIES: usize = 3;

/// Everything that is the same in all runs.
pub struct Runner<'a> {
    options: &'a Options,
    /// What configurations are made from; none where a server runs already.
    pub base: Option<Base>,
    /// Who sends what.
    pub workload: Workload,
    prompts: Prompts,
    dialect: Dialect,
    /// Each noisy tenant's bucket in [`Arm::Bucket`].
    pub bucket_rpm: u32,
    /// Tells how far it is.
    pub display: Display,
}

/// What one run left.
pub struct Measured {
    /// Every request.
    pub run: Run,
    /// What queued where.
    pub looks: Vec<Look>,
    /// The server's configuration.
    pub config: String,
    /// Why earlier tries told nothing.
    pub discarded: Vec<String>,
}

// === impl Runner ===

impl<'a> Runner<'a> {
    /// Before anything is known about the engine.
    #[must_use]
    pub fn new(
        options: &'a Options,
        base: Option<Base>,
        workload: Workload,
        bucket_rpm: u32,
        display: Display,
    ) -> Self {
        Self {
            options,
            base,
            workload,
            prompts: Prompts::default(),
            dialect: Dialect::IgnoreEos,
            bucket_rpm,
            display,
        }
    }

    /// The server of an arm, to be.
    #[must_use]
    pub fn instance<'p>(&self, arm: Arm, place: &'p Place) -> Instance<'p> {
        Instance {
            arm,
            port: place.port,
            state_dir: &place.state_dir,
            keeps_engine: self.options.keep_engine.is_some(),
            bucket_rpm: self.bucket_rpm,
        }
    }

    /// Asks the engine how it counts prompts, and what it can do of each load alone.
    ///
    /// # Errors
    /// When it can't be started, or answers nothing.
    pub async fn calibrate(&mut self, loads: &[Load]) -> anyhow::Result<Vec<Capacity>> {
        self.display.say("calibrating: starting the engine");
        let (server, _) = self.start(Arm::Fifo).await?;
        let mut target = self.target(server.as_ref())?;
        if probe(&target, self.prompts, 8).await.is_err() {
            self.dialect = Dialect::Plain;
            target = self.target(server.as_ref())?;
        }
        let short = probe(&target, self.prompts, 16).await?;
        let long = probe(&target, self.prompts, 116).await?;
        self.prompts = Prompts::fitted((16, short), (116, long));
        let stage =
            (self.options.duration / 6).clamp(Duration::from_secs(1), Duration::from_secs(6));
        let first = match &self.base {
            Some(base) if !base.shares_cores() => capacity::GPU_CLIENTS,
            Some(_) | None => 1,
        };
        let display = &self.display;
        let mut capacities = Vec::new();
        for load in loads {
            let found =
                capacity::by_closed_loop(&target, load, self.prompts, first, stage, |pace| {
                    display.say(&format!(
                        "calibrating: {}, {:>4} clients {:>8.1} output tokens/s",
                        load.tenant, pace.clients, pace.output_tokens_per_s
                    ));
                });
            let found = found.await;
            anyhow::ensure!(
                found.requests_per_s > 0.0,
                "the engine answered nothing while its capacity was measured"
            );
            capacities.push(found);
        }
        if let Some(server) = server {
            server.stop().await;
        }
        Ok(capacities)
    }

    /// Every arm in every round. The order turns, so that no arm is always the first.
    ///
    /// # Errors
    /// When a server can't be started, or the generator was too slow, again and again.
    pub async fn all_rounds(&self, arms: &[Arm]) -> anyhow::Result<Vec<Vec<Measured>>> {
        let mut all: Vec<Vec<Measured>> = arms.iter().map(|_| Vec::new()).collect();
        for round in 0..self.options.rounds {
            for turn in 0..arms.len() {
                let at = (turn + round as usize) % arms.len();
                all[at].push(self.try_run(arms[at], round).await?);
            }
        }
        self.display.finish();
        Ok(all)
    }

    /// A run in which the generator was too slow tells nothing and is made again, as often as
    /// [`TRIES`]. What decides is the generator's own lag and no result.
    async fn try_run(&self, arm: Arm, round: u32) -> anyhow::Result<Measured> {
        let mut discarded = Vec::new();
        loop {
            let error = match self.one_run(arm, round).await {
                Ok(measured) => {
                    return Ok(Measured {
                        discarded,
                        ..measured
                    });
                }
                Err(error) => error,
            };
            let is_saturated = matches!(
                error.downcast_ref::<RunError>(),
                Some(RunError::Saturated { .. })
            );
            if !is_saturated || discarded.len() + 1 >= TRIES {
                return Err(error);
            }
            self.display.say(&format!("{error:#}; once more"));
            discarded.push(format!("a run was discarded: {:#}", error.root_cause()));
        }
    }

    async fn one_run(&self, arm: Arm, round: u32) -> anyhow::Result<Measured> {
        let options = self.options;
        self.display.starting(arm, "starting the engine");
        let (server, config) = self.start(arm).await?;
        let target = self.target(server.as_ref())?;
        let seed = options.seed.wrapping_add(u64::from(round));
        let plans = self.plans(arm, seed)?;
        // Connections, caches and lazily built parts come before the first request that counts.
        probe(&target, self.prompts, 8).await.ok();
        let live = Rc::new(Live::default());
        let looks = RefCell::new(Vec::new());
        let begin = Instant::now();
        let is_quiet = |tenant| self.workload.is(tenant, Role::Quiet);
        let draw = async {
            let mut ticks = interval(DRAW);
            loop {
                ticks.tick().await;
                let done = options.duration * round + begin.elapsed().min(options.duration);
                self.display.update(arm, done, &live, is_quiet);
            }
        };
        let run = tokio::select! {
            run = load::run(&target, &plans, self.prompts, seed, self.limits(), &live) => run,
            () = watch::watch(&target.base, begin, &live, &looks) => unreachable!("watches for ever"),
            () = draw => unreachable!("draws for ever"),
        };
        self.display.ended(arm, round + 1, &live, is_quiet);
        if let Some(server) = server {
            server.stop().await;
        }
        let run = run.with_context(|| format!("arm {}, round {}", arm.name(), round + 1))?;
        Ok(Measured {
            run,
            looks: looks.into_inner(),
            config,
            discarded: Vec::new(),
        })
    }

    /// A server for this arm, and its configuration; none where one runs already.
    async fn start(&self, arm: Arm) -> anyhow::Result<(Option<Server>, String)> {
        let Some(base) = &self.base else {
            return Ok((None, String::new()));
        };
        let place = Place::find(self.options.keep_engine.as_deref())?;
        let config = base.config(self.instance(arm, &place), &self.workload)?;
        Ok((Some(place.start(&config).await?), config))
    }

    fn target(&self, server: Option<&Server>) -> anyhow::Result<Rc<Target>> {
        let options = self.options;
        let base = server.map(|server| &server.base);
        let base = base.or(options.base_url.as_ref()).context("no server")?;
        let model = self.base.as_ref().map(Base::model_name);
        let model = model.or(options.model.clone());
        Ok(Rc::new(Target {
            base: base.trim_end_matches('/').to_owned(),
            model: model.context("--base-url needs --model, the model's name there")?,
            api_key: options.api_key.clone(),
            dialect: self.dialect,
        }))
    }

    fn limits(&self) -> load::Limits {
        let lasting = self.options.duration;
        let shares_cores = self.base.as_ref().is_some_and(Base::shares_cores);
        load::Limits {
            lasting,
            // Those who wait at the end get a sixth of the run more; then they are unfinished.
            grace: (lasting / 6).clamp(Duration::from_secs(1), Duration::from_secs(10)),
            max_lag: match shares_cores {
                true => Duration::MAX,
                false => self.options.max_client_lag,
            },
        }
    }

    /// The plans of one round: the same in every arm, empty for those an arm leaves out.
    fn plans(&self, arm: Arm, seed: u64) -> anyhow::Result<Vec<(Load, Vec<Shot>)>> {
        let plan = |Party { role, load, .. }: &Party| {
            let shots = match arm.sends(*role) {
                true => load::plan(load, seed, self.options.duration)?,
                false => Vec::new(),
            };
            Ok((load.clone(), shots))
        };
        self.workload.parties.iter().map(plan).collect()
    }
}

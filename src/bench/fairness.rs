//! The experiment: capacity, then every arm in every round against the same plans.

use std::{cell::RefCell, path::PathBuf, rc::Rc, time::Duration};

use anyhow::Context as _;
use kvwarden_policy::steps::Preset;
use tokio::time::{Instant, interval};

use super::{
    arm::{Arm, Base, Instance},
    capacity::{self, Capacity},
    load::{
        self, Dialect, Live, Load, Prompts, Run, RunError, Shot, SplitMix, Target, Tenant, Trace,
    },
    progress::Display,
    report::{ArmReport, Report, Unavailable},
    server::{Place, Server},
    stats::Window,
    watch::{self, Look},
    workload::{HERO_RATE, Role, Shape, Workload},
};
use crate::config::Engine;

/// How often the display is redrawn.
const DRAW: Duration = Duration::from_millis(250);

/// What is measured, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The engine kvwarden starts.
    pub engine: Engine,
    /// What a simulated engine simulates.
    pub preset: &'static Preset,
    /// The weights of a real one; the model's name on a server that runs already.
    pub model: Option<String>,
    /// A configuration to take engine and model from.
    pub config: Option<PathBuf>,
    /// Noisy load as a multiple of capacity; none keeps the hero's published rate.
    pub flood: Option<f64>,
    /// What the flood is made of.
    pub shape: Shape,
    /// One noisy tenant, the others quiet.
    pub tenants: usize,
    /// How long each run sends.
    pub duration: Duration,
    /// Requests planned before it do not count, in any arm.
    pub warmup: Duration,
    /// Which arms.
    pub arms: Vec<Arm>,
    /// Seeds the plans; round `n` uses `seed + n` in every arm.
    pub seed: u64,
    /// How often all arms are run.
    pub rounds: u32,
    /// The noisy tenant's bucket in the bucket arm, requests per minute; none for Python KVWarden's
    /// 600, or half of what a small engine can do.
    pub bucket_rpm: Option<u32>,
    /// A server that runs already; its URL without `/v1`.
    pub base_url: Option<String>,
    /// Its key.
    pub api_key: Option<String>,
    /// Largest 99th percentile of the generator's own lag.
    pub max_lag: Duration,
}

/// Python KVWarden's bucket: 600 requests a minute.
const PYTHON_BUCKET: u32 = 600;

/// How often a run is made before the machine counts as too busy.
const TRIES: usize = 3;

/// Everything that is the same in all runs.
struct Bench<'a> {
    options: &'a Options,
    base: Option<Base>,
    workload: Workload,
    prompts: Prompts,
    dialect: Dialect,
    bucket_rpm: u32,
    display: Display,
}

/// What one run left.
struct Measured {
    run: Run,
    looks: Vec<Look>,
    config: String,
    /// Why earlier tries told nothing.
    discarded: Vec<String>,
}

// === impl Options ===

impl Options {
    /// Sizes of requests, as part of the original ones.
    fn scale(&self) -> f64 {
        match self.engine {
            Engine::Sim if self.preset.name == "tiny" => 0.125,
            Engine::Llamacpp | Engine::VllmCpu | Engine::SglangCpu => 0.125,
            Engine::Sim | Engine::Vllm | Engine::Sglang | Engine::Attach => 1.0,
        }
    }

    fn window(&self) -> Window {
        Window {
            from: self.warmup,
            until: self.duration,
        }
    }

    fn is_own(&self) -> bool {
        self.base_url.is_none()
    }

    fn limits(&self) -> load::Limits {
        load::Limits {
            lasting: self.duration,
            // Those who wait at the end get a sixth of the run more; then they are unfinished.
            grace: (self.duration / 6).clamp(Duration::from_secs(1), Duration::from_secs(10)),
            max_lag: self.max_lag,
            ..load::Limits::default()
        }
    }
}

/// Runs the whole experiment.
///
/// # Errors
/// When a server can't be started, or the load generator was too slow to tell anything.
pub async fn measure(options: &Options) -> anyhow::Result<Report> {
    let base = match (&options.config, options.is_own()) {
        (_, false) => None,
        (Some(path), true) => Some(Base::read(path)?),
        (None, true) => {
            let source = options.model.as_deref();
            Some(Base::of_engine(options.engine, options.preset, source)?)
        }
    };
    let arms = match options.is_own() {
        true => options.arms.clone(),
        false => vec![Arm::Solo, Arm::Server],
    };
    let scale = options.scale();
    let unit = options.shape.flood(1.0, scale);
    let mut bench = Bench {
        options,
        base,
        workload: Workload::new(unit.clone(), options.tenants, 1.0, scale),
        prompts: Prompts::default(),
        dialect: Dialect::IgnoreEos,
        bucket_rpm: options.bucket_rpm.unwrap_or(PYTHON_BUCKET),
        display: Display::new(&arms, options.rounds, options.duration),
    };
    let capacity = bench.calibrate(&unit).await?;
    let rate = match options.flood {
        Some(flood) => flood * capacity.requests_per_s,
        None => HERO_RATE,
    };
    let flood = options.shape.flood(rate, scale);
    bench.workload = Workload::new(flood, options.tenants, capacity.requests_per_s, scale);
    if options.bucket_rpm.is_none() && scale < 1.0 {
        // 600 a minute is more than such an engine can do; half of what it can is a fair bucket.
        bench.bucket_rpm = per_minute(capacity.requests_per_s / 2.0);
    }
    let (arms, unavailable) = bench.available(&arms)?;
    let runs = bench.all_rounds(&arms).await?;
    bench.display.finish();
    let mut report = Report::new(options, bench.workload, capacity, options.window());
    report.bucket_rpm = bench.bucket_rpm;
    report.unavailable = unavailable;
    for (arm, measured) in arms.iter().zip(runs) {
        report.add(arm_report(*arm, measured, &report, options.window()));
    }
    report.compare();
    Ok(report)
}

fn per_minute(per_second: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, and rates are positive"
    )]
    let rpm = (per_second * 60.0).round() as u32;
    rpm.max(1)
}

fn arm_report(arm: Arm, measured: Vec<Measured>, report: &Report, window: Window) -> ArmReport {
    let from = window.from.as_secs_f64();
    let until = window.until.as_secs_f64();
    let mut looks = Vec::new();
    let mut runs = Vec::new();
    let mut lag = load::Lag::default();
    let (mut config, mut discarded) = (String::new(), Vec::new());
    for one in measured {
        let inside = |look: &&Look| from <= look.at && look.at < until;
        looks.extend(one.looks.iter().filter(inside).copied());
        lag = lag.or_worse(one.run.lag);
        runs.push(one.run.samples);
        config = one.config;
        discarded.extend(one.discarded);
    }
    let mut summed = ArmReport::new(arm, runs, &looks, lag, config, report);
    summed.warnings.extend(discarded);
    summed
}

// === impl Bench ===

impl Bench<'_> {
    /// Which of the arms can run, and why the others can't.
    fn available(&self, arms: &[Arm]) -> anyhow::Result<(Vec<Arm>, Vec<Unavailable>)> {
        let mut can = Vec::new();
        let mut cannot = Vec::new();
        for arm in arms.iter().copied() {
            let place = Place::find()?;
            let why = self
                .base
                .as_ref()
                .and_then(|base| base.unavailable(self.instance(arm, &place), &self.workload));
            match why {
                None => can.push(arm),
                Some(why) => {
                    self.display.say(&format!("{:>8}: {why}", arm.name()));
                    cannot.push(Unavailable { arm, why });
                }
            }
        }
        anyhow::ensure!(
            !can.is_empty(),
            "no arm can run: {}",
            cannot.first().map_or("none given", |one| one.why.as_str())
        );
        Ok((can, cannot))
    }

    fn instance<'p>(&self, arm: Arm, place: &'p Place) -> Instance<'p> {
        Instance {
            arm,
            port: place.port,
            state_dir: place.state_dir(),
            bucket_rpm: self.bucket_rpm,
        }
    }

    /// A server for this arm, and its configuration; none where one runs already.
    async fn start(&self, arm: Arm) -> anyhow::Result<(Option<Server>, String)> {
        let Some(base) = &self.base else {
            return Ok((None, String::new()));
        };
        let place = Place::find()?;
        let config = base.config(self.instance(arm, &place), &self.workload);
        Ok((Some(place.start(&config).await?), config))
    }

    fn target(&self, server: Option<&Server>) -> anyhow::Result<Rc<Target>> {
        let base = server.map(|server| server.base.clone());
        let base = base.or(self.options.base_url.clone());
        let model = match &self.base {
            Some(base) => base.model_name(),
            None => {
                let named = self.options.model.clone();
                named.context("--base-url needs --model, the model's name there")?
            }
        };
        Ok(Rc::new(Target {
            base: base.context("no server")?.trim_end_matches('/').to_owned(),
            model,
            api_key: self.options.api_key.clone(),
            dialect: self.dialect,
        }))
    }

    /// What the engine can do, and how it counts prompts.
    async fn calibrate(&mut self, unit: &Load) -> anyhow::Result<Capacity> {
        let options = self.options;
        if options.engine == Engine::Sim && options.is_own() && options.config.is_none() {
            return Ok(capacity::by_step_model(options.preset, unit));
        }
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
        let stage = (options.duration / 6).clamp(Duration::from_secs(3), Duration::from_secs(10));
        let display = &self.display;
        let found = capacity::by_closed_loop(&target, unit, self.prompts, stage, |pace| {
            display.say(&format!(
                "calibrating: {:>4} clients {:>8.1} output tokens/s",
                pace.clients, pace.output_tokens_per_s
            ));
        });
        let found = found.await;
        if let Some(server) = server {
            server.stop().await;
        }
        anyhow::ensure!(
            found.requests_per_s > 0.0,
            "the engine answered nothing while its capacity was measured"
        );
        Ok(found)
    }

    /// Every arm in every round. The order turns, so that no arm is always the first.
    async fn all_rounds(&self, arms: &[Arm]) -> anyhow::Result<Vec<Vec<Measured>>> {
        let mut all: Vec<Vec<Measured>> = arms.iter().map(|_| Vec::new()).collect();
        for round in 0..self.options.rounds {
            for turn in 0..arms.len() {
                let at = (turn + round as usize) % arms.len();
                all[at].push(self.try_run(arms[at], round).await?);
            }
        }
        Ok(all)
    }

    /// A run in which the generator was too slow tells nothing and is made again, as often as
    /// [`TRIES`]. What decides is the generator's own lag and no result.
    async fn try_run(&self, arm: Arm, round: u32) -> anyhow::Result<Measured> {
        let mut discarded = Vec::new();
        loop {
            match self.one_run(arm, round).await {
                Ok(measured) => {
                    return Ok(Measured {
                        discarded,
                        ..measured
                    });
                }
                Err(error) => {
                    let saturated = error.downcast_ref::<RunError>();
                    let Some(RunError::Saturated { .. }) =
                        saturated.filter(|_| discarded.len() + 1 < TRIES)
                    else {
                        return Err(error);
                    };
                    self.display.say(&format!("{error:#}; once more"));
                    discarded.push(format!("a run was discarded: {:#}", error.root_cause()));
                }
            }
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
        let run = load::run(&target, &plans, self.prompts, seed, options.limits(), &live);
        let run = tokio::select! {
            run = run => run,
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

    /// The plans of one round: the same in every arm, empty for those an arm leaves out.
    fn plans(&self, arm: Arm, seed: u64) -> anyhow::Result<Vec<(Load, Vec<Shot>)>> {
        let plan = |(role, own): &(Role, Load)| {
            let shots = match arm.sends(*role) {
                true => load::plan(own, seed, self.options.duration)?,
                false => Vec::new(),
            };
            Ok((own.clone(), shots))
        };
        self.workload.loads.iter().map(plan).collect()
    }
}

/// Prompt tokens that the server counts for this many words.
async fn probe(target: &Rc<Target>, prompts: Prompts, words: u32) -> anyhow::Result<u64> {
    let tenant = Tenant::new(target.clone(), "quiet");
    let shot = Shot {
        at: Duration::ZERO,
        prompt_tokens: words,
        output_tokens: 2,
    };
    let mut rng = SplitMix::named(u64::from(words), "probe");
    let text = match prompts == Prompts::default() {
        true => Prompts::words(words, &mut rng),
        false => prompts.make(words, &mut rng),
    };
    let mut trace = Trace::default();
    let outcome = tenant.exchange(target.body(&text, &shot), &mut trace).await;
    let usage = trace.usage;
    usage
        .map(|usage| usage.prompt_tokens)
        .with_context(|| format!("a probe got no answer with usage: {outcome:?}"))
}

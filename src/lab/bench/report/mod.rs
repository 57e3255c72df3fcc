//! What a bench found, for people, programs and pictures.

mod files;
mod picture;
mod table;

use serde::Serialize;

use super::{
    arm::Arm,
    capacity::Capacity,
    load::Sample,
    options::Options,
    stats::{Seen, Service, Window, first_tokens, in_window, jain_over, shares},
    watch::{Look, Queues, hidden_cap},
    workload::{Role, Workload},
};

pub(super) use self::table::{quantile, refused, table};
pub use self::{files::write_all, table::print};

/// Over what fairness is judged (goal F3).
const JAIN_STEP: std::time::Duration = std::time::Duration::from_secs(10);

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `SIMULATED` where the engine was; nothing here is then a measurement of hardware.
    pub label: Option<&'static str>,
    /// When it was made.
    pub date: String,
    /// The version of kvwarden that ran it.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// The engine, and the preset of a simulated one.
    pub engine: String,
    /// The seed of the first round.
    pub seed: u64,
    /// How often every arm ran.
    pub rounds: u32,
    /// What counts of each run.
    pub window: Window,
    /// What the engine can do of each flood alone, in the order of the noisy tenants.
    pub capacities: Vec<Capacity>,
    /// Load of a flood over capacity.
    pub flood: f64,
    /// Each noisy tenant's bucket in the bucket arm, requests per minute.
    pub bucket_rpm: u32,
    /// Who sent what.
    pub workload: Workload,
    /// What came of it.
    pub arms: Vec<ArmReport>,
    /// Arms that were asked for and can't run here.
    pub unavailable: Vec<Unavailable>,
}

/// Where a bench ran.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor, by its own name.
    pub processor: String,
    /// Cores we may use.
    pub cores: usize,
    /// Load average over a minute when it ended: what else ran.
    pub load_average: String,
    /// Operating system and architecture.
    pub system: String,
}

/// One arm, all its rounds together.
#[derive(Debug, Serialize)]
pub struct ArmReport {
    /// Which.
    pub arm: Arm,
    /// What the quiet tenants got.
    pub quiet: Service,
    /// What the noisy tenants got.
    pub noisy: Service,
    /// Prompt and output tokens per second, all tenants.
    pub tokens_per_s: f64,
    /// That, over fifo's.
    pub throughput_kept: Option<f64>,
    /// Quiet TTFT p99 over solo's.
    pub quiet_p99_over_solo: Option<f64>,
    /// Jain's index over 10 s windows of service per weight, of tenants that always want more; none
    /// for fewer than two (goal F3: 0.99).
    pub jain: Option<f64>,
    /// Their shares of the service over their weights' parts, in order: 1 is due.
    pub shares: Vec<f64>,
    /// What queued where.
    pub queues: Queues,
    /// The load generator's own lag, in milliseconds.
    pub client_lag_p99_ms: f64,
    /// What a reader must know.
    pub warnings: Vec<String>,
    /// The server's configuration.
    pub config: String,
    /// Every quiet time to first token.
    #[serde(skip)]
    pub quiet_ttfts: Vec<Seen>,
    /// Every request, by round.
    #[serde(skip)]
    pub runs: Vec<Vec<Sample>>,
}

/// An arm that can't run here.
#[derive(Debug, Serialize)]
pub struct Unavailable {
    /// Which.
    pub arm: Arm,
    /// Why.
    pub why: String,
}

// === impl Report ===

impl Report {
    /// A report without arms.
    #[must_use]
    pub fn new(options: &Options, workload: Workload, capacities: Vec<Capacity>) -> Self {
        let is_own = options.base_url.is_none() && options.config.is_none();
        let is_simulated = is_own && options.engine == kvwarden_actors::engine::EngineKind::Sim;
        let first = workload.of(Role::Noisy).zip(&capacities).next();
        let flood = first.map_or(0.0, |((_, party), one)| {
            party.load.rate / one.requests_per_s
        });
        let engine = match (&options.base_url, &options.config) {
            (Some(url), _) => format!("server at {url}"),
            (None, Some(path)) => format!("as in {}", path.display()),
            (None, None) if is_simulated => format!("sim, preset {}", options.preset.name),
            (None, None) => options.engine.name().to_owned(),
        };
        Self {
            label: is_simulated.then_some("SIMULATED"),
            date: files::now(),
            version: env!("CARGO_PKG_VERSION"),
            machine: files::machine(),
            engine,
            seed: options.seed,
            rounds: options.rounds,
            window: options.window(),
            flood,
            capacities,
            bucket_rpm: 0,
            workload,
            arms: Vec::new(),
            unavailable: Vec::new(),
        }
    }

    /// Takes in an arm.
    pub fn add(&mut self, arm: ArmReport) {
        let mut samples = arm.runs.iter().flatten();
        if samples.any(|sample| sample.is_simulated) {
            self.label = Some("SIMULATED");
        }
        self.arms.push(arm);
    }

    /// The report of one arm.
    #[must_use]
    pub fn arm(&self, arm: Arm) -> Option<&ArmReport> {
        self.arms.iter().find(|one| one.arm == arm)
    }

    /// Sets every arm beside solo and fifo.
    pub fn compare(&mut self) {
        let solo = self.arm(Arm::Solo).and_then(|arm| arm.quiet.ttft.p99.ms);
        let fifo = self.arm(Arm::Fifo).map(|arm| arm.tokens_per_s);
        for arm in &mut self.arms {
            let ratio = |of: Option<f64>, to: Option<f64>| Some(of? / to.filter(|to| *to > 0.0)?);
            arm.quiet_p99_over_solo = ratio(arm.quiet.ttft.p99.ms, solo);
            let is_loaded = arm.arm != Arm::Solo;
            arm.throughput_kept = ratio(Some(arm.tokens_per_s), fifo).filter(|_| is_loaded);
        }
    }

    /// Everything a reader must know before the figures.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let own = self.arms.iter().flat_map(|arm| {
            let name = arm.arm.name();
            arm.warnings
                .iter()
                .map(move |text| format!("{name}: {text}"))
        });
        let missing = self
            .unavailable
            .iter()
            .map(|one| format!("{}: {}", one.arm.name(), one.why));
        own.chain(missing).collect()
    }
}

// === impl ArmReport ===

impl ArmReport {
    /// Sums up an arm.
    #[must_use]
    pub fn new(arm: Arm, runs: Vec<Vec<Sample>>, looks: &[Look], report: &Report) -> Self {
        let by_run: Vec<&[Sample]> = runs.iter().map(Vec::as_slice).collect();
        let is = |role| move |tenant| report.workload.is(tenant, role);
        let window = report.window;
        let quiet = Service::of(&by_run, window, is(Role::Quiet));
        let noisy = Service::of(&by_run, window, is(Role::Noisy));
        let greedy: Vec<(usize, u32)> = report
            .workload
            .of(Role::Noisy)
            .map(|(tenant, party)| (tenant, party.weight))
            .collect();
        let jains = by_run
            .iter()
            .filter_map(|run| jain_over(run, window, JAIN_STEP, &greedy))
            .collect::<Vec<_>>();
        let quiet_ttfts = first_tokens(in_window(&by_run, window, is(Role::Quiet))).collect();
        let mut warnings: Vec<String> = hidden_cap(looks).into_iter().collect();
        if quiet.sent < 100 {
            let count = quiet.sent;
            warnings.push(format!(
                "p99 of {count} quiet requests is close to their maximum"
            ));
        }
        for (tenant, _) in greedy.iter().filter(|_| !jains.is_empty()) {
            let own = Service::of(&by_run, window, |other| other == *tenant);
            if own.unfinished == 0 {
                let name = &report.workload.parties[*tenant].load.tenant;
                warnings.push(format!(
                    "{name} kept no backlog, so its share is what it asked for"
                ));
            }
        }
        let failures = quiet.failed.iter().chain(&noisy.failed);
        warnings.extend(failures.map(|(why, count)| format!("{count} requests failed: {why}")));
        let shares = match jains.is_empty() {
            true => Vec::new(),
            false => shares(&by_run, window, &greedy),
        };
        Self {
            arm,
            tokens_per_s: quiet.tokens_per_s() + noisy.tokens_per_s(),
            quiet,
            noisy,
            throughput_kept: None,
            quiet_p99_over_solo: None,
            jain: (!jains.is_empty()).then(|| jains.iter().sum::<f64>() / jains.len() as f64),
            shares,
            queues: Queues::of(looks),
            client_lag_p99_ms: 0.0,
            warnings,
            config: String::new(),
            quiet_ttfts,
            runs,
        }
    }
}

//! The experiment: capacity, then every arm in every round against the same plans.

use super::{
    arm::{Arm, Base},
    capacity::{self, Capacity},
    load::{Lag, Load},
    model,
    options::Options,
    progress::Display,
    report::{ArmReport, Report, Unavailable},
    runner::{Measured, Runner},
    server::Place,
    watch::Look,
    workload::{HERO_RATE, Workload},
};
use kvwarden_actors::engine::EngineKind;

/// Python KVWarden's bucket: 600 requests a minute.
const PYTHON_BUCKET: u32 = 600;

/// Runs the whole experiment.
///
/// # Errors
/// When a server can't be started, or the load generator was too slow to tell anything.
pub async fn measure(options: &Options) -> anyhow::Result<Report> {
    let base = base(options)?;
    let asked = match base {
        Some(_) => options.arms.clone(),
        None => vec![Arm::Solo, Arm::Server],
    };
    let own_scale = base.as_ref().map_or(1.0, Base::scale);
    let scale = options.scale.unwrap_or(own_scale);
    let units = options.shape.floods(options.noisy(), scale);
    let mut runner = Runner::new(
        options,
        base,
        workload(options, units.clone(), f64::MAX, scale),
        options.bucket_rpm.unwrap_or(PYTHON_BUCKET),
        Display::new(&asked, options.rounds, options.duration),
    );
    let capacities = calibrate(options, &mut runner, &units).await?;
    let (floods, tokens_per_s) = at_rates(options, units, &capacities);
    runner.workload = workload(options, floods, tokens_per_s, scale);
    if options.bucket_rpm.is_none() && scale < 1.0 {
        // 600 a minute is more than such an engine can do; half of what it can is a fair bucket.
        let all: f64 = capacities.iter().map(|one| one.requests_per_s).sum();
        let each = all / capacities.len() as f64;
        runner.bucket_rpm = per_minute(each / 2.0 / options.noisy() as f64);
    }
    let (arms, unavailable) = available(&runner, &asked)?;
    let runs = runner.all_rounds(&arms).await?;
    let mut report = Report::new(options, runner.workload, capacities);
    report.bucket_rpm = runner.bucket_rpm;
    report.unavailable = unavailable;
    for (arm, measured) in arms.iter().zip(runs) {
        report.add(arm_report(*arm, measured, &report, options));
    }
    report.compare();
    Ok(report)
}

/// What the servers' configurations are made from; none where one runs already.
fn base(options: &Options) -> anyhow::Result<Option<Base>> {
    if options.base_url.is_some() {
        return Ok(None);
    }
    if let Some(path) = &options.config {
        return Base::read(path).map(Some);
    }
    let source = match &options.model {
        Some(source) => source.clone(),
        None => model::default_source(options.engine)?,
    };
    Base::of_engine(options.engine, options.preset, &source).map(Some)
}

fn workload(options: &Options, floods: Vec<Load>, capacity: f64, scale: f64) -> Workload {
    Workload::new(floods, &options.weights, options.quiet(), capacity, scale)
}

/// The floods as they are sent, and what the engine can do in output tokens per second: of several
/// kinds the least.
fn at_rates(options: &Options, units: Vec<Load>, capacities: &[Capacity]) -> (Vec<Load>, f64) {
    let tokens = units.iter().zip(capacities);
    let tokens = tokens.map(|(unit, one)| one.requests_per_s * unit.output.mean());
    let least = tokens.fold(f64::MAX, f64::min);
    let at_rate = |(unit, one): (Load, &Capacity)| {
        let times = options.flood.map(|times| times * one.requests_per_s);
        Load {
            rate: times.unwrap_or(HERO_RATE),
            ..unit
        }
    };
    let floods = units.into_iter().zip(capacities).map(at_rate);
    (floods.collect(), least)
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

/// What the engine can do of each flood alone.
async fn calibrate(
    options: &Options,
    runner: &mut Runner<'_>,
    units: &[Load],
) -> anyhow::Result<Vec<Capacity>> {
    let is_own_sim = options.engine == EngineKind::Sim && options.base_url.is_none();
    if is_own_sim && options.config.is_none() {
        let of = |unit| capacity::by_step_model(options.preset, unit);
        return Ok(units.iter().map(of).collect());
    }
    runner.calibrate(units).await
}

/// Which of the arms can run, and why the others can't.
fn available(runner: &Runner<'_>, asked: &[Arm]) -> anyhow::Result<(Vec<Arm>, Vec<Unavailable>)> {
    let mut can = Vec::new();
    let mut cannot = Vec::new();
    for arm in asked.iter().copied() {
        let place = Place::find(None)?;
        let problem = match &runner.base {
            Some(base) => {
                base.problem(&base.config(runner.instance(arm, &place), &runner.workload)?)
            }
            None => None,
        };
        match problem {
            None => can.push(arm),
            Some(why) => {
                runner.display.say(&format!("{:>8}: {why}", arm.name()));
                cannot.push(Unavailable { arm, why });
            }
        }
    }
    let why = cannot.first().map_or("none given", |one| one.why.as_str());
    anyhow::ensure!(!can.is_empty(), "no arm can run: {why}");
    Ok((can, cannot))
}

/// Pools the rounds of an arm.
fn arm_report(arm: Arm, measured: Vec<Measured>, report: &Report, options: &Options) -> ArmReport {
    let window = options.window();
    let (from, until) = (window.from.as_secs_f64(), window.until.as_secs_f64());
    let mut looks = Vec::new();
    let mut runs = Vec::new();
    let mut lag = Lag::default();
    let (mut config, mut discarded) = (String::new(), Vec::new());
    for one in measured {
        let in_window = |look: &Look| from <= look.at && look.at < until;
        looks.extend(one.looks.into_iter().filter(in_window));
        lag = lag.or_worse(one.run.lag);
        runs.push(one.run.samples);
        config = one.config;
        discarded.extend(one.discarded);
    }
    let mut whole = ArmReport::new(arm, runs, &looks, report);
    whole.config = config;
    whole.client_lag_p99_ms = lag.p99.as_secs_f64() * 1e3;
    if lag.p99 > options.max_client_lag {
        whole.warnings.push(format!(
            "the load generator, on the engine's own cores, was up to {:.0} ms late (p99; the bar \
             is {} ms): latencies include that",
            whole.client_lag_p99_ms,
            options.max_client_lag.as_millis()
        ));
    }
    whole.warnings.extend(discarded);
    whole
}

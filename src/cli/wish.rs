//! `kvwarden models load|unload|park|sleep|deep-sleep|pin|unpin`: asks for it and, unless it is told
//! not to wait, tells what becomes of it.

use std::{
    collections::HashMap,
    io::{self, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::{Args, Subcommand};
use kvwarden_policy::{
    lifecycle::{SleepLevel, State},
    residency::Until,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use tokio::time::Instant;

use super::{
    reply::{Engine, Gpu, Model, Status},
    status::{BROKEN, StatusArgs, ask},
};
use crate::terminal::{self, CARE, GOOD};

/// The model came to rest elsewhere.
const ELSEWHERE: u8 = 4;

/// How often the server is asked what became of it.
const LOOK: Duration = Duration::from_millis(200);

/// What rests this long elsewhere stays there. The server repeats a wish ten times a second.
const SETTLED: Duration = Duration::from_secs(2);

/// Of a model's name, what may stand in a path as it is.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');

/// What is done to a model.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Verb {
    /// Start or wake it, as soon as there is room
    Load(WishArgs),
    /// Stop its engines once their requests have ended
    Unload(WishArgs),
    /// Drop its KV cache and keep its weights, if the engine can
    Park(WishArgs),
    /// Move its weights to the host's memory, if the engine can (vLLM's level 1)
    Sleep(WishArgs),
    /// Drop its weights and keep its engine, if the engine can (vLLM's level 2)
    DeepSleep(WishArgs),
    /// Keep it where it is, whoever else needs the memory
    Pin(WishArgs),
    /// Let it make room for others again
    Unpin(WishArgs),
}

/// Which model, and how long to watch.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit code: 0 once it is done, 1 where the server cannot be asked, 3 where the model is broken, 4 where it came to rest elsewhere."
)]
pub(super) struct WishArgs {
    /// The model, by any of its names
    model: String,
    /// Only ask for it; `kvwarden status` tells what becomes of it
    #[arg(long)]
    no_wait: bool,
}

/// Where a wish leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Serve,
    Rest(SleepLevel),
}

/// How far a wish got. In the order of what matters of several engines of which one has to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Fulfilled,
    OnItsWay,
    Elsewhere,
    Broken,
}

/// Asks, and follows.
///
/// # Errors
/// When the server can't be asked.
pub(super) fn run(verb: &Verb, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (name, wish, goal) = verb.parts();
    let path = utf8_percent_encode(&wish.model, IN_PATH);
    let asked = args
        .target
        .post_json(&format!("/kvwarden/models/{path}/{name}"))?;
    let model = asked["id"].as_str().unwrap_or(&wish.model).to_owned();
    let mut teller = Teller::new(args.json);
    match goal.filter(|_| !wish.no_wait) {
        Some(goal) => follow(&model, goal, args, &mut teller),
        None => {
            teller.end(&model, "asked", &format!("{name} is asked for"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn follow(
    model: &str,
    goal: Goal,
    args: &StatusArgs,
    teller: &mut Teller,
) -> anyhow::Result<ExitCode> {
    let mut elsewhere_since = None;
    loop {
        let (_, status) = ask(args)?;
        let Some(found) = status.models.iter().find(|other| other.id == model) else {
            anyhow::bail!("the server does not know {model} any more");
        };
        teller.changes(found, &status.gpu)?;
        match goal.verdict(found, &status.gpu) {
            Verdict::Fulfilled => {
                teller.end(model, "fulfilled", &format!("{GOOD}done{GOOD:#}"))?;
                return Ok(ExitCode::SUCCESS);
            }
            Verdict::Broken => {
                let why = found
                    .record
                    .note
                    .as_deref()
                    .unwrap_or("see kvwarden status");
                teller.end(model, "broken", why)?;
                return Ok(ExitCode::from(BROKEN));
            }
            Verdict::OnItsWay => elsewhere_since = None,
            Verdict::Elsewhere => {
                let since = *elsewhere_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SETTLED {
                    let why = goal.missed(found, &status);
                    teller.end(model, "elsewhere", &format!("{CARE}{why}{CARE:#}"))?;
                    return Ok(ExitCode::from(ELSEWHERE));
                }
            }
        }
        thread::sleep(LOOK);
    }
}

// === impl Verb ===

impl Verb {
    /// Its route, whom it is about, and where it leads if that takes any time.
    fn parts(&self) -> (&'static str, &WishArgs, Option<Goal>) {
        match self {
            Self::Load(wish) => ("load", wish, Some(Goal::Serve)),
            Self::Unload(wish) => ("unload", wish, Some(Goal::Rest(SleepLevel::Cold))),
            Self::Park(wish) => ("park", wish, Some(Goal::Rest(SleepLevel::Parked))),
            Self::Sleep(wish) => ("sleep", wish, Some(Goal::Rest(SleepLevel::L1))),
            Self::DeepSleep(wish) => ("deep-sleep", wish, Some(Goal::Rest(SleepLevel::L2))),
            Self::Pin(wish) => ("pin", wish, None),
            Self::Unpin(wish) => ("unpin", wish, None),
        }
    }
}

// === impl Goal ===

impl Goal {
    /// A model serves if one of its engines does; it rests if all do.
    fn verdict(self, model: &Model, gpu: &Gpu) -> Verdict {
        let each = model.engines.iter().map(|engine| {
            let resident = gpu.resident(&engine.engine);
            self.of_engine(engine.state, resident.and_then(|resident| resident.until))
        });
        let verdict = match self {
            Self::Serve => each.min(),
            Self::Rest(_) => each.max_by_key(|verdict| (*verdict == Verdict::OnItsWay, *verdict)),
        };
        verdict.unwrap_or(Verdict::OnItsWay)
    }

    fn of_engine(self, state: State, until: Option<Until>) -> Verdict {
        match (self, state) {
            (_, State::Broken { .. }) => Verdict::Broken,
            (Self::Serve, State::Ready) => Verdict::Fulfilled,
            (Self::Serve, State::Waiting { .. })
                if matches!(until, Some(Until::Room | Until::Device)) =>
            {
                Verdict::Elsewhere
            }
            (Self::Serve, State::Cold | State::Asleep { .. }) => Verdict::Elsewhere,
            (Self::Serve, State::Waiting { .. }) => Verdict::OnItsWay,
            (
                Self::Rest(to),
                State::Ready | State::Cold | State::Asleep { .. } | State::Waiting { .. },
            ) if state.level() == Some(to) => Verdict::Fulfilled,
            (
                Self::Rest(_),
                State::Ready | State::Cold | State::Asleep { .. } | State::Waiting { .. },
            ) => Verdict::Elsewhere,
            (
                _,
                State::Fetching
                | State::Adopting
                | State::Starting { .. }
                | State::Draining { .. }
                | State::Demoting { .. }
                | State::Waking { .. }
                | State::Verifying { .. }
                | State::Stopping
                | State::Backoff { .. },
            ) => Verdict::OnItsWay,
        }
    }

    /// What it did instead.
    fn missed(self, model: &Model, status: &Status) -> String {
        let until = |engine: &Engine| status.gpu.resident(&engine.engine)?.until;
        let is_elsewhere =
            |engine: &&Engine| self.of_engine(engine.state, until(engine)) == Verdict::Elsewhere;
        let Some(engine) = model.engines.iter().find(is_elsewhere) else {
            return "it came to rest elsewhere".to_owned();
        };
        let state = engine.state;
        match (self, state) {
            (Self::Serve, State::Waiting { .. }) if until(engine) == Some(Until::Device) => {
                "this machine has not enough of the GPUs that it may run on (`gpus`, \
                 `tensor_parallel`)"
                    .to_owned()
            }
            (Self::Serve, State::Waiting { .. }) => {
                "there is no room for it, even without all that may go; it goes on waiting"
                    .to_owned()
            }
            (Self::Rest(to), _) if !engine.levels.contains(to) => {
                let known = engine.levels.iter().map(|level| level.to_string());
                let known = known.collect::<Vec<_>>().join(", ");
                format!("it is {state}: its engine can be {known}, and not {to}")
            }
            _ => format!("it is {state}: somebody else wanted something else of it"),
        }
    }
}

/// Tells every change once, as a line of text or of JSON.
struct Teller {
    begun: Instant,
    is_json: bool,
    told: HashMap<String, (State, Option<Until>)>,
}

// === impl Teller ===

impl Teller {
    fn new(is_json: bool) -> Self {
        Self {
            begun: Instant::now(),
            is_json,
            told: HashMap::new(),
        }
    }

    fn changes(&mut self, model: &Model, gpu: &Gpu) -> io::Result<()> {
        for engine in &model.engines {
            let resident = gpu.resident(&engine.engine);
            let until = resident.and_then(|resident| resident.until);
            let now = (engine.state, until);
            if self.told.insert(engine.engine.clone(), now) != Some(now) {
                self.change(&engine.engine, engine.state, until)?;
            }
        }
        Ok(())
    }

    fn change(&self, engine: &str, state: State, until: Option<Until>) -> io::Result<()> {
        if self.is_json {
            let mut line = json!({ "elapsed_s": self.elapsed(), "engine": engine });
            line["until"] = json!(until);
            if let (Some(line), Ok(serde_json::Value::Object(state))) =
                (line.as_object_mut(), serde_json::to_value(state))
            {
                line.extend(state);
            }
            return self.say(&line.to_string());
        }
        let until = until.map(terminal::waits_for).unwrap_or_default();
        let line = format!("{} {engine}: {state} {until}", self.clock());
        self.say(line.trim_end())
    }

    fn end(&self, model: &str, outcome: &str, text: &str) -> io::Result<()> {
        let line = json!({ "elapsed_s": self.elapsed(), "model": model, "outcome": outcome });
        match self.is_json {
            true => self.say(&line.to_string()),
            false => self.say(&format!("{} {model}: {text}", self.clock())),
        }
    }

    fn elapsed(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn clock(&self) -> String {
        format!("{:>10}", terminal::seconds(self.elapsed()))
    }

    fn say(&self, line: &str) -> io::Result<()> {
        writeln!(anstream::stdout().lock(), "{line}")
    }
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::failure::FailureClass;

    use super::*;

    #[test]
    fn names_with_slashes_and_signs_stay_one_path() {
        let path = |name| utf8_percent_encode(name, IN_PATH).to_string();
        assert_eq!(path("org/m-1.5_b"), "org/m-1.5_b");
        assert_eq!(path("a#b:c?d%e"), "a%23b%3Ac%3Fd%25e");
    }

    #[test]
    fn wish_is_fulfilled_at_its_own_level_and_missed_at_others() {
        let asleep = |level| State::Asleep { level };
        let verdict = |goal: Goal, state| goal.of_engine(state, None);
        let park = Goal::Rest(SleepLevel::Parked);
        assert_eq!(
            verdict(park, asleep(SleepLevel::Parked)),
            Verdict::Fulfilled
        );
        assert_eq!(verdict(park, State::Cold), Verdict::Elsewhere);
        assert_eq!(verdict(park, State::Ready), Verdict::Elsewhere);
        let draining = State::Draining {
            to: SleepLevel::Parked,
        };
        assert_eq!(verdict(park, draining), Verdict::OnItsWay);
        let unload = Goal::Rest(SleepLevel::Cold);
        let wanted_again = State::Waiting {
            from: SleepLevel::Cold,
        };
        assert_eq!(verdict(unload, wanted_again), Verdict::Fulfilled);
        assert_eq!(verdict(Goal::Serve, wanted_again), Verdict::OnItsWay);
        for until in [Until::Room, Until::Device] {
            let vain = Goal::Serve.of_engine(wanted_again, Some(until));
            assert_eq!(vain, Verdict::Elsewhere);
        }
        let class = FailureClass::Stopped;
        assert_eq!(verdict(unload, State::Broken { class }), Verdict::Broken);
    }
}

//! What requests cost, in instructions. Valgrind counts them, so the number is the same on a machine
//! that is busy with other things, and a change of a few percent is seen. Time in the kernel is not in
//! it.
//!
//! A path is run twice, with few requests and with many, and the difference divided by what the second
//! run did more: start and end cancel out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use crate::{
    answer::Plan,
    backend::{Backend, Pace},
    bench::until_ready,
    engine,
    load::{Call, repeat},
    peer::{MAX_CONCURRENT, Peer, Setting, free_port},
    process::Process,
    trial::Question,
};

/// Where the ceilings are, for people to change.
const CEILINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ceilings.json");
/// The room that a ceiling leaves above what was counted when it was set, in percent.
const ROOM: u64 = 8;
/// Requests that both runs of a path begin with, so that what is made once is made.
const FIRST: u32 = 100;
/// Requests of the longer run.
const ALL: u32 = FIRST + 1000;
/// An engine that is debugged gets more time to answer than to end.
const END: Duration = Duration::from_secs(60);

/// The key that requests are sent with.
const KEY: &str = "k";
/// Whose it is: its hash.
const TENANTS: &str = "[tenants.somebody]
api_keys = [\"sha256:8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a\"]
";

/// A way through the program.
struct Way {
    key: &'static str,
    what: &'static str,
    peer: Peer,
    question: Question,
    is_refused: bool,
    /// Requests and the tokens of each answer, in the shorter and in the longer run.
    runs: [(u32, u32); 2],
}

const CHAT: Question = Question::Chat {
    is_streamed: false,
    prompt: 700,
};

const fn way(key: &'static str, what: &'static str, question: Question) -> Way {
    Way {
        key,
        what,
        peer: Peer::Kvwarden,
        question,
        is_refused: false,
        runs: [(FIRST, 64), (ALL, 64)],
    }
}

const WAYS: [Way; 5] = [
    way("whole", "a chat of 64 tokens, passed on whole", CHAT),
    Way {
        peer: Peer::KvwardenAssembled,
        ..way(
            "assembled",
            "a chat of 64 tokens, put together from a stream",
            CHAT,
        )
    },
    Way {
        question: Question::Chat {
            is_streamed: true,
            prompt: 700,
        },
        runs: [(FIRST, 64), (FIRST, 128)],
        ..way("chunk", "one chunk of a stream", CHAT)
    },
    Way {
        is_refused: true,
        ..way("refused", "a request refused for its key", CHAT)
    },
    way(
        "embeddings",
        "a request for embeddings",
        Question::Embeddings,
    ),
];

impl Way {
    /// By how much the longer run is longer: in requests, or in tokens where it has as many of them.
    fn more(&self) -> u64 {
        let [(few, short), (many, long)] = self
            .runs
            .map(|(requests, tokens)| (u64::from(requests), u64::from(tokens)));
        match many - few {
            0 => many * (long - short),
            more => more,
        }
    }
}

/// Counts all ways and tells which of them is above its ceiling; `is_blessing` sets the ceilings anew.
pub(crate) async fn run(kvwarden: &Path, is_blessing: bool) -> anyhow::Result<()> {
    let ceilings: Map<String, Value> = serde_json::from_str(&fs::read_to_string(CEILINGS)?)?;
    let mut counter = Counter::new(kvwarden).await?;
    let (mut blessed, mut too_dear) = (Map::new(), Vec::new());
    for way in &WAYS {
        let count = counter
            .count(way)
            .await
            .with_context(|| format!("on the way of {}", way.what))?;
        let ceiling = ceilings.get(way.key).and_then(Value::as_u64).unwrap_or(0);
        anstream::println!(
            "{count:>9} instructions, ceiling {ceiling:>9}: {}",
            way.what
        );
        blessed.insert(
            way.key.to_owned(),
            rounded(count * (100 + ROOM) / 100).into(),
        );
        if count > ceiling {
            too_dear.push(format!(
                "{} takes {count} instructions, its ceiling is {ceiling}",
                way.what
            ));
        }
    }
    if is_blessing {
        fs::write(
            CEILINGS,
            serde_json::to_string_pretty(&json!(blessed))? + "\n",
        )?;
    } else if !too_dear.is_empty() {
        bail!(
            "{}.\nWhere that is worth it: cargo build --profile gate -p kvwarden -p kvwarden-peers && target/gate/kvwarden-peers gate --kvwarden target/gate/kvwarden --bless",
            too_dear.join("; ")
        );
    }
    Ok(())
}

/// To two digits more than the room has: the file is for people.
fn rounded(count: u64) -> u64 {
    let unit = 10_u64.pow(count.max(1).ilog10().saturating_sub(2));
    count.div_ceil(unit) * unit
}

struct Counter {
    backend: Rc<Backend>,
    port: u16,
    engines: u16,
    kvwarden: PathBuf,
    dir: tempfile::TempDir,
}

impl Counter {
    async fn new(kvwarden: &Path) -> anyhow::Result<Self> {
        let (backend, port) = Backend::start().await?;
        Ok(Self {
            engines: engine::await_engines(Rc::clone(&backend)).await?,
            backend,
            port,
            kvwarden: kvwarden.to_owned(),
            dir: tempfile::tempdir()?,
        })
    }

    async fn count(&mut self, way: &Way) -> anyhow::Result<u64> {
        let [short, long] = way.runs;
        let less = self.instructions(way, short).await?;
        let more = self.instructions(way, long).await?;
        Ok(more.saturating_sub(less) / way.more())
    }

    /// What one run takes, from start to end.
    async fn instructions(&self, way: &Way, (requests, tokens): (u32, u32)) -> anyhow::Result<u64> {
        let dir = tempfile::Builder::new().tempdir_in(self.dir.path())?.keep();
        let port = free_port()?;
        let setting = Setting {
            dir: &dir,
            port,
            backend: self.port,
            engines: self.engines,
            models: 1,
            max_concurrent: MAX_CONCURRENT,
            tenants: TENANTS,
            kvwarden: &self.kvwarden,
        };
        self.backend.pace.set(Pace::AtOnce);
        self.backend.plan.set(Plan {
            tokens,
            calls_tools: false,
        });
        let call = Call::new(way.peer, port, self.port, way.question).with_key(way.question, KEY);
        let mut command = way.peer.command(&setting)?.context("nothing to start")?;
        if way.peer == Peer::KvwardenAssembled {
            // Under valgrind /proc/self/exe is valgrind, so it can adopt an engine but not start one.
            let mut starter = Process::start_anywhere(&mut command)?;
            until_ready(&call, &mut starter, &dir).await?;
            starter.kill_alone()?;
        }
        let mut process = Process::start_anywhere(&mut counted(&command, &dir)?)?;
        until_ready(&call, &mut process, &dir).await?;
        let call = match way.is_refused {
            true => call.with_key(way.question, "another").refused(),
            false => call,
        };
        // Only a client of a stream hears each of them.
        if let Question::Chat {
            is_streamed: true, ..
        } = way.question
        {
            self.backend.pace.set(Pace::Heard);
        }
        repeat(&call, requests, |events| {
            self.backend.heard.set(self.backend.heard.get() + events);
            self.backend.hears.notify_one();
        })
        .await?;
        process.end(END).await;
        total(&dir.join(format!("counts.{}", process.id())))
    }
}

/// The same command, counted.
fn counted(command: &Command, dir: &Path) -> anyhow::Result<Command> {
    let log = fs::File::create(dir.join("log"))?;
    let mut counted = Command::new("valgrind");
    counted.args(["--tool=cachegrind", "--cache-sim=no", "--branch-sim=no"]);
    counted.arg(format!("--cachegrind-out-file={}/counts.%p", dir.display()));
    counted.arg(command.get_program()).args(command.get_args());
    counted.stdout(log.try_clone()?).stderr(log);
    Ok(counted)
}

/// The last line of what cachegrind writes: all instructions.
fn total(file: &Path) -> anyhow::Result<u64> {
    let counts = fs::read_to_string(file).context("the program did not end well")?;
    let summary = counts
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("summary:"));
    Ok(summary.context("no summary")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_round() {
        assert_eq!(rounded(123_456), 124_000);
        assert_eq!(rounded(987), 987);
        assert_eq!(rounded(0), 0);
    }

    #[test]
    fn each_way_has_a_ceiling() {
        let ceilings: Map<String, Value> =
            serde_json::from_str(&fs::read_to_string(CEILINGS).unwrap()).unwrap();
        assert!(WAYS.iter().all(|way| ceilings.contains_key(way.key)));
        assert_eq!(ceilings.len(), WAYS.len());
    }
}

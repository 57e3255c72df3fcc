//! The event log: one JSON object a line, in the order in which things happen. The lines are rows of
//! the journal's database, and `kvwarden replay --export` makes a file of them.
//!
//! ```text
//! {"kvwarden_log":1,"devices":[{"id":"GPU-1","bytes":85899345920}],"models":[{"id":"a",..}]}
//! {"t":1764000000.25,"model":"a","tenant":"quiet","prompt_tokens":120,"output_tokens":300}
//! ```
//!
//! A header comes first and after every change; the last one counts for the whole log, together with
//! the models of earlier ones that are gone since. Lines about requests that were refused and about
//! engines are for people and are not replayed:
//!
//! ```text
//! {"t":1764000001.5,"model":"a","tenant":"loud","refused":"queue_full"}
//! {"t":1764000002.0,"engine":"a","event":"demote","to":"cold","why":{"outweighed":"b"}}
//! {"t":1764000002.1,"engine":"a","event":"became","state":"draining","to":"cold"}
//! ```
//!
//! A request's
//! line is written when it ends, so lines are ordered by end and not by arrival. Fields that are not
//! known are skipped, so that a newer server's log can be read; a changed meaning changes
//! [`VERSION`]. The last line of a file may be cut off.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, Write},
    time::Duration,
};

use kvwarden_policy::{
    lifecycle::{SleepLevel, State},
    residency::{BySleepLevel, Cost, Settings},
    simulation::swapping::{Request, Spec, World},
};
use serde::{Deserialize, Serialize};

/// The format's version.
pub const VERSION: u32 = 1;

/// Seconds that an engine works on a token, where nothing better is known: what an 8B model takes
/// for output among a few others, and a hundredth of that for a prompt's.
const SECONDS_PER_TOKEN: f64 = 0.02;
const SECONDS_PER_PROMPT_TOKEN: f64 = SECONDS_PER_TOKEN / 100.0;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// What there is.
    Header(Header),
    /// One request.
    Arrival(Arrival),
    /// A request that got nothing.
    Refused(Refused),
    /// Something about an engine.
    Event(Event),
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    #[serde(rename = "kvwarden_log")]
    pub version: u32,
    /// The devices.
    pub devices: Vec<LogDevice>,
    /// The models.
    pub models: Vec<LogModel>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogDevice {
    /// UUID.
    pub id: String,
    /// Bytes that models may have.
    pub bytes: u64,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogModel {
    /// Canonical name.
    pub id: String,
    /// Over how many devices it is spread.
    #[serde(default = "one")]
    pub width: usize,
    /// Where it may be; none: anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Bytes on each of its devices by sleep level; nothing where a sleep level is missing.
    pub bytes: BTreeMap<SleepLevel, u64>,
    /// What its sleep levels cost. Those between ready and cold that are missing it has not.
    pub costs: BTreeMap<SleepLevel, LogCost>,
    /// It is never evicted.
    #[serde(default)]
    pub pinned: bool,
    /// Seconds without requests after which it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ttl: Option<f64>,
}

/// What a sleep level costs, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogCost {
    /// From ready down to it.
    pub down: f64,
    /// From it back to ready.
    pub up: f64,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// When it arrived, in seconds since the Unix epoch, or since anything else.
    pub t: f64,
    /// For which model.
    pub model: String,
    /// Whose it is.
    pub tenant: String,
    /// Its tenant's weight.
    #[serde(default = "weight_one")]
    pub weight: f64,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens it got.
    pub output_tokens: u64,
    /// Seconds it waited for its turn, if it got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<f64>,
    /// How it ended, by the words of the metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// A request that got nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// When it arrived.
    pub t: f64,
    /// For which model.
    pub model: String,
    /// Whose it was.
    pub tenant: String,
    /// Why, by the code of the error.
    pub refused: String,
}

/// Something about an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub t: f64,
    /// Which engine: its model's name, or `model#2` for a second one.
    pub engine: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What can be said of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum What {
    /// Its state is another one.
    Became {
        /// The new one.
        #[serde(flatten)]
        state: State,
    },
    /// The planner gave it a place.
    Start {
        /// Where.
        devices: Vec<String>,
    },
    /// The planner took its memory.
    Demote {
        /// How deep it shall go.
        to: SleepLevel,
        /// Why ([`Why`](kvwarden_policy::residency::Why)).
        why: serde_json::Value,
    },
}

/// Why a log can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not one of ours.
    #[error("line {number}: {why}")]
    Line {
        /// Which, from 1.
        number: usize,
        /// What is wrong.
        why: String,
    },
    /// No line says what devices and models there are.
    #[error("it holds no events: a server keeps them where its file has `[log] events = true`")]
    NoHeader,
}

/// Reads a log from a file.
///
/// # Errors
/// As [`Reader::take`] and [`Reader::finish`].
pub fn read(input: impl BufRead) -> Result<(World, Vec<Request>), LogError> {
    let mut reader = Reader::default();
    for line in input.lines() {
        reader.take(&line?)?;
    }
    reader.finish()
}

/// Reads a log line by line.
#[derive(Debug, Default)]
pub struct Reader {
    lines: usize,
    header: Option<Header>,
    arrivals: Vec<(usize, Arrival)>,
    /// The last line, if it makes no sense. That is an error as soon as another line follows.
    cut: Option<LogError>,
}

// === impl Reader ===

impl Reader {
    /// Reads the next line.
    ///
    /// # Errors
    /// When it, or the line before it, is not one of ours.
    pub fn take(&mut self, line: &str) -> Result<(), LogError> {
        if let Some(error) = self.cut.take() {
            return Err(error);
        }
        let index = self.lines;
        self.lines += 1;
        match serde_json::from_str(line) {
            Ok(Line::Header(read)) if read.version == VERSION => {
                self.header = Some(read.after(self.header.take()));
            }
            Ok(Line::Header(Header { version, .. })) => {
                let why = format!("version {version} of the format is not known here");
                return Err(at(index, why));
            }
            Ok(Line::Arrival(read)) => self.arrivals.push((index, read)),
            Ok(Line::Refused(_) | Line::Event(_)) => {}
            Err(_) if line.trim().is_empty() => {}
            Err(_) => self.cut = Some(at(index, "neither a header nor a request")),
        }
        Ok(())
    }

    /// The node, and its requests in the order of arrival, the first one at 0.
    ///
    /// # Errors
    /// When no header has a request's model, or there is no header.
    pub fn finish(self) -> Result<(World, Vec<Request>), LogError> {
        let Self {
            header,
            mut arrivals,
            ..
        } = self;
        let world = header.ok_or(LogError::NoHeader)?.world();
        arrivals.sort_by(|a, b| a.1.t.total_cmp(&b.1.t));
        let places: HashMap<&str, usize> = (0..)
            .zip(&world.models)
            .map(|(place, spec)| (spec.id.as_str(), place))
            .collect();
        let start = arrivals.first().map_or(0.0, |(_, first)| first.t);
        let request = |(index, arrival): &(usize, Arrival)| {
            let name = &arrival.model;
            let model = places.get(name.as_str());
            let unknown = || at(*index, format!("no header has the model `{name}`"));
            Ok(arrival.request(*model.ok_or_else(unknown)?, start))
        };
        let requests = arrivals
            .iter()
            .map(request)
            .collect::<Result<_, LogError>>()?;
        Ok((world, requests))
    }
}

/// Writes a log that reads as this node and these requests.
///
/// # Errors
/// When it can't be written.
pub fn write(world: &World, requests: &[Request], mut out: impl Write) -> io::Result<()> {
    let header = Line::Header(Header::of(world));
    writeln!(out, "{}", serde_json::to_string(&header)?)?;
    for request in requests {
        let line = Line::Arrival(Arrival::of(request, world));
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    out.flush()
}

fn at(index: usize, why: impl Into<String>) -> LogError {
    LogError::Line {
        number: index + 1,
        why: why.into(),
    }
}

// === impl Line ===

impl Line {
    /// When it happened, in milliseconds since the Unix epoch. A header counts until the next one.
    pub(super) fn millis(&self) -> Option<i64> {
        let t = match self {
            Self::Header(_) => return None,
            Self::Arrival(Arrival { t, .. })
            | Self::Refused(Refused { t, .. })
            | Self::Event(Event { t, .. }) => *t,
        };
        #[expect(clippy::cast_possible_truncation, reason = "no clock shows more")]
        let millis = (t * 1000.0) as i64;
        Some(millis)
    }
}

// === impl Header ===

impl Header {
    /// Models that are gone stay as they were, for the requests that they got. The devices that they
    /// were bound to may be gone as well.
    fn after(mut self, before: Option<Self>) -> Self {
        for mut model in before.into_iter().flat_map(|before| before.models) {
            if self.models.iter().all(|other| other.id != model.id) {
                let is_there = |id: &String| self.devices.iter().any(|device| device.id == *id);
                model.devices.retain(is_there);
                self.models.push(model);
            }
        }
        self
    }

    fn world(&self) -> World {
        let device = |device: &LogDevice| (device.id.as_str().into(), device.bytes);
        World {
            settings: Settings::default(),
            devices: self.devices.iter().map(device).collect(),
            models: self.models.iter().map(LogModel::spec).collect(),
        }
    }

    /// What a log says of this node.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let device = |(id, bytes): &(kvwarden_policy::DeviceId, u64)| LogDevice {
            id: id.to_string(),
            bytes: *bytes,
        };
        Self {
            version: VERSION,
            devices: world.devices.iter().map(device).collect(),
            models: world.models.iter().map(LogModel::of).collect(),
        }
    }
}

// === impl LogModel ===

impl LogModel {
    fn spec(&self) -> Spec {
        let cost = |level| {
            let cost = self.costs.get(&level);
            cost.map_or(Cost::default(), |cost| Cost {
                demote: seconds(cost.down),
                promote: seconds(cost.up),
            })
        };
        Spec {
            id: self.id.as_str().into(),
            width: self.width,
            allowed: self.devices.iter().map(|id| id.as_str().into()).collect(),
            bytes: BySleepLevel::from_fn(|level| self.bytes.get(&level).copied().unwrap_or(0)),
            levels: self.costs.keys().copied().collect(),
            costs: BySleepLevel::from_fn(cost),
            is_pinned: self.pinned,
            idle_ttl: self.idle_ttl.map(seconds),
        }
    }

    /// What a server writes of a model.
    #[must_use]
    pub fn of(spec: &Spec) -> Self {
        let below = || {
            spec.levels
                .iter()
                .filter(|level| *level > SleepLevel::Ready)
        };
        let cost = |level| LogCost {
            down: spec.costs[level].demote.as_secs_f64(),
            up: spec.costs[level].promote.as_secs_f64(),
        };
        Self {
            id: spec.id.to_string(),
            width: spec.width,
            devices: spec.allowed.iter().map(ToString::to_string).collect(),
            bytes: spec
                .levels
                .iter()
                .map(|level| (level, spec.bytes[level]))
                .collect(),
            costs: below().map(|level| (level, cost(level))).collect(),
            pinned: spec.is_pinned,
            idle_ttl: spec.idle_ttl.map(|ttl| ttl.as_secs_f64()),
        }
    }
}

// === impl Arrival ===

impl Arrival {
    fn request(&self, model: usize, start: f64) -> Request {
        let service = self.output_tokens as f64 * SECONDS_PER_TOKEN
            + self.prompt_tokens as f64 * SECONDS_PER_PROMPT_TOKEN;
        Request {
            at: seconds(self.t - start),
            model,
            weight: self.weight,
            service: seconds(service),
        }
    }

    fn of(request: &Request, world: &World) -> Self {
        let tokens = request.service.as_secs_f64() / SECONDS_PER_TOKEN;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and no request is that long"
        )]
        let output_tokens = tokens.round() as u64;
        Self {
            t: request.at.as_secs_f64(),
            model: world.models[request.model].id.to_string(),
            tenant: "generated".to_owned(),
            weight: request.weight,
            prompt_tokens: 0,
            output_tokens,
            waited: None,
            status: None,
        }
    }
}

/// What is no duration (negative, not a number) counts as none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn one() -> usize {
    1
}

fn weight_one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::simulation::swapping::cells::Cell;

    use super::*;

    #[test]
    fn a_written_log_reads_as_the_same_node_and_requests() {
        let cell = Cell::named("agents-half-cheap").unwrap();
        let (world, requests) = (cell.world(), cell.requests(1));
        let mut text = Vec::new();
        write(&world, &requests, &mut text).unwrap();
        let (read_world, read_requests) = read(text.as_slice()).unwrap();
        assert_eq!(Header::of(&read_world), Header::of(&world));
        assert_eq!(read_requests.len(), requests.len());
        let start = requests[0].at;
        for (read, own) in read_requests.iter().zip(&requests) {
            assert_eq!((read.model, read.weight), (own.model, own.weight));
            assert!(read.at.abs_diff(own.at - start) < Duration::from_micros(1));
            assert!(read.service.abs_diff(own.service) < Duration::from_millis(11));
        }
    }

    #[test]
    fn lines_about_engines_and_refusals_are_read_and_not_replayed() {
        let lines = [
            r#"{"kvwarden_log":1,"devices":[],"models":[]}"#,
            r#"{"t":1.5,"model":"a","tenant":"x","refused":"queue_full"}"#,
            r#"{"t":2.0,"engine":"a","event":"start","devices":["GPU-1"]}"#,
            r#"{"t":2.5,"engine":"a","event":"demote","to":"cold","why":{"outweighed":"b"}}"#,
            r#"{"t":3.0,"engine":"a","event":"became","state":"starting","phase":"loading"}"#,
            "",
        ];
        let (_, requests) = read(lines.join("\n").as_bytes()).unwrap();
        assert!(requests.is_empty());
        for line in &lines[1..5] {
            let parsed: Line = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&parsed).unwrap(), *line);
        }
    }

    #[test]
    fn requests_of_a_model_that_is_gone_are_replayed_like_the_others() {
        let header = |devices: &str, models: &str| {
            format!(r#"{{"kvwarden_log":1,"devices":[{devices}],"models":[{models}]}}"#)
        };
        let request = |t: u32, model: &str| {
            format!(
                r#"{{"t":{t},"model":"{model}","tenant":"x","prompt_tokens":1,"output_tokens":1}}"#
            )
        };
        let gone = r#"{"id":"gone","devices":["GPU-1"],"bytes":{},"costs":{}}"#;
        let stays = |pinned: bool| {
            format!(r#"{{"id":"stays","pinned":{pinned},"bytes":{{}},"costs":{{}}}}"#)
        };
        let lines = [
            header(
                r#"{"id":"GPU-1","bytes":1}"#,
                &format!("{},{gone}", stays(false)),
            ),
            request(1, "gone"),
            header(r#"{"id":"GPU-2","bytes":1}"#, &stays(true)),
            request(2, "stays"),
        ];
        let (world, requests) = read(lines.join("\n").as_bytes()).unwrap();
        let models = world.models.iter();
        let models: Vec<_> = models
            .map(|spec| (spec.id.as_str(), spec.is_pinned))
            .collect();
        assert_eq!(models, [("stays", true), ("gone", false)]);
        assert!(
            world.models[1].allowed.is_empty(),
            "no device of its own is left"
        );
        let asked: Vec<_> = requests.iter().map(|request| request.model).collect();
        assert_eq!(asked, [1, 0]);
    }

    #[test]
    fn a_cut_off_last_line_is_left_out_and_any_other_is_named() {
        let header =
            r#"{"kvwarden_log":1,"devices":[],"models":[{"id":"a","bytes":{},"costs":{}}]}"#;
        let line = r#"{"t":1,"model":"a","tenant":"x","prompt_tokens":1,"output_tokens":1}"#;
        let whole = format!("{header}\n{line}\n{{\"t\":2,\"mod");
        assert_eq!(read(whole.as_bytes()).unwrap().1.len(), 1);
        let broken = format!("{header}\n{{\"t\":2,\"mod\n{line}\n");
        let error = read(broken.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("line 2:"), "{error}");
        let other = format!("{header}\n{}", line.replace("\"a\"", "\"b\""));
        let error = read(other.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("`b`"), "{error}");
        let newer = header.replace("_log\":1", "_log\":2");
        let error = read(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }
}

//! Real arrivals, beside the made-up ones of the [`cells`](super::cells).
//!
//! Whose the data are, what stands for a model, and what was thinned is said at the head of each file.
//! The proportions, the order of those that were kept and the relative gaps are real; how fast they come
//! is not: time is stretched until all lasts as many reloads as a cell does, because at the raw rates every
//! model is hot all the time. How long the engine works on a request is drawn as in the cells.

use super::{
    Request, World,
    cells::{LASTS, Reload, Room},
};
use crate::simulation::rng::SplitMix;

/// Of the times that engines work.
const SEED: u64 = 1;

/// Whose requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Two services of language models.
    AzureTwo,
    /// The same, cut into eight.
    AzureEight,
    /// Eight keys of a cache: not of language models.
    TwitterCache,
}

/// A trace on a node of the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    /// Whose requests.
    pub(crate) trace: Trace,
    /// How many of the models the device holds.
    pub(crate) room: Room,
    /// What a reload costs.
    pub(crate) reload: Reload,
}

// === impl Trace ===

impl Trace {
    const ALL: [Self; 3] = [Self::AzureTwo, Self::AzureEight, Self::TwitterCache];

    fn name(self) -> &'static str {
        match self {
            Self::AzureTwo => "azure-2",
            Self::AzureEight => "azure-8",
            Self::TwitterCache => "twitter-8",
        }
    }

    fn models(self) -> usize {
        match self {
            Self::AzureTwo => 2,
            Self::AzureEight | Self::TwitterCache => 8,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::AzureTwo => include_str!("traces/azure-llm-2023-2.csv"),
            Self::AzureEight => include_str!("traces/azure-llm-2023-8.csv"),
            Self::TwitterCache => include_str!("traces/twitter-cluster52-8.csv"),
        }
    }

    /// When and which model, in the order of time; each trace has a unit of its own.
    fn arrivals(self) -> Vec<(u32, usize)> {
        let lines = self.text().lines().filter(|line| !line.starts_with('#'));
        let mut at = 0;
        let arrival = |line: &str| {
            let (since, model) = line.split_once(',').unwrap();
            at += since.parse::<u32>().unwrap();
            (at, model.parse().unwrap())
        };
        lines.map(arrival).collect()
    }
}

// === impl Replay ===

impl Replay {
    /// All of them. Half of two models is one, so those come but once.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let on = |trace: Trace| {
            let rooms = Room::ALL.into_iter().take(trace.models() / 2);
            rooms.flat_map(move |room| {
                Reload::ALL.into_iter().map(move |reload| Self {
                    trace,
                    room,
                    reload,
                })
            })
        };
        Trace::ALL.into_iter().flat_map(on)
    }

    /// `trace-room-reload`.
    pub(crate) fn name(self) -> String {
        let (trace, room) = (self.trace.name(), self.room.name());
        format!("{trace}-{room}-{}", self.reload.name())
    }

    /// The node: one device, and models of which it holds some.
    pub(crate) fn world(self) -> World {
        let slots = match self.room {
            Room::One => 1,
            Room::Half => self.trace.models() / 2,
        };
        self.reload.world(self.trace.models(), slots as u64)
    }

    /// In the order of time.
    pub(crate) fn requests(self) -> Vec<Request> {
        let arrivals = self.trace.arrivals();
        let end = arrivals.last().map_or(1, |(at, _)| *at);
        let stretch = LASTS * self.reload.seconds() / f64::from(end);
        let mut rng = SplitMix::named(SEED, &self.name());
        let request = |(at, model)| Request::drawn(f64::from(at) * stretch, model, &mut rng);
        arrivals.into_iter().map(request).collect()
    }
}

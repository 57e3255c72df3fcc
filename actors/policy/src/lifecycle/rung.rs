//! How much of a model is in memory: the ladder it goes down to make room and up to serve.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One rung, the shallowest first: what compares greater is deeper, holds less and takes longer to
/// come back from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// It serves.
    Ready,
    /// Its weights stay on the device, its KV cache does not.
    Parked,
    /// The engine lives and its weights are in host memory.
    L1,
    /// The engine lives without weights.
    L2,
    /// No engine.
    Cold,
}

impl Rung {
    /// From the shallowest to the deepest.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Parked, Self::L1, Self::L2, Self::Cold];

    /// Those an engine has to support: it lives and can't serve.
    pub const ASLEEP: [Self; 3] = [Self::Parked, Self::L1, Self::L2];
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Parked => "parked",
            Self::L1 => "asleep (L1)",
            Self::L2 => "asleep (L2)",
            Self::Cold => "cold",
        })
    }
}

/// A set of rungs. Ready and Cold are in every one: each engine serves and stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Rung>", into = "Vec<Rung>")]
pub struct Rungs([bool; Rung::ASLEEP.len()]);

impl Rungs {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(self, rung: Rung) -> bool {
        asleep(rung).is_none_or(|index| self.0[index])
    }

    /// Whether an engine of it can only serve and stop.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// With this one.
    #[must_use]
    pub fn with(mut self, rung: Rung) -> Self {
        if let Some(index) = asleep(rung) {
            self.0[index] = true;
        }
        self
    }

    /// Those of it that are not in the other.
    #[must_use]
    pub fn minus(mut self, other: Self) -> Self {
        for (own, theirs) in self.0.iter_mut().zip(other.0) {
            *own &= !theirs;
        }
        self
    }

    /// From the shallowest to the deepest.
    pub fn iter(self) -> impl Iterator<Item = Rung> {
        Rung::ALL
            .into_iter()
            .filter(move |rung| self.contains(*rung))
    }
}

impl From<Vec<Rung>> for Rungs {
    fn from(rungs: Vec<Rung>) -> Self {
        rungs.into_iter().collect()
    }
}

impl From<Rungs> for Vec<Rung> {
    fn from(rungs: Rungs) -> Self {
        rungs.iter().collect()
    }
}

impl FromIterator<Rung> for Rungs {
    fn from_iter<I: IntoIterator<Item = Rung>>(rungs: I) -> Self {
        rungs.into_iter().fold(Self::default(), Self::with)
    }
}

fn asleep(rung: Rung) -> Option<usize> {
    Rung::ASLEEP.iter().position(|one| *one == rung)
}

//! How much of a model is in memory: the ladder it goes down to make room and up to serve.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One sleep level, the shallowest first: what compares greater is deeper, holds less and takes longer to
/// come back from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepLevel {
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

impl SleepLevel {
    /// From the shallowest to the deepest.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Parked, Self::L1, Self::L2, Self::Cold];

    /// Those an engine has to support: it lives and can't serve.
    pub const ASLEEP: [Self; 3] = [Self::Parked, Self::L1, Self::L2];
}

impl fmt::Display for SleepLevel {
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

/// A set of sleep levels. Ready and Cold are in every one: each engine serves and stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<SleepLevel>", into = "Vec<SleepLevel>")]
pub struct SleepLevels([bool; SleepLevel::ASLEEP.len()]);

impl SleepLevels {
    /// Whether it is one of them.
    #[must_use]
    pub fn contains(self, level: SleepLevel) -> bool {
        asleep(level).is_none_or(|index| self.0[index])
    }

    /// Whether an engine of it can only serve and stop.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// With this one.
    #[must_use]
    pub fn with(mut self, level: SleepLevel) -> Self {
        if let Some(index) = asleep(level) {
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
    pub fn iter(self) -> impl Iterator<Item = SleepLevel> {
        SleepLevel::ALL
            .into_iter()
            .filter(move |level| self.contains(*level))
    }
}

impl From<Vec<SleepLevel>> for SleepLevels {
    fn from(levels: Vec<SleepLevel>) -> Self {
        levels.into_iter().collect()
    }
}

impl From<SleepLevels> for Vec<SleepLevel> {
    fn from(levels: SleepLevels) -> Self {
        levels.iter().collect()
    }
}

impl FromIterator<SleepLevel> for SleepLevels {
    fn from_iter<I: IntoIterator<Item = SleepLevel>>(levels: I) -> Self {
        levels.into_iter().fold(Self::default(), Self::with)
    }
}

fn asleep(level: SleepLevel) -> Option<usize> {
    SleepLevel::ASLEEP.iter().position(|one| *one == level)
}

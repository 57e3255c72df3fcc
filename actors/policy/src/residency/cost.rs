//! What it costs to go down to a sleep level and to come back: measured, with a guess until it was.

use std::{
    ops::{Index, IndexMut},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::lifecycle::SleepLevel;

/// One thing per sleep level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BySleepLevel<T>([T; SleepLevel::ALL.len()]);

/// The way down to a sleep level from where it serves, and back up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// How long the engine takes to give the memory back.
    pub demote: Duration,
    /// How long until it serves again, proof included.
    pub promote: Duration,
}

/// The costs of a model's sleep levels.
pub type Costs = BySleepLevel<Cost>;

/// Newest measurement's part in the average: the last three or four make most of it.
const NEWEST: f64 = 0.3;

// === impl BySleepLevel ===

impl<T> BySleepLevel<T> {
    /// The value of each sleep level.
    #[must_use]
    pub fn from_fn(of: impl FnMut(SleepLevel) -> T) -> Self {
        Self(SleepLevel::ALL.map(of))
    }
}

impl<T> Index<SleepLevel> for BySleepLevel<T> {
    type Output = T;

    fn index(&self, level: SleepLevel) -> &T {
        &self.0[level as usize]
    }
}

impl<T> IndexMut<SleepLevel> for BySleepLevel<T> {
    fn index_mut(&mut self, level: SleepLevel) -> &mut T {
        &mut self.0[level as usize]
    }
}

impl Costs {
    /// A guess from the bytes of its weights, for a model that was never measured. Published for 8B
    /// in 16 bits on vLLM: L1 10.6 s down and 2.2 s up, L2 0.3 s and 6.5 s; from cold it reads the
    /// weights from disk and compiles.
    #[must_use]
    pub fn prior(weights: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a guess needs no 53 bits")]
        let gib = weights as f64 / f64::from(1 << 30);
        let cost = |demote: f64, promote: f64| Cost {
            demote: Duration::from_secs_f64(demote),
            promote: Duration::from_secs_f64(promote),
        };
        Self::from_fn(|level| match level {
            SleepLevel::Ready => Cost::default(),
            SleepLevel::Parked => cost(0.1, 0.1),
            SleepLevel::L1 => cost(0.3 + 0.7 * gib, 0.3 + 0.13 * gib),
            SleepLevel::L2 => cost(0.3, 0.5 + 0.4 * gib),
            SleepLevel::Cold => cost(2.0, 15.0 + gib),
        })
    }

    /// Takes in how long the way down to `sleep level` took.
    pub fn learn_demote(&mut self, level: SleepLevel, took: Duration) {
        learn(&mut self[level].demote, took);
    }

    /// Takes in how long the way up from `sleep level` took.
    pub fn learn_promote(&mut self, level: SleepLevel, took: Duration) {
        learn(&mut self[level].promote, took);
    }
}

fn learn(mean: &mut Duration, took: Duration) {
    *mean = mean.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST);
}

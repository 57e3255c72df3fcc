//! The scheduler before the simulated engine, in virtual time: open-loop traffic, every discipline,
//! the same warm-up cut in each. All figures are SIMULATED.

mod drive;
mod goals;
mod hidden;
mod measure;
mod traffic;

use std::fmt;

use self::{drive::Sim, measure::Report, traffic::Workload};
use super::super::{Discipline, settings::Mutant};

/// What stands before the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    /// The quiet tenant alone.
    Solo,
    Fifo,
    /// 600 requests a minute per tenant and then by arrival: Python KVWarden's headline.
    Bucket,
    Drr,
    Fair,
}

// === impl Arm ===

impl Arm {
    const ALL: [Self; 5] = [Self::Solo, Self::Fifo, Self::Bucket, Self::Drr, Self::Fair];

    fn discipline(self) -> Discipline {
        match self {
            Self::Solo | Self::Fifo | Self::Bucket => Discipline::Fifo,
            Self::Drr => Discipline::Drr,
            Self::Fair => Discipline::Fair,
        }
    }

    fn run(self, workload: &Workload, seed: u64) -> Report {
        Sim::new(self, workload, seed).run()
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Jain's index of three unequal tenants over a run, and the least over windows.
pub(super) fn jain_short_of_cache(mutant: Option<Mutant>) -> (f64, f64) {
    let workload = Workload::short_of_cache();
    let settings = drive::settings(Arm::Fair, &workload);
    let report = Sim::with(Arm::Fair, &workload, 1, settings, mutant).run();
    report.jain(&[("prompts", 1), ("outputs", 1), ("tiny", 1)])
}

//! Python KVWarden's headline, beside ours.
//!
//! Its published figure is a quiet TTFT p99 of 1585 ms under FIFO and 61.5 ms with its bucket. In its
//! own raw files, with the same 10 s of warm-up cut from every arm, that is 81.5 ms and 61.3 ms, and
//! the bucket refused 68% of the noisy tenant's requests: the offered 32 requests/s did not saturate
//! the engine, and most of the 1585 ms was the cold start that one arm included.

use std::io::{self, Write};

use clap::ValueEnum;

use super::{
    arm::Arm,
    report::{ArmReport, Report, quantile, refused, table},
};

/// Which of the published runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flavor {
    /// One noisy tenant and one quiet
    #[value(name = "2tenant")]
    TwoTenants,
    /// One noisy tenant and five quiet
    N6,
    /// One noisy tenant and seven quiet
    N8,
}

impl Flavor {
    /// Tenants in all.
    #[must_use]
    pub fn tenants(self) -> usize {
        match self {
            Self::TwoTenants => 2,
            Self::N6 => 6,
            Self::N8 => 8,
        }
    }
}

const HEADER: [&str; 6] = [
    "arm",
    "published p99 ms",
    "same cut p99 ms",
    "noisy refused",
    "ours p99 ms",
    "ours noisy refused",
];

/// A row of the comparison: arm, published p99 in ms, recomputed p99 in ms, share refused.
const THEIRS: [(Arm, f64, f64, &str); 2] = [
    (Arm::Fifo, 1585.0, 81.5, "0"),
    (Arm::Bucket, 61.5, 61.3, "68%"),
];

/// Prints their figures beside ours.
///
/// # Errors
/// When the output is closed.
pub fn print(report: &Report, flavor: Flavor, out: &mut impl Write) -> io::Result<()> {
    let rows = report.arms.iter().map(|arm| row(arm, flavor));
    writeln!(out, "{}", table(HEADER, rows))?;
    writeln!(
        out,
        "Published: Python KVWarden, A100, 8B model, quiet TTFT p99 1585 -> 61.5 ms. Recomputed from \
         its own raw files with the same 10 s warm-up cut in every arm: 81.5 ms (FIFO) -> 61.3 ms \
         (bucket), bought with 68% of the noisy tenant's requests refused. 32 requests/s do not \
         saturate that engine: for saturation see `kvwarden bench fairness --flood 2x`."
    )
}

fn row(arm: &ArmReport, flavor: Flavor) -> Vec<String> {
    let theirs = THEIRS.iter().find(|row| row.0 == arm.arm);
    // Only the run with two tenants is published with these figures.
    let theirs = theirs.filter(|_| flavor == Flavor::TwoTenants);
    let theirs = match theirs {
        Some((_, published, same_cut, share)) => [
            published.to_string(),
            same_cut.to_string(),
            (*share).to_owned(),
        ],
        None => ["-", "-", "-"].map(str::to_owned),
    };
    let ours = [quantile(arm.quiet.ttft.p99), refused(&arm.noisy)];
    let name = arm.arm.name().to_owned();
    [name].into_iter().chain(theirs).chain(ours).collect()
}

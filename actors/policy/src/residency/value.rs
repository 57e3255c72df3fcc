//! What a model in memory is worth, in seconds of waiting that others are spared.

use std::time::Duration;

use super::Model;
use crate::lifecycle::SleepLevel;

/// Euler and Mascheroni's constant, by which harmonic numbers exceed logarithms.
const EULER: f64 = 0.577_215_664_9;

/// Seconds after which being the next to be asked counts half.
const EXPECTED: f64 = 40.0;

/// Seconds that are lost if the model goes down to `to`. With how soon it is wanted again s (by its
/// own habits or as the next in turn, whichever is sooner), its rate l, the cost C of going down and
/// coming back, its drain D and its own queue q:
///
/// `s C (1 + lC/2) + lD (C + D/2) + qC`
///
/// Who wants it again waits for it, the sooner the surer, and then whoever asks while it comes back
/// waits too; those who ask while it drains wait for all of it; and its own queue waits.
pub(crate) fn value(model: &Model, to: SleepLevel) -> f64 {
    let (cost, rate) = (round_trip(model, to).as_secs_f64(), model.demand.rate);
    let drain = drain(model);
    let next = model.next.expect(|after| EXPECTED / (EXPECTED + after));
    let soon = model.demand.soon.max(next);
    soon * cost * (1.0 + rate * cost / 2.0)
        + rate * drain * (cost + drain / 2.0)
        + count(model.demand.queued) * cost
}

/// Seconds until the last running request ends: as long as the longest of them, which of `k` with
/// lengths of the usual spread (exponential) is the `k`-th harmonic number of means.
fn drain(model: &Model) -> f64 {
    let running = count(model.demand.in_flight);
    let harmonic = |k: f64| k.ln() + EULER + 0.5 / k;
    match model.demand.in_flight {
        0 => 0.0,
        1 => model.demand.drain.as_secs_f64(),
        _ => model.demand.drain.as_secs_f64() * harmonic(running),
    }
}

/// What it costs to go down to `to` from where the model is and to serve again, beyond what it costs
/// from here.
pub(crate) fn round_trip(model: &Model, to: SleepLevel) -> Duration {
    let there = model.costs[to];
    (there.demote + there.promote).saturating_sub(model.costs[model.level].promote)
}

/// How long until it serves.
pub(crate) fn promotion(model: &Model) -> Duration {
    model.costs[model.level].promote
}

/// Who goes first among those that wait: requests served per second of loading.
pub(crate) fn urgency(model: &Model) -> f64 {
    let cost = promotion(model).as_secs_f64();
    (count(model.demand.queued) + model.demand.rate * cost) / (cost + 1.0)
}

/// A queue's length in arithmetic.
pub(crate) fn count(requests: usize) -> f64 {
    u32::try_from(requests).map_or(f64::MAX, f64::from)
}

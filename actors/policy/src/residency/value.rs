//! What a model in memory is worth, in seconds of waiting that others are spared.

use std::time::Duration;

use super::{Model, Settings};
use crate::lifecycle::Rung;

/// Seconds that are lost if the model goes down to `to`. With its rate l, the horizon H, the cost C
/// of going down and coming back, its drain D and its own queue q:
///
/// `(1 - e^(-lH)) C (1 + lC/2) + lD (C + D/2) + qC`
///
/// It is wanted again within the horizon, and then whoever asks while it comes back waits too; those
/// who ask while it drains wait for all of it; and its own queue waits.
#[must_use]
pub fn value(model: &Model, to: Rung, settings: &Settings) -> f64 {
    let (cost, rate) = (round_trip(model, to).as_secs_f64(), model.rate);
    let drain = match model.in_flight {
        0 => 0.0,
        _ => model.drain.as_secs_f64(),
    };
    let is_wanted_again = 1.0 - (-rate * settings.horizon.as_secs_f64()).exp();
    is_wanted_again * cost * (1.0 + rate * cost / 2.0)
        + rate * drain * (cost + drain / 2.0)
        + count(model.queued) * cost
}

/// What it costs to go down to `to` from where the model is and to serve again, beyond what it costs
/// from here.
#[must_use]
pub fn round_trip(model: &Model, to: Rung) -> Duration {
    let there = model.costs[to];
    (there.demote + there.promote).saturating_sub(model.costs[model.rung].promote)
}

/// How long until it serves.
#[must_use]
pub fn promotion(model: &Model) -> Duration {
    model.costs[model.rung].promote
}

/// Who goes first among those that wait: requests served per second of loading.
#[must_use]
pub fn urgency(model: &Model) -> f64 {
    let cost = promotion(model).as_secs_f64();
    (count(model.queued) + model.rate * cost) / (cost + 1.0)
}

/// A queue's length in arithmetic.
pub(super) fn count(requests: usize) -> f64 {
    u32::try_from(requests).map_or(f64::MAX, f64::from)
}

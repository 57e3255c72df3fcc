//! A sample to count, and a window.

use std::time::Duration;

use kvwarden_policy::cost::Usage;

use super::Window;
use crate::lab::bench::load::{Outcome, Sample};

pub(super) const S: Duration = Duration::from_secs(1);
pub(super) const WINDOW: Window = Window {
    from: S,
    until: Duration::from_secs(11),
};

pub(super) fn sample(tenant: usize, at: Duration, ttft: Duration, outcome: Outcome) -> Sample {
    Sample {
        tenant,
        scheduled: at,
        prompt_tokens: 10,
        sent: at,
        events: vec![at + ttft, at + ttft + S / 10],
        ended: at + ttft + S / 10,
        usage: Some(Usage {
            prompt_tokens: 10,
            cached_tokens: 0,
            completion_tokens: 20,
        }),
        outcome,
        is_simulated: false,
    }
}

//! When a model is wanted again, from the gaps between its own requests.
//!
//! A mean rate can't tell a conversation that pauses from one that is over, nor who comes round like
//! clockwork from who comes at random. The gaps can: given that a model has been silent for so long,
//! only longer gaps than that are still possible. A chat's gaps of seconds are ruled out soon after
//! its last word; a model that is asked every five minutes is the more likely to be asked the longer
//! it has been silent, so that just after its turn it is the best victim, where LRU keeps it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Two per doubling: from a quarter of a second to four and a half hours, beyond which a model that
/// was asked once in between would be none the worse for being cold.
const BINS: usize = 32;
/// The upper edge of the first bin, in seconds.
const SHORTEST: f64 = 0.25;
/// What the newest gap counts, and by what shift each older one fades with it: the last thirty or so
/// make most of it.
const ONE: u32 = 1 << 16;
const FADES: u32 = 5;
/// Half a gap says that nothing is known: who has been silent for `t` is as likely as not to
/// be so for another `t + PATIENCE`. It alone counts when the silence is longer than every gap.
const UNKNOWN: f64 = 0.5;
pub(super) const PATIENCE: f64 = 10.0;
/// Seconds after which being wanted again counts half.
const SOON: f64 = 10.0;

/// How often there were gaps of each length, the newest counting most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Gaps([u32; BINS]);

// === impl Gaps ===

impl Gaps {
    /// Counts a gap between two requests.
    pub(super) fn seen(&mut self, gap: Duration) {
        self.fade();
        self.add(gap);
    }

    /// Older gaps count less from now on.
    pub(super) fn fade(&mut self) {
        for weight in &mut self.0 {
            *weight -= *weight >> FADES;
        }
    }

    pub(super) fn add(&mut self, gap: Duration) {
        let longer = |bin: &usize| gap.as_secs_f64() >= edge(*bin);
        let bin = (1..BINS).take_while(longer).count();
        self.0[bin] += ONE;
    }

    /// What is still possible after a silence: seconds from now until the next request, and how many
    /// gaps were like that. Within a bin all lengths are as likely.
    pub(super) fn left(&self, silent: Duration) -> impl Iterator<Item = (f64, f64)> {
        let silent = silent.as_secs_f64();
        let bins = self.0.iter().enumerate();
        bins.filter_map(move |(bin, weight)| {
            let (low, high) = (edge(bin), edge(bin + 1));
            let still = low.max(silent);
            let part = ((high - still) / (high - low)).max(0.0);
            let gaps = f64::from(*weight) / f64::from(ONE) * part;
            (gaps > 0.0).then(|| (f64::midpoint(still, high) - silent, gaps))
        })
    }

    /// How soon a model is wanted that has been silent for this long: 1 is at once, 0 never, and a
    /// half in [`SOON`] seconds.
    pub(super) fn soon(&self, silent: Duration) -> f64 {
        let discount = |after: f64| SOON / (SOON + after);
        let seconds = silent.as_secs_f64();
        let unknown = UNKNOWN * PATIENCE / (PATIENCE + seconds);
        let nothing_known = (unknown, unknown * discount(PATIENCE + seconds));
        let (gaps, soon) = self
            .left(silent)
            .fold(nothing_known, |(all, soon), (after, gaps)| {
                (all + gaps, soon + gaps * discount(after))
            });
        soon / gaps
    }
}

/// The lower edge of a bin, in seconds.
fn edge(bin: usize) -> f64 {
    match u32::try_from(bin) {
        Ok(0) | Err(_) => 0.0,
        Ok(bin) => SHORTEST * (f64::from(bin) / 2.0).exp2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(gaps: &[u32]) -> Gaps {
        let mut seen = Gaps::default();
        gaps.iter().for_each(|gap| seen.seen(SECOND * *gap));
        seen
    }

    #[test]
    fn a_conversation_is_over_when_it_has_paused_for_longer_than_it_ever_did() {
        let chat = after(&[3, 5, 2, 4, 6, 3, 4, 5]);
        assert!(chat.soon(SECOND) > 0.6);
        assert!(chat.soon(SECOND * 60) < 0.2);
        assert!(chat.soon(SECOND * 600) < chat.soon(SECOND * 60));
    }

    #[test]
    fn who_comes_round_regularly_is_expected_the_more_the_longer_it_is_silent() {
        let regular = after(&[300; 10]);
        assert!(regular.soon(SECOND) < 0.1);
        assert!(regular.soon(SECOND * 290) > 2.0 * regular.soon(SECOND));
    }

    #[test]
    fn what_used_to_be_fades() {
        let mut changed = after(&[2; 50]);
        let was = changed.soon(SECOND);
        (0..50).for_each(|_| changed.seen(SECOND * 500));
        assert!(changed.soon(SECOND) < was / 2.0);
    }

    #[test]
    fn any_gap_and_any_silence_is_between_never_and_at_once() {
        let year = SECOND * 31_557_600;
        for gap in [Duration::ZERO, SECOND, year] {
            let mut gaps = Gaps::default();
            (0..1000).for_each(|_| gaps.seen(gap));
            for silent in [Duration::ZERO, SECOND, year] {
                assert!(
                    (0.0..=1.0).contains(&gaps.soon(silent)),
                    "{gap:?} {silent:?}"
                );
            }
        }
    }
}

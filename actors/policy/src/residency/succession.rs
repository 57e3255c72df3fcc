//! Who is asked after whom.
//!
//! Agents hand on to the next model, pipelines go round, and a chat that has ended leaves the turn to
//! another. So the last request tells who comes next, and when, better than how often each was asked.
//! For each model it is counted who was asked after it and how long after; given the silence since,
//! only longer gaps are still possible.
//!
//! How far that is to be trusted is learned as well. Whenever the turn passes to another model, what
//! was foreseen is weighed against what a guess among all of them would have given: the weight of two
//! experts, with a fixed share that lets either come back (Herbster and Warmuth 1998). Where requests
//! turn out to have no order, less and less is foreseen.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::gaps::{Gaps, PATIENCE};
use crate::ModelId;

/// What passes from either expert to the other at each turn.
const SHARE: f64 = 0.01;
/// Nobody is ever sure: the least that an expert is held to have given the model whose turn came.
const DOUBT: f64 = 0.01;
/// Requests that must have come after a silence like this, or nothing is known of it.
const FEW: f64 = 0.3;

/// Who was asked after whom, how long after, and how much that says. All of it but whose turn it is
/// is kept across restarts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Succession {
    #[serde(skip)]
    last: Option<(ModelId, Duration)>,
    after: BTreeMap<ModelId, BTreeMap<ModelId, Gaps>>,
    trust: f64,
}

/// When a model may be the next to be asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Forecast {
    seen: Vec<Chance>,
    guess: Chance,
}

/// A moment at which it may be, and how likely that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Chance {
    /// Seconds from now.
    after: f64,
    likely: f64,
}

// === impl Succession ===

impl Default for Succession {
    fn default() -> Self {
        Self {
            last: None,
            after: BTreeMap::new(),
            trust: 0.5,
        }
    }
}

impl Succession {
    /// Counts a request. One that is told of after a later one is left out.
    pub fn seen(&mut self, model: &ModelId, now: Duration) {
        if self.last.as_ref().is_some_and(|(_, at)| now < *at) {
            return;
        }
        let silent = self.silence(now);
        if self.last.as_ref().is_some_and(|(last, _)| last != model) {
            self.learn(model, silent);
        }
        self.after.entry(model.clone()).or_default();
        if let Some((last, _)) = self.last.replace((model.clone(), now))
            && let Some(row) = self.after.get_mut(&last)
        {
            row.values_mut().for_each(Gaps::fade);
            row.entry(model.clone()).or_default().add(silent);
        }
    }

    /// Other models are no more.
    pub fn retain(&mut self, is_here: impl Fn(&ModelId) -> bool) {
        self.last.take_if(|(last, _)| !is_here(last));
        self.after.retain(|model, _| is_here(model));
        for row in self.after.values_mut() {
            row.retain(|model, _| is_here(model));
        }
    }

    /// When each model may be the next. Of all together something is sure to come.
    #[must_use]
    pub fn forecast(&self, now: Duration) -> BTreeMap<ModelId, Forecast> {
        let silent = self.silence(now);
        let seen = self.after_the_last(silent);
        let trust = if seen.is_empty() { 0.0 } else { self.trust };
        let guess = Chance {
            after: PATIENCE + silent.as_secs_f64(),
            likely: self.even() * (1.0 - trust),
        };
        let forecast = |model: &ModelId| {
            let seen = seen.get(model).into_iter().flatten();
            let seen = seen.map(|chance| Chance {
                likely: chance.likely * trust,
                ..*chance
            });
            Forecast {
                seen: seen.collect(),
                guess,
            }
        };
        let models = self.after.keys();
        models
            .map(|model| (model.clone(), forecast(model)))
            .collect()
    }

    fn silence(&self, now: Duration) -> Duration {
        let last = self.last.as_ref().map_or(now, |(_, at)| *at);
        now.saturating_sub(last)
    }

    /// A guess among all of them.
    fn even(&self) -> f64 {
        let models = u32::try_from(self.after.len()).unwrap_or(u32::MAX);
        1.0 / f64::from(models.max(1))
    }

    /// What came after the last request, where more than this silence lay between. None if that is
    /// not known.
    fn after_the_last(&self, silent: Duration) -> BTreeMap<&ModelId, Vec<Chance>> {
        let row = self
            .last
            .as_ref()
            .and_then(|(last, _)| self.after.get(last));
        let chances = |gaps: &Gaps| {
            let left = gaps.left(silent);
            left.map(|(after, likely)| Chance { after, likely })
                .collect()
        };
        let mut all: BTreeMap<&ModelId, Vec<Chance>> = row
            .into_iter()
            .flatten()
            .map(|(model, gaps)| (model, chances(gaps)))
            .collect();
        let total: f64 = all.values().flatten().map(|chance| chance.likely).sum();
        if total < FEW {
            return BTreeMap::new();
        }
        for chance in all.values_mut().flatten() {
            chance.likely /= total;
        }
        all
    }

    fn learn(&mut self, model: &ModelId, silent: Duration) {
        let seen = self.after_the_last(silent);
        if seen.is_empty() {
            return;
        }
        let chances = seen.get(model).into_iter().flatten();
        let foresight: f64 = chances.map(|chance| chance.likely).sum();
        let foresight = self.trust * foresight.max(DOUBT);
        let guess = (1.0 - self.trust) * self.even().max(DOUBT);
        let trust = foresight / (foresight + guess);
        self.trust = (1.0 - SHARE) * trust + SHARE / 2.0;
    }
}

// === impl Forecast ===

impl Forecast {
    /// It is the next, and this many seconds from now.
    pub(crate) fn sure(after: f64) -> Self {
        Self {
            seen: vec![Chance { after, likely: 1.0 }],
            guess: Chance::default(),
        }
    }

    /// What is to be expected of something that depends on when the model is asked, in seconds from
    /// now, and is nothing if another is asked first.
    #[must_use]
    pub fn expect(&self, of: impl Fn(f64) -> f64) -> f64 {
        self.foresee(&of) + self.guess.likely * of(self.guess.after)
    }

    /// As much of it as is known by experience, and no guess.
    #[must_use]
    pub fn foresee(&self, of: impl Fn(f64) -> f64) -> f64 {
        let seen = self.seen.iter();
        seen.map(|chance| chance.likely * of(chance.after)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::rng::SplitMix;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(model: u32) -> ModelId {
        format!("model-{model}").as_str().into()
    }

    fn likely(succession: &Succession, model: u32, now: Duration) -> f64 {
        let forecast = succession.forecast(now);
        forecast
            .get(&id(model))
            .map_or(0.0, |it| it.expect(|_| 1.0))
    }

    /// Turns of 100 s each.
    fn after(turns: impl IntoIterator<Item = u32>) -> (Succession, Duration) {
        let mut succession = Succession::default();
        let mut now = Duration::ZERO;
        for model in turns {
            now += 100 * SECOND;
            succession.seen(&id(model), now);
        }
        (succession, now)
    }

    #[test]
    fn who_goes_round_is_foreseen() {
        let (round, now) = after((0..24).map(|turn| turn % 4));
        assert!(likely(&round, 0, now) > 0.9);
        let when = round.forecast(now)[&id(0)].expect(|after| after);
        assert!((70.0..130.0).contains(&when), "{when}");
    }

    #[test]
    fn nothing_is_foreseen_of_turns_without_an_order() {
        let mut rng = SplitMix::named(1, "turns");
        let (random, now) = after((0..200).map(|_| rng.below(8)));
        for model in 0..8 {
            assert!(likely(&random, model, now) < 0.4, "{model}");
        }
    }

    #[test]
    fn order_is_noticed_soon_after_it_begins() {
        let mut rng = SplitMix::named(1, "turns");
        let random: Vec<u32> = (0..200).map(|_| rng.below(8)).collect();
        let (then, now) = after(random.into_iter().chain((0..400).map(|turn| turn % 8)));
        assert!(likely(&then, 0, now) > 0.8);
    }

    #[test]
    fn silence_rules_out_who_comes_at_once() {
        let mut now = Duration::ZERO;
        let mut succession = Succession::default();
        for turn in 0..60 {
            // A chat of three with the first, then at long last the second.
            now += if turn % 4 == 3 { 500 } else { 5 } * SECOND;
            succession.seen(&id(u32::from(turn % 4 == 3)), now);
        }
        // It is the first's again: after a word of its own another is likely, later the second.
        succession.seen(&id(0), now + 5 * SECOND);
        assert!(
            likely(&succession, 0, now + 6 * SECOND) > likely(&succession, 1, now + 6 * SECOND)
        );
        assert!(likely(&succession, 1, now + 60 * SECOND) > 0.8);
    }

    #[test]
    fn something_is_sure_to_come_and_nothing_of_who_is_gone() {
        let (mut succession, now) = after((0..30).map(|turn| turn % 5));
        succession.retain(|model| *model != id(2));
        assert_eq!(likely(&succession, 2, now), 0.0);
        let all: f64 = (0..5).map(|model| likely(&succession, model, now)).sum();
        assert!((all - 1.0).abs() < 1e-9, "{all}");
    }

    #[test]
    fn order_is_remembered_but_not_whose_turn_it_is() {
        let (round, now) = after((0..24).map(|turn| turn % 4));
        let kept = serde_json::to_string(&round).unwrap();
        let mut again: Succession = serde_json::from_str(&kept).unwrap();
        assert!(likely(&again, 0, now) <= 0.25);
        again.seen(&id(3), Duration::ZERO);
        assert!(likely(&again, 0, Duration::ZERO) > 0.9);
    }
}

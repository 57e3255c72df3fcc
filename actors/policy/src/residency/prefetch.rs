//! While nobody waits: who is expected next comes in before it is asked.

use super::{
    Model, Why,
    planner::{Placement, Planner},
    value::promotion,
};
use crate::lifecycle::SleepLevel;

/// What a load that nobody has asked for must save at least, as a part of what it takes.
const MARGIN: f64 = 0.2;

// === impl Planner ===

impl<'a> Planner<'a> {
    /// The load that saves most, if it saves more than it costs.
    pub(super) fn prefetch(&mut self) {
        let mut models = self.snapshot.models.iter();
        let may = self.snapshot.settings.prefetch && !self.is_anything_blocked();
        if !may || models.any(is_waited_for) {
            return;
        }
        let can_come = |model: &&'a Model| {
            let is_out = model.level != SleepLevel::Ready && !model.is_changing;
            is_out && model.demand.may_prefetch && is_expected(model)
        };
        let gain = |model: &'a Model| {
            let place = self.best(model, false)?;
            let is_idle = place
                .victims
                .iter()
                .all(|(victim, _)| victim.demand.in_flight == 0);
            let gain = self.gain(model, &place);
            (is_idle && gain > 0.0).then_some((gain, model, place))
        };
        let comers = self.snapshot.models.iter().filter(can_come);
        let best = comers
            .filter_map(gain)
            .max_by(|(a, ..), (b, ..)| a.total_cmp(b));
        match best {
            Some((_, model, place)) if place.victims.is_empty() => self.start(model, &place),
            Some((_, model, place)) => {
                self.evict_for(&place, &Why::Foreseen(model.id.clone()));
            }
            None => {}
        }
    }

    /// Seconds of waiting that are spared on average, up to the next request. If that is for this
    /// model, which takes more than a guess, it waits no longer than the load goes on. If it is for a
    /// victim, it waits for the load and for its own way back; and for any other that is not in memory,
    /// for the load to end.
    fn gain(&self, model: &Model, place: &Placement<'_>) -> f64 {
        let going = place.victims.iter();
        let demote = going.map(|(victim, choice)| victim.costs[choice.to].demote);
        let takes =
            promotion(model).as_secs_f64() + demote.map(|cost| cost.as_secs_f64()).sum::<f64>();
        let saved = model.next.foresee(|after| after.min(takes));
        let others = self.snapshot.models.iter();
        let lost = others.filter(|other| other.id != model.id).map(|other| {
            let mut going = place.victims.iter();
            let back = match going.find(|(victim, _)| victim.id == other.id) {
                Some((victim, choice)) => victim.costs[choice.to].promote.as_secs_f64(),
                None if other.level == SleepLevel::Ready => return 0.0,
                None => 0.0,
            };
            other.next.expect(|after| back + (takes - after).max(0.0))
        });
        saved - lost.sum::<f64>() - MARGIN * takes
    }
}

/// One that waits for memory and that nobody asks for keeps none from others.
fn is_waited_for(model: &Model) -> bool {
    model.is_wanted() && (model.demand.queued > 0 || !model.demand.oldest_wait.is_zero())
}

/// Whether it could be worth it at all, which is soon said: nothing saves more than all of its load.
fn is_expected(model: &Model) -> bool {
    model.next.foresee(|_| 1.0) > MARGIN
}

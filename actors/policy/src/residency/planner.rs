//! One look at everything: who starts, who goes, who waits.

use super::{
    Action, Model, Plan, Snapshot, Until, Why,
    value::{count, promotion, urgency},
    victims::{Candidate, Choice, Victims, cheapest},
};
use crate::{lifecycle::SleepLevel, residency::placement};

/// What a model is worth at least at a sleep level, in seconds.
pub(crate) type Worth<'a> = &'a dyn Fn(&Model, SleepLevel) -> f64;

pub(crate) struct Planner<'a> {
    pub(crate) snapshot: &'a Snapshot,
    worth: Worth<'a>,
    taken: Vec<u64>,
    /// Devices that change, or will by what was planned already.
    is_blocked: Vec<bool>,
    actions: Vec<Action>,
}

/// Where a model could go, and who would have to leave.
pub(crate) struct Placement<'a> {
    devices: Vec<usize>,
    pub(crate) victims: Vec<(&'a Model, Choice)>,
    value: f64,
    left_over: u64,
}

// === impl Planner ===

impl<'a> Planner<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, worth: Worth<'a>) -> Self {
        let devices = &snapshot.devices;
        Self {
            snapshot,
            worth,
            taken: devices.iter().map(|device| device.taken).collect(),
            is_blocked: devices.iter().map(|device| device.is_changing).collect(),
            actions: Vec::new(),
        }
    }

    pub(crate) fn plan(mut self) -> Plan {
        for model in self.waiting() {
            self.make_room(model);
        }
        self.stop_the_idle();
        self.prefetch();
        Plan {
            actions: self.actions,
        }
    }

    /// Those that others made room for, those that have waited long enough, and then whoever serves
    /// most requests per second of loading.
    fn waiting(&self) -> Vec<&'a Model> {
        let waits = |model: &&Model| model.is_wanted() && !model.is_changing;
        let mut waiting: Vec<_> = self.snapshot.models.iter().filter(waits).collect();
        let overdue = |model: &Model| self.is_overdue(model).then_some(model.demand.oldest_wait);
        waiting.sort_by(|a, b| {
            let by_wait = overdue(b).cmp(&overdue(a));
            b.is_promised
                .cmp(&a.is_promised)
                .then(by_wait)
                .then_with(|| urgency(b).total_cmp(&urgency(a)))
                .then_with(|| a.id.cmp(&b.id))
        });
        waiting
    }

    fn make_room(&mut self, model: &'a Model) {
        let is_overdue = self.is_overdue(model);
        match self.best(model, false) {
            Some(place) if place.victims.is_empty() => self.start(model, &place),
            // Others go down for it already: it needs no second place.
            Some(_) if model.is_promised && self.is_anything_blocked() => {
                self.wait_for_change(model, is_overdue);
            }
            Some(place) if is_overdue => {
                self.evict_for(&place, &Why::Overdue(model.id.clone()));
            }
            Some(place) if self.is_worth_it(model, &place) => {
                self.evict_for(&place, &Why::Outweighed(model.id.clone()));
            }
            Some(_) => self.wait(model, Until::Worth),
            None => self.wait_for_change(model, is_overdue),
        }
    }

    /// There is no place that nothing changes on. If there is one at all, whoever is overdue keeps
    /// others from taking it meanwhile, or a model over several devices might never find all of them
    /// at rest.
    fn wait_for_change(&mut self, model: &'a Model, is_overdue: bool) {
        match self.best(model, true) {
            Some(place) => {
                if is_overdue || model.is_promised {
                    self.block(&place.devices);
                }
                self.wait(model, Until::Changed);
            }
            None if self.is_stuck(model) => self.demote(model, SleepLevel::Cold, Why::Stuck),
            None if self.lacks_devices(model) => self.wait(model, Until::Device),
            None => self.wait(model, Until::Room),
        }
    }

    /// No swap makes room for it. Before the first reading nobody knows.
    fn lacks_devices(&self, model: &Model) -> bool {
        !self.snapshot.devices.is_empty() && model.allowed.len() < model.width
    }

    /// It sleeps where pinned models leave no room. Cold, it could go elsewhere.
    fn is_stuck(&self, model: &Model) -> bool {
        let cold = Model {
            level: SleepLevel::Cold,
            devices: Vec::new(),
            ..model.clone()
        };
        let is_elsewhere = |set: &Vec<usize>| self.place(&cold, set, false).is_some();
        let is_at_rest = placement::indices(&model.devices, &self.snapshot.devices)
            .iter()
            .all(|device| !self.is_blocked[*device]);
        !model.devices.is_empty()
            && is_at_rest
            && placement::sets(&cold, &self.snapshot.devices)
                .iter()
                .any(is_elsewhere)
    }

    fn is_overdue(&self, model: &Model) -> bool {
        let swap = model.costs[model.level].demote + promotion(model);
        model.demand.oldest_wait >= self.snapshot.settings.max_wait(swap)
    }

    /// Rent, and the loading that its queue will wait for anyway, against the victims' value.
    fn is_worth_it(&self, model: &Model, place: &Placement<'_>) -> bool {
        let settings = &self.snapshot.settings;
        if place
            .victims
            .iter()
            .any(|(victim, _)| victim.demand.in_flight > 0)
        {
            return model.demand.rent >= settings.busy_factor * place.value;
        }
        let loading = count(model.demand.queued) * promotion(model).as_secs_f64();
        model.demand.rent + loading >= settings.idle_factor * place.value
    }

    /// The cheapest place; of equal ones the tightest, so that large models find room later.
    pub(crate) fn best(&self, model: &Model, also_blocked: bool) -> Option<Placement<'a>> {
        let sets = placement::sets(model, &self.snapshot.devices);
        let places = sets
            .iter()
            .filter_map(|set| self.place(model, set, also_blocked));
        places.min_by(|a, b| {
            let by_value = a.value.total_cmp(&b.value);
            by_value.then(a.left_over.cmp(&b.left_over))
        })
    }

    fn place(&self, model: &Model, set: &[usize], also_blocked: bool) -> Option<Placement<'a>> {
        let devices = &self.snapshot.devices;
        let is_out = |device: &usize| {
            devices[*device].is_quarantined || (self.is_blocked[*device] && !also_blocked)
        };
        if set.is_empty() || set.iter().any(is_out) {
            return None;
        }
        let more = model.bytes[SleepLevel::Ready].saturating_sub(model.bytes[model.level]);
        let after = |device: &usize| self.taken[*device] + more;
        let needs: Vec<u64> = set
            .iter()
            .map(|device| after(device).saturating_sub(devices[*device].capacity))
            .collect();
        let (models, candidates) = self.candidates(model, set, also_blocked);
        let Victims { chosen, value } = cheapest(&candidates, &needs)?;
        let left_over = |device: &usize| devices[*device].capacity.saturating_sub(after(device));
        Some(Placement {
            devices: set.to_vec(),
            victims: chosen
                .into_iter()
                .map(|(index, choice)| (models[index], choice))
                .collect(),
            value,
            left_over: set.iter().map(left_over).sum(),
        })
    }

    /// Who may leave these devices.
    fn candidates(
        &self,
        but: &Model,
        set: &[usize],
        also_blocked: bool,
    ) -> (Vec<&'a Model>, Vec<Candidate>) {
        let candidate = |model: &'a Model| {
            let on = placement::indices(&model.devices, &self.snapshot.devices);
            let is_blocked = on.iter().any(|device| self.is_blocked[*device]);
            let may_go = model.id != but.id
                && !model.demand.is_pinned
                && (also_blocked || !(model.is_changing || is_blocked));
            let here = set
                .iter()
                .enumerate()
                .filter(|(_, device)| on.contains(device));
            let devices = here.fold(0, |mask, (bit, _)| mask | 1 << bit);
            (may_go && devices != 0).then(|| {
                let options = self.options(model);
                (model, Candidate { devices, options })
            })
        };
        self.snapshot.models.iter().filter_map(candidate).unzip()
    }

    fn options(&self, model: &Model) -> Vec<Choice> {
        let deeper = model
            .demand
            .levels
            .iter()
            .filter(|level| *level > model.level);
        let choice = |to| Choice {
            to,
            frees: model.bytes[model.level].saturating_sub(model.bytes[to]),
            value: (self.worth)(model, to),
        };
        deeper.map(choice).collect()
    }

    pub(crate) fn start(&mut self, model: &Model, place: &Placement<'_>) {
        let devices = &self.snapshot.devices;
        self.actions.push(Action::Start {
            model: model.id.clone(),
            devices: place
                .devices
                .iter()
                .map(|device| devices[*device].id.clone())
                .collect(),
        });
        self.block(&place.devices);
    }

    pub(crate) fn evict_for(&mut self, place: &Placement<'_>, why: &Why) {
        for (victim, choice) in &place.victims {
            self.demote(victim, choice.to, why.clone());
        }
        self.block(&place.devices);
    }

    fn demote(&mut self, model: &Model, to: SleepLevel, why: Why) {
        self.actions.push(Action::Demote {
            model: model.id.clone(),
            to,
            why,
        });
        self.block(&placement::indices(&model.devices, &self.snapshot.devices));
    }

    fn wait(&mut self, model: &Model, until: Until) {
        let model = model.id.clone();
        self.actions.push(Action::Wait { model, until });
    }

    fn stop_the_idle(&mut self) {
        for model in &self.snapshot.models {
            let devices = placement::indices(&model.devices, &self.snapshot.devices);
            let is_idle =
                model.demand.in_flight == 0 && model.demand.queued == 0 && !model.is_wanted();
            let is_over = model
                .demand
                .idle_ttl
                .is_some_and(|ttl| model.demand.idle_for >= ttl);
            let is_at_rest = !model.is_changing && devices.iter().all(|at| !self.is_blocked[*at]);
            let is_in_memory = model.level < SleepLevel::Cold && !model.demand.is_pinned;
            if is_in_memory && is_idle && is_over && is_at_rest {
                self.demote(model, SleepLevel::Cold, Why::Idle);
            }
        }
    }

    pub(crate) fn is_anything_blocked(&self) -> bool {
        self.is_blocked.contains(&true)
    }

    fn block(&mut self, devices: &[usize]) {
        for device in devices {
            self.is_blocked[*device] = true;
        }
    }
}

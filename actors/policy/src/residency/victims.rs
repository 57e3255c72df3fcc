//! The cheapest set of victims that frees what is needed, exactly.
//!
//! A covering knapsack with a choice per item (how deep the victim goes) and a dimension per device.
//! Branch and bound: candidates in the order of seconds per byte, and as the bound the fractional
//! cover of the device that is hardest to cover, which no choice can beat (Dantzig 1957). Models of
//! one device are tens at most and mostly few are needed, so the search is short.

use crate::lifecycle::SleepLevel;

/// Search steps. Random instances with 64 models stay below a tenth of it; whatever does not gets the
/// best set that was found, which is at least as good as the greedy one.
const MAX_STEPS: usize = 20_000;

/// A model that may go.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// On which of the devices that lack bytes it is, one bit each.
    pub(crate) devices: u32,
    /// How deep it may go.
    pub(crate) options: Vec<Choice>,
}

/// One depth for one victim.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    /// How deep.
    pub(crate) to: SleepLevel,
    /// Bytes that are then free on each of its devices.
    pub(crate) frees: u64,
    /// What that costs, in seconds; finite and not negative.
    pub(crate) value: f64,
}

/// Who goes how deep: indices of candidates in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Victims {
    /// The victims.
    pub(crate) chosen: Vec<(usize, Choice)>,
    /// What they are worth together.
    pub(crate) value: f64,
}

/// The cheapest choice that frees `needs[d]` bytes of each device. None if all of them do not.
pub(crate) fn cheapest(candidates: &[Candidate], needs: &[u64]) -> Option<Victims> {
    let mut search = Search::new(candidates);
    search.descend(0, needs, 0.0);
    let mut best = search.best?;
    best.drop_redundant(candidates, needs);
    best.chosen.sort_by_key(|(index, _)| *index);
    Some(best)
}

struct Search<'a> {
    /// The cheapest byte first.
    items: Vec<Item<'a>>,
    path: Vec<(usize, Choice)>,
    best: Option<Victims>,
    steps: usize,
}

struct Item<'a> {
    index: usize,
    candidate: &'a Candidate,
    /// Most that it can free, and the least it costs a byte.
    most: u64,
    per_byte: f64,
}

// === impl Search ===

impl<'a> Search<'a> {
    fn new(candidates: &'a [Candidate]) -> Self {
        let mut items: Vec<_> = candidates
            .iter()
            .enumerate()
            .filter_map(Item::new)
            .collect();
        items.sort_by(|a, b| a.per_byte.total_cmp(&b.per_byte).then(b.most.cmp(&a.most)));
        Self {
            items,
            path: Vec::new(),
            best: None,
            steps: 0,
        }
    }

    fn descend(&mut self, from: usize, needs: &[u64], value: f64) {
        if needs.iter().all(|need| *need == 0) {
            let chosen = self.path.clone();
            self.best = Some(Victims { chosen, value });
            return;
        }
        self.steps += 1;
        let is_hopeless = self.steps > MAX_STEPS && self.best.is_some();
        if is_hopeless || !self.can_improve(from, needs, value) {
            return;
        }
        let Item {
            index, candidate, ..
        } = self.items[from];
        for choice in &candidate.options {
            let rest = candidate.relieve(choice, needs);
            if rest == needs {
                continue;
            }
            self.path.push((index, *choice));
            if self.beats(value + choice.value) {
                self.descend(from + 1, &rest, value + choice.value);
            }
            self.path.pop();
        }
        self.descend(from + 1, needs, value);
    }

    fn beats(&self, value: f64) -> bool {
        self.best.as_ref().is_none_or(|best| value < best.value)
    }

    fn can_improve(&self, from: usize, needs: &[u64], value: f64) -> bool {
        let bounds = needs.iter().enumerate();
        let mut bounds = bounds.map(|(device, need)| self.fractional(from, device, *need));
        bounds.all(|bound| bound.is_some_and(|bound| self.beats(value + bound)))
    }

    /// The least that `need` bytes of one device cost if candidates could be cut. None: there are not
    /// that many.
    fn fractional(&self, from: usize, device: usize, mut need: u64) -> Option<f64> {
        let mut value = 0.0;
        for item in &self.items[from..] {
            if need == 0 {
                break;
            }
            if item.candidate.is_on(device) {
                let part = item.most.min(need);
                value += seconds_for(part, item.per_byte);
                need -= part;
            }
        }
        (need == 0).then_some(value)
    }
}

// === impl Item ===

impl<'a> Item<'a> {
    /// Nothing for a candidate that frees nothing.
    fn new((index, candidate): (usize, &'a Candidate)) -> Option<Self> {
        let useful = || candidate.options.iter().filter(|choice| choice.frees > 0);
        Some(Self {
            index,
            candidate,
            most: useful().map(|choice| choice.frees).max()?,
            per_byte: useful().map(Choice::per_byte).fold(f64::INFINITY, f64::min),
        })
    }
}

// === impl Candidate ===

impl Candidate {
    fn is_on(&self, device: usize) -> bool {
        self.devices & (1 << device) != 0
    }

    fn relieve(&self, choice: &Choice, needs: &[u64]) -> Vec<u64> {
        let relieved = needs.iter().enumerate().map(|(device, need)| {
            if self.is_on(device) {
                need.saturating_sub(choice.frees)
            } else {
                *need
            }
        });
        relieved.collect()
    }
}

// === impl Choice ===

impl Choice {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a bound below 2^53 bytes is exact"
    )]
    fn per_byte(&self) -> f64 {
        self.value / self.frees as f64
    }
}

// === impl Victims ===

impl Victims {
    /// Models that are worth nothing may have been taken for nothing.
    fn drop_redundant(&mut self, candidates: &[Candidate], needs: &[u64]) {
        let mut at = 0;
        while at < self.chosen.len() {
            let mut others = self.chosen.clone();
            others.remove(at);
            let rest = others.iter().fold(needs.to_vec(), |rest, (index, choice)| {
                candidates[*index].relieve(choice, &rest)
            });
            if rest.iter().all(|need| *need == 0) {
                self.chosen = others;
            } else {
                at += 1;
            }
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a bound below 2^53 bytes is exact"
)]
fn seconds_for(bytes: u64, per_byte: f64) -> f64 {
    bytes as f64 * per_byte
}

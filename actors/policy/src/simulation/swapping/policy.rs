//! Who decides: our planner, and what other tools do, written from their documentation.
//!
//! Rivals swap as soon as somebody waits, first come first served; they differ in whom they evict.
//! All of them drain before they stop, which not all of those tools do.

use std::{fmt, str::FromStr, time::Duration};

use crate::{
    ModelId,
    lifecycle::SleepLevel,
    residency::{
        Action, Forecast, Model, Plan, Snapshot, Until, Why, placement,
        planner::Planner,
        value::{round_trip, value},
    },
};

use super::{Request, Spec, World};

/// Seconds after which the clairvoyant's next use counts half. This and [`Policy::hindsight`] are the best of a
/// small grid on seed 1.
const SOON: f64 = 10.0;

/// The rules that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyName {
    /// Ours.
    Kvwarden,
    /// The least recently used: the textbook's rule, which draws no line between idle and busy.
    Lru,
    /// Ollama: one request at a time makes room, and others that need a load queue behind it
    /// (`processPending` in `server/sched.go`: "we're queueing up all incoming requests"). An idle model
    /// goes, by the shortest keep-alive and, as that is mostly the same, by name (`findRunnerToUnload`,
    /// `ByDurationAndName`); else the first that becomes idle. Kinder than the original, where requests
    /// for models in memory queue behind it as well.
    Ollama,
    /// The least often used.
    Lfu,
    /// Greedy dual size frequency (Cherkasova 1998): uses times cost over size, with ageing.
    Gdsf,
    /// The Python KVWarden's score: `ln(1 + requests)` since it was loaded, halved every 600 s
    /// without one.
    KvwardenPy,
    /// llama-swap's matrix: fewest evictions, then the order of the file.
    LlamaSwap,
    /// Rent against the cost of the swap, without frequency or recency.
    Rent,
    /// Our planner with the true future in place of a rate: how much is left to gain.
    Clairvoyant,
}

/// A rule and what it remembers.
pub struct Policy {
    name: PolicyName,
    /// The models, in the order of the file.
    ids: Vec<ModelId>,
    books: Vec<Book>,
    /// GDSF's age: the score of the last victim.
    age: f64,
    /// Arrivals of each model, for who may know them.
    future: Vec<Vec<Duration>>,
}

#[derive(Clone, Debug, Default)]
struct Book {
    uses: f64,
    uses_since_start: f64,
    last: Duration,
    served: Duration,
    gdsf: f64,
    seconds_per_gib: f64,
}

// === impl PolicyName ===

impl PolicyName {
    /// All, ours first.
    pub const ALL: [Self; 9] = [
        Self::Kvwarden,
        Self::Lru,
        Self::Ollama,
        Self::Lfu,
        Self::Gdsf,
        Self::KvwardenPy,
        Self::LlamaSwap,
        Self::Rent,
        Self::Clairvoyant,
    ];

    /// As it is written on a command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvwarden => "kvwarden",
            Self::Lru => "lru",
            Self::Ollama => "ollama",
            Self::Lfu => "lfu",
            Self::Gdsf => "gdsf",
            Self::KvwardenPy => "kvwarden-py",
            Self::LlamaSwap => "llama-swap",
            Self::Rent => "rent",
            Self::Clairvoyant => "clairvoyant",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.ok_or_else(|| format!("unknown policy `{text}`"))
    }
}

// === impl Policy ===

impl Policy {
    /// A rule that has seen nothing yet. Of the requests it reads only what it may know.
    #[must_use]
    pub fn new(name: PolicyName, world: &World, requests: &[Request]) -> Self {
        let mut future = vec![Vec::new(); world.models.len()];
        if name == PolicyName::Clairvoyant {
            for request in requests {
                future[request.model].push(request.at);
            }
        }
        Self {
            name,
            ids: world.models.iter().map(|spec| spec.id.clone()).collect(),
            books: world.models.iter().map(Book::new).collect(),
            age: 0.0,
            future,
        }
    }

    pub(super) fn seen(&mut self, model: usize, now: Duration) {
        let book = &mut self.books[model];
        book.uses += 1.0;
        book.last = now;
        book.gdsf = self.age + book.uses * book.seconds_per_gib;
    }

    pub(super) fn ready(&mut self, model: usize, now: Duration) {
        self.books[model].uses_since_start = 0.0;
        self.books[model].served = now;
    }

    pub(super) fn ended(&mut self, model: usize, now: Duration) {
        self.books[model].uses_since_start += 1.0;
        self.books[model].served = now;
    }

    pub(super) fn evicted(&mut self, model: usize) {
        self.age = self.age.max(self.books[model].gdsf);
    }

    /// Whether it may act while nobody waits.
    pub(super) fn prefetches(&self) -> bool {
        matches!(self.name, PolicyName::Kvwarden | PolicyName::Clairvoyant)
    }

    pub(super) fn live(&self) -> usize {
        self.books.len()
    }

    pub(super) fn plan(&self, snapshot: &Snapshot, now: Duration) -> Plan {
        let trip = |model: &Model, to| round_trip(model, to).as_secs_f64();
        let known = |model: &Model, to| self.true_value(model, to, now);
        match self.name {
            PolicyName::Kvwarden => Planner::new(snapshot, &value).plan(),
            PolicyName::Rent => Planner::new(&by_rent_alone(snapshot), &trip).plan(),
            PolicyName::Clairvoyant => Planner::new(&self.hindsight(snapshot, now), &known).plan(),
            PolicyName::LlamaSwap => self.fewest(snapshot),
            PolicyName::Lru
            | PolicyName::Ollama
            | PolicyName::Lfu
            | PolicyName::Gdsf
            | PolicyName::KvwardenPy => self.evict_by_score(snapshot, now),
        }
    }

    /// What those stall who come next, if the model goes and is started again when the first of them
    /// comes; and the later that is, the less it counts (Belady 1966: the farthest goes).
    fn true_value(&self, model: &Model, to: SleepLevel, now: Duration) -> f64 {
        let (cost, future) = (round_trip(model, to), &self.future[self.index(model)]);
        let coming = &future[future.partition_point(|at| *at <= now)..];
        let Some(first) = coming.first() else {
            return 0.0;
        };
        let far = (*first - now).as_secs_f64();
        let back = *first + cost;
        let late = coming.iter().take_while(|at| **at < back);
        let stall: f64 = late.map(|at| (back - *at).as_secs_f64()).sum();
        stall * SOON / (SOON + far)
    }

    /// With certainty in place of a guess a swap needs a full excuse, and who is next is known.
    fn hindsight(&self, snapshot: &Snapshot, now: Duration) -> Snapshot {
        let mut snapshot = snapshot.clone();
        snapshot.settings.idle_factor = 1.0;
        let coming = |future: &Vec<Duration>| {
            let next = future.partition_point(|at| *at <= now);
            future.get(next).copied()
        };
        let next = self.future.iter().map(coming).enumerate();
        let next = next.filter_map(|(model, at)| Some((at?, model))).min();
        for model in &mut snapshot.models {
            model.next = match next {
                Some((at, next)) if model.id == self.ids[next] => {
                    Forecast::sure((at - now).as_secs_f64())
                }
                Some(_) | None => Forecast::default(),
            };
        }
        snapshot
    }

    /// Everybody is served as soon as possible, for the fewest evictions; of those that are as many, the
    /// later in the file go.
    fn fewest(&self, snapshot: &Snapshot) -> Plan {
        let mut snapshot = snapshot.clone();
        snapshot.settings.max_wait = Some(Duration::ZERO);
        snapshot.settings.prefetch = false;
        let place = |model: &Model| u32::try_from(self.index(model)).unwrap_or(u32::MAX);
        let evictions = |model: &Model, _| 1.0 + 1e-6 / f64::from(place(model).saturating_add(1));
        Planner::new(&snapshot, &evictions).plan()
    }

    fn index(&self, model: &Model) -> usize {
        let found = self.ids.iter().position(|id| *id == model.id);
        found.unwrap_or_else(|| unreachable!("plans are about models of the world"))
    }

    fn evict_by_score(&self, snapshot: &Snapshot, now: Duration) -> Plan {
        let mut waiting: Vec<&Model> = snapshot
            .models
            .iter()
            .filter(|model| model.is_wanted() && !model.is_changing)
            .collect();
        waiting.sort_by_key(|model| std::cmp::Reverse(model.demand.oldest_wait));
        if self.name == PolicyName::Ollama {
            waiting.truncate(1);
        }
        let mut blocked: Vec<bool> = snapshot.devices.iter().map(|one| one.is_changing).collect();
        let mut plan = Plan::default();
        for model in waiting {
            let sets = placement::sets(model, &snapshot.devices);
            let free = sets.iter().filter(|set| set.iter().all(|at| !blocked[*at]));
            let victims =
                free.filter_map(|set| Some((set, self.victims(snapshot, model, set, now)?)));
            let cheapest = victims.min_by(|(_, a), (_, b)| a.0.total_cmp(&b.0));
            let id = model.id.clone();
            let Some((set, (_, victims))) = cheapest else {
                let until = Until::Changed;
                plan.actions.push(Action::Wait { model: id, until });
                continue;
            };
            for device in set {
                blocked[*device] = true;
            }
            if victims.is_empty() {
                let devices = set
                    .iter()
                    .map(|at| snapshot.devices[*at].id.clone())
                    .collect();
                plan.actions.push(Action::Start { model: id, devices });
            }
            for victim in victims {
                for device in placement::indices(&victim.devices, &snapshot.devices) {
                    blocked[device] = true;
                }
                plan.actions.push(Action::Demote {
                    model: victim.id.clone(),
                    to: SleepLevel::Cold,
                    why: Why::Outweighed(model.id.clone()),
                });
            }
        }
        plan
    }

    /// The least scored, until there is room; with the highest score among them.
    fn victims<'a>(
        &self,
        snapshot: &'a Snapshot,
        model: &Model,
        set: &[usize],
        now: Duration,
    ) -> Option<(f64, Vec<&'a Model>)> {
        let on = |other: &Model| placement::indices(&other.devices, &snapshot.devices);
        let more = model.bytes[SleepLevel::Ready];
        let mut needs: Vec<u64> = snapshot
            .devices
            .iter()
            .enumerate()
            .map(|(at, device)| match set.contains(&at) {
                true => (device.taken + more).saturating_sub(device.capacity),
                false => 0,
            })
            .collect();
        let mut others: Vec<(f64, &Model)> = snapshot
            .models
            .iter()
            .filter(|other| {
                !other.demand.is_pinned && !other.is_changing && other.level != SleepLevel::Cold
            })
            .filter(|other| on(other).iter().any(|at| set.contains(at)))
            .map(|other| (self.score(other, now), other))
            .collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut worst, mut chosen) = (f64::NEG_INFINITY, Vec::new());
        for (score, other) in others {
            let on = on(other);
            if on.iter().any(|at| needs[*at] > 0) {
                for at in on {
                    needs[at] = needs[at].saturating_sub(other.bytes[other.level]);
                }
                worst = score;
                chosen.push(other);
            }
        }
        needs
            .iter()
            .all(|need| *need == 0)
            .then_some((worst, chosen))
    }

    /// The lowest goes first.
    fn score(&self, model: &Model, now: Duration) -> f64 {
        let index = self.index(model);
        let book = &self.books[index];
        let age = (now - book.last).as_secs_f64();
        match self.name {
            PolicyName::Ollama => {
                by_name(index) + if model.demand.in_flight > 0 { 1.0 } else { 0.0 }
            }
            PolicyName::Lfu => book.uses,
            PolicyName::Gdsf => book.gdsf,
            PolicyName::KvwardenPy => {
                let age = (now - book.served).as_secs_f64();
                book.uses_since_start.ln_1p() * 0.5_f64.powf(age / 600.0)
            }
            PolicyName::Lru
            | PolicyName::LlamaSwap
            | PolicyName::Kvwarden
            | PolicyName::Rent
            | PolicyName::Clairvoyant => -age,
        }
    }
}

/// From 0 for the first to 1.
fn by_name(index: usize) -> f64 {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    1.0 - 1.0 / (1.0 + f64::from(index))
}

/// Nothing is foreseen.
fn by_rent_alone(snapshot: &Snapshot) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.settings.prefetch = false;
    snapshot
}

// === impl Book ===

impl Book {
    fn new(spec: &Spec) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a score needs no 53 bits")]
        let gib = spec.bytes[SleepLevel::Ready] as f64 / f64::from(1 << 30);
        Self {
            seconds_per_gib: spec.costs[SleepLevel::Cold].promote.as_secs_f64() / gib.max(0.1),
            ..Self::default()
        }
    }
}

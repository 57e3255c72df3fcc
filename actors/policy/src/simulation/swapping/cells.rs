//! Made-up workloads of many models on few devices: each cell a shape of demand times what a reload
//! costs. A cell and a seed name a list of requests for ever.

use std::time::Duration;

use super::{Request, Spec, World};
use crate::{
    lifecycle::{SleepLevel, SleepLevels},
    residency::{BySleepLevel, Cost, Settings},
    simulation::rng::SplitMix,
};

const GIB: u64 = 1 << 30;
/// How long each cell lasts, in reloads: so that all of them ask for about as many swaps.
pub(super) const LASTS: f64 = 300.0;
/// Seconds between requests for each of the hot models.
const HOT_GAPS: [f64; 3] = [2.0, 5.0, 20.0];
/// Engines work this long on a request, on average.
const SERVICE: f64 = 2.0;

/// A cell of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Who wants what, when.
    pub shape: Shape,
    /// How many of the models the device holds.
    pub room: Room,
    /// What a reload costs.
    pub reload: Reload,
}

/// Who wants what, when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Agents that go back and forth between two models, one request at a time.
    Agents,
    /// Few popular models and many others.
    Zipf,
    /// Busy models that would fill the device, and others that are asked for now and then.
    HotRare,
    /// One model after the other, round and round.
    Scan,
    /// Zipf, and every ten minutes others are popular.
    Shifting,
    /// Each model has its time of the day, which lasts half an hour.
    Diurnal,
    /// Zipf, and now and then everybody wants the same unpopular model.
    FlashCrowd,
    /// Models take turns, about as fast as one more than there is room for can be loaded.
    Alternation,
}

/// How many of the models the device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// One, as a large model leaves no room for another.
    One,
    /// About half of them.
    Half,
}

/// What a reload costs: the regimes between a wake from host memory and a start from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// 3.5 s.
    Cheap,
    /// 13 s.
    Middling,
    /// 48 s.
    Dear,
}

// === impl Cell ===

impl Cell {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let of_shape = |shape| {
            Room::ALL.into_iter().flat_map(move |room| {
                Reload::ALL.into_iter().map(move |reload| Self {
                    shape,
                    room,
                    reload,
                })
            })
        };
        Shape::ALL.into_iter().flat_map(of_shape)
    }

    /// `shape-room-reload`.
    #[must_use]
    pub fn name(self) -> String {
        let (shape, room) = (self.shape.name(), self.room.name());
        format!("{shape}-{room}-{}", self.reload.name())
    }

    /// The cell of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|cell| cell.name() == name)
    }

    /// The node: one device, and models of which it holds some.
    #[must_use]
    pub fn world(self) -> World {
        let (models, slots) = self.size();
        self.reload.world(models, slots)
    }

    /// Models, and how many of them the device holds.
    fn size(self) -> (usize, u64) {
        match (self.room, self.shape) {
            (Room::One, Shape::Agents | Shape::Alternation) => (2, 1),
            (Room::One, _) => (4, 1),
            (Room::Half, Shape::Agents) => (4, 2),
            (Room::Half, Shape::Alternation) => (3, 2),
            (Room::Half, Shape::Scan) => (6, 4),
            (Room::Half, Shape::Diurnal) => (6, 3),
            (Room::Half, _) => (8, 4),
        }
    }

    /// The requests of a seed, in the order of time.
    #[must_use]
    pub fn requests(self, seed: u64) -> Vec<Request> {
        let unit = self.reload.seconds();
        let mut traffic = Traffic {
            rng: SplitMix::named(seed, &self.name()),
            unit,
            requests: Vec::new(),
        };
        let models = self.size().0;
        match self.shape {
            Shape::Agents => traffic.agents(models),
            Shape::Zipf => traffic.zipf(models, 2.5 * unit, f64::INFINITY),
            Shape::HotRare => traffic.hot_and_rare(models),
            Shape::Scan => traffic.scan(models),
            Shape::Shifting => traffic.zipf(models, 2.5 * unit, 60.0 * unit),
            Shape::Diurnal => traffic.diurnal(models),
            Shape::FlashCrowd => traffic.flash_crowd(models),
            Shape::Alternation => traffic.alternation(models),
        }
        traffic.requests.sort_by_key(|request| request.at);
        traffic.requests
    }
}

// === impl Shape ===

impl Shape {
    const ALL: [Self; 8] = [
        Self::Agents,
        Self::Zipf,
        Self::HotRare,
        Self::Scan,
        Self::Shifting,
        Self::Diurnal,
        Self::FlashCrowd,
        Self::Alternation,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Agents => "agents",
            Self::Zipf => "zipf",
            Self::HotRare => "hot-rare",
            Self::Scan => "scan",
            Self::Shifting => "shifting",
            Self::Diurnal => "diurnal",
            Self::FlashCrowd => "flash-crowd",
            Self::Alternation => "alternation",
        }
    }
}

// === impl Room ===

impl Room {
    pub(super) const ALL: [Self; 2] = [Self::One, Self::Half];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Half => "half",
        }
    }
}

// === impl Reload ===

impl Reload {
    pub(super) const ALL: [Self; 3] = [Self::Cheap, Self::Middling, Self::Dear];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cheap => "cheap",
            Self::Middling => "middling",
            Self::Dear => "dear",
        }
    }

    fn cost(self) -> Cost {
        let (demote, promote) = match self {
            Self::Cheap => (0.5, 3.0),
            Self::Middling => (1.0, 12.0),
            Self::Dear => (3.0, 45.0),
        };
        Cost {
            demote: Duration::from_secs_f64(demote),
            promote: Duration::from_secs_f64(promote),
        }
    }

    /// Of a reload, there and back.
    pub(super) fn seconds(self) -> f64 {
        let cost = self.cost();
        (cost.demote + cost.promote).as_secs_f64()
    }

    /// One device, and models of which it holds `slots`.
    pub(super) fn world(self, models: usize, slots: u64) -> World {
        World {
            settings: Settings::default(),
            devices: vec![("gpu-0".into(), slots * 16 * GIB)],
            models: (0..models).map(|index| self.model(index)).collect(),
        }
    }

    fn model(self, index: usize) -> Spec {
        let cost = self.cost();
        Spec {
            id: format!("model-{index:02}").into(),
            width: 1,
            allowed: Vec::new(),
            bytes: BySleepLevel::from_fn(|level| {
                if level == SleepLevel::Ready {
                    16 * GIB
                } else {
                    0
                }
            }),
            levels: SleepLevels::default(),
            costs: BySleepLevel::from_fn(|level| {
                if level == SleepLevel::Cold {
                    cost
                } else {
                    Cost::default()
                }
            }),
            is_pinned: false,
            idle_ttl: None,
        }
    }
}

// === impl Request ===

impl Request {
    /// Only how long the engine works on it is left to chance.
    pub(super) fn drawn(at: f64, model: usize, rng: &mut SplitMix) -> Self {
        let service = rng.exponential(SERVICE).clamp(0.1, 20.0);
        Self {
            at: Duration::from_secs_f64(at),
            model,
            weight: 1.0,
            service: Duration::from_secs_f64(service),
        }
    }
}

struct Traffic {
    rng: SplitMix,
    /// Seconds of a reload.
    unit: f64,
    requests: Vec<Request>,
}

// === impl Traffic ===

impl Traffic {
    fn lasts(&self) -> f64 {
        LASTS * self.unit
    }

    fn request(&mut self, at: f64, model: usize) {
        let request = Request::drawn(at, model, &mut self.rng);
        self.requests.push(request);
    }

    /// Somebody asks a model a few things, one after the other.
    fn session(&mut self, mut at: f64, model: usize) {
        loop {
            self.request(at, model);
            at += self.rng.exponential(4.0);
            if self.rng.unit() < 1.0 / 6.0 {
                break;
            }
        }
    }

    /// One of the first `models`.
    fn any(&mut self, models: usize) -> usize {
        self.rng.below(u32::try_from(models).unwrap_or(u32::MAX)) as usize
    }

    /// Moments of a Poisson process.
    fn poisson(&mut self, (from, until): (f64, f64), mean_gap: f64) -> Vec<f64> {
        let mut at = from;
        let next = || {
            at += self.rng.exponential(mean_gap);
            (at < until).then_some(at)
        };
        std::iter::from_fn(next).collect()
    }

    fn agents(&mut self, models: usize) {
        for _ in 0..2 {
            let mut at = self.rng.exponential(5.0 * self.unit);
            while at < self.lasts() {
                let pair = [self.any(models), self.any(models)];
                for step in 0..8 + self.any(16) {
                    self.request(at, pair[step % 2]);
                    at += 1.0 + self.rng.exponential(5.0);
                }
                at += self.rng.exponential(10.0 * self.unit);
            }
        }
    }

    /// Popularity is dealt anew every `period`.
    fn zipf(&mut self, models: usize, gap: f64, period: f64) {
        let mut from = 0.0;
        while from < self.lasts() {
            let ranking = self.shuffled(models);
            let until = (from + period).min(self.lasts());
            for at in self.poisson((from, until), gap) {
                let rank = self.zipf_rank(models);
                self.session(at, ranking[rank]);
            }
            from = until;
        }
    }

    fn shuffled(&mut self, models: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..models).collect();
        for last in (1..models).rev() {
            let other = self.any(last + 1);
            all.swap(last, other);
        }
        all
    }

    /// With exponent 1.2.
    fn zipf_rank(&mut self, models: usize) -> usize {
        let weight = |rank: u32| f64::from(rank + 1).powf(-1.2);
        let ranks = 0..u32::try_from(models).unwrap_or(u32::MAX);
        let mut left = self.rng.unit() * ranks.clone().map(weight).sum::<f64>();
        let found = ranks.into_iter().position(|rank| {
            left -= weight(rank);
            left <= 0.0
        });
        found.unwrap_or(models - 1)
    }

    fn hot_and_rare(&mut self, models: usize) {
        let all = (0.0, self.lasts());
        let hot = HOT_GAPS.into_iter().take(models / 2 - 1);
        for (hot, gap) in hot.clone().enumerate() {
            for at in self.poisson(all, gap) {
                self.request(at, hot);
            }
        }
        for rare in hot.len()..models {
            for at in self.poisson(all, 40.0 * self.unit) {
                self.request(at, rare);
            }
        }
    }

    fn scan(&mut self, models: usize) {
        let (mut at, mut model) = (0.0, 0);
        while at < self.lasts() {
            for _ in 0..1 + self.any(3) {
                self.request(at, model);
                at += self.rng.exponential(2.0);
            }
            at += self.unit * (0.5 + self.rng.exponential(1.0));
            model = (model + 1) % models;
        }
    }

    fn diurnal(&mut self, models: usize) {
        let period = 150.0 * self.unit;
        for model in 0..models {
            #[expect(clippy::cast_precision_loss, reason = "few models")]
            let phase = model as f64 / models as f64;
            for at in self.poisson((0.0, self.lasts()), 4.0 * self.unit) {
                let angle = std::f64::consts::TAU * (at / period - phase);
                if self.rng.unit() < ((1.0 + angle.cos()) / 2.0).powi(4) {
                    self.session(at, model);
                }
            }
        }
    }

    fn flash_crowd(&mut self, models: usize) {
        self.zipf(models, 4.0 * self.unit, f64::INFINITY);
        let mut at = self.rng.exponential(25.0 * self.unit);
        while at < self.lasts() {
            let wanted = self.any(models);
            let until = at + self.unit * (2.0 + self.rng.exponential(3.0));
            for at in self.poisson((at, until), 0.25) {
                self.request(at, wanted);
            }
            at = until + self.rng.exponential(40.0 * self.unit);
        }
    }

    fn alternation(&mut self, models: usize) {
        let (mut at, mut model) = (0.0, 0);
        while at < self.lasts() {
            self.request(at, model);
            at += self.unit * (0.25 + 0.5 * self.rng.unit());
            model = (model + 1) % models;
        }
    }
}

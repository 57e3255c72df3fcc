//! How little everybody could have stalled: the best schedule that a search with the whole future
//! before it finds.
//!
//! It swaps under the same rules as the planner: one device, one transition at a time, models start
//! only when somebody waits for them, victims drain. A beam search: schedules are compared whenever a
//! request arrives, by what was stalled and what surely will be, and only the best go on. No proof of a
//! least stall, but 50 and 300 schedules found the same where both were tried. It knows no longest
//! wait, so not all of it is to be had.

use std::{collections::HashMap, time::Duration};

use super::{Request, Spec, World};
use crate::lifecycle::SleepLevel;

/// Schedules that go on.
const KEPT: usize = 50;
/// Loads ahead at which being needed counts half.
const AHEAD: f64 = 8.0;

/// Seconds that all requests stall together. None unless there is one device, and at most 16 models
/// of one device each, of which any fits.
pub(crate) fn least_stall(world: &World, requests: &[Request]) -> Option<Duration> {
    let [(_, capacity)] = world.devices[..] else {
        return None;
    };
    let fits = |spec: &Spec| spec.width == 1 && spec.bytes[SleepLevel::Ready] <= capacity;
    if world.models.len() > 16 || !world.models.iter().all(fits) {
        return None;
    }
    let models = world.models.iter().enumerate();
    let search = Search {
        capacity,
        models: models
            .map(|(index, spec)| Arrivals::new(spec, index, requests))
            .collect(),
        arrivals: requests.iter().map(|one| one.at.as_secs_f64()).collect(),
    };
    search.run().map(Duration::from_secs_f64)
}

struct Search {
    capacity: u64,
    models: Vec<Arrivals>,
    arrivals: Vec<f64>,
}

/// The requests of one model, with sums up to each of them.
struct Arrivals {
    promote: f64,
    demote: f64,
    bytes: u64,
    at: Vec<f64>,
    service: Vec<f64>,
    /// Of arrivals.
    sum: Vec<f64>,
    /// When the last of them would end if none waited.
    ended: Vec<f64>,
}

/// The device at rest, and how it came to be so.
#[derive(Clone)]
struct Schedule {
    now: f64,
    stalled: f64,
    used: u64,
    /// Models in memory, one bit each.
    loaded: u16,
    /// Of models out of memory, the first request that was not served.
    next: [usize; 16],
    /// Of models in memory, when those end that waited for it to load.
    ends: [f64; 16],
}

// === impl Search ===

impl Search {
    fn run(&self) -> Option<f64> {
        let mut steps: Vec<Vec<Schedule>> = vec![Vec::new(); self.arrivals.len() + 1];
        steps[0].push(Schedule {
            now: 0.0,
            stalled: 0.0,
            used: 0,
            loaded: 0,
            next: [0; 16],
            ends: [0.0; 16],
        });
        let mut least: Option<f64> = None;
        for step in 0..steps.len() {
            while !steps[step].is_empty() {
                let all = std::mem::take(&mut steps[step]);
                for schedule in self.best(all, step) {
                    let is_over = self.swaps(&schedule, |after| {
                        let at = self.arrivals.partition_point(|at| *at <= after.now);
                        steps[at].push(after);
                    });
                    match self.arrivals.get(step) {
                        Some(next) => steps[step + 1].push(Schedule {
                            now: *next,
                            ..schedule
                        }),
                        None if is_over => {
                            let found = least
                                .map_or(schedule.stalled, |so_far| so_far.min(schedule.stalled));
                            least = Some(found);
                        }
                        None => {}
                    }
                }
            }
        }
        least
    }

    /// Hands over each thing that could be done now; true if nobody waits.
    fn swaps(&self, schedule: &Schedule, mut follow: impl FnMut(Schedule)) -> bool {
        let is_waiting = |(index, model): &(usize, &Arrivals)| {
            let next = model.at.get(schedule.next[*index]);
            !schedule.has(*index) && next.is_some_and(|at| *at <= schedule.now)
        };
        let models = || self.models.iter().enumerate();
        let waiting: Vec<_> = models().filter(is_waiting).collect();
        for (index, model) in &waiting {
            if schedule.used + model.bytes <= self.capacity {
                follow(schedule.start(*index, model));
            }
        }
        if !waiting.is_empty() {
            let loaded = models().filter(|(index, _)| schedule.has(*index));
            loaded.for_each(|(index, model)| follow(schedule.stop(index, model)));
        }
        waiting.is_empty()
    }

    /// The best of those that no other is better than in every way.
    fn best(&self, all: Vec<Schedule>, step: usize) -> Vec<Schedule> {
        let until = self.arrivals.get(step).or(self.arrivals.last());
        let until = until.copied().unwrap_or_default();
        let mut alike: HashMap<(u16, [usize; 16]), Vec<Schedule>> = HashMap::new();
        for one in all {
            let others = alike.entry((one.loaded, one.next)).or_default();
            if others.iter().any(|other| other.is_no_worse(&one)) {
                continue;
            }
            others.retain(|other| !one.is_no_worse(other));
            others.push(one);
        }
        let ranked = alike.into_values().flatten();
        let mut ranked: Vec<_> = ranked
            .map(|one| (self.estimate(&one, until), one))
            .collect();
        ranked.sort_by(|(a, x), (b, y)| a.total_cmp(b).then(x.loaded.cmp(&y.loaded)));
        ranked.truncate(KEPT);
        ranked.into_iter().map(|(_, one)| one).collect()
    }

    /// What was stalled, what those stall who wait, and what those will who come next.
    fn estimate(&self, schedule: &Schedule, until: f64) -> f64 {
        let now = schedule.now.max(until);
        let (mut stall, mut busy_until) = (schedule.stalled, now);
        for (index, model) in self.models.iter().enumerate() {
            if schedule.has(index) {
                continue;
            }
            let (from, to) = (schedule.next[index], model.by(until));
            if from < to {
                let is_full = schedule.used + model.bytes > self.capacity;
                let swap = model.promote + if is_full { model.demote } else { 0.0 };
                stall += model.waits(from..to, busy_until + swap);
                busy_until += 0.7 * swap;
            } else if let Some(next) = model.at.get(to) {
                let back = next + model.promote;
                let near = AHEAD * model.promote;
                stall += model.waits(to..model.by(back), back) * near / (near + next - until);
            }
        }
        stall
    }
}

// === impl Arrivals ===

impl Arrivals {
    fn new(spec: &Spec, index: usize, requests: &[Request]) -> Self {
        let own = || requests.iter().filter(|request| request.model == index);
        let at: Vec<f64> = own().map(|one| one.at.as_secs_f64()).collect();
        let service: Vec<f64> = own().map(|one| one.service.as_secs_f64()).collect();
        let (mut sum, mut ended) = (vec![0.0], vec![0.0]);
        for (at, service) in at.iter().zip(&service) {
            sum.push(sum[sum.len() - 1] + at);
            ended.push(f64::max(ended[ended.len() - 1], at + service));
        }
        let cost = spec.costs[SleepLevel::Cold];
        Self {
            promote: cost.promote.as_secs_f64(),
            demote: cost.demote.as_secs_f64(),
            bytes: spec.bytes[SleepLevel::Ready],
            at,
            service,
            sum,
            ended,
        }
    }

    /// How many have come by then.
    fn by(&self, now: f64) -> usize {
        self.at.partition_point(|at| *at <= now)
    }

    /// How long these wait together until then.
    fn waits(&self, which: std::ops::Range<usize>, until: f64) -> f64 {
        let arrived = self.sum[which.end] - self.sum[which.start];
        crate::residency::value::count(which.len()) * until - arrived
    }
}

// === impl Schedule ===

impl Schedule {
    fn has(&self, model: usize) -> bool {
        self.loaded >> model & 1 == 1
    }

    /// Same models in memory, same requests served: earlier and with less stalled.
    fn is_no_worse(&self, other: &Self) -> bool {
        self.now <= other.now && self.stalled <= other.stalled
    }

    fn start(&self, index: usize, model: &Arrivals) -> Self {
        let now = self.now + model.promote;
        let which = self.next[index]..model.by(now);
        let longest = model.service[which.clone()].iter().copied();
        let mut after = self.clone();
        after.ends[index] = now + longest.fold(0.0, f64::max);
        after.stalled += model.waits(which, now);
        after.loaded |= 1 << index;
        after.used += model.bytes;
        after.now = now;
        after
    }

    fn stop(&self, index: usize, model: &Arrivals) -> Self {
        let mut after = self.clone();
        let served = model.by(self.now);
        let drained = model.ended[served].max(self.ends[index]).max(self.now);
        after.now = drained + model.demote;
        after.next[index] = served;
        after.ends[index] = 0.0;
        after.loaded &= !(1 << index);
        after.used -= model.bytes;
        after
    }
}

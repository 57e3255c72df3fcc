//! The wait queue of a model: what waits, what runs, and what may still come in.
//!
//! When it is full, a group with a shorter queue takes the place of the newest request in the
//! longest one ("longest queue drop" of stochastic fairness queueing, McKenney 1990), and within a
//! group a tenant does. Groups are what is entitled: a flood fills its own place and never that of
//! one below it, and a thousand made-up tenants, one group, have one queue among them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    slab::Slab,
    types::{Arrival, Bound, Bounds, Counts, Group, Key},
};
use crate::TenantId;

/// Requests of one group whose wait counts when a model's place is decided on.
const RENTED: usize = 8;

/// Places that are looked at for requests nobody waits for, as long as none is found: ten thousand are
/// through in four seconds of ticks, and no tick costs by how many wait.
pub(super) const LOOKED_AT: usize = 256;

#[derive(Debug)]
enum Stage<T> {
    Waiting {
        item: T,
        since: Instant,
        expires: Instant,
        place: i64,
    },
    Running,
}

#[derive(Debug)]
struct Request<T> {
    tenant: u32,
    bytes: u64,
    stage: Stage<T>,
}

#[derive(Debug)]
struct Tenant {
    id: TenantId,
    /// Whom it shares its entitlement with, and how much that is.
    group: Arc<str>,
    weight: u32,
    counts: Counts,
    /// In the order they came; a retried one is first.
    waiting: BTreeSet<(i64, Key)>,
}

/// The tenants of a group that are here.
#[derive(Debug, Default)]
struct GroupQueue {
    counts: Counts,
    by_usage: BTreeSet<(u64, u32)>,
}

/// A request that left the queue.
pub(super) struct Left<T> {
    pub(super) item: T,
    pub(super) waited: Duration,
}

#[derive(Debug)]
pub(super) struct WaitQueue<T> {
    bounds: Bounds,
    requests: Slab<Request<T>>,
    /// The place that was looked at last.
    looked: usize,
    expiries: BTreeSet<(Instant, Key)>,
    oldest: BTreeSet<(Instant, Key)>,
    tenants: Vec<Tenant>,
    vacant: Vec<u32>,
    by_id: HashMap<TenantId, u32>,
    groups: HashMap<Arc<str>, GroupQueue>,
    by_usage: BTreeSet<(u64, Arc<str>)>,
    total: Counts,
    tails: i64,
    heads: i64,
}

// === impl WaitQueue ===

impl<T> WaitQueue<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            requests: Slab::new(),
            looked: 0,
            expiries: BTreeSet::new(),
            oldest: BTreeSet::new(),
            tenants: Vec::new(),
            vacant: Vec::new(),
            by_id: HashMap::new(),
            groups: HashMap::new(),
            by_usage: BTreeSet::new(),
            total: Counts::default(),
            tails: 0,
            heads: 0,
        }
    }

    /// Whether there is room, and which requests must leave for it first, newest first.
    /// A retried request keeps the place it was given: there are no more of those than ran.
    pub(super) fn room(&self, arrival: &Arrival) -> Result<Vec<Key>, Bound> {
        if arrival.is_retry {
            return Ok(Vec::new());
        }
        let ours = self.counts(&arrival.tenant);
        let after = Counts {
            waiting: ours.waiting + 1,
            bytes: ours.bytes.saturating_add(arrival.bytes),
            running: ours.running,
        };
        // A tenant that fills the queue alone meets its own bound and not everyone's.
        let bounds = arrival.tenant_bounds;
        if after.waiting > bounds.requests.min(self.bounds.requests) {
            return Err(Bound::TenantRequests);
        }
        if after.bytes > bounds.bytes.min(self.bounds.bytes) {
            return Err(Bound::TenantBytes);
        }
        let lacks_place = self.total.waiting >= self.bounds.requests;
        let wanted = self.total.bytes.saturating_add(arrival.bytes);
        let lacks_bytes = wanted.saturating_sub(self.bounds.bytes);
        if !lacks_place && lacks_bytes == 0 {
            return Ok(Vec::new());
        }
        let bound = if lacks_place {
            Bound::Requests
        } else {
            Bound::Bytes
        };
        self.displace(arrival, &after, lacks_bytes).ok_or(bound)
    }

    /// The newest requests that free one place and so many bytes: of the fullest group if that is
    /// fuller than the arrival's own, else of tenants of its own that are fuller than it. `None` if
    /// these have too few, so that no two displace each other in turn.
    fn displace(&self, arrival: &Arrival, after: &Counts, bytes: u64) -> Option<Vec<Key>> {
        let own = self.groups.get(&arrival.group.name);
        let mut own_after = own.map_or_else(Counts::default, |group| group.counts);
        own_after.waiting += 1;
        own_after.bytes = own_after.bytes.saturating_add(arrival.bytes);
        let (fullest, name) = self.by_usage.last()?;
        let is_other = *name != arrival.group.name && *fullest > self.usage(&own_after);
        let (group, spared) = if is_other {
            (self.groups.get(name)?, 0)
        } else {
            (own?, self.usage(after))
        };
        let victims = group.by_usage.iter().rev();
        let victims = victims.take_while(|(usage, _)| *usage > spared);
        let newest =
            victims.flat_map(|(_, tenant)| self.tenants[*tenant as usize].waiting.iter().rev());
        let mut freed = 0;
        let mut displaced = Vec::new();
        for (_, key) in newest {
            displaced.push(*key);
            freed += self.requests.get(*key).map_or(0, |request| request.bytes);
            if freed >= bytes {
                return Some(displaced);
            }
        }
        None
    }

    /// Lets a request wait for which there is room. Returns its name and its place: lower came
    /// earlier, and a retried one is before all others.
    pub(super) fn enter(&mut self, arrival: &Arrival, item: T, now: Instant) -> (Key, i64) {
        let place = if arrival.is_retry {
            self.heads -= 1;
            self.heads
        } else {
            self.tails += 1;
            self.tails
        };
        let tenant = self.intern(arrival);
        let key = self.requests.insert(Request {
            tenant,
            bytes: arrival.bytes,
            stage: Stage::Waiting {
                item,
                since: now,
                expires: arrival.expires,
                place,
            },
        });
        self.expiries.insert((arrival.expires, key));
        self.oldest.insert((now, key));
        self.tenants[tenant as usize].waiting.insert((place, key));
        self.recount(tenant, |counts| {
            counts.waiting += 1;
            counts.bytes += arrival.bytes;
        });
        (key, place)
    }

    /// Takes a waiting request out; it runs from now on.
    pub(super) fn start(&mut self, key: Key, now: Instant) -> Option<Left<T>> {
        self.leave(key, now, 1)
    }

    /// Takes a waiting request out; it is gone.
    pub(super) fn remove(&mut self, key: Key, now: Instant) -> Option<Left<T>> {
        let left = self.leave(key, now, 0)?;
        let tenant = self.requests.remove(key)?.tenant;
        self.forget_if_empty(tenant);
        Some(left)
    }

    /// A running request is over.
    pub(super) fn end(&mut self, key: Key) {
        if let Some(request) = self.requests.remove(key) {
            self.recount(request.tenant, |counts| counts.running -= 1);
            self.forget_if_empty(request.tenant);
        }
    }

    pub(super) fn is_waiting(&self, key: Key) -> bool {
        let stage = self.requests.get(key).map(|request| &request.stage);
        matches!(stage, Some(Stage::Waiting { .. }))
    }

    pub(super) fn is_running(&self, key: Key) -> bool {
        let stage = self.requests.get(key).map(|request| &request.stage);
        matches!(stage, Some(Stage::Running))
    }

    pub(super) fn key_at(&self, index: u32) -> Option<Key> {
        self.requests.key_at(index)
    }

    pub(super) fn expired(&self, now: Instant) -> Option<Key> {
        let (expires, key) = self.expiries.first()?;
        (*expires <= now).then_some(*key)
    }

    /// Waiting requests that `is_out`, in no order that means anything. O(n).
    pub(super) fn matching(&self, is_out: impl Fn(&T) -> bool) -> Vec<Key> {
        let slots = self.requests.iter();
        slots
            .filter_map(|(key, request)| matches(key, request, &is_out))
            .collect()
    }

    /// As [`matching`](Self::matching), among the next [`LOOKED_AT`] places only, and on as long as
    /// each so many have one: the next call goes on where this one ended.
    pub(super) fn some_matching(&mut self, is_out: impl Fn(&T) -> bool) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut left = self.requests.places();
        while left > 0 {
            let found = keys.len();
            let look = left.min(LOOKED_AT);
            for _ in 0..look {
                self.looked = (self.looked + 1) % self.requests.places();
                let at = u32::try_from(self.looked).unwrap_or(u32::MAX);
                let key = self.requests.key_at(at);
                keys.extend(key.and_then(|key| matches(key, self.requests.get(key)?, &is_out)));
            }
            left -= look;
            if keys.len() == found {
                break;
            }
        }
        keys
    }

    pub(super) fn oldest_wait(&self, now: Instant) -> Option<Duration> {
        let (since, _) = self.oldest.first()?;
        Some(now.saturating_duration_since(*since))
    }

    pub(super) fn rent(&self, now: Instant) -> f64 {
        let waited = |key: &Key| match &self.requests.get(*key)?.stage {
            Stage::Waiting { since, .. } => Some(now.saturating_duration_since(*since)),
            Stage::Running => None,
        };
        let mut groups: BTreeMap<&str, (Duration, usize, u32)> = BTreeMap::new();
        for tenant in &self.tenants {
            let (rent, count, weight) = groups.entry(&tenant.group).or_default();
            *weight = tenant.weight;
            for (_, key) in tenant.waiting.iter().take(RENTED - (*count).min(RENTED)) {
                *rent += waited(key).unwrap_or_default();
                *count += 1;
            }
        }
        let rents = groups.values();
        rents
            .map(|(rent, _, weight)| rent.as_secs_f64() * f64::from(*weight))
            .sum()
    }

    pub(super) fn total(&self) -> Counts {
        self.total
    }

    pub(super) fn counts(&self, tenant: &TenantId) -> Counts {
        self.by_id
            .get(tenant)
            .map_or_else(Counts::default, |at| self.tenants[*at as usize].counts)
    }

    pub(super) fn tenants(&self) -> impl Iterator<Item = (&TenantId, Counts)> {
        let here = self.tenants.iter();
        here.filter(|tenant| tenant.counts.waiting + tenant.counts.running > 0)
            .map(|tenant| (&tenant.id, tenant.counts))
    }

    /// `running`: how many more run from now on.
    fn leave(&mut self, key: Key, now: Instant, running: usize) -> Option<Left<T>> {
        let request = self.requests.get_mut(key)?;
        if !matches!(request.stage, Stage::Waiting { .. }) {
            return None;
        }
        let Stage::Waiting {
            item,
            since,
            expires,
            place,
        } = std::mem::replace(&mut request.stage, Stage::Running)
        else {
            return None;
        };
        let (tenant, bytes) = (request.tenant, request.bytes);
        self.expiries.remove(&(expires, key));
        self.oldest.remove(&(since, key));
        self.tenants[tenant as usize].waiting.remove(&(place, key));
        self.recount(tenant, |counts| {
            counts.waiting -= 1;
            counts.bytes -= bytes;
            counts.running += running;
        });
        Some(Left {
            item,
            waited: now.saturating_duration_since(since),
        })
    }

    fn usage(&self, counts: &Counts) -> u64 {
        usage(self.bounds, counts)
    }

    fn recount(&mut self, tenant: u32, change: impl Fn(&mut Counts)) {
        let tenants = &mut self.tenants;
        let ours = &mut tenants[tenant as usize];
        let name = ours.group.clone();
        let group = self.groups.entry(name.clone()).or_default();
        let (before, was) = (ours.counts, group.counts);
        change(&mut self.total);
        change(&mut ours.counts);
        change(&mut group.counts);
        let (after, is) = (ours.counts, group.counts);
        // What runs takes nothing of the queue.
        if (before.waiting, before.bytes) != (after.waiting, after.bytes) {
            let usage = |counts: &Counts| usage(self.bounds, counts);
            let by_usage = &mut group.by_usage;
            refile(by_usage, usage(&before), usage(&after), tenant);
            refile(&mut self.by_usage, usage(&was), usage(&is), name.clone());
        }
        if is == Counts::default() {
            self.groups.remove(&name);
        }
    }

    /// Other bounds from now on. What part of the queue somebody takes depends on them.
    pub(super) fn rebound(&mut self, bounds: Bounds) {
        let here: Vec<u32> = self.by_id.values().copied().collect();
        let counts: Vec<(u32, Counts)> = here.into_iter().map(|at| (at, self.clear(at))).collect();
        self.bounds = bounds;
        for (at, counts) in counts {
            self.recount(at, |mine| mine.add(counts));
        }
    }

    /// The tenant belongs to this group from now on, with all that waits and runs of it.
    pub(super) fn regroup(&mut self, tenant: &TenantId, group: &Group) {
        let Some(at) = self.by_id.get(tenant).copied() else {
            return;
        };
        let weight = group.weight.max(1);
        let before = &self.tenants[at as usize];
        if before.group == group.name && before.weight == weight {
            return;
        }
        let counts = self.clear(at);
        let tenant = &mut self.tenants[at as usize];
        tenant.group = group.name.clone();
        tenant.weight = weight;
        self.recount(at, |mine| mine.add(counts));
    }

    /// What waits of a tenant, first come first.
    pub(super) fn waiting_of(&self, tenant: &TenantId) -> Vec<Key> {
        let at = self.by_id.get(tenant);
        let waiting = at.map(|at| self.tenants[*at as usize].waiting.iter());
        waiting.into_iter().flatten().map(|(_, key)| *key).collect()
    }

    /// How many requests of a tenant wait that came up to then; more than `most` are not counted.
    pub(super) fn ahead(&self, tenant: &TenantId, until: Instant, most: usize) -> usize {
        let at = self.by_id.get(tenant);
        let waiting = at.map(|at| self.tenants[*at as usize].waiting.iter());
        let came_before = |(_, key): &&(i64, Key)| match self.requests.get(*key).map(|it| &it.stage)
        {
            Some(Stage::Waiting { since, .. }) => *since <= until,
            Some(Stage::Running) | None => false,
        };
        // One that is tried again is first, though it came back later.
        let counted = waiting.into_iter().flatten().take(most);
        counted.filter(came_before).count()
    }

    pub(super) fn item_mut(&mut self, key: Key) -> Option<&mut T> {
        match &mut self.requests.get_mut(key)?.stage {
            Stage::Waiting { item, .. } => Some(item),
            Stage::Running => None,
        }
    }

    /// Takes a tenant's counts out of all lists.
    fn clear(&mut self, at: u32) -> Counts {
        let counts = self.tenants[at as usize].counts;
        self.recount(at, |mine| mine.sub(counts));
        counts
    }

    fn intern(&mut self, arrival: &Arrival) -> u32 {
        let id = &arrival.tenant;
        self.regroup(id, &arrival.group);
        if let Some(at) = self.by_id.get(id) {
            return *at;
        }
        let tenant = Tenant {
            id: id.clone(),
            group: arrival.group.name.clone(),
            weight: arrival.group.weight.max(1),
            counts: Counts::default(),
            waiting: BTreeSet::new(),
        };
        let at = if let Some(at) = self.vacant.pop() {
            self.tenants[at as usize] = tenant;
            at
        } else {
            self.tenants.push(tenant);
            u32::try_from(self.tenants.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_id.insert(id.clone(), at);
        at
    }

    fn forget_if_empty(&mut self, at: u32) {
        let tenant = &self.tenants[at as usize];
        if tenant.counts == Counts::default() {
            self.by_id.remove(&tenant.id);
            self.vacant.push(at);
        }
    }
}

fn matches<T>(key: Key, request: &Request<T>, is_out: impl Fn(&T) -> bool) -> Option<Key> {
    match &request.stage {
        Stage::Waiting { item, .. } => is_out(item).then_some(key),
        Stage::Running => None,
    }
}

/// How much of the queue somebody takes, in millionths of the bound it is closer to, rounded up so that
/// a single request already counts.
fn usage(bounds: Bounds, counts: &Counts) -> u64 {
    let waiting = u64::try_from(counts.waiting).unwrap_or(u64::MAX);
    let places = u64::try_from(bounds.requests).unwrap_or(u64::MAX);
    let millionths = |part: u64, whole: u64| {
        // Divided in 64 bits where they are enough, which they nearly always are.
        if let Some(part) = part.checked_mul(1_000_000) {
            return part.div_ceil(whole.max(1));
        }
        let exact = (u128::from(part) * 1_000_000).div_ceil(u128::from(whole.max(1)));
        u64::try_from(exact).unwrap_or(u64::MAX)
    };
    millionths(waiting, places).max(millionths(counts.bytes, bounds.bytes))
}

/// Whoever takes nothing is in no list.
fn refile<T: Ord + Clone>(list: &mut BTreeSet<(u64, T)>, before: u64, after: u64, who: T) {
    if before != after {
        list.remove(&(before, who.clone()));
    }
    if after > 0 {
        list.insert((after, who));
    }
}

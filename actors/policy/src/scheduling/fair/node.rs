//! One node of the tree: what it is entitled to and what it got.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    forecast::Mean,
    lanes::Lanes,
    lengths::{Lengths, Uncached},
    window::Load,
};
use crate::scheduling::settings::Grains;

pub(super) type NodeId = u32;

/// Children in order of virtual time; ties go to the lower id, so that runs repeat.
pub(super) type ByTime = BTreeSet<(Grains, NodeId)>;

/// Where a node stands, from the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Root,
    Group,
    Tenant,
    Flow,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) parent: NodeId,
    pub(super) level: Level,
    pub(super) weight: Grains,
    /// What it was charged, exactly; rounding happens only where it is compared.
    pub(super) served: Grains,
    /// What lifts added to its virtual time.
    base: Grains,
    /// Refunds do not take its virtual time below this, see [`Node::lift`].
    floor: Grains,
    /// Requests that wait below it, by class.
    pub(super) waiting: BTreeMap<i32, u32>,
    /// Requests that run below it.
    pub(super) running: u32,
    pub(super) load: Load,
    pub(super) children: Children,
    /// Of a flow.
    pub(super) lanes: Lanes,
    /// Of a tenant.
    pub(super) lengths: Lengths,
    /// Of a tenant: how much of its prompts is computed.
    pub(super) uncached: Uncached,
    /// Of a tenant: what its requests come to.
    pub(super) usual: Mean,
    /// Of a tenant: where its last request ends in the order of tags.
    pub(super) last_tag: Grains,
}

#[derive(Debug, Default)]
pub(super) struct Children {
    /// Those with requests waiting, by class.
    pub(super) backlogged: BTreeMap<i32, ByTime>,
    /// Those with nothing waiting and nothing running.
    pub(super) idle: ByTime,
    /// How many are not idle, and their weights.
    pub(super) active: u32,
    pub(super) active_weight: Grains,
    /// The virtual time of the last one whose line became empty.
    pub(super) last_left: Grains,
}

// === impl Node ===

impl Node {
    pub(super) fn new(
        name: Arc<str>,
        parent: NodeId,
        level: Level,
        weight: u32,
        lengths: Lengths,
    ) -> Self {
        Self {
            name,
            parent,
            level,
            weight: Grains::from(weight.max(1)),
            served: 0,
            base: 0,
            floor: 0,
            waiting: BTreeMap::new(),
            running: 0,
            load: Load::default(),
            children: Children::default(),
            lanes: Lanes::default(),
            lengths,
            uncached: Uncached::default(),
            usual: Mean::default(),
            last_tag: 0,
        }
    }

    /// Virtual time: service per weight. Rounded down, for refunds as for charges, so that charging
    /// and refunding the same amount leads back to the same value.
    pub(super) fn time(&self) -> Grains {
        self.base + self.served.div_euclid(self.weight)
    }

    /// Charges, or refunds a negative amount. A refund never leads below the last lift: what is
    /// refunded was charged before it, and a lift has forgiven that already.
    pub(super) fn charge(&mut self, grains: Grains) {
        self.served += grains;
        let missing = self.floor - self.time();
        if grains < 0 && missing > 0 {
            self.base += missing;
        }
    }

    /// Time spent away is not credit: virtual time is at least `to` from now on.
    pub(super) fn lift(&mut self, to: Grains) {
        self.floor = to;
        self.base += (to - self.time()).max(0);
    }

    /// A new weight counts from now on; the past stays as it was paid.
    pub(super) fn reweigh(&mut self, weight: Grains) {
        let before = self.time();
        self.weight = weight;
        self.base += before - self.time();
    }

    pub(super) fn is_backlogged(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn is_active(&self) -> bool {
        self.is_backlogged() || self.running > 0
    }
}

// === impl Children ===

impl Children {
    /// Where the children are now: the lowest with requests waiting, or where the last one left.
    pub(super) fn time(&self) -> Grains {
        self.lowest().unwrap_or(self.last_left)
    }

    pub(super) fn lowest(&self) -> Option<Grains> {
        let firsts = self.backlogged.values().filter_map(BTreeSet::first);
        firsts.map(|(time, _)| *time).min()
    }

    pub(super) fn lowest_in(&self, class: i32) -> Option<NodeId> {
        let (_, node) = self.backlogged.get(&class)?.first()?;
        Some(*node)
    }
}

//! The decision: who goes next, if anyone may.

use std::time::{Duration, Instant};

use super::{
    FairCore,
    node::{Node, NodeId},
    tree::ROOT,
    window::{Fit, Space},
};
use crate::scheduling::settings::{Grains, Mutant, TOKEN};

/// Tenants looked at behind a blocked one. Those who may pass are at the front, since they must be
/// within the slack; the bound keeps a decision short when thousands are.
const MAX_PASSERS: usize = 16;

/// A class that waits too long gets one of so many turns. Request by request, ageing would let a
/// low class with a long line overtake a high one for good, as its head is always old.
const OVERDUE_TURN: u64 = 8;

impl FairCore {
    /// Who goes now: the head of the line if it has room, else one who may use headroom.
    ///
    /// Nobody else may pass a head without room, or small requests would take every place that
    /// becomes free before a large one has enough.
    pub(super) fn pick(&mut self, now: Instant) -> Option<(u32, Space)> {
        let class = self.class_to_serve(now)?;
        let head = self.head_below(ROOT, class, now)?;
        let fit = self.fit(head, Space::Common);
        if fit == Fit::Fits {
            return Some((head, Space::Common));
        }
        self.window.note(fit);
        self.passer(class, now)
    }

    fn fit(&self, slot: u32, space: Space) -> Fit {
        let used = self.tree.node(ROOT).load;
        let (need, _) = self.need(self.job(slot));
        self.window.fit(used, need, self.lengths.spread(), space)
    }

    /// The top class, except that every eighth turn is for one that waits too long.
    fn class_to_serve(&self, now: Instant) -> Option<i32> {
        let top = *self.ages.first_key_value()?.0;
        if !self.turns.is_multiple_of(OVERDUE_TURN) {
            return Some(top);
        }
        let heads = self.ages.iter().filter_map(|(class, ages)| {
            let (_, slot) = ages.first()?;
            Some((self.job(*slot).since, *class))
        });
        let overdue = heads.filter(|(since, _)| {
            let waited = now.saturating_duration_since(*since);
            waited >= self.settings.class_patience
        });
        Some(overdue.min().map_or(top, |(_, class)| class))
    }

    /// The request that the lowest virtual times lead to.
    fn head_below(&self, from: NodeId, class: i32, now: Instant) -> Option<u32> {
        let mut node = self.tree.node(from);
        while let Some(lowest) = node.children.lowest_in(class) {
            node = self.tree.node(lowest);
        }
        let patience: Duration = self.settings.long_patience;
        node.lanes.head(class, now, patience)
    }

    /// The first that fits into the headroom and is entitled to it.
    fn passer(&self, class: i32, now: Instant) -> Option<(u32, Space)> {
        let skips_freely = self.settings.lacks(Mutant::BlockedHead);
        let is_unguarded = skips_freely || self.settings.lacks(Mutant::HeadroomGuard);
        let space = if skips_freely {
            Space::Common
        } else {
            Space::Headroom
        };
        let mut looked = 0;
        let root = self.tree.node(ROOT);
        for (_, group) in root.children.backlogged.get(&class)? {
            let group = self.tree.node(*group);
            looked += 1;
            if !is_unguarded && !self.may_pass(root, group, (1, 1)) {
                if looked >= MAX_PASSERS {
                    return None;
                }
                continue;
            }
            let share = share_of(root, group, (1, 1));
            for (_, id) in group.children.backlogged.get(&class)? {
                let tenant = self.tree.node(*id);
                if is_unguarded || self.may_pass(group, tenant, share) {
                    let head = self.head_below(*id, class, now)?;
                    if self.fit(head, space) == Fit::Fits {
                        return Some((head, space));
                    }
                }
                looked += 1;
                if looked >= MAX_PASSERS {
                    return None;
                }
            }
        }
        None
    }

    /// Whether a node is owed service and uses less than half its share. An only child has no one
    /// to be unfair to, and nobody it could be below.
    fn may_pass(&self, parent: &Node, node: &Node, share: (u128, u128)) -> bool {
        if parent.children.active <= 1 && parent.level == self.tree.node(ROOT).level {
            return true;
        }
        let slack = Grains::from(self.settings.slack) * TOKEN;
        let lag = (node.time() - parent.children.time()) * node.weight;
        let (part, whole) = share_of(parent, node, share);
        lag <= slack && self.window.is_below_half_share(node.load, part, whole)
    }
}

/// A node's part of its parent's part of everything.
fn share_of(parent: &Node, node: &Node, (part, whole): (u128, u128)) -> (u128, u128) {
    let weight = |grains: Grains| u128::try_from(grains).unwrap_or(1);
    (
        part * weight(node.weight),
        whole * weight(parent.children.active_weight).max(1),
    )
}

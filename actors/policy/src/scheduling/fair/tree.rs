//! root -> group -> tenant -> flow, and who of them has something waiting.
//!
//! Each level is a fair queue of its own (hierarchical fair queueing, Bennett and Zhang,
//! SIGCOMM'96): a charge goes to the leaf and every ancestor, and a decision descends along the lowest
//! virtual times. All operations cost the depth, 3, times O(log siblings).

use std::{collections::HashMap, mem, sync::Arc};

use super::{
    lengths::Lengths,
    node::{Level, Node, NodeId},
    window::Load,
};
use crate::scheduling::settings::{Grains, TOKEN};

pub(super) const ROOT: NodeId = 0;

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) vacant: Vec<NodeId>,
    pub(super) index: HashMap<(NodeId, Arc<str>), NodeId>,
}

// === impl Tree ===

impl Tree {
    pub(super) fn new() -> Self {
        let nothing = Lengths::assume(0);
        Self {
            nodes: vec![Node::new("".into(), ROOT, Level::Root, 1, nothing)],
            vacant: Vec::new(),
            index: HashMap::new(),
        }
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// Nodes that exist, the root included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    #[cfg(test)]
    pub(super) fn children(&self, of: NodeId) -> impl Iterator<Item = (NodeId, &Node)> {
        let ids = self.index.values().copied();
        ids.map(|id| (id, self.node(id)))
            .filter(move |(_, node)| node.parent == of)
    }

    /// A request waits at the leaf. `lift` says how far below its siblings a node starts that had
    /// nothing waiting; `None` leaves it where it was.
    ///
    /// A node is lifted when its *line* was empty, as in VTC, not only when it had nothing in flight:
    /// otherwise one long answer kept open would bank the whole engine's time as credit.
    pub(super) fn enqueue(&mut self, leaf: NodeId, class: i32, lift: Option<Grains>) {
        let mut id = leaf;
        while id != ROOT {
            self.activate(id);
            let parent = self.node(id).parent;
            if let Some(credit) = lift
                && !self.node(id).is_backlogged()
            {
                let siblings = &self.node(parent).children;
                // One grain below, so that who comes back goes before who is served already.
                let to = siblings.time() - credit - 1;
                self.node_mut(id).lift(to);
            }
            let node = self.node_mut(id);
            let time = node.time();
            let count = node.waiting.entry(class).or_default();
            *count += 1;
            if *count == 1 {
                let backlogged = &mut self.node_mut(parent).children.backlogged;
                backlogged.entry(class).or_default().insert((time, id));
            }
            id = parent;
        }
    }

    /// A request of the leaf waits no longer.
    pub(super) fn dequeue(&mut self, leaf: NodeId, class: i32) {
        let mut id = leaf;
        while id != ROOT {
            let node = self.node_mut(id);
            let (time, parent) = (node.time(), node.parent);
            if let Some(count) = node.waiting.get_mut(&class) {
                *count -= 1;
                if *count == 0 {
                    node.waiting.remove(&class);
                    let has_left = !node.is_backlogged();
                    self.leave_line(parent, class, (time, id), has_left);
                }
            }
            self.deactivate(id);
            id = parent;
        }
    }

    fn leave_line(&mut self, parent: NodeId, class: i32, child: (Grains, NodeId), has_left: bool) {
        let children = &mut self.node_mut(parent).children;
        if let Some(line) = children.backlogged.get_mut(&class) {
            line.remove(&child);
            if line.is_empty() {
                children.backlogged.remove(&class);
            }
        }
        if has_left {
            children.last_left = child.0;
        }
    }

    /// A request of the leaf runs, and occupies `load`.
    pub(super) fn start(&mut self, leaf: NodeId, load: Load) {
        let mut id = leaf;
        while id != ROOT {
            self.activate(id);
            let node = self.node_mut(id);
            node.running += 1;
            node.load.add(load);
            id = node.parent;
        }
        self.node_mut(ROOT).load.add(load);
    }

    /// A request of the leaf runs no longer, and frees `load`.
    pub(super) fn stop(&mut self, leaf: NodeId, load: Load) {
        let mut id = leaf;
        while id != ROOT {
            let node = self.node_mut(id);
            node.running -= 1;
            node.load.sub(load);
            let parent = node.parent;
            self.deactivate(id);
            id = parent;
        }
        self.node_mut(ROOT).load.sub(load);
    }

    /// What a running request of the leaf occupies changes.
    pub(super) fn reload(&mut self, leaf: NodeId, from: Load, to: Load) {
        let mut id = leaf;
        loop {
            let node = self.node_mut(id);
            node.load.add(to);
            node.load.sub(from);
            if id == ROOT {
                return;
            }
            id = node.parent;
        }
    }

    /// Charges the leaf and all above it; a negative amount is a refund.
    pub(super) fn charge(&mut self, leaf: NodeId, grains: Grains) {
        let mut id = leaf;
        while id != ROOT {
            let node = self.node_mut(id);
            let before = node.time();
            node.charge(grains);
            let (after, parent) = (node.time(), node.parent);
            if before != after && node.is_backlogged() {
                let waiting = mem::take(&mut node.waiting);
                let backlogged = &mut self.node_mut(parent).children.backlogged;
                for class in waiting.keys() {
                    if let Some(line) = backlogged.get_mut(class) {
                        line.remove(&(before, id));
                        line.insert((after, id));
                    }
                }
                self.node_mut(id).waiting = waiting;
            }
            id = parent;
        }
        self.node_mut(ROOT).served += grains;
    }

    /// The tenant above a leaf.
    pub(super) fn tenant_of(&self, leaf: NodeId) -> NodeId {
        self.node(leaf).parent
    }

    /// The weight of a tenant among all tenants of all groups, for an order without levels. In
    /// tokens of tag per grain of service it is the divisor.
    pub(super) fn flat_weight(&self, tenant: NodeId) -> Grains {
        let node = self.node(tenant);
        (node.weight * self.node(node.parent).weight).clamp(1, TOKEN * TOKEN)
    }
}

//! Which nodes exist: made when a request needs them, forgotten when too many are idle.

use std::{mem, sync::Arc};

use super::{
    lengths::Lengths,
    node::{Level, Node, NodeId},
    tree::{ROOT, Tree},
};
use crate::scheduling::{
    settings::Grains,
    types::{Arrival, Share},
};

/// Idle nodes that are remembered for what they owe: flows of a tenant, tenants of a group, groups.
/// Beyond that the one that owes least is forgotten. It would usually be lifted above its debt at
/// its return anyway; and ids are free, so a client could shed its debt by making up a new one.
///
/// Flows owe each other alone, so none outlives what its tenant has waiting or running: made-up
/// sessions of made-up tenants take no more memory than the tenants.
const REMEMBERED_FLOWS: usize = 16;
const REMEMBERED_TENANTS: usize = 4096;
const REMEMBERED_GROUPS: usize = 256;

impl Tree {
    /// The leaf of a request; made if it isn't there. New tenants assume the answers of all others.
    pub(super) fn leaf(&mut self, arrival: &Arrival, lengths: Lengths) -> NodeId {
        let group = (&arrival.group.name, arrival.group.weight);
        let group = self.child(ROOT, Level::Group, group, lengths);
        let tenant = arrival.tenant.shared();
        let tenant = self.child(group, Level::Tenant, (&tenant, arrival.weight), lengths);
        self.child(tenant, Level::Flow, (&flow_name(arrival), 1), lengths)
    }

    /// The leaf of the same session of the same tenant, which is entitled otherwise from now on. In
    /// another group it begins anew, but for what its answers come to.
    pub(super) fn moved(&mut self, leaf: NodeId, share: &Share) -> NodeId {
        let flow = Arc::clone(&self.node(leaf).name);
        let tenant = self.node(self.tenant_of(leaf));
        let (name, lengths) = (Arc::clone(&tenant.name), tenant.lengths);
        let group = (&share.group.name, share.group.weight);
        let group = self.child(ROOT, Level::Group, group, lengths);
        let tenant = self.child(group, Level::Tenant, (&name, share.weight), lengths);
        self.child(tenant, Level::Flow, (&flow, 1), lengths)
    }

    fn child(
        &mut self,
        parent: NodeId,
        level: Level,
        (name, weight): (&Arc<str>, u32),
        lengths: Lengths,
    ) -> NodeId {
        let name = Arc::clone(name);
        if let Some(id) = self.index.get(&(parent, Arc::clone(&name))).copied() {
            self.reweigh(id, Grains::from(weight.max(1)));
            return id;
        }
        let node = Node::new(Arc::clone(&name), parent, level, weight, lengths);
        let time = node.time();
        let id = if let Some(id) = self.vacant.pop() {
            self.nodes[id as usize] = node;
            id
        } else {
            self.nodes.push(node);
            NodeId::try_from(self.nodes.len() - 1).unwrap_or(NodeId::MAX)
        };
        self.index.insert((parent, name), id);
        self.node_mut(parent).children.idle.insert((time, id));
        id
    }

    fn reweigh(&mut self, id: NodeId, weight: Grains) {
        let node = self.node_mut(id);
        let change = weight - node.weight;
        if change == 0 {
            return;
        }
        node.reweigh(weight);
        let (parent, is_active) = (node.parent, node.is_active());
        if is_active {
            self.node_mut(parent).children.active_weight += change;
        }
    }

    pub(super) fn activate(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.is_active() {
            return;
        }
        let (time, weight, parent) = (node.time(), node.weight, node.parent);
        let siblings = &mut self.node_mut(parent).children;
        siblings.idle.remove(&(time, id));
        siblings.active += 1;
        siblings.active_weight += weight;
    }

    pub(super) fn deactivate(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.is_active() {
            return;
        }
        if node.level == Level::Tenant {
            self.forget_below(id);
        }
        let node = self.node(id);
        let (time, weight, parent) = (node.time(), node.weight, node.parent);
        let remembered = match node.level {
            Level::Root | Level::Group => REMEMBERED_GROUPS,
            Level::Tenant => REMEMBERED_TENANTS,
            Level::Flow => REMEMBERED_FLOWS,
        };
        let siblings = &mut self.node_mut(parent).children;
        siblings.active -= 1;
        siblings.active_weight -= weight;
        siblings.idle.insert((time, id));
        if siblings.idle.len() > remembered
            && let Some((_, least)) = siblings.idle.pop_first()
        {
            self.forget(least);
        }
    }

    fn forget(&mut self, id: NodeId) {
        self.forget_below(id);
        let node = self.node(id);
        let key = (node.parent, Arc::clone(&node.name));
        self.index.remove(&key);
        self.vacant.push(id);
    }

    /// Below an idle node all are idle. Bounded by what is remembered per level.
    fn forget_below(&mut self, id: NodeId) {
        let children = mem::take(&mut self.node_mut(id).children.idle);
        for (_, child) in children {
            self.forget(child);
        }
    }

    /// The leaf that a request would wait at, if it is there.
    pub(super) fn known_leaf(&self, arrival: &Arrival) -> Option<NodeId> {
        let child = |parent, name| self.index.get(&(parent, name)).copied();
        let group = child(ROOT, Arc::clone(&arrival.group.name))?;
        let tenant = child(group, arrival.tenant.shared())?;
        child(tenant, flow_name(arrival))
    }
}

/// Requests that name no session are one of their own.
fn flow_name(arrival: &Arrival) -> Arc<str> {
    arrival.flow.clone().unwrap_or_default()
}

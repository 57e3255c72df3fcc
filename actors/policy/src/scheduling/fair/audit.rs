//! For tests: every total that is kept up to date, against the same total counted from scratch.

use super::{
    FairCore, Grains, Load, NodeId, ROOT,
    node::{Level, Node},
};

impl FairCore {
    /// Service charged altogether, in micro-tokens.
    pub(in crate::scheduling) fn served(&self) -> Grains {
        self.tree.node(ROOT).served
    }

    /// Nothing waits, runs or is held.
    pub(in crate::scheduling) fn is_empty(&self) -> bool {
        let root = self.tree.node(ROOT);
        root.load == Load::default() && root.children.active == 0 && self.ages.is_empty()
    }

    /// Tenants and flows that are remembered.
    pub(in crate::scheduling) fn nodes(&self) -> usize {
        self.tree.len()
    }

    pub(in crate::scheduling) fn audit(&self) {
        let root = self.audit_below(ROOT);
        let waiting: usize = self
            .ages
            .values()
            .map(std::collections::BTreeSet::len)
            .sum();
        assert_eq!(root, u32::try_from(waiting).unwrap());
        let ran: Load = self.running().fold(Load::default(), |mut sum, load| {
            sum.add(load);
            sum
        });
        assert_eq!(self.tree.node(ROOT).load, ran);
    }

    fn running(&self) -> impl Iterator<Item = Load> {
        self.jobs.iter().filter_map(|job| Some(job.run?.load))
    }

    /// Checks a node's children and returns how many requests wait below it.
    fn audit_below(&self, id: NodeId) -> u32 {
        let node = self.tree.node(id);
        let children: Vec<(NodeId, &Node)> = self.tree.children(id).collect();
        if children.is_empty() {
            return node.waiting.values().sum();
        }
        let mut load = Load::default();
        let (mut active, mut weight, mut waiting) = (0, 0, 0);
        for (id, child) in &children {
            load.add(child.load);
            if child.is_active() {
                active += 1;
                weight += child.weight;
            }
            let is_idle = node.children.idle.contains(&(child.time(), *id));
            assert_eq!(is_idle, !child.is_active());
            for (class, line) in &node.children.backlogged {
                let is_listed = line.contains(&(child.time(), *id));
                assert_eq!(is_listed, child.waiting.contains_key(class));
            }
            waiting += self.audit_below(*id);
        }
        let listed: usize = node
            .children
            .backlogged
            .values()
            .map(|line| line.len())
            .sum();
        let expected: usize = children.iter().map(|(_, child)| child.waiting.len()).sum();
        assert_eq!(listed, expected);
        assert_eq!(node.load, load);
        assert_eq!(
            (node.children.active, node.children.active_weight),
            (active, weight)
        );
        if id != ROOT {
            assert_eq!(waiting, node.waiting.values().sum::<u32>());
        }
        let served: Grains = children.iter().map(|(_, child)| child.served).sum();
        // What a forgotten flow was charged, its tenant still was.
        let is_whole = node.level != Level::Tenant;
        assert!(served <= node.served, "a charge goes to every level");
        assert!(
            !is_whole || served == node.served,
            "nothing is charged twice"
        );
        waiting
    }
}

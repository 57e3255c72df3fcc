//! Engines as processes: started under a shim, adopted from an earlier kvwarden, followed to their end.

mod attached;
pub mod cgroup;
pub mod child;
pub mod handover;
pub mod leadership;
pub mod orphans;
pub mod private;
pub mod shim;
mod start;
pub mod startup;
mod supervise;
pub(crate) mod task;
pub mod tree;

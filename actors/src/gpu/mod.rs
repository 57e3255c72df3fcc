//! One GPU set: which engines run on it.

pub mod cgroup;
pub mod child;
pub mod engine;
pub mod shim;
pub mod tree;

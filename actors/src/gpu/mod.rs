//! One GPU set: which engines run on it.

pub mod engine;
pub mod shim;

//! kvwarden.

pub mod config;
pub mod install;
pub mod layout;

//! kvwarden.

pub mod cli;
pub mod config;
pub mod install;
pub mod layout;

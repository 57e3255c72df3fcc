//! kvwarden.

pub mod config;
pub mod layout;

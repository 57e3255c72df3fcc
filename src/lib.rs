//! kvwarden.

pub mod config;
pub mod layout;
pub mod sim;

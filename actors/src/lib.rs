//! The actors of kvwarden: thin shells around `kvwarden-policy`.

pub mod gpu;

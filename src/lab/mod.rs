//! What measures and what replays: nothing here serves anybody.

pub mod bench;
mod plot;
pub mod replay;

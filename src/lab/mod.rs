//! What measures and what replays: nothing here serves anybody.
//!
//! | module | does |
//! |---|---|
//! | [`bench`] | floods a server, one arm for each discipline, and reports latency beside throughput |
//! | [`replay`] | runs a log of requests through the planner, and through other tools' rules, in virtual time |
//! | `plot` | draws what both report |

pub mod bench;
mod plot;
pub mod replay;

//! What an engine does on its model's order: give memory back, take it again, prove itself.

use std::time::Duration;

use super::{engine::Endpoint, rungs};
use crate::protocol::{News, Shift};

/// How long an engine may take for one call. Moving the weights of a large model takes minutes on a
/// slow disk; one that takes longer is stopped and started, which is no slower.
const WITHIN: Duration = Duration::from_secs(300);

/// Makes the engine do it, and says what came of it.
pub(super) async fn shift(endpoint: &Endpoint, what: Shift) -> News {
    match what {
        Shift::Demote { from, to } => match rungs::demote(endpoint, from, to, WITHIN).await {
            Ok(()) => News::Demoted,
            Err(error) => News::DemoteFailed {
                reason: error.to_string(),
            },
        },
        Shift::Wake { from } => match rungs::promote(endpoint, from, WITHIN).await {
            Ok(()) => News::Woken,
            Err(error) => News::WakeFailed {
                reason: error.to_string(),
            },
        },
        Shift::Verify => match rungs::verify(endpoint, &endpoint.canary).await {
            Ok(()) => News::Verified,
            Err(reason) => News::VerifyFailed { reason },
        },
    }
}

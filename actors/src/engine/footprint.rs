//! How much memory an engine takes, as far as that is known before it runs.

use serde::{Deserialize, Serialize};

/// What an engine takes of each of its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Bytes of weights.
    pub weights: u64,
    /// Bytes of the KV cache, where its size is fixed.
    pub kv: u64,
    /// It fills the device up to this share, whatever its weights leave for KV (vLLM and SGLang
    /// without a KV cache of fixed size).
    pub share: Option<f64>,
}

impl Footprint {
    /// Bytes on a device of that size.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a size is no exact number of bytes"
    )]
    pub fn on(&self, device: u64) -> u64 {
        let fixed = self.weights.saturating_add(self.kv);
        let filled = self.share.map(|share| (device as f64 * share) as u64);
        filled.map_or(fixed, |bytes| bytes.max(self.weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_that_fills_its_share_still_needs_room_for_its_weights() {
        let footprint = Footprint {
            weights: 60,
            kv: 0,
            share: Some(0.9),
        };
        assert_eq!((footprint.on(100), footprint.on(50)), (90, 60));
        let fixed = Footprint {
            share: None,
            kv: 5,
            ..footprint
        };
        assert_eq!(fixed.on(100), 65);
    }
}

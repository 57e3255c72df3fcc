//! A prompt as the prefix cache sees it: a length and one hash per full block.
//!
//! Each hash covers its block and everything before it, so equal hashes mean equal prefixes. The
//! chain starts from the salt: prompts under different salts share nothing, which is how vLLM's
//! `cache_salt` keeps tenants from probing each other's prompts by timing (vLLM RFC #16016).

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

/// Tokens per KV block, vLLM's default on CUDA.
pub const BLOCK_TOKENS: u32 = 16;

/// The hash of a block and all blocks before it.
///
/// 64 bits are enough for a simulation: among the 10^7 blocks of a long run two differ and collide
/// with a chance of about 3 in a million. A real engine uses SHA-256, because its clients are
/// adversaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHash(u64);

// The value is a good hash already, so it is written as a whole and the table below uses it as is.
impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// What the scheduler needs of a prompt. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    tokens: u32,
    blocks: Arc<[BlockHash]>,
}

impl Prompt {
    /// Of token ids, shared in the prefix cache with prompts under the same salt only.
    ///
    /// Prompts beyond `u32::MAX` tokens are cut there; no KV cache comes near it.
    #[must_use]
    pub fn from_ids(salt: Option<&str>, ids: &[u32]) -> Self {
        let mut parent = {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            hasher.finish()
        };
        let blocks = ids
            .as_chunks::<{ BLOCK_TOKENS as usize }>()
            .0
            .iter()
            .map(|block| {
                let mut hasher = DefaultHasher::new();
                hasher.write_u64(parent);
                block.hash(&mut hasher);
                parent = hasher.finish();
                BlockHash(parent)
            })
            .collect();
        Self {
            tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            blocks,
        }
    }

    /// Of a length alone: nothing in it is ever found in or left to the prefix cache.
    #[must_use]
    pub fn opaque(tokens: u32) -> Self {
        Self {
            tokens,
            blocks: Arc::default(),
        }
    }

    /// Its length in tokens.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The hashes of its full blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> &[BlockHash] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_have_equal_hashes_under_one_salt_only() {
        let long: Vec<u32> = (0..40).collect();
        let mut other = long.clone();
        other[20] = 999;
        let plain = Prompt::from_ids(None, &long);
        let changed = Prompt::from_ids(None, &other);
        assert_eq!(plain.blocks().len(), 2);
        assert_eq!(plain.blocks()[0], changed.blocks()[0]);
        assert_ne!(plain.blocks()[1], changed.blocks()[1]);

        let salted = Prompt::from_ids(Some(""), &long);
        assert!(
            plain
                .blocks()
                .iter()
                .all(|hash| !salted.blocks().contains(hash))
        );
    }

    #[test]
    fn same_block_at_another_place_is_another_block() {
        let repeated = Prompt::from_ids(None, &[7; 32]);
        assert_ne!(repeated.blocks()[0], repeated.blocks()[1]);
    }
}

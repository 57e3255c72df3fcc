//! One request on its way, and the arithmetic of where it stands.

use std::time::Instant;

use super::{
    kv::BlockId,
    prompt::{BLOCK_TOKENS, Prompt},
    types::FinishReason,
};

/// Lower goes first, and the highest is preempted first.
pub(super) type Rank = (i32, u64);

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    Waiting,
    Prefilling {
        /// Tokens whose keys and values are in the cache.
        computed: u32,
        /// How many of them were scheduled in the step being planned.
        chunk: u32,
    },
    Decoding {
        /// The step that gave the first token of this stretch.
        since: u64,
        /// Tokens in the cache after that step.
        computed: u32,
        /// Where it stands in `Batch::decoding`.
        position: usize,
    },
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) prompt: Prompt,
    pub(super) priority: i32,
    /// Tokens it will generate, known beforehand in a simulation.
    pub(super) target: u32,
    pub(super) reason: FinishReason,
    pub(super) arrival: u64,
    pub(super) arrived: Instant,
    /// Tokens generated; while decoding, up to and including step `since`.
    pub(super) generated: u32,
    /// Prompt tokens found in the prefix cache at its first admission.
    pub(super) cached: Option<u32>,
    /// Its place among the running ones.
    pub(super) rank: Rank,
    pub(super) shared: Vec<BlockId>,
    pub(super) phase: Phase,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) sequence: Option<Sequence>,
}

/// Steps from `since` to `clock`. Sequences live far shorter than 2^32 steps: they are bounded by
/// `max_model_len`, a `u32`.
pub(super) fn steps_since(since: u64, clock: u64) -> u32 {
    u32::try_from(clock - since).unwrap_or(u32::MAX)
}

/// Blocks that hold this many tokens.
pub(super) fn blocks(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// The residue class of a step.
pub(super) fn class(step: u64) -> usize {
    usize::try_from(step % u64::from(BLOCK_TOKENS)).unwrap_or(0)
}

/// The class of the steps in which a sequence outgrows its blocks. It has `computed` tokens after
/// step `since`, so `computed + k - 1` before step `since + k`, and outgrows when that is a multiple
/// of the block. Wrapping is harmless: 2^64 is a multiple of the block too.
pub(super) fn growth_class(since: u64, computed: u32) -> usize {
    class((since + 1).wrapping_sub(u64::from(computed)))
}

/// The step that generates a decoding sequence's last token.
pub(super) fn ends_at(sequence: &Sequence) -> Option<u64> {
    match sequence.phase {
        Phase::Waiting | Phase::Prefilling { .. } => None,
        Phase::Decoding { since, .. } => {
            Some(since + u64::from(sequence.target - sequence.generated))
        }
    }
}

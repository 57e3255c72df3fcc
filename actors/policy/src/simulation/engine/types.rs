//! What goes into the scheduler and what comes out of it.

use std::{fmt, time::Duration};

use super::prompt::{BLOCK_TOKENS, Prompt};
use crate::simulation::steps::{Preset, StepLoad};

/// In which order waiting requests are admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// By arrival; `priority` is ignored, as vLLM ignores it.
    #[default]
    Fcfs,
    /// Lower priority values first, then by arrival.
    Priority,
}

/// What the engine was started with; the names are vLLM's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens one step may process.
    pub max_num_batched_tokens: u32,
    /// Tokens of one prompt that a step may process; 0 for no bound of its own.
    pub long_prefill_token_threshold: u32,
    /// Blocks of [`BLOCK_TOKENS`] tokens in the KV cache.
    pub kv_blocks: u32,
    /// Longest prompt plus output.
    pub max_model_len: u32,
    /// Who is admitted first.
    pub policy: Policy,
}

/// Limits that no schedule can respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsError {
    /// Something that must be at least 1 is 0.
    Zero,
    /// A full batch of decodes would not fit in a step.
    BudgetBelowSequences,
    /// The longest request would not fit in the KV cache even alone.
    CacheBelowModelLen,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its prompt.
    pub prompt: Prompt,
    /// Tokens the client allows.
    pub max_tokens: u32,
    /// Tokens after which the model would stop by itself.
    pub limit: u32,
    /// Lower goes first, under [`Policy::Priority`].
    pub priority: i32,
}

/// A request that can't be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// There is nothing to compute.
    EmptyPrompt,
    /// It leaves no room for a single token.
    PromptTooLong {
        /// The bound it broke.
        max_model_len: u32,
    },
}

/// Cached prefixes can't be forgotten while sequences hold blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse;

/// Names one request. Never names another one later, even when its slot is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Key {
    /// A small number, unique among requests that have not ended; for tables beside the batch.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FinishReason {
    /// The model stopped by itself.
    Stop,
    /// `max_tokens` or `max_model_len` was reached.
    Length,
}

/// A request left the waiting queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub key: Key,
    /// Time since it was submitted.
    pub waited: Duration,
    /// Tokens it needs in the cache before it can go on.
    pub prefill_tokens: u32,
    /// How many of them were found in the prefix cache.
    pub cached_tokens: u32,
    /// It had been preempted before.
    pub resumed: bool,
}

/// A request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which; it is unknown from now on.
    pub key: Key,
    /// All tokens it generated.
    pub generated: u32,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: u32,
    /// Why.
    pub reason: FinishReason,
}

/// What one step did. Its tokens exist once `duration` has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How long it takes.
    pub duration: Duration,
    /// What it works on.
    pub load: StepLoad,
    /// Tokens it generates.
    pub new_tokens: u64,
    /// In order of admission.
    pub admitted: Vec<Admission>,
    /// Requests whose first token it generates.
    pub first_tokens: Vec<Key>,
    /// Requests it ends.
    pub finished: Vec<Finished>,
    /// Sequences that gave up their blocks for others.
    pub preempted: Vec<Key>,
}

// === impl Limits ===

impl Limits {
    /// Those of a simulated GPU.
    #[must_use]
    pub fn of_preset(preset: &Preset, policy: Policy) -> Self {
        Self {
            max_num_seqs: preset.max_num_seqs,
            max_num_batched_tokens: preset.max_num_batched_tokens,
            long_prefill_token_threshold: 0,
            kv_blocks: preset.kv_tokens / BLOCK_TOKENS,
            max_model_len: preset.max_model_len,
            policy,
        }
    }

    pub(super) fn check(&self) -> Result<(), LimitsError> {
        if self.max_num_seqs == 0 || self.max_model_len == 0 {
            return Err(LimitsError::Zero);
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(LimitsError::BudgetBelowSequences);
        }
        if self.kv_blocks < self.max_model_len.div_ceil(BLOCK_TOKENS) {
            return Err(LimitsError::CacheBelowModelLen);
        }
        Ok(())
    }
}

// === impl LimitsError ===

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "max_num_seqs and max_model_len must be at least 1",
            Self::BudgetBelowSequences => {
                "max_num_batched_tokens must be greater than or equal to max_num_seqs"
            }
            Self::CacheBelowModelLen => {
                "the KV cache is too small for one request of max_model_len tokens"
            }
        })
    }
}

impl std::error::Error for LimitsError {}

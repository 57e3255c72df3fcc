//! What a continuous-batching engine does in a step: the scheduler of vLLM V1, without the GPU.
//!
//! Pure and deterministic: no clock (`now` comes in), no randomness, no I/O. The same code paces the
//! simulated engine, runs fairness experiments in virtual time, and is checked by properties.
//!
//! ```text
//!  submit ─▶ Waiting ─admit─▶ Prefilling ─last chunk─▶ Decoding ─target reached─▶ finished
//!               ▲                 │                        │
//!               └────preempted────┴────────────────────────┘      abort: from anywhere
//! ```
//!
//! A step follows `vllm/v1/core/sched/scheduler.py`: running sequences first, then the waiting ones
//! in order of arrival or priority while sequences, tokens and KV blocks last; the first that does
//! not fit blocks the rest. Prompts are computed in chunks beside the decodes (Sarathi-Serve). When
//! blocks run out the lowest ranked sequence gives up all of its own and starts again later
//! (recompute, PagedAttention section 4.5), and no one is admitted in that step.
//!
//! Where it differs from vLLM: decodes get their token before any prefill chunk, whatever the order
//! of admission; only prompts enter the prefix cache, not generated tokens; there is no speculative
//! decoding and no overlap of scheduling with the GPU.
//!
//! Every decoding sequence advances in every step. So progress is read off one step counter, blocks
//! are taken per residue class of it, and ends wait in a heap: a step costs what it changes and
//! not what it runs. After a step each sequence in [`Batch::decoding`] and each one in
//! [`Step::finished`] has exactly one token more than before.
//!
//! Invariants: running <= `max_num_seqs`; tokens of a step <= `max_num_batched_tokens`; blocks held <=
//! `kv_blocks`, and none are once nothing runs; each request ends exactly once.

mod advance;
mod kv;
mod prompt;
mod schedule;
mod sequence;
#[cfg(test)]
mod tests;
mod types;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Instant,
};

use self::{
    kv::KvPool,
    sequence::{Phase, Rank, Sequence, Slot, steps_since},
};
pub use self::{
    prompt::{BLOCK_TOKENS, BlockHash, Prompt},
    types::{
        Admission, FinishReason, Finished, InUse, Key, Limits, LimitsError, Policy, Request, Step,
        Unfit,
    },
};
use crate::simulation::steps::StepModel;

/// The engine's scheduler and its KV cache.
#[derive(Debug)]
pub struct Batch {
    limits: Limits,
    model: StepModel,
    kv: KvPool,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    arrivals: u64,
    admissions: u64,
    waiting: BTreeMap<Rank, u32>,
    running: BTreeMap<Rank, u32>,
    /// In order of admission.
    prefilling: Vec<u32>,
    decoding: Vec<u32>,
    /// Steps run; the clock that decoding sequences are counted by.
    clock: u64,
    /// How many decoding sequences need a new block in the steps of each residue class.
    growing: [u32; BLOCK_TOKENS as usize],
    /// Tokens in the cache that belong to decoding sequences.
    decoding_kv: u64,
    /// (step, slot). An entry is stale when its slot no longer ends there; stale ones are skipped.
    ends: BinaryHeap<Reverse<(u64, u32)>>,
}

// === impl Batch ===

impl Batch {
    /// An idle engine.
    ///
    /// # Errors
    /// When no schedule can respect the limits.
    pub fn new(limits: Limits, model: StepModel) -> Result<Self, LimitsError> {
        limits.check()?;
        Ok(Self {
            kv: KvPool::new(limits.kv_blocks),
            limits,
            model,
            slots: Vec::new(),
            vacant: Vec::new(),
            arrivals: 0,
            admissions: 0,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            prefilling: Vec::new(),
            decoding: Vec::new(),
            clock: 0,
            growing: [0; BLOCK_TOKENS as usize],
            decoding_kv: 0,
            ends: BinaryHeap::new(),
        })
    }

    /// Queues a request. It generates `min(max_tokens, limit)` tokens, fewer where `max_model_len`
    /// leaves no room, and none when either is 0: then the end of its prefill is its end, as for an
    /// embedding.
    ///
    /// The queue is not bounded here, as it isn't in vLLM; whoever sits in front bounds it.
    ///
    /// # Errors
    /// When the prompt is empty or leaves no room for a token.
    pub fn submit(&mut self, now: Instant, request: Request) -> Result<Key, Unfit> {
        let prompt = request.prompt.tokens();
        if prompt == 0 {
            return Err(Unfit::EmptyPrompt);
        }
        let max_model_len = self.limits.max_model_len;
        if prompt >= max_model_len {
            return Err(Unfit::PromptTooLong { max_model_len });
        }
        let room = request.max_tokens.min(max_model_len - prompt);
        self.arrivals += 1;
        let sequence = Sequence {
            target: room.min(request.limit),
            reason: if request.limit < room {
                FinishReason::Stop
            } else {
                FinishReason::Length
            },
            priority: match self.limits.policy {
                Policy::Fcfs => 0,
                Policy::Priority => request.priority,
            },
            prompt: request.prompt,
            arrival: self.arrivals,
            arrived: now,
            generated: 0,
            cached: None,
            rank: (0, 0),
            shared: Vec::new(),
            phase: Phase::Waiting,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.waiting
            .insert((sequence.priority, sequence.arrival), index);
        self.slots[index as usize].sequence = Some(sequence);
        Ok(self.key(index))
    }

    /// Ends a request wherever it is and returns how many tokens it had. `None` when it ended before.
    pub fn abort(&mut self, key: Key) -> Option<u32> {
        let generated = self.generated(key)?;
        match self.sequence(key.index).phase {
            Phase::Waiting => {
                let sequence = self.sequence(key.index);
                let rank = (sequence.priority, sequence.arrival);
                self.waiting.remove(&rank);
            }
            Phase::Prefilling { .. } | Phase::Decoding { .. } => self.stop_running(key.index),
        }
        self.vacate(key.index);
        Some(generated)
    }

    /// Makes every running sequence wait and start over, and forgets all that is cached: what an
    /// engine does with requests it keeps while its KV memory is released.
    pub fn drop_kv(&mut self) {
        while let Some((_, index)) = self.running.last_key_value() {
            self.preempt(*index);
        }
        self.kv.forget_idle();
    }

    /// Forgets cached prefixes.
    ///
    /// # Errors
    /// While sequences hold blocks; nothing is forgotten then, as in vLLM.
    pub fn reset_prefix_cache(&mut self) -> Result<(), InUse> {
        if self.kv.used() > 0 {
            return Err(InUse);
        }
        self.kv.forget_idle();
        Ok(())
    }

    /// The limits it works under.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Nothing runs and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences admitted and not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests not admitted yet, or preempted.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// KV blocks that running sequences hold.
    #[must_use]
    pub fn kv_used(&self) -> u32 {
        self.kv.used()
    }

    /// KV blocks nobody holds whose content can still be found.
    #[must_use]
    pub fn kv_cached(&self) -> u32 {
        self.kv.cached()
    }

    /// The sequences that produce a token in every step, in no order that means anything.
    pub fn decoding(&self) -> impl ExactSizeIterator<Item = Key> {
        self.decoding.iter().map(|index| self.key(*index))
    }

    /// Tokens generated so far. `None` once it ended.
    #[must_use]
    pub fn generated(&self, key: Key) -> Option<u32> {
        let slot = self.slots.get(key.index as usize)?;
        let sequence = slot.sequence.as_ref()?;
        (slot.generation == key.generation).then(|| self.generated_by(sequence))
    }

    fn generated_by(&self, sequence: &Sequence) -> u32 {
        match sequence.phase {
            Phase::Waiting | Phase::Prefilling { .. } => sequence.generated,
            Phase::Decoding { since, .. } => sequence.generated + steps_since(since, self.clock),
        }
    }

    fn key(&self, index: u32) -> Key {
        Key {
            index,
            generation: self.slots[index as usize].generation,
        }
    }

    // Indices in the queues and lists always name an occupied slot: leaving the slot and leaving
    // them happen together, in `vacate` and `stop_running`.
    fn sequence(&self, index: u32) -> &Sequence {
        match &self.slots[index as usize].sequence {
            Some(sequence) => sequence,
            None => unreachable!("slot {index} is listed but empty"),
        }
    }

    fn sequence_mut(&mut self, index: u32) -> &mut Sequence {
        match &mut self.slots[index as usize].sequence {
            Some(sequence) => sequence,
            None => unreachable!("slot {index} is listed but empty"),
        }
    }

    /// Empties a slot that is in no list any more.
    fn vacate(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.sequence = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(index);
    }
}

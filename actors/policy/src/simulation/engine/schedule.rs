//! One step: plan chunks and admissions against what the decodes need, then let all of it happen.

use std::time::Instant;

use super::{
    Admission, BLOCK_TOKENS, Batch, Phase, Policy, Rank, Step,
    sequence::{blocks, class},
};

impl Batch {
    /// Runs one step that starts at `now`. `None` when there is nothing to do.
    ///
    /// State moves on at once: what [`Step`] reports is already behind the batch when this returns,
    /// and requests may be submitted and aborted before the step's duration has passed.
    pub fn step(&mut self, now: Instant) -> Option<Step> {
        if self.is_idle() {
            return None;
        }
        let mut step = Step::default();
        self.make_room_for_decodes(&mut step);
        let mut budget = self.limits.max_num_batched_tokens - self.decoding_now();
        self.continue_prefills(&mut budget, &mut step);
        // As vLLM: after a preemption, admitting someone else would only take the blocks back.
        if step.preempted.is_empty() {
            self.admit(now, &mut budget, &mut step);
        }
        self.advance_decodes();
        step.load = self.load();
        step.duration = self.model.duration(&step.load);
        self.end_decodes(&mut step);
        self.end_prefills(&mut step);
        step.new_tokens += self.decoding.len() as u64;
        Some(step)
    }

    /// Blocks the decodes take in the coming step.
    pub(super) fn reserved(&self) -> u32 {
        self.growing[class(self.clock + 1)]
    }

    /// Whether `blocks` more can be had without taking them from the decodes of this step.
    fn fits(&self, blocks: u32) -> bool {
        self.kv.available() >= self.reserved() + blocks
    }

    fn make_room_for_decodes(&mut self, step: &mut Step) {
        while !self.fits(0) {
            let Some((_, index)) = self.running.last_key_value() else {
                break;
            };
            let victim = *index;
            step.preempted.push(self.key(victim));
            self.preempt(victim);
        }
    }

    fn continue_prefills(&mut self, budget: &mut u32, step: &mut Step) {
        let mut at = 0;
        while *budget > 0
            && let Some(index) = self.prefilling.get(at).copied()
        {
            let Phase::Prefilling { computed, .. } = self.sequence(index).phase else {
                unreachable!("slot {index} is listed as prefilling");
            };
            let chunk = self.chunk(self.to_prefill(index) - computed, *budget);
            let needed = blocks(computed + chunk) - blocks(computed);
            let mut victim = None;
            while !self.fits(needed)
                && victim != Some(index)
                && let Some((_, worst)) = self.running.last_key_value()
            {
                let worst = *worst;
                // What the victim was to process in this step is free again.
                match self.sequence(worst).phase {
                    Phase::Waiting => {}
                    Phase::Prefilling { chunk, .. } => {
                        *budget += chunk;
                        at -= usize::from(self.prefilling[..at].contains(&worst));
                    }
                    Phase::Decoding { .. } => *budget += 1,
                }
                step.preempted.push(self.key(worst));
                self.preempt(worst);
                victim = Some(worst);
            }
            // It was itself the lowest ranked: it left the list and the next one moved up. vLLM ends
            // the round here, which can leave a step without any work.
            if victim == Some(index) {
                continue;
            }
            self.prefill(index, computed, chunk);
            *budget -= chunk;
            at += 1;
        }
    }

    fn admit(&mut self, now: Instant, budget: &mut u32, step: &mut Step) {
        while *budget > 0 && self.running.len() < self.limits.max_num_seqs as usize {
            let Some((_, index)) = self.waiting.first_key_value() else {
                break;
            };
            let index = *index;
            let prefill_tokens = self.to_prefill(index);
            // The last token is computed in any case: its output is the next token.
            let findable = ((prefill_tokens - 1) / BLOCK_TOKENS) as usize;
            let prompt = self.sequence(index).prompt.clone();
            let hashes = &prompt.blocks()[..findable.min(prompt.blocks().len())];
            let (hits, idle_hits) = self.kv.longest_prefix(hashes);
            // The whole of it must fit, not just its first chunk, or a crowd of half-computed
            // prompts preempts itself (vLLM's scheduler_reserve_full_isl).
            if !self.fits(blocks(prefill_tokens) - hits + idle_hits) {
                break;
            }
            self.waiting.pop_first();
            let shared = hashes[..hits as usize]
                .iter()
                .filter_map(|hash| self.kv.share(*hash))
                .collect();
            let cached_tokens = hits * BLOCK_TOKENS;
            let rank = self.next_rank(index);
            let sequence = self.sequence_mut(index);
            let resumed = sequence.cached.is_some();
            sequence.shared = shared;
            sequence.rank = rank;
            sequence.cached.get_or_insert(cached_tokens);
            let waited = now.saturating_duration_since(sequence.arrived);
            self.running.insert(rank, index);
            self.prefilling.push(index);
            step.admitted.push(Admission {
                key: self.key(index),
                waited,
                prefill_tokens,
                cached_tokens,
                resumed,
            });
            let chunk = self.chunk(prefill_tokens - cached_tokens, *budget);
            self.prefill(index, cached_tokens, chunk);
            *budget -= chunk;
        }
    }

    /// How much of what is left of a prompt goes into this step.
    fn chunk(&self, left: u32, budget: u32) -> u32 {
        let bound = match self.limits.long_prefill_token_threshold {
            0 => u32::MAX,
            threshold => threshold,
        };
        left.min(bound).min(budget)
    }

    /// Computes `chunk` tokens after the first `computed`, and makes the blocks it completes known
    /// at once: a sequence admitted in the same step already finds them, as in vLLM.
    fn prefill(&mut self, index: u32, computed: u32, chunk: u32) {
        let done = computed + chunk;
        self.kv.take(blocks(done) - blocks(computed));
        let Some(sequence) = &mut self.slots[index as usize].sequence else {
            unreachable!("slot {index} is listed but empty");
        };
        sequence.phase = Phase::Prefilling {
            computed: done,
            chunk,
        };
        let known = (computed / BLOCK_TOKENS) as usize;
        let full = ((done / BLOCK_TOKENS) as usize).min(sequence.prompt.blocks().len());
        for hash in sequence.prompt.blocks().get(known..full).unwrap_or(&[]) {
            sequence.shared.extend(self.kv.publish(*hash));
        }
    }

    /// Where an admitted sequence stands among the running ones: vLLM preempts the latest admitted
    /// under FCFS and the highest (priority, arrival) otherwise.
    fn next_rank(&mut self, index: u32) -> Rank {
        self.admissions += 1;
        let sequence = self.sequence(index);
        match self.limits.policy {
            Policy::Fcfs => (0, self.admissions),
            Policy::Priority => (sequence.priority, sequence.arrival),
        }
    }

    /// Tokens that must be in the cache before the next one can be generated.
    pub(super) fn to_prefill(&self, index: u32) -> u32 {
        let sequence = self.sequence(index);
        sequence.prompt.tokens() + sequence.generated
    }
}

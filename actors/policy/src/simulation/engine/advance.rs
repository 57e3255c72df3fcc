//! What a planned step does to the sequences, and how they leave the batch.

use std::{cmp::Reverse, mem};

use super::{
    Batch, Finished, Phase, Step,
    sequence::{blocks, ends_at, growth_class, steps_since},
};
use crate::simulation::steps::StepLoad;

impl Batch {
    pub(super) fn advance_decodes(&mut self) {
        self.kv.take(self.reserved());
        self.clock += 1;
        self.decoding_kv += self.decoding.len() as u64;
    }

    pub(super) fn load(&self) -> StepLoad {
        let mut load = StepLoad {
            decoding_sequences: self.decoding.len() as u64,
            prefill_tokens: 0,
            kv_tokens: self.decoding_kv,
        };
        for index in &self.prefilling {
            if let Phase::Prefilling { computed, chunk } = self.sequence(*index).phase
                && chunk > 0
            {
                load.prefill_tokens += u64::from(chunk);
                load.kv_tokens += u64::from(computed);
            }
        }
        load
    }

    pub(super) fn end_decodes(&mut self, step: &mut Step) {
        while let Some(Reverse((end, index))) = self.ends.peek().copied()
            && end <= self.clock
        {
            self.ends.pop();
            let ended = self.slots[index as usize]
                .sequence
                .as_ref()
                .is_some_and(|sequence| ends_at(sequence) == Some(end));
            if ended {
                step.new_tokens += 1;
                self.finish(index, step);
            }
        }
    }

    pub(super) fn end_prefills(&mut self, step: &mut Step) {
        let mut prefilling = mem::take(&mut self.prefilling);
        prefilling.retain(|index| {
            let total = self.to_prefill(*index);
            let clock = self.clock;
            let sequence = self.sequence_mut(*index);
            let Phase::Prefilling { computed, chunk } = &mut sequence.phase else {
                unreachable!("slot {index} is listed as prefilling");
            };
            *chunk = 0;
            if *computed < total {
                return true;
            }
            let computed = *computed;
            if sequence.target > 0 {
                sequence.generated += 1;
            }
            if sequence.generated == 1 {
                let key = self.key(*index);
                step.first_tokens.push(key);
            }
            self.start_decoding(*index, computed, clock);
            let sequence = self.sequence(*index);
            if sequence.generated == sequence.target {
                step.new_tokens += u64::from(sequence.target > 0);
                self.finish(*index, step);
            }
            false
        });
        self.prefilling = prefilling;
    }

    fn start_decoding(&mut self, index: u32, computed: u32, since: u64) {
        let position = self.decoding.len();
        self.decoding.push(index);
        self.growing[growth_class(since, computed)] += 1;
        self.decoding_kv += u64::from(computed);
        let sequence = self.sequence_mut(index);
        sequence.phase = Phase::Decoding {
            since,
            computed,
            position,
        };
        if let Some(end) = ends_at(sequence)
            && end > since
        {
            self.ends.push(Reverse((end, index)));
        }
    }

    fn finish(&mut self, index: u32, step: &mut Step) {
        let key = self.key(index);
        let sequence = self.sequence(index);
        step.finished.push(Finished {
            key,
            generated: self.generated_by(sequence),
            cached_tokens: sequence.cached.unwrap_or(0),
            reason: sequence.reason,
        });
        self.stop_running(index);
        self.vacate(index);
    }

    // === leaving ===

    /// Back to the waiting queue, ahead of all that came later, with nothing computed.
    pub(super) fn preempt(&mut self, index: u32) {
        let generated = self.generated_by(self.sequence(index));
        self.stop_running(index);
        let sequence = self.sequence_mut(index);
        sequence.generated = generated;
        sequence.phase = Phase::Waiting;
        let rank = (sequence.priority, sequence.arrival);
        self.waiting.insert(rank, index);
    }

    /// Takes a running sequence out of every list and gives its blocks back.
    pub(super) fn stop_running(&mut self, index: u32) {
        let clock = self.clock;
        let sequence = self.sequence_mut(index);
        let shared = mem::take(&mut sequence.shared);
        let rank = sequence.rank;
        let computed = match sequence.phase {
            Phase::Waiting => 0,
            Phase::Prefilling { computed, .. } => {
                self.prefilling.retain(|listed| *listed != index);
                computed
            }
            Phase::Decoding {
                since,
                computed,
                position,
            } => {
                self.growing[growth_class(since, computed)] -= 1;
                self.decoding.swap_remove(position);
                if let Some(moved) = self.decoding.get(position).copied()
                    && let Phase::Decoding { position: at, .. } =
                        &mut self.sequence_mut(moved).phase
                {
                    *at = position;
                }
                let computed = computed + steps_since(since, clock);
                self.decoding_kv -= u64::from(computed);
                computed
            }
        };
        self.running.remove(&rank);
        let held = u32::try_from(shared.len()).unwrap_or(u32::MAX);
        self.kv.give_back(blocks(computed) - held);
        self.kv.unshare(&shared);
    }

    pub(super) fn decoding_now(&self) -> u32 {
        u32::try_from(self.decoding.len()).unwrap_or(u32::MAX)
    }
}

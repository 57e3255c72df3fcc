//! How long one step of a continuous-batching engine takes, and the simulated GPUs we know.
//!
//! A step runs one forward pass over every scheduled sequence (Orca, Yu et al., OSDI'22). Its time is
//! linear to a good approximation: weights are read once (`base`), each decoding sequence adds a
//! little, prefill is compute-bound and grows with its tokens, and attention reads the KV cache of
//! every scheduled sequence (Sarathi-Serve, Agrawal et al., OSDI'24, section 3).
//!
//! Everything here is SIMULATED: the presets reproduce published orders of magnitude for an 8B model
//! and are no measurement of ours. Nothing outside tests, the simulated engine and the fairness
//! simulation may read them.
//!
//! Time is kept in whole nanoseconds. All constants are whole nanoseconds, so a step's time is an
//! exact sum of products and nothing is rounded: the same steps give the same times on every machine,
//! and a thousand steps last exactly a thousand times one.

use std::time::Duration;

/// What one step works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepLoad {
    /// Sequences that produce one token from their last one.
    pub decoding_sequences: u64,
    /// Prompt tokens computed; those found in the prefix cache are not.
    pub prefill_tokens: u64,
    /// Tokens in the KV cache of all scheduled sequences at the end of the step.
    pub kv_tokens: u64,
}

impl StepLoad {
    /// Tokens the step processes, the quantity `max_num_batched_tokens` bounds.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.decoding_sequences + self.prefill_tokens
    }
}

/// A step's time as a linear function of its load; all in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepModel {
    /// Reading the weights and launching kernels, whatever the load.
    pub base: u64,
    /// Per sequence that decodes.
    pub per_decoding_sequence: u64,
    /// Per prompt token computed.
    pub per_prefill_token: u64,
    /// Per token whose keys and values attention reads.
    pub per_kv_token: u64,
}

impl StepModel {
    /// How long a step with this load takes. Saturates at 584 years rather than wrapping.
    #[must_use]
    pub fn duration(&self, load: &StepLoad) -> Duration {
        let nanos = self
            .base
            .saturating_add(
                self.per_decoding_sequence
                    .saturating_mul(load.decoding_sequences),
            )
            .saturating_add(self.per_prefill_token.saturating_mul(load.prefill_tokens))
            .saturating_add(self.per_kv_token.saturating_mul(load.kv_tokens));
        Duration::from_nanos(nanos)
    }
}

/// One simulated GPU with one simulated model on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name users select it by.
    pub name: &'static str,
    /// What it stands for and where the numbers come from.
    pub source: &'static str,
    /// Step times.
    pub model: StepModel,
    /// Sequences that run at once.
    pub max_num_seqs: u32,
    /// Tokens one step may process.
    pub max_num_batched_tokens: u32,
    /// Tokens the KV cache holds.
    pub kv_tokens: u32,
    /// Longest prompt plus output.
    pub max_model_len: u32,
    /// HTTP parsing, templating, tokenising and the way back, outside any step.
    pub front_end: Duration,
    /// Bytes of weights on the GPU.
    pub weight_bytes: u64,
    /// Bytes of keys and values per token.
    pub kv_bytes_per_token: u64,
}

/// SIMULATED A100-80GB with an 8B model in bf16.
pub const A100_8B: Preset = Preset {
    name: "a100-8b",
    source: "simulated: A100-80GB, 8B model in bf16; linear fit of published vLLM step times, not measured here",
    model: StepModel {
        base: 11_500_000,
        per_decoding_sequence: 55_000,
        per_prefill_token: 75_000,
        per_kv_token: 60,
    },
    max_num_seqs: 256,
    max_num_batched_tokens: 2048,
    kv_tokens: 440_000,
    max_model_len: 32_768,
    front_end: Duration::from_millis(16),
    weight_bytes: LLAMA_8B_WEIGHTS,
    kv_bytes_per_token: LLAMA_8B_KV_PER_TOKEN,
};

/// SIMULATED H100-80GB with an 8B model in bf16.
pub const H100_8B: Preset = Preset {
    name: "h100-8b",
    source: "simulated: H100-80GB, 8B model in bf16; linear fit of published vLLM step times, not measured here",
    model: StepModel {
        base: 7_000_000,
        per_decoding_sequence: 30_000,
        per_prefill_token: 28_000,
        per_kv_token: 35,
    },
    max_num_seqs: 1024,
    max_num_batched_tokens: 8192,
    ..A100_8B
};

/// SIMULATED and unlike any hardware: steps of a fraction of a millisecond, for tests of the protocol.
pub const TINY: Preset = Preset {
    name: "tiny",
    source: "simulated: no hardware at all; fast steps and a small KV cache for protocol tests",
    model: StepModel {
        base: 200_000,
        per_decoding_sequence: 2_000,
        per_prefill_token: 1_000,
        per_kv_token: 1,
    },
    max_num_seqs: 8,
    max_num_batched_tokens: 256,
    kv_tokens: 8_192,
    max_model_len: 2_048,
    front_end: Duration::ZERO,
    weight_bytes: 512 << 10,
    kv_bytes_per_token: 1 << 10,
};

/// Llama 3.1 8B: 8.03 billion parameters of two bytes.
const LLAMA_8B_WEIGHTS: u64 = 16_060_522_496;
/// Llama 3.1 8B: keys and values of 32 layers, 8 KV heads of 128 dimensions, two bytes each.
const LLAMA_8B_KV_PER_TOKEN: u64 = 2 * 32 * 8 * 128 * 2;

/// Every preset, in the order shown to users.
pub const PRESETS: [&Preset; 3] = [&TINY, &A100_8B, &H100_8B];

/// The preset of that name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.into_iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_exact_sum_of_its_parts() {
        let load = StepLoad {
            decoding_sequences: 256,
            prefill_tokens: 1792,
            kv_tokens: 100_000,
        };
        // 11.5 ms + 14.08 ms + 134.4 ms + 6 ms
        assert_eq!(
            A100_8B.model.duration(&load),
            Duration::from_nanos(165_980_000)
        );
        assert_eq!(load.tokens(), 2048);
    }

    #[test]
    fn an_absurd_load_saturates() {
        let load = StepLoad {
            kv_tokens: u64::MAX,
            ..StepLoad::default()
        };
        assert_eq!(
            A100_8B.model.duration(&load),
            Duration::from_nanos(u64::MAX)
        );
    }

    #[test]
    fn presets_are_found_by_name_and_say_they_are_simulated() {
        for known in PRESETS {
            assert_eq!(preset(known.name), Some(known));
            assert!(known.source.starts_with("simulated"));
            assert!(known.max_num_seqs <= known.max_num_batched_tokens);
            assert!(known.max_model_len <= known.kv_tokens);
        }
        assert_eq!(preset("b200"), None);
    }
}

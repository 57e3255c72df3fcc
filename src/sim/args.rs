//! The command line. Flags that vLLM has too are named and meant as there.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use kvwarden_policy::simulation::{
    engine::{BLOCK_TOKENS, Limits, Policy},
    steps::{self, Preset},
};

use super::faults::Faults;

/// Serve a simulated model with vLLM's API: made-up text at a modelled pace, no GPU.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Names the model is known by; the first one is used in answers.
    #[arg(long, num_args = 1.., default_value = "sim")]
    pub served_model_name: Vec<String>,
    /// The simulated hardware and model.
    #[arg(long, default_value = "a100-8b", value_parser = preset)]
    pub preset: &'static Preset,
    /// Sequences that run at once [default: the preset's].
    #[arg(long)]
    pub max_num_seqs: Option<u32>,
    /// Tokens one step may process [default: the preset's].
    #[arg(long)]
    pub max_num_batched_tokens: Option<u32>,
    /// Longest prompt plus output [default: the preset's].
    #[arg(long)]
    pub max_model_len: Option<u32>,
    /// In which order waiting requests are admitted.
    #[arg(long, value_enum, default_value_t)]
    pub scheduling_policy: SchedulingPolicy,
    /// Tokens of one prompt that a step may process; 0 for no bound.
    #[arg(long, default_value_t = 0)]
    pub long_prefill_token_threshold: u32,
    /// KV blocks of 16 tokens [default: the preset's].
    #[arg(long)]
    pub num_kv_blocks: Option<u32>,
    /// Seeds the made-up text.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What goes wrong, on purpose.
    #[command(flatten)]
    pub faults: Faults,
}

/// vLLM's spelling of [`Policy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicy {
    /// By arrival.
    #[default]
    Fcfs,
    /// Lower `priority` first.
    Priority,
}

// === impl SimArgs ===

impl SimArgs {
    /// The scheduler's limits: the preset's where no flag says otherwise.
    pub(super) fn limits(&self) -> anyhow::Result<Limits> {
        let policy = match self.scheduling_policy {
            SchedulingPolicy::Fcfs => Policy::Fcfs,
            SchedulingPolicy::Priority => Policy::Priority,
        };
        let preset = Limits::of_preset(self.preset, policy);
        let kv_blocks = self.num_kv_blocks.unwrap_or(preset.kv_blocks);
        let max_num_seqs = self.max_num_seqs.unwrap_or(preset.max_num_seqs);
        Ok(Limits {
            max_num_seqs,
            // More sequences than the preset's budget need a larger one, unless that was given too.
            max_num_batched_tokens: self
                .max_num_batched_tokens
                .unwrap_or(preset.max_num_batched_tokens.max(max_num_seqs)),
            long_prefill_token_threshold: self.long_prefill_token_threshold,
            kv_blocks,
            max_model_len: self.max_model_len.unwrap_or_else(|| {
                preset
                    .max_model_len
                    .min(kv_blocks.saturating_mul(BLOCK_TOKENS))
            }),
            policy,
        })
    }
}

fn preset(name: &str) -> Result<&'static Preset, String> {
    steps::preset(name).ok_or_else(|| {
        let known: Vec<_> = steps::PRESETS.iter().map(|preset| preset.name).collect();
        format!("known presets: {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SimArgs,
    }

    fn limits(flags: &[&str]) -> Limits {
        let argv = ["sim"].iter().chain(flags);
        Cli::try_parse_from(argv).unwrap().args.limits().unwrap()
    }

    #[test]
    fn flags_win_over_the_preset() {
        let limits = limits(&["--preset", "h100-8b", "--max-num-seqs", "7"]);
        assert_eq!((limits.max_num_seqs, limits.kv_blocks), (7, 27_500));
    }

    #[test]
    fn a_smaller_cache_shortens_the_longest_request() {
        assert_eq!(limits(&["--num-kv-blocks", "10"]).max_model_len, 160);
    }
}

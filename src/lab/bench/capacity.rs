//! How many requests of a kind an engine can do per second.
//!
//! For a simulated engine this follows from its step model. A real one is asked: a closed loop of
//! more and more clients, until more clients bring no more tokens.

use std::{rc::Rc, time::Duration};

use kvwarden_policy::simulation::{
    engine::{Limits, Policy},
    steps::{Preset, StepLoad},
};
use serde::Serialize;

use super::load::{Load, Pace, Prompts, SplitMix, Target, closed_loop};

/// Requests drawn to average over a shape.
const DRAWS: u32 = 4096;

/// A stage that brings less than this over the best one is beyond the knee.
const KNEE: f64 = 1.05;

/// So many clients are tried in any case: engines on a CPU run 4 to 8 requests at once, and a machine
/// that hesitates makes the first stages look flat.
const LEAST_CLIENTS: usize = 16;

/// The least worth trying where a GPU has a processor of its own to compute with.
pub const GPU_CLIENTS: usize = 32;

/// Most clients of a closed loop.
const MAX_CLIENTS: usize = 1024;

/// What an engine can do, and how we know.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Requests of the flood's kind per second.
    pub requests_per_s: f64,
    /// Where the figure comes from.
    pub how: String,
    /// The stages of a closed loop.
    pub stages: Vec<Pace>,
}

/// The steady state of a saturated engine by its step model: as many sequences as the tightest of
/// batch size, KV cache and step budget allows, each step producing one token for every one.
#[must_use]
pub fn by_step_model(preset: &Preset, load: &Load) -> Capacity {
    let mut rng = SplitMix::named(0, "capacity");
    let (mut prompts, mut outputs, mut held) = (0.0, 0.0, 0.0);
    for _ in 0..DRAWS {
        let prompt = f64::from(load.prompt.draw(&mut rng));
        let output = f64::from(load.output.draw(&mut rng));
        prompts += prompt;
        outputs += output;
        // KV tokens summed over the steps of this request: it holds half its output on average.
        held += output * (prompt + output / 2.0);
    }
    let (prompt, output) = (prompts / f64::from(DRAWS), outputs / f64::from(DRAWS));
    // Long requests are in the batch for longer, so they weigh more in what is held.
    let kv_per_sequence = held / outputs;
    let limits = Limits::of_preset(preset, Policy::Fcfs);
    let by_kv = f64::from(preset.kv_tokens) / kv_per_sequence;
    // Each sequence costs the budget a token a step, and its share of a prompt.
    let by_budget = f64::from(limits.max_num_batched_tokens) / (1.0 + prompt / output);
    let sequences = f64::from(limits.max_num_seqs).min(by_kv).min(by_budget);
    let finished_per_step = sequences / output;
    let step = StepLoad {
        decoding_sequences: whole(sequences),
        prefill_tokens: whole(finished_per_step * prompt),
        kv_tokens: whole(sequences * kv_per_sequence),
    };
    let seconds = preset.model.duration(&step).as_secs_f64();
    Capacity {
        requests_per_s: finished_per_step / seconds,
        how: format!(
            "step model of {}: {sequences:.0} sequences, {:.1} ms a step",
            preset.name,
            seconds * 1e3
        ),
        stages: Vec::new(),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and loads are far from its ends"
)]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

/// Doubles the `first` clients until throughput stopped growing, twice in a row: one stage may be a
/// hiccup of the machine. `told` hears of every stage.
pub async fn by_closed_loop(
    target: &Rc<Target>,
    load: &Load,
    prompts: Prompts,
    first: usize,
    stage: Duration,
    mut told: impl FnMut(&Pace),
) -> Capacity {
    let mut stages: Vec<Pace> = Vec::new();
    let mut best = Pace::default();
    let mut flat = 0;
    let mut clients = first;
    while clients <= LEAST_CLIENTS || (flat < 2 && clients <= MAX_CLIENTS) {
        let pace = closed_loop(target, load, prompts, clients, stage).await;
        told(&pace);
        let grew = pace.output_tokens_per_s > best.output_tokens_per_s * KNEE;
        flat = if grew { 0 } else { flat + 1 };
        if pace.output_tokens_per_s > best.output_tokens_per_s {
            best = pace;
        }
        stages.push(pace);
        clients *= 2;
    }
    Capacity {
        requests_per_s: best.requests_per_s,
        how: format!(
            "closed loop: {:.0} output tokens/s with {} clients",
            best.output_tokens_per_s, best.clients
        ),
        stages,
    }
}

#[cfg(test)]
mod tests {
    use kvwarden_policy::simulation::steps::A100_8B;

    use super::*;
    use crate::lab::bench::workload::Shape;

    #[test]
    fn floods_of_the_goals_are_what_they_are_called() {
        // "short flood 2x", "long prompts 2x", "long decodes 2x" on a simulated A100.
        for (shape, rate) in [
            (Shape::Short, 160.0),
            (Shape::Prefill, 12.0),
            (Shape::Decode, 20.0),
        ] {
            let [load] = &shape.floods(1, 1.0)[..] else {
                panic!("one flood was asked for");
            };
            let capacity = by_step_model(&A100_8B, load).requests_per_s;
            let flood = rate / capacity;
            assert!(
                (1.7..2.6).contains(&flood),
                "{shape:?}: {flood:.2} x {capacity:.1}"
            );
        }
    }
}

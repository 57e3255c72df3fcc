//! The victims are the cheapest there are, and found in few steps.

use proptest::prelude::*;

use crate::{
    lifecycle::SleepLevel,
    residency::victims::{Candidate, Choice, cheapest},
};

fn candidate(devices: u32) -> impl Strategy<Value = Candidate> {
    let choice = (0..20_u64, 0..12_u32).prop_map(|(frees, value)| Choice {
        to: SleepLevel::Cold,
        frees,
        value: f64::from(value),
    });
    let options = prop::collection::vec(choice, 0..4);
    (0..1_u32 << devices, options).prop_map(|(devices, options)| Candidate { devices, options })
}

fn relieved(candidate: &Candidate, choice: &Choice, needs: &[u64]) -> Vec<u64> {
    let frees = |device: usize| choice.frees * u64::from(candidate.devices >> device & 1);
    let needs = needs.iter().enumerate();
    needs
        .map(|(device, need)| need.saturating_sub(frees(device)))
        .collect()
}

/// Tries everything.
fn brute_force(candidates: &[Candidate], needs: &[u64]) -> Option<f64> {
    if needs.iter().all(|need| *need == 0) {
        return Some(0.0);
    }
    let (first, others) = candidates.split_first()?;
    let without = brute_force(others, needs);
    let with = first.options.iter().filter_map(|choice| {
        let rest = relieved(first, choice, needs);
        Some(choice.value + brute_force(others, &rest)?)
    });
    with.chain(without).min_by(f64::total_cmp)
}

proptest! {
    #[test]
    fn no_set_of_victims_is_cheaper(
        candidates in prop::collection::vec(candidate(3), 0..8),
        needs in prop::collection::vec(0..40_u64, 1..4),
    ) {
        let found = cheapest(&candidates, &needs);
        prop_assert_eq!(found.as_ref().map(|found| found.value), brute_force(&candidates, &needs));
        let chosen = found.map_or_else(Vec::new, |found| found.chosen);
        let mut rest = needs;
        for (index, choice) in &chosen {
            prop_assert!(candidates[*index].options.contains(choice));
            rest = relieved(&candidates[*index], choice, &rest);
        }
        prop_assert!(chosen.is_empty() || rest.iter().all(|need| *need == 0), "not enough");
    }

    #[test]
    fn tens_of_models_are_still_exact(
        models in prop::collection::vec((1..80_u64, 0.01..50.0_f64), 30..64),
        share in 0.05..0.9_f64,
    ) {
        let total: u64 = models.iter().map(|(gib, _)| gib).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of it")]
        let need = (total as f64 * share) as u64;
        let candidates: Vec<Candidate> = models
            .iter()
            .map(|(frees, value)| Candidate {
                devices: 1,
                options: vec![Choice { to: SleepLevel::Cold, frees: *frees, value: *value }],
            })
            .collect();
        let found = cheapest(&candidates, &[need]).map(|found| found.value);
        let table = by_table(&models, need);
        prop_assert!(found.is_some_and(|found| (found - table).abs() < 1e-9), "{found:?} {table}");
    }
}

/// The textbook's table over bytes, exact for one device.
fn by_table(models: &[(u64, f64)], need: u64) -> f64 {
    let need = usize::try_from(need).unwrap();
    let mut best = vec![f64::INFINITY; need + 1];
    best[0] = 0.0;
    for (frees, value) in models {
        let frees = usize::try_from(*frees).unwrap();
        for covered in (0..=need).rev() {
            let now = (covered + frees).min(need);
            best[now] = best[now].min(best[covered] + value);
        }
    }
    best[need]
}

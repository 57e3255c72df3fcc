//! How far apart tenants may get that always have something waiting, at every level and moment, and
//! that time away is no credit. The engine here gives every running request a token per round.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    super::{settings::Mutant, *},
    arrival, epoch, fair,
};
use crate::cost::Usage;

pub(super) const SLOTS: u64 = 6;
pub(super) const LONGEST_PROMPT: u64 = 400;
pub(super) const LONGEST_OUTPUT: u64 = 60;

/// The bound of VTC (theorem 4.8) for weights of at least 1: 2 max(w_p L_in, w_q M), with M the
/// tokens that fit in a batch. Headroom adds its sequences and its slack.
pub(super) fn bound(settings: &Settings) -> u64 {
    let batch = settings.fair.capacity.engine_sequences() * LONGEST_OUTPUT;
    2 * LONGEST_PROMPT.max(2 * batch) + settings.fair.slack
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) group: usize,
    pub(super) weight: u32,
    pub(super) prompt: u64,
    pub(super) output: u64,
}

struct Running {
    key: Key,
    who: usize,
    prompt: u64,
    output: u64,
    got: u64,
}

/// Tenants with requests of about one size each, served by a toy engine.
pub(super) struct Toy {
    scheduler: Scheduler<(usize, u64, u64)>,
    wants: Vec<Want>,
    running: Vec<Running>,
    now: Instant,
    dice: u64,
    /// What each has received, in token costs.
    pub(super) service: Vec<u64>,
}

pub(super) fn settings(mutant: Option<Mutant>) -> Settings {
    let mut settings = fair(Capacity::of_engine(SLOTS, 512, None));
    settings.fair.mutant = mutant;
    // Near the truth from the start: a wrong assumption adds its error times what is in flight.
    settings.fair.assumed_output = LONGEST_OUTPUT / 2;
    settings
}

// === impl Toy ===

impl Toy {
    pub(super) fn new(settings: &Settings, wants: Vec<Want>) -> Self {
        Self {
            scheduler: Scheduler::new(settings),
            running: Vec::new(),
            now: epoch(),
            dice: 7,
            service: vec![0; wants.len()],
            wants,
        }
    }

    fn roll(&mut self, most: u64) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        1 + (self.dice >> 33) % most
    }

    /// One request more in line.
    pub(super) fn push(&mut self, who: usize) {
        let want = self.wants[who];
        let (prompt, output) = (self.roll(want.prompt), self.roll(want.output));
        self.push_sized(who, prompt, output);
    }

    pub(super) fn push_sized(&mut self, who: usize, prompt: u64, output: u64) {
        let want = self.wants[who];
        let group = want.group.to_string();
        let mut arrival = arrival(&group, &who.to_string(), prompt, self.now);
        arrival.weight = want.weight;
        let pushed = self
            .scheduler
            .push(&arrival, (who, prompt, output), self.now);
        pushed.unwrap();
    }

    /// Fills the lines, dispatches, and lets everyone generate a token.
    pub(super) fn round(&mut self, backlogged: &[usize]) {
        for who in backlogged {
            let tenant = who.to_string().as_str().into();
            while self.scheduler.counts(&tenant).waiting < 10 {
                self.push(*who);
            }
        }
        while let Some(next) = self.scheduler.next(self.now) {
            let (who, prompt, output) = next.item;
            self.scheduler.first_token(next.key, self.now);
            self.service[who] += prompt;
            self.running.push(Running {
                key: next.key,
                who,
                prompt,
                output,
                got: 0,
            });
        }
        self.now += Duration::from_millis(30);
        let (scheduler, service, now) = (&mut self.scheduler, &mut self.service, self.now);
        self.running.retain_mut(|one| {
            one.got += 1;
            service[one.who] += 2;
            scheduler.streamed(one.key, one.got, now);
            if one.got < one.output {
                return true;
            }
            let usage = Usage {
                prompt_tokens: one.prompt,
                cached_tokens: 0,
                completion_tokens: one.got,
            };
            scheduler.finish(one.key, &Outcome::Completed(usage), now);
            false
        });
        self.scheduler.tick(self.now);
    }

    /// Service per weight.
    pub(super) fn share(&self, who: usize) -> u64 {
        self.service[who] / u64::from(self.wants[who].weight)
    }
}

fn want() -> impl Strategy<Value = Want> {
    let sizes = (1..=LONGEST_PROMPT, 1..=LONGEST_OUTPUT);
    (0_usize..2, 1_u32..4, sizes).prop_map(|(group, weight, (prompt, output))| Want {
        group,
        weight,
        prompt,
        output,
    })
}

/// The widest gap between siblings, over all moments, at each level.
fn widest(toy: &mut Toy, rounds: usize) -> u64 {
    let everyone: Vec<usize> = (0..toy.wants.len()).collect();
    let mut widest = 0;
    for _ in 0..rounds {
        toy.round(&everyone);
        let mut groups: BTreeMap<usize, u64> = BTreeMap::new();
        for (who, want) in toy.wants.iter().enumerate() {
            *groups.entry(want.group).or_default() += toy.service[who];
            let siblings = everyone
                .iter()
                .filter(|other| toy.wants[**other].group == want.group);
            for other in siblings {
                widest = widest.max(toy.share(who).abs_diff(toy.share(*other)));
            }
        }
        let most = groups.values().max().copied().unwrap_or(0);
        widest = widest.max(most - groups.values().min().copied().unwrap_or(0));
    }
    widest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn backlogged_siblings_stay_within_the_bound_of_vtc_at_every_level(
        wants in prop::collection::vec(want(), 2..6),
    ) {
        let settings = settings(None);
        let gap = widest(&mut Toy::new(&settings, wants), 1500);
        prop_assert!(gap <= bound(&settings), "{gap} > {}", bound(&settings));
    }

    #[test]
    fn time_away_is_no_credit(away in 100_usize..3000, wants in prop::collection::vec(want(), 2)) {
        let gap = credit_after(None, away, false, &wants);
        prop_assert!(gap <= bound(&settings(None)), "{gap}");
    }

    #[test]
    fn an_answer_kept_open_banks_no_credit(away in 100_u64..3000) {
        let wants = vec![Want { group: 0, weight: 1, prompt: 50, output: 50 }; 2];
        let gap = credit_after(None, usize::try_from(away).unwrap(), true, &wants);
        prop_assert!(gap <= bound(&settings(None)), "{gap}");
    }
}

/// The part of all service that one tenant gets beside a group of so many others.
fn share_beside(others: usize) -> f64 {
    let want = Want {
        group: 1,
        weight: 1,
        prompt: 100,
        output: 40,
    };
    let mut wants = vec![want; others + 1];
    wants[0].group = 0;
    let everyone: Vec<usize> = (0..wants.len()).collect();
    let mut toy = Toy::new(&settings(None), wants);
    for _ in 0..4000 {
        toy.round(&everyone);
    }
    let all: u64 = toy.service.iter().sum();
    f64::from(u32::try_from(toy.service[0]).unwrap()) / f64::from(u32::try_from(all).unwrap())
}

#[test]
fn made_up_tenants_share_what_their_group_has() {
    let (beside_one, beside_many) = (share_beside(1), share_beside(300));
    assert!((beside_one - 0.5).abs() < 0.02, "{beside_one}");
    assert!((beside_many - 0.5).abs() < 0.02, "{beside_many}");
}

/// By how much the second tenant gets ahead of the first after it was away, or had only one long
/// answer running, for so many rounds.
pub(super) fn credit_after(
    mutant: Option<Mutant>,
    away: usize,
    parks: bool,
    wants: &[Want],
) -> u64 {
    let mut wants = wants.to_vec();
    for want in &mut wants {
        (want.group, want.weight) = (0, 1);
    }
    let mut toy = Toy::new(&settings(mutant), wants);
    toy.round(&[0, 1]);
    if parks {
        toy.push_sized(1, 1, away as u64 + 10);
    }
    for _ in 0..away {
        toy.round(&[0]);
    }
    let before = toy.service.clone();
    let mut ahead = 0;
    for _ in 0..1500 {
        toy.round(&[0, 1]);
        let since = |who: usize| toy.service[who] - before[who];
        ahead = ahead.max(since(1).saturating_sub(since(0)));
    }
    ahead
}

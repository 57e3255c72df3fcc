//! Without foresight the fair discipline is VTC (Sheng et al., OSDI'24, algorithm 2, with weights).
//! Here is that algorithm by brute force, and both must dispatch the same requests in the same order.

use proptest::prelude::*;

use super::{super::*, arrival, epoch, fair};
use crate::cost::Usage;

const SLOTS: u64 = 3;

#[derive(Default)]
struct Counter {
    name: usize,
    weight: i128,
    paid: i128,
    lifted: i128,
    queue: Vec<(u64, usize)>,
}

/// Algorithm 2: a counter per client, the least one is served, linear scans throughout.
#[derive(Default)]
struct Vtc {
    counters: Vec<Counter>,
    last_left: i128,
    running: usize,
}

impl Counter {
    fn value(&self) -> i128 {
        self.lifted + self.paid.div_euclid(self.weight)
    }
}

impl Vtc {
    fn push(&mut self, name: usize, weight: i128, prompt: u64, id: usize) {
        let waiting = self.counters.iter().filter(|one| !one.queue.is_empty());
        let least = waiting.map(Counter::value).min();
        let known = self.counters.iter().position(|one| one.name == name);
        let at = known.unwrap_or_else(|| {
            self.counters.push(Counter {
                name,
                weight,
                ..Counter::default()
            });
            self.counters.len() - 1
        });
        let counter = &mut self.counters[at];
        if counter.queue.is_empty() {
            // A grain below, so that ties go to who comes back; the paper leaves ties open.
            let floor = least.unwrap_or(self.last_left) - 1;
            counter.lifted += (floor - counter.value()).max(0);
        }
        counter.queue.push((prompt, id));
    }

    /// The paper leaves ties open: `ours` is as good as any if its tenant is one of the least.
    fn next(&mut self, ours: Option<usize>) -> Option<usize> {
        if self.running as u64 >= SLOTS {
            return None;
        }
        let waiting = self.counters.iter_mut().filter(|one| !one.queue.is_empty());
        let is_ours = |one: &Counter| one.queue.first().map(|(_, id)| *id) == ours;
        let counter = waiting.min_by_key(|one| (one.value(), !is_ours(one)))?;
        let (prompt, id) = counter.queue.remove(0);
        counter.paid += i128::from(prompt) * 1_000_000;
        if counter.queue.is_empty() {
            self.last_left = counter.value();
        }
        self.running += 1;
        Some(id)
    }

    fn generated(&mut self, name: usize, tokens: u64) {
        let counter = self.counters.iter_mut().find(|one| one.name == name);
        counter.unwrap().paid += i128::from(tokens) * 2_000_000;
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push(usize, u64),
    Generate(prop::sample::Index, u64),
    End(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_usize..6, 1_u64..500).prop_map(|(tenant, prompt)| Op::Push(tenant, prompt)),
        4 => (any::<prop::sample::Index>(), 1_u64..60).prop_map(|(i, n)| Op::Generate(i, n)),
        2 => any::<prop::sample::Index>().prop_map(Op::End),
    ]
}

/// key, tenant, prompt, tokens so far
type Running = Vec<(Key, usize, u64, u64)>;

proptest! {
    #[test]
    fn without_foresight_it_dispatches_like_vtc(
        weights in prop::collection::vec(1_u32..5, 6),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let now = epoch();
        let mut settings = fair(Capacity::of_engine(SLOTS, 1 << 40, None));
        settings.fair.upfront_percent = 0;
        settings.fair.capacity.headroom = 0;
        settings.fair.long_prompt_tokens = u64::MAX;
        let mut scheduler = Scheduler::new(&settings);
        let (mut vtc, mut running, mut pushed) = (Vtc::default(), Running::new(), 0);
        let mut facts = Vec::new();
        for op in ops {
            match op {
                Op::Push(tenant, prompt) => {
                    let mut arrival = arrival("", &tenant.to_string(), prompt, now);
                    arrival.weight = weights[tenant];
                    scheduler.push(&arrival, pushed, now).unwrap();
                    vtc.push(tenant, i128::from(weights[tenant]), prompt, pushed);
                    facts.push((tenant, prompt));
                    pushed += 1;
                }
                Op::Generate(which, tokens) if !running.is_empty() => {
                    let one = which.get_mut::<(Key, usize, u64, u64)>(&mut running);
                    one.3 += tokens;
                    scheduler.streamed(one.0, one.3, now);
                    vtc.generated(one.1, tokens);
                }
                Op::End(which) if !running.is_empty() => {
                    let (key, _, prompt, tokens) = running.swap_remove(which.index(running.len()));
                    let usage = Usage {
                        prompt_tokens: prompt,
                        cached_tokens: 0,
                        completion_tokens: tokens,
                    };
                    scheduler.finish(key, &Outcome::Completed(usage), now);
                    vtc.running -= 1;
                }
                Op::Generate(..) | Op::End(_) => {}
            }
            loop {
                let ours = scheduler.next(now);
                let item = ours.as_ref().map(|next| next.item);
                prop_assert_eq!(item, vtc.next(item));
                let Some(ours) = ours else { break };
                let (tenant, prompt) = facts[ours.item];
                running.push((ours.key, tenant, prompt, 0));
            }
        }
    }
}

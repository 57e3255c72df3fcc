//! What a prompt costs that the engine did not have to compute.

use super::{super::*, arrival, epoch, fair};
use crate::cost::Usage;

fn scheduler() -> Scheduler<&'static str> {
    let mut settings = fair(Capacity::of_engine(1, 10_000, None));
    settings.fair.capacity.headroom = 0;
    settings.fair.assumed_output = 0;
    Scheduler::new(&settings)
}

fn completed(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Outcome {
    Outcome::Completed(Usage {
        prompt_tokens,
        cached_tokens,
        completion_tokens,
    })
}

#[test]
fn cached_prompt_tokens_cost_a_tenth_of_computed_ones() {
    let now = epoch();
    let mut scheduler = scheduler();
    scheduler
        .push(&arrival("", "a", 100, now), "a", now)
        .unwrap();
    let key = scheduler.next(now).unwrap().key;
    assert_eq!(super::core(&scheduler).served(), 100_000_000);
    scheduler.finish(key, &completed(100, 60, 7), now);
    assert_eq!(super::core(&scheduler).served(), 60_000_000);
}

#[test]
fn more_cached_than_prompted_is_an_engines_mistake_and_no_gift() {
    let now = epoch();
    let mut scheduler = scheduler();
    scheduler
        .push(&arrival("", "a", 100, now), "a", now)
        .unwrap();
    let key = scheduler.next(now).unwrap().key;
    scheduler.finish(key, &completed(100, u64::MAX, 0), now);
    assert_eq!(super::core(&scheduler).served(), 10_000_000);
}

#[test]
fn tenant_whose_prompts_are_cached_gets_ten_times_the_prompts() {
    let now = epoch();
    let mut scheduler = scheduler();
    let mut counts = [0_u32; 2];
    for _ in 0..2200 {
        for tenant in ["cached", "computed"] {
            while scheduler.counts(&tenant.into()).waiting < 2 {
                let arrival = arrival(tenant, tenant, 1000, now);
                scheduler.push(&arrival, tenant, now).unwrap();
            }
        }
        let next = scheduler.next(now).unwrap();
        let is_cached = next.item == "cached";
        counts[usize::from(!is_cached)] += 1;
        let cached = if is_cached { 1000 } else { 0 };
        scheduler.finish(next.key, &completed(1000, cached, 0), now);
    }
    assert!((1995..=2005).contains(&counts[0]), "{counts:?}");
}

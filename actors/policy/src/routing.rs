//! Which of a model's engines a request goes to: the one with the least un-acknowledged prefill,
//! unless the one that probably has the prompt's beginning in its cache is hardly busier.
//!
//! The engine of a prefix is found by rendezvous hashing (Thaler and Ravishankar, "Using name-based
//! mappings to increase hit rates", 1998): when one comes or goes, only its own prefixes move.

/// What is in one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Which engine; stays the same while others come and go.
    pub replica: usize,
    /// Prompt tokens dispatched there whose first token has not come.
    pub unacked: u64,
    /// Requests that run there.
    pub running: u64,
    /// How many may.
    pub room: u64,
}

/// The engine for a request whose prompt begins with what `prefix` stands for. A cached prefix saves
/// at most its prefill, so it is worth waiting behind `patience` more tokens and no more. `None` only
/// if there is no engine.
#[must_use]
pub fn choose(engines: &[Load], prefix: Option<u64>, patience: u64) -> Option<usize> {
    let has_room = |load: &&Load| load.running < load.room;
    let least = engines
        .iter()
        .min_by_key(|load| (!has_room(load), load.unacked, load.running, load.replica))?;
    let home = prefix.and_then(|prefix| {
        engines
            .iter()
            .max_by_key(|load| affinity(prefix, load.replica))
    });
    let close = least.unacked.saturating_add(patience);
    let chosen = home.filter(|home| has_room(home) && home.unacked <= close);
    Some(chosen.unwrap_or(least).replica)
}

/// The finalizer of SplitMix64 (Steele et al., OOPSLA'14): every bit of the input moves every bit.
fn affinity(prefix: u64, replica: usize) -> u64 {
    let mut hash = prefix ^ (replica as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn engine(replica: usize, unacked: u64) -> Load {
        Load {
            replica,
            unacked,
            running: 0,
            room: 8,
        }
    }

    #[test]
    fn without_a_prefix_the_least_prefill_decides() {
        let engines = [engine(0, 300), engine(1, 20), engine(2, 20)];
        assert_eq!(choose(&engines, None, 1000), Some(1));
        assert_eq!(choose(&[], None, 1000), None);
    }

    #[test]
    fn full_engines_are_passed_over_while_another_has_room() {
        let full = Load {
            running: 8,
            ..engine(0, 0)
        };
        assert_eq!(choose(&[full, engine(1, 500)], None, 0), Some(1));
        assert_eq!(choose(&[full], None, 0), Some(0));
    }

    proptest! {
        #[test]
        fn a_prefix_stays_where_it_was_while_loads_are_close(prefix: u64, count in 1_usize..8) {
            let idle: Vec<Load> = (0..count).map(|n| engine(n, 0)).collect();
            let home = choose(&idle, Some(prefix), 100);
            let busier: Vec<Load> = idle
                .iter()
                .map(|load| engine(load.replica, if Some(load.replica) == home { 100 } else { 0 }))
                .collect();
            prop_assert_eq!(choose(&busier, Some(prefix), 100), home);
        }

        #[test]
        fn an_engine_that_goes_moves_only_its_own_prefixes(prefix: u64, gone in 0_usize..6) {
            let all: Vec<Load> = (0..6).map(|n| engine(n, 0)).collect();
            let home = choose(&all, Some(prefix), 0);
            let left: Vec<Load> = all.into_iter().filter(|load| load.replica != gone).collect();
            let now = choose(&left, Some(prefix), 0);
            prop_assert!(now == home || home == Some(gone));
        }

        #[test]
        fn nobody_waits_behind_more_than_patience_for_a_cached_prefix(
            prefix: u64,
            unacked in prop::collection::vec(0_u64..5000, 1..6),
            patience in 0_u64..3000,
        ) {
            let engines: Vec<Load> =
                unacked.iter().enumerate().map(|(n, tokens)| engine(n, *tokens)).collect();
            let least = unacked.iter().min().copied().unwrap_or_default();
            let chosen = choose(&engines, Some(prefix), patience).and_then(|n| unacked.get(n));
            prop_assert!(chosen.is_some_and(|tokens| *tokens <= least + patience));
        }
    }
}

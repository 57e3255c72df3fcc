//! Distributions of times.

use std::time::Duration;

use serde::Serialize;

/// A distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// Requests that count.
    pub count: usize,
    /// Of these, how many never got that far before the run ended: they enter with the time they had.
    pub unfinished: usize,
    /// Median.
    pub p50: Quantile,
    /// 95th percentile.
    pub p95: Quantile,
    /// 99th percentile.
    pub p99: Quantile,
    /// Longest.
    pub max: Quantile,
}

/// A percentile, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantile {
    /// The value; none of nothing.
    pub ms: Option<f64>,
    /// It is really at least this, as an unfinished request ranks at or below it.
    pub at_least: bool,
}

/// One value of a distribution: known, or known to be longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Milliseconds.
    pub ms: f64,
    /// It went on when the run ended.
    pub is_unfinished: bool,
}

// === impl Seen ===

impl Seen {
    /// It took this long.
    #[must_use]
    pub fn known(time: Duration) -> Self {
        Self {
            ms: time.as_secs_f64() * 1e3,
            is_unfinished: false,
        }
    }
}

// === impl Times ===

impl Times {
    /// Their percentiles by nearest rank.
    pub fn of(seen: impl Iterator<Item = Seen>) -> Self {
        let mut all: Vec<Seen> = seen.collect();
        all.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        Self {
            count: all.len(),
            unfinished: all.iter().filter(|seen| seen.is_unfinished).count(),
            p50: quantile(&all, 50),
            p95: quantile(&all, 95),
            p99: quantile(&all, 99),
            max: quantile(&all, 100),
        }
    }
}

/// The `percent`th percentile of values in ascending order.
fn quantile(sorted: &[Seen], percent: usize) -> Quantile {
    let Some(at) = nearest_rank(sorted.len(), percent) else {
        return Quantile::default();
    };
    Quantile {
        ms: Some(sorted[at].ms),
        at_least: sorted[..=at].iter().any(|seen| seen.is_unfinished),
    }
}

/// Where the `percent`th percentile of so many values stands among them: no interpolation, so that
/// every figure is one that happened. None of nothing.
#[must_use]
pub fn nearest_rank(count: usize, percent: usize) -> Option<usize> {
    (count * percent).div_ceil(100).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(values: impl IntoIterator<Item = u32>) -> Vec<Seen> {
        let seen = |ms| Seen {
            ms: f64::from(ms),
            is_unfinished: false,
        };
        values.into_iter().map(seen).collect()
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times = Times::of(known((1..=200).rev()).into_iter());
        let values = [times.p50, times.p95, times.p99, times.max].map(|q| q.ms.unwrap());
        assert_eq!(values, [100.0, 190.0, 198.0, 200.0]);
        assert_eq!(Times::of([].into_iter()).p99, Quantile::default());
        assert_eq!(Times::of(known([7]).into_iter()).p50.ms, Some(7.0));
    }

    #[test]
    fn unfinished_request_makes_percentiles_lower_bounds() {
        let mut seen = known(1..=100);
        seen[97].is_unfinished = true;
        let times = Times::of(seen.into_iter());
        assert!(!times.p50.at_least && !times.p95.at_least);
        assert!(times.p99.at_least && times.max.at_least);
    }
}

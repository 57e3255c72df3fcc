//! Times in microseconds, counted exactly up to [`LONGEST`].

use std::time::Duration;

/// Longer times count as this long.
const LONGEST: usize = 1_000_000;

#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; LONGEST + 1],
            total: 0,
        }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, time: Duration) {
        let micros = usize::try_from(time.as_micros()).unwrap_or(LONGEST);
        self.counts[micros.min(LONGEST)] += 1;
        self.total += 1;
    }

    /// In microseconds, the time that this many of a hundred do not exceed.
    pub(crate) fn percentile(&self, percent: u64) -> Option<f64> {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        })?;
        u32::try_from(found).ok().map(f64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), None);
        for micros in 1..=200 {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.percentile(50), Some(100.0));
        assert_eq!(histogram.percentile(99), Some(198.0));
        histogram.add(Duration::from_secs(100));
        assert_eq!(histogram.percentile(100), Some(1e6));
    }
}

//! Prometheus' text format, read back.

/// What a `/metrics` page says.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Takes a page.
    #[must_use]
    pub fn new(page: impl Into<String>) -> Self {
        Self(page.into())
    }

    /// The page itself.
    #[must_use]
    pub fn page(&self) -> &str {
        &self.0
    }

    /// Lines that are samples.
    pub fn samples(&self) -> impl Iterator<Item = &str> {
        self.0
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// The series of one metric, labels included.
    #[must_use]
    pub fn series(&self, name: &str) -> Vec<&str> {
        let is_it = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        self.samples().filter(is_it).collect()
    }

    /// The sum over the series of a metric that carry all of `labels`, written as on the page
    /// (`model="m"`); none if no series does.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let all = self.series(name);
        let matching = all
            .iter()
            .filter(|line| labels.iter().all(|label| line.contains(label)));
        let values: Vec<f64> = matching.filter_map(|line| value(line)).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

fn value(sample: &str) -> Option<f64> {
    let after_labels = sample.rsplit_once('}').map_or(sample, |(_, rest)| rest);
    let mut words = after_labels.split_whitespace();
    if !sample.contains('}') {
        words.next();
    }
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let page = "# HELP a x\n# TYPE a counter\na{m=\"x\",t=\"1\"} 2\na{m=\"x\",t=\"2\"} 3\na_b 9\nc 1.5\n";
        let metrics = Metrics::new(page);
        assert_eq!(metrics.sum("a", &["m=\"x\""]), Some(5.0));
        assert_eq!(metrics.sum("a", &["t=\"2\""]), Some(3.0));
        assert_eq!(metrics.sum("c", &[]), Some(1.5));
        assert_eq!(metrics.sum("a", &["m=\"y\""]), None);
        assert_eq!(metrics.series("a").len(), 2);
    }
}

//! Engines' `/metrics` pages, as far as they are read: the gauges of requests.

use super::{EngineKind, dialect::Gauges};

/// Requests an engine computes, by its own account.
#[must_use]
pub fn running(page: &str, kind: EngineKind) -> Option<f64> {
    read(page, kind, |gauges| gauges.running)
}

/// Requests an engine holds back.
#[must_use]
pub fn waiting(page: &str, kind: EngineKind) -> Option<f64> {
    read(page, kind, |gauges| gauges.waiting)
}

/// What changes as an engine computes.
#[must_use]
pub fn work(page: &str, kind: EngineKind) -> Option<f64> {
    read(page, kind, |gauges| gauges.work)
}

/// A server of which nothing is known may be any of the engines that are.
fn read(
    page: &str,
    kind: EngineKind,
    which: fn(&Gauges) -> &'static [&'static str],
) -> Option<f64> {
    if let Some(gauges) = &kind.dialect().gauges {
        return gauge(page, which(gauges));
    }
    let known = EngineKind::ALL.into_iter();
    let mut known = known.filter_map(|kind| kind.dialect().gauges.as_ref());
    known.find_map(|gauges| gauge(page, which(gauges)))
}

/// The sum of what goes by one of `names`, over their labels. None if the page has none of it.
fn gauge(page: &str, names: &[&str]) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = names.iter().find_map(|name| line.strip_prefix(name))?;
        // Another metric may begin with the same name. A label's value may hold a brace.
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        // A timestamp may follow.
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_long_prompt_shows_before_an_iteration_is_counted() {
        let page = |usage| {
            format!(
                "vllm:iteration_tokens_total_count{{engine=\"0\"}} 8.0\n\
                 vllm:kv_cache_usage_perc{{engine=\"0\"}} {usage}\n"
            )
        };
        let work = |usage| work(&page(usage), EngineKind::Vllm);
        assert_ne!(work("0.0"), work("0.011"));
    }

    #[test]
    fn gauges_of_each_engine_are_read() {
        let vllm = "# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b}\"} 7\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a b}\"} 2 1700000000000\n\
            vllm:num_requests_running_total{engine=\"0\"} 99\n";
        let llamacpp = "llamacpp:requests_deferred 3\n";
        for kind in [EngineKind::VllmCpu, EngineKind::Attach] {
            assert_eq!(running(vllm, kind), Some(9.0));
        }
        for kind in [EngineKind::LlamaCpp, EngineKind::Attach] {
            assert_eq!(waiting(llamacpp, kind), Some(3.0));
            assert_eq!(waiting("", kind), None);
        }
    }
}

//! Engines' `/metrics` pages, as far as they are read: the gauges of requests.

/// Requests an engine computes, by its own account: the gauge of vLLM (and of the simulated
/// engine), SGLang and llama.cpp.
pub const RUNNING: [&str; 3] = [
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
];

/// Requests an engine holds back.
pub const WAITING: [&str; 3] = [
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
];

/// What changes as an engine computes, during a long prompt too. vLLM counts only iterations out of
/// which a token came, but takes memory for each part of a prompt; `SGLang` counts a prompt's tokens
/// as they are computed, llama.cpp its calls of `llama_decode`.
pub const WORK: [&str; 4] = [
    "vllm:iteration_tokens_total_count",
    "vllm:kv_cache_usage_perc",
    "sglang:realtime_tokens_total",
    "llamacpp:n_decode_total",
];

/// The sum of what goes by one of `names`, over their labels. None if the page has none of it.
#[must_use]
pub fn gauge(page: &str, names: &[&str]) -> Option<f64> {
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
        assert_ne!(gauge(&page("0.0"), &WORK), gauge(&page("0.011"), &WORK));
    }

    #[test]
    fn gauges_of_each_engine_are_read() {
        let page = "# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b}\"} 7\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a b}\"} 2 1700000000000\n\
            vllm:num_requests_running_total{engine=\"0\"} 99\n\
            llamacpp:requests_deferred 3\n";
        assert_eq!(gauge(page, &RUNNING), Some(9.0));
        assert_eq!(gauge(page, &WAITING), Some(3.0));
        assert_eq!(gauge("", &WAITING), None);
    }
}

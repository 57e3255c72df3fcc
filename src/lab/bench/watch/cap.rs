//! Whether a limit nobody set was what queued.

use super::Look;

/// A limit that nobody set: the engine runs the same number of requests all the time, below what it
/// was allowed, nothing waits inside it, and requests queue in front of it. A connection pool of 100
/// looks exactly like that, and its figures are those of the pool.
#[must_use]
pub fn hidden_cap(looks: &[Look]) -> Option<String> {
    let crowded: Vec<_> = looks
        .iter()
        .filter(|look| {
            look.running
                .is_some_and(|running| look.open > running * 1.05 + 4.0)
        })
        .collect();
    if crowded.len() < 20 || crowded.len() * 2 < looks.len() {
        return None;
    }
    let idle = crowded
        .iter()
        .filter(|look| look.waiting.unwrap_or(0.0) < 1.0);
    if idle.count() * 10 < crowded.len() * 9 {
        return None;
    }
    let mut running: Vec<f64> = crowded.iter().filter_map(|look| look.running).collect();
    running.sort_by(f64::total_cmp);
    let (low, flat, high) = (
        running[running.len() / 10],
        running[running.len() / 2],
        running[running.len() * 9 / 10],
    );
    let is_flat = high - low <= (flat * 0.02).max(1.0);
    let slots = crowded.iter().find_map(|look| look.slots);
    let is_own_limit = slots.is_some_and(|slots| flat >= slots * 0.94);
    // Where nobody told the limit, a round number is the sign.
    let is_round = [10.0, 16.0].iter().any(|step| flat % step < 0.5);
    if !is_flat || is_own_limit || (slots.is_none() && !is_round) {
        return None;
    }
    let allowed = slots.map_or(String::new(), |slots| format!(" of {slots:.0} it may run"));
    Some(format!(
        "a hidden cap binds: the engine ran a flat {flat:.0} requests{allowed} with none waiting in \
         it while others queued; these figures are those of the cap"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(running: impl Fn(usize) -> f64, waiting: f64, slots: Option<f64>) -> Vec<Look> {
        let look = |at: usize| Look {
            at: at as f64 / 10.0,
            open: 400.0,
            running: Some(running(at)),
            waiting: Some(waiting),
            slots,
            ..Look::default()
        };
        (0..100).map(look).collect()
    }

    #[test]
    fn connection_pool_of_a_hundred_is_found() {
        let warning = hidden_cap(&looks(|_| 100.0, 0.0, Some(256.0))).unwrap();
        assert!(warning.contains("flat 100 requests of 256"), "{warning}");
        assert!(hidden_cap(&looks(|_| 100.0, 0.0, None)).is_some());
    }

    #[test]
    fn full_engine_is_no_hidden_cap() {
        assert_eq!(hidden_cap(&looks(|_| 256.0, 0.0, Some(256.0))), None);
        assert_eq!(hidden_cap(&looks(|_| 100.0, 30.0, Some(256.0))), None);
        // Bound by the KV cache: the number follows the lengths.
        let varying = |at| 150.0 + (at % 30) as f64;
        assert_eq!(hidden_cap(&looks(varying, 0.0, Some(256.0))), None);
    }
}

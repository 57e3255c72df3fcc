//! vLLM's metrics, under its names, labels and buckets (`vllm/v1/metrics/loggers.py`).
//!
//! The text is written by hand: vLLM's Python client writes the classic format, where a counter's
//! TYPE line carries the `_total` name and there is no EOF mark, and prometheus-client writes
//! OpenMetrics only.

use std::{
    fmt::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::memory::{Memory, Weights};

const ITERATION_TOKENS: [u64; 12] = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];
const QUEUE_MILLIS: [u64; 20] = [
    300, 500, 800, 1_000, 1_500, 2_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000,
    50_000, 60_000, 120_000, 240_000, 480_000, 960_000, 1_920_000,
];
const FIRST_TOKEN_MILLIS: [u64; 21] = [
    1, 5, 10, 20, 40, 60, 80, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000, 20_000,
    40_000, 80_000, 160_000, 640_000,
];

/// What the engine last said about itself. Written once a step, read by `/metrics` even when the
/// engine hangs, as vLLM's API server does it.
#[derive(Clone, Debug)]
pub(super) struct Board(Arc<Mutex<Stats>>);

#[derive(Debug)]
pub(super) struct Stats {
    pub(super) running: u64,
    pub(super) waiting: u64,
    pub(super) kv_blocks: u32,
    pub(super) kv_used: u32,
    pub(super) prefix_queries: u64,
    pub(super) prefix_hits: u64,
    pub(super) prompt_tokens: u64,
    pub(super) prompt_tokens_cached: u64,
    pub(super) generation_tokens: u64,
    pub(super) preemptions: u64,
    pub(super) finished_stop: u64,
    pub(super) finished_length: u64,
    pub(super) finished_abort: u64,
    pub(super) iteration_tokens: Histogram<12>,
    pub(super) queue_time: Histogram<20>,
    pub(super) first_token: Histogram<21>,
    pub(super) memory: Memory,
}

/// Counts per bucket, each including the ones below when written.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    bounds: [u64; N],
    counts: [u64; N],
    beyond: u64,
    sum: u64,
    /// Observed units per unit shown.
    scale: Scale,
}

#[derive(Clone, Copy, Debug)]
enum Scale {
    /// Observed and shown as they are.
    Plain,
    /// Observed in microseconds, bounds in milliseconds, shown in seconds.
    Time,
}

// === impl Board ===

impl Board {
    pub(super) fn new(kv_blocks: u32, memory: Memory) -> Self {
        Self(Arc::new(Mutex::new(Stats {
            running: 0,
            waiting: 0,
            kv_blocks,
            kv_used: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            prompt_tokens: 0,
            prompt_tokens_cached: 0,
            generation_tokens: 0,
            preemptions: 0,
            finished_stop: 0,
            finished_length: 0,
            finished_abort: 0,
            iteration_tokens: Histogram::new(ITERATION_TOKENS, Scale::Plain),
            queue_time: Histogram::new(QUEUE_MILLIS, Scale::Time),
            first_token: Histogram::new(FIRST_TOKEN_MILLIS, Scale::Time),
            memory,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Stats> {
        // Counters are worth reading even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Stats ===

impl Stats {
    /// The whole page.
    pub(super) fn render(&self, model: &str) -> String {
        let mut text = String::with_capacity(8 << 10);
        // Writing to a string can't fail.
        let _ = self.write(&mut text, model);
        text
    }

    fn write(&self, text: &mut String, model: &str) -> fmt::Result {
        let model = model.replace('\\', "\\\\").replace('"', "\\\"");
        let mut page = Page {
            text,
            labels: format!("engine=\"0\",model_name=\"{model}\""),
        };
        page.gauge("num_requests_running", self.running)?;
        page.gauge("num_requests_waiting", self.waiting)?;
        let usage = f64::from(self.kv_used) / f64::from(self.kv_blocks);
        page.gauge("kv_cache_usage_perc", usage)?;
        self.write_sleep_state(&mut page)?;
        page.counter("prefix_cache_queries_total", self.prefix_queries)?;
        page.counter("prefix_cache_hits_total", self.prefix_hits)?;
        page.counter("prompt_tokens_total", self.prompt_tokens)?;
        page.counter("prompt_tokens_cached_total", self.prompt_tokens_cached)?;
        page.counter("generation_tokens_total", self.generation_tokens)?;
        page.counter("num_preemptions_total", self.preemptions)?;
        page.family("request_success_total", "counter")?;
        for (reason, count) in [
            ("stop", self.finished_stop),
            ("length", self.finished_length),
            ("abort", self.finished_abort),
        ] {
            page.labelled("request_success_total", "finished_reason", reason, count)?;
        }
        page.histogram("iteration_tokens_total", &self.iteration_tokens)?;
        page.histogram("request_queue_time_seconds", &self.queue_time)?;
        page.histogram("time_to_first_token_seconds", &self.first_token)
    }

    fn write_sleep_state(&self, page: &mut Page<'_>) -> fmt::Result {
        page.family("engine_sleep_state", "gauge")?;
        let awake = self.memory.is_complete();
        let lost = self.memory.weights == Weights::Discarded;
        for (state, holds) in [
            ("awake", awake),
            ("weights_offloaded", !awake && !lost),
            ("discard_all", !awake && lost),
        ] {
            page.labelled("engine_sleep_state", "sleep_state", state, u64::from(holds))?;
        }
        Ok(())
    }
}

// === impl Histogram ===

impl<const N: usize> Histogram<N> {
    fn new(bounds: [u64; N], scale: Scale) -> Self {
        Self {
            bounds,
            counts: [0; N],
            beyond: 0,
            sum: 0,
            scale,
        }
    }

    pub(super) fn observe(&mut self, value: u64) {
        self.sum += value;
        let bound = |bound: u64| match self.scale {
            Scale::Plain => bound,
            Scale::Time => bound * 1_000,
        };
        match self.bounds.iter().position(|b| value <= bound(*b)) {
            Some(bucket) => self.counts[bucket] += 1,
            None => self.beyond += 1,
        }
    }

    pub(super) fn observe_duration(&mut self, value: Duration) {
        self.observe(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }
}

struct Page<'a> {
    text: &'a mut String,
    labels: String,
}

// === impl Page ===

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str) -> fmt::Result {
        writeln!(self.text, "# HELP vllm:{name} Simulated by kvwarden.")?;
        writeln!(self.text, "# TYPE vllm:{name} {kind}")
    }

    fn gauge(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        self.family(name, "gauge")?;
        writeln!(self.text, "vllm:{name}{{{}}} {value}", self.labels)
    }

    fn counter(&mut self, name: &str, value: u64) -> fmt::Result {
        self.family(name, "counter")?;
        writeln!(self.text, "vllm:{name}{{{}}} {value}", self.labels)
    }

    fn labelled(&mut self, name: &str, label: &str, value: &str, count: u64) -> fmt::Result {
        let labels = &self.labels;
        writeln!(
            self.text,
            "vllm:{name}{{{labels},{label}=\"{value}\"}} {count}"
        )
    }

    fn histogram<const N: usize>(&mut self, name: &str, of: &Histogram<N>) -> fmt::Result {
        self.family(name, "histogram")?;
        let mut total = 0;
        for (bound, count) in of.bounds.iter().zip(of.counts) {
            total += count;
            let bound = match of.scale {
                Scale::Plain => format!("{bound}.0"),
                Scale::Time => seconds(bound * 1_000),
            };
            self.labelled(&format!("{name}_bucket"), "le", &bound, total)?;
        }
        total += of.beyond;
        self.labelled(&format!("{name}_bucket"), "le", "+Inf", total)?;
        let labels = &self.labels;
        writeln!(self.text, "vllm:{name}_count{{{labels}}} {total}")?;
        let sum = match of.scale {
            Scale::Plain => of.sum.to_string(),
            Scale::Time => seconds(of.sum),
        };
        writeln!(self.text, "vllm:{name}_sum{{{labels}}} {sum}")
    }
}

fn seconds(micros: u64) -> String {
    Duration::from_micros(micros).as_secs_f64().to_string()
}

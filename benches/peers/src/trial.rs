//! What is measured: the kinds of load, and the figures that each of them gives.

use std::time::Duration;

use serde_json::json;

use crate::answer::Plan;

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) key: &'static str,
    pub(crate) question: Question,
    pub(crate) plan: Plan,
    pub(crate) pace: Option<Duration>,
    pub(crate) load: Kind,
    /// The proxy shares its core with the load.
    pub(crate) on_one_core: bool,
    /// The proxy is started anew, so that its memory is of this load alone.
    pub(crate) is_fresh: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// So many clients, each asking as soon as it has its answer.
    Closed(u32),
    /// So many requests a second.
    Open(u32),
    /// So many streams that go on.
    Streams(u32),
    /// One request, then nothing.
    Idle,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    Chat { is_streamed: bool, prompt: usize },
    Tools { is_streamed: bool },
    Embeddings,
}

/// A figure of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) trial: &'static str,
    pub(crate) title: &'static str,
    pub(crate) value: Value,
}

/// What is read off a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// CPU time of the proxy, in microseconds.
    CpuPerAnswer,
    AnswersPerSecond,
    /// In microseconds, less what the backend alone takes.
    AddedMedian,
    /// CPU time of the proxy, in seconds.
    CpuPerMillionEvents,
    EventsPerSecond,
    /// In KiB.
    MemoryPerStream,
    Live,
    /// How late events come, in milliseconds.
    LatePercentile99,
    /// In MiB.
    Memory,
}

/// As much as the prompt of a short chat takes.
const SHORT: usize = 700;

const WORDS_64: Plan = Plan {
    tokens: 64,
    calls_tools: false,
};
const ENDLESS: Plan = Plan {
    tokens: u32::MAX,
    calls_tools: false,
};
const WHOLE: Question = Question::Chat {
    is_streamed: false,
    prompt: SHORT,
};
const STREAM: Question = Question::Chat {
    is_streamed: true,
    prompt: SHORT,
};

const fn trial(key: &'static str, question: Question, plan: Plan, load: Kind) -> Trial {
    Trial {
        key,
        question,
        plan,
        pace: None,
        load,
        on_one_core: false,
        is_fresh: false,
    }
}

const fn tokens(tokens: u32) -> Plan {
    Plan {
        tokens,
        calls_tools: false,
    }
}

const fn prompt(prompt: usize) -> Question {
    Question::Chat {
        is_streamed: false,
        prompt,
    }
}

const fn streams(key: &'static str, count: u32, pace: Duration) -> Trial {
    Trial {
        pace: Some(pace),
        is_fresh: true,
        ..trial(key, STREAM, ENDLESS, Kind::Streams(count))
    }
}

const TOOLS: Plan = Plan {
    tokens: 64,
    calls_tools: true,
};

/// All there are; the first five are those of the README's table.
pub(crate) const TRIALS: &[Trial] = &[
    trial("c32", WHOLE, WORDS_64, Kind::Closed(32)),
    Trial {
        on_one_core: true,
        ..trial("c1", WHOLE, WORDS_64, Kind::Closed(1))
    },
    trial("rate", WHOLE, WORDS_64, Kind::Open(200)),
    streams("paced", 1000, Duration::from_millis(50)),
    trial("burst", STREAM, tokens(1000), Kind::Closed(32)),
    trial("tokens-1", WHOLE, tokens(1), Kind::Closed(32)),
    trial("tokens-512", WHOLE, tokens(512), Kind::Closed(32)),
    Trial {
        pace: Some(Duration::from_millis(5)),
        ..trial("held", WHOLE, WORDS_64, Kind::Closed(256))
    },
    trial("streamed", STREAM, WORDS_64, Kind::Closed(32)),
    trial(
        "tools",
        Question::Tools { is_streamed: false },
        TOOLS,
        Kind::Closed(32),
    ),
    trial(
        "tools-streamed",
        Question::Tools { is_streamed: true },
        TOOLS,
        Kind::Closed(32),
    ),
    trial(
        "embeddings",
        Question::Embeddings,
        WORDS_64,
        Kind::Closed(32),
    ),
    trial("prompt-10k", prompt(10_000), WORDS_64, Kind::Closed(32)),
    trial("prompt-1m", prompt(1_000_000), WORDS_64, Kind::Closed(4)),
    streams("streams-5000", 5000, Duration::from_millis(100)),
    Trial {
        is_fresh: true,
        ..trial("idle", WHOLE, WORDS_64, Kind::Idle)
    },
];

const fn row(trial: &'static str, title: &'static str, value: Value) -> Row {
    Row {
        trial,
        title,
        value,
    }
}

pub(crate) const ROWS: &[Row] = &[
    row("c32", "CPU us/request, c = 32", Value::CpuPerAnswer),
    row(
        "c32",
        "requests/s, c = 32, proxy on its own core",
        Value::AnswersPerSecond,
    ),
    row(
        "c1",
        "requests/s, c = 1, all on one core",
        Value::AnswersPerSecond,
    ),
    row("rate", "added p50 at 200/s, us", Value::AddedMedian),
    row(
        "paced",
        "CPU s per 1M chunks, 1,000 streams of 50 ms",
        Value::CpuPerMillionEvents,
    ),
    row(
        "paced",
        "chunk delay p99, ms, 1,000 streams of 50 ms",
        Value::LatePercentile99,
    ),
    row(
        "burst",
        "chunks/s, 32 streams back to back",
        Value::EventsPerSecond,
    ),
    row("paced", "KiB per open stream", Value::MemoryPerStream),
    row(
        "tokens-1",
        "unstreamed, 1 token: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "tokens-512",
        "unstreamed, 512 tokens: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "held",
        "unstreamed, 64 tokens of 5 ms, c = 256: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "streamed",
        "streamed, 64 tokens at once: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "tools",
        "tools, unstreamed: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "tools-streamed",
        "tools, streamed: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "embeddings",
        "embeddings: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "prompt-10k",
        "10 KB prompt: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row(
        "prompt-1m",
        "1 MB prompt, c = 4: CPU us/request",
        Value::CpuPerAnswer,
    ),
    row("streams-5000", "5,000 streams of 100 ms: live", Value::Live),
    row(
        "streams-5000",
        "5,000 streams of 100 ms: chunk delay p99, ms",
        Value::LatePercentile99,
    ),
    row(
        "streams-5000",
        "5,000 streams of 100 ms: CPU s per 1M chunks",
        Value::CpuPerMillionEvents,
    ),
    row("idle", "memory when idle, MiB", Value::Memory),
];

impl Question {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat { .. } | Self::Tools { .. } => "/v1/chat/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    pub(crate) fn body(self, model: &str) -> String {
        let text = |length: usize| "How much does it take? ".repeat(length.div_ceil(23));
        let chat = |length, is_streamed: bool| {
            json!({
                "model": model, "max_tokens": 4096, "temperature": 0.7, "stream": is_streamed,
                "messages": [
                    { "role": "system", "content": "You are a helpful assistant." },
                    { "role": "user", "content": text(length) },
                ],
            })
        };
        let body = match self {
            Self::Embeddings => json!({ "model": model, "input": text(SHORT) }),
            Self::Chat {
                is_streamed,
                prompt,
            } => chat(prompt, is_streamed),
            Self::Tools { is_streamed } => {
                let mut body = chat(SHORT, is_streamed);
                body["tools"] = json!([{ "type": "function", "function": {
                    "name": "look_up", "description": "Looks something up.",
                    "parameters": { "type": "object", "properties": { "what": { "type": "string" } } },
                } }]);
                body
            }
        };
        body.to_string()
    }

    /// How often the text of a token is in a right answer.
    pub(crate) fn words(self, plan: Plan) -> usize {
        match self {
            Self::Chat { .. } | Self::Tools { .. } => plan.tokens as usize,
            Self::Embeddings => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_trial_and_each_trial_a_row() {
        for row in ROWS {
            assert!(TRIALS.iter().any(|trial| trial.key == row.trial), "{row:?}");
        }
        for trial in TRIALS {
            assert!(ROWS.iter().any(|row| row.trial == trial.key), "{trial:?}");
        }
    }
}

//! Server-sent events, written as vLLM writes them: the role first, then text, then perhaps usage.
//!
//! Every event is one write. The parts of a chunk that never change are made once per request, so a
//! token costs a few copies.

use std::{collections::VecDeque, convert::Infallible};

use actix_web::{HttpResponse, http::header};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;

use super::{
    answer::{Answer, Dialect},
    handle::{InFlightRequest, Progress},
};

/// A stream under way.
struct Events {
    answer: Answer,
    in_flight: InFlightRequest,
    usage_at_end: bool,
    usage_always: bool,
    /// `data: {"id":...,"choices":[`
    head: String,
    /// Tokens written, per choice.
    written: Vec<Written>,
    ready: VecDeque<Bytes>,
    /// Nothing comes after what is ready.
    over: bool,
}

#[derive(Clone, Copy, Default)]
struct Written {
    tokens: u32,
    ended: bool,
}

pub(super) fn respond(
    answer: Answer,
    in_flight: InFlightRequest,
    usage_at_end: bool,
    usage_always: bool,
) -> HttpResponse {
    let object = match answer.dialect {
        Dialect::Chat => "chat.completion.chunk",
        Dialect::Completion => "text_completion",
    };
    let head = format!(
        r#"data: {{"id":{},"object":"{object}","created":{},"model":{},"choices":["#,
        json!(answer.id),
        answer.created,
        json!(answer.model),
    );
    let events = Events {
        written: vec![Written::default(); answer.stories.len()],
        answer,
        in_flight,
        usage_at_end,
        usage_always,
        head,
        ready: VecDeque::new(),
        over: false,
    };
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .streaming(stream::unfold(events, |mut events| async move {
            let chunk = events.next().await?;
            Some((Ok::<_, Infallible>(chunk), events))
        }))
}

// === impl Events ===

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() {
            if self.over {
                return None;
            }
            match self.in_flight.advance().await {
                Ok(progress) => self.write(&progress),
                // The engine died: end the body in the middle, as a dead process would.
                Err(_) => return None,
            }
        }
        self.ready.pop_front()
    }

    fn write(&mut self, progress: &Progress) {
        let begins = self.written.iter().all(|w| w.tokens == 0 && !w.ended);
        if begins && self.answer.dialect == Dialect::Chat {
            for index in 0..progress.choices.len() {
                let delta = r#"{"role":"assistant","content":""}"#;
                let choice = format!(
                    r#"{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":null}}"#
                );
                self.push(&choice, progress);
            }
        }
        for index in 0..progress.choices.len() {
            self.write_choice(index, progress);
        }
        if self.written.iter().all(|written| written.ended) {
            if self.usage_at_end {
                let usage = self.answer.usage(progress);
                let chunk = format!("{}],\"usage\":{usage}}}\n\n", self.head);
                self.ready.push_back(chunk.into());
            }
            self.ready
                .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            self.over = true;
        }
    }

    fn write_choice(&mut self, index: usize, progress: &Progress) {
        let state = progress.choices[index];
        let written = self.written[index];
        if written.ended || (state.generated == written.tokens && state.end.is_none()) {
            return;
        }
        // Made-up words need no escaping.
        let text = self.answer.text(progress, index, written.tokens);
        let mut choice = match self.answer.dialect {
            Dialect::Chat => format!(r#"{{"index":{index},"delta":{{"content":"{text}"}}"#),
            Dialect::Completion => format!(r#"{{"index":{index},"text":"{text}""#),
        };
        choice.push_str(r#","logprobs":null,"finish_reason":"#);
        match state.end {
            Some(end) => {
                choice.push_str(&format!(r#""{}","stop_reason":null}}"#, end.name()));
            }
            None => choice.push_str("null}"),
        }
        self.push(&choice, progress);
        self.written[index] = Written {
            tokens: state.generated,
            ended: state.end.is_some(),
        };
    }

    fn push(&mut self, choice: &str, progress: &Progress) {
        let mut chunk = String::with_capacity(self.head.len() + choice.len() + 8);
        chunk.push_str(&self.head);
        chunk.push_str(choice);
        chunk.push(']');
        if self.usage_always {
            let usage = self.answer.usage(progress);
            chunk.push_str(&format!(",\"usage\":{usage}"));
        }
        chunk.push_str("}\n\n");
        self.ready.push_back(chunk.into());
    }
}

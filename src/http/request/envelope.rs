//! What kvwarden reads off a request body, and the few fields it changes.
//!
//! Values go on to the engine byte for byte. Refused is what is no request at all, and what is larger than
//! a bound.

use actix_web::http::header::HeaderValue;
use kvwarden_actors::engine::Fields;
use kvwarden_policy::cost::RequestSize;
use serde_json::value::RawValue;

pub(crate) use super::members::Members;
use super::{names::Names, reading::Reading};
use crate::http::refusal::BadRequest;

/// Fields that the client says to kvwarden and not to the engine. Two of them each attempt may set anew.
const OURS: [&str; 3] = ["service_tier", "priority", "cache_salt"];

/// llama.cpp's own names, which win over OpenAI's there, and would over what was estimated.
const OTHER_NAMES: [(&str, &[&str]); 2] = [
    ("n_predict", &["max_completion_tokens", "max_tokens"]),
    ("n_cmpl", &["n"]),
];

/// What a request asks for.
pub(crate) struct ParsedRequest<'a> {
    /// The model, by the name the client used.
    pub model: String,
    /// The client wants a stream.
    pub stream: bool,
    /// The client wants the stream's usage.
    pub wants_usage: bool,
    /// How large it is.
    pub size: RequestSize,
    /// How many prompts it brings, each of which is a sequence of its own to the engine.
    pub prompts: u32,
    /// The members of its body.
    pub members: Members<'a>,
    salt: Option<String>,
    ignored: Names,
}

impl<'a> ParsedRequest<'a> {
    /// Reads a request body.
    ///
    /// # Errors
    /// What is wrong with it, and with which field.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, BadRequest> {
        let members = Members::parse(body).map_err(|error| {
            BadRequest::new(format!("the request body is not valid JSON: {error}"))
        })?;
        let reading = Reading::of(&members)?;
        let size = RequestSize {
            prompt_bytes: reading.prompt_bytes,
            images: reading.images,
            body_bytes: body.len() as u64,
            max_tokens: reading.max_tokens(),
            choices: reading.choices()?,
        };
        let prompts = reading.prompts();
        let model = reading.model.ok_or_else(|| {
            BadRequest::new("`model` is missing; GET /v1/models lists what is served")
                .param("model")
        })?;
        Ok(Self {
            model,
            stream: reading.stream,
            wants_usage: reading.wants_usage,
            size,
            prompts,
            salt: reading.salt,
            ignored: Names::default(),
            members,
        })
    }

    /// The client's own partition of its tenant's prefix cache.
    pub(crate) fn take_salt(&mut self) -> Option<String> {
        self.salt.take()
    }

    /// Drops what this engine's clients have no say in.
    pub(crate) fn restrict_to(&mut self, fields: &Fields) {
        let ignored = &mut self.ignored;
        for (name, others) in OTHER_NAMES {
            let is_said = |other: &&str| self.members.get(other).is_some();
            if self.members.get(name).is_some() && others.iter().any(is_said) {
                self.members.remove(name);
                ignored.add(name);
            }
        }
        self.members.retain(|name| {
            let stays = fields.let_through(name) && !OURS.contains(&name);
            if !stays && !OURS.contains(&name) {
                ignored.add(name);
            }
            stays
        });
    }

    /// The names of the fields that were dropped, for a header.
    #[must_use]
    pub(crate) fn ignored_fields(&self) -> Option<HeaderValue> {
        self.ignored.header()
    }

    /// Asks the engine to stream, usage included. Options that are no options are left to be refused.
    pub(crate) fn set_streaming(&mut self) {
        let options = self.members.get("stream_options").map(RawValue::get);
        let options = options.map(|given| with_usage(given.as_bytes()));
        match options {
            None => {
                self.members
                    .set_json("stream_options", r#"{"include_usage":true}"#);
            }
            Some(Some(options)) => self.members.set("stream_options", &options),
            Some(None) => {}
        }
        self.members.set_json("stream", "true");
    }
}

/// The client's stream options with usage asked for.
fn with_usage(options: &[u8]) -> Option<Box<RawValue>> {
    let mut options = Members::parse(options).ok()?;
    options.set_json("include_usage", "true");
    let json = String::from_utf8(options.to_bytes().into()).ok()?;
    RawValue::from_string(json).ok()
}

#[cfg(test)]
mod tests {
    use kvwarden_actors::engine::EngineKind;

    use super::*;

    fn problem(body: &str) -> BadRequest {
        ParsedRequest::parse(body.as_bytes()).err().unwrap()
    }

    #[test]
    fn fields_we_do_not_own_go_on_byte_for_byte() {
        let body =
            r#"{"model":"m", "messages" : [ {"role":"user","content":"\u00e9  1.0e2"} ],"x":1.00}"#;
        let parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
        let sent = String::from_utf8(parsed.members.to_bytes().to_vec()).unwrap();
        assert!(
            sent.contains(r#"[ {"role":"user","content":"\u00e9  1.0e2"} ]"#),
            "{sent}"
        );
        assert!(sent.ends_with(r#""x":1.00}"#), "{sent}");
    }

    #[test]
    fn null_counts_as_absent() {
        let body =
            r#"{"model":"m","max_tokens":null,"stream":null,"n":null,"stream_options":null}"#;
        let parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
        assert_eq!(
            (parsed.stream, parsed.size.max_tokens, parsed.size.choices),
            (false, None, 1)
        );
    }

    #[test]
    fn max_completion_tokens_wins_over_its_old_name() {
        let body = br#"{"model":"m","max_tokens":5,"max_completion_tokens":7}"#;
        assert_eq!(ParsedRequest::parse(body).unwrap().size.max_tokens, Some(7));
    }

    #[test]
    fn what_is_no_request_is_named() {
        for (body, param) in [
            (r#"{"model":1}"#, Some("model")),
            (r#"{"messages":[]}"#, Some("model")),
            (r#"{"model":null}"#, Some("model")),
            ("[]", None),
            (r#"{"model":"m""#, None),
            (r#"{"model":"cheap","model":"dear"}"#, None),
        ] {
            assert_eq!(problem(body).param.as_deref(), param, "{body}");
        }
    }

    #[test]
    fn no_error_repeats_more_than_the_beginning_of_a_name() {
        let long = "x".repeat(100_000);
        let deep = "[".repeat(200) + &"]".repeat(200);
        for body in [
            format!(r#"{{"model":"{long}"}}"#),
            format!(r#"{{"model":"m","{long}":{deep}}}"#),
            format!(r#"{{"model":"m","{long}":1,"{long}":2}}"#),
        ] {
            let problem = problem(&body);
            let param = problem.param.unwrap_or_default();
            assert!(
                problem.message.len() + param.len() < 300,
                "{}",
                problem.message
            );
        }
        let longest = format!(r#"{{"model":"{}"}}"#, "x".repeat(512));
        assert!(ParsedRequest::parse(longest.as_bytes()).is_ok());
    }

    /// A body with these fields as well.
    fn with(fields: &str) -> String {
        format!(r#"{{"model":"m",{fields}}}"#)
    }

    #[test]
    fn what_is_read_for_an_estimate_is_never_refused_for_its_spelling() {
        let size = |fields: &str| {
            let body = with(fields);
            let parsed = ParsedRequest::parse(body.as_bytes());
            let parsed = parsed.unwrap_or_else(|bad| panic!("{fields}: {}", bad.message));
            assert_eq!(parsed.members.to_bytes(), body.as_bytes(), "{fields}");
            (parsed.size.max_tokens, parsed.size.choices)
        };
        for (fields, max_tokens, choices) in [
            (r#""max_tokens":-1"#, None, 1),
            (r#""max_tokens":-2.0"#, None, 1),
            (r#""max_completion_tokens":-1,"max_tokens":5"#, None, 1),
            (r#""max_tokens":16.0"#, Some(16), 1),
            (r#""max_tokens":"16""#, Some(16), 1),
            (r#""max_completion_tokens":1e3"#, Some(1000), 1),
            (r#""max_tokens":[]"#, None, 1),
            (r#""max_tokens":"many""#, None, 1),
            (r#""n_predict":7"#, Some(7), 1),
            (r#""n_predict":7,"max_tokens":5"#, Some(5), 1),
            (r#""max_completion_tokens":0,"max_tokens":9"#, Some(9), 1),
            (r#""max_tokens":0"#, Some(0), 1),
            (r#""n":1.0"#, None, 1),
            (r#""n":"2""#, None, 2),
            (r#""n":{}"#, None, 1),
            (r#""n_cmpl":3"#, None, 3),
            (r#""n":2,"best_of":"4","prompt":["a","b"]"#, None, 8),
            (
                r#""stream_options":[],"cache_salt":5,"service_tier":{}"#,
                None,
                1,
            ),
        ] {
            assert_eq!(size(fields), (max_tokens, choices), "{fields}");
        }
    }

    #[test]
    fn a_stream_is_wanted_in_every_spelling_that_an_engine_reads() {
        let wants = |fields: &str| {
            let body = with(fields);
            let parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
            (parsed.stream, parsed.wants_usage)
        };
        for (fields, stream, usage) in [
            (r#""stream":1"#, true, false),
            (
                r#""stream":"true","stream_options":{"include_usage":"true"}"#,
                true,
                true,
            ),
            (
                r#""stream":0,"stream_options":{"include_usage":1}"#,
                false,
                true,
            ),
            (
                r#""stream":"maybe","stream_options":{"include_usage":null}"#,
                false,
                false,
            ),
            (r#""stream":true,"stream_options":"usage""#, true, false),
        ] {
            assert_eq!(wants(fields), (stream, usage), "{fields}");
        }
    }

    #[test]
    fn bounds_are_kept_in_every_spelling() {
        let names = |count: usize| format!("[{}{{}}]", "{},".repeat(count - 1));
        for (fields, param) in [
            (r#""n":16384"#.to_owned(), "n"),
            (r#""n":"1e9""#.to_owned(), "n"),
            (r#""n":0"#.to_owned(), "n"),
            (r#""n":-3.0"#.to_owned(), "n"),
            (r#""n_cmpl":129"#.to_owned(), "n_cmpl"),
            (r#""best_of":129"#.to_owned(), "best_of"),
            (r#""best_of":65,"prompt":["a","b"]"#.to_owned(), "best_of"),
            (r#""logprobs":129"#.to_owned(), "logprobs"),
            (r#""top_logprobs":"20000""#.to_owned(), "top_logprobs"),
            (r#""top_logprobs":-1"#.to_owned(), "top_logprobs"),
            (r#""prompt_logprobs":2e4"#.to_owned(), "prompt_logprobs"),
            (r#""n_probs":49152"#.to_owned(), "n_probs"),
            (
                format!(r#""logprob_token_ids":{}"#, names(129)),
                "logprob_token_ids",
            ),
            (format!(r#""messages":{}"#, names(4097)), "messages"),
            (format!(r#""input":{}"#, names(2049)), "input"),
        ] {
            let problem = problem(&with(&fields));
            assert_eq!(problem.param.as_deref(), Some(param), "{}", problem.message);
        }
        for fields in [
            r#""n":128"#.to_owned(),
            r#""logprobs":true,"top_logprobs":128"#.to_owned(),
            format!(r#""messages":{}"#, names(4096)),
            format!(r#""input":{}"#, names(2048)),
            format!(r#""input":[{}1]"#, "1,".repeat(5000)),
        ] {
            assert!(ParsedRequest::parse(with(&fields).as_bytes()).is_ok());
        }
    }

    #[test]
    fn a_body_is_nested_a_hundred_and_twenty_eight_deep_and_no_deeper() {
        let nested = |levels: usize| {
            let array = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
            let schema = format!(r#"{}1{}"#, r#"{"a":"#.repeat(levels), "}".repeat(levels));
            [
                with(&format!(r#""tools":{array}"#)),
                with(&format!(r#""x":{schema}"#)),
            ]
        };
        for body in nested(127) {
            assert!(ParsedRequest::parse(body.as_bytes()).is_ok());
        }
        for levels in [128, 10_000, 100_000] {
            for body in nested(levels) {
                let problem = problem(&body);
                assert!(
                    problem.message.contains("128 levels"),
                    "{}",
                    problem.message
                );
            }
        }
    }

    #[test]
    fn every_prompt_of_a_batch_counts() {
        let choices =
            |body: &str| ParsedRequest::parse(body.as_bytes()).map(|parsed| parsed.size.choices);
        assert_eq!(
            choices(r#"{"model":"m","n":2,"prompt":["a","b","c"]}"#),
            Ok(6)
        );
        assert_eq!(choices(r#"{"model":"m","prompt":[1,2,3]}"#), Ok(1));
        assert_eq!(choices(r#"{"model":"m","prompt":[[1,2],[3]]}"#), Ok(2));
        let many = format!(r#"{{"model":"m","prompt":[{}"x"]}}"#, "\"x\",".repeat(128));
        assert!(choices(&many).is_err());
    }

    #[test]
    fn scheduler_fields_of_the_client_are_dropped() {
        for (salt, own) in [(r#""s""#, "s"), (r#"["s"]"#, r#"["s"]"#), ("5", "5")] {
            let body = with(&format!(r#""priority":-100,"cache_salt":{salt},"seed":1"#));
            let mut parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
            assert_eq!(parsed.take_salt().as_deref(), Some(own));
            parsed.restrict_to(&EngineKind::Attach.dialect().fields);
            assert_eq!(parsed.members.to_bytes(), &br#"{"model":"m","seed":1}"#[..]);
        }
    }

    #[test]
    fn only_fields_of_the_engine_reach_it_and_the_others_are_named() {
        let restricted = |kind: EngineKind, fields: &str| {
            let body = with(fields);
            let mut parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
            // An attempt after another one finds what that one set.
            for _ in 0..2 {
                parsed.restrict_to(&kind.dialect().fields);
                parsed.members.set("priority", &1);
            }
            parsed.members.remove("priority");
            let names = parsed.ignored_fields();
            let names = names.map(|names| names.to_str().unwrap().to_owned());
            let sent = String::from_utf8(parsed.members.to_bytes().to_vec()).unwrap();
            (sent, names.unwrap_or_default())
        };
        let fields = r#""top_k":1,"rid":"x","n_predict":9,"id_slot":0,"invented":1,"priority":-9"#;
        for (kind, sent, ignored) in [
            (
                EngineKind::Vllm,
                r#""top_k":1"#,
                "rid, n_predict, id_slot, invented",
            ),
            (
                EngineKind::Sim,
                r#""top_k":1"#,
                "rid, n_predict, id_slot, invented",
            ),
            (
                EngineKind::Sglang,
                r#""top_k":1"#,
                "rid, n_predict, id_slot, invented",
            ),
            (
                EngineKind::LlamaCpp,
                r#""top_k":1,"n_predict":9"#,
                "rid, id_slot, invented",
            ),
            (
                EngineKind::Attach,
                r#""top_k":1,"n_predict":9,"invented":1"#,
                "rid, id_slot",
            ),
        ] {
            assert_eq!(
                restricted(kind, fields),
                (with(sent), ignored.to_owned()),
                "{kind:?}"
            );
        }
        // What was estimated by OpenAI's name is what is made.
        let both = r#""max_tokens":1,"n":2,"n_predict":50,"n_cmpl":4"#;
        let one = (
            with(r#""max_tokens":1,"n":2"#),
            "n_predict, n_cmpl".to_owned(),
        );
        assert_eq!(restricted(EngineKind::LlamaCpp, both), one);
        assert_eq!(restricted(EngineKind::Command, both), one);
        let none = r#""max_tokens":null,"n_predict":50"#;
        assert_eq!(
            restricted(EngineKind::LlamaCpp, none),
            (with(none), String::new())
        );
    }

    #[test]
    fn an_inline_image_is_no_text_but_takes_its_memory() {
        let image = "A".repeat(100_000);
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{image}"}}}}]}}]}}"#
        );
        let size = ParsedRequest::parse(body.as_bytes()).unwrap().size;
        assert_eq!((size.images, size.body_bytes), (1, body.len() as u64));
        assert!(size.prompt_bytes < 100, "{size:?}");
    }

    #[test]
    fn streaming_keeps_the_clients_other_stream_options() {
        for (given, sent) in [
            (
                r#"{"include_usage":false,"x":1.00}"#,
                r#"{"include_usage":true,"x":1.00}"#,
            ),
            ("{}", r#"{"include_usage":true}"#),
            // No options: the engine says so.
            (r#"[ "x" ]"#, r#"[ "x" ]"#),
        ] {
            let body = with(&format!(r#""stream_options":{given}"#));
            let mut parsed = ParsedRequest::parse(body.as_bytes()).unwrap();
            parsed.set_streaming();
            let wanted = with(&format!(r#""stream_options":{sent},"stream":true"#));
            assert_eq!(parsed.members.to_bytes(), wanted.as_bytes());
        }
        let mut plain = ParsedRequest::parse(br#"{"model":"m"}"#).unwrap();
        plain.set_streaming();
        plain.set_streaming();
        let wanted = with(r#""stream_options":{"include_usage":true},"stream":true"#);
        assert_eq!(plain.members.to_bytes(), wanted.as_bytes());
    }
}

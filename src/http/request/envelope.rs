//! What kvwarden reads off a request body, and the few fields it changes.
//!
//! The body is split into its top-level members and nothing below them is parsed: values go on to
//! the engine byte for byte, whatever a client invents. Only fields we own are set or dropped.

use std::borrow::Cow;

use bytes::Bytes;
use kvwarden_policy::cost::RequestSize;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::images::inline_images;
use crate::http::{
    limits::{MAX_CHOICES, MAX_MEMBERS},
    refusal::BadRequest,
};

/// Fields that steer the engine's scheduler, its slots or its caches. A client has no say in these:
/// they would let one tenant pass the others, read another's cached prefix, or end its requests
/// (SGLang aborts by prefix of `rid`, and runs what `custom_logit_processor` holds).
const OURS: [&str; 15] = [
    "service_tier",
    "priority",
    "cache_salt",
    "kv_transfer_params",
    "extra_key",
    "rid",
    "request_id",
    "session_params",
    "custom_logit_processor",
    "data_parallel_rank",
    "routed_dp_rank",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "id_slot",
];

/// A JSON object as its members, in order, with their values unparsed.
pub(crate) struct Members<'a>(Vec<(Cow<'a, str>, Cow<'a, RawValue>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(Cow<'de, str>, Cow<'de, RawValue>)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members: Self::Value = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    if members.len() == MAX_MEMBERS {
                        return Err(M::Error::custom(format_args!(
                            "more than {MAX_MEMBERS} fields"
                        )));
                    }
                    // Parsers disagree about which of two wins, and that is how one gets past us.
                    if members.iter().any(|(known, _)| *known == key) {
                        return Err(M::Error::custom(format_args!("duplicate field `{key}`")));
                    }
                    members.push((key, Cow::Borrowed(map.next_value()?)));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Collect).map(Members)
    }
}

/// A key, borrowed where it holds no escape.
#[derive(Deserialize, PartialEq)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Members<'a> {
    /// Splits an object.
    ///
    /// # Errors
    /// What the JSON parser says.
    pub(crate) fn parse(body: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }

    /// The value of a member, unless it is absent or `null`.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_ref()).filter(|value| value.get() != "null")
    }

    /// Sets a member in its place, or as the last one.
    pub(crate) fn set(&mut self, name: &'static str, value: &impl serde::Serialize) {
        let Ok(raw) = serde_json::value::to_raw_value(value) else {
            return;
        };
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = Cow::Owned(raw),
            None => self.0.push((Cow::Borrowed(name), Cow::Owned(raw))),
        }
    }

    /// Drops a member.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// Gives a member another name.
    pub(crate) fn rename(&mut self, from: &str, to: &'static str) {
        if let Some((key, _)) = self.0.iter_mut().find(|(key, _)| key == from) {
            *key = Cow::Borrowed(to);
        }
    }

    /// The object as text.
    #[must_use]
    pub(crate) fn to_bytes(&self) -> Bytes {
        let length: usize = self
            .0
            .iter()
            .map(|(k, v)| k.len() + v.get().len() + 4)
            .sum();
        let mut out = Vec::with_capacity(length + 2);
        out.push(b'{');
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            // Writing to memory and to a string can't fail.
            let _ = serde_json::to_writer(&mut out, key);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        out.into()
    }
}

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
    /// The members of its body.
    pub members: Members<'a>,
    salt: Option<String>,
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
        let model = read_member::<String>(&members, "model", "a string")?.ok_or_else(|| {
            BadRequest::new("`model` is missing; GET /v1/models lists what is served")
                .param("model")
        })?;
        let stream = read_member::<bool>(&members, "stream", "true or false")?.unwrap_or(false);
        let options = read_member::<StreamOptions>(&members, "stream_options", "an object")?;
        let choices = read_member::<u64>(&members, "n", "a positive integer")?.unwrap_or(1);
        let choices = choices.saturating_mul(prompts(&members));
        if !(1..=MAX_CHOICES).contains(&choices) {
            let message = format!("`n` times the number of prompts must be 1 to {MAX_CHOICES}");
            return Err(BadRequest::new(message).param("n"));
        }
        let limit = |name| read_member::<u64>(&members, name, "a positive integer");
        let max_tokens = limit("max_completion_tokens")?.or(limit("max_tokens")?);
        let prompt = ["messages", "prompt", "input", "tools"];
        let prompt = prompt.iter().filter_map(|name| members.get(name));
        let (mut prompt_bytes, mut images) = (0, 0);
        for part in prompt.map(RawValue::get) {
            let (here, bytes) = inline_images(part);
            images += here;
            prompt_bytes += part.len() as u64 - bytes;
        }
        let size = RequestSize {
            prompt_bytes,
            images,
            body_bytes: body.len() as u64,
            max_tokens,
            choices: u32::try_from(choices).unwrap_or(u32::MAX),
        };
        let wants_usage = options
            .and_then(|options| options.include_usage)
            .unwrap_or(false);
        let salt = read_member::<String>(&members, "cache_salt", "a string")?;
        Ok(Self {
            model,
            stream,
            wants_usage,
            size,
            members,
            salt,
        })
    }

    /// The request without the fields that are ours to set, and the client's own cache salt.
    pub(crate) fn drop_ours(&mut self) -> Option<String> {
        for name in OURS {
            self.members.remove(name);
        }
        self.salt.take()
    }

    /// Engines read tool calls out of a whole answer more reliably than out of a stream.
    #[must_use]
    pub(crate) fn has_tools(&self) -> bool {
        ["tools", "functions"]
            .iter()
            .any(|name| self.members.get(name).is_some())
    }

    /// Asks the engine to stream, usage included.
    pub(crate) fn set_streaming(&mut self) {
        let given = self.members.get("stream_options").and_then(|raw| {
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(raw.get()).ok()
        });
        let mut options = given.unwrap_or_default();
        options.insert("include_usage".to_owned(), true.into());
        self.members.set("stream", &true);
        self.members.set("stream_options", &options);
    }
}

/// A completion may bring several prompts; each is a sequence of its own to the engine. A list of
/// numbers is one prompt in tokens.
fn prompts(members: &Members<'_>) -> u64 {
    let list = members
        .get("prompt")
        .and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok());
    let is_prompt = |item: &&&RawValue| item.get().starts_with(['"', '[']);
    list.map_or(1, |list| {
        list.iter().filter(is_prompt).count().max(1) as u64
    })
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A member as `T`, unless it is absent or `null`.
///
/// # Errors
/// When it is something else than `wanted`.
pub(super) fn read_member<'m, T: Deserialize<'m>>(
    members: &'m Members<'_>,
    name: &'static str,
    wanted: &str,
) -> Result<Option<T>, BadRequest> {
    let Some(raw) = members.get(name) else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(raw.get());
    parsed
        .map(Some)
        .map_err(|_| BadRequest::new(format!("`{name}` must be {wanted}")).param(name))
}

#[cfg(test)]
mod tests {
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
    fn a_wrong_type_is_named() {
        for (body, param) in [
            (r#"{"model":1}"#, "model"),
            (r#"{"messages":[]}"#, "model"),
            (r#"{"model":"m","stream":"yes"}"#, "stream"),
            (r#"{"model":"m","max_tokens":-1}"#, "max_tokens"),
            (r#"{"model":"m","n":16384}"#, "n"),
            (r#"{"model":"m","n":0}"#, "n"),
            (r#"{"model":"m","stream_options":[]}"#, "stream_options"),
        ] {
            assert_eq!(problem(body).param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        assert!(
            problem(r#"{"model":"cheap","model":"dear"}"#)
                .message
                .contains("duplicate")
        );
        assert!(
            problem(r#"{"model":"a","mod\u0065l":"b"}"#)
                .message
                .contains("duplicate")
        );
    }

    #[test]
    fn a_body_nested_a_hundred_thousand_deep_is_an_answer_not_a_crash() {
        let deep = format!(
            r#"{{"model":"m","x":{}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        // Refused or passed on, but decided without recursion.
        let _ = ParsedRequest::parse(deep.as_bytes()).is_ok();
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
    fn a_body_of_very_many_fields_is_refused_at_once() {
        let fields: String = (0..100_000).map(|i| format!("\"f{i}\":1,")).collect();
        let body = format!(r#"{{{fields}"model":"m"}}"#);
        assert!(problem(&body).message.contains("more than 256 fields"));
    }

    #[test]
    fn scheduler_fields_of_the_client_are_dropped() {
        let body = br#"{"model":"m","priority":-100,"kv_transfer_params":{"a":1},"cache_salt":"s","seed":1}"#;
        let mut parsed = ParsedRequest::parse(body).unwrap();
        assert_eq!(parsed.drop_ours().as_deref(), Some("s"));
        assert_eq!(&parsed.members.to_bytes()[..], br#"{"model":"m","seed":1}"#);
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
        let body = br#"{"model":"m","stream_options":{"include_usage":false,"x":1}}"#;
        let mut parsed = ParsedRequest::parse(body).unwrap();
        parsed.set_streaming();
        let sent = String::from_utf8(parsed.members.to_bytes().to_vec()).unwrap();
        assert_eq!(
            sent,
            r#"{"model":"m","stream_options":{"include_usage":true,"x":1},"stream":true}"#
        );
    }
}

//! What a request asks for besides its answer: which session it is part of, how soon, until when.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use actix_web::http::header::{HeaderMap, HeaderName};
use kvwarden_actors::RequestHints;
use kvwarden_policy::tier::Tier;
use tokio::time::Instant;

use super::{envelope::Members, spelling::text};
use crate::http::refusal::BadRequest;

/// How agents name the session that a request is part of: in general, Codex (two versions of it),
/// Claude Code.
static SESSION_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("x-session-id"),
    HeaderName::from_static("session-id"),
    HeaderName::from_static("session_id"),
    HeaderName::from_static("x-claude-code-session-id"),
];

/// And in OpenAI's own fields, the most specific first; `user` is the old name of the other two.
const SESSION_FIELDS: [&str; 3] = ["prompt_cache_key", "safety_identifier", "user"];

/// Our own header for when the client gives up, in milliseconds from now.
static DEADLINE: HeaderName = HeaderName::from_static("x-kvwarden-deadline-ms");

/// How long OpenAI's SDKs wait, in seconds: Python's, JavaScript's.
static SDK_TIMEOUTS: [HeaderName; 2] = [
    HeaderName::from_static("x-stainless-read-timeout"),
    HeaderName::from_static("x-stainless-timeout"),
];

/// Reads them off a request.
///
/// # Errors
/// What is wrong with which field or header.
pub(crate) fn read_hints(
    headers: &HeaderMap,
    members: &Members<'_>,
    is_streamed: bool,
    now: Instant,
) -> Result<RequestHints, BadRequest> {
    let patience = patience(headers, is_streamed)?;
    Ok(RequestHints {
        session: session(headers, members),
        tier: tier(members),
        // More than the clock can hold is no deadline.
        deadline: patience.and_then(|patience| now.checked_add(patience)),
        prefix: prefix(members),
        is_streamed,
    })
}

/// A session by its hash: short, whatever a client sends. Two that meet in one share a turn, and both
/// are of one tenant.
fn session(headers: &HeaderMap, members: &Members<'_>) -> Option<Arc<str>> {
    let in_headers = SESSION_HEADERS
        .iter()
        .filter_map(|name| headers.get(name))
        .map(|value| value.as_bytes());
    let in_body = SESSION_FIELDS
        .iter()
        .filter_map(|name| members.get(name))
        .map(|value| value.get().as_bytes());
    let is_name = |name: &&[u8]| !matches!(*name, b"" | b"\"\"");
    let name = in_headers.chain(in_body).find(is_name)?;
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Some(format!("{:016x}", hasher.finish()).into())
}

/// The beginning of the prompt, as a number: what a system prompt and the first turn of a session
/// have in common. Shorter prompts are not worth finding in a cache.
fn prefix(members: &Members<'_>) -> Option<u64> {
    const BYTES: usize = 1024;
    let prompt = ["messages", "prompt", "input"]
        .iter()
        .find_map(|name| members.get(name))?;
    let beginning = prompt.get().as_bytes().get(..BYTES)?;
    let mut hasher = DefaultHasher::new();
    beginning.hash(&mut hasher);
    Some(hasher.finish())
}

/// OpenAI's `auto`, `default` and `scale` are the standard one, and so is a tier that nobody knows.
fn tier(members: &Members<'_>) -> Tier {
    let tier = members.get("service_tier").and_then(text);
    match tier.as_deref() {
        Some("flex") => Tier::Flex,
        Some("priority") => Tier::Priority,
        Some(_) | None => Tier::Standard,
    }
}

/// How long the client waits. Ours is meant for us and has to be right; an SDK's is taken if it can
/// be read (Python's says `None` for no timeout). Of a stream those mean how long nothing comes or how
/// long its head takes, and comments are in time for both.
fn patience(headers: &HeaderMap, is_streamed: bool) -> Result<Option<Duration>, BadRequest> {
    if let Some(value) = headers.get(&DEADLINE) {
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        return match millis {
            Some(millis @ 1..) => Ok(Some(Duration::from_millis(millis))),
            Some(0) | None => {
                let message =
                    format!("`{DEADLINE}` must be a whole number of milliseconds above 0");
                Err(BadRequest::new(message).param(DEADLINE.as_str()))
            }
        };
    }
    if is_streamed {
        return Ok(None);
    }
    let seconds = SDK_TIMEOUTS.iter().filter_map(|name| {
        let text = headers.get(name)?.to_str().ok()?;
        let seconds = text.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    });
    Ok(seconds.filter(|timeout| !timeout.is_zero()).min())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn hints(
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> Result<RequestHints, BadRequest> {
        let header = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        let members = Members::parse(body.as_bytes()).unwrap();
        read_hints(
            &headers.iter().map(header).collect(),
            &members,
            false,
            Instant::now(),
        )
    }

    fn session(headers: &[(&'static str, &'static str)], body: &str) -> Option<Arc<str>> {
        hints(headers, body).unwrap().session
    }

    #[test]
    fn session_is_what_the_agent_says_and_short_whatever_that_is() {
        let codex = session(&[("session_id", "s1")], r#"{"user":"u"}"#);
        assert_eq!(codex, session(&[("x-session-id", "s1")], "{}"));
        assert_ne!(codex, session(&[("x-session-id", "s2")], "{}"));
        let long = format!(r#"{{"prompt_cache_key":"{}"}}"#, "x".repeat(100_000));
        assert_eq!(session(&[], &long).unwrap().len(), 16);
        assert_eq!(
            session(
                &[("x-session-id", "")],
                r#"{"user":"","safety_identifier":null}"#
            ),
            None
        );
    }

    #[test]
    fn prompts_that_begin_alike_have_the_same_prefix() {
        let prefix = |end: &str| {
            let system = "s".repeat(1024);
            let body = format!(r#"{{"messages":"{system}{end}"}}"#);
            hints(&[], &body).unwrap().prefix
        };
        assert!(prefix("one").is_some());
        assert_eq!(prefix("one"), prefix("two"));
        assert_eq!(hints(&[], r#"{"prompt":"short"}"#).unwrap().prefix, None);
    }

    #[test]
    fn a_tier_that_nobody_knows_is_the_standard_one() {
        let tier = |json: &str| {
            let body = format!(r#"{{"service_tier":{json}}}"#);
            hints(&[], &body).unwrap().tier
        };
        assert_eq!(tier(r#""flex""#), Tier::Flex);
        assert_eq!(tier(r#""priority""#), Tier::Priority);
        for standard in [
            r#""auto""#,
            r#""scale""#,
            r#""gold""#,
            r#""Flex""#,
            "7",
            "[]",
            "null",
        ] {
            assert_eq!(tier(standard), Tier::Standard, "{standard}");
        }
    }

    #[test]
    fn deadline_is_ours_or_the_sdks_timeout() {
        let patience = |headers: &[(&'static str, &'static str)]| {
            let header = |(name, value): &(&'static str, &'static str)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            };
            let headers = headers.iter().map(header).collect();
            let ours_only = super::patience(&headers, true);
            let of_all = super::patience(&headers, false);
            if !headers.contains_key(&DEADLINE) {
                assert_eq!(ours_only, Ok(None), "a stream is kept alive by comments");
            }
            of_all
        };
        let sdk = ("x-stainless-read-timeout", "2.5");
        assert_eq!(patience(&[sdk]), Ok(Some(Duration::from_millis(2500))));
        let ours = ("x-kvwarden-deadline-ms", "40");
        assert_eq!(patience(&[sdk, ours]), Ok(Some(Duration::from_millis(40))));
        for unread in ["None", "-1", "0", "inf", "NaN", "1e300"] {
            assert_eq!(
                patience(&[("x-stainless-timeout", unread)]),
                Ok(None),
                "{unread}"
            );
        }
        for wrong in ["0", "-5", "soon", "1.5"] {
            assert!(
                patience(&[("x-kvwarden-deadline-ms", wrong)]).is_err(),
                "{wrong}"
            );
        }
        let forever = ("x-kvwarden-deadline-ms", "18446744073709551615");
        assert!(hints(&[forever], "{}").is_ok());
    }
}

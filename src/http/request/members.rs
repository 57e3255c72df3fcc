//! A JSON object as its members, in order, with their values unparsed: they go on to the engine byte for
//! byte, whatever a client invents.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::names::shown;
use crate::http::limits::MAX_MEMBERS;

/// The members.
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
                let mut members: Self::Value = Vec::with_capacity(16);
                while let Some(Key(key)) = map.next_key()? {
                    if members.len() == MAX_MEMBERS {
                        return Err(M::Error::custom(format_args!(
                            "more than {MAX_MEMBERS} fields"
                        )));
                    }
                    // Parsers disagree about which of two wins, and that is how one gets past us.
                    if members.iter().any(|(known, _)| *known == key) {
                        return Err(M::Error::custom(format_args!(
                            "duplicate field `{}`",
                            shown(&key)
                        )));
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

    /// All of them but those that are `null`.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        let members = self.0.iter();
        let members = members.map(|(name, value)| (name.as_ref(), value.as_ref()));
        members.filter(|(_, value)| value.get() != "null")
    }

    /// The value of a member, unless it is absent or `null`.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&RawValue> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value.as_ref()).filter(|value| value.get() != "null")
    }

    /// Sets a member in its place, or as the last one.
    pub(crate) fn set(&mut self, name: &'static str, value: &impl serde::Serialize) {
        if let Ok(raw) = serde_json::value::to_raw_value(value) {
            self.put(name, Cow::Owned(raw));
        }
    }

    /// Sets a member to a text that is JSON.
    pub(super) fn set_json(&mut self, name: &'static str, json: &'static str) {
        if let Ok(raw) = serde_json::from_str(json) {
            self.put(name, Cow::Borrowed(raw));
        }
    }

    fn put(&mut self, name: &'static str, value: Cow<'a, RawValue>) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((Cow::Borrowed(name), value)),
        }
    }

    /// Drops a member.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// Drops those whose names are not to stay.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&str) -> bool) {
        self.0.retain(|(name, _)| stays(name));
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
        let lengths = self.0.iter().map(|(k, v)| k.len() + v.get().len() + 4);
        let mut out = Vec::with_capacity(lengths.sum::<usize>() + 2);
        out.push(b'{');
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match key {
                // As it stood in the request, or as we wrote it: no escape is needed.
                Cow::Borrowed(key) => {
                    out.push(b'"');
                    out.extend_from_slice(key.as_bytes());
                    out.push(b'"');
                }
                // Writing to memory and to a string can't fail.
                Cow::Owned(key) => drop(serde_json::to_writer(&mut out, key)),
            }
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_is_put_together_as_it_was() {
        let body = r#"{"a":[ 1.00 , "\u00e9"],"b\n\"":{"c":null},"":-0,"é":"é"}"#;
        let members = Members::parse(body.as_bytes()).unwrap();
        assert_eq!(members.to_bytes(), body.as_bytes());
    }

    #[test]
    fn a_body_of_very_many_fields_is_refused_at_once() {
        let fields: String = (0..100_000).map(|i| format!("\"f{i}\":1,")).collect();
        let body = format!(r#"{{{fields}"model":"m"}}"#);
        let problem = Members::parse(body.as_bytes()).err().unwrap().to_string();
        assert!(problem.contains("more than 256 fields"), "{problem}");
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        for body in [
            r#"{"model":"cheap","model":"dear"}"#,
            r#"{"model":"a","mod\u0065l":"b"}"#,
            r#"{"n":null,"n":1}"#,
        ] {
            let problem = Members::parse(body.as_bytes()).err().unwrap().to_string();
            assert!(problem.contains("duplicate"), "{body}: {problem}");
        }
    }
}

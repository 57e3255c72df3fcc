//! Where a key stands in a file, as steps and as text (`models[1].engine`).

use std::fmt;

/// The way from the top of a file to one value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyPath(Vec<Step>);

/// One step of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A key of a table.
    Key(String),
    /// A place in a list.
    Index(usize),
}

impl KeyPath {
    /// The top of the file.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// A key at the top of the file.
    pub(crate) fn of(key: &str) -> Self {
        Self::root().key(key)
    }

    /// A key of the table that stands here.
    pub(crate) fn key(&self, key: &str) -> Self {
        self.then(Step::Key(key.to_owned()))
    }

    /// An element of the list that stands here.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// One step further.
    pub(crate) fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// What this stands in; none at the top.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    /// The steps from the top.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The key this ends in; none at the top and in a list.
    pub(crate) fn last_key(&self) -> Option<&str> {
        match self.0.last()? {
            Step::Key(key) => Some(key),
            Step::Index(_) => None,
        }
    }

    /// Up to its last key: an element of a list is named by the key of the list.
    pub(crate) fn to_last_key(&self) -> Self {
        let is_key = |step: &Step| matches!(step, Step::Key(_));
        let end = self.0.iter().rposition(is_key).map_or(0, |last| last + 1);
        Self(self.0[..end].to_vec())
    }

    /// Whether the value may be a secret, which no message and no excerpt may show.
    pub(crate) fn is_secret(&self) -> bool {
        let is = |step: &Step, names: &[&str]| matches!(step, Step::Key(key) if names.contains(&key.as_str()));
        let (last, above) = match self.0.split_last() {
            Some((Step::Index(_), rest)) => (rest.last(), rest),
            Some((last, rest)) => (Some(last), rest),
            None => return false,
        };
        last.is_some_and(|step| is(step, &["api_keys", "admin_keys", "api_key", "env"]))
            || above.last().is_some_and(|step| is(step, &["env"]))
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    let quoted = || format!("{key:?}");
                    f.write_str(&if is_bare(key) { key.clone() } else { quoted() })?;
                }
            }
        }
        Ok(())
    }
}

/// Whether TOML lets the key stand without quotes.
fn is_bare(key: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !key.is_empty() && key.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_reads_like_the_key_in_the_file() {
        let path = KeyPath::of("models").index(1).key("engine");
        assert_eq!(path.to_string(), "models[1].engine");
        let quoted = KeyPath::of("tenants").key("a.b").key("priority");
        assert_eq!(quoted.to_string(), r#"tenants."a.b".priority"#);
    }

    #[test]
    fn element_of_a_list_is_named_by_its_list() {
        let path = KeyPath::of("models").index(1).key("aliases").index(3);
        assert_eq!(path.to_last_key().to_string(), "models[1].aliases");
        assert_eq!(KeyPath::root().to_last_key(), KeyPath::root());
    }

    #[test]
    fn keys_and_environment_are_secret() {
        let tenant = KeyPath::of("tenants").key("a");
        assert!(tenant.key("api_keys").is_secret());
        assert!(tenant.key("api_keys").index(0).is_secret());
        assert!(
            KeyPath::of("models")
                .index(0)
                .key("env")
                .key("HF_TOKEN")
                .is_secret()
        );
        assert!(!tenant.key("priority").is_secret());
    }
}

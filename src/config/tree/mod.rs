//! TOML or YAML as one plain value that remembers where everything stands.
//!
//! The value is JSON's: both formats fit into it as far as a configuration goes (TOML's dates and
//! its `nan` become text, which no key takes).

mod toml;
mod yaml;

use std::ops::Range;

use serde_json::{Number, Value};

use super::{path::KeyPath, places::Places, problem::Problem};

pub(crate) use self::{toml::parse_toml, yaml::parse_yaml};

/// What a file says, and where.
#[derive(Default)]
pub(crate) struct Document {
    /// What it says.
    pub(crate) value: Value,
    /// Where; of a malformed text what was understood, for blotting out secrets.
    pub(crate) places: Places,
    /// Keys that stand more than once in a table (YAML only); the last one counts.
    pub(crate) repeated: Vec<KeyPath>,
    /// Mistakes in the text itself.
    pub(crate) malformed: Vec<Problem>,
}

/// A mistake in the text itself.
fn syntax(places: &Places, span: Option<Range<usize>>, message: &str) -> Problem {
    places.problem(String::new(), span, message.replace('\n', "; "))
}

fn float(digits: &str) -> Value {
    let number = digits.parse().ok().and_then(Number::from_f64);
    number.map_or_else(|| Value::from(digits), Value::Number)
}

//! A list of names that clients invented, as the value of a header.

use actix_web::http::header::HeaderValue;

use crate::http::limits::MAX_IGNORED;

/// As much of a name as a message repeats: names are as long as clients make them.
pub(super) fn shown(name: &str) -> &str {
    const LONGEST: usize = 64;
    &name[..name.floor_char_boundary(LONGEST)]
}

/// The names, as far as they can be printed and have room.
#[derive(Debug, Default)]
pub(super) struct Names {
    list: String,
    is_cut: bool,
}

impl Names {
    pub(super) fn add(&mut self, name: &str) {
        const MORE: &str = ", ...";
        let is_printable = name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',');
        if self.is_cut || name.is_empty() || !is_printable {
            return;
        }
        let taken = self.list.len() + ", ".len() + name.len();
        if taken + MORE.len() > MAX_IGNORED {
            self.list.push_str(MORE);
            self.is_cut = true;
            return;
        }
        if !self.list.is_empty() {
            self.list.push_str(", ");
        }
        self.list.push_str(name);
    }

    /// None: there are none.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let is_empty = self.list.is_empty();
        HeaderValue::from_str(&self.list).ok().filter(|_| !is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> Option<String> {
        let mut list = Names::default();
        names.iter().for_each(|name| list.add(name));
        let header = list.header()?;
        Some(header.to_str().unwrap().to_owned())
    }

    #[test]
    fn names_are_listed_if_they_can_be_printed() {
        assert_eq!(header(&["a", "b_1"]).as_deref(), Some("a, b_1"));
        let odd = ["", "a b", "a\r\nset-cookie: x", "é", "a,b", "\u{7f}"];
        assert_eq!(header(&odd), None);
        assert_eq!(header(&["a", "\0", "b"]).as_deref(), Some("a, b"));
    }

    #[test]
    fn a_name_is_shown_as_far_as_it_has_room() {
        assert_eq!(shown("messages"), "messages");
        assert_eq!(shown(&"é".repeat(1000)), "é".repeat(32));
        assert_eq!(shown(&("x".to_owned() + &"é".repeat(40))).len(), 63);
    }

    #[test]
    fn a_list_that_is_too_long_is_cut_and_says_so() {
        let long = "x".repeat(300);
        for names in [vec![long.as_str(); 3], vec!["name"; 1000], vec!["y"; 5000]] {
            let header = header(&names).unwrap();
            assert!(header.len() <= MAX_IGNORED, "{}", header.len());
            assert!(header.ends_with(", ..."), "{header}");
        }
    }
}

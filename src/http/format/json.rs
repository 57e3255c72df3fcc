//! Reads JSON as slices of its own text: nothing is copied, and no tree is built.
//!
//! A tree of `serde_json::Value` takes twenty times the bytes of an answer with logprobs, and
//! changes what it cannot hold: integers beyond 64 bits, `1.00`, half a surrogate pair. Slices keep
//! all of them as they were spelt. The whole text is checked by RFC 8259 all the same.

use std::borrow::Cow;

/// Depth of lists and objects, as in `serde_json`: reading recurses.
pub(super) const MAX_DEPTH: u8 = 128;

/// Not JSON, not what was looked for, or nested too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

type Read<T> = Result<T, Malformed>;

/// What a value is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Bool,
    Number,
    String,
    List,
    Object,
}

/// A place in JSON text.
pub(super) struct Json<'a> {
    text: &'a str,
    at: usize,
    depth: u8,
}

/// The kind of a value that was read before.
pub(super) fn kind_of(raw: &str) -> Kind {
    match raw.as_bytes().first() {
        Some(b'"') => Kind::String,
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::List,
        Some(b't' | b'f') => Kind::Bool,
        Some(b'n') | None => Kind::Null,
        Some(_) => Kind::Number,
    }
}

/// Whether a value that was read before says nothing: `null`, `""`, `[]` or `{}`.
pub(super) fn is_empty(raw: &str) -> bool {
    match kind_of(raw) {
        Kind::Null => true,
        Kind::Bool | Kind::Number => false,
        Kind::String => raw.len() == 2,
        Kind::List | Kind::Object => raw[1..raw.len() - 1].trim_ascii().is_empty(),
    }
}

/// Bytes of text that the inside of a string stands for, in UTF-8.
pub(super) fn decoded_len(inside: &str) -> usize {
    let bytes = inside.as_bytes();
    let (mut length, mut at) = (bytes.len(), 0);
    while let Some(next) = memchr::memchr(b'\\', &bytes[at..]) {
        // `\u4e2d` is three bytes of text, half a surrogate pair two; close enough for both.
        let (spelt, meant) = match bytes.get(at + next + 1) {
            Some(b'u') => (6, 3),
            Some(_) | None => (2, 1),
        };
        length -= spelt - meant;
        at += next + spelt;
        if at >= bytes.len() {
            break;
        }
    }
    length
}

// === impl Json ===

impl<'a> Json<'a> {
    /// The beginning of `text`.
    pub(super) fn new(text: &'a [u8]) -> Read<Self> {
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        Ok(Self {
            text,
            at: 0,
            depth: 0,
        })
    }

    /// The beginning of a value that was read before.
    pub(super) fn of(raw: &'a str) -> Self {
        Self {
            text: raw,
            at: 0,
            depth: 0,
        }
    }

    /// All of it.
    pub(super) fn text(&self) -> &'a str {
        self.text
    }

    /// Where the next value begins.
    pub(super) fn place(&mut self) -> usize {
        self.skip_blanks();
        self.at
    }

    /// What the next value is.
    pub(super) fn kind(&mut self) -> Read<Kind> {
        self.skip_blanks();
        match self.text.as_bytes().get(self.at) {
            Some(b'"' | b'{' | b'[' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
                Ok(kind_of(&self.text[self.at..]))
            }
            Some(_) | None => Err(Malformed),
        }
    }

    /// Nothing but blanks is left.
    pub(super) fn end(mut self) -> Read<()> {
        self.skip_blanks();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// Passes over the next value, and gives it as it was spelt.
    pub(super) fn value(&mut self) -> Read<&'a str> {
        let begin = self.place();
        match self.kind()? {
            Kind::Null => self.literal("null")?,
            Kind::Bool if self.text.as_bytes()[self.at] == b't' => self.literal("true")?,
            Kind::Bool => self.literal("false")?,
            Kind::Number => self.number()?,
            Kind::String => {
                self.string()?;
            }
            Kind::List => self.list(|json| json.value().map(drop))?,
            Kind::Object => self.object(|json, _| json.value().map(drop))?,
        }
        Ok(&self.text[begin..self.at])
    }

    /// The inside of the string that comes next, escapes as they were spelt.
    pub(super) fn string(&mut self) -> Read<&'a str> {
        self.expect(b'"')?;
        let begin = self.at;
        loop {
            self.at += plain_len(&self.text.as_bytes()[self.at..]);
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.text[begin..self.at - 1]);
                }
                Some(b'\\') => self.escape()?,
                Some(_) | None => return Err(Malformed),
            }
        }
    }

    /// Calls `each` at every item of the list that comes next; it has to pass over the item.
    pub(super) fn list<E: From<Malformed>>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'[')?;
        if !self.closes(b']') {
            loop {
                each(self)?;
                if self.closes(b']') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `each` at every member's value of the object that comes next, with its key; it has to
    /// pass over the value.
    pub(super) fn object<E: From<Malformed>>(
        &mut self,
        mut each: impl FnMut(&mut Self, &Cow<'a, str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'{')?;
        if !self.closes(b'}') {
            loop {
                let key = self.key()?;
                each(self, &key)?;
                if self.closes(b'}') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// A key and its colon. `"us\u0061ge"` is `usage`; what cannot be decoded stays as it is spelt.
    fn key(&mut self) -> Read<Cow<'a, str>> {
        self.skip_blanks();
        let begin = self.at;
        let inside = self.string()?;
        let quoted = &self.text[begin..self.at];
        self.expect(b':')?;
        if memchr::memchr(b'\\', inside.as_bytes()).is_none() {
            return Ok(Cow::Borrowed(inside));
        }
        let decoded = serde_json::from_str::<String>(quoted);
        let spelt = decoded.and_then(|key| serde_json::to_string(&key));
        Ok(spelt.map_or(Cow::Borrowed(inside), |quoted| {
            Cow::Owned(quoted[1..quoted.len() - 1].to_owned())
        }))
    }

    fn enter(&mut self, open: u8) -> Read<()> {
        self.expect(open)?;
        if self.depth == MAX_DEPTH {
            return Err(Malformed);
        }
        self.depth += 1;
        Ok(())
    }

    fn closes(&mut self, close: u8) -> bool {
        self.expect(close).is_ok()
    }

    fn expect(&mut self, byte: u8) -> Read<()> {
        self.skip_blanks();
        if self.text.as_bytes().get(self.at) != Some(&byte) {
            return Err(Malformed);
        }
        self.at += 1;
        Ok(())
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        self.at += rest.iter().take_while(|byte| is_blank(byte)).count();
    }

    fn literal(&mut self, word: &str) -> Read<()> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Malformed);
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Read<()> {
        self.passes(b"-");
        if !self.passes(b"0") {
            self.digits()?;
        }
        if self.passes(b".") {
            self.digits()?;
        }
        if self.passes(b"eE") {
            self.passes(b"+-");
            self.digits()?;
        }
        Ok(())
    }

    fn passes(&mut self, any: &[u8]) -> bool {
        let next = self.text.as_bytes().get(self.at);
        let is_there = next.is_some_and(|byte| any.contains(byte));
        self.at += usize::from(is_there);
        is_there
    }

    fn digits(&mut self) -> Read<()> {
        let rest = &self.text.as_bytes()[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count > 0 { Ok(()) } else { Err(Malformed) }
    }

    fn escape(&mut self) -> Read<()> {
        let rest = &self.text.as_bytes()[self.at..];
        let length = match rest.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if rest.len() >= 6 && rest[2..6].iter().all(u8::is_ascii_hexdigit) => 6,
            Some(_) | None => return Err(Malformed),
        };
        self.at += length;
        Ok(())
    }
}

/// How many bytes come before the first that ends a string, begins an escape, or must not be there.
/// Eight at a time, by the test for a byte in a word of Bit Twiddling Hacks ("hasless", "hasvalue").
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let has = |word: u64, byte: u8| {
        let zero_there = word ^ (ONES * u64::from(byte));
        zero_there.wrapping_sub(ONES) & !zero_there
    };
    let mut length = 0;
    let mut words = bytes.chunks_exact(8);
    for eight in &mut words {
        let word = u64::from_le_bytes(eight.try_into().unwrap_or_default());
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        // A borrow may mark a byte above the first that is meant, never one below it.
        let marked = (control | has(word, b'"') | has(word, b'\\')) & HIGHS;
        if marked != 0 {
            return length + (marked.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    let is_plain = |byte: &&u8| !matches!(byte, 0..0x20 | b'"' | b'\\');
    length + words.remainder().iter().take_while(is_plain).count()
}

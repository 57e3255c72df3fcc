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
    let (mut length, mut at) = (0, 0);
    while let Some(plain) = memchr::memchr(b'\\', &inside.as_bytes()[at..]) {
        at += plain;
        let code = inside
            .get(at + 2..at + 6)
            .filter(|_| inside.as_bytes()[at + 1] == b'u');
        let code = code.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        length += plain
            + match code {
                None | Some(0..0x80) => 1,
                // Half a surrogate pair is half of four bytes.
                Some(0x80..0x800 | 0xd800..0xe000) => 2,
                Some(_) => 3,
            };
        at = inside.len().min(at + if code.is_some() { 6 } else { 2 });
    }
    length + inside.len() - at
}

// === impl Json ===

impl<'a> Json<'a> {
    /// The beginning of `text`.
    pub(super) fn new(text: &'a [u8]) -> Read<Self> {
        std::str::from_utf8(text).map_or(Err(Malformed), |text| Ok(Self::of(text)))
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
        self.peek();
        self.at
    }

    /// What the next value is.
    pub(super) fn kind(&mut self) -> Read<Kind> {
        match self.peek() {
            b'"' => Ok(Kind::String),
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::List),
            b't' | b'f' => Ok(Kind::Bool),
            b'n' => Ok(Kind::Null),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            _ => Err(Malformed),
        }
    }

    /// Nothing but blanks is left.
    pub(super) fn end(mut self) -> Read<()> {
        self.peek();
        require(self.at == self.text.len())
    }

    /// Passes over the next value, and gives it as it was spelt.
    pub(super) fn value(&mut self) -> Read<&'a str> {
        let begin = self.place();
        match self.kind()? {
            Kind::Null => self.literal(b"null")?,
            Kind::Bool if self.peek() == b't' => self.literal(b"true")?,
            Kind::Bool => self.literal(b"false")?,
            Kind::Number => self.number()?,
            Kind::String => {
                self.pass_string()?;
            }
            Kind::List => self.list(|json| json.value().map(drop))?,
            Kind::Object => self.object(|json, _| json.value().map(drop))?,
        }
        Ok(&self.text[begin..self.at])
    }

    /// The inside of the string that comes next, escapes as they were spelt.
    pub(super) fn string(&mut self) -> Read<&'a str> {
        let begin = self.place() + 1;
        self.pass_string()?;
        Ok(&self.text[begin..self.at - 1])
    }

    /// Calls `each` at every item of the list that comes next; it has to pass over the item.
    pub(super) fn list<E: From<Malformed>>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'[')?;
        let mut is_inside = self.peek() != b']';
        while is_inside {
            each(self)?;
            is_inside = self.goes_on(b']')?;
        }
        self.leave();
        Ok(())
    }

    /// Calls `each` at every member's value of the object that comes next, with its key; it has to
    /// pass over the value.
    pub(super) fn object<E: From<Malformed>>(
        &mut self,
        mut each: impl FnMut(&mut Self, &Cow<'a, str>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.enter(b'{')?;
        let mut is_inside = self.peek() != b'}';
        while is_inside {
            let key = self.key()?;
            each(self, &key)?;
            is_inside = self.goes_on(b'}')?;
        }
        self.leave();
        Ok(())
    }

    /// A key and its colon. `"us\u0061ge"` is `usage`; what cannot be decoded stays as it is spelt.
    #[inline]
    fn key(&mut self) -> Read<Cow<'a, str>> {
        let begin = self.place();
        let has_escapes = self.pass_string()?;
        let end = self.at;
        self.expect(b':')?;
        let inside = &self.text[begin + 1..end - 1];
        if !has_escapes {
            return Ok(Cow::Borrowed(inside));
        }
        let decoded = serde_json::from_str::<String>(&self.text[begin..end]);
        let spelt = decoded.and_then(|key| serde_json::to_string(&key));
        Ok(spelt.map_or(Cow::Borrowed(inside), |quoted| {
            Cow::Owned(quoted[1..quoted.len() - 1].to_owned())
        }))
    }

    /// Passes over a string. Tells whether it has escapes. Half of a chunk is short strings, and a call
    /// of its own for each is a tenth of reading it.
    #[inline(always)]
    fn pass_string(&mut self) -> Read<bool> {
        self.expect(b'"')?;
        let bytes = self.text.as_bytes();
        let mut has_escapes = false;
        loop {
            self.at = plain_end(bytes, self.at);
            match bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(has_escapes);
                }
                Some(b'\\') => self.escape()?,
                Some(_) | None => return Err(Malformed),
            }
            has_escapes = true;
        }
    }

    fn escape(&mut self) -> Read<()> {
        let rest = self.rest();
        let length = match rest.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if rest.len() >= 6 && rest[2..6].iter().all(u8::is_ascii_hexdigit) => 6,
            Some(_) | None => return Err(Malformed),
        };
        self.at += length;
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Read<()> {
        require(self.rest().starts_with(word))?;
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Read<()> {
        self.passes(b'-', b'-');
        if !self.passes(b'0', b'0') {
            self.digits()?;
        }
        if self.passes(b'.', b'.') {
            self.digits()?;
        }
        if self.passes(b'e', b'E') {
            self.passes(b'+', b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Read<()> {
        let is_digit = |byte: &&u8| byte.is_ascii_digit();
        let digits = self.rest().iter().take_while(is_digit).count();
        self.at += digits;
        require(digits > 0)
    }

    fn passes(&mut self, one: u8, other: u8) -> bool {
        let next = self.rest().first();
        let is_there = next.is_some_and(|byte| *byte == one || *byte == other);
        self.at += usize::from(is_there);
        is_there
    }

    fn enter(&mut self, open: u8) -> Read<()> {
        self.expect(open)?;
        self.depth += 1;
        require(self.depth <= MAX_DEPTH)
    }

    /// Passes over the bracket that ends a list or an object.
    fn leave(&mut self) {
        self.at += 1;
        self.depth -= 1;
    }

    /// Behind an item or a member: passes over a comma, but not over the end.
    fn goes_on(&mut self, close: u8) -> Read<bool> {
        let next = self.peek();
        require(next == b',' || next == close)?;
        self.at += usize::from(next == b',');
        Ok(next == b',')
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Read<()> {
        require(self.peek() == byte)?;
        self.at += 1;
        Ok(())
    }

    /// The next byte that is not blank; zero, which is none of JSON's, at the end.
    #[inline]
    fn peek(&mut self) -> u8 {
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }
}

fn require(is_right: bool) -> Read<()> {
    if is_right { Ok(()) } else { Err(Malformed) }
}

/// Where the first byte stands, at or behind `at`, that ends a string, begins an escape, or must not be
/// there. Eight at a time, by the tests for a byte in a word of Bit Twiddling Hacks ("hasless",
/// "hasvalue").
#[inline]
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let has = |word: u64, byte: u8| {
        let zero_there = word ^ (ONES * u64::from(byte));
        zero_there.wrapping_sub(ONES) & !zero_there
    };
    while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let word = u64::from_le_bytes(*eight);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        // A borrow may mark a byte above the first that is meant, never one below it.
        let marked = (control | has(word, b'"') | has(word, b'\\')) & HIGHS;
        if marked != 0 {
            return at + (marked.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let is_plain = |byte: &&u8| !matches!(byte, 0..0x20 | b'"' | b'\\');
    at + bytes[at..].iter().take_while(is_plain).count()
}

//! A JSON scanner that never fails. It reads single fields and skips all other values.
//!
//! A JSON parser refuses a whole text for one bad byte, and a webhook that is refused is lost. So the scanner reads on:
//!
//! - A string that is not valid JSON text (a lone surrogate, invalid UTF-8, a control character) counts as absent, and so
//!   does a number that is not a `u64`. Such a value disturbs no other field.
//! - A text that is cut off ends where it is cut off. A value that the cut goes through counts as absent.
//! - Bytes between members that belong to none of them are skipped. Any closing bracket closes the innermost value.
//!
//! The scanner moves forward only, so its time is linear in the length of the text. It skips nested values with a counter,
//! so depth costs no stack.

use std::borrow::Cow;

/// The longest string that is decoded, in bytes as written. Each byte of text takes at most six as written (`\u0041`), and
/// nothing that is read from a payload is longer than 512 bytes.
const MAX_STRING_BYTES: usize = 6 * 512;

/// A position in a JSON text.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// How many bytes have been looked at, each as often as it was.
    #[cfg(any(test, feature = "testing"))]
    steps: usize,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `text`.
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            #[cfg(any(test, feature = "testing"))]
            steps: 0,
        }
    }

    /// Reads the next value as an object: `read_member` is called with each key and must read or skip the value. Skips any
    /// other value.
    pub(super) fn object<T: Default>(&mut self, read_member: impl Fn(&mut T, &str, &mut Self)) -> Option<T> {
        self.skip_space();
        if self.peek() != Some(b'{') {
            self.skip_value();
            return None;
        }
        self.at += 1;
        let mut object = T::default();
        while let Some(byte) = self.peek() {
            match byte {
                b'}' | b']' => {
                    self.at += 1;
                    break;
                }
                b'"' => {
                    let key = self.string();
                    self.skip_space();
                    if self.peek() == Some(b':') {
                        self.at += 1;
                        let key = key.and_then(|key| self.decode(key)).unwrap_or_default();
                        read_member(&mut object, &key, self);
                    }
                }
                b'{' | b'[' => self.skip_value(),
                _ => self.at += 1,
            }
        }
        Some(object)
    }

    /// Reads the next value as text. Skips any other value.
    pub(super) fn text(&mut self) -> Option<Box<str>> {
        self.skip_space();
        if self.peek() == Some(b'"') {
            let string = self.string()?;
            return self.decode(string).map(Into::into);
        }
        self.skip_value();
        None
    }

    /// Reads the next value as a whole number. Skips any other value.
    pub(super) fn number(&mut self) -> Option<u64> {
        self.skip_space();
        if !self.peek()?.is_ascii_digit() {
            self.skip_value();
            return None;
        }
        let digits = self.scalar()?;
        let is_number = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || digits[0] != b'0');
        if !is_number {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// Skips the next value, whatever it is.
    pub(super) fn skip_value(&mut self) {
        self.skip_space();
        match self.peek() {
            Some(b'"') => drop(self.string()),
            Some(b'{' | b'[') => self.skip_nested(),
            _ => drop(self.scalar()),
        }
    }

    /// Skips an object or an array and all in it.
    fn skip_nested(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            if byte == b'"' {
                self.string();
                continue;
            }
            self.at += 1;
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// The bytes of the string that starts here, without its quotes and as written. `None` if it does not end.
    fn string(&mut self) -> Option<&'a [u8]> {
        let start = self.at + 1;
        self.at = start;
        loop {
            match self.skip_while(|byte| !matches!(byte, b'"' | b'\\'))? {
                b'"' => {
                    self.at += 1;
                    return Some(&self.text[start..self.at - 1]);
                }
                // The byte behind a backslash does not end the string.
                _ => self.at = (self.at + 2).min(self.text.len()),
            }
        }
    }

    /// The bytes of the number or the word that starts here. `None` if the text ends with it: it may be cut off.
    fn scalar(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        self.skip_while(|byte| {
            !matches!(byte, b',' | b':' | b'"' | b'{' | b'}' | b'[' | b']') && !is_space(byte)
        })?;
        Some(&self.text[start..self.at])
    }

    fn skip_space(&mut self) {
        self.skip_while(is_space);
    }

    /// The next byte, which is left in place.
    fn peek(&mut self) -> Option<u8> {
        self.count(1);
        self.text.get(self.at).copied()
    }

    /// Skips the bytes for which `is_skipped` holds. Returns the byte behind them, which is left in place.
    fn skip_while(&mut self, is_skipped: impl Fn(u8) -> bool) -> Option<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let skipped = rest.iter().position(|byte| !is_skipped(*byte)).unwrap_or(rest.len());
        self.count(skipped + 1);
        self.at += skipped;
        self.text.get(self.at).copied()
    }

    /// The text of a string, from its bytes as written.
    fn decode<'s>(&mut self, string: &'s [u8]) -> Option<Cow<'s, str>> {
        if string.len() > MAX_STRING_BYTES {
            return None;
        }
        self.count(string.len());
        let text = std::str::from_utf8(string).ok()?;
        if text.bytes().any(|byte| byte < 0x20) {
            return None;
        }
        if text.contains('\\') { unescape(text).map(Cow::Owned) } else { Some(Cow::Borrowed(text)) }
    }

    #[cfg(any(test, feature = "testing"))]
    fn count(&mut self, bytes: usize) {
        self.steps += bytes;
    }

    #[cfg(not(any(test, feature = "testing")))]
    fn count(&mut self, _: usize) {}

    /// How many bytes have been looked at, each as often as it was.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn steps(&self) -> usize {
        self.steps
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Replaces the escapes of a JSON string. `None` if one is not valid.
fn unescape(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        decoded.push_str(before);
        let (char, behind) = read_escape(escape)?;
        decoded.push(char);
        rest = behind;
    }
    decoded.push_str(rest);
    Some(decoded)
}

/// The character that an escape stands for, and the text behind it. The backslash is already read.
fn read_escape(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let char = match chars.next()? {
        char @ ('"' | '\\' | '/') => char,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return read_utf16(chars.as_str()),
        _ => return None,
    };
    Some((char, chars.as_str()))
}

/// The character that one or two UTF-16 units stand for, and the text behind them. The first `\u` is already read.
fn read_utf16(text: &str) -> Option<(char, &str)> {
    let (first, behind) = read_unit(text)?;
    if let Some(char) = char::from_u32(first.into()) {
        return Some((char, behind));
    }
    let (second, behind) = read_unit(behind.strip_prefix("\\u")?)?;
    let char = char::decode_utf16([first, second]).next()?.ok()?;
    Some((char, behind))
}

fn read_unit(text: &str) -> Option<(u16, &str)> {
    let (digits, behind) = text.split_at_checked(4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some((u16::from_str_radix(digits, 16).ok()?, behind))
}

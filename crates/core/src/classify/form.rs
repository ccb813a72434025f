//! The payload in a form (`application/x-www-form-urlencoded`), as bytes: a payload that is not UTF-8 is read on
//! like any other.

use std::borrow::Cow;

/// The decoded value of the field `payload`, if the form has exactly one.
pub(super) fn payload(form: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut payloads = form.split(|byte| *byte == b'&').filter_map(|field| {
        let equals = field.iter().position(|byte| *byte == b'=').unwrap_or(field.len());
        let (name, value) = field.split_at(equals);
        decoded(name).eq(*b"payload").then(|| value.get(1..).unwrap_or_default())
    });
    let value = payloads.next()?;
    if payloads.next().is_some() {
        return None;
    }
    if !value.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return Some(Cow::Borrowed(value));
    }
    let mut payload = Vec::with_capacity(value.len());
    payload.extend(decoded(value));
    Some(Cow::Owned(payload))
}

/// The bytes that the text of a form stands for: `+` is a space, `%` and two hexadecimal digits are a byte.
fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (first, behind) = rest.split_first()?;
        let escaped = if *first == b'%' { behind.split_at_checked(2) } else { None };
        if let Some((digits, behind)) = escaped
            && let Some(byte) = hex_byte(digits)
        {
            rest = behind;
            return Some(byte);
        }
        rest = behind;
        Some(if *first == b'+' { b' ' } else { *first })
    })
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok())?
}

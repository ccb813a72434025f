//! Secrets as people store them: in files and variables to which editors and shells have added something.

use std::path::Path;

use gitstafette_core::secret::Secret;

use crate::explain;

/// The byte order mark of UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();
/// The byte order marks of UTF-16, in which PowerShell writes unless told otherwise.
const UTF16_MARKS: [&[u8]; 2] = [&[0xff, 0xfe], &[0xfe, 0xff]];

/// A secret, and what the operator should know about the way it is stored.
pub(super) struct Found {
    pub(super) secret: Secret,
    pub(super) warning: Option<String>,
}

/// Reads a file that holds one secret. White space at its end is not a part of the secret.
pub(super) fn read_file(path: &Path) -> Result<Found, String> {
    let bytes = std::fs::read(path).map_err(|error| explain::file_error(&error))?;
    let (secret, removed) = split(&bytes)?;
    let secret = secret.trim_ascii_end();
    if secret.is_empty() {
        return Err("the file is empty".to_owned());
    }
    // A line feed ends every text file.
    Ok(found(secret, Removed { line_end: removed.line_end && removed.carriage_return, ..removed }))
}

/// The secret in a value. Spaces are a part of it, a line end is not.
pub(super) fn from_value(value: &str) -> Result<Found, String> {
    let (secret, removed) = split(value.as_bytes())?;
    if secret.is_empty() {
        return Err("it is empty".to_owned());
    }
    Ok(found(secret, removed))
}

/// What was removed around a secret.
#[derive(Clone, Copy, Default)]
struct Removed {
    mark: bool,
    line_end: bool,
    carriage_return: bool,
}

/// Separates a secret from a byte order mark before it and line ends after it.
fn split(bytes: &[u8]) -> Result<(&[u8], Removed), String> {
    if UTF16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(
            "it is UTF-16 text; save it as UTF-8 or ASCII (in PowerShell: -Encoding ascii)".to_owned()
        );
    }
    let marked = bytes.strip_prefix(MARK);
    let mut secret = marked.unwrap_or(bytes);
    let mut removed = Removed { mark: marked.is_some(), ..Removed::default() };
    while let Some((last @ (b'\r' | b'\n'), rest)) = secret.split_last() {
        removed.line_end = true;
        removed.carriage_return |= *last == b'\r';
        secret = rest;
    }
    Ok((secret, removed))
}

fn found(secret: &[u8], removed: Removed) -> Found {
    let end =
        if removed.carriage_return { "a Windows line end (CRLF) after it" } else { "a line end after it" };
    let parts: Vec<_> = [(removed.mark, "a byte order mark before it"), (removed.line_end, end)]
        .into_iter()
        .filter_map(|(is_removed, what)| is_removed.then_some(what))
        .collect();
    let warning = if secret.contains(&b'\n') {
        Some("the secret has several lines, and all of them are used; was one line meant?".to_owned())
    } else if parts.is_empty() {
        None
    } else {
        Some(format!("the secret was used without {}; save it without", parts.join(" and ")))
    };
    Found { secret: Secret::new(secret), warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKED: &str = "the secret was used without a byte order mark before it; save it without";
    const WINDOWS: &str = "the secret was used without a Windows line end (CRLF) after it; save it without";
    const BOTH: &str = "the secret was used without a byte order mark before it and a Windows line end (CRLF) after it; save it without";
    const ENDED: &str = "the secret was used without a line end after it; save it without";
    const LINES: &str = "the secret has several lines, and all of them are used; was one line meant?";

    fn file(bytes: &[u8]) -> Result<(Vec<u8>, Option<String>), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_file(file.path()).map(|Found { secret, warning }| (secret.expose().to_vec(), warning))
    }

    fn value(text: &str) -> Result<(Vec<u8>, Option<String>), String> {
        from_value(text).map(|Found { secret, warning }| (secret.expose().to_vec(), warning))
    }

    #[test]
    fn files() {
        for (bytes, secret, warning) in [
            (&b"a b"[..], &b"a b"[..], None),
            (b"a\n", b"a", None),
            (b"a \n\n", b"a", None),
            (b" a\n", b" a", None),
            (b"a\r\n", b"a", Some(WINDOWS)),
            (b"a\r", b"a", Some(WINDOWS)),
            (b"\xef\xbb\xbfa\n", b"a", Some(MARKED)),
            (b"\xef\xbb\xbfa\r\n\r\n", b"a", Some(BOTH)),
            (b"a\nb\n", b"a\nb", Some(LINES)),
            (b"\x00\xff\xfe", b"\x00\xff\xfe", None),
        ] {
            let expected = (secret.to_vec(), warning.map(str::to_owned));
            assert_eq!(file(bytes), Ok(expected), "{bytes:?}");
        }
        for bytes in [&b""[..], b"\n", b"\r\n", b"\xef\xbb\xbf\r\n"] {
            assert_eq!(file(bytes).unwrap_err(), "the file is empty", "{bytes:?}");
        }
        for bytes in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a"] {
            assert!(file(bytes).unwrap_err().starts_with("it is UTF-16 text"), "{bytes:?}");
        }
        let missing = read_file(Path::new("/does/not/exist"));
        assert_eq!(missing.err(), Some("there is no such file".to_owned()));
    }

    #[test]
    fn values() {
        for (text, secret, warning) in [
            ("a,b ", "a,b ", None),
            ("a\n", "a", Some(ENDED)),
            ("a\r", "a", Some(WINDOWS)),
            ("\u{feff}a", "a", Some(MARKED)),
            ("\u{feff}a\r\n", "a", Some(BOTH)),
        ] {
            let expected = (secret.as_bytes().to_vec(), warning.map(str::to_owned));
            assert_eq!(value(text), Ok(expected), "{text:?}");
        }
        assert_eq!(value("\r\n"), Err("it is empty".to_owned()));
    }
}

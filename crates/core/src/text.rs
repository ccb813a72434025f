//! Text from outside that is shown to people: in a log, on a terminal.

/// Whether a character does something other than being shown: it moves the cursor, starts a line, or reorders what
/// stands beside it (Unicode's line and paragraph separators and its bidirectional controls, UAX #9 §2).
pub fn is_steering(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Whether the text is 1 to 256 bytes that can be shown on one line as they are.
pub fn is_showable(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(is_steering)
}

/// Stands at the end of a text that was cut.
pub const CUT_MARK: &str = "…";

/// Cuts a text to at most `bytes`, of which the last are a mark that it was cut. The mark itself stands in any case.
pub fn shorten(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes.saturating_sub(CUT_MARK.len())));
        text.push_str(CUT_MARK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_shown() {
        assert!(is_showable("deploy to production"));
        assert!(is_showable("Straße 🚢"));
        for text in ["", "a\nb", "\u{1b}[31m", "a\u{202e}b", "\u{2028}", &"x".repeat(257)] {
            assert!(!is_showable(text), "{text:?}");
        }
    }

    #[test]
    fn what_is_cut_shows_it() {
        for (bytes, expected) in [(12, "Straße 🚢"), (11, "Straße …"), (8, "Stra…"), (3, "…"), (0, "…")]
        {
            let mut text = "Straße 🚢".to_owned();
            shorten(&mut text, bytes);
            assert_eq!(text, expected, "{bytes}");
        }
    }
}

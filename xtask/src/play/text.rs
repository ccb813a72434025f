//! Numbers and colours for the terminal.

use std::io::IsTerminal;
use std::time::Duration;

/// Bytes, as people say them.
pub(crate) fn bytes(bytes: usize) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// Milliseconds, with as many digits as matter.
pub(crate) fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    let digits = if millis < 1.0 { 2 } else { usize::from(millis < 100.0) };
    format!("{millis:.digits$}")
}

/// A whole number with commas between the thousands.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The value below which `share` (0 to 1) of all values are. `None` if there are none.
pub(crate) fn quantile(values: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied()
}

/// Colours, on a terminal whose user did not decline them (no-color.org).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Colours(bool);

impl Colours {
    /// As standard output wants them.
    pub(crate) fn detect() -> Self {
        let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(std::io::stdout().is_terminal() && !declined)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn heading(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(999), bytes(10_941), bytes(5_000_000)], ["999 B", "10.9 KB", "5.0 MB"]);
        let of = |micros| millis(Duration::from_micros(micros));
        assert_eq!([of(123), of(3_149), of(123_456)], ["0.12", "3.1", "123"]);
        assert_eq!([thousands(0.4), thousands(999.0), thousands(1_234_567.0)], ["0", "999", "1,234,567"]);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile(&values, 0.5), Some(Duration::from_millis(100)));
        assert_eq!(quantile(&values, 0.99), Some(Duration::from_millis(198)));
        assert_eq!(quantile(&values[..1], 0.99), Some(Duration::from_millis(200)));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn no_colours_where_none_are_wanted() {
        assert_eq!(Colours(false).bad("no"), "no");
        assert_eq!(Colours(true).good("yes"), "\x1b[32myes\x1b[0m");
    }
}

//! The command line as it was typed, made into one that clap reads: flags with a single dash, as Go's `flag` package has
//! them, become flags with two.

use std::ffi::OsString;

/// The arguments of this process.
pub fn typed() -> Vec<OsString> {
    normalised(std::env::args_os())
}

/// Gives every flag whose name has more than one letter its second dash: `-relayHost jenkins` is `--relayHost jenkins`.
///
/// Left as they are: the program's name, flags of one letter (`-h`, `-V`), `-` alone, numbers, what is not text, and all
/// that stands after a bare `--`.
pub fn normalised(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_are_over = false;
    let mut is_program = true;
    arguments
        .into_iter()
        .map(|argument| {
            let may_be_flag = !std::mem::replace(&mut is_program, false) && !flags_are_over;
            flags_are_over |= may_be_flag && argument == "--";
            match argument.to_str() {
                Some(text) if may_be_flag && has_single_dash(text) => format!("-{text}").into(),
                _ => argument,
            }
        })
        .collect()
}

/// Whether this is a flag with one dash and a name of several letters.
fn has_single_dash(text: &str) -> bool {
    let Some(flag) = text.strip_prefix('-') else { return false };
    let name = flag.split('=').next().unwrap_or_default();
    name.chars().count() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Vec<String> {
        let normalised = normalised(std::iter::once(&"program").chain(arguments).map(OsString::from));
        normalised.into_iter().skip(1).map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn a_single_dash_becomes_two() {
        assert_eq!(of(&["-grpcPort", "50051", "-port=1323"]), ["--grpcPort", "50051", "--port=1323"]);
        assert_eq!(of(&["-relayEnabled", "-help", "-version"]), ["--relayEnabled", "--help", "--version"]);
        assert_eq!(of(&["-token=-a=-b"]), ["--token=-a=-b"], "only the flag's own dash");
    }

    #[test]
    fn all_else_stays() {
        let all = ["--grpc-port", "1", "-h", "-V", "-", "-1", "-15", "-=x", "-x=1", "config", "a-b", ""];
        assert_eq!(of(&all), all);
        assert_eq!(of(&["-ab", "--", "-cd", "--", "-ef"]), ["--ab", "--", "-cd", "--", "-ef"]);
        assert_eq!(normalised([OsString::from("-program")]), ["-program"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_text_stays() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"-ab\xff".to_vec());
        assert_eq!(normalised(["program".into(), odd.clone()])[1], odd);
    }
}

//! Finds the name that a misspelt name was meant to be.

/// Names below this Jaro similarity have nothing in common. clap uses the same limit for flags and commands.
const SIMILAR: f64 = 0.7;

/// The candidate that is most similar to `name`, if any is similar. Case, dashes and underscores do not count.
pub(super) fn similar<'a>(name: &str, candidates: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    let name = letters(name);
    let rated = candidates.into_iter().map(|candidate| (strsim::jaro(&name, &letters(candidate)), candidate));
    let (similarity, candidate) = rated.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (similarity > SIMILAR).then_some(candidate)
}

/// The letters and digits of a name, in lower case: `grpc-port`, `GRPC_PORT` and `grpcPort` have the same.
fn letters(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|char| char.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_and_others() {
        let keys = ["port", "grpc-port", "grpc-health-port", "repositories", "webhook-hmac", "token-file"]
            .map(str::to_owned);
        for (name, expected) in [
            ("grpcPort", Some("grpc-port")),
            ("GRPC_PORT", Some("grpc-port")),
            ("grpc-prot", Some("grpc-port")),
            ("repository", Some("repositories")),
            ("repos", Some("repositories")),
            ("webhookHMAC", Some("webhook-hmac")),
            ("webhook-hmca", Some("webhook-hmac")),
            ("tokenfile", Some("token-file")),
            ("tokn-file", Some("token-file")),
            ("ports", Some("port")),
            ("version", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(similar(name, &keys), expected, "{name}");
        }
        assert_eq!(similar("port", &[]), None);
    }
}

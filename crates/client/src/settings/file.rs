//! Settings from a TOML file, and advice about keys that are not known.

use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map};
use figment::{Profile, Provider};

use super::suggest::similar;
use super::{Layer, OtherProgram};
use crate::explain;

pub(super) fn values_of(
    name: &str,
    data: Result<Map<Profile, Dict>, figment::Error>,
    problems: &mut Vec<String>,
) -> Dict {
    match data {
        Ok(mut profiles) => profiles.remove(&Profile::Default).unwrap_or_default(),
        Err(error) => {
            // The lines after the first quote the file, and the quoted line may hold a secret.
            let error = error.to_string();
            problems.push(format!("{name}: {}", error.lines().next().unwrap_or_default()));
            Dict::new()
        }
    }
}

pub(super) fn file_layer(
    path: &Path,
    known: &Dict,
    other: Option<OtherProgram>,
    problems: &mut Vec<String>,
) -> Layer {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        problems.push(format!("config: {name}: {}", explain::file_error(&error)));
        String::new()
    });
    toml_layer(&name, &text, known, other, problems)
}

pub(super) fn toml_layer(
    name: &str,
    text: &str,
    known: &Dict,
    other: Option<OtherProgram>,
    problems: &mut Vec<String>,
) -> Layer {
    let values = values_of(name, Toml::string(text).data(), problems);
    for key in values.keys().filter(|key| !known.contains_key(*key)) {
        let advice = match other {
            Some(other) if (other.keys)().contains(key) => match similar(key, known.keys()) {
                Some(right) => format!("it is a setting of {}; did you mean {right}?", other.name),
                None => format!("it is a setting of {}", other.name),
            },
            _ => advice(key, known),
        };
        problems.push(format!("{key}: there is no such key; {advice} (from {name})"));
    }
    Layer { name: name.to_owned(), values }
}

/// What to do about a key that is not known.
pub(super) fn advice(key: &str, known: &Dict) -> String {
    match similar(key, known.keys()) {
        Some(right) => format!("did you mean {right}?"),
        None => "`config default` lists them all".to_owned(),
    }
}

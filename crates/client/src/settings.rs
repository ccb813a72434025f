//! Configuration in layers, for both programs: defaults, file, environment, flags; later wins.
//!
//! The embedded default file names every key and is the reference documentation. Values are read one by one, so
//! that all mistakes are reported at once, each with the place it came from.

mod environment;
mod file;
mod secret;
mod suggest;
mod values;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use gitstafette_core::secret::Secret;
use serde::Serialize;

use file::{advice, file_layer, toml_layer, values_of};
use values::{ByteSize, Ip, Number, Port, Span, Switch};

pub use environment::environment;

/// A program's settings: its default file, and the environment variables that it knows by other names.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The default file: it names every key there is.
    pub defaults: &'static str,
    /// Each variable with the keys it sets; the prefixed names win over these.
    pub environment: &'static [(&'static str, &'static [&'static str])],
    /// The other program.
    pub other: OtherProgram,
}

/// The other of the two programs. Both may share an environment, and their settings are easily confused.
#[derive(Clone, Copy, Debug)]
pub struct OtherProgram {
    /// Its name.
    pub name: &'static str,
    /// The keys of its settings.
    pub keys: fn() -> Vec<String>,
}

/// The name of the layer that is always there.
const DEFAULTS: &str = "defaults";
/// The table whose keys are those of all tables beside it, with their defaults.
const DEFAULT_TABLE: &str = "default";

/// The merged layers, and what was found wrong in them so far.
#[derive(Default)]
pub struct Settings {
    figment: Figment,
    problems: Vec<String>,
    /// What the operator should know about values that can be used all the same.
    warnings: Vec<String>,
    /// Stands before every key in them: the table that the keys are in.
    prefix: String,
    /// The keys whose values were found wrong.
    wrong: BTreeSet<String>,
    /// The default file's values.
    defaults: Dict,
}

/// One layer: where it comes from, and its values by key.
struct Layer {
    name: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl fmt::Debug for Settings {
    /// Without the values: secrets are among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl Settings {
    /// Merges the layers.
    ///
    /// `environment` are all variables. `flags` serialises to a map of keys, `None` and empty lists where a flag was not
    /// given.
    pub fn load(
        known: Known,
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &impl Serialize,
    ) -> Self {
        let Known { defaults, environment: aliases, other } = known;
        let mut problems = Vec::new();
        let known = values_of("the embedded defaults", Toml::string(defaults).data(), &mut problems);
        let from_file = file.map(|path| file_layer(path, &known, Some(other), &mut problems));
        let environment: Vec<_> = environment.into_iter().collect();
        let mut figment = Figment::from(Layer { name: DEFAULTS.into(), values: known.clone() });
        if let Some(layer) = from_file {
            figment = figment.merge(layer);
        }
        for layer in environment::layers(&environment, aliases, &known) {
            figment = figment.merge(layer);
        }
        figment = figment.merge(Layer { name: "command line".into(), values: flag_values(flags) });
        let warnings = environment::unknown(&environment, &known, &(other.keys)());
        Self { figment, problems, warnings, defaults: known, ..Self::default() }
    }

    /// The defaults and a file's text, without environment and flags, for embedding.
    pub fn from_toml(defaults: &'static str, text: &str) -> Self {
        let mut problems = Vec::new();
        let known = values_of("the embedded defaults", Toml::string(defaults).data(), &mut problems);
        let layer = toml_layer("the configuration", text, &known, None, &mut problems);
        let figment = Figment::from(Layer { name: DEFAULTS.into(), values: known.clone() }).merge(layer);
        Self { figment, problems, defaults: known, ..Self::default() }
    }

    /// The settings of each table `[section.NAME]`, by name, over those of `[section.default]`, which the default file
    /// has: it names every key there is. What is found wrong in them comes back with [`absorb`](Self::absorb).
    pub fn tables(&mut self, section: &str) -> Vec<(String, Self)> {
        let template = self.dict(&format!("{section}.{DEFAULT_TABLE}"));
        let mut tables = Vec::new();
        let Some(values) = self.figment.find_value(section).ok().and_then(Value::into_dict) else {
            self.problem(section, &format!("is no table of tables: write [{section}.NAME], one for each"));
            return tables;
        };
        for (name, value) in values {
            let path = format!("{section}.{name}");
            match value {
                _ if name == DEFAULT_TABLE => {}
                Value::Dict(_, values) => tables.push((name, self.table(&path, &template, values))),
                _ => self.problem(&path, "is a value, and a table is wanted"),
            }
        }
        tables
    }

    fn dict(&self, path: &str) -> Dict {
        self.figment.find_value(path).ok().and_then(Value::into_dict).unwrap_or_default()
    }

    /// The settings of one table with these values, which need not be in a file.
    fn table(&self, path: &str, template: &Dict, values: Dict) -> Self {
        let place = self.figment.find_metadata(path).map_or("", |metadata| &metadata.name).to_owned();
        let unknown = values.keys().filter(|key| !template.contains_key(*key));
        let problems = unknown
            .map(|key| {
                let advice = match self.defaults.get(key) {
                    Some(value) if value.as_dict().is_none() => {
                        "it belongs to no table: move it above the first [table]".to_owned()
                    }
                    _ => advice(key, template),
                };
                format!("{path}.{key}: there is no such key; {advice} (from {place})")
            })
            .collect();
        let figment = Figment::from(Layer { name: DEFAULTS.into(), values: template.clone() })
            .merge(Layer { name: place, values });
        let (prefix, defaults) = (format!("{path}."), template.clone());
        Self { figment, problems, prefix, defaults, ..Self::default() }
    }

    /// The keys of the table at `section`.
    pub fn keys(&self, section: &str) -> Vec<String> {
        self.dict(section).into_keys().collect()
    }

    /// The settings of a table that was put together from other settings.
    pub fn made_table(&self, section: &str, name: &str, values: Vec<(&str, String)>) -> Self {
        let template = self.dict(&format!("{section}.{DEFAULT_TABLE}"));
        let values = values.into_iter().map(|(key, text)| (key.to_owned(), Value::from(text))).collect();
        self.table(&format!("{section}.{name}"), &template, values)
    }

    /// Takes over what was found in a table.
    pub fn absorb(&mut self, table: Self) {
        self.problems.extend(table.problems);
        self.warnings.extend(table.warnings);
    }

    /// The texts of a key: a list's elements, a text's parts between commas, nothing if it is empty.
    fn texts(&mut self, key: &str) -> Vec<String> {
        let value = match self.figment.find_value(key) {
            Ok(value) => value,
            Err(_) => return Vec::new(),
        };
        match texts_of(&value) {
            Some(texts) => texts,
            None => {
                self.problem(key, "is a table, and a value is wanted");
                Vec::new()
            }
        }
    }

    /// The value of a key, `None` if it is empty or wrong.
    pub fn optional<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.texts(key).join(",");
        if text.is_empty() { None } else { self.parse(key, &text) }
    }

    /// The value of a key that has a default; if it is wrong or empty that is noted and `fallback` stands in until
    /// [`finish`](Self::finish) reports it.
    pub fn value<T: FromStr<Err: fmt::Display>>(&mut self, key: &str, fallback: T) -> T {
        let text = self.texts(key).join(",");
        if text.is_empty() {
            self.problem(key, "is empty");
        }
        self.parse(key, &text).unwrap_or(fallback)
    }

    /// The values of a list: TOML's, a flag given several times, or one text with commas.
    pub fn list<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Vec<T> {
        let texts = self.texts(key);
        texts
            .iter()
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .filter_map(|text| self.parse(key, text))
            .collect()
    }

    /// A duration such as `20s` or `7d`.
    pub fn duration(&mut self, key: &str) -> Duration {
        self.value(key, Span(Duration::ZERO)).0
    }

    /// A duration, `None` if it is empty.
    pub fn optional_duration(&mut self, key: &str) -> Option<Duration> {
        self.optional::<Span>(key).map(|span| span.0)
    }

    /// A number of bytes such as `25MiB`.
    pub fn bytes(&mut self, key: &str) -> u64 {
        self.value(key, ByteSize(0)).0
    }

    /// A duration that is more than nothing.
    pub fn positive_duration(&mut self, key: &str) -> Duration {
        let duration = self.duration(key);
        if duration.is_zero() && self.are_sound(&[key]) {
            self.problem(key, "must be more than 0");
        }
        duration
    }

    /// A number of bytes, 1 or more.
    pub fn positive_bytes(&mut self, key: &str) -> u64 {
        let bytes = self.bytes(key);
        if bytes == 0 && self.are_sound(&[key]) {
            self.problem(key, "must be more than 0");
        }
        bytes
    }

    /// A number between 1 and `most`.
    pub fn count(&mut self, key: &str, most: u64) -> u64 {
        let count = self.value(key, Number(1)).0;
        if !(1..=most).contains(&count) {
            self.problem(key, &format!("must be between 1 and {most}"));
        }
        count.clamp(1, most)
    }

    /// A number from 0 to `most`.
    pub fn number(&mut self, key: &str, most: u64) -> u64 {
        let number = self.value(key, Number(0)).0;
        if number > most {
            self.problem(key, &format!("must be at most {most}"));
        }
        number.min(most)
    }

    /// A port; if it is wrong, `fallback` stands in as in [`value`](Self::value).
    pub fn port(&mut self, key: &str, fallback: u16) -> u16 {
        self.value(key, Port(fallback)).0
    }

    /// A port, `None` if it is empty.
    pub fn optional_port(&mut self, key: &str) -> Option<u16> {
        self.optional::<Port>(key).map(|port| port.0)
    }

    /// An IP address, `None` if it is empty or wrong.
    pub fn optional_ip(&mut self, key: &str) -> Option<IpAddr> {
        self.optional::<Ip>(key).map(|ip| ip.0)
    }

    /// Whether a key is `true`.
    pub fn flag(&mut self, key: &str) -> bool {
        self.value(key, Switch(false)).0
    }

    /// Secrets given as values of `key`, taken whole (a comma is part of one), and as files of `key`-file.
    pub fn secrets(&mut self, key: &str) -> Vec<Secret> {
        let texts = self.texts(key).into_iter().filter(|text| !text.is_empty());
        let values: Vec<_> = texts.map(|text| secret::from_value(&text)).collect();
        let mut secrets = Vec::new();
        for found in values {
            secrets.extend(self.found(key, "", found));
        }
        let file_key = format!("{key}-file");
        for path in self.list::<PathBuf>(&file_key) {
            secrets.extend(self.found(&file_key, &format!("{}: ", path.display()), secret::read_file(&path)));
        }
        secrets
    }

    fn found(&mut self, key: &str, place: &str, found: Result<secret::Found, String>) -> Option<Secret> {
        match found {
            Ok(secret::Found { secret, warning }) => {
                if let Some(warning) = warning {
                    self.warning(key, &format!("{place}{warning}"));
                }
                Some(secret)
            }
            Err(reason) => {
                self.problem(key, &format!("{place}{reason}"));
                None
            }
        }
    }

    /// Whether the key was set by more than the defaults.
    pub fn is_set(&self, key: &str) -> bool {
        self.figment.find_metadata(key).is_some_and(|metadata| metadata.name != DEFAULTS)
    }

    /// Whether nothing was wrong with these keys so far: what is said of several together is only said then.
    pub fn are_sound(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.wrong.contains(*key))
    }

    /// Whether the key has another value than the default file gives it.
    pub fn is_changed(&self, key: &str) -> bool {
        let value = self.figment.find_value(key).ok();
        value.as_ref().and_then(texts_of) != self.defaults.get(key).and_then(texts_of)
    }

    /// What the operator should know about settings that can be used all the same.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn warning(&mut self, key: &str, message: &str) {
        self.warnings.push(self.located(key, message));
    }

    /// A message about a key, with the place that set it.
    fn located(&self, key: &str, message: &str) -> String {
        let place = self.figment.find_metadata(key).map_or("", |metadata| &metadata.name);
        let place = if place.is_empty() { String::new() } else { format!(" (from {place})") };
        format!("{}{key}: {message}{place}", self.prefix)
    }

    /// Notes a mistake in the value of `key`.
    pub fn problem(&mut self, key: &str, message: &str) {
        self.problems.push(self.located(key, message));
        self.wrong.insert(key.to_owned());
    }

    /// The configuration, if nothing was wrong.
    ///
    /// # Errors
    /// Everything that was noted.
    pub fn finish<T>(self, config: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() { Ok(config) } else { Err(ConfigError(self.problems)) }
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.to_string();
                // Most errors name what was typed; the standard library's do not.
                let shown = if error.contains(text) { error } else { format!("{text:?}: {error}") };
                self.problem(key, &shown);
                None
            }
        }
    }
}

/// The keys of a default file, without those of its tables.
pub fn keys_of(defaults: &str) -> Vec<String> {
    let values = values_of("the embedded defaults", Toml::string(defaults).data(), &mut Vec::new());
    values.into_keys().collect()
}

/// All mistakes of a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// One line per mistake.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

/// The keys of the flags that were given.
pub(crate) fn given(flags: &impl Serialize) -> Vec<String> {
    flag_values(flags).into_keys().collect()
}

fn flag_values(flags: &impl Serialize) -> Dict {
    let given = |value: &Value| match value {
        Value::Empty(..) => false,
        Value::Array(_, values) => !values.is_empty(),
        _ => true,
    };
    match Value::serialize(flags) {
        Ok(Value::Dict(_, values)) => values.into_iter().filter(|(_, value)| given(value)).collect(),
        _ => Dict::new(),
    }
}

fn texts_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(_, text) if text.is_empty() => Some(Vec::new()),
        Value::String(_, text) => Some(vec![text.clone()]),
        Value::Bool(_, bool) => Some(vec![bool.to_string()]),
        Value::Num(_, number) => number
            .to_u128()
            .map(|number| number.to_string())
            .or_else(|| number.to_i128().map(|number| number.to_string()))
            .or_else(|| number.to_f64().map(|number| number.to_string()))
            .map(|text| vec![text]),
        Value::Array(_, values) => {
            values.iter().map(texts_of).collect::<Option<Vec<_>>>().map(|lists| lists.concat())
        }
        Value::Empty(..) => Some(Vec::new()),
        Value::Char(_, char) => Some(vec![char.to_string()]),
        Value::Dict(..) => None,
    }
}

#[cfg(test)]
mod tests;

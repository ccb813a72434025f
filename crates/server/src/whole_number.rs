//! Whole numbers in queries and in JSON, with errors in plain words: serde's own name Rust's types.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};

/// Reads a number that may be absent; for `#[serde(deserialize_with)]`.
pub(crate) fn optional<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_any(WholeNumber(PhantomData))
}

struct WholeNumber<T>(PhantomData<T>);

impl<T: TryFrom<u64>> WholeNumber<T> {
    fn fitting<E: Error>(number: Option<u64>, text: &dyn fmt::Display) -> Result<Option<T>, E> {
        let fitting = number.and_then(|number| T::try_from(number).ok());
        let error = || E::custom(format_args!("{text} is not a whole number, or is too large"));
        fitting.map(Some).ok_or_else(error)
    }
}

impl<T: TryFrom<u64>> Visitor<'_> for WholeNumber<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<T>, E> {
        Self::fitting(Some(number), &number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        Self::fitting(u64::try_from(number).ok(), &number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Option<T>, E> {
        Self::fitting(None, &number)
    }

    /// Queries are text.
    fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
        Self::fitting(text.parse().ok(), &format_args!("{text:?}"))
    }

    fn visit_unit<E: Error>(self) -> Result<Option<T>, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default)]
    struct Numbers {
        #[serde(deserialize_with = "super::optional")]
        small: Option<u32>,
        #[serde(deserialize_with = "super::optional")]
        large: Option<u64>,
    }

    fn json(text: &str) -> Result<Numbers, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn query(text: &str) -> Result<Numbers, String> {
        let uri = format!("http://x/?{text}").parse().unwrap();
        axum::extract::Query::try_from_uri(&uri).map(|query| query.0).map_err(|error| error.body_text())
    }

    #[test]
    fn numbers_that_fit() {
        let both = Numbers { small: Some(u32::MAX), large: Some(u64::MAX) };
        assert_eq!(json(r#"{"small":4294967295,"large":18446744073709551615}"#).as_ref(), Ok(&both));
        assert_eq!(query("small=4294967295&large=18446744073709551615"), Ok(both));
        assert_eq!(json(r#"{"small":null}"#), Ok(Numbers::default()));
        assert_eq!(query(""), Ok(Numbers::default()));
    }

    #[test]
    fn others_are_told_in_plain_words() {
        for number in ["4294967296", "-1", "1.5", "18446744073709551616", "\"x\""] {
            let error = json(&format!(r#"{{"small":{number}}}"#)).unwrap_err();
            assert!(error.contains("is not a whole number, or is too large"), "{number}: {error}");
            let error = query(&format!("small={}", number.trim_matches('"'))).unwrap_err();
            assert!(error.ends_with("is not a whole number, or is too large"), "{number}: {error}");
        }
    }
}

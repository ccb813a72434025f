//! First attempts of events at targets.

use gitstafette_core::event::Sequence;
use gitstafette_core::store::{FirstAttempt, MAX_FIRST_ATTEMPTS};

use super::{WireError, duration, from_duration, target_name};
use crate::v1;

impl From<&FirstAttempt> for v1::FirstAttempt {
    fn from(first: &FirstAttempt) -> Self {
        Self { sequence: first.sequence.get(), target: first.target.clone(), age: Some(duration(first.age)) }
    }
}

impl TryFrom<v1::FirstAttempt> for FirstAttempt {
    type Error = WireError;

    fn try_from(wire: v1::FirstAttempt) -> Result<Self, WireError> {
        Ok(Self {
            sequence: Sequence::new(wire.sequence),
            target: target_name(wire.target)?.into(),
            age: from_duration(wire.age.unwrap_or_default()),
        })
    }
}

/// First attempts for the wire.
pub fn first_attempts(first_attempts: &[FirstAttempt]) -> v1::FirstAttempts {
    v1::FirstAttempts { first_attempts: first_attempts.iter().map(Into::into).collect() }
}

/// First attempts from the wire.
///
/// # Errors
/// There are more than a server keeps, or one of them has no target's name.
pub fn from_first_attempts(wire: v1::FirstAttempts) -> Result<Vec<FirstAttempt>, WireError> {
    if wire.first_attempts.len() > MAX_FIRST_ATTEMPTS {
        return Err(WireError::new("first_attempts", format!("more than {MAX_FIRST_ATTEMPTS}")));
    }
    wire.first_attempts.into_iter().map(TryInto::try_into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn first_attempts_come_back_as_they_were() {
        let one = FirstAttempt {
            sequence: Sequence::new(7),
            target: "jenkins:8080".into(),
            age: Duration::from_millis(86_400_123),
        };
        let wire = first_attempts(std::slice::from_ref(&one));
        assert_eq!(from_first_attempts(wire.clone()), Ok(vec![one]));
        let with = |target: &str, seconds| {
            let age = Some(prost_types::Duration { seconds, nanos: 0 });
            let odd = v1::FirstAttempt { sequence: 7, target: target.into(), age };
            from_first_attempts(v1::FirstAttempts { first_attempts: vec![odd] })
        };
        assert!(with("x", 1).is_ok());
        assert!(with("", 1).is_err() && with(&"x".repeat(257), 1).is_err());
        assert_eq!(with("x", -1).map(|ages| ages[0].age), Ok(Duration::ZERO));
        assert_eq!(with("x", i64::MAX).map(|ages| ages[0].age.as_secs()), Ok(100 * 366 * 24 * 3600));
        let many = vec![wire.first_attempts[0].clone(); MAX_FIRST_ATTEMPTS + 1];
        assert!(from_first_attempts(v1::FirstAttempts { first_attempts: many }).is_err());
    }
}

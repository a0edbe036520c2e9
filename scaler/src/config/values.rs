//! Texts to values, with errors that name the place, the text and what is allowed.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::ConfigError;

/// No duration is longer: arithmetic with it cannot overflow.
const LONGEST: Duration = Duration::from_hours(366 * 24);
/// Where a queue's workers are limited to no number.
const UNLIMITED: &str = "unlimited";

/// What a duration without a unit means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bare {
    /// Nothing: it is refused.
    Refused,
    /// Milliseconds, as in the earlier system.
    Milliseconds,
    /// Seconds, as in the earlier system.
    Seconds,
}

fn refuse(path: &str, value: &str, allowed: impl Into<String>) -> ConfigError {
    ConfigError::Value { path: path.to_owned(), value: value.to_owned(), allowed: allowed.into() }
}

/// A duration with its unit, within `range`.
pub(super) fn duration(
    path: &str,
    text: &str,
    bare: Bare,
    range: RangeInclusive<Duration>,
) -> Result<Duration, ConfigError> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let duration = if is_number {
        let number = text.parse().map_err(|_| refuse(path, text, "the number is too large"))?;
        match bare {
            Bare::Refused => {
                let hint = format!("a duration needs a unit, such as {text}ms, {text}s or {text}m");
                return Err(refuse(path, text, hint));
            }
            Bare::Milliseconds => Duration::from_millis(number),
            Bare::Seconds => Duration::from_secs(number),
        }
    } else {
        humantime::parse_duration(text)
            .map_err(|_| refuse(path, text, "expected a duration such as 250ms, 10s or 5m"))?
    };
    if range.contains(&duration) && duration <= LONGEST {
        return Ok(duration);
    }
    let most = LONGEST.min(*range.end());
    let allowed = format!("from {} to {}", words(*range.start()), words(most));
    Err(refuse(path, text, allowed))
}

/// Every duration that arithmetic can bear.
pub(super) const ANY_DURATION: RangeInclusive<Duration> = Duration::ZERO..=LONGEST;

/// A whole number within `range`.
pub(super) fn number<N: FromStr + PartialOrd + Display>(
    path: &str,
    text: &str,
    range: RangeInclusive<N>,
) -> Result<N, ConfigError> {
    text.trim().parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        refuse(path, text, format!("expected a whole number from {} to {}", range.start(), range.end()))
    })
}

/// A whole number up to `most`, or the word `unlimited`.
pub(super) fn limit(path: &str, text: &str, most: u32) -> Result<Option<u32>, ConfigError> {
    if text.trim() == UNLIMITED {
        return Ok(None);
    }
    number(path, text, 0..=most).map(Some).map_err(|_| {
        refuse(path, text, format!("expected a whole number from 0 to {most}, or the word {UNLIMITED}"))
    })
}

/// `true` or `false`.
pub(super) fn switch(path: &str, text: &str) -> Result<bool, ConfigError> {
    text.trim().parse().map_err(|_| refuse(path, text, "expected true or false"))
}

/// A DNS label (RFC 1123): part of Job names and label values.
pub(super) fn label(path: &str, text: &str) -> Result<String, ConfigError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    is_label.then(|| text.to_owned()).ok_or_else(|| {
        refuse(path, text, "expected at most 63 of a-z, 0-9 and -, with a letter or digit at both ends")
    })
}

/// Text that is not empty, at most `longest` bytes and without control characters.
pub(super) fn name(path: &str, text: &str, longest: usize) -> Result<String, ConfigError> {
    let is_name = !text.is_empty() && text.len() <= longest && !text.chars().any(char::is_control);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| refuse(path, text, format!("expected 1 to {longest} bytes, no control characters")))
}

/// The duration as people write it.
pub(crate) fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

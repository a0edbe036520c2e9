//! Policy time: one clock that never goes back.

use std::{
    fmt,
    ops::{Add, Sub},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in policy time: milliseconds since the Unix epoch. Persisted and shown as RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

/// The wall clock at process start plus the monotonic time since: a wall clock that jumps under us changes
/// no decision.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Time,
    started: tokio::time::Instant,
}

// === impl Time ===

impl Time {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp =
            i64::try_from(self.0).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
        write!(formatter, "{:.3}", timestamp.unwrap_or(Timestamp::MAX))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let timestamp: Timestamp = text.parse().map_err(D::Error::custom)?;
        u64::try_from(timestamp.as_millisecond()).map(Self).map_err(D::Error::custom)
    }
}

/// Writes a duration as seconds, for pages that people and scripts read.
pub(crate) fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// The same where it may be absent.
#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
pub(crate) fn as_optional_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

// === impl Clock ===

impl Clock {
    /// Starts at the present wall clock.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            wall: Time(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
            started: tokio::time::Instant::now(),
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        self.at(tokio::time::Instant::now())
    }

    /// What it showed at `instant`.
    #[must_use]
    pub fn at(&self, instant: tokio::time::Instant) -> Time {
        self.wall + instant.saturating_duration_since(self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_being_written_down() {
        for millis in [0, 1, 999, 1_795_420_800_123] {
            let time = Time::from_millis(millis);
            let text = serde_json::to_string(&time).unwrap();
            assert_eq!(serde_json::from_str::<Time>(&text).unwrap(), time, "{text}");
        }
    }

    #[test]
    fn a_time_before_the_epoch_is_refused() {
        assert!(serde_json::from_str::<Time>("\"1969-12-31T23:59:59Z\"").is_err());
    }
}

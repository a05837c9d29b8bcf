//! The pipeline's time: always an argument, never read from a clock.

use std::time::Duration;

/// A point in time, in nanoseconds since the Unix epoch. Enough until the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// To the nearest microsecond, which is what a double holds of today's time: 1700000000.234
    /// is that and not some nanoseconds less. `None` unless `seconds` is finite, not negative and
    /// representable.
    pub fn from_secs_f64(seconds: f64) -> Option<Self> {
        let nanos = Duration::try_from_secs_f64(seconds).ok()?.as_nanos();
        let micros = u64::try_from(nanos).ok()?.checked_add(500)? / 1_000;
        micros.checked_mul(1_000).map(Self)
    }

    pub fn as_secs_f64(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }

    /// The time from `earlier` to this, or zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The resolution that decisions are written with (formats: `ts` has milliseconds).
    pub fn truncated_to_millis(self) -> Self {
        Self(self.0 - self.0 % 1_000_000)
    }

    /// The first whole millisecond that is not earlier.
    pub fn rounded_up_to_millis(self) -> Self {
        Self(self.0.saturating_add(999_999)).truncated_to_millis()
    }
}

/// Seconds since the epoch as a JSON number, as every format of Portcullis writes time.
impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Milliseconds as an exact decimal: a double holds them without error.
        serializer.serialize_f64((self.0 / 1_000_000) as f64 / 1e3)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Self::from_secs_f64(seconds).ok_or_else(|| {
            serde::de::Error::custom(format_args!("{seconds} is not a time since the epoch"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_survive_the_double() {
        for millis in 1_700_000_000_000..1_700_000_002_000u64 {
            let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
            let ts: Timestamp = serde_json::from_str(&text).unwrap();
            assert_eq!(ts, Timestamp::from_nanos(millis * 1_000_000), "{text}");
            let back: Timestamp =
                serde_json::from_str(&serde_json::to_string(&ts).unwrap()).unwrap();
            assert_eq!(back, ts, "{text}");
        }
        for seconds in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(Timestamp::from_secs_f64(seconds), None, "{seconds}");
        }
    }

    #[test]
    fn milliseconds() {
        for (nanos, down, up) in [(0, 0, 0), (1, 0, 1_000_000), (1_000_000, 1_000_000, 1_000_000)] {
            let ts = Timestamp::from_nanos(nanos);
            assert_eq!(ts.truncated_to_millis().as_nanos(), down);
            assert_eq!(ts.rounded_up_to_millis().as_nanos(), up);
        }
        Timestamp::from_nanos(u64::MAX).rounded_up_to_millis();
    }
}

//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

const PAUSE: Duration = Duration::from_millis(5);

/// How many times slower this machine is than those that the tests' limits are made for: 1, or
/// what `PORTCULLIS_TEST_SLOWNESS` says, as on an emulated processor.
pub fn slowness() -> u32 {
    let slowness = std::env::var("PORTCULLIS_TEST_SLOWNESS").ok();
    slowness.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Asks `condition` until it yields a value, at most for `limit` by [`slowness`]. `what` completes
/// the sentence "waited … for".
///
/// # Errors
/// When the time is over, or at once with the first error of `condition`.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    let limit = limit * slowness();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if begin.elapsed() >= limit {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_until_there_is_a_value() {
        let mut asked = 0;
        let value = until(Duration::from_secs(10), "the third time", || {
            asked += 1;
            Ok((asked == 3).then_some("here"))
        });
        assert_eq!(value.expect("in time"), "here");
    }

    #[test]
    fn gives_up_with_the_reason() {
        let never = until::<()>(Duration::ZERO, "rain", || Ok(None)).expect_err("no value");
        assert!(never.to_string().contains("for rain"));
        let broken = until::<()>(Duration::from_secs(10), "rain", || bail!("no sky"));
        assert_eq!(broken.expect_err("at once").to_string(), "no sky");
    }
}

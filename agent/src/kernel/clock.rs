//! The clocks that the kernel's programs use.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC_COARSE` in nanoseconds: what deny entries expire by.
pub fn coarse_now() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// `CLOCK_MONOTONIC` in nanoseconds: what events are stamped with.
pub fn monotonic_now() -> u64 {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// What to add to `CLOCK_MONOTONIC`, which events are stamped with, for nanoseconds since the
/// Unix epoch. Changes when the wall clock is set.
pub fn wall_clock_offset() -> u64 {
    nanos(ClockId::CLOCK_REALTIME).saturating_sub(monotonic_now())
}

fn nanos(clock: ClockId) -> u64 {
    // Linux has all three clocks since 2.6.32; reading them cannot fail.
    clock_gettime(clock)
        .map(|time| Duration::from(time).as_nanos().try_into().unwrap_or(u64::MAX))
        .unwrap_or(0)
}

//! The agent's two times: the pipeline's, which never jumps, and the wall clock's, for people.

use std::time::Duration;

use crate::kernel::{monotonic_now, wall_clock_offset};
use crate::time::Timestamp;

/// The pipeline's time begins as the wall clock and then goes with `CLOCK_MONOTONIC`, by which
/// the kernel expires blocks too. Setting the wall clock, by hours maybe, changes only what is
/// shown from then on: no window of a detector and no block gets longer or shorter by it.
pub(super) struct Clock {
    /// From `CLOCK_MONOTONIC` to the pipeline's time, in nanoseconds.
    offset: u64,
    /// From `CLOCK_MONOTONIC` to the wall clock as it is now, in nanoseconds.
    wall_offset: u64,
}

impl Clock {
    pub fn start() -> Self {
        let offset = wall_clock_offset();
        Self { offset, wall_offset: offset }
    }

    /// Follows the wall clock.
    pub fn refresh(&mut self) {
        self.wall_offset = wall_clock_offset();
    }

    pub fn now(&self) -> Timestamp {
        self.at(monotonic_now())
    }

    /// When the kernel stamped an event.
    pub fn at(&self, kernel_ns: u64) -> Timestamp {
        Timestamp::from_nanos(kernel_ns.saturating_add(self.offset))
    }

    /// The wall clock's time for one of the pipeline's.
    pub fn shown(&self, ts: Timestamp) -> Timestamp {
        match self.wall_offset.checked_sub(self.offset) {
            Some(ahead) => ts.saturating_add(Duration::from_nanos(ahead)),
            None => {
                let behind = self.offset.saturating_sub(self.wall_offset);
                Timestamp::from_nanos(ts.as_nanos().saturating_sub(behind))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn a_wall_clock_that_is_set_changes_only_what_is_shown() {
        for wall_offset in [98 * HOUR, 102 * HOUR] {
            let clock = Clock { offset: 100 * HOUR, wall_offset };
            assert_eq!(clock.at(HOUR).as_nanos(), 101 * HOUR);
            assert_eq!(clock.shown(clock.at(HOUR)).as_nanos(), wall_offset + HOUR);
        }
    }
}

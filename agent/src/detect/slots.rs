//! A sliding window over counts, in constant memory.
//!
//! The window is cut into `N` slots of `window / N`, and the sum of the newest `N` is what is
//! judged. These slots span at most `window` and more than `window × (N − 1) / N`, so the sum
//! never exceeds the true count of the last `window` — what is found is really there — and
//! never falls below the true count of the last `window × (N − 1) / N`.

use std::time::Duration;

use crate::time::Timestamp;

/// Slots per window: an error of at most 1/16 of the window, on the side of the client.
pub(super) const SLOTS: usize = 16;

/// Which slot a time belongs to, numbered from the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotClock {
    slot_ns: u64,
}

impl SlotClock {
    pub fn new(window: Duration) -> Self {
        let slot_ns = window.as_nanos() / SLOTS as u128;
        Self { slot_ns: u64::try_from(slot_ns).unwrap_or(u64::MAX).max(1) }
    }

    pub fn slot(self, at: Timestamp) -> u64 {
        at.as_nanos() / self.slot_ns
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slots<T> {
    /// Number of the newest slot.
    newest: u64,
    counts: [T; SLOTS],
}

impl<T: Copy + Default> Slots<T> {
    /// The counts of `slot`, after moving the window on if it is newer than any before; `None`
    /// if it has left the window.
    pub fn at(&mut self, slot: u64) -> Option<&mut T> {
        if slot > self.newest {
            let passed = (slot - self.newest).min(SLOTS as u64);
            for back in 0..passed {
                if let Some(count) = self.counts.get_mut(Self::place(slot - back)) {
                    *count = T::default();
                }
            }
            self.newest = slot;
        }
        if slot < self.oldest() { None } else { self.counts.get_mut(Self::place(slot)) }
    }

    /// Number of the oldest slot in the window.
    pub fn oldest(&self) -> u64 {
        self.newest.saturating_sub(SLOTS as u64 - 1)
    }

    pub fn counts(&self) -> impl Iterator<Item = T> {
        self.counts.iter().copied()
    }

    /// Forgets all counts.
    pub fn reset(&mut self) {
        self.counts = [T::default(); SLOTS];
    }

    fn place(slot: u64) -> usize {
        (slot % SLOTS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_leave_with_their_slot() {
        let mut slots = Slots::<u32>::default();
        *slots.at(100).unwrap() += 3;
        *slots.at(115).unwrap() += 4;
        assert_eq!(slots.counts().sum::<u32>(), 7);
        *slots.at(116).unwrap() += 1;
        assert_eq!(slots.counts().sum::<u32>(), 5);
        assert_eq!(slots.at(100), None, "what left the window does not come back");
        *slots.at(105).unwrap() += 2;
        assert_eq!(slots.counts().sum::<u32>(), 7, "what is late but within it counts");
        slots.at(1_000_000);
        assert_eq!(slots.counts().sum::<u32>(), 0);
    }

    proptest! {
        /// The bound that the module states, for times in order.
        #[test]
        fn the_sum_is_within_its_bound(
            window_ms in 16u64..5_000,
            gaps_ms in prop::collection::vec(0u64..700, 1..200),
        ) {
            let clock = SlotClock::new(Duration::from_millis(window_ms));
            let mut slots = Slots::<u32>::default();
            let mut times = Vec::new();
            let mut now = 1_700_000_000_000u64;
            for gap in gaps_ms {
                now += gap;
                times.push(now);
                let at = Timestamp::from_nanos(now * 1_000_000);
                *slots.at(clock.slot(at)).unwrap() += 1;
                let sum = slots.counts().sum::<u32>() as usize;
                let within = |span: u64| times.iter().filter(|t| now - **t < span).count();
                prop_assert!(sum <= within(window_ms));
                // Rounded down to whole milliseconds.
                prop_assert!(sum >= within(window_ms * 15 / 16));
            }
        }

        #[test]
        fn no_order_of_slots_panics(all in prop::collection::vec(any::<u64>(), 0..50)) {
            let mut slots = Slots::<u32>::default();
            for slot in all {
                if let Some(count) = slots.at(slot) {
                    *count += 1;
                }
            }
        }
    }
}

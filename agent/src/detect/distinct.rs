//! How many different values were seen in a window, without keeping the values.

/// Exact up to its limit; from there on it says the limit, and the newest values take the place
/// of the longest unseen. Holds 64-bit keyed hashes only: two values are taken for one with a
/// probability of 2⁻⁶⁴.
#[derive(Clone, Debug, Default)]
pub(super) struct Distinct {
    /// Hash and the slot it was last seen, or first counted, in.
    seen: Vec<(u64, u64)>,
}

impl Distinct {
    pub fn note(&mut self, hash: u64, slot: u64, limit: usize) {
        if let Some((_, last)) = self.seen.iter_mut().find(|(known, _)| *known == hash) {
            *last = slot.max(*last);
        } else if self.seen.len() < limit {
            self.seen.push((hash, slot));
        } else if let Some(oldest) = self.seen.iter_mut().min_by_key(|(_, last)| *last)
            && oldest.1 <= slot
        {
            *oldest = (hash, slot);
        }
    }

    /// Notes a value unless it has been noted in slot `oldest` or later; returns whether it has
    /// not. At the limit a new value takes the place of the one noted longest ago, so that more
    /// values than the limit are counted, and those forgotten are counted again.
    pub fn note_first(&mut self, hash: u64, slot: u64, oldest: u64, limit: usize) -> bool {
        if let Some((_, noted)) = self.seen.iter_mut().find(|(known, _)| *known == hash) {
            if *noted >= oldest {
                return false;
            }
            *noted = slot;
        } else if self.seen.len() < limit {
            self.seen.push((hash, slot));
        } else if let Some(longest_ago) = self.seen.iter_mut().min_by_key(|(_, noted)| *noted) {
            *longest_ago = (hash, slot);
        }
        true
    }

    /// Values seen in slot `oldest` or later.
    pub fn count(&self, oldest: u64) -> usize {
        self.seen.iter().filter(|(_, last)| *last >= oldest).count()
    }

    pub fn reset(&mut self) {
        self.seen = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_value_once_within_the_window() {
        let mut users = Distinct::default();
        for (hash, slot) in [(1, 10), (2, 10), (1, 12), (3, 13), (1, 11)] {
            users.note(hash, slot, 8);
        }
        assert_eq!(users.count(0), 3);
        assert_eq!(users.count(11), 2);
        assert_eq!(users.count(14), 0);
    }

    #[test]
    fn a_value_is_first_once_per_window() {
        let mut users = Distinct::default();
        // Value, slot, oldest slot of the window; first?
        for (hash, slot, oldest, first) in [
            (1, 10, 0, true),
            (1, 10, 0, false),
            (2, 12, 0, true),
            (1, 20, 5, false),
            (1, 26, 11, true),
            (1, 25, 10, false),
            (2, 27, 12, false),
        ] {
            assert_eq!(users.note_first(hash, slot, oldest, 8), first, "{hash} in {slot}");
        }
    }

    #[test]
    fn more_values_than_the_limit_are_first_too() {
        let mut users = Distinct::default();
        let first = (0..1_000).filter(|n| users.note_first(n % 100, n / 10, 0, 64)).count();
        assert_eq!((first, users.seen.len()), (1_000, 64));
        let mut users = Distinct::default();
        let first = (0..1_000).filter(|n| users.note_first(n % 64, n / 10, 0, 64)).count();
        assert_eq!(first, 64);
    }

    #[test]
    fn saturates_at_its_limit_and_stays_recent() {
        let mut users = Distinct::default();
        for n in 0..1_000 {
            users.note(n, n, 64);
        }
        assert_eq!(users.seen.len(), 64);
        assert_eq!(users.count(1_000 - 64), 64);
        users.note(u64::MAX, 1, 64);
        assert_eq!(users.count(1_000 - 64), 64, "a late value does not displace a newer one");
    }
}

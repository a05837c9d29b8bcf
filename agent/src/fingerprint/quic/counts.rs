//! Everything this stage counts, under stable names.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Datagrams looked at.
    Datagrams,
    /// Hellos handed on.
    Hellos,
    /// Initial packets that no known key opens, such as those of servers that this host asks.
    Undecryptable,
    /// Packets, frames or hellos that are none.
    Malformed,
    /// Packets with more of a hello than is put together.
    TooLong,
    /// Connections forgotten because there were too many, before their hello was whole.
    Evicted,
    /// Connections whose hello did not become whole in time.
    Incomplete,
}

impl Counter {
    pub const ALL: [Self; 7] = [
        Self::Datagrams,
        Self::Hellos,
        Self::Undecryptable,
        Self::Malformed,
        Self::TooLong,
        Self::Evicted,
        Self::Incomplete,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Datagrams => "quic_datagrams",
            Self::Hellos => "quic_hellos",
            Self::Undecryptable => "quic_undecryptable",
            Self::Malformed => "quic_malformed",
            Self::TooLong => "quic_too_long",
            Self::Evicted => "quic_evicted",
            Self::Incomplete => "quic_incomplete",
        }
    }
}

/// Counters since the start. They only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    values: [u64; Counter::ALL.len()],
}

impl Counts {
    pub(super) fn add(&mut self, counter: Counter, n: u64) {
        if let Some(value) = self.values.get_mut(counter as usize) {
            *value = value.saturating_add(n);
        }
    }

    pub(super) fn one(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.values.get(counter as usize).copied().unwrap_or_default()
    }

    /// Every counter with its name, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|counter| counter.name()).zip(self.values)
    }
}

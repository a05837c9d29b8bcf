//! Answers to dropped packets, where the configuration asks for them.

/// What became of a packet that could be answered: an index into the counters of answers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// With a TCP reset.
    Reset = 0,
    /// With an ICMP error.
    Unreachable = 1,
    /// Not, because there were too many.
    Limited = 2,
    /// Not, because no answer is due to such a packet, or none could be made of it.
    Silent = 3,
}

impl Answered {
    pub const COUNT: u32 = 4;

    pub const ALL: [Self; Self::COUNT as usize] =
        [Self::Reset, Self::Unreachable, Self::Limited, Self::Silent];

    /// The name under which metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Limited => "limited",
            Self::Silent => "silent",
        }
    }
}

//! Rules and limits between the form that the agent thinks in and the kernel's.

use std::time::Duration;

use portcullis_common::policy::{
    COST_SHIFT, Limit, NEVER_EXPIRES, Rule, action, flag, origin, unit,
};

use super::clock::coarse_now;
use crate::decision::Origin;
use crate::enforce::{Each, Effect, NewBlock, Rate, Unit};

const SECOND_NS: u64 = 1_000_000_000;

/// The rule of `block`, which nothing leads to and which leads to nothing.
pub(super) fn written(block: &NewBlock, scopes: u64) -> Rule {
    Rule {
        expires_ns: block.ttl.map_or(NEVER_EXPIRES, expiry_after),
        id: block.rule_id,
        scopes,
        action: match block.effect {
            Effect::Drop => action::DROP,
            Effect::Count => action::COUNT,
            Effect::Limit(_) => action::LIMIT,
            Effect::Steer => action::STEER,
        },
        flags: if block.count_only { flag::OBSERVE } else { 0 },
        origin: block.origin.to_kernel(),
        ..Rule::default()
    }
}

pub(super) fn effect_of(rule: &Rule, limit: Option<&Limit>) -> Effect {
    match (rule.action, limit) {
        (action::LIMIT, Some(limit)) => Effect::Limit(rate_of(limit)),
        (action::STEER, _) => Effect::Steer,
        (action::COUNT, _) => Effect::Count,
        _ => Effect::Drop,
    }
}

/// The limit of an effect that has one.
pub(super) fn limit_of(effect: Effect) -> Option<Limit> {
    let Effect::Limit(rate) = effect else { return None };
    let cost = cost_of(rate.per_s);
    let burst = rate.burst.max(1) - 1;
    Some(Limit {
        cost,
        tolerance_ns: ((u128::from(cost) * u128::from(burst)) >> COST_SHIFT)
            .try_into()
            .unwrap_or(u64::MAX >> 1),
        unit: match rate.unit {
            Unit::Packets => unit::PACKETS,
            Unit::Bytes => unit::BYTES,
            Unit::Connections => unit::CONNECTIONS,
        },
        client_prefix: match rate.each {
            Each::Target => 0,
            Each::Client { v4, v6 } => (u32::from(v4) + 1) | ((u32::from(v6) + 1) << 8),
        },
        ..Limit::default()
    })
}

fn cost_of(per_s: u64) -> u64 {
    (SECOND_NS << COST_SHIFT).div_ceil(per_s.max(1))
}

fn rate_of(limit: &Limit) -> Rate {
    let cost = limit.cost.max(1);
    Rate {
        unit: match limit.unit {
            unit::BYTES => Unit::Bytes,
            unit::CONNECTIONS => Unit::Connections,
            _ => Unit::Packets,
        },
        per_s: ((SECOND_NS << COST_SHIFT) + cost / 2) / cost,
        burst: ((u128::from(limit.tolerance_ns) << COST_SHIFT).div_ceil(u128::from(cost)) + 1)
            .try_into()
            .unwrap_or(u64::MAX),
        each: match limit.client_prefix {
            0 => Each::Target,
            // Each is one more than the length, which is at most 128.
            both => Each::Client {
                v4: ((both & 0xff) as u8).saturating_sub(1),
                v6: ((both >> 8 & 0xff) as u8).saturating_sub(1),
            },
        },
    }
}

pub(super) fn expiry_after(ttl: Duration) -> u64 {
    let ttl = u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX);
    // One below "never", which an absurd TTL must not become.
    coarse_now().saturating_add(ttl).min(NEVER_EXPIRES - 1)
}

impl Origin {
    pub(super) fn to_kernel(self) -> u32 {
        match self {
            Self::Automatic => origin::AUTOMATIC,
            Self::Operator => origin::OPERATOR,
            Self::Configured => origin::CONFIGURED,
        }
    }

    /// What no version has written is taken for an operator's: those are never thrown away.
    pub(super) fn from_kernel(value: u32) -> Self {
        match value {
            origin::AUTOMATIC => Self::Automatic,
            origin::CONFIGURED => Self::Configured,
            _ => Self::Operator,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_back_as_they_went() {
        for per_s in [1, 3, 10, 999, 1_000, 700_000, 1_000_000, 1_250_000_000] {
            for burst in [1, 2, 100, 1_000_000] {
                for (unit, each) in [
                    (Unit::Packets, Each::Target),
                    (Unit::Bytes, Each::Client { v4: 32, v6: 64 }),
                    (Unit::Connections, Each::Client { v4: 0, v6: 128 }),
                ] {
                    let rate = Rate { unit, per_s, burst, each };
                    let limit = limit_of(Effect::Limit(rate)).unwrap();
                    let back = rate_of(&limit);
                    assert!(back.per_s.abs_diff(per_s) <= per_s / 1_000, "{rate:?} {back:?}");
                    assert!(back.burst.abs_diff(burst) <= 1 + burst / 1_000, "{rate:?} {back:?}");
                    assert_eq!((back.unit, back.each), (unit, each));
                }
            }
        }
    }
}

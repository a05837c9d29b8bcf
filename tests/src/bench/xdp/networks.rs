//! Random networks, spread over lengths as public block lists are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fastrand::Rng;
use ipnet::IpNet;
use portcullis::decision::Origin;
use portcullis::enforce::{Effect, List, NewBlock};

use crate::packet::harness::BLOCK;

/// First byte of a random IPv4 address: 1 to 222. [`super::driver`] makes its sources the same way.
pub const FIRST_BYTES: u64 = 222;
/// First 16 bits of a random IPv6 address: these, and any of those in the mask. 128 networks of 16
/// bits, about as dense as the ones that the registries hand out of.
pub const V6_BEGIN: u16 = 0x2000;
pub const V6_RANDOM: u16 = 0x0e0f;

/// Of a million networks, how many are of which length; the rest are single addresses.
const V4_LENGTHS: [(u8, u32); 16] = [
    (16, 100),
    (17, 200),
    (18, 400),
    (19, 800),
    (20, 1_600),
    (21, 3_200),
    (22, 6_400),
    (23, 12_800),
    (24, 250_000),
    (25, 5_000),
    (26, 5_000),
    (27, 10_000),
    (28, 10_000),
    (29, 20_000),
    (30, 10_000),
    (31, 5_000),
];
const V6_COMMON: [(u8, u32); 6] =
    [(29, 5_000), (32, 80_000), (44, 40_000), (48, 300_000), (56, 75_000), (64, 250_000)];
/// Every length from /29 to /64 has so many besides.
const V6_OTHERS: u32 = 2_000;

pub fn v4_address(random: &mut Rng) -> Ipv4Addr {
    let [first, others @ ..] = random.u32(..).to_be_bytes();
    let first = ((u64::from(first) * FIRST_BYTES) >> 8) as u8 + 1;
    Ipv4Addr::from([first, others[0], others[1], others[2]])
}

pub fn v6_address(random: &mut Rng) -> Ipv6Addr {
    let begin = random.u16(..) & V6_RANDOM | V6_BEGIN;
    Ipv6Addr::from(u128::from(begin) << 112 | random.u128(..) >> 16)
}

/// A million networks of IPv4 alone, or of IPv6 alone.
pub fn mixed(is_v4: bool, random: &mut Rng) -> Vec<IpNet> {
    const ALL: u32 = 1_000_000;
    let mut lengths: Vec<(u8, u32)> = if is_v4 {
        V4_LENGTHS.to_vec()
    } else {
        V6_COMMON.into_iter().chain((29..=64).map(|len| (len, V6_OTHERS))).collect()
    };
    let counted: u32 = lengths.iter().map(|(_, count)| count).sum();
    lengths.push((if is_v4 { 32 } else { 128 }, ALL - counted));
    let mut networks = Vec::with_capacity(ALL as usize);
    for (len, count) in lengths {
        networks.extend((0..count).map(|_| network(address(is_v4, random), len)));
    }
    networks
}

/// Single IPv4 addresses.
pub fn addresses(count: u32, random: &mut Rng) -> Vec<IpNet> {
    (0..count).map(|_| IpNet::from(IpAddr::V4(v4_address(random)))).collect()
}

/// Half of them of IPv4, half of IPv6, and no single address among them.
pub fn cidrs(count: usize, random: &mut Rng) -> Vec<IpNet> {
    let mut networks = Vec::with_capacity(count);
    for is_v4 in [true, false] {
        let mut some = mixed(is_v4, random);
        some.retain(|net| net.prefix_len() < net.max_prefix_len());
        random.shuffle(&mut some);
        networks.extend(some.into_iter().take(count / 2));
    }
    networks
}

pub fn list(name: &str, rule_id: u64, networks: Vec<IpNet>) -> List {
    let rule = NewBlock { rule_id, origin: Origin::Configured, effect: Effect::Drop, ..BLOCK };
    List { name: Arc::from(name), rule, networks }
}

fn address(is_v4: bool, random: &mut Rng) -> IpAddr {
    if is_v4 { v4_address(random).into() } else { v6_address(random).into() }
}

fn network(address: IpAddr, len: u8) -> IpNet {
    IpNet::new(address, len).expect("a length of its family").trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_of_either_family_has_every_length() {
        for (is_v4, lengths) in [(true, 17), (false, 37)] {
            let networks = mixed(is_v4, &mut Rng::with_seed(1));
            assert_eq!(networks.len(), 1_000_000);
            let mut seen: Vec<u8> = networks.iter().map(IpNet::prefix_len).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), lengths, "{seen:?}");
        }
    }

    #[test]
    fn random_addresses_are_unicast() {
        let mut random = Rng::with_seed(2);
        for _ in 0..10_000 {
            let first = v4_address(&mut random).octets()[0];
            assert!((1..=222).contains(&first), "{first}");
            let begin = v6_address(&mut random).segments()[0];
            assert_eq!(begin & !V6_RANDOM, V6_BEGIN);
        }
    }
}

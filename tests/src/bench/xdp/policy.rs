//! A policy with something of everything in it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net};
use portcullis::enforce::{
    Each, Effect, Flow, NewBlock, PolicyMaps as _, Rate, Scope, Target, Unit,
};
use portcullis_common::policy::Reason;

use super::networks::{addresses, cidrs, list};
use crate::packet::frame::Frame;
use crate::packet::harness::{BLOCK, Hook, Kernel};

/// A rule of its own, which expires, denies it.
pub const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// Nothing names it, but its /24 has a rule.
pub const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// Nothing names it, nor anything in its /24.
pub const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));

const DENIES: u32 = 1_000_000;
const CIDRS: usize = 100_000;
const JA4: &str = "t13d1516h2_8daaf6152771_02713d6af862";
const SERVICE: &str = "shop";

/// A million denied addresses and 100,000 networks from lists, an allow list, failsafe ports, and rules of
/// an address, a network, a service, a limit, a fingerprint and a flow.
pub fn everything() -> Result<Kernel> {
    let mut kernel = Kernel::with(|config| {
        config.kernel.max_blocks = portcullis_common::names::capacity::BLOCKS;
    })?;
    let policy = &mut kernel.loaded.policy;
    policy.set_failsafe(&[22], &[68, 546])?;
    policy.set_allowed(&["192.0.2.0/24".parse()?, "2001:db8:ffff::/48".parse()?])?;
    policy.set_scopes(&[Scope {
        service: SERVICE.into(),
        ports: vec![443],
        addresses: vec!["198.18.0.1".parse()?],
    }])?;
    let mut random = Rng::with_seed(1);
    let (mut denies, mut networks) = (addresses(DENIES, &mut random), cidrs(CIDRS, &mut random));
    for some in [&mut denies, &mut networks] {
        some.retain(|net| !is_near(net));
    }
    policy.set_lists(&[list("denies", 1, denies), list("networks", 2, networks)])?;
    for (target, block) in rules()? {
        policy.block(target, block)?;
    }
    policy.learn(0x7063_7063_7063_7063, JA4)?;
    for (source, expected) in [
        (OTHER, Reason::PassNoMatch),
        (NEIGHBOUR, Reason::PassNoMatch),
        (DENIED, Reason::DropDenied),
    ] {
        let (_, reason) = kernel.judge(Hook::Xdp, &Frame::from(source).bytes())?;
        ensure!(reason == expected, "{source} is judged {reason:?}");
    }
    Ok(kernel)
}

fn rules() -> Result<Vec<(Target, NewBlock)>> {
    let net = |text: &str| -> Result<Target> { Ok(Target::Network(text.parse()?)) };
    let limit = Rate { unit: Unit::Packets, per_s: 100, burst: 100, each: Each::Target };
    let flow = Flow {
        client: "203.0.114.1:40000".parse()?,
        server: "198.18.0.1:443".parse()?,
        is_udp: false,
    };
    let ttl = Some(Duration::from_secs(24 * 3600));
    Ok(vec![
        (Target::from(IpNet::from(DENIED)), NewBlock { ttl, ..BLOCK }),
        (net("203.0.115.0/26")?, BLOCK),
        (net("203.0.116.0/24")?, NewBlock { service: Some(SERVICE.into()), ..BLOCK }),
        (net("203.0.117.0/24")?, NewBlock { effect: Effect::Limit(limit), ..BLOCK }),
        (Target::Fingerprint(JA4.into()), BLOCK),
        (Target::Flow(flow), BLOCK),
    ])
}

/// Whether the network touches a /24 of the addresses that are measured.
fn is_near(net: &IpNet) -> bool {
    let IpNet::V4(net) = net else { return false };
    [DENIED, OTHER].into_iter().any(|address| match address {
        IpAddr::V4(address) => {
            let around = Ipv4Net::new_assert(address, 24);
            net.contains(&address) || around.contains(&net.network())
        }
        IpAddr::V6(_) => false,
    })
}

//! Tunnels: the packet inside is judged beside the one that carries it, one level deep.

use anyhow::{Context as _, Result};
use portcullis::enforce::PolicyMaps as _;
use portcullis_common::policy::Reason;
use portcullis_tests::packet::extension::Extension;
use portcullis_tests::packet::frame::{Fragment, Frame, Tunnel, ethertype};
use portcullis_tests::packet::harness::{Hook, Input, Kernel, Verdict};

const BLOCKED: [&str; 2] = ["203.0.113.9", "2001:db8:1:2::9"];
const OTHERS: [&str; 2] = ["203.0.113.10", "2001:db8:1:3::9"];
const PORT: u16 = 443;

const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Tc, Hook::TcL3];

fn kernel(tunnels: bool) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    for source in BLOCKED {
        kernel.block(source)?;
    }
    kernel.loaded.policy.set_tunnels(tunnels)?;
    Ok(kernel)
}

fn from(source: &str) -> Frame {
    Frame::from(source.parse().expect("an address")).tcp(PORT)
}

/// IP in IP, and GRE with every choice of options.
fn tunnels() -> Vec<Tunnel> {
    let gre = (0..8).map(|options: u8| Tunnel::Gre {
        checksum: options & 1 != 0,
        key: options & 2 != 0,
        sequence: options & 4 != 0,
    });
    std::iter::once(Tunnel::Ip).chain(gre).collect()
}

/// Every pair of outer and inner family in every tunnel; `check` gets the frame's name too.
fn for_every_tunnel(
    outer: [&str; 2],
    inner: [&str; 2],
    mut check: impl FnMut(&str, &Frame) -> Result<()>,
) -> Result<()> {
    for tunnel in tunnels() {
        for outer in outer {
            for inner in inner {
                let name = format!("{inner} in {outer} by {tunnel:?}");
                check(&name, &from(outer).carries(tunnel, &from(inner))).context(name)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_blocked_source_in_a_tunnel_is_dropped_when_configured() -> Result<()> {
    let (on, off) = (kernel(true)?, kernel(false)?);
    for_every_tunnel(OTHERS, BLOCKED, |name, frame| {
        for hook in HOOKS {
            let judged = on.judge(hook, &frame.bytes())?;
            assert_eq!(judged, (Verdict::Drop, Reason::DropDenied), "{hook:?} {name}");
            let judged = off.judge(hook, &frame.bytes())?;
            assert_eq!(judged, (Verdict::Pass, Reason::PassNoMatch), "{hook:?} {name}");
        }
        Ok(())
    })?;
    assert!(BLOCKED.iter().all(|source| on.entry(source).is_ok_and(|entry| entry.packets == 54)));
    Ok(())
}

#[test]
fn a_blocked_tunnel_is_dropped_whatever_is_in_it() -> Result<()> {
    let (on, off) = (kernel(true)?, kernel(false)?);
    for_every_tunnel(BLOCKED, OTHERS, |name, frame| {
        for hook in HOOKS {
            for kernel in [&on, &off] {
                let judged = kernel.judge(hook, &frame.bytes())?;
                assert_eq!(judged, (Verdict::Drop, Reason::DropDenied), "{hook:?} {name}");
            }
        }
        Ok(())
    })
}

#[test]
fn neither_blocked_passes() -> Result<()> {
    let kernel = kernel(true)?;
    for_every_tunnel(OTHERS, OTHERS, |name, frame| {
        for hook in HOOKS {
            let judged = kernel.judge(hook, &frame.bytes())?;
            assert_eq!(judged, (Verdict::Pass, Reason::PassNoMatch), "{hook:?} {name}");
        }
        Ok(())
    })
}

/// Allowing the tunnel's end does not allow everybody behind it, and a failsafe port is reached
/// through a tunnel as well.
#[test]
fn each_is_judged_by_the_whole_policy() -> Result<()> {
    let mut kernel = kernel(true)?;
    let [outer, _] = OTHERS;
    let frame = from(outer).carries(Tunnel::Ip, &from(BLOCKED[0]));
    kernel.block(outer)?;
    kernel.allow(&[outer])?;
    assert_eq!(kernel.judge(Hook::Xdp, &frame.bytes())?.1, Reason::DropDenied);
    kernel.allow(&[outer, BLOCKED[0]])?;
    assert_eq!(kernel.judge(Hook::Xdp, &frame.bytes())?.1, Reason::PassAllowed);
    kernel.allow(&[outer])?;
    kernel.loaded.policy.set_failsafe(&[PORT], &[])?;
    kernel.loaded.policy.set_tunnels(true)?;
    assert_eq!(kernel.judge(Hook::Xdp, &frame.bytes())?.1, Reason::PassAllowed);
    let frame = from(OTHERS[1]).carries(Tunnel::Ip, &from(BLOCKED[0]));
    assert_eq!(kernel.judge(Hook::Xdp, &frame.bytes())?.1, Reason::PassFailsafe);
    Ok(())
}

#[test]
fn headers_around_the_tunnel_hide_nothing() -> Result<()> {
    let kernel = kernel(true)?;
    let long = Extension::Padded { protocol: 60, units: 30 };
    let [v4, v6] = OTHERS.map(from);
    let outers = [
        v4.clone().options(10),
        v4.clone().fragment(Fragment::FIRST),
        v4.tags(&[ethertype::DOT1AD, ethertype::DOT1Q]),
        v6.clone().extensions(&[Extension::HopByHop, long, Extension::Routing]),
        v6.fragment(Fragment::FIRST),
    ];
    for outer in outers {
        for inner in BLOCKED.map(from) {
            for tunnel in tunnels() {
                let frame = outer.clone().carries(tunnel, &inner);
                let bytes = frame.bytes();
                for linear in [None, Some(20), Some(60), Some(bytes.len() - 1)] {
                    let input = Input { linear, ..(&bytes).into() };
                    let (_, reason) = kernel.judge(Hook::Xdp, input)?;
                    assert_eq!(reason, Reason::DropDenied, "{frame:?}, {linear:?} in place");
                }
                assert_eq!(kernel.judge(Hook::Tc, &bytes)?.1, Reason::DropDenied, "{frame:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_no_known_tunnel_is_left_alone() -> Result<()> {
    let kernel = kernel(true)?;
    let inner = from(BLOCKED[0]);
    let gre = Tunnel::Gre { checksum: false, key: false, sequence: false };
    let frame = from(OTHERS[0]).carries(gre, &inner);
    let gre_at = frame.network_at() + 20;
    // Routing of RFC 1701, version 1 (PPTP), Ethernet inside.
    for (at, value) in [(0, 0x40), (1, 0x01), (2, 0x65)] {
        let mut bytes = frame.bytes();
        bytes[gre_at + at] = value;
        assert_eq!(kernel.judge(Hook::Xdp, &bytes)?.1, Reason::PassNoMatch, "{at}");
    }
    // Later fragments have no beginning of a packet in them.
    let later = from(OTHERS[0]).carries(Tunnel::Ip, &inner).fragment(Fragment::LAST);
    assert_eq!(kernel.judge(Hook::Xdp, &later.bytes())?.1, Reason::PassNoMatch);
    // One level, not two.
    let nested = from(OTHERS[1]).carries(Tunnel::Ip, &inner);
    let nested = from(OTHERS[0]).carries(gre, &nested);
    assert_eq!(kernel.judge(Hook::Xdp, &nested.bytes())?.1, Reason::PassNoMatch);
    // A packet that ends before its source has none.
    let bytes = from(OTHERS[0]).carries(Tunnel::Ip, &inner).bytes();
    let source_end = gre_at + 16;
    assert_eq!(kernel.judge(Hook::Xdp, &bytes[..source_end])?.1, Reason::DropDenied);
    assert_eq!(kernel.judge(Hook::Xdp, &bytes[..source_end - 1])?.1, Reason::PassNoMatch);
    Ok(())
}

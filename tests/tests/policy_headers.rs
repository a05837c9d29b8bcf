//! The header walk of both programs: no arrangement of headers hides a blocked source.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use portcullis::enforce::PolicyMaps as _;
use portcullis_common::policy::Reason;
use portcullis_common::settings::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS};
use portcullis_tests::packet::extension::Extension;
use portcullis_tests::packet::frame::{Fragment, Frame, Transport, arp, ethertype, protocol};
use portcullis_tests::packet::harness::{Hook, Input, Kernel, Verdict};

const BLOCKED: [&str; 2] = ["203.0.113.9", "2001:db8:1:2::9"];
const OTHERS: [&str; 2] = ["203.0.113.10", "2001:db8:1:3::9"];
const PORT: u16 = 443;

const TRANSPORTS: [Transport; 5] = [
    Transport::Tcp { source: 40_000, destination: PORT },
    Transport::Udp { source: 40_000, destination: PORT },
    Transport::Icmp,
    Transport::Esp,
    Transport::None,
];

/// Packets from one of `sources`, in every arrangement of network headers; whether the
/// transport header can be found in it.
fn packets([v4, v6]: [&str; 2]) -> Vec<(String, Frame, bool)> {
    let v4 = Frame::from(v4.parse().unwrap());
    let v6 = Frame::from(v6.parse().unwrap());
    let mut packets = vec![
        ("IPv4".to_owned(), v4.clone(), true),
        ("IPv4, do not fragment".to_owned(), v4.clone().dont_fragment(), true),
        ("IPv4, 1 word of options".to_owned(), v4.clone().options(1), true),
        ("IPv4, 10 words of options".to_owned(), v4.clone().options(10), true),
        ("IPv6".to_owned(), v6.clone(), true),
    ];
    for fragment in [Fragment::FIRST, Fragment::MIDDLE, Fragment::LAST] {
        let found = fragment.offset == 0;
        let extended = v6.clone().extensions(&[Extension::HopByHop, Extension::Routing]);
        for (name, frame) in [
            ("IPv4", v4.clone()),
            ("IPv4 with options", v4.clone().options(4)),
            ("IPv6", v6.clone()),
            ("IPv6 with extensions", extended),
        ] {
            packets.push((format!("{name}, {fragment:?}"), frame.fragment(fragment), found));
        }
    }
    let atomic = Extension::Fragment(Fragment { offset: 0, more: false });
    packets.push(("IPv6, atomic fragment".to_owned(), v6.clone().extensions(&[atomic]), true));
    for (name, extension) in Extension::KINDS {
        packets.push((format!("IPv6, {name}"), v6.clone().extensions(&[extension]), true));
    }
    packets.extend(chains(&v6));
    packets
}

fn chains(v6: &Frame) -> Vec<(String, Frame, bool)> {
    let long = Extension::Padded { protocol: protocol::DESTINATION, units: 30 };
    let usual = [
        Extension::HopByHop,
        Extension::Destination,
        Extension::Routing,
        Extension::Fragment(Fragment::FIRST),
        Extension::Authentication { icv_words: 4 },
        long,
    ];
    let kinds = Extension::KINDS.map(|(_, extension)| extension);
    let most = [Extension::Destination; MAX_EXTENSION_HEADERS];
    let too_many = [Extension::Destination; MAX_EXTENSION_HEADERS + 1];
    vec![
        ("IPv6, the usual chain".to_owned(), v6.clone().extensions(&usual), true),
        ("IPv6, one of each kind".to_owned(), v6.clone().extensions(&kinds), true),
        ("IPv6, most extensions".to_owned(), v6.clone().extensions(&most), true),
        ("IPv6, too many extensions".to_owned(), v6.clone().extensions(&too_many), false),
    ]
}

/// 0 to 4 tags: of each kind alone, and mixed.
fn tag_stacks() -> Vec<Vec<u16>> {
    let mut stacks = vec![Vec::new()];
    for count in 1..=MAX_VLAN_TAGS {
        stacks.extend(ethertype::TAGS.map(|tag| vec![tag; count]));
        stacks.push(ethertype::TAGS.iter().rev().cycle().take(count).copied().collect());
    }
    stacks
}

/// Calls `check` with every combination of tags, network headers and transport, from one of
/// `sources`.
fn for_every_frame(
    sources: [&str; 2],
    mut check: impl FnMut(&Frame, bool) -> Result<()>,
) -> Result<()> {
    for tags in tag_stacks() {
        for (name, frame, found) in packets(sources) {
            for transport in TRANSPORTS {
                let frame = frame.clone().tags(&tags).transport(transport);
                check(&frame, found)
                    .with_context(|| format!("{name}, tags {tags:x?}, {transport:?}"))?;
            }
        }
    }
    Ok(())
}

fn kernel_with_blocks() -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    for source in BLOCKED {
        kernel.block(source)?;
    }
    Ok(kernel)
}

#[test]
fn a_blocked_source_is_dropped_behind_any_headers() -> Result<()> {
    let kernel = kernel_with_blocks()?;
    let mut sums = BLOCKED.map(|source| (source, 0_u64, 0_u64));
    for_every_frame(BLOCKED, |frame, _| {
        for hook in Hook::ALL {
            let bytes = frame.bytes();
            assert_eq!(
                kernel.judge(hook, &bytes)?,
                (Verdict::Drop, Reason::DropDenied),
                "{hook:?} {frame:?}"
            );
            let (_, packets, total) = &mut sums[usize::from(frame.source.is_ipv6())];
            *packets += 1;
            *total += bytes.len() as u64;
        }
        Ok(())
    })?;
    for (source, packets, bytes) in sums {
        let entry = kernel.entry(source)?;
        assert!(packets > 1_000, "only {packets} frames from {source} were tried");
        assert_eq!((entry.packets, entry.bytes), (packets, bytes), "{source}");
    }
    Ok(())
}

#[test]
fn another_source_passes_behind_any_headers() -> Result<()> {
    let kernel = kernel_with_blocks()?;
    for_every_frame(OTHERS, |frame, _| {
        for hook in Hook::ALL {
            let (verdict, reason) = kernel.judge(hook, &frame.bytes())?;
            assert_eq!((verdict, reason), (Verdict::Pass, Reason::PassNoMatch), "{hook:?}");
        }
        Ok(())
    })?;
    for source in BLOCKED {
        assert_eq!(kernel.entry(source)?.packets, 0, "{source}");
    }
    Ok(())
}

#[test]
fn the_port_is_found_behind_any_headers_and_not_in_later_fragments() -> Result<()> {
    let mut kernel = kernel_with_blocks()?;
    kernel.loaded.policy.set_failsafe(&[PORT], &[PORT])?;
    for_every_frame(BLOCKED, |frame, found| {
        let has_port = matches!(frame.transport, Transport::Tcp { .. } | Transport::Udp { .. });
        let expected = if found && has_port { Reason::PassFailsafe } else { Reason::DropDenied };
        for hook in Hook::ALL {
            assert_eq!(kernel.judge(hook, &frame.bytes())?.1, expected, "{hook:?} {frame:?}");
        }
        Ok(())
    })
}

#[test]
fn more_tags_than_the_walk_follows_pass_under_a_name() -> Result<()> {
    let kernel = kernel_with_blocks()?;
    for tag in ethertype::TAGS {
        for source in BLOCKED {
            let frame = Frame::from(source.parse()?).tags(&[tag; MAX_VLAN_TAGS + 1]);
            for hook in Hook::ALL {
                let judged = kernel.judge(hook, &frame.bytes())?;
                assert_eq!(judged, (Verdict::Pass, Reason::PassTooManyTags), "{hook:?} {tag:x}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_ip_passes_under_a_name() -> Result<()> {
    let kernel = kernel_with_blocks()?;
    for tags in tag_stacks() {
        for hook in Hook::ALL {
            let judged = kernel.judge(hook, &arp(&tags))?;
            assert_eq!(judged, (Verdict::Pass, Reason::PassNotIp), "{hook:?} {tags:x?}");
        }
    }
    Ok(())
}

/// The kernel itself refuses an untagged IP frame without a whole IP header on its way to a TC
/// test run.
fn can_run(hook: Hook, frame: &Frame, len: usize) -> bool {
    let header = if frame.source.is_ipv4() { 20 } else { 40 };
    hook == Hook::Xdp || !frame.tags.is_empty() || len >= frame.network_at() + header
}

#[test]
fn a_truncated_frame_is_dropped_as_soon_as_its_source_is_inside() -> Result<()> {
    let kernel = kernel_with_blocks()?;
    let stacks = [vec![], vec![ethertype::DOT1Q], vec![ethertype::DOT1AD; MAX_VLAN_TAGS]];
    for tags in stacks {
        for (name, frame, _) in packets(BLOCKED) {
            let frame = frame.tags(&tags);
            let bytes = frame.bytes();
            for len in 14..=bytes.len() {
                let expected = if len >= frame.source_end() {
                    (Verdict::Drop, Reason::DropDenied)
                } else {
                    (Verdict::Pass, Reason::PassTruncated)
                };
                for hook in Hook::ALL.into_iter().filter(|&hook| can_run(hook, &frame, len)) {
                    let judged = kernel
                        .judge(hook, &bytes[..len])
                        .with_context(|| format!("{name}, {len} bytes at {hook:?}"))?;
                    assert_eq!(judged, expected, "{name}, tags {tags:x?}, {len} bytes, {hook:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn headers_are_found_across_the_buffers_of_a_frame() -> Result<()> {
    let mut kernel = kernel_with_blocks()?;
    kernel.loaded.policy.set_failsafe(&[PORT], &[])?;
    for (name, frame, found) in packets(BLOCKED) {
        let frame = frame.tags(&[ethertype::DOT1AD, ethertype::DOT1Q]);
        for (transport, expected) in [
            (TRANSPORTS[0], if found { Reason::PassFailsafe } else { Reason::DropDenied }),
            (TRANSPORTS[1], Reason::DropDenied),
        ] {
            let bytes = frame.clone().transport(transport).bytes();
            for linear in 0..bytes.len() {
                let input = Input { linear: Some(linear), ..(&bytes).into() };
                let (_, reason) = kernel.judge(Hook::Xdp, input)?;
                assert_eq!(reason, expected, "{name}, first {linear} bytes in place");
            }
        }
    }
    Ok(())
}

#[test]
fn a_frame_of_many_pages_is_judged_and_counted_whole() -> Result<()> {
    let mut kernel = kernel_with_blocks()?;
    kernel.loaded.policy.set_failsafe(&[PORT], &[])?;
    let longest = Extension::Padded { protocol: protocol::DESTINATION, units: 255 };
    let source: IpAddr = BLOCKED[1].parse()?;
    let frame = Frame::from(source).extensions(&[longest; 7]).payload(vec![0; 20_000]);
    let (_, reason) = kernel.judge(Hook::Xdp, &frame.clone().tcp(PORT).bytes())?;
    assert_eq!(reason, Reason::PassFailsafe, "the port lies 14 KiB into the frame");

    let bytes = frame.tcp(PORT + 1).bytes();
    let (_, reason) = kernel.judge(Hook::Xdp, &bytes)?;
    assert_eq!(reason, Reason::DropDenied);
    assert_eq!(kernel.entry(BLOCKED[1])?.bytes, bytes.len() as u64);
    Ok(())
}

//! The programs and the plain reference of the policy, side by side on frames made at random.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis::enforce::{NewBlock, PolicyMaps as _};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::ethertype;
use portcullis_tests::packet::harness::{BLOCK, Hook, Input, Kernel, Verdict, net};
use portcullis_tests::packet::random::Frames;
use portcullis_tests::packet::reference::{Policy, Rule};

const FRAMES: u32 = 200_000;

const DENIED: [(&str, Rule); 14] = [
    ("203.0.113.1", Rule::Drop),
    ("203.0.113.2", Rule::CountOnly),
    ("203.0.113.3", Rule::Expired),
    ("198.51.100.7", Rule::Drop),
    ("198.51.100.8", Rule::CountOnly),
    ("2001:db8:0:1::1", Rule::Drop),
    ("2001:db8:0:2::2", Rule::CountOnly),
    ("2001:db8:0:3::3", Rule::Expired),
    // Within networks that are denied too, in every pairing of different rules.
    ("2001:db8:0:4::/64", Rule::Drop),
    ("2001:db8:0:4::2", Rule::CountOnly),
    ("2001:db8:0:5::/64", Rule::CountOnly),
    ("2001:db8:0:5::3", Rule::Expired),
    ("2001:db8:0:6::/64", Rule::Expired),
    ("2001:db8:0:6::2", Rule::CountOnly),
];
const ALLOWED: [&str; 4] =
    ["198.51.100.0/29", "198.51.100.8", "2001:db8:0:7::/64", "2001:db8:0:4::5"];
/// Sources beside the denied addresses themselves.
const MORE_SOURCES: [&str; 9] = [
    "203.0.113.4",
    "::ffff:203.0.113.1",
    "::ffff:198.51.100.7",
    "2001:db8:0:4::1",
    "2001:db8:0:4::5",
    "2001:db8:0:5::1",
    "2001:db8:0:6::1",
    "2001:db8:0:7::1",
    "::",
];
const FAILSAFE_TCP: [u16; 3] = [22, 443, 65_535];
const FAILSAFE_UDP: [u16; 2] = [53, 68];

fn policy() -> Policy {
    Policy {
        denied: DENIED.iter().map(|&(target, rule)| (net(target), rule)).collect(),
        allowed: ALLOWED.iter().map(|text| net(text)).collect(),
        failsafe_tcp: FAILSAFE_TCP.into(),
        failsafe_udp: FAILSAFE_UDP.into(),
    }
}

fn kernel_with(policy: &Policy) -> Result<Kernel> {
    let mut kernel = Kernel::new()?;
    let maps = &mut kernel.loaded.policy;
    for &(target, rule) in &policy.denied {
        let ttl = (rule == Rule::Expired).then_some(Duration::ZERO);
        maps.block(target, NewBlock { ttl, count_only: rule == Rule::CountOnly, ..BLOCK })?;
    }
    maps.set_allowed(&policy.allowed)?;
    maps.set_failsafe(&policy.failsafe_tcp, &policy.failsafe_udp)?;
    Ok(kernel)
}

/// The kernel itself refuses a frame on its way to a TC test run when it is said to hold an IP
/// header and does not.
fn tc_can_run(frame: &[u8]) -> bool {
    let header = match u16::from_be_bytes([frame[12], frame[13]]) {
        ethertype::IPV4 => 20,
        ethertype::IPV6 => 40,
        _ => 1,
    };
    frame.len() >= 14 + header
}

/// Compares on `FRAMES` frames; returns how many of them had each reason.
fn compare(hook: Hook, seed: u64) -> Result<BTreeMap<&'static str, u64>> {
    let policy = policy();
    let kernel = kernel_with(&policy)?;
    let sources = policy.denied.iter().map(|(net, _)| net.addr());
    let more = MORE_SOURCES.iter().map(|text| net(text).addr());
    let ports = [FAILSAFE_TCP.as_slice(), &FAILSAFE_UDP, &[80]].concat();
    // What the kernel takes for a test run: XDP frames of many pages, TC frames of one.
    let max_len = if hook == Hook::Xdp { 20_000 } else { 3_500 };
    let mut frames = Frames::new(seed, sources.chain(more).collect(), ports, max_len);

    let mut tally = BTreeMap::new();
    for number in 0..FRAMES {
        let frame = frames.next_frame();
        let linear = frames.linear(frame.len()).filter(|_| hook == Hook::Xdp);
        if hook == Hook::Tc && !tc_can_run(&frame) {
            continue;
        }
        let expected = policy.judge(&frame);
        let count = tally.entry(expected.name()).or_insert(0);
        *count += 1;
        let context = || {
            let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hook:?}, seed {seed}, frame {number}, first {linear:?} bytes in place: {hex}")
        };
        let input = Input { linear, ..(&frame).into() };
        let (verdict, _) = kernel.run(hook, input).with_context(context)?;
        assert_eq!(verdict, Verdict::of(expected), "expected {expected:?} of {}", context());
        let counted = kernel.loaded.reasons.get(expected)?.packets;
        assert_eq!(counted, *count, "not counted as {expected:?}: {}", context());
    }
    for count in kernel.loaded.reasons.all()? {
        assert_eq!(count.packets, tally.get(count.name).copied().unwrap_or(0), "{}", count.name);
    }
    Ok(tally)
}

fn has_all_reasons(tally: &BTreeMap<&str, u64>) {
    for reason in Reason::ALL {
        let frames = tally.get(reason.name()).copied().unwrap_or(0);
        assert!(frames >= 1_000, "only {frames} frames were {}", reason.name());
    }
}

#[test]
fn xdp_agrees_with_the_reference() -> Result<()> {
    has_all_reasons(&compare(Hook::Xdp, 0x0070_6f72_7463)?);
    Ok(())
}

#[test]
fn tc_agrees_with_the_reference() -> Result<()> {
    has_all_reasons(&compare(Hook::Tc, 0x7563_6c6c_6973)?);
    Ok(())
}

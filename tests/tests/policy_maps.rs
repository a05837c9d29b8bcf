//! The policy maps as they fill, are replaced, resized and taken over.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use portcullis::decision::Origin;
use portcullis::enforce::{EnforceError, NewBlock, PolicyMaps as _};
use portcullis_common::ABI_VERSION;
use portcullis_common::names::pinned;
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::Frame;
use portcullis_tests::packet::harness::{BLOCK, Hook, Kernel, net};

const HOUR: Duration = Duration::from_secs(3_600);
const AUTOMATIC: NewBlock = NewBlock { origin: Origin::Automatic, ..BLOCK };

fn address(number: u8) -> IpNet {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, number)).into()
}

fn assert_blocked(kernel: &Kernel, target: IpNet) -> Result<()> {
    let frame = Frame::from(target.addr()).bytes();
    for hook in Hook::ALL {
        assert_eq!(kernel.judge(hook, &frame)?.1, Reason::DropDenied, "{target} at {hook:?}");
    }
    Ok(())
}

#[test]
fn a_full_map_refuses_and_keeps_what_it_has() -> Result<()> {
    const CAPACITY: u8 = 20;
    const RESERVE: u8 = 4;
    let mut kernel = Kernel::with(|config| {
        config.kernel.max_blocks = CAPACITY.into();
        config.kernel.operator_reserve = RESERVE.into();
    })?;
    let policy = &mut kernel.loaded.policy;
    let first_of_reserve = CAPACITY - RESERVE;
    for number in 0..first_of_reserve {
        policy.block(address(number), AUTOMATIC)?;
    }
    let error = policy.block(address(first_of_reserve), AUTOMATIC).unwrap_err();
    assert!(
        matches!(error, EnforceError::Full(usage) if usage.used == u32::from(first_of_reserve))
    );
    // One that is there already can be renewed.
    policy.block(address(0), NewBlock { ttl: Some(HOUR), ..AUTOMATIC })?;

    for number in first_of_reserve..CAPACITY {
        policy.block(address(number), BLOCK)?;
    }
    for origin in [Origin::Operator, Origin::Automatic] {
        let error = policy.block(address(CAPACITY), NewBlock { origin, ..BLOCK }).unwrap_err();
        assert!(matches!(error, EnforceError::Full(usage) if usage.used == u32::from(CAPACITY)));
    }
    for number in 0..CAPACITY {
        assert_blocked(&kernel, address(number))?;
    }

    let policy = &mut kernel.loaded.policy;
    policy.unblock(address(3))?;
    assert!(matches!(policy.block(address(3), AUTOMATIC), Err(EnforceError::Full(_))));
    policy.block(address(3), BLOCK)?;
    assert_blocked(&kernel, address(3))
}

#[test]
fn networks_of_every_length_can_be_blocked() -> Result<()> {
    let mut kernel = Kernel::new()?;
    for (target, inside, outside) in [
        ("203.0.113.0/24", "203.0.113.255", "203.0.114.0"),
        ("203.0.113.128/25", "203.0.113.128", "203.0.113.127"),
        ("198.18.0.0/15", "198.19.255.255", "198.20.0.0"),
        ("64.0.0.0/2", "127.255.255.255", "128.0.0.0"),
        ("0.0.0.0/0", "255.0.0.1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
        ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::"),
        ("2001:db8::8000/113", "2001:db8::ffff", "2001:db8::7fff"),
        ("8000::/1", "ffff::1", "7fff::1"),
        ("::/0", "2001:db8::1", "203.0.113.1"),
    ] {
        kernel.block(target)?;
        assert_blocked(&kernel, IpAddr::from_str(inside)?.into())?;
        let frame = Frame::from(IpAddr::from_str(outside)?).bytes();
        for hook in Hook::ALL {
            assert_eq!(kernel.judge(hook, &frame)?.1, Reason::PassNoMatch, "{outside}, {target}");
        }
        kernel.loaded.policy.unblock(net(target))?;
        let frame = Frame::from(IpAddr::from_str(inside)?).bytes();
        assert_eq!(kernel.judge(Hook::Xdp, &frame)?.1, Reason::PassNoMatch, "{target} is lifted");
    }
    let error = kernel.loaded.policy.unblock(address(1)).unwrap_err();
    assert!(matches!(error, EnforceError::NotBlocked(_)), "{error}");
    Ok(())
}

#[test]
fn counters_go_on_as_long_as_the_rule_is_the_same() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    assert_blocked(&kernel, address(9))?;
    let old = kernel.entry("203.0.113.9")?;
    assert_eq!(old.packets, 2);
    kernel.block_as("203.0.113.9", NewBlock { ttl: Some(HOUR), ..BLOCK })?;
    let new = kernel.entry("203.0.113.9")?;
    assert_eq!((new.packets, new.bytes, new.rule_id), (old.packets, old.bytes, old.rule_id));
    assert!(new.remaining.is_some_and(|left| left <= HOUR && left > HOUR / 2));

    kernel.block_as("203.0.113.9", NewBlock { rule_id: 8, ..BLOCK })?;
    let other = kernel.entry("203.0.113.9")?;
    assert_eq!((other.packets, other.bytes, other.rule_id), (0, 0, 8));
    assert_eq!(kernel.loaded.policy.usage().used, 1);
    Ok(())
}

#[test]
fn what_only_counts_gives_way_to_what_drops() -> Result<()> {
    let mut kernel = Kernel::with(|config| {
        config.kernel.max_blocks = 10;
        config.kernel.operator_reserve = 2;
    })?;
    let policy = &mut kernel.loaded.policy;
    for number in 0..8 {
        policy.block(address(number), NewBlock { count_only: true, ..AUTOMATIC })?;
    }
    let observed = NewBlock { count_only: true, ..AUTOMATIC };
    assert!(matches!(policy.block(address(8), observed), Err(EnforceError::Full(_))));
    for number in 10..18 {
        policy.block(address(number), AUTOMATIC)?;
    }
    assert!(matches!(policy.block(address(18), AUTOMATIC), Err(EnforceError::Full(_))));
    assert!(policy.blocks()?.iter().all(|block| !block.count_only));
    for number in 10..18 {
        assert_blocked(&kernel, address(number))?;
    }
    Ok(())
}

#[test]
fn a_block_by_the_mapped_form_of_an_address_is_the_same_block() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block_as("::ffff:203.0.113.9", NewBlock { ttl: Some(Duration::ZERO), ..BLOCK })?;
    kernel.block("203.0.113.9")?;
    assert_eq!(kernel.loaded.policy.usage().used, 1);
    assert_eq!(kernel.loaded.policy.sweep()?, 0, "the expiry that was replaced");
    assert_blocked(&kernel, address(9))?;
    kernel.loaded.policy.unblock(net("::ffff:203.0.113.9"))?;
    assert_eq!(kernel.loaded.policy.usage().used, 0);
    Ok(())
}

#[test]
fn the_next_agent_takes_the_policy_over() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    kernel.block_as("2001:db8:1:2::/64", NewBlock { ttl: Some(HOUR), rule_id: 9, ..BLOCK })?;
    kernel.allow(&["203.0.113.9"])?;
    kernel.loaded.policy.set_failsafe(&[22], &[])?;
    let frame = Frame::from("2001:db8:1:2::1".parse()?);
    kernel.run(Hook::Xdp, &frame.bytes())?;

    let mut next = kernel.successor(|_| ())?;
    assert!(next.loaded.notes.is_empty(), "{:?}", next.loaded.notes);
    assert_eq!(next.loaded.policy.usage().used, 2);
    let taken_over = next.entry("2001:db8:1:2::/64")?;
    assert_eq!((taken_over.rule_id, taken_over.packets), (9, 1));
    let allowed = Frame::from("203.0.113.9".parse()?).bytes();
    assert_eq!(next.judge(Hook::Xdp, &allowed)?.1, Reason::PassAllowed);
    assert_eq!(next.judge(Hook::Tc, &frame.clone().tcp(22).bytes())?.1, Reason::PassFailsafe);

    // What the next one writes holds for the programs of the last, which may still be attached.
    next.block("203.0.113.10")?;
    assert_blocked(&kernel, address(10))
}

#[test]
fn resizing_carries_blocks_over() -> Result<()> {
    let mut kernel = Kernel::with(|config| config.kernel.max_blocks = 64)?;
    for number in 0..40 {
        let block = NewBlock { ttl: Some(HOUR), rule_id: number.into(), ..BLOCK };
        kernel.loaded.policy.block(address(number), block)?;
        assert_blocked(&kernel, address(number))?;
    }
    for max_blocks in [128, 50] {
        let next = kernel.successor(|config| config.kernel.max_blocks = max_blocks)?;
        let notes = &next.loaded.notes;
        assert!(notes.len() == 1 && notes[0].contains("40 blocks carried over"), "{notes:?}");
        assert_eq!(next.loaded.policy.usage().used, 40);
        assert_eq!(next.loaded.policy.usage().capacity, max_blocks);
        for number in 0..40 {
            let entry = next.entry(&address(number).to_string())?;
            assert_eq!(entry.rule_id, u64::from(number));
            assert!(entry.packets >= 2, "counters are carried over");
            assert!(entry.remaining.is_some_and(|left| left <= HOUR && left > HOUR / 2));
            assert_blocked(&next, address(number))?;
        }
        kernel = next;
    }

    let error = kernel.successor(|config| config.kernel.max_blocks = 39).err().expect("no room");
    assert!(error.to_string().contains("40 blocks are in force"), "{error:#}");
    let next = kernel.successor(|config| config.kernel.max_blocks = 50)?;
    assert_eq!(next.loaded.policy.usage().used, 40, "the refused size lost nothing");
    Ok(())
}

#[test]
fn maps_of_another_version_are_replaced_with_a_note() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.block("203.0.113.9")?;
    let own = kernel.pin_dir().join(format!("maps-v{ABI_VERSION}"));
    let foreign = kernel.pin_dir().join("maps-v999");
    std::fs::rename(&own, &foreign)?;

    let next = kernel.successor(|_| ())?;
    let notes = &next.loaded.notes;
    assert!(notes.len() == 1 && notes[0].contains("maps-v999"), "{notes:?}");
    assert!(!foreign.exists());
    assert!(own.exists());
    assert_eq!(next.loaded.policy.usage().used, 0);
    Ok(())
}

#[test]
fn detaching_leaves_nothing_behind() -> Result<()> {
    let kernel = Kernel::new()?;
    let pin_dir = kernel.pin_dir().to_owned();
    let detached = portcullis::kernel::detach(&pin_dir, &[])?;
    assert_eq!(detached.maps.len(), pinned::ALL.len(), "{detached:?}");
    assert!(!pin_dir.exists());
    Ok(())
}

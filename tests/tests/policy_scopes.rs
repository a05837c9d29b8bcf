//! Rules that hold for one service alone: by ports, by addresses, by both.

use anyhow::Result;
use portcullis::enforce::{Effect, EnforceError, NewBlock, PolicyMaps as _, Scope};
use portcullis_common::policy::Reason;
use portcullis_tests::packet::frame::{Fragment, Transport};
use portcullis_tests::packet::harness::{BLOCK, Kernel, assert_judged, from};

fn scope(service: &str, ports: &[u16], addresses: &[&str]) -> Scope {
    let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    Scope { service: service.into(), ports: ports.to_vec(), addresses }
}

fn on(service: &str, block: NewBlock) -> NewBlock {
    NewBlock { service: Some(service.into()), ..block }
}

#[test]
fn a_scope_of_ports_holds_for_those_and_for_what_has_none() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_scopes(&[scope("web", &[80, 65_535], &[])])?;
    for source in ["203.0.113.9", "2001:db8::9"] {
        kernel.block_as(source, on("web", BLOCK))?;
        let frame = from(source);
        for dies in [frame.clone().tcp(80), frame.clone().udp(80), frame.clone().tcp(65_535)] {
            assert_judged(&kernel, &dies, Reason::DropDenied);
            assert_judged(&kernel, &dies.fragment(Fragment::FIRST), Reason::DropDenied);
        }
        for passes in [frame.clone().tcp(81), frame.clone().udp(443)] {
            assert_judged(&kernel, &passes, Reason::PassNoMatch);
            // Whose it is can't be seen: it dies with the rest of what it is a part of.
            assert_judged(&kernel, &passes.fragment(Fragment::LAST), Reason::DropDenied);
        }
        let swapped = Transport::Tcp { source: 80, destination: 81 };
        assert_judged(&kernel, &frame.clone().transport(swapped), Reason::PassNoMatch);
        assert_judged(&kernel, &frame.transport(Transport::Icmp), Reason::DropDenied);
    }
    Ok(())
}

#[test]
fn a_scope_of_addresses_holds_for_those() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let addresses = ["192.0.2.5", "2001:db8:ffff::5"];
    kernel.loaded.policy.set_scopes(&[
        scope("host", &[], &addresses),
        scope("both", &[80], &addresses),
        scope("other", &[], &["192.0.2.6"]),
    ])?;
    for (source, inside) in [("203.0.113.9", addresses[0]), ("2001:db8::9", addresses[1])] {
        let frame = from(source);
        let inside = frame.clone().to(inside.parse()?);
        kernel.block_as(source, on("host", BLOCK))?;
        assert_judged(&kernel, &inside, Reason::DropDenied);
        assert_judged(&kernel, &inside.clone().fragment(Fragment::LAST), Reason::DropDenied);
        assert_judged(&kernel, &frame, Reason::PassNoMatch);
        kernel.loaded.policy.unblock(ipnet::IpNet::from(frame.source))?;

        kernel.block_as(source, on("both", BLOCK))?;
        assert_judged(&kernel, &inside.clone().tcp(80), Reason::DropDenied);
        assert_judged(&kernel, &inside.clone().tcp(81), Reason::PassNoMatch);
        assert_judged(&kernel, &frame.clone().tcp(80), Reason::PassNoMatch);
    }
    Ok(())
}

#[test]
fn rules_of_several_services_lie_beside_each_other() -> Result<()> {
    let mut kernel = Kernel::new()?;
    let services = [scope("web", &[80], &[]), scope("mail", &[25], &[]), scope("dns", &[53], &[])];
    kernel.loaded.policy.set_scopes(&services)?;
    let source = "203.0.113.9";
    kernel.block_as(source, on("web", NewBlock { effect: Effect::Count, ..BLOCK }))?;
    kernel.block_as(source, on("mail", BLOCK))?;
    kernel.block_as(source, on("dns", NewBlock { effect: Effect::Steer, ..BLOCK }))?;
    let frame = from(source);
    let expect = |kernel: &Kernel, web, mail, dns, other| {
        for (port, expected) in [(80, web), (25, mail), (53, dns), (81, other)] {
            assert_judged(kernel, &frame.clone().tcp(port), expected);
        }
    };
    let none = Reason::PassNoMatch;
    expect(&kernel, Reason::PassCountOnly, Reason::DropDenied, Reason::PassSteered, none);
    // One that is not named any more stays as long as a rule needs it.
    kernel.loaded.policy.set_scopes(&services[..1])?;
    expect(&kernel, Reason::PassCountOnly, Reason::DropDenied, Reason::PassSteered, none);
    kernel.loaded.policy.set_scopes(&[scope("web", &[81], &[])])?;
    let count = Reason::PassCountOnly;
    expect(&kernel, none, Reason::DropDenied, Reason::PassSteered, count);
    for max_blocks in [1_024, 2_048] {
        let next = kernel.successor(|config| config.kernel.max_blocks = max_blocks)?;
        expect(&next, none, Reason::DropDenied, Reason::PassSteered, count);
        let services: Vec<_> = next.loaded.policy.blocks()?.into_iter().collect();
        assert!(services.iter().all(|block| block.service.is_some()), "{services:?}");
        kernel = next;
    }
    Ok(())
}

#[test]
fn a_service_without_a_scope_is_refused() -> Result<()> {
    let mut kernel = Kernel::new()?;
    kernel.loaded.policy.set_scopes(&[scope("web", &[80], &[])])?;
    let error = kernel
        .loaded
        .policy
        .block(portcullis_tests::packet::harness::net("203.0.113.9"), on("mail", BLOCK));
    assert!(matches!(error, Err(EnforceError::NoScope(_))), "{error:?}");
    assert_eq!(kernel.loaded.policy.usage().used, 0);
    assert_judged(&kernel, &from("203.0.113.9"), Reason::PassNoMatch);
    Ok(())
}

//! The configured interfaces: are they there, what drives them, and what sits on them already?

use std::fs;
use std::path::Path;

use anyhow::Result;
use nix::net::if_::if_nameindex;
use portcullis_common::names::program;

use super::Check;
use crate::config::{Config, is_pattern, selects};
use crate::kernel::{LinkKind, Namespace, Occupant, link_kind, occupant};

const AREA: &str = "interfaces";
const SYS_CLASS_NET: &str = "/sys/class/net";

/// # Errors
/// When the kernel can't be asked about an interface that exists.
pub(super) fn look(config: &Config, checks: &mut Vec<Check>) -> Result<()> {
    if config.interfaces.is_empty() && config.namespaces.is_empty() {
        let advice = format!("set `interfaces` to some of: {}", interface_names().join(", "));
        checks.push(Check::missing(AREA, "interfaces", "none configured", advice));
    }
    look_here(&config.interfaces, "", checks)?;
    for namespace in &config.namespaces {
        let path = namespace.path.display().to_string();
        match Namespace::open(&namespace.path) {
            Ok(Some(open)) => {
                let place = format!(" in {path}");
                open.run(|| look_here(&namespace.interfaces, &place, checks))?;
            }
            Ok(None) => {
                let advice = "its interfaces get their programs when it appears";
                checks.push(Check::warning(AREA, path, "there is no such namespace", advice));
            }
            Err(error) => {
                let advice = "run as the agent's user";
                checks.push(Check::missing(AREA, path, format!("{error:#}"), advice));
            }
        }
    }
    Ok(())
}

/// In this thread's network namespace, called `place`.
fn look_here(interfaces: &[String], place: &str, checks: &mut Vec<Check>) -> Result<()> {
    let there = interface_names();
    let absent = interfaces.iter().filter(|entry| !is_pattern(entry) && !there.contains(entry));
    for name in absent {
        let advice = format!(
            "the agent waits for it, unless none of the others is there; there are: {}",
            there.join(", ")
        );
        let name = format!("{name}{place}");
        checks.push(Check::missing(AREA, name, "there is no such interface", advice));
    }
    for name in there.iter().filter(|name| selects(interfaces, name)) {
        let shown = format!("{name}{place}");
        match link_kind(name) {
            Ok(kind) => checks.push(judge(name, &shown, kind, &driver_of(name), occupant(name)?)),
            Err(error) => {
                let advice = "name the interface below it that has Ethernet headers";
                checks.push(Check::missing(AREA, shown, format!("{error:#}"), advice));
            }
        }
    }
    Ok(())
}

fn judge(name: &str, shown: &str, kind: LinkKind, driver: &str, xdp: Option<Occupant>) -> Check {
    if kind == LinkKind::Layer3 {
        let found = format!("driver {driver}, packets without Ethernet header, by TC");
        return Check::ok(AREA, shown, found);
    }
    let Some(xdp) = xdp else {
        return Check::ok(AREA, shown, format!("driver {driver}, no XDP program attached"));
    };
    let found = format!("driver {driver}, XDP: {xdp}");
    match xdp.name.as_deref() {
        Some(program::XDP) if xdp.mode != "generic" => Check::ok(AREA, shown, found),
        Some(program::XDP) => Check::warning(
            AREA,
            shown,
            found,
            "generic XDP drops later and at a higher cost; a network card whose driver has XDP \
             of its own would do it earlier",
        ),
        _ => {
            let advice = format!(
                "only one XDP program fits: Portcullis uses TC here, unless this one goes before \
                 the agent starts (`ip link set dev {name} xdp off`)"
            );
            Check::warning(AREA, shown, found, advice)
        }
    }
}

fn driver_of(name: &str) -> String {
    let driver = fs::read_link(Path::new(SYS_CLASS_NET).join(name).join("device/driver"));
    let driver = driver.ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    driver.unwrap_or_else(|| "none (virtual)".to_owned())
}

fn interface_names() -> Vec<String> {
    // Not from /sys/class/net, which shows the network namespace that it was mounted in.
    let interfaces = if_nameindex();
    let interfaces = interfaces.iter().flat_map(|interfaces| interfaces.iter());
    let mut names: Vec<_> =
        interfaces.map(|interface| interface.name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn what_sits_on_an_interface_decides() {
        let xdp = |mode, name: Option<&str>| {
            Some(Occupant { mode, id: Some(7), name: name.map(str::to_owned) })
        };
        let eth0 = |xdp| judge("eth0", "eth0", LinkKind::Ethernet, "virtio_net", xdp);
        assert_eq!(eth0(None).state, State::Ok);
        assert_eq!(eth0(xdp("native", Some(program::XDP))).state, State::Ok);
        assert_eq!(eth0(xdp("generic", Some(program::XDP))).state, State::Warning);
        let foreign = eth0(xdp("native", Some("xdp_filter")));
        assert_eq!(foreign.state, State::Warning);
        assert_eq!(foreign.found, "driver virtio_net, XDP: xdp_filter, program 7 (native)");
        let advice = foreign.advice.expect("what to do");
        assert!(advice.contains("ip link set dev eth0 xdp off"), "{advice}");
        assert_eq!(eth0(xdp("native", None)).state, State::Warning);
        let tun = judge("tun0", "tun0 in blue", LinkKind::Layer3, "tun", None);
        assert_eq!((tun.state, tun.name.as_str()), (State::Ok, "tun0 in blue"));
    }
}

//! The configured interfaces: are they there, what drives them, and what sits on them already?

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use nix::net::if_::{if_nameindex, if_nametoindex};
use portcullis_common::names::program;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

use super::Check;
use crate::config::Config;
use crate::kernel::ensure_ethernet;

const AREA: &str = "interfaces";
const SYS_CLASS_NET: &str = "/sys/class/net";

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Xdp {
    mode: &'static str,
    /// `None` when several are attached.
    program: Option<u32>,
}

/// # Errors
/// When the kernel can't be asked about an interface that exists.
pub(super) fn look(config: &Config, checks: &mut Vec<Check>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    for name in &config.interfaces {
        if if_nametoindex(name.as_str()).is_err() {
            let advice = format!("`interfaces` may name any of: {}", interface_names().join(", "));
            checks.push(Check::missing(AREA, name, "there is no such interface", advice));
            continue;
        }
        if let Err(error) = ensure_ethernet(name) {
            let advice = "name the interface below it that has Ethernet headers";
            checks.push(Check::missing(AREA, name, format!("{error:#}"), advice));
            continue;
        }
        let xdp = runtime.block_on(xdp_on(name));
        let xdp = xdp.with_context(|| format!("can't ask the kernel about {name}"))?;
        checks.push(judge(name, &driver_of(name), xdp, program_name));
    }
    if config.interfaces.is_empty() {
        let advice = format!("set `interfaces` to some of: {}", interface_names().join(", "));
        checks.push(Check::missing(AREA, "interfaces", "none configured", advice));
    }
    Ok(())
}

fn judge(
    name: &str,
    driver: &str,
    xdp: Option<Xdp>,
    program_name: impl Fn(u32) -> Option<String>,
) -> Check {
    let Some(xdp) = xdp else {
        return Check::ok(AREA, name, format!("driver {driver}, no XDP program attached"));
    };
    let attached = xdp.program.and_then(program_name);
    let shown = attached.as_deref().unwrap_or("a program that can't be looked at");
    let found = format!("driver {driver}, {} XDP: {shown}", xdp.mode);
    match attached.as_deref() {
        Some(program::XDP) if xdp.mode != "generic" => Check::ok(AREA, name, found),
        Some(program::XDP) => Check::warning(
            AREA,
            name,
            found,
            "generic XDP drops later and at a higher cost; a network card whose driver has XDP \
             of its own would do it earlier",
        ),
        _ => {
            let advice = format!(
                "only one XDP program fits: Portcullis uses TC here, unless this one goes \
                 (`ip link set dev {name} xdp off`)"
            );
            Check::warning(AREA, name, found, advice)
        }
    }
}

/// The XDP program on an interface, as RTM_GETLINK reports it (rtnetlink(7)).
async fn xdp_on(name: &str) -> Result<Option<Xdp>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let link = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    connection.abort();
    Ok(link?.as_ref().and_then(xdp_of))
}

fn xdp_of(link: &LinkMessage) -> Option<Xdp> {
    let parts = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => Some(parts),
        _ => None,
    })?;
    let mode = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offloaded"),
        LinkXdp::Attached(XdpAttached::Multiple) => Some("several kinds of"),
        _ => None,
    })?;
    let program = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(Xdp { mode, program })
}

/// The name of a loaded program; `None` without the right to look.
fn program_name(id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned))
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
        let native = Some(Xdp { mode: "native", program: Some(7) });
        let generic = Some(Xdp { mode: "generic", program: Some(7) });
        let ours = |_| Some(program::XDP.to_owned());
        let theirs = |_| Some("xdp_filter".to_owned());
        let hidden = |_| None;
        assert_eq!(judge("eth0", "virtio_net", None, ours).state, State::Ok);
        assert_eq!(judge("eth0", "virtio_net", native, ours).state, State::Ok);
        assert_eq!(judge("eth0", "virtio_net", generic, ours).state, State::Warning);
        let foreign = judge("eth0", "virtio_net", native, theirs);
        assert_eq!(foreign.state, State::Warning);
        assert_eq!(foreign.found, "driver virtio_net, native XDP: xdp_filter");
        let advice = foreign.advice.expect("what to do");
        assert!(advice.contains("ip link set dev eth0 xdp off"), "{advice}");
        assert_eq!(judge("eth0", "virtio_net", native, hidden).state, State::Warning);
    }

    #[test]
    fn the_kernels_answer_is_read() {
        let mut link = LinkMessage::default();
        assert_eq!(xdp_of(&link), None);
        let parts = vec![LinkXdp::Attached(XdpAttached::None)];
        link.attributes = vec![LinkAttribute::Xdp(parts)];
        assert_eq!(xdp_of(&link), None);
        let parts = vec![LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(9)];
        link.attributes = vec![LinkAttribute::Xdp(parts)];
        assert_eq!(xdp_of(&link), Some(Xdp { mode: "generic", program: Some(9) }));
    }

    #[tokio::test]
    async fn the_loopback_interface_can_be_asked_about() {
        assert_eq!(xdp_on("lo").await.expect("the kernel answers"), None);
        assert!(xdp_on("no-such-link").await.is_err());
    }
}

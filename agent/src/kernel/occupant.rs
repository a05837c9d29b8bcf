//! The XDP program that sits on an interface already: an interface takes one.

use std::fmt;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    pub mode: &'static str,
    /// `None` when several are attached.
    pub id: Option<u32>,
    /// `None` without the right to look.
    pub name: Option<String>,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.id) {
            (Some(name), Some(id)) => write!(f, "{name}, program {id}"),
            (None, Some(id)) => write!(f, "program {id}, which can't be looked at"),
            (_, None) => f.write_str("several programs"),
        }?;
        write!(f, " ({})", self.mode)
    }
}

/// The XDP program on an interface of this thread's network namespace, as `RTM_GETLINK` reports
/// it (rtnetlink(7)). Not to be called on a thread that runs asynchronous tasks.
///
/// # Errors
/// When the kernel does not answer, or there is no such interface.
pub fn occupant(interface: &str) -> Result<Option<Occupant>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let link = runtime
        .block_on(link(interface))
        .with_context(|| format!("can't ask the kernel about {interface}"))?;
    Ok(link.as_ref().and_then(occupant_of).map(|mut found| {
        found.name = found.id.and_then(program_name);
        found
    }))
}

async fn link(interface: &str) -> Result<Option<LinkMessage>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let link = handle.link().get().match_name(interface.to_owned()).execute().try_next().await;
    connection.abort();
    Ok(link?)
}

fn occupant_of(link: &LinkMessage) -> Option<Occupant> {
    let parts = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => Some(parts),
        _ => None,
    })?;
    let mode = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offloaded"),
        LinkXdp::Attached(XdpAttached::Multiple) => Some("in several modes"),
        _ => None,
    })?;
    let id = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(Occupant { mode, id, name: None })
}

/// The name of a loaded program; `None` without the right to look.
fn program_name(id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .and_then(|info| info.name_as_str().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_answer_is_read() {
        let mut link = LinkMessage::default();
        assert_eq!(occupant_of(&link), None);
        let parts = vec![LinkXdp::Attached(XdpAttached::None)];
        link.attributes = vec![LinkAttribute::Xdp(parts)];
        assert_eq!(occupant_of(&link), None);
        let parts = vec![LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(9)];
        link.attributes = vec![LinkAttribute::Xdp(parts)];
        let expected = Occupant { mode: "generic", id: Some(9), name: None };
        assert_eq!(occupant_of(&link), Some(expected));
    }

    #[test]
    fn the_loopback_interface_can_be_asked_about() {
        assert_eq!(occupant("lo").expect("the kernel answers"), None);
        assert!(occupant("no-such-link").is_err());
    }

    #[test]
    fn an_occupant_is_named() {
        let mut occupant = Occupant { mode: "native", id: Some(7), name: Some("theirs".into()) };
        assert_eq!(occupant.to_string(), "theirs, program 7 (native)");
        occupant.name = None;
        assert_eq!(occupant.to_string(), "program 7, which can't be looked at (native)");
    }
}

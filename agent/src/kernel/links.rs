//! The network interfaces of a namespace, and word of their coming and going (rtnetlink(7)).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::net::if_::if_nameindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `RTMGRP_LINK` of linux/rtnetlink.h.
const LINK_GROUP: u32 = 1;
/// Messages are longer, but what does not fit is thrown away, as everything else is.
const BUFFER: usize = 64;

/// A network interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Of one interface for as long as it lives, whatever its name.
    pub index: u32,
    pub name: String,
}

/// Those of the network namespace that this thread is in: `/sys` shows that of its mount.
pub(super) fn list() -> Result<Vec<Link>> {
    let interfaces = if_nameindex().context("can't list the network interfaces")?;
    let link = |one: &nix::net::if_::Interface| Link {
        index: one.index(),
        name: one.name().to_string_lossy().into_owned(),
    };
    Ok(interfaces.iter().map(link).collect())
}

/// Becomes readable when an interface of its namespace appears, goes or changes. What the
/// messages say is not read: a list made after them is right whatever they said, and however
/// many were lost.
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// Of the network namespace that this thread is in. Whoever lists the interfaces next misses
    /// nothing.
    pub fn subscribe() -> Result<Self> {
        let context = "can't ask the kernel for news of network interfaces";
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )
        .context(context)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_GROUP)).context(context)?;
        Ok(Self(socket))
    }

    /// Throws away what has come; whether there was something.
    pub fn drain(&self) -> Result<bool> {
        let mut news = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut [0; BUFFER], MsgFlags::MSG_TRUNC) {
                // ENOBUFS: more came than the socket holds, which is news too.
                Ok(_) | Err(Errno::ENOBUFS) => news = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(news),
                Err(error) => return Err(error).context("can't read news of interfaces"),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_the_first() {
        let links = list().unwrap();
        assert!(links.contains(&Link { index: 1, name: "lo".to_owned() }), "{links:?}");
    }

    #[test]
    fn nothing_is_no_news() {
        let watch = Watch::subscribe().unwrap();
        watch.drain().unwrap();
        assert!(watch.as_fd().as_raw_fd() > 0);
    }
}

//! What do the packets of an interface begin with? The policy programs are told: one that looks
//! for an Ethernet header where there is none would find no address, and drop nothing.

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Interfaces whose packets begin with an IP header (linux/if_arp.h): tun and WireGuard, PPP,
/// IP in IP, IPv6 tunnels, 6in4, GRE over IPv4 and IPv6, and cellular modems.
const LAYER_3: [u16; 8] = [
    libc::ARPHRD_NONE,
    libc::ARPHRD_PPP,
    libc::ARPHRD_TUNNEL,
    libc::ARPHRD_TUNNEL6,
    libc::ARPHRD_SIT,
    libc::ARPHRD_IPGRE,
    IP6GRE,
    RAWIP,
];
/// libc has not got these two.
const IP6GRE: u16 = 823;
const RAWIP: u16 = 519;

/// What the packets of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Ethernet,
    /// An IP header.
    Layer3,
}

/// The kind of an interface in this thread's network namespace.
///
/// # Errors
/// When it is neither, with a sentence that says so, or when the kernel can't be asked.
pub fn link_kind(interface: &str) -> Result<LinkKind> {
    judge(link_type(interface).context("can't ask for its link type")?)
}

fn judge(link_type: u16) -> Result<LinkKind> {
    match link_type {
        // A loopback interface has Ethernet headers, all zero.
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(LinkKind::Ethernet),
        other if LAYER_3.contains(&other) => Ok(LinkKind::Layer3),
        other => bail!(
            "its frames begin with neither an Ethernet nor an IP header (link type {other}), so \
             that no address would be found in them"
        ),
    }
}

/// The `ARPHRD_…` number of an interface in this thread's network namespace, by `SIOCGIFHWADDR`
/// (netdevice(7)): `/sys/class/net` shows the namespace that it was mounted in.
fn link_type(interface: &str) -> Result<u16> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a C structure of integers and arrays of them, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    ensure!(interface.len() < request.ifr_name.len(), "no interface has such a long name");
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the call reads and writes one `ifreq`, which lives until after it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the call has succeeded, so it has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interfaces_with_ethernet_or_ip_headers_are_accepted() {
        for ethernet in [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK] {
            assert_eq!(judge(ethernet).unwrap(), LinkKind::Ethernet);
        }
        for layer_3 in LAYER_3 {
            assert_eq!(judge(layer_3).unwrap(), LinkKind::Layer3);
        }
        for refused in [libc::ARPHRD_IEEE80211_RADIOTAP, libc::ARPHRD_CAN] {
            let sentence = judge(refused).unwrap_err().to_string();
            assert!(sentence.contains(&format!("link type {refused}")), "{sentence}");
        }
    }

    #[test]
    fn the_kernel_is_asked() {
        assert_eq!(link_type("lo").unwrap(), libc::ARPHRD_LOOPBACK);
        assert!(link_type("no-such-link").is_err());
        assert!(link_type("a-name-of-sixteen").is_err());
    }
}

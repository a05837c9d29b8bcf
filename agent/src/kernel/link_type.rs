//! Do the frames of an interface begin with an Ethernet header? The policy programs read nothing
//! else: on a layer-3 interface (tun, WireGuard, PPP) they would find no address, and drop
//! nothing.

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// # Errors
/// When they do not, with a sentence that says so, or when the kernel can't be asked.
pub fn ensure_ethernet(interface: &str) -> Result<()> {
    judge(link_type(interface).context("can't ask for its link type")?)
}

fn judge(link_type: u16) -> Result<()> {
    // A loopback interface has Ethernet headers, all zero.
    if !matches!(link_type, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK) {
        bail!(
            "its frames have no Ethernet header (link type {link_type}), so that no address would \
             be found in them: layer-3 interfaces such as tun, WireGuard and PPP can't be protected"
        );
    }
    Ok(())
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
    fn only_interfaces_with_ethernet_headers_are_accepted() {
        for accepted in [libc::ARPHRD_ETHER, libc::ARPHRD_LOOPBACK] {
            assert!(judge(accepted).is_ok());
        }
        for refused in [libc::ARPHRD_NONE, libc::ARPHRD_PPP, libc::ARPHRD_TUNNEL6] {
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

//! What drives an interface, for the one that native XDP may not be able to send by.

use std::io;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::attach::Hook;

/// `ETHTOOL_GDRVINFO`
const DRIVER_INFO: u32 = 3;

/// `struct ethtool_drvinfo` (`include/uapi/linux/ethtool.h`).
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// Why answers to dropped packets may not leave by this hook of an interface.
///
/// # Errors
/// When the kernel can't be asked.
pub(super) fn why_not_answer(interface: &str, hook: Hook) -> Result<Option<&'static str>> {
    match hook {
        Hook::XdpNative if driver(interface)? == "veth" => Ok(Some(
            "enforce.answer is \"reset\", and what native XDP sends back on a veth interface is \
             lost unless its peer has an XDP program too; kernel.attach = \"xdp-native\" \
             takes it all the same",
        )),
        Hook::XdpNative | Hook::XdpGeneric | Hook::Tcx | Hook::Clsact => Ok(None),
    }
}

/// The driver's name, in this thread's network namespace (ethtool(8)); empty where there is none.
fn driver(interface: &str) -> Result<String> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a C structure of integers and arrays of them, for which zeros are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    ensure!(interface.len() < request.ifr_name.len(), "no interface has such a long name");
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let mut info = DriverInfo { command: DRIVER_INFO, driver: [0; 32], rest: [0; 160] };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the call reads one `ifreq` and writes the structure that it points to, of the size
    // that the command goes with; both live until after it.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            return Ok(String::new());
        }
        return Err(error).context("can't ask for its driver");
    }
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<DriverInfo>(), 196);
    }

    #[test]
    fn the_kernel_is_asked() {
        assert_eq!(driver("lo").unwrap(), "");
        assert!(driver("no-such-link").is_err());
        assert!(why_not_answer("lo", Hook::XdpNative).unwrap().is_none());
    }
}

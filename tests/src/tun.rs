//! A network interface without Ethernet headers, whose far end is the test.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};

use crate::netns::Host;

const DEVICE: &str = "/dev/net/tun";

/// The interface goes when this is dropped.
pub struct Tun(File);

impl Tun {
    /// Makes the interface `name` on `host` (Documentation/networking/tuntap.rst).
    pub fn open(host: &Host, name: &str) -> Result<Self> {
        host.run(|| {
            let file = OpenOptions::new().read(true).write(true).open(DEVICE);
            let file = file.with_context(|| format!("can't open {DEVICE}: is there a module?"))?;
            // SAFETY: a C structure of integers and arrays of them, for which zeros are values.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            ensure!(name.len() < request.ifr_name.len(), "no interface has such a long name");
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
            // SAFETY: the call reads and writes one `ifreq`, which lives until after it.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            ensure!(made == 0, "can't make {name}: {}", io::Error::last_os_error());
            Ok(Self(file))
        })
    }

    /// Lets the host receive an IP packet.
    pub fn send(&mut self, packet: &[u8]) -> Result<()> {
        let sent = self.0.write(packet)?;
        ensure!(sent == packet.len(), "{sent} of {} bytes were taken", packet.len());
        Ok(())
    }
}

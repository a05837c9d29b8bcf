//! Steering new connections to a decoy: the program, the network namespace it sits on, and the
//! sockets it steers to.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData, SockMap};
use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use portcullis_common::names::{map, program};
use portcullis_common::steer::{Steered, slot};

use super::load::take;
use super::pins::{PinDir, remove_file};

/// The sockets that steered clients' connections go to.
pub struct DecoySockets {
    sockets: SockMap<MapData>,
}

/// The IP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V4,
    V6,
}

impl DecoySockets {
    /// Sends new connections of that version to a listening socket from now on, until it is
    /// closed by all who have it open. No reference to it is kept.
    pub fn set(&mut self, version: Version, socket: &impl AsFd) -> Result<()> {
        self.sockets
            .set(version.slot(), &socket.as_fd().as_raw_fd(), 0)
            .context("the kernel does not steer to this socket")
    }

    /// There is no decoy for that version from now on.
    pub fn clear(&mut self, version: Version) -> Result<()> {
        // One that has been closed is out already.
        match self.sockets.clear_index(&version.slot()) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error))
                if matches!(error.io_error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
            {
                Ok(())
            }
            Err(error) => Err(error).context("can't take the decoy's socket out of the kernel"),
        }
    }
}

impl Version {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn slot(self) -> u32 {
        match self {
            Self::V4 => slot::V4,
            Self::V6 => slot::V6,
        }
    }
}

/// Counters of steering since the agent started.
pub struct SteerCounters(Array<MapData, u64>);

impl SteerCounters {
    pub fn get(&self, what: Steered) -> u64 {
        // A slot of an array is always there.
        self.0.get(&(what as u32), 0).unwrap_or_default()
    }
}

/// Steering, attached.
pub struct Steering {
    pub sockets: DecoySockets,
    pub counters: SteerCounters,
    /// In the place of an earlier agent's.
    pub taken_over: bool,
}

/// Attaches the program to this network namespace. An earlier agent's stays until this one is
/// there, and then goes.
pub fn attach_steering(ebpf: &mut Ebpf, pin_dir: &Path) -> Result<Steering> {
    let pins = PinDir::make(pin_dir)?;
    let sockets = DecoySockets { sockets: take(ebpf, map::DECOY)? };
    let counters = SteerCounters(take(ebpf, map::STEERED)?);
    let steer: &mut SkLookup = ebpf
        .program_mut(program::STEER)
        .context("the object has no program that steers")?
        .try_into()?;
    steer.load().context("the verifier refuses the program that steers")?;
    let namespace = File::open("/proc/self/ns/net").context("can't open this network namespace")?;
    let id = steer.attach(namespace).context("can't steer connections of this namespace")?;
    let link: FdLink = steer.take_link(id)?.into();
    let (pin, unfinished) = (pins.steering(), pins.unfinished_steering());
    if unfinished.exists() {
        remove_file(&unfinished)?;
    }
    let taken_over = pin.exists();
    link.pin(&unfinished).context("can't pin the link")?;
    std::fs::rename(&unfinished, &pin)
        .with_context(|| format!("can't rename {}", unfinished.display()))?;
    Ok(Steering { sockets, counters, taken_over })
}

/// Ends the steering of an earlier agent; whether there was one.
pub fn detach_steering(pin_dir: &Path) -> Result<bool> {
    PinDir::make(pin_dir)?.remove_steering()
}

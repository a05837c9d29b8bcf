//! Finds a socket that listens, whosever it is.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use procfs::process::{FDTarget, all_processes};
use rustix::net::sockopt::socket_cookie;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::diag::{Diag, states};
use super::filter::{End, Match};
use super::wire::{Family, Socket};

/// Sockets on one port at most: a server may have one for each of its processes.
const MAX_LISTENERS: usize = 1_024;

/// A TCP socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener(Socket);

/// Those that take IPv4 and IPv6 connections to one port; may be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    pub v4: Option<Listener>,
    pub v6: Option<Listener>,
}

/// What listens on `at` in this network namespace. Where `at` is an address of one IP version,
/// connections of the other are looked for on its loopback or its unspecified address.
pub fn find_listeners(at: SocketAddr) -> Result<Listeners> {
    let mut diag = Diag::open()?;
    let on_port = Match { local: Some(End { net: None, port: Some(at.port()) }), remote: None };
    let mut sockets = Vec::new();
    for family in Family::ALL {
        let found = diag.find(family, states::LISTENING, &[on_port], |_| true, MAX_LISTENERS);
        sockets.extend(found.context("the kernel does not list sockets")?.0);
    }
    let choose = |family| choose(&sockets, at.ip(), family).map(Listener);
    Ok(Listeners { v4: choose(Family::V4), v6: choose(Family::V6) })
}

/// The socket for connections of `family`, the most particular first, of several the oldest.
fn choose(sockets: &[Socket], at: IpAddr, family: Family) -> Option<Socket> {
    let rank = |socket: &Socket| {
        let takes = match family {
            Family::V4 => socket.family == Family::V4 || !socket.v6_only,
            Family::V6 => socket.family == Family::V6,
        };
        let bound = socket.local.ip();
        let fits = if at.is_ipv4() == (family == Family::V4) {
            bound == at || bound.is_unspecified()
        } else {
            bound.is_loopback() || bound.is_unspecified()
        };
        (takes && fits).then_some((bound.is_unspecified(), socket.family != family, socket.cookie))
    };
    let ranked = sockets.iter().filter_map(|socket| Some((rank(socket)?, socket)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, socket)| *socket)
}

impl Listener {
    /// A number that no other socket ever has.
    pub fn cookie(&self) -> u64 {
        self.0.cookie
    }

    /// A descriptor of it, taken from the process that has it.
    ///
    /// # Errors
    /// When it has gone, or the agent may not look into that process (`CAP_SYS_PTRACE`).
    pub fn descriptor(&self) -> Result<OwnedFd> {
        let processes = all_processes().context("can't list the processes")?;
        let mut denied = None;
        for process in processes.flatten() {
            let Ok(descriptors) = process.fd() else { continue };
            let inode = u64::from(self.0.inode);
            let has = descriptors.flatten().find(|fd| fd.target == FDTarget::Socket(inode));
            let Some(number) = has.map(|fd| fd.fd) else { continue };
            match self.take(process.pid, number) {
                Ok(Some(descriptor)) => return Ok(descriptor),
                // It was closed, and its number or inode is another's by now.
                Ok(None) => {}
                Err(error) => denied = Some(error),
            }
        }
        Err(denied.unwrap_or_else(|| anyhow::anyhow!("no process that can be seen has it open")))
            .with_context(|| format!("can't get at the socket that listens on {}", self.0.local))
    }

    fn take(&self, pid: i32, number: i32) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let descriptor = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
            .context("the kernel gives no descriptor of another process")?;
        Ok((socket_cookie(&descriptor).ok() == Some(self.0.cookie)).then_some(descriptor))
    }
}

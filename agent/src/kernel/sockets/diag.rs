//! The kernel's socket diagnostics over netlink (sock_diag(7)): finding TCP sockets, and closing
//! them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::filter::{self, End, Match};
use super::wire::{Family, Message, Messages, Socket, destroy_request, dump_request};

/// Largest part of a dump that the kernel makes is 32 KiB.
const BUFFER: usize = 64 * 1024;
/// The kernel answers at once; this only bounds what should not happen.
const PATIENCE: i64 = 5;

/// States of a TCP socket, as bits (`include/net/tcp_states.h`).
pub(super) mod states {
    const fn bit(state: u32) -> u32 {
        1 << state
    }
    /// Everything between the handshake's first answer and the end, but for `TIME_WAIT`, which
    /// holds no file: SYN_RECV, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
    pub const OPEN: u32 = bit(3) | bit(1) | bit(4) | bit(5) | bit(8) | bit(9) | bit(11);
    pub const LISTENING: u32 = bit(10);
}

/// Whether there was a socket to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Closed,
    /// It had gone by itself.
    Gone,
}

/// The sockets of one network namespace. It stays that one's wherever it is used.
pub(super) struct Diag {
    netlink: OwnedFd,
    buffer: Vec<u8>,
}

impl Diag {
    /// Of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { netlink: netlink()?, buffer: vec![0; BUFFER] })
    }

    /// Of the namespace that the file stands for, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is none, or the agent may not enter it (`CAP_SYS_ADMIN`).
    pub fn open_in(namespace: &Path) -> Result<Self> {
        let context = || format!("can't enter the network namespace {}", namespace.display());
        let file = File::open(namespace).with_context(context)?;
        let enter = move || -> Result<Self> {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            Self::open()
        };
        // A thread of its own, so that this one stays where it is.
        let entered = std::thread::spawn(enter).join();
        entered.map_err(|_| anyhow::anyhow!("the thread died")).flatten().with_context(context)
    }

    /// At most `most` TCP sockets in `states` that match one of `matches` and are `wanted`, and
    /// whether there are more.
    ///
    /// # Errors
    /// When the kernel refuses, with its error; after a timeout the object is of no more use.
    pub fn find(
        &mut self,
        family: Family,
        states: u32,
        matches: &[Match],
        wanted: impl Fn(&Socket) -> bool,
        most: usize,
    ) -> io::Result<(Vec<Socket>, bool)> {
        let program = filter::any_of(matches);
        self.send(&dump_request(family, states, &program))?;
        let (mut found, mut more) = (Vec::new(), false);
        loop {
            let length = self.receive()?;
            for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
                match message {
                    Message::Socket(socket) if !wanted(&socket) => {}
                    Message::Socket(socket) if found.len() < most => found.push(socket),
                    Message::Socket(_) => more = true,
                    Message::Done(None) => return Ok((found, more)),
                    Message::Done(Some(error)) => return Err(error),
                    Message::Other => {}
                }
            }
        }
    }

    /// Closes a socket as if the other end had: the application's next call on it fails, the
    /// other end gets a reset.
    pub fn close(&mut self, socket: &Socket) -> io::Result<Closed> {
        self.send(&destroy_request(socket))?;
        let length = self.receive()?;
        for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
            if let Message::Done(error) = message {
                return match error {
                    None => Ok(Closed::Closed),
                    Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Closed::Gone),
                    Some(error) => Err(error),
                };
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Whether this kernel closes sockets for those who ask (`CONFIG_INET_DIAG_DESTROY`).
    pub fn can_close(&mut self) -> Result<bool> {
        // Also has the kernel load its module, if it is one.
        let port = End { net: None, port: Some(0) };
        let none = Match { local: Some(port), remote: None };
        let listening = self.find(Family::V4, states::LISTENING, &[none], |_| true, 1);
        listening.context("the kernel does not list sockets (CONFIG_INET_DIAG)")?;
        match self.close(&Socket::nobodys()) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error).context("the kernel does not close sockets"),
        }
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        send(self.netlink.as_raw_fd(), request, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.netlink.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn netlink() -> Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    );
    let netlink = netlink.context("can't ask the kernel about sockets")?;
    setsockopt(&netlink, ReceiveTimeout, &TimeVal::seconds(PATIENCE))
        .context("can't bound the wait for the kernel's answers")?;
    Ok(netlink)
}

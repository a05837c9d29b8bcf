//! What clients meet that are to be deceived: the agent's own tarpit, or whatever the
//! configuration names. The kernel steers their new connections there (`kernel::steer`), with the
//! address and port that they asked for.

mod named;
mod tarpit;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use portcullis_common::steer::Steered;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpListener;

use self::named::Named;
use self::tarpit::Tarpit;
use crate::config::{Decoy as Settings, DecoyListener};
use crate::kernel::{SteerCounters, Steering, Version};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// The decoy at work; what only it keeps open goes when this is dropped.
pub struct Decoy {
    counters: SteerCounters,
    state: Arc<State>,
    _keeper: Keeper,
}

enum Keeper {
    Tarpit(#[expect(dead_code, reason = "kept for its end")] Tarpit),
    Named(#[expect(dead_code, reason = "kept for its end")] Named),
}

/// What is counted, since the start unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were steered to the decoy.
    pub steered: u64,
    /// Connections that were refused because no decoy listened.
    pub refused: u64,
    /// Connections that the tarpit holds now.
    pub held: u64,
    /// Connections that the tarpit has accepted.
    pub accepted: u64,
    /// Connections that had to go for newer ones.
    pub evicted: u64,
    /// Seconds that connections were held, of those that ended.
    pub seconds: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Why there is no decoy at the moment.
    pub problem: Option<String>,
}

/// What the decoy's task or thread tells.
#[derive(Default)]
struct State {
    held: AtomicU64,
    accepted: AtomicU64,
    evicted: AtomicU64,
    milliseconds: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl State {
    /// Tells it once, not at every look.
    fn set_problem(&self, problem: Option<String>) {
        let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != problem {
            match &problem {
                Some(problem) => tracing::warn!("no decoy: {problem}"),
                None => tracing::info!("the decoy listens"),
            }
            *told = problem;
        }
    }

    fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Decoy {
    /// Gives steering its sockets and keeps them there. Needs the agent's runtime.
    pub fn start(settings: &Settings, steering: Steering) -> Result<Self> {
        let Steering { mut sockets, counters, taken_over: _ } = steering;
        let state = Arc::new(State::default());
        let keeper = match settings.listener {
            DecoyListener::Tarpit => {
                let mut listeners = Vec::new();
                for version in Version::ALL {
                    let Some(listener) = listen(version).context("the tarpit can't listen")? else {
                        continue;
                    };
                    sockets.set(version, &listener)?;
                    listeners.push(listener);
                }
                let max = settings.max_connections;
                Keeper::Tarpit(Tarpit::start(listeners, max, Arc::clone(&state)))
            }
            DecoyListener::Local(at) => {
                Keeper::Named(Named::start(at, sockets, Arc::clone(&state))?)
            }
        };
        Ok(Self { counters, state, _keeper: keeper })
    }

    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = &self.state;
        Counts {
            steered: self.counters.get(Steered::ToDecoy),
            refused: self.counters.get(Steered::Refused),
            held: get(&state.held),
            accepted: get(&state.accepted),
            evicted: get(&state.evicted),
            seconds: get(&state.milliseconds) / 1_000,
            bytes_read: get(&state.bytes_read),
            bytes_written: get(&state.bytes_written),
            problem: state.problem.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A listener that nothing outside can reach but by steering; `None` where the host has no IPv6.
fn listen(version: Version) -> io::Result<Option<TcpListener>> {
    let address = match version {
        Version::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        Version::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    };
    let socket = match bind(address) {
        Ok(socket) => socket,
        Err(error) if version == Version::V6 && is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    TcpListener::from_std(socket.into()).map(Some)
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it; the kernel rounds it up to the least there is.
    socket.set_recv_buffer_size(1)?;
    socket.set_send_buffer_size(1)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

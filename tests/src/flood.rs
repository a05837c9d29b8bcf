//! UDP packets without end, and a witness that tells which of them arrive.
//!
//! The witness is an ordinary socket: it sees what the kernel's network stack lets through,
//! whichever hook drops the rest, and knows nothing of Portcullis.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::SockRef;

use crate::netns::Host;

/// No failsafe port.
pub const PORT: u16 = 9_999;
/// How often the threads look whether they are to stop.
const POLL: Duration = Duration::from_millis(20);
/// Packets sent without a pause in between, and the pause: about 10,000 a second.
const BURST: u64 = 20;
const PAUSE: Duration = Duration::from_millis(2);
const RECEIVE_BUFFER: usize = 32 * 1024 * 1024;

/// What arrived from one source.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    pub packets: u64,
    pub last: Instant,
}

/// Receives on [`PORT`] of a host until it is dropped.
pub struct Witness {
    arrived: Arc<Mutex<HashMap<IpAddr, Arrived>>>,
    thread: Stopping,
}

impl Witness {
    /// Listens on `host`, on IPv6 and IPv4.
    pub fn listen(host: &Host) -> anyhow::Result<Self> {
        let socket = host.run(|| Ok(UdpSocket::bind(("::", PORT))?))?;
        // Beyond what unprivileged programs get: the witness must not be what loses packets.
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::RcvBufForce,
            &RECEIVE_BUFFER,
        )?;
        socket.set_read_timeout(Some(POLL))?;
        let arrived: Arc<Mutex<HashMap<IpAddr, Arrived>>> = Arc::default();
        let seen = Arc::clone(&arrived);
        let thread = Stopping::spawn("witness", move |stop| {
            let mut packet = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                let Ok((_, from)) = socket.recv_from(&mut packet) else { continue };
                let (mut seen, now) = (lock(&seen), Instant::now());
                let new = Arrived { packets: 0, last: now };
                let entry = seen.entry(from.ip().to_canonical()).or_insert(new);
                *entry = Arrived { packets: entry.packets + 1, last: now };
            }
        })?;
        Ok(Self { arrived, thread })
    }

    /// Packets that arrived from `source` so far.
    pub fn packets(&self, source: IpAddr) -> u64 {
        self.of(source).map_or(0, |arrived| arrived.packets)
    }

    pub fn of(&self, source: IpAddr) -> Option<Arrived> {
        lock(&self.arrived).get(&source).copied()
    }

    /// It still listens.
    pub fn is_awake(&self) -> bool {
        self.thread.is_running()
    }
}

/// Sends from one address of a host until it is dropped.
pub struct Flood {
    sent: Arc<AtomicU64>,
    _thread: Stopping,
}

impl Flood {
    /// Sends to [`PORT`] of `to`.
    pub fn start(host: &Host, from: IpAddr, to: IpAddr) -> anyhow::Result<Self> {
        let socket = host.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
            socket.connect(SocketAddr::new(to, PORT))?;
            Ok(socket)
        })?;
        SockRef::from(&socket).set_send_buffer_size(RECEIVE_BUFFER)?;
        let sent: Arc<AtomicU64> = Arc::default();
        let count = Arc::clone(&sent);
        let thread = Stopping::spawn("flood", move |stop| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    if socket.send(b"flood").is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                thread::sleep(PAUSE);
            }
        })?;
        Ok(Self { sent, _thread: thread })
    }

    /// Packets handed to the host's network stack so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A thread that ends when this is dropped.
struct Stopping {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stopping {
    fn spawn(name: &str, work: impl FnOnce(&AtomicBool) + Send + 'static) -> anyhow::Result<Self> {
        let stop: Arc<AtomicBool> = Arc::default();
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(&told));
        Ok(Self { stop, thread: Some(thread.context("cannot start a thread")?) })
    }

    fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

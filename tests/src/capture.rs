//! What the probes report of plaintext, call by call, without an agent that makes something of it:
//! whose each piece is said to be.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use portcullis::capture::events::{self, Event};
use portcullis::capture::probes::Probes;
use portcullis::config::Config;
use portcullis::kernel::{self, LossCounters, SharedEbpf};
use portcullis_common::event::{Loss, direction};

use crate::netns::Lab;

/// A piece of what a server has read, from the beginning of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub server: SocketAddr,
    pub client: SocketAddr,
    pub data: Vec<u8>,
}

impl Read {
    /// Whom a request is from, when it says so in its path.
    pub fn sender(&self) -> Option<SocketAddr> {
        let path = self.data.strip_prefix(b"GET /")?.split(|byte| *byte == b' ').next()?;
        std::str::from_utf8(path).ok()?.parse().ok()
    }
}

/// Probes in everything on this machine; taken off when this is dropped.
pub struct Capture {
    reads: Arc<Mutex<Vec<Read>>>,
    losses: LossCounters,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    pub fn start(lab: &Lab) -> anyhow::Result<Self> {
        let mut config = Config::default();
        config.kernel.pin_dir = lab.pin_dir().to_owned();
        let loaded = kernel::load(&config)?;
        let ebpf = SharedEbpf::new(loaded.ebpf);
        let probes = Probes::start(ebpf, "/proc".into(), &config.capture)?;
        let (reads, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let reader = Reader { events: loaded.events, probes, reads: Arc::clone(&reads) };
        let stopped = Arc::clone(&stop);
        let reader = thread::Builder::new().spawn(move || reader.run(&stopped));
        let reader = Some(reader.context("no thread")?);
        Ok(Self { reads, losses: loaded.losses, stop, reader })
    }

    /// What was read of connections to `server` so far.
    pub fn reads(&self, server: SocketAddr) -> Vec<Read> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.iter().filter(|read| read.server == server).cloned().collect()
    }

    /// Calls whose socket was not known.
    pub fn without_socket(&self) -> anyhow::Result<u64> {
        Ok(self.losses.get(Loss::NoSocket)?.packets)
    }

    /// Calls that were lost otherwise.
    pub fn lost(&self) -> anyhow::Result<u64> {
        let others = Loss::ALL.into_iter().filter(|loss| *loss != Loss::NoSocket);
        others.map(|loss| Ok(self.losses.get(loss)?.packets)).sum()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

struct Reader {
    events: RingBuf<MapData>,
    probes: Probes,
    reads: Arc<Mutex<Vec<Read>>>,
}

impl Reader {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Some(record) = self.events.next() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            match events::decode(&record) {
                Ok(Event::TlsData(header, data)) if header.direction == direction::READ => {
                    let (server, client) = kernel::flow_addresses(&header.flow);
                    let read = Read { server, client, data: data.to_vec() };
                    self.reads.lock().unwrap_or_else(PoisonError::into_inner).push(read);
                }
                Ok(Event::Exec(exec)) => self.probes.process_started(exec.pid),
                Ok(Event::NoSocket(found)) => self.probes.carrier_found(found.pid),
                _ => {}
            }
        }
    }
}

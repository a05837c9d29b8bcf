//! TLS ClientHellos in TCP segments, and what the programs make of them.

use std::net::IpAddr;

use anyhow::Result;
use aya::maps::{Array, HashMap, Map, MapData};
use portcullis_common::event::{ClientHello, HelloCount, kind};
use portcullis_common::fingerprint::{self, Refusal, Seed, Transport as Carrier};
use portcullis_common::names::pinned;
use portcullis_common::net::{Addr, FlowInfo, FlowKey, TCP};
use portcullis_common::settings::{Settings, feature};

use super::frame::{Frame, Transport};
use super::harness::{Hook, Kernel};

/// What real clients sent, with the record's header.
pub const REAL: [(&str, &[u8]); 5] = [
    ("OpenSSL 3.0, s_client", include_bytes!("../../fixtures/hellos/openssl")),
    ("OpenSSL 3.0, TLS 1.2, no server name", include_bytes!("../../fixtures/hellos/openssl_tls12")),
    ("curl 7.88 with OpenSSL 3.0", include_bytes!("../../fixtures/hellos/curl")),
    ("GnuTLS 3.7, gnutls-cli", include_bytes!("../../fixtures/hellos/gnutls")),
    ("Node.js", include_bytes!("../../fixtures/hellos/node")),
];

/// A hello of this many bytes, with its record's header: a real one with more padding (RFC 7685), as
/// keys of post-quantum cryptography make it.
pub fn of_size(size: usize) -> Vec<u8> {
    let [(_, real), ..] = REAL;
    let added = size - real.len() - 4;
    let mut message = real[5..].to_vec();
    let extensions_at = 4 + 2 + 32 + 1 + usize::from(message[38]);
    let extensions_at = extensions_at + 2 + usize::from(word(&message, extensions_at));
    let extensions_at = extensions_at + 1 + usize::from(message[extensions_at]);
    add(&mut message, extensions_at, added + 4);
    add(&mut message, 2, added + 4);
    message.extend([0, 21]);
    message.extend((added as u16).to_be_bytes());
    message.resize(message.len() + added, 0);
    in_records(&message, &[usize::MAX])
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn add(bytes: &mut [u8], at: usize, more: usize) {
    let sum = word(bytes, at) + more as u16;
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A handshake message in records, cut into pieces of these lengths in turn.
pub fn in_records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut lengths = lengths.iter().cycle();
    let mut rest = message;
    let mut records = Vec::new();
    while let Some(len) = lengths.next().filter(|_| !rest.is_empty()) {
        let (piece, after) = rest.split_at((*len).min(rest.len()).min(1 << 14));
        records.extend([22, 3, 1]);
        records.extend((piece.len() as u16).to_be_bytes());
        records.extend(piece);
        rest = after;
    }
    records
}

/// A TCP flow from a client to port 443.
#[derive(Clone, Debug)]
pub struct Flow {
    /// What its frames look like but for the segment.
    pub frame: Frame,
    pub port: u16,
    /// Sequence number of the first byte.
    pub first: u32,
}

impl Flow {
    pub fn from(source: IpAddr, port: u16) -> Self {
        // Near the end of the sequence numbers, so that they wrap.
        Self { frame: Frame::from(source), port, first: u32::MAX - 100 }
    }

    pub fn syn(&self) -> Vec<u8> {
        self.frame(self.first.wrapping_sub(1), 0x02, &[])
    }

    /// A segment with the bytes from `at` on.
    pub fn segment(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        self.frame(self.first.wrapping_add(at as u32), 0x18, bytes)
    }

    pub fn frame(&self, sequence: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
        let transport = Transport::Segment { source: self.port, destination: 443, sequence, flags };
        self.frame.clone().transport(transport).payload(bytes.to_vec()).bytes()
    }

    pub fn key(&self) -> FlowKey {
        let mapped = |address: IpAddr| match address {
            IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
            IpAddr::V6(v6) => Addr(v6.octets()),
        };
        FlowKey {
            local: mapped(self.frame.destination()),
            remote: mapped(self.frame.source),
            local_port: 443,
            remote_port: self.port,
            protocol: TCP,
        }
    }
}

/// A kernel that looks for fingerprints.
pub struct Fingerprints {
    pub kernel: Kernel,
    seed: Seed,
    flows: HashMap<MapData, FlowKey, FlowInfo>,
    known: HashMap<MapData, u64, [u8; 40]>,
}

impl Fingerprints {
    pub fn new() -> Result<Self> {
        let kernel = Kernel::with(|config| config.capture.ring_bytes = 1024 * 1024)?;
        let mut settings: Array<_, Settings> =
            Map::Array(pin(&kernel, pinned::SETTINGS)?).try_into()?;
        let mut all = settings.get(&0, 0)?;
        all.features |= feature::FINGERPRINTS;
        settings.set(0, all, 0)?;
        let flows = Map::LruHashMap(pin(&kernel, pinned::FLOWS)?).try_into()?;
        let known = Map::HashMap(pin(&kernel, pinned::KNOWN)?).try_into()?;
        Ok(Self { kernel, seed: Seed(all.seed), flows, known })
    }

    /// The key that userspace finds.
    pub fn key(&self, records: &[u8]) -> Result<u64, Refusal> {
        fingerprint::key(records, Carrier::Tcp, self.seed)
    }

    /// Shows frames to a program.
    pub fn show(&self, hook: Hook, frames: &[Vec<u8>]) -> Result<()> {
        frames.iter().try_for_each(|frame| self.kernel.run(hook, frame).map(drop))
    }

    /// What the kernel has for a flow.
    pub fn of(&self, flow: &Flow) -> Option<u64> {
        self.flows.get(&flow.key(), 0).ok().map(|info| info.fingerprint)
    }

    pub fn forget(&mut self, flow: &Flow) -> Result<()> {
        Ok(self.flows.remove(&flow.key())?)
    }

    /// Makes keys known, so that their hellos are not reported.
    pub fn learn(&mut self, key: u64) -> Result<()> {
        Ok(self.known.insert(key, [0; 40], 0)?)
    }

    /// Hellos counted so far, over all CPUs.
    pub fn count(&self, what: HelloCount) -> Result<u64> {
        self.kernel.loaded.hellos.get(what)
    }

    /// What was reported since the last call: flow, key and bytes.
    pub fn reported(&mut self) -> Vec<(FlowKey, u64, Vec<u8>)> {
        let mut reported = Vec::new();
        while let Some(record) = self.kernel.loaded.events.next() {
            reported.push(client_hello(&record).expect("a record of another kind"));
        }
        reported
    }
}

fn pin(kernel: &Kernel, name: &str) -> Result<MapData> {
    let maps = std::fs::read_dir(kernel.pin_dir())?;
    for dir in maps {
        let path = dir?.path().join(name);
        if path.exists() {
            return Ok(MapData::from_pin(path)?);
        }
    }
    anyhow::bail!("{name} is not pinned")
}

fn client_hello(record: &[u8]) -> Option<(FlowKey, u64, Vec<u8>)> {
    let (header, bytes) = record.split_at_checked(size_of::<ClientHello>())?;
    // SAFETY: as long as the type, whose every bit pattern is valid; the read needs no alignment.
    let header = unsafe { header.as_ptr().cast::<ClientHello>().read_unaligned() };
    let is_whole = header.kind == kind::CLIENT_HELLO && header.len as usize == bytes.len();
    is_whole.then(|| (header.flow, header.fingerprint, bytes.to_vec()))
}

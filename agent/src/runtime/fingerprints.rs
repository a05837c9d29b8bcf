//! TLS fingerprints that the kernel came upon: their names, and whose they are.

use std::sync::Arc;

use portcullis_common::event;
use portcullis_common::fingerprint as numbers;
use portcullis_common::names::capacity;

use super::core::Core;
use crate::enforce::{EnforceError, Flow, PolicyMaps};
use crate::fingerprint::quic::{self, Initials};
use crate::fingerprint::{ClientHello, Known, Table, Transport};
use crate::kernel;
use crate::time::Timestamp;

/// A part of the kernel's table: the rest of it is for fingerprints with rules, which are not
/// forgotten.
const REMEMBERED: usize = capacity::KNOWN as usize / 4 * 3;

/// What is known of fingerprints, and the hellos of QUIC in the making.
pub(super) struct Fingerprints {
    table: Table,
    initials: Initials,
    unreadable: u64,
    no_room: u64,
    unknown: u64,
}

impl Fingerprints {
    /// Begins with what earlier agents learned.
    pub fn new(known: Vec<(u64, Arc<str>)>) -> Self {
        let mut table = Table::new(REMEMBERED);
        for (fingerprint, ja4) in known {
            // The JA3 is not kept in the kernel.
            table.learn(fingerprint, Known { ja4, ja3: "".into() });
        }
        Self {
            table,
            initials: Initials::new(quic::Settings::default()),
            unreadable: 0,
            no_room: 0,
            unknown: 0,
        }
    }

    /// Every counter with its name. They only grow.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let (learned, evicted) = self.table.counts();
        let own = [
            ("learned", learned),
            ("evicted", evicted),
            ("no_room", self.no_room),
            ("unreadable", self.unreadable),
            ("unknown", self.unknown),
        ];
        own.into_iter().chain(self.initials.counts().iter())
    }

    pub fn expire(&mut self, now: Timestamp) {
        self.initials.expire(now);
    }
}

impl<P: PolicyMaps> Core<P> {
    /// A hello over TCP whose fingerprint the kernel did not know, or has rules for.
    pub(super) fn client_hello(&mut self, header: &event::ClientHello, records: &[u8]) {
        match ClientHello::from_records(records) {
            Ok(hello) => {
                let known = Known::new(&hello, Transport::Tcp);
                let ja4 = Arc::clone(&known.ja4);
                let is_news = self.learn(header.fingerprint, known);
                let keys = is_news.then_some(header.fingerprint);
                self.close_shown(&ja4, kernel::flow_of(&header.flow), keys);
            }
            Err(error) => {
                // The kernel reads what this reads: only its own fault leads here.
                self.fingerprints.unreadable += 1;
                tracing::debug!("a hello can't be read: {error}");
            }
        }
    }

    /// A datagram that a QUIC connection begins with.
    pub(super) fn quic_initial(&mut self, header: &event::QuicInitial, payload: &[u8]) {
        let now = self.clock.at(header.time_ns);
        let Some(done) = self.fingerprints.initials.datagram(header.flow, payload, now) else {
            return;
        };
        let seed = self.maps.seed();
        match numbers::key(&done.message, numbers::Transport::Quic, seed) {
            Ok(fingerprint) => {
                self.learn(fingerprint, Known::new(&done.hello, Transport::Quic));
                let flow = kernel::flow_of(&header.flow);
                let noted = self.maps.set_fingerprint_of(&flow, fingerprint, header.time_ns);
                if let Err(error) = noted {
                    tracing::warn!("a flow's fingerprint can't be noted: {error}");
                }
            }
            Err(refusal) => {
                self.fingerprints.unreadable += 1;
                tracing::debug!("a hello has no key: {refusal:?}");
            }
        }
    }

    /// Whether it is news to the kernel, which has the JA4's rules hold for the fingerprint then.
    fn learn(&mut self, fingerprint: u64, known: Known) -> bool {
        let ja4 = Arc::clone(&known.ja4);
        let before = self.fingerprints.table.learn(fingerprint, known).evicted;
        if let Some((oldest, was)) = before
            && let Err(error) = self.maps.forget(oldest, &was.ja4)
        {
            tracing::warn!("a fingerprint can't be forgotten: {error}");
        }
        match self.maps.learn(fingerprint, &ja4) {
            Ok(is_news) => return is_news,
            Err(EnforceError::NoRoom { .. }) => self.fingerprints.no_room += 1,
            Err(error) => tracing::warn!("a fingerprint can't be noted: {error}"),
        }
        false
    }

    /// The JA4 of the client on this TCP connection, if its hello was seen and is known.
    pub(super) fn ja4_of(&mut self, flow: &event::TlsData) -> Option<Arc<str>> {
        let (server, client) = kernel::flow_addresses(&flow.flow);
        let flow = Flow { client, server, is_udp: false };
        let fingerprint = self.maps.fingerprint_of(&flow)?;
        let known = self.fingerprints.table.get(fingerprint);
        if known.is_none() {
            self.fingerprints.unknown += 1;
        }
        known.map(|known| Arc::clone(&known.ja4))
    }
}

//! The first packets of a QUIC client (RFC 9001, RFC 9369), with rustls' hello and protection.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use rustls::crypto::ring::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider};
use rustls::quic::{ClientConnection, Version};
use rustls::{ClientConfig, RootCertStore, Side};

/// Datagrams with Initial packets are no shorter (RFC 9000, section 14.1).
const DATAGRAM: usize = 1200;
const TAG: usize = 16;

/// A client that has written its hello.
pub struct QuicClient {
    version: Version,
    /// The connection id that it chose for the server.
    id: [u8; 8],
    /// The ClientHello.
    pub message: Vec<u8>,
}

impl QuicClient {
    pub fn new(version: Version, id: [u8; 8]) -> anyhow::Result<Self> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h3".to_vec()];
        let name = "shop.example".try_into()?;
        // One transport parameter: initial_max_data (RFC 9000, section 18.2).
        let parameters = vec![4, 2, 0x40, 0];
        let mut client = ClientConnection::new(Arc::new(config), version, name, parameters)?;
        let mut message = Vec::new();
        client.write_hs(&mut message);
        Ok(Self { version, id, message })
    }

    /// A datagram of one packet, which carries the hello from `begin` to `end`.
    pub fn datagram(&self, number: u8, begin: usize, end: usize) -> anyhow::Result<Vec<u8>> {
        let piece = self.message.get(begin..end).context("no such piece of the hello")?;
        let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
        let suite = suite.context("no QUIC in rustls")?;
        let keys = suite.keys(&self.id, Side::Client, self.version).local;
        let (first, version): (u8, u32) = match self.version {
            Version::V1 => (0xc0, 1),
            Version::V2 => (0xd0, 0x6b33_43cf),
            other => return Err(anyhow!("{other:?} is not to be sent")),
        };
        let mut packet = [&[first], &version.to_be_bytes()[..], &[8], &self.id, &[0, 0]].concat();
        // The length, then a number of one byte.
        packet.extend(varint(DATAGRAM - packet.len() - 2));
        let number_at = packet.len();
        packet.push(number);
        let mut frames = [&[6], &varint(begin)[..], &varint(piece.len()), piece].concat();
        frames.resize(DATAGRAM - packet.len() - TAG, 0);
        let tag = keys.packet.encrypt_in_place(number.into(), &packet, &mut frames)?;
        packet.extend(frames);
        packet.extend(tag.as_ref());
        let (header, rest) = packet.split_at_mut(number_at);
        let (number, payload) = rest.split_at_mut(1);
        let (Some(first), Some(sample)) = (header.first_mut(), payload.get(3..3 + TAG)) else {
            return Err(anyhow!("a short packet"));
        };
        keys.header.encrypt_in_place(sample, first, number)?;
        Ok(packet)
    }
}

/// A number of variable length, in two bytes (RFC 9000, section 16).
fn varint(number: usize) -> [u8; 2] {
    let [.., high, low] = number.to_be_bytes();
    [high | 0x40, low]
}

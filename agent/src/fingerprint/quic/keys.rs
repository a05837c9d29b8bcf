//! Protection of Initial packets: RFC 9001, section 5, and RFC 9369, section 3.3.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aes_gcm::{Aes128Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;

use super::packet::{Initial, Kind};

/// Length of the AEAD's tag, and of the sample that the header is protected with.
const TAG: usize = 16;
const IV: usize = 12;

/// The versions whose packets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    V1,
    V2,
}

impl Version {
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0x0000_0001 => Some(Self::V1),
            0x6b33_43cf => Some(Self::V2),
            _ => None,
        }
    }

    /// The type that the first byte of a long header tells.
    pub fn packet_kind(self, first: u8) -> Kind {
        let in_version_1 = match self {
            Self::V1 => first >> 4 & 3,
            // Each one further than in version 1.
            Self::V2 => (first >> 4 & 3).wrapping_sub(1) & 3,
        };
        match in_version_1 {
            0 => Kind::Initial,
            1 => Kind::ZeroRtt,
            2 => Kind::Handshake,
            _ => Kind::Retry,
        }
    }

    const fn salt(self) -> [u8; 20] {
        match self {
            Self::V1 => [
                0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8,
                0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a,
            ],
            Self::V2 => [
                0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26,
                0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9,
            ],
        }
    }

    /// Labels of the key, the IV and the key of header protection.
    const fn labels(self) -> [&'static str; 3] {
        match self {
            Self::V1 => ["quic key", "quic iv", "quic hp"],
            Self::V2 => ["quicv2 key", "quicv2 iv", "quicv2 hp"],
        }
    }
}

/// What the client's Initial packets of a connection are protected with. It is no secret: it
/// follows from the connection id that the client chose.
pub struct ClientKeys {
    pub(super) packet: Aes128Gcm,
    iv: [u8; IV],
    header: Aes128,
}

impl ClientKeys {
    /// `destination` is the destination connection id of the client's first packet. `None` does
    /// not happen: all the lengths fit SHA-256.
    pub fn new(version: Version, destination: &[u8]) -> Option<Self> {
        let initial = Hkdf::<Sha256>::new(Some(&version.salt()), destination);
        let client = expand::<32>(&initial, "client in")?;
        let client = Hkdf::<Sha256>::from_prk(&client).ok()?;
        let [key, iv, hp] = version.labels();
        Some(Self {
            packet: Aes128Gcm::new(&expand::<16>(&client, key)?.into()),
            iv: expand(&client, iv)?,
            header: Aes128::new(&expand::<16>(&client, hp)?.into()),
        })
    }

    /// The frames in `packet`, decrypted in `buffer`, whose former content is lost; `None` if
    /// the packet was not protected with these keys.
    pub fn open<'b>(&self, packet: &Initial<'_>, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        buffer.clear();
        buffer.extend_from_slice(packet.bytes);
        // The sample lies where it would if the number had its full four bytes.
        let sample_at = packet.number_at.checked_add(4)?;
        let sample = packet.bytes.get(sample_at..)?.first_chunk::<TAG>()?;
        let [mask_first, mask_number @ ..] = self.mask(sample);

        let first = buffer.first_mut()?;
        *first ^= mask_first & 0x0f;
        let number_length = usize::from(*first & 3) + 1;
        let number_bytes = buffer.get_mut(packet.number_at..)?.get_mut(..number_length)?;
        let mut number = 0u32;
        for (byte, mask) in number_bytes.iter_mut().zip(mask_number) {
            *byte ^= mask;
            number = number << 8 | u32::from(*byte);
        }
        let payload_at = packet.number_at.checked_add(number_length)?;
        let (header, payload) = buffer.split_at_mut_checked(payload_at)?;
        let (frames, tag) = payload.split_last_chunk_mut::<TAG>()?;
        let tag = (*tag).into();
        let nonce = self.nonce(number);
        self.packet.decrypt_inout_detached(&nonce, header, (&mut *frames).into(), &tag).ok()?;
        Some(frames)
    }

    /// What the first byte and the number of a packet are combined with.
    pub(super) fn mask(&self, sample: &[u8; TAG]) -> [u8; 5] {
        let mut block = (*sample).into();
        self.header.encrypt_block(&mut block);
        let [a, b, c, d, e, ..]: [u8; TAG] = block.into();
        [a, b, c, d, e]
    }

    /// `number` as the packet has it: until the server acknowledges some, clients send their
    /// packet numbers whole (RFC 9000, section 17.1).
    pub(super) fn nonce(&self, number: u32) -> Nonce<aes_gcm::aes::cipher::consts::U12> {
        let mut nonce = self.iv;
        if let Some(low) = nonce.last_chunk_mut::<4>() {
            *low = (u32::from_be_bytes(*low) ^ number).to_be_bytes();
        }
        nonce.into()
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand<const LENGTH: usize>(secret: &Hkdf<Sha256>, label: &str) -> Option<[u8; LENGTH]> {
    const PREFIX: &str = "tls13 ";
    let mut key = [0; LENGTH];
    let length = u16::try_from(LENGTH).ok()?.to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).ok()?;
    let info = [&length[..], &[label_length], PREFIX.as_bytes(), label.as_bytes(), &[0]];
    secret.expand_multi_info(&info, &mut key).ok()?;
    Some(key)
}

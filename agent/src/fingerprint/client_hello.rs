//! The ClientHello message (RFC 8446, section 4.1.2; RFC 5246, section 7.4.1.2), as far as
//! fingerprints need it.

use super::reader::Reader;

/// The longest hello that is read, record headers counted, in bytes. Those with post-quantum key
/// shares have two thousand; what is longer than this is no client's.
pub const MAX_HELLO: usize = 8 * 1024;
/// The most records that one hello may be spread over.
const MAX_RECORDS: usize = 1024;
/// The most cipher suites, extensions, versions and signature algorithms, together.
const MAX_ITEMS: usize = 512;
/// The longest fragment of a record (RFC 8446, section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// Extensions whose content matters.
mod extension {
    pub const SUPPORTED_GROUPS: u16 = 10;
    pub const EC_POINT_FORMATS: u16 = 11;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const ALPN: u16 = 16;
    pub const SUPPORTED_VERSIONS: u16 = 43;
}

/// A ClientHello. Lists are as sent: in their order, with GREASE and with repetitions.
///
/// Read as leniently as the kernel's side reads it, so that every hello with a key has names:
/// of an extension that comes twice, which no server accepts, the first counts; a list that claims
/// to be longer than what it lies in ends with it; left-over bytes mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// `legacy_version`: the highest version of clients older than TLS 1.3.
    pub legacy_version: u16,
    pub cipher_suites: Vec<u16>,
    /// Types of the extensions.
    pub extensions: Vec<u16>,
    /// Absent without the extension, which clients older than TLS 1.3 do not send.
    pub supported_versions: Option<Vec<u16>>,
    /// The first protocol of the ALPN extension; empty without one.
    pub first_protocol: Vec<u8>,
    pub signature_algorithms: Vec<u16>,
    pub supported_groups: Vec<u16>,
    pub point_formats: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("more bytes are to come")]
    Incomplete,
    #[error("it is not a ClientHello")]
    NotHello,
    /// Or one with more bytes, records or values than the bounds allow.
    #[error("it is a malformed ClientHello")]
    Malformed,
}

impl ClientHello {
    /// Reads a handshake message; what follows it in `bytes` is left alone.
    ///
    /// # Errors
    /// [`HelloError::Incomplete`] while `bytes` is the beginning of what may become a ClientHello
    /// of at most [`MAX_HELLO`] bytes.
    pub fn from_handshake(bytes: &[u8]) -> Result<Self, HelloError> {
        let mut reader = Reader::new(bytes);
        match reader.u8() {
            Some(CLIENT_HELLO) => {}
            Some(_) => return Err(HelloError::NotHello),
            None => return Err(HelloError::Incomplete),
        }
        let length = reader.u24().ok_or(HelloError::Incomplete)? as usize;
        if length > MAX_HELLO - 4 {
            return Err(HelloError::Malformed);
        }
        let body = reader.take(length).ok_or(HelloError::Incomplete)?;
        let hello = Self::from_body(Reader::new(body)).ok_or(HelloError::Malformed)?;
        if hello.items() > MAX_ITEMS { Err(HelloError::Malformed) } else { Ok(hello) }
    }

    /// Reads a handshake message out of the TLS records that a connection begins with.
    ///
    /// # Errors
    /// As [`Self::from_handshake`].
    pub fn from_records(bytes: &[u8]) -> Result<Self, HelloError> {
        let mut reader = Reader::new(bytes.get(..MAX_HELLO).unwrap_or(bytes));
        let mut message = Vec::new();
        for _ in 0..MAX_RECORDS {
            let fragment = match next_fragment(&mut reader) {
                Err(HelloError::Incomplete) if bytes.len() >= MAX_HELLO => {
                    return Err(HelloError::Malformed);
                }
                result => result?,
            };
            message.extend_from_slice(fragment);
            match Self::from_handshake(&message) {
                Err(HelloError::Incomplete) => {}
                result => return result,
            }
        }
        Err(HelloError::Malformed)
    }

    fn from_body(mut body: Reader<'_>) -> Option<Self> {
        let legacy_version = body.u16()?;
        let _random = body.take(32)?;
        let _session_id = body.vector8()?;
        let cipher_suites = body.vector16()?;
        if cipher_suites.rest().len() % 2 != 0 {
            return None;
        }
        let _compression_methods = body.vector8()?;
        let cipher_suites = cipher_suites.numbers();
        let mut hello = Self { legacy_version, cipher_suites, ..Self::default() };
        if body.rest().len() < 2 {
            // Clients older than RFC 3546 send no extensions.
            return Some(hello);
        }
        let mut extensions = body.vector16()?;
        // A bit for each type below 64: those whose content matters are.
        let mut seen = 0u64;
        while extensions.rest().len() >= 4 {
            let kind = extensions.u16()?;
            let content = extensions.vector16()?;
            hello.extensions.push(kind);
            let bit = 1u64.checked_shl(u32::from(kind)).unwrap_or(0);
            if seen & bit == 0 {
                hello.extension(kind, content);
            }
            seen |= bit;
        }
        Some(hello)
    }

    fn extension(&mut self, kind: u16, mut content: Reader<'_>) {
        match kind {
            extension::SUPPORTED_GROUPS => self.supported_groups = content.list16().numbers(),
            extension::EC_POINT_FORMATS => self.point_formats = content.list8().rest().to_vec(),
            extension::SIGNATURE_ALGORITHMS => {
                self.signature_algorithms = content.list16().numbers();
            }
            extension::ALPN => {
                self.first_protocol = content.list16().list8().rest().to_vec();
            }
            extension::SUPPORTED_VERSIONS => {
                self.supported_versions = Some(content.list8().numbers());
            }
            _ => {}
        }
    }

    /// Values that the kernel's side counts.
    fn items(&self) -> usize {
        let versions = self.supported_versions.as_ref().map_or(0, Vec::len);
        let signatures = self.signature_algorithms.len();
        self.cipher_suites.len() + self.extensions.len() + versions + signatures
    }
}

/// The content of the next record, which must be of the handshake (RFC 8446, section 5.1).
fn next_fragment<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], HelloError> {
    match reader.u8() {
        Some(HANDSHAKE_RECORD) => {}
        Some(_) => return Err(HelloError::NotHello),
        None => return Err(HelloError::Incomplete),
    }
    match reader.u8() {
        // Whatever the minor version: servers ignore it.
        Some(3) => {}
        Some(_) => return Err(HelloError::NotHello),
        None => return Err(HelloError::Incomplete),
    }
    let _minor_version = reader.u8().ok_or(HelloError::Incomplete)?;
    let length = usize::from(reader.u16().ok_or(HelloError::Incomplete)?);
    if length == 0 || length > MAX_FRAGMENT {
        return Err(HelloError::Malformed);
    }
    // A part of a record is a part of the message.
    reader.take(length.min(reader.rest().len())).ok_or(HelloError::Incomplete)
}

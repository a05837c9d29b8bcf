//! JA4 of TLS clients, as FoxIO publishes it (BSD 3-Clause): `technical_details/JA4.md` of
//! github.com/FoxIO-LLC/ja4.

use std::fmt::{self, Display, Write as _};

use sha2::{Digest as _, Sha256};

use super::client_hello::ClientHello;
use super::is_grease;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What the hello came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Quic,
}

/// The parts of a hello that JA4 is made of: GREASE left out, lists sorted.
///
/// Two hellos with equal parts have the same raw JA4, and the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ja4 {
    /// The readable part, such as `t13d1516h2`.
    head: String,
    cipher_suites: Vec<u16>,
    /// Without server name and ALPN, which the head tells of.
    extensions: Vec<u16>,
    /// In the client's order.
    signature_algorithms: Vec<u16>,
}

impl Ja4 {
    pub fn new(hello: &ClientHello, transport: Transport) -> Self {
        let without_grease =
            |list: &[u16]| list.iter().copied().filter(|&n| !is_grease(n)).collect::<Vec<_>>();
        let mut cipher_suites = without_grease(&hello.cipher_suites);
        let mut extensions = without_grease(&hello.extensions);
        let head = format!(
            "{}{}{}{:02}{:02}{}",
            match transport {
                Transport::Tcp => 't',
                Transport::Quic => 'q',
            },
            version(hello),
            if extensions.contains(&SERVER_NAME) { 'd' } else { 'i' },
            cipher_suites.len().min(99),
            extensions.len().min(99),
            protocol(&hello.first_protocol),
        );
        extensions.retain(|&kind| kind != SERVER_NAME && kind != ALPN);
        cipher_suites.sort_unstable();
        extensions.sort_unstable();
        let signature_algorithms = without_grease(&hello.signature_algorithms);
        Self { head, cipher_suites, extensions, signature_algorithms }
    }

    /// The published form, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
    pub fn hashed(&self) -> String {
        let ciphers = if self.cipher_suites.is_empty() {
            NOTHING.to_owned()
        } else {
            hash12(&self.ciphers().to_string())
        };
        let rest = if self.extensions.is_empty() {
            NOTHING.to_owned()
        } else {
            hash12(&self.extensions_and_signatures().to_string())
        };
        format!("{}_{ciphers}_{rest}", self.head)
    }

    /// The form before hashing, which FoxIO calls `JA4_r`.
    pub fn raw(&self) -> String {
        format!("{}_{}_{}", self.head, self.ciphers(), self.extensions_and_signatures())
    }

    fn ciphers(&self) -> impl Display {
        fmt::from_fn(|f| hexadecimal(f, &self.cipher_suites))
    }

    fn extensions_and_signatures(&self) -> impl Display {
        fmt::from_fn(|f| {
            hexadecimal(f, &self.extensions)?;
            if !self.signature_algorithms.is_empty() {
                f.write_char('_')?;
            }
            hexadecimal(f, &self.signature_algorithms)
        })
    }
}

/// In the place of the hash of an empty list.
const NOTHING: &str = "000000000000";

/// The highest version that the client offers, in two characters.
fn version(hello: &ClientHello) -> &'static str {
    let offered = match &hello.supported_versions {
        Some(versions) => versions.iter().copied().filter(|&v| !is_grease(v)).max(),
        None => Some(hello.legacy_version),
    };
    match offered {
        Some(0x0304) => "13",
        Some(0x0303) => "12",
        Some(0x0302) => "11",
        Some(0x0301) => "10",
        Some(0x0300) => "s3",
        Some(0x0002) => "s2",
        Some(0xfeff) => "d1",
        Some(0xfefd) => "d2",
        Some(0xfefc) => "d3",
        Some(_) | None => "00",
    }
}

/// The ends of the first application protocol, in two characters.
fn protocol(name: &[u8]) -> String {
    let (Some(&first), Some(&last)) = (name.first(), name.last()) else { return "00".to_owned() };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [first, last].map(char::from).iter().collect();
    }
    // The ends of its hexadecimal form.
    format!("{:x}{:x}", first >> 4, last & 0xf)
}

fn hexadecimal(f: &mut fmt::Formatter<'_>, list: &[u16]) -> fmt::Result {
    for (index, number) in list.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(f, "{comma}{number:04x}")?;
    }
    Ok(())
}

/// The first 12 digits of the SHA-256.
fn hash12(text: &str) -> String {
    Sha256::digest(text).iter().take(6).fold(String::new(), |mut digits, byte| {
        // Writing to a String does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

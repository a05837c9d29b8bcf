//! Hellos made to measure.

use crate::fingerprint::{ClientHello, Ja4, Transport};

/// What a hello is to hold. Extensions without content of their own here are sent empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub legacy_version: u16,
    pub ciphers: Vec<u16>,
    /// In their order.
    pub extensions: Vec<u16>,
    pub versions: Vec<u16>,
    pub protocols: Vec<Vec<u8>>,
    pub signatures: Vec<u16>,
    pub groups: Vec<u16>,
    pub formats: Vec<u8>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            legacy_version: 0x0303,
            ciphers: Vec::new(),
            extensions: Vec::new(),
            versions: vec![0x0304, 0x0303],
            protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            signatures: Vec::new(),
            groups: Vec::new(),
            formats: vec![0],
        }
    }
}

impl Spec {
    /// With the lists of a JA3's text.
    pub fn of_ja3(text: &str) -> Self {
        let [version, ciphers, extensions, groups, formats] =
            text.split(',').collect::<Vec<_>>()[..]
        else {
            panic!("{text}");
        };
        Self {
            legacy_version: version.parse().unwrap(),
            ciphers: decimals(ciphers),
            extensions: decimals(extensions),
            groups: decimals(groups),
            formats: decimals(formats).into_iter().map(|one| one.try_into().unwrap()).collect(),
            ..Self::default()
        }
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let mut body = self.legacy_version.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.extend(vector8(&[9; 32]));
        body.extend(vector16(&numbers(&self.ciphers)));
        body.extend(vector8(&[0]));
        if !self.extensions.is_empty() {
            let extension =
                |&kind: &u16| [kind.to_be_bytes().to_vec(), vector16(&self.content(kind))].concat();
            body.extend(vector16(&self.extensions.iter().flat_map(extension).collect::<Vec<_>>()));
        }
        let [.., a, b, c] = body.len().to_be_bytes();
        [vec![1, a, b, c], body].concat()
    }

    fn content(&self, kind: u16) -> Vec<u8> {
        match kind {
            0 => vector16(&[&[0][..], &vector16(b"shop.example")].concat()),
            10 => vector16(&numbers(&self.groups)),
            11 => vector8(&self.formats),
            13 => vector16(&numbers(&self.signatures)),
            16 => vector16(&self.protocols.iter().flat_map(|one| vector8(one)).collect::<Vec<_>>()),
            43 => vector8(&numbers(&self.versions)),
            _ => Vec::new(),
        }
    }

    pub fn hello(&self) -> ClientHello {
        ClientHello::from_handshake(&self.message()).unwrap()
    }

    pub fn ja4(&self) -> Ja4 {
        Ja4::new(&self.hello(), Transport::Tcp)
    }
}

/// Numbers as JA4 writes them: `1301,c02b`.
pub fn list(text: &str) -> Vec<u16> {
    let number = |digits: &str| u16::from_str_radix(digits, 16).unwrap();
    text.split(',').filter(|digits| !digits.is_empty()).map(number).collect()
}

/// Numbers as JA3 writes them: `4865-49195`.
fn decimals(dashed: &str) -> Vec<u16> {
    dashed.split('-').filter(|one| !one.is_empty()).map(|one| one.parse().unwrap()).collect()
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    let (pairs, rest) = digits.as_chunks();
    assert!(rest.is_empty());
    pairs.iter().map(byte).collect()
}

fn numbers(list: &[u16]) -> Vec<u8> {
    list.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

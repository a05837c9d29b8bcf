//! A second JA4, to compare the agent's with: written from the description alone
//! (`technical_details/JA4.md` of github.com/FoxIO-LLC/ja4, BSD 3-Clause), for hellos that real
//! clients sent over TCP. It shares nothing with the agent, and takes what it reads to be well
//! formed.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The JA4 of the client that began a TCP connection with these bytes.
pub fn of(connection: &[u8]) -> Result<String> {
    let message = first_message(connection)?;
    let mut body = Bytes(&message[4..]);
    let legacy_version = body.number(2)?;
    body.take(32)?;
    body.vector(1)?;
    let ciphers = without_grease(body.vector(2)?.numbers()?);
    body.vector(1)?;

    let mut kinds = Vec::new();
    let (mut version, mut protocol, mut signatures) = (legacy_version, "00".to_owned(), Vec::new());
    let mut extensions = body.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut content = extensions.vector(2)?;
        kinds.push(kind);
        match kind {
            0x000d => signatures = without_grease(content.vector(2)?.numbers()?),
            0x0010 => protocol = ends(content.vector(2)?.vector(1)?.0),
            0x002b => {
                let offered = without_grease(content.vector(1)?.numbers()?);
                version = offered.into_iter().max().context("no version is offered")?;
            }
            _ => {}
        }
    }
    let kinds = without_grease(kinds);

    let version = match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        _ => "00",
    };
    let destination = if kinds.contains(&0) { "d" } else { "i" };
    let (cipher_count, extension_count) = (ciphers.len().min(99), kinds.len().min(99));
    let head = format!("t{version}{destination}{cipher_count:02}{extension_count:02}{protocol}");

    let hashed_kinds = kinds.into_iter().filter(|kind| ![0x0000, 0x0010].contains(kind)).collect();
    let mut rest = listed(sorted(hashed_kinds));
    if !signatures.is_empty() {
        rest = format!("{rest}_{}", listed(signatures));
    }
    Ok(format!("{head}_{}_{}", hash(&listed(sorted(ciphers))), hash(&rest)))
}

/// The ClientHello, out of as many records as it is in.
fn first_message(connection: &[u8]) -> Result<Vec<u8>> {
    let mut records = Bytes(connection);
    let mut message = Vec::new();
    loop {
        ensure!(records.number(1)? == 22, "no handshake record");
        records.take(2)?;
        message.extend(records.vector(2)?.0);
        let mut header = Bytes(&message);
        ensure!(header.number(1)? == 1, "no ClientHello");
        if let Ok(length) = header.number(3)
            && message.len() >= 4 + length
        {
            message.truncate(4 + length);
            return Ok(message);
        }
    }
}

/// What has not been read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("the hello ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    /// Of so many bytes.
    fn number(&mut self, length: usize) -> Result<usize> {
        let bytes = self.take(length)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Bytes behind their length, which is in so many bytes.
    fn vector(&mut self, length: usize) -> Result<Self> {
        let length = self.number(length)?;
        self.take(length).map(Self)
    }

    /// All of it, two bytes each.
    fn numbers(mut self) -> Result<Vec<usize>> {
        let mut numbers = Vec::new();
        while !self.0.is_empty() {
            numbers.push(self.number(2)?);
        }
        Ok(numbers)
    }
}

/// GREASE (RFC 8701, section 2): 0A0A, 1A1A, …, FAFA.
fn without_grease(numbers: Vec<usize>) -> Vec<usize> {
    let grease: Vec<usize> = (0..16).map(|n| 0x0a0a + 0x1010 * n).collect();
    numbers.into_iter().filter(|number| !grease.contains(number)).collect()
}

fn sorted(mut numbers: Vec<usize>) -> Vec<usize> {
    numbers.sort_unstable();
    numbers
}

fn listed(numbers: Vec<usize>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| format!("{number:04x}")).collect();
    numbers.join(",")
}

/// First and last character of a protocol, or of its hexadecimal form.
fn ends(protocol: &[u8]) -> String {
    let (Some(first), Some(last)) = (protocol.first(), protocol.last()) else {
        return "00".to_owned();
    };
    let both = [*first, *last];
    if both.iter().all(u8::is_ascii_alphanumeric) {
        return String::from_utf8_lossy(&both).into_owned();
    }
    let digits = hexadecimal(protocol);
    [&digits[..1], &digits[digits.len() - 1..]].concat()
}

fn hash(list: &str) -> String {
    if list.is_empty() {
        return "000000000000".to_owned();
    }
    hexadecimal(&Sha256::digest(list))[..12].to_owned()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a String does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(length: usize, bytes: &[u8]) -> Vec<u8> {
        [&bytes.len().to_be_bytes()[8 - length..], bytes].concat()
    }

    fn numbers(list: &str) -> Vec<u8> {
        let number = |digits| u16::from_str_radix(digits, 16).expect("digits").to_be_bytes();
        list.split(',').flat_map(number).collect()
    }

    /// The description's example, in records of so many bytes.
    fn example(record: usize) -> Vec<u8> {
        let ciphers =
            "3a3a,1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035";
        let kinds =
            "caca,001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015";
        let content = |kind: [u8; 2]| match kind {
            [0, 0x0d] => vector(2, &numbers("0403,0804,0401,0503,0805,0501,0806,0601")),
            [0, 0x10] => vector(2, &[vector(1, b"h2"), vector(1, b"http/1.1")].concat()),
            [0, 0x2b] => vector(1, &numbers("5a5a,0304,0303")),
            _ => Vec::new(),
        };
        let extensions: Vec<u8> = numbers(kinds)
            .chunks(2)
            .flat_map(|kind| [kind, &vector(2, &content([kind[0], kind[1]]))].concat())
            .collect();
        let body = [
            vec![3, 3],
            vec![7; 32],
            vector(1, &[9; 32]),
            vector(2, &numbers(ciphers)),
            vector(1, &[0]),
            vector(2, &extensions),
        ];
        let message = [vec![1], vector(3, &body.concat())].concat();
        message
            .chunks(record)
            .flat_map(|piece| [vec![22, 3, 1], vector(2, piece)].concat())
            .collect()
    }

    #[test]
    fn the_example_of_the_description() {
        for record in [16_000, 100, 3] {
            let ja4 = of(&example(record)).expect("a hello");
            assert_eq!(ja4, "t13d1516h2_8daaf6152771_e5627efa2ab1");
        }
    }

    #[test]
    fn protocols_are_told_by_their_ends() {
        for (protocol, expected) in [
            (&b"http/1.1"[..], "h1"),
            (&[0xab], "ab"),
            (&[0x30, 0x31, 0xab, 0xcd], "3d"),
            (b"", "00"),
        ] {
            assert_eq!(ends(protocol), expected);
        }
    }

    #[test]
    fn half_a_hello_is_none() {
        let whole = example(16_000);
        assert!(of(&whole[..whole.len() - 1]).is_err());
        assert!(of(b"GET / HTTP/1.1\r\n").is_err());
    }
}

//! JA3 (Salesforce, BSD 3-Clause), for feeds that list it. Clients that shuffle their extensions
//! have as many JA3s as orders.

use std::fmt::{self, Display, Write as _};

use md5::{Digest as _, Md5};

use super::client_hello::ClientHello;
use super::is_grease;

/// The text before hashing: version, cipher suites, extensions, groups and point formats as
/// decimal numbers, without GREASE, in the client's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ja3(String);

impl Ja3 {
    pub fn new(hello: &ClientHello) -> Self {
        let formats: Vec<u16> = hello.point_formats.iter().copied().map(u16::from).collect();
        Self(format!(
            "{},{},{},{},{}",
            hello.legacy_version,
            dashed(&hello.cipher_suites),
            dashed(&hello.extensions),
            dashed(&hello.supported_groups),
            dashed(&formats),
        ))
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// The published form: the MD5 of the text, in 32 hexadecimal digits.
    pub fn hashed(&self) -> String {
        Md5::digest(&self.0).iter().fold(String::new(), |mut digits, byte| {
            // Writing to a String does not fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
    }
}

fn dashed(list: &[u16]) -> impl Display {
    fmt::from_fn(|f| {
        let numbers = list.iter().filter(|&&number| !is_grease(number));
        for (index, number) in numbers.enumerate() {
            let dash = if index == 0 { "" } else { "-" };
            write!(f, "{dash}{number}")?;
        }
        Ok(())
    })
}

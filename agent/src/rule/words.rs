//! Targets and rates as people and programs write them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Each, Flow, Rate, Target, Unit};

/// Between the network and the fingerprint of a conjunction.
const WITH: &str = " with ";
/// After a flow of UDP.
const UDP: &str = "/udp";

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(net) => show_network(f, net),
            Self::Fingerprint(ja4) => f.write_str(ja4),
            Self::Conjunction(net, ja4) => {
                show_network(f, net)?;
                write!(f, "{WITH}{ja4}")
            }
            Self::Flow(flow) => flow.fmt(f),
        }
    }
}

/// A network of one address is shown as that.
fn show_network(f: &mut fmt::Formatter<'_>, net: &IpNet) -> fmt::Result {
    if net.prefix_len() == net.max_prefix_len() {
        write!(f, "{}", net.addr())
    } else {
        write!(f, "{net}")
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.is_udp { UDP } else { "" };
        write!(f, "{}>{}{protocol}", self.client, self.server)
    }
}

impl FromStr for Target {
    type Err = String;

    /// Reads an address, a network, a JA4, a network with a JA4, or a flow. IPv4-mapped addresses
    /// become IPv4.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((net, ja4)) = text.split_once(WITH) {
            return Ok(Self::Conjunction(parse_network(net)?, parse_ja4(ja4)?.into()));
        }
        if text.contains('>') {
            return text.parse().map(Self::Flow);
        }
        match parse_ja4(text) {
            Ok(ja4) => Ok(Self::Fingerprint(ja4.into())),
            Err(_) => parse_network(text).map(Self::Network),
        }
    }
}

impl FromStr for Flow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ends, is_udp) = match text.strip_suffix(UDP) {
            Some(ends) => (ends, true),
            None => (text, false),
        };
        let end = |text: &str| -> Option<SocketAddr> {
            let end: SocketAddr = text.parse().ok()?;
            let end = SocketAddr::new(end.ip().to_canonical(), end.port());
            (end.port() != 0).then_some(end)
        };
        let ends = ends.split_once('>').and_then(|(client, server)| end(client).zip(end(server)));
        match ends {
            Some((client, server)) if client.is_ipv4() == server.is_ipv4() => {
                Ok(Self { client, server, is_udp })
            }
            _ => Err(format!("`{text}` is no flow, as in 203.0.113.7:50000>192.0.2.1:443")),
        }
    }
}

/// Networks in full, with the prefix length of a single address too: programs compare them.
impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Network(net) => serializer.collect_str(net),
            Self::Conjunction(net, ja4) => {
                serializer.collect_str(&format_args!("{net}{WITH}{ja4}"))
            }
            Self::Fingerprint(_) | Self::Flow(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Flow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Flow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads an address or a network, `203.0.113.7` or `2001:db8::/64`. IPv4-mapped addresses
/// become IPv4.
///
/// # Errors
/// With a sentence for people, when it is neither or has bits set past its prefix.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip.to_canonical()));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("`{text}` is neither an IP address nor a network in CIDR notation"))?;
    if net.trunc() != net {
        return Err(format!(
            "`{text}` has bits set past its prefix: `{}` is the network",
            net.trunc()
        ));
    }
    Ok(canonical(net))
}

/// An IPv4-mapped network (RFC 4291, section 2.5.5.2) as an IPv4 one.
fn canonical(net: IpNet) -> IpNet {
    let v4 = match net.addr() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    let mapped = v4.zip(net.prefix_len().checked_sub(96));
    mapped.and_then(|(v4, len)| IpNet::new(v4.into(), len).ok()).unwrap_or(net)
}

/// Reads a JA4: protocol, version, SNI, two counts and ALPN in ten characters, then two hashes of
/// twelve hexadecimal digits (the JA4 technical details of FoxIO).
///
/// # Errors
/// With a sentence for people.
pub fn parse_ja4(text: &str) -> Result<&str, String> {
    let mut parts = text.split('_');
    let is_hash = |part: &str| {
        part.len() == 12 && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_head = |part: &[u8]| match part {
        [protocol, v1, v2, sni, counts @ .., a1, a2] => {
            b"tqd".contains(protocol)
                && [v1, v2, a1, a2].iter().all(|b| b.is_ascii_alphanumeric())
                && b"di".contains(sni)
                && counts.len() == 4
                && counts.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(head), Some(ciphers), Some(extensions), None)
            if is_head(head.as_bytes()) && is_hash(ciphers) && is_hash(extensions) =>
        {
            Ok(text)
        }
        _ => Err(format!("`{text}` is no JA4, as in t13d1516h2_8daaf6152771_e5627efa2ab1")),
    }
}

/// What a rate names, and how many of it in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    pub unit: Unit,
    pub per_s: u64,
}

impl Speed {
    /// Prefixes of IPv4 and IPv6 that are one client, where each has the rate to itself.
    const CLIENT: Each = Each::Client { v4: 32, v6: 64 };

    /// Without `burst`, what a second allows may come at once.
    pub fn rate(self, burst: Option<u64>, each: bool) -> Rate {
        let each = if each { Self::CLIENT } else { Each::Target };
        Rate { unit: self.unit, per_s: self.per_s, burst: burst.unwrap_or(self.per_s), each }
    }
}

impl FromStr for Speed {
    type Err = String;

    /// Reads `100/s` (packets), `100 packets/s`, `50 connections/s`, or bytes as in `10MiB/s`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no rate, as in 100/s (packets), 50 connections/s or 10MiB/s");
        let amount = text.strip_suffix("/s").ok_or_else(wrong)?.trim();
        let end = amount.find(|c: char| !c.is_ascii_digit()).unwrap_or(amount.len());
        let (number, unit) = amount.split_at_checked(end).ok_or_else(wrong)?;
        let number = number.parse::<u64>();
        let (unit, per_s) = match unit.trim() {
            "" | "packet" | "packets" => (Unit::Packets, number.ok()),
            "connection" | "connections" => (Unit::Connections, number.ok()),
            _ => (Unit::Bytes, amount.parse().ok().map(|size: ByteSize| size.as_u64())),
        };
        let per_s = per_s.filter(|n| (1..=MAX_PER_S).contains(n)).ok_or_else(wrong)?;
        Ok(Self { unit, per_s })
    }
}

/// Beyond it, one unit takes less time than the kernel's clock tells apart.
const MAX_PER_S: u64 = 1_000_000_000_000;

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Packets => write!(f, "{}/s", self.per_s),
            Unit::Connections => write!(f, "{} connections/s", self.per_s),
            Unit::Bytes => match [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
                .into_iter()
                .find(|(unit, _)| self.per_s.is_multiple_of(*unit))
            {
                Some((unit, name)) => {
                    write!(f, "{}{name}/s", self.per_s.checked_div(unit).unwrap_or_default())
                }
                None => write!(f, "{}B/s", self.per_s),
            },
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Speed { unit: self.unit, per_s: self.per_s })?;
        match self.each {
            Each::Target => Ok(()),
            Each::Client { .. } => f.write_str(" each"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JA4: &str = "t13d1516h2_8daaf6152771_e5627efa2ab1";

    #[test]
    fn targets_come_back_as_they_went() {
        for (text, shown, wire) in [
            ("203.0.113.7", "203.0.113.7", "203.0.113.7/32"),
            ("203.0.112.0/23", "203.0.112.0/23", "203.0.112.0/23"),
            ("::ffff:203.0.113.7", "203.0.113.7", "203.0.113.7/32"),
            ("2001:db8::/48", "2001:db8::/48", "2001:db8::/48"),
            (JA4, JA4, JA4),
            (
                "203.0.113.7 with t13d1516h2_8daaf6152771_e5627efa2ab1",
                "203.0.113.7 with t13d1516h2_8daaf6152771_e5627efa2ab1",
                "203.0.113.7/32 with t13d1516h2_8daaf6152771_e5627efa2ab1",
            ),
            (
                "203.0.113.7:50000>192.0.2.1:443",
                "203.0.113.7:50000>192.0.2.1:443",
                "203.0.113.7:50000>192.0.2.1:443",
            ),
            (
                "[2001:db8::7]:50000>[2001:db8::1]:443/udp",
                "[2001:db8::7]:50000>[2001:db8::1]:443/udp",
                "[2001:db8::7]:50000>[2001:db8::1]:443/udp",
            ),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!(serde_json::to_value(&target).unwrap(), wire);
            assert_eq!(serde_json::from_value::<Target>(wire.into()).unwrap(), target);
        }
    }

    #[test]
    fn what_is_no_target_is_refused_with_a_sentence() {
        for (text, sentence) in [
            ("host.example", "neither an IP address nor a network"),
            ("10.0.0.1/8", "`10.0.0.0/8` is the network"),
            ("t13d1516h2_8daaf6152771", "neither an IP address"),
            ("10.0.0.1 with x", "is no JA4"),
            ("10.0.0.1:5>10.0.0.2", "is no flow"),
            ("10.0.0.1:0>10.0.0.2:443", "is no flow"),
            ("10.0.0.1:5>[::1]:443", "is no flow"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }

    #[test]
    fn rates_come_back_as_they_went() {
        for (text, unit, per_s, shown) in [
            ("100/s", Unit::Packets, 100, "100/s"),
            ("1 packet/s", Unit::Packets, 1, "1/s"),
            ("50 connections/s", Unit::Connections, 50, "50 connections/s"),
            ("10MiB/s", Unit::Bytes, 10 << 20, "10MiB/s"),
            ("1 MB/s", Unit::Bytes, 1_000_000, "1000000B/s"),
            ("7B/s", Unit::Bytes, 7, "7B/s"),
        ] {
            let speed: Speed = text.parse().unwrap();
            assert_eq!(speed, Speed { unit, per_s }, "{text}");
            assert_eq!(speed.to_string(), shown);
            assert_eq!(shown.parse::<Speed>().unwrap(), speed);
        }
        for wrong in ["", "100", "0/s", "/s", "ten/s", "-1/s", "1.5/s", "10 apples/s", "9EB/s"] {
            assert!(wrong.parse::<Speed>().is_err(), "{wrong}");
        }
    }
}

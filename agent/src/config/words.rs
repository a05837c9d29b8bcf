//! The forms of strings: paths, networks, names.

use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::kinds::Word;
use super::types::DecoyListener;
use crate::rule::{Speed, Target, parse_ja4};

/// `IFNAMSIZ` of Linux without the closing zero byte.
const LONGEST_INTERFACE_NAME: usize = 15;
/// `sun_path` of unix(7) without the closing zero byte.
const LONGEST_SOCKET_PATH: usize = 107;
/// Longest name of a service: it is a label in metrics.
const LONGEST_SERVICE_NAME: usize = 64;

fn no_hint(_: &str) -> Option<String> {
    None
}

const fn text(allowed: &'static str, parse: fn(&str) -> Option<String>) -> Word<String> {
    Word { allowed, parse, hint: no_hint, render: String::clone, repetition_is_wrong: true }
}

fn keep(text: &str, holds: bool) -> Option<String> {
    holds.then(|| text.to_owned())
}

pub(super) const TEXT: Word<String> =
    text("a string that is not empty", |text| keep(text, !text.is_empty()));

/// The names that the kernel's `dev_valid_name` takes, and patterns of them.
pub(super) const INTERFACE: Word<String> = text(
    "the name of a network interface, of 1 to 15 bytes, or a pattern such as \"eth*\" or \"!eth1\"",
    |entry| {
        let name = entry.strip_prefix('!').unwrap_or(entry);
        let fits =
            (1..=LONGEST_INTERFACE_NAME).contains(&name.len()) && name != "." && name != "..";
        let plain = |c: char| !(matches!(c, '/' | ':' | '\0' | '!') || c.is_whitespace());
        keep(entry, fits && name.chars().all(plain))
    },
);

pub(super) const SERVICE_NAME: Word<String> =
    text("a name of 1 to 64 letters, digits, '-', '_' and '.'", |name| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        keep(name, (1..=LONGEST_SERVICE_NAME).contains(&name.len()) && name.bytes().all(plain))
    });

/// Group names as groupadd(8) takes them.
pub(super) const GROUP: Word<String> = text("the name of a group", |name| {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    keep(name, (1..=32).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(plain))
});

/// Methods are case-sensitive tokens (RFC 9110, section 9.1); all registered ones are upper-case.
pub(super) const METHOD: Word<String> = text("an HTTP method in capital letters", |method| {
    keep(method, !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-'))
});

pub(super) const LOGIN_PATH: Word<String> =
    text("a path that begins with '/' and has no query, with '*' only at its end", |path| {
        let stem = path.strip_suffix('*').unwrap_or(path);
        let plain = !stem.contains(|c: char| matches!(c, '*' | '?' | '#') || c.is_whitespace());
        keep(path, stem.starts_with('/') && plain)
    });

pub(super) const HOST: Word<String> = Word {
    allowed: "a host name without port, or \"*.\" and a domain",
    parse: host,
    hint: |text| match text {
        "*" => Some("leave `hosts` out for all hosts".to_owned()),
        _ if text.contains("://") => Some("write the name alone, without the scheme".to_owned()),
        _ => None,
    },
    render: String::clone,
    repetition_is_wrong: true,
};

/// A name in lower case and without the root's dot, an IPv4 address, or an IPv6 address in
/// brackets as in the `Host` header (RFC 3986, section 3.2.2).
fn host(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    if let Some(literal) = text.strip_prefix('[') {
        let address = literal.strip_suffix(']')?.parse::<std::net::Ipv6Addr>();
        return address.ok().map(|address| format!("[{address}]"));
    }
    let text = text.strip_suffix('.').unwrap_or(&text);
    let name = text.strip_prefix("*.").unwrap_or(text);
    // '_' is not in RFC 1123's host names, but in those of many containers.
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| {
        let hyphens_inside = !label.starts_with('-') && !label.ends_with('-');
        (1..=63).contains(&label.len()) && hyphens_inside && label.bytes().all(plain)
    };
    keep(text, name.len() <= 253 && name.split('.').all(label))
}

pub(super) const PATH: Word<PathBuf> = Word {
    allowed: "an absolute path without \"..\"",
    parse: path,
    hint: no_hint,
    render: |path| path.to_string_lossy().into_owned(),
    repetition_is_wrong: true,
};

pub(super) const SOCKET_PATH: Word<PathBuf> = Word {
    allowed: "an absolute path without \"..\", of at most 107 bytes",
    parse: |text| path(text).filter(|_| text.len() <= LONGEST_SOCKET_PATH),
    ..PATH
};

/// A name in the pin directory is made of it, of at most 255 bytes, where each of its own may
/// take three.
pub(super) const NAMESPACE_PATH: Word<PathBuf> = Word {
    allowed: "an absolute path without \"..\", of at most 60 bytes",
    parse: |text| path(text).filter(|_| text.len() <= 60),
    ..PATH
};

fn path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path.components().all(|part| part != Component::ParentDir) && !text.contains('\0');
    (path.is_absolute() && plain).then(|| path.to_owned())
}

pub(super) const LISTEN: Word<SocketAddr> = Word {
    allowed: "an IP address and a port such as \"127.0.0.1:9464\" or \"[::]:9464\"",
    parse: |text| text.parse().ok(),
    hint: no_hint,
    render: SocketAddr::to_string,
    repetition_is_wrong: true,
};

pub(super) const DECOY_LISTENER: Word<DecoyListener> = Word {
    allowed: "\"tarpit\", or an IP address of this host and a port such as \"127.0.0.1:8081\"",
    parse: |text| match text {
        "tarpit" => Some(DecoyListener::Tarpit),
        _ => {
            let address = text.parse().ok().filter(|at: &SocketAddr| at.port() != 0);
            address.map(DecoyListener::Local)
        }
    },
    hint: no_hint,
    render: |listener| match listener {
        DecoyListener::Tarpit => "tarpit".to_owned(),
        DecoyListener::Local(address) => address.to_string(),
    },
    repetition_is_wrong: true,
};

/// Lists of networks are often put together by programs, and overlap.
pub(super) const NETWORK: Word<IpNet> = Word {
    allowed: "an IP address, or a network such as \"192.0.2.0/24\" or \"2001:db8::/32\"",
    parse: |text| network(text).filter(|net| *net == net.trunc()),
    hint: |text| network(text).map(|net| host_bits(&net)),
    render: network_text,
    repetition_is_wrong: false,
};

/// An address that rules can name; IPv4-mapped ones are IPv4.
pub(super) const ADDRESS: Word<IpAddr> = Word {
    allowed: "an IP address of this host",
    parse: |text| text.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
    hint: no_hint,
    render: IpAddr::to_string,
    repetition_is_wrong: true,
};

pub(super) const BLOCK_TARGET: Word<Target> = Word {
    allowed: "an IP address, a network such as \"192.0.2.0/24\", or a JA4",
    parse: |text| {
        if let Ok(ja4) = parse_ja4(text) {
            return Some(Target::Fingerprint(ja4.into()));
        }
        let client = |net: &IpNet| *net == net.trunc() && may_be_clients(net);
        network(text).filter(client).map(Target::Network)
    },
    hint: |text| {
        let net = network(text)?;
        Some(if net != net.trunc() {
            host_bits(&net)
        } else {
            "no client has such an address".to_owned()
        })
    },
    render: |target| match target {
        Target::Network(net) => network_text(net),
        _ => target.to_string(),
    },
    repetition_is_wrong: true,
};

pub(super) const JA4: Word<Arc<str>> = Word {
    allowed: "a JA4 such as \"t13d1516h2_8daaf6152771_e5627efa2ab1\"",
    parse: |text| parse_ja4(text).ok().map(Arc::from),
    hint: no_hint,
    render: |ja4| ja4.to_string(),
    repetition_is_wrong: true,
};

pub(super) const RATE: Word<Speed> = Word {
    allowed: "a rate such as \"100/s\" (packets), \"50 connections/s\" or \"10MiB/s\"",
    parse: |text| text.parse().ok(),
    hint: no_hint,
    render: Speed::to_string,
    repetition_is_wrong: true,
};

/// Whether not all of its addresses are such that no client has them.
fn may_be_clients(net: &IpNet) -> bool {
    let all = |test: fn(IpAddr) -> bool| test(net.network()) && test(net.broadcast());
    let is_broadcast = |ip| matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(all(|ip| ip.is_unspecified())
        || all(|ip| ip.is_loopback())
        || all(|ip| ip.is_multicast())
        || all(is_broadcast))
}

/// IPv4-mapped networks are taken for the IPv4 networks they stand for.
fn network(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => text.parse::<IpNet>().ok()?,
    };
    let mapped = match net {
        IpNet::V6(net) => net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let v4 = mapped.and_then(|(addr, prefix_len)| Ipv4Net::new(addr, prefix_len).ok());
    Some(v4.map_or(net, IpNet::V4))
}

fn host_bits(net: &IpNet) -> String {
    let (network, address) = (net.trunc(), net.addr());
    format!("it has bits set after its prefix, write \"{network}\" or \"{address}\"")
}

/// A single address without its prefix length, as people write it.
pub(super) fn network_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

//! Who is behind a transaction.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::finding::Actor;
use crate::transaction::{Headers, Transaction};

/// Proxies that a request may have come through; a longer list is taken for malformed.
const MAX_HOPS: usize = 64;

/// The actor of `tx`: the socket's peer, or the client that a trusted proxy names.
///
/// `X-Forwarded-For` is read from the right, past trusted proxies, up to the first address that
/// is none: what stands left of it was written by nobody trusted. `Forwarded` (RFC 7239) counts
/// where there is no `X-Forwarded-For`, since a proxy that keeps up only the latter passes a
/// client's own `Forwarded` on. When the proxy names no address that can be read, the actor is
/// the proxy itself, with `via` set.
pub fn actor_of(config: &Config, tx: &Transaction) -> Actor {
    let peer = tx.src.to_canonical();
    if !config.is_trusted_proxy(peer) {
        return Actor { ip: normalised(peer), via: None };
    }
    let client = forwarded_client(config, &tx.req_headers).unwrap_or(peer);
    Actor { ip: normalised(client), via: Some(peer) }
}

/// What a client is known by: its IPv4 address (also when IPv4-mapped), or the /64 that an IPv6
/// client moves within, as that network's first address.
pub fn normalised(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        ip @ IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

/// `host` as in a `Host` field, without the port (RFC 9110, section 7.2).
pub fn host_without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // A colon within brackets or a bare IPv6 address is none before a port.
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit())
                && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    }
}

fn forwarded_client(config: &Config, headers: &Headers) -> Option<IpAddr> {
    if headers.get("x-forwarded-for").is_some() {
        let hops = headers.all("x-forwarded-for").rev().flat_map(|value| value.rsplit(','));
        return nearest_untrusted(config, hops.map(str::trim).filter(|hop| !hop.is_empty()));
    }
    let elements =
        headers.all("forwarded").rev().flat_map(|value| split_outside_quotes(value, ',').rev());
    let elements = elements.map(str::trim).filter(|element| !element.is_empty());
    nearest_untrusted(config, elements.map(|element| for_parameter(element).unwrap_or("")))
}

/// The first of `hops`, which begin nearest to this host, that is no trusted proxy; if all are,
/// the farthest. `None` when one on the way can't be read.
fn nearest_untrusted<'a>(config: &Config, hops: impl Iterator<Item = &'a str>) -> Option<IpAddr> {
    let mut farthest = None;
    for (n, hop) in hops.enumerate() {
        let ip = node_address(hop)?;
        if n >= MAX_HOPS {
            return None;
        }
        farthest = Some(ip);
        if !config.is_trusted_proxy(ip) {
            break;
        }
    }
    farthest
}

/// The `for` parameter of one element of `Forwarded`, without its quotes.
fn for_parameter(element: &str) -> Option<&str> {
    split_outside_quotes(element, ';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("for") {
            return None;
        }
        let value = value.trim();
        Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
    })
}

/// An address as `X-Forwarded-For` and `Forwarded` (RFC 7239, section 6) write it: bare, IPv6 in
/// brackets, with or without a port.
fn node_address(node: &str) -> Option<IpAddr> {
    let bracketed = || node.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || node.parse::<SocketAddr>().ok().map(|address| address.ip());
    let ip = node.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(ip.to_canonical())
}

/// Splits at `separator`, but not inside quoted strings (RFC 9110, section 5.6.4).
fn split_outside_quotes(text: &str, separator: char) -> impl DoubleEndedIterator<Item = &str> {
    let mut quoted = false;
    let mut escaped = false;
    let mut parts = Vec::new();
    let mut rest = text;
    for (at, c) in text.char_indices() {
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            '"' if !was_escaped => quoted = !quoted,
            '\\' if quoted && !was_escaped => escaped = true,
            c if c == separator && !quoted => {
                let from = text.len() - rest.len();
                if let (Some(part), Some(tail)) =
                    (text.get(from..at), text.get(at + c.len_utf8()..))
                {
                    parts.push(part);
                    rest = tail;
                }
            }
            _ => {}
        }
    }
    parts.push(rest);
    parts.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "10.0.0.1";

    fn config() -> Config {
        let mut config = Config::default();
        config.guards.trusted_proxies =
            ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|net| net.parse().unwrap()).to_vec();
        config
    }

    fn actor(src: &str, headers: &[(&str, &str)]) -> Actor {
        let mut tx = crate::detect::tests::get(0.0, src, "/");
        for (name, value) in headers {
            tx.req_headers.push(*name, *value);
        }
        actor_of(&config(), &tx)
    }

    fn proxied(headers: &[(&str, &str)]) -> String {
        let actor = actor(PEER, headers);
        assert_eq!(actor.via, Some(PEER.parse().unwrap()), "{headers:?}");
        actor.ip.to_string()
    }

    #[test]
    fn clients_are_normalised() {
        for (src, known_by) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            let expected = Actor { ip: known_by.parse().unwrap(), via: None };
            assert_eq!(actor(src, &[]), expected, "{src}");
        }
    }

    #[test]
    fn nobody_else_is_believed() {
        let spoofed = [("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=198.51.100.1")];
        let expected = Actor { ip: "192.0.2.7".parse().unwrap(), via: None };
        assert_eq!(actor("192.0.2.7", &spoofed), expected);
    }

    #[test]
    fn x_forwarded_for_is_read_from_the_right() {
        for (value, client) in [
            ("192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
            ("198.51.100.1, 192.0.2.7, 10.9.9.9", "192.0.2.7"),
            ("garbage, 192.0.2.7 ,10.9.9.9, ", "192.0.2.7"),
            ("192.0.2.7:4711", "192.0.2.7"),
            ("[2001:db8:1:2::3]:443", "2001:db8:1:2::"),
            ("[2001:db8:1:2::3]", "2001:db8:1:2::"),
            ("2001:db8:1:2::3", "2001:db8:1:2::"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
        ] {
            assert_eq!(proxied(&[("x-forwarded-for", value)]), client, "{value}");
        }
        let lines =
            [("X-Forwarded-For", "198.51.100.1"), ("x-forwarded-for", "192.0.2.7, 10.3.3.3")];
        assert_eq!(proxied(&lines), "192.0.2.7", "fields of one name are one list");
    }

    #[test]
    fn forwarded_is_read_from_the_right() {
        for (value, client) in [
            ("for=192.0.2.7", "192.0.2.7"),
            ("for=198.51.100.1, For=192.0.2.7;proto=https;by=10.0.0.2", "192.0.2.7"),
            (r#"for="[2001:db8:1:2::3]:4711""#, "2001:db8:1:2::"),
            (r#"for="192.0.2.7:80""#, "192.0.2.7"),
            (r#"for=192.0.2.7;host="a,b;c\",for=198.51.100.1", for=10.4.4.4"#, "192.0.2.7"),
            (r#"for="[2001:db8:aaaa::1]""#, "2001:db8:aaaa::"),
        ] {
            assert_eq!(proxied(&[("Forwarded", value)]), client, "{value}");
        }
    }

    #[test]
    fn x_forwarded_for_goes_first() {
        let both = [("Forwarded", "for=198.51.100.1"), ("X-Forwarded-For", "192.0.2.7")];
        assert_eq!(proxied(&both), "192.0.2.7");
    }

    #[test]
    fn what_cannot_be_read_leaves_the_proxy() {
        let long = format!("192.0.2.7{}", ", 10.1.1.1".repeat(MAX_HOPS + 1));
        for headers in [
            vec![],
            vec![("X-Forwarded-For", "")],
            vec![("X-Forwarded-For", "192.0.2.7, unknown")],
            vec![("X-Forwarded-For", "192.0.2.7, 300.1.1.1, 10.1.1.1")],
            vec![("X-Forwarded-For", long.as_str())],
            vec![("Forwarded", "for=unknown")],
            vec![("Forwarded", "for=192.0.2.7, for=_hidden")],
            vec![("Forwarded", "proto=https")],
            vec![("Forwarded", "for=\"192.0.2.7")],
            vec![("Forwarded", "for=[fe80::1%eth0]")],
        ] {
            assert_eq!(proxied(&headers), PEER, "{headers:?}");
        }
    }

    #[test]
    fn ports_are_cut_off_hosts() {
        for (host, name) in [
            ("shop.example", "shop.example"),
            ("shop.example:8443", "shop.example"),
            ("[2001:db8::1]:443", "[2001:db8::1]"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("2001:db8::1", "2001:db8::1"),
            ("", ""),
            (":80", ""),
        ] {
            assert_eq!(host_without_port(host), name);
        }
    }
}

//! Requests and answers of socket diagnostics as bytes: `include/uapi/linux/netlink.h`,
//! `sock_diag.h` and `inet_diag.h`. Lengths and states are in host byte order, ports and addresses
//! in the network's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Types of messages.
mod kind {
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    /// `SOCK_DIAG_BY_FAMILY`
    pub const SOCKET: u16 = 20;
    /// `SOCK_DESTROY`
    pub const DESTROY: u16 = 21;
}

/// Flags of requests.
mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    pub const DUMP: u16 = 0x300;
}

/// `INET_DIAG_REQ_BYTECODE`
const FILTER: u16 = 1;
/// `INET_DIAG_SKV6ONLY`
const V6_ONLY: u16 = 11;
/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER_LEN: usize = 16;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_LEN: usize = 48;
/// `struct inet_diag_msg`: family and three more bytes, id, five words, the inode the last.
const SOCKET_LEN: usize = 72;
const ALL_STATES: u32 = u32::MAX;

/// Of a socket. IPv6 sockets carry IPv4 too, under mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn number(self) -> u8 {
        // Both are small.
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number as i32 {
            libc::AF_INET => Some(Self::V4),
            libc::AF_INET6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// One TCP socket of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// The kernel's name for it, as it wants it back.
    id: [u8; ID_LEN],
    pub family: Family,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Unlike inodes, never used again (`SO_COOKIE`).
    pub cookie: u64,
    pub inode: u32,
    /// One that listens, on IPv6 alone.
    pub v6_only: bool,
}

impl Socket {
    /// One that no namespace has: nothing is bound to port 0.
    pub fn nobodys() -> Self {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self {
            id: [0; ID_LEN],
            family: Family::V4,
            local: nowhere,
            remote: nowhere,
            cookie: 0,
            inode: 0,
            v6_only: false,
        }
    }

    /// Reads a `struct inet_diag_msg` and its attributes.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, attributes) = bytes.split_first_chunk::<SOCKET_LEN>()?;
        let family = Family::from_number(bytes[0])?;
        let id: &[u8; ID_LEN] = bytes.get(4..)?.first_chunk()?;
        let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
        let address = |at: usize| {
            let bytes: &[u8; 16] = id.get(at..)?.first_chunk()?;
            Some(match family {
                Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
                Family::V6 => IpAddr::from(Ipv6Addr::from(*bytes)).to_canonical(),
            })
        };
        Some(Self {
            local: SocketAddr::new(address(4)?, port(0)?),
            remote: SocketAddr::new(address(20)?, port(2)?),
            cookie: cookie(id.get(40..)?)?,
            inode: word(bytes, SOCKET_LEN - 4)?,
            id: *id,
            family,
            v6_only: attribute(attributes, V6_ONLY).is_some_and(|value| value != [0]),
        })
    }
}

/// The value of the first attribute of this kind (`struct nlattr`: length, kind, value).
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(half(bytes, 0)?);
        let value = bytes.get(4..length)?;
        if half(bytes, 2)? == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Two words, the lower one first.
fn cookie(bytes: &[u8]) -> Option<u64> {
    Some(u64::from(word(bytes, 4)?) << 32 | u64::from(word(bytes, 0)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Asks for all TCP sockets of a family in `states` that `filter` lets through.
pub(super) fn dump_request(family: Family, states: u32, filter: &[u8]) -> Vec<u8> {
    let mut body = request_body(family, states, &[0; ID_LEN]);
    if !filter.is_empty() {
        // Filters are bounded far below 64 KiB, and whole words.
        body.extend(((filter.len() + 4) as u16).to_ne_bytes());
        body.extend(FILTER.to_ne_bytes());
        body.extend(filter);
    }
    message(kind::SOCKET, flag::REQUEST | flag::DUMP, &body)
}

pub(super) fn destroy_request(socket: &Socket) -> Vec<u8> {
    let body = request_body(socket.family, ALL_STATES, &socket.id);
    message(kind::DESTROY, flag::REQUEST | flag::ACK, &body)
}

/// `struct inet_diag_req_v2`
fn request_body(family: Family, states: u32, id: &[u8; ID_LEN]) -> Vec<u8> {
    let mut body = vec![family.number(), libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend(((HEADER_LEN + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Neither sequence nor port are needed: one question at a time, and the kernel answers.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// One message of an answer.
#[derive(Debug)]
pub(super) enum Message {
    Socket(Socket),
    /// Nothing more comes; why not, when it is not the end.
    Done(Option<io::Error>),
    Other,
}

/// The messages in one piece of an answer.
pub(super) struct Messages<'a>(pub &'a [u8]);

impl Iterator for Messages<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let length = usize::try_from(word(self.0, 0)?).ok()?;
        let kind = half(self.0, 4)?;
        let body = self.0.get(HEADER_LEN..length)?;
        // Each begins at a multiple of 4; a padded end may lie past the last byte.
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match kind {
            kind::ERROR | kind::DONE => Message::Done(error(body)),
            kind::SOCKET => Socket::parse(body).map_or(Message::Other, Message::Socket),
            _ => Message::Other,
        })
    }
}

/// The negative error number that errors and ends of dumps begin with; 0 is none.
fn error(body: &[u8]) -> Option<io::Error> {
    let number = word(body, 0)?.cast_signed();
    (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket_bytes(family: Family, local: &[u8], remote: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; SOCKET_LEN];
        bytes[0] = family.number();
        bytes[4..6].copy_from_slice(&443u16.to_be_bytes());
        bytes[6..8].copy_from_slice(&4711u16.to_be_bytes());
        bytes[8..8 + local.len()].copy_from_slice(local);
        bytes[24..24 + remote.len()].copy_from_slice(remote);
        bytes[44..48].copy_from_slice(&7u32.to_ne_bytes());
        bytes[48..52].copy_from_slice(&1u32.to_ne_bytes());
        bytes[68..].copy_from_slice(&99u32.to_ne_bytes());
        bytes
    }

    fn only(bytes: &[u8]) -> Message {
        let mut messages = Messages(bytes);
        let first = messages.next().unwrap();
        assert!(messages.next().is_none());
        first
    }

    #[test]
    fn sockets_are_read() {
        let bytes = socket_bytes(Family::V4, &[192, 0, 2, 1], &[192, 0, 2, 2]);
        let Message::Socket(socket) = only(&message(kind::SOCKET, 0, &bytes)) else {
            panic!("a socket");
        };
        assert_eq!(socket.local, "192.0.2.1:443".parse().unwrap());
        assert_eq!(socket.remote, "192.0.2.2:4711".parse().unwrap());
        assert_eq!((socket.cookie, socket.inode), (1 << 32 | 7, 99));
        // What it is closed by is what the kernel called it.
        let request = destroy_request(&socket);
        assert_eq!(request[HEADER_LEN + 8..], bytes[4..4 + ID_LEN]);
    }

    #[test]
    fn attributes_are_found_behind_others() {
        let mut bytes = socket_bytes(Family::V6, &[], &[]);
        bytes.extend([5, 0, 8, 0, 1, 0, 0, 0]);
        bytes.extend([5, 0, 11, 0, 1, 0, 0, 0]);
        assert!(Socket::parse(&bytes).unwrap().v6_only);
        bytes[SOCKET_LEN + 12] = 0;
        assert!(!Socket::parse(&bytes).unwrap().v6_only);
        // One that claims to be empty must not be looked at for ever.
        bytes[SOCKET_LEN] = 0;
        assert!(!Socket::parse(&bytes).unwrap().v6_only);
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = "::ffff:192.0.2.2".parse::<Ipv6Addr>().unwrap().octets();
        let bytes = socket_bytes(Family::V6, &mapped, &mapped);
        let Message::Socket(socket) = only(&message(kind::SOCKET, 0, &bytes)) else {
            panic!("a socket");
        };
        assert_eq!(socket.remote.ip(), IpAddr::from([192, 0, 2, 2]));
        assert_eq!(socket.family, Family::V6);
    }

    #[test]
    fn errors_are_the_kernels() {
        let refused = (-libc::EOPNOTSUPP).to_ne_bytes();
        let Message::Done(Some(error)) = only(&message(kind::ERROR, 0, &refused)) else {
            panic!("an error");
        };
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(matches!(only(&message(kind::DONE, 0, &[0; 4])), Message::Done(None)));
    }

    #[test]
    fn pieces_of_messages_end_the_answer() {
        let whole = message(kind::SOCKET, 0, &socket_bytes(Family::V4, &[], &[]));
        for length in 0..whole.len() {
            assert!(Messages(&whole[..length]).next().is_none(), "{length}");
        }
        let mut lying = whole.clone();
        lying[..4].copy_from_slice(&3u32.to_ne_bytes());
        assert!(Messages(&lying).next().is_none());
    }
}

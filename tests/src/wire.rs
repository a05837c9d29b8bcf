//! What clients send to the server, as it is on the wire.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::{Lab, in_namespace};
use crate::packet::frame::{ETHERNET_LEN, ethertype, protocol};

/// Room for what a browser sends before it is read.
const BUFFER: usize = 4 << 20;
/// Longer than every frame.
const FRAME: usize = 64 << 10;
/// Flags of a segment.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A capture at the bridge's port to the server.
pub struct Wire {
    socket: Socket,
}

/// The client's side of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// Whether every frame had a VLAN tag.
    pub tagged: bool,
    /// Sequence number of the SYN.
    syn: u32,
    /// By the position of their first byte.
    segments: BTreeMap<u32, Vec<u8>>,
}

impl Wire {
    /// From now on.
    pub fn to_the_server(lab: &Lab) -> Result<Self> {
        let port = CString::new(lab.switch_port())?;
        let socket = in_namespace(&lab.switch(), || capture(&port))?;
        Ok(Self { socket: socket.context("cannot capture frames")? })
    }

    /// The connections that began since the last call, first come first, as far as they got.
    pub fn connections(&mut self) -> Result<Vec<Sent>> {
        let mut connections = Vec::new();
        let mut frame = vec![0; FRAME];
        loop {
            match self.socket.read(&mut frame) {
                Ok(length) => note(&mut connections, &frame[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(connections),
                Err(error) => return Err(error).context("cannot read captured frames"),
            }
        }
    }
}

impl Sent {
    /// The bytes from the first one up to the first gap.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, segment) in &self.segments {
            let Some(known) = bytes.len().checked_sub(*at as usize) else { break };
            bytes.extend(segment.iter().skip(known));
        }
        bytes
    }

    /// How many segments begin within the first so many bytes.
    pub fn segments_of(&self, length: usize) -> usize {
        self.segments.keys().filter(|at| (**at as usize) < length).count()
    }
}

fn capture(port: &CString) -> Result<Socket> {
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &BUFFER)?;
    let interface = nix::net::if_::if_nametoindex(port.as_c_str())?;
    // SAFETY: `sockaddr_ll` is plain integers, for which zeros are values, and fits into the
    // storage; its length is what is returned with it.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = every_protocol;
            (*address).sll_ifindex = interface.cast_signed();
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket)
}

/// A segment in a frame.
struct Segment<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    tagged: bool,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

fn note(connections: &mut Vec<Sent>, frame: &[u8]) {
    // What the server sends belongs to no connection that began here, and is left out below.
    let Some(segment) = segment(frame) else { return };
    let Segment { source: client, destination: server, tagged, sequence, .. } = segment;
    if segment.flags & (SYN | ACK) == SYN {
        let segments = BTreeMap::new();
        connections.retain(|sent| sent.client != client);
        connections.push(Sent { client, server, tagged, syn: sequence, segments });
    }
    let Some(sent) = connections.iter_mut().find(|sent| sent.client == client) else { return };
    sent.tagged &= tagged;
    if !segment.payload.is_empty() {
        let at = sequence.wrapping_sub(sent.syn).wrapping_sub(1);
        sent.segments.entry(at).or_insert_with(|| segment.payload.to_vec());
    }
}

/// TCP over IPv4 or over IPv6 without extension headers, as the laboratory's hosts send it.
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let mut kind = word(frame, ETHERNET_LEN - 2)?;
    let mut at = ETHERNET_LEN;
    while ethertype::TAGS.contains(&kind) {
        kind = word(frame, at + 2)?;
        at += 4;
    }
    let tagged = at > ETHERNET_LEN;
    let packet = frame.get(at..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, _) = match kind {
        ethertype::IPV4 if *packet.get(9)? == protocol::TCP => {
            let header = usize::from(packet[0] & 0xf) * 4;
            // Short frames have padding behind.
            let tcp = packet.get(header..word(packet, 2)?.into())?;
            (array::<4>(packet, 12)?.into(), array::<4>(packet, 16)?.into(), tcp)
        }
        ethertype::IPV6 if *packet.get(6)? == protocol::TCP => {
            let tcp = packet.get(40..40 + usize::from(word(packet, 4)?))?;
            (array::<16>(packet, 8)?.into(), array::<16>(packet, 24)?.into(), tcp)
        }
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, word(tcp, 0)?),
        destination: SocketAddr::new(destination, word(tcp, 2)?),
        tagged,
        sequence: u32::from_be_bytes(array(tcp, 4)?),
        flags: *tcp.get(13)?,
        payload: tcp.get(header..)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::hello::Flow;

    #[test]
    fn segments_in_any_order_become_what_was_sent() {
        for source in ["203.0.113.10", "2001:db8:1:3::9"] {
            let flow = Flow::from(source.parse().expect("an address"), 50_000);
            let mut connections = Vec::new();
            let frames = [
                flow.segment(0, b"before the SYN"),
                flow.syn(),
                flow.segment(200, b"behind a gap"),
                flow.segment(3, b"def"),
                flow.segment(0, b"abc"),
                flow.segment(3, b"defghi"),
            ];
            frames.iter().for_each(|frame| note(&mut connections, frame));
            let [sent] = &connections[..] else { panic!("{connections:?}") };
            assert_eq!(sent.client.ip().to_string(), source);
            assert_eq!((sent.client.port(), sent.server.port()), (50_000, 443));
            assert_eq!(sent.bytes(), b"abcdef");
            assert_eq!((sent.segments_of(3), sent.segments_of(4)), (1, 2));
            assert!(!sent.tagged);
        }
    }
}

//! The kernel's own filter of socket dumps: a small program that it runs on each socket, so that
//! only those asked for are copied (`net/ipv4/inet_diag.c`, `inet_diag_bc_run`).

use std::net::IpAddr;

use ipnet::IpNet;

/// What a filter looks at (`enum` in `include/uapi/linux/inet_diag.h`).
mod code {
    pub const JUMP: u8 = 1;
    pub const LOCAL: u8 = 7;
    pub const REMOTE: u8 = 8;
}

const OP_LEN: usize = 4;
/// `struct inet_diag_hostcond` without the address.
const HOST_LEN: usize = 8;
const ANY_PORT: i32 = -1;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// IPv4 networks match IPv4 sockets, and IPv6 sockets with the mapped address.
    pub net: Option<IpNet>,
    pub port: Option<u16>,
}

/// A socket matches when both of its ends do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub local: Option<End>,
    pub remote: Option<End>,
}

/// The filter that lets a socket through when one of `matches` holds; nothing when there are none.
///
/// Alternatives lie behind each other. A condition that fails goes on at the next alternative,
/// one that ends an alternative well jumps to the end. "Rejected" is 4 bytes past the end.
pub(super) fn any_of(matches: &[Match]) -> Vec<u8> {
    let alternatives: Vec<Vec<Condition>> = matches.iter().map(conditions).collect();
    let lengths: Vec<usize> = alternatives.iter().map(|all| length(all)).collect();
    let jumps = alternatives.len().saturating_sub(1);
    let total = lengths.iter().sum::<usize>() + jumps * OP_LEN;
    let mut program = Vec::with_capacity(total);
    for (index, (alternative, length)) in alternatives.iter().zip(lengths).enumerate() {
        let last = index == jumps;
        let otherwise = if last { total + OP_LEN } else { program.len() + length + OP_LEN };
        for condition in alternative {
            condition.write(otherwise, &mut program);
        }
        if !last {
            let to_end = total - program.len();
            op(code::JUMP, OP_LEN, to_end, &mut program);
        }
    }
    program
}

struct Condition {
    code: u8,
    end: End,
}

fn conditions(of: &Match) -> Vec<Condition> {
    let local = of.local.map(|end| Condition { code: code::LOCAL, end });
    let remote = of.remote.map(|end| Condition { code: code::REMOTE, end });
    remote.into_iter().chain(local).collect()
}

fn length(conditions: &[Condition]) -> usize {
    conditions.iter().map(Condition::len).sum()
}

impl Condition {
    fn len(&self) -> usize {
        OP_LEN + HOST_LEN + self.end.net.map_or(0, |net| usize::from(net.max_prefix_len() / 8))
    }

    /// `otherwise` is where the program goes on when the condition fails.
    fn write(&self, otherwise: usize, program: &mut Vec<u8>) {
        op(self.code, self.len(), otherwise - program.len(), program);
        let family = match self.end.net {
            None => libc::AF_UNSPEC,
            Some(IpNet::V4(_)) => libc::AF_INET,
            Some(IpNet::V6(_)) => libc::AF_INET6,
        };
        let prefix_len = self.end.net.map_or(0, |net| net.prefix_len());
        let port = self.end.port.map_or(ANY_PORT, i32::from);
        // Families are small numbers; the two bytes after them are padding.
        program.extend([family as u8, prefix_len, 0, 0]);
        program.extend(port.to_ne_bytes());
        match self.end.net.map(|net| net.addr()) {
            None => {}
            Some(IpAddr::V4(address)) => program.extend(address.octets()),
            Some(IpAddr::V6(address)) => program.extend(address.octets()),
        }
    }
}

/// `struct inet_diag_bc_op`: both distances count from the operation's own beginning.
fn op(code: u8, yes: usize, no: usize, program: &mut Vec<u8>) {
    // No condition is longer than 28 bytes, and those of a whole batch are below 64 KiB, as a test
    // of them says.
    program.extend([code, yes as u8]);
    program.extend((no as u16).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(net: &str) -> Match {
        let end = End { net: Some(net.parse().unwrap()), port: None };
        Match { local: None, remote: Some(end) }
    }

    fn header(program: &[u8], at: usize) -> (u8, usize, usize) {
        let no = u16::from_ne_bytes([program[at + 2], program[at + 3]]);
        (program[at], usize::from(program[at + 1]), usize::from(no))
    }

    #[test]
    fn one_condition_accepts_at_the_end_and_rejects_past_it() {
        let program = any_of(&[remote("192.0.2.0/24")]);
        assert_eq!(header(&program, 0), (code::REMOTE, 16, 20));
        assert_eq!(program[4..8], [libc::AF_INET as u8, 24, 0, 0]);
        assert_eq!(program[8..12], (-1i32).to_ne_bytes());
        assert_eq!(program[12..], [192, 0, 2, 0]);
    }

    #[test]
    fn alternatives_are_tried_one_after_the_other() {
        let program = any_of(&[remote("192.0.2.1/32"), remote("2001:db8::/64")]);
        // The first: 16 bytes, then the jump; when it fails, the second.
        assert_eq!(header(&program, 0), (code::REMOTE, 16, 20));
        assert_eq!(header(&program, 16), (code::JUMP, 4, 4 + 28));
        assert_eq!(header(&program, 20), (code::REMOTE, 28, 28 + 4));
        assert_eq!(program.len(), 48);
    }

    #[test]
    fn both_ends_of_a_flow_must_match() {
        let end = |net: &str, port| Some(End { net: Some(net.parse().unwrap()), port: Some(port) });
        let flow = Match { local: end("192.0.2.1/32", 443), remote: end("192.0.2.2/32", 4711) };
        let program = any_of(&[flow]);
        assert_eq!(header(&program, 0), (code::REMOTE, 16, 36));
        assert_eq!(header(&program, 16), (code::LOCAL, 16, 20));
        assert_eq!(program[8..12], 4711i32.to_ne_bytes());
        assert_eq!(program[24..28], 443i32.to_ne_bytes());
    }

    #[test]
    fn a_port_alone_needs_no_address() {
        let local = Some(End { net: None, port: Some(8080) });
        let program = any_of(&[Match { local, remote: None }]);
        assert_eq!(header(&program, 0), (code::LOCAL, 12, 16));
        assert_eq!(program[4..], [&[0, 0, 0, 0][..], &8080i32.to_ne_bytes()].concat());
    }

    #[test]
    fn nothing_makes_nothing() {
        assert_eq!(any_of(&[]), Vec::<u8>::new());
    }
}

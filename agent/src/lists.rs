//! Files of networks: an IP address or a network in CIDR notation a line, `#` before comments.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use ipnet::IpNet;

use crate::rule::parse_network;

/// Longest line that is read, in bytes; a longer one can't be read.
const MAX_LINE: usize = 4_096;
/// Networks that one file may have.
pub const MAX_NETWORKS: usize = 16_000_000;
/// Lines that can't be read, of which it is said why.
const TOLD: usize = 10;

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    pub networks: Vec<IpNet>,
    /// Lines that can't be read.
    pub bad_lines: u64,
    /// A sentence for each of the first of them, and one for the others.
    pub messages: Vec<String>,
}

/// Reads the file at `path`. What can't be read of it is left out and told.
///
/// # Errors
/// When the file can't be read at all, or has more than [`MAX_NETWORKS`] networks.
pub fn read(path: &Path) -> io::Result<Networks> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("can't read the list {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(named)?;
    read_lines(BufReader::with_capacity(1 << 20, file), &path.display().to_string()).map_err(named)
}

fn read_lines(mut input: impl BufRead, name: &str) -> io::Result<Networks> {
    let mut read = Networks::default();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if !next_line(&mut input, &mut line)? {
            break;
        }
        match network_in(&line) {
            Ok(network) => read.networks.extend(network),
            Err(message) => {
                if read.messages.len() < TOLD {
                    read.messages.push(format!("{name}:{number}: {message}"));
                }
                read.bad_lines += 1;
            }
        }
        if read.networks.len() > MAX_NETWORKS {
            return Err(io::Error::other(format!("more than {MAX_NETWORKS} networks")));
        }
    }
    let untold = read.bad_lines.saturating_sub(TOLD as u64);
    if untold > 0 {
        read.messages.push(format!("{name}: {untold} more lines can't be read"));
    }
    Ok(read)
}

/// The next line without its end, cut at [`MAX_LINE`] and a byte; false when there is none.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut any = false;
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = memchr::memchr(b'\n', buffer);
        let piece = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = (MAX_LINE + 1).saturating_sub(line.len());
        line.extend(piece.iter().take(room));
        let consumed = end.map_or(buffer.len(), |end| end + 1);
        input.consume(consumed);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn network_in(line: &[u8]) -> Result<Option<IpNet>, String> {
    if line.len() > MAX_LINE {
        return Err(format!("longer than {MAX_LINE} bytes"));
    }
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
    let text = text.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Ok(None);
    }
    parse_network(text).map(Some).map_err(|message| message.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_the_rest_is_told() {
        let text = "# a list\n203.0.113.7\n\n 198.51.100.0/24 # why\r\n2001:db8::/48\n\
                    10.0.0.1/8\nhost.example\n::ffff:192.0.2.1";
        let read = read_lines(text.as_bytes(), "bad.txt").unwrap();
        let networks: Vec<_> = read.networks.iter().map(ToString::to_string).collect();
        let expected = ["203.0.113.7/32", "198.51.100.0/24", "2001:db8::/48", "192.0.2.1/32"];
        assert_eq!(networks, expected);
        assert_eq!(read.bad_lines, 2);
        assert_eq!(
            read.messages,
            [
                "bad.txt:6: `10.0.0.1/8` has bits set past its prefix: `10.0.0.0/8` is the network",
                "bad.txt:7: `host.example` is neither an IP address nor a network in CIDR notation",
            ]
        );
    }

    #[test]
    fn bad_lines_are_counted_and_not_all_told() {
        let text = "x\n".repeat(25) + &"y".repeat(100_000) + "\n192.0.2.1\n\u{1b}[2J\n";
        let read = read_lines(text.as_bytes(), "f").unwrap();
        assert_eq!((read.networks.len(), read.bad_lines, read.messages.len()), (1, 27, TOLD + 1));
        assert_eq!(read.messages.last().unwrap(), "f: 17 more lines can't be read");
        let read = read_lines(&b"\xff\n\x1b[2J\n"[..], "f").unwrap();
        assert!(read.messages[0].ends_with("not UTF-8"));
        assert!(read.messages[1].starts_with("f:2: `\\u{1b}[2J`"), "{}", read.messages[1]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nonexistent/list")).unwrap_err().to_string();
        assert!(error.starts_with("can't read the list /nonexistent/list: "), "{error}");
    }
}

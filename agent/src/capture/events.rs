//! Ring buffer records into events.

use aya::Pod;
use portcullis_common::event::{
    self, ClientHello, Exec, FirstDrop, NoSocket, QuicInitial, TlsClosed, TlsData, kind,
};

#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    TlsData(TlsData, &'a [u8]),
    TlsClosed(TlsClosed),
    FirstDrop(FirstDrop),
    Exec(Exec),
    NoSocket(NoSocket),
    ClientHello(ClientHello, &'a [u8]),
    QuicInitial(QuicInitial, &'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("a record of {0} bytes is too short for its kind")]
    Short(usize),
    #[error("no record is of kind {0}")]
    Kind(u32),
}

/// # Errors
/// Never on what this version's own programs wrote.
pub fn decode(record: &[u8]) -> Result<Event<'_>, DecodeError> {
    match read::<u32>(record)?.0 {
        kind::TLS_DATA => {
            let (header, rest) = read::<TlsData>(record)?;
            Ok(Event::TlsData(header, front(rest, header.copied, record)?))
        }
        kind::TLS_CLOSED => Ok(Event::TlsClosed(read(record)?.0)),
        kind::FIRST_DROP => Ok(Event::FirstDrop(read(record)?.0)),
        kind::CLIENT_HELLO => {
            let (header, rest) = read::<ClientHello>(record)?;
            Ok(Event::ClientHello(header, front(rest, header.len, record)?))
        }
        kind::QUIC_INITIAL => {
            let (header, rest) = read::<QuicInitial>(record)?;
            Ok(Event::QuicInitial(header, front(rest, header.len, record)?))
        }
        kind::EXEC => Ok(Event::Exec(read(record)?.0)),
        kind::NO_SOCKET => Ok(Event::NoSocket(read(record)?.0)),
        other => Err(DecodeError::Kind(other)),
    }
}

/// The first `len` bytes of `rest`, which is the end of `record`: the ring buffer rounds lengths up.
fn front<'a>(rest: &'a [u8], len: u32, record: &[u8]) -> Result<&'a [u8], DecodeError> {
    rest.get(..len as usize).ok_or(DecodeError::Short(record.len()))
}

/// The process name of an event, as far as it is text.
pub fn comm(header: &event::TlsData) -> &str {
    let bytes = header.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(name) => name,
        Err(error) => {
            bytes.get(..error.valid_up_to()).and_then(|b| str::from_utf8(b).ok()).unwrap_or("")
        }
    }
}

/// A `T` from the front of `bytes`, and what follows it.
fn read<T: Pod>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let short = DecodeError::Short(bytes.len());
    let (value, rest) = bytes.split_at_checked(size_of::<T>()).ok_or(short)?;
    // SAFETY: `value` has the size of `T`, whose every bit pattern is valid (`Pod`); the read
    // does not need alignment.
    Ok((unsafe { value.as_ptr().cast::<T>().read_unaligned() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<T: Pod>(value: &T) -> Vec<u8> {
        // SAFETY: `T` has no padding (asserted in portcullis_common::layout).
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
            .to_vec()
    }

    #[test]
    fn data_is_cut_to_what_was_copied() {
        let header = TlsData { kind: kind::TLS_DATA, len: 9, copied: 3, ..Default::default() };
        let mut record = bytes_of(&header);
        record.extend_from_slice(b"GET and the rest of the reservation");
        let Ok(Event::TlsData(_, data)) = decode(&record) else { panic!("{record:?}") };
        assert_eq!(data, b"GET");
        assert_eq!(decode(&record[..106]).unwrap_err(), DecodeError::Short(106));
    }

    #[test]
    fn every_kind_is_read_back() {
        let closed = TlsClosed { kind: kind::TLS_CLOSED, connection: 7, ..Default::default() };
        assert!(matches!(decode(&bytes_of(&closed)), Ok(Event::TlsClosed(c)) if c.connection == 7));
        let drop = FirstDrop { kind: kind::FIRST_DROP, rule_id: 8, ..Default::default() };
        assert!(matches!(decode(&bytes_of(&drop)), Ok(Event::FirstDrop(d)) if d.rule_id == 8));
        let mut quic =
            bytes_of(&QuicInitial { kind: kind::QUIC_INITIAL, len: 2, ..Default::default() });
        assert!(matches!(decode(&quic), Err(DecodeError::Short(56))));
        quic.extend_from_slice(b"ab and padding");
        assert!(matches!(decode(&quic), Ok(Event::QuicInitial(_, b"ab"))));
        let exec = Exec { kind: kind::EXEC, pid: 9, ..Default::default() };
        assert!(matches!(decode(&bytes_of(&exec)), Ok(Event::Exec(e)) if e.pid == 9));
        let found = NoSocket { kind: kind::NO_SOCKET, pid: 10, ..Default::default() };
        assert!(matches!(decode(&bytes_of(&found)), Ok(Event::NoSocket(n)) if n.pid == 10));
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(decode(b"").unwrap_err(), DecodeError::Short(0));
        assert_eq!(decode(&99u32.to_ne_bytes()).unwrap_err(), DecodeError::Kind(99));
        assert_eq!(decode(&kind::EXEC.to_ne_bytes()).unwrap_err(), DecodeError::Short(4));
    }

    #[test]
    fn process_names_end_at_the_first_zero() {
        let mut header = TlsData::default();
        header.comm[..6].copy_from_slice(b"nginx\0");
        assert_eq!(comm(&header), "nginx");
        header.comm = [0xff; 16];
        assert_eq!(comm(&header), "");
    }
}

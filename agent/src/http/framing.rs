//! How long a message's body is: RFC 9112, section 6.3, without the lenience that request
//! smuggling lives on.

use super::counts::Counter;

/// Why a message cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The start line or a field line.
    Head,
    HeadTooLong,
    TooManyFields,
    ContentLength,
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthConflict,
    TransferEncoding,
    Chunk,
}

impl Malformed {
    pub const fn in_request(self) -> Counter {
        match self {
            Self::Head => Counter::MalformedRequest,
            Self::HeadTooLong => Counter::RequestHeadTooLong,
            Self::TooManyFields => Counter::RequestTooManyFields,
            Self::ContentLength => Counter::RequestContentLength,
            Self::LengthConflict => Counter::RequestLengthConflict,
            Self::TransferEncoding => Counter::RequestTransferEncoding,
            Self::Chunk => Counter::RequestChunk,
        }
    }

    pub const fn in_response(self) -> Counter {
        match self {
            Self::Head => Counter::MalformedResponse,
            Self::HeadTooLong => Counter::ResponseHeadTooLong,
            Self::TooManyFields => Counter::ResponseTooManyFields,
            Self::ContentLength => Counter::ResponseContentLength,
            Self::LengthConflict => Counter::ResponseLengthConflict,
            Self::TransferEncoding => Counter::ResponseTransferEncoding,
            Self::Chunk => Counter::ResponseChunk,
        }
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and the trailer section.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// The methods that change how messages are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    Head,
    Connect,
    Other,
}

impl MethodKind {
    /// Methods are case-sensitive (RFC 9110, section 9.1).
    pub fn of(method: &str) -> Self {
        match method {
            "HEAD" => Self::Head,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// What the fields of one message say about its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingFields {
    /// HTTP/1.0.
    old: bool,
    length: Option<Result<u64, Malformed>>,
    encoding: Option<Encoding>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Encoding {
    chunked: u32,
    chunked_is_last: bool,
    other: bool,
}

impl FramingFields {
    /// For a message of HTTP/1.`minor`.
    pub fn new(minor: u8) -> Self {
        Self { old: minor == 0, ..Self::default() }
    }

    /// Takes a `Content-Length` value. Several are as one list; all members must be equal
    /// (RFC 9112, section 6.3, rule 5).
    pub fn content_length(&mut self, value: &[u8]) {
        for member in value.split(|&byte| byte == b',') {
            let member = decimal(trim_spaces(member)).ok_or(Malformed::ContentLength);
            self.length = match self.length {
                Some(before) if before != member => Some(Err(Malformed::ContentLength)),
                _ => Some(member),
            };
        }
    }

    /// Takes a `Transfer-Encoding` value. Several are as one list (RFC 9112, section 6.1).
    pub fn transfer_encoding(&mut self, value: &[u8]) {
        let encoding = self.encoding.get_or_insert_default();
        for coding in value.split(|&byte| byte == b',').map(trim_spaces) {
            if coding.is_empty() {
                continue;
            }
            encoding.chunked_is_last = coding.eq_ignore_ascii_case(b"chunked");
            if encoding.chunked_is_last {
                encoding.chunked = encoding.chunked.saturating_add(1);
            } else {
                encoding.other = true;
            }
        }
    }

    /// The `Content-Length`, where it is one number.
    pub fn declared(&self) -> Option<u64> {
        self.length?.ok()
    }

    /// Whether a transfer coding beside `chunked` hides the body's bytes.
    pub fn is_coded(&self) -> bool {
        self.encoding.is_some_and(|encoding| encoding.other)
    }

    /// The framing of a request's body.
    pub fn request(&self) -> Result<Framing, Malformed> {
        match self.encoding() {
            Some(encoding) if encoding?.chunked_is_last => Ok(Framing::Chunked),
            Some(_) => Err(Malformed::TransferEncoding),
            None => Ok(Framing::Length(self.length.unwrap_or(Ok(0))?)),
        }
    }

    /// The framing of the body of a response with `status` to a request with `method`.
    /// A 2xx response to CONNECT has none: a tunnel begins.
    pub fn response(&self, method: MethodKind, status: u16) -> Result<Framing, Malformed> {
        let tunnel = method == MethodKind::Connect && (200..300).contains(&status);
        if method == MethodKind::Head || tunnel || matches!(status, 100..=199 | 204 | 304) {
            return Ok(Framing::Length(0));
        }
        match (self.encoding(), self.length) {
            (Some(encoding), _) if encoding?.chunked_is_last => Ok(Framing::Chunked),
            (None, Some(length)) => Ok(Framing::Length(length?)),
            (Some(_), _) | (None, None) => Ok(Framing::UntilClose),
        }
    }

    /// The transfer codings, if any; an error where they make the framing unreliable: beside
    /// `Content-Length`, in HTTP/1.0, `chunked` twice (RFC 9112, sections 6.1 and 6.3).
    fn encoding(&self) -> Option<Result<Encoding, Malformed>> {
        let encoding = self.encoding?;
        Some(if self.length.is_some() {
            Err(Malformed::LengthConflict)
        } else if self.old || encoding.chunked > 1 {
            Err(Malformed::TransferEncoding)
        } else {
            Ok(encoding)
        })
    }
}

/// `bytes` without spaces and tabs around them (`OWS`, RFC 9110, section 5.6.3). Other white space
/// is part of a value: servers disagree on it.
pub fn trim_spaces(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// `1*DIGIT` as a number, unless too large.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit & 0x0f))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::Framing::{Chunked, Length, UntilClose};
    use super::{FramingFields, Malformed, MethodKind};

    /// Fields from `name: value` lines, `L` for Content-Length, `T` for Transfer-Encoding.
    fn fields(old: bool, lines: &[(char, &str)]) -> FramingFields {
        let mut fields = FramingFields { old, ..FramingFields::default() };
        for (name, value) in lines {
            match name {
                'L' => fields.content_length(value.as_bytes()),
                _ => fields.transfer_encoding(value.as_bytes()),
            }
        }
        fields
    }

    #[test]
    fn requests_follow_section_6_3() {
        let table = [
            (&[][..], Ok(Length(0))),
            (&[('L', "17")], Ok(Length(17))),
            (&[('L', "017")], Ok(Length(17))),
            (&[('L', "17"), ('L', "17")], Ok(Length(17))),
            (&[('L', "17, 17")], Ok(Length(17))),
            (&[('L', "18446744073709551615")], Ok(Length(u64::MAX))),
            (&[('L', "18446744073709551616")], Err(Malformed::ContentLength)),
            (&[('L', "17"), ('L', "18")], Err(Malformed::ContentLength)),
            (&[('L', "17,18,17")], Err(Malformed::ContentLength)),
            (&[('L', "x"), ('L', "17")], Err(Malformed::ContentLength)),
            (&[('L', "")], Err(Malformed::ContentLength)),
            (&[('L', "17,")], Err(Malformed::ContentLength)),
            (&[('L', "+17")], Err(Malformed::ContentLength)),
            (&[('L', "-1")], Err(Malformed::ContentLength)),
            (&[('L', "0x11")], Err(Malformed::ContentLength)),
            (&[('L', "1 7")], Err(Malformed::ContentLength)),
            (&[('T', "chunked")], Ok(Chunked)),
            (&[('T', "ChunKed")], Ok(Chunked)),
            (&[('T', "gzip, chunked")], Ok(Chunked)),
            (&[('T', "gzip"), ('T', "chunked")], Ok(Chunked)),
            (&[('T', "chunked, gzip")], Err(Malformed::TransferEncoding)),
            (&[('T', "gzip")], Err(Malformed::TransferEncoding)),
            (&[('T', "")], Err(Malformed::TransferEncoding)),
            (&[('T', "chunked, chunked")], Err(Malformed::TransferEncoding)),
            (&[('T', "xchunked")], Err(Malformed::TransferEncoding)),
            (&[('T', "chunked;q=1")], Err(Malformed::TransferEncoding)),
            (&[('L', "5"), ('T', "chunked")], Err(Malformed::LengthConflict)),
            (&[('T', "identity"), ('L', "5")], Err(Malformed::LengthConflict)),
        ];
        for (lines, expected) in table {
            assert_eq!(fields(false, lines).request(), expected, "{lines:?}");
        }
        let old = fields(true, &[('T', "chunked")]);
        assert_eq!(old.request(), Err(Malformed::TransferEncoding));
        assert_eq!(fields(true, &[('L', "3")]).request(), Ok(Length(3)));
    }

    #[test]
    fn responses_follow_section_6_3() {
        use MethodKind::{Connect, Head, Other};
        let length = &[('L', "9")][..];
        let chunked = &[('T', "chunked")][..];
        let both = &[('L', "9"), ('T', "chunked")][..];
        let table = [
            (Other, 200, &[][..], Ok(UntilClose)),
            (Other, 200, length, Ok(Length(9))),
            (Other, 200, chunked, Ok(Chunked)),
            (Other, 205, length, Ok(Length(9))),
            (Other, 200, &[('T', "gzip")], Ok(UntilClose)),
            (Other, 200, &[('T', "chunked, gzip")], Ok(UntilClose)),
            (Other, 200, &[('T', "chunked"), ('T', "chunked")], Err(Malformed::TransferEncoding)),
            (Other, 200, both, Err(Malformed::LengthConflict)),
            (Other, 200, &[('L', "9"), ('L', "8")], Err(Malformed::ContentLength)),
            (Other, 204, length, Ok(Length(0))),
            (Other, 304, length, Ok(Length(0))),
            (Other, 304, both, Ok(Length(0))),
            (Other, 103, length, Ok(Length(0))),
            (Head, 200, chunked, Ok(Length(0))),
            (Head, 404, length, Ok(Length(0))),
            (Connect, 200, length, Ok(Length(0))),
            (Connect, 299, chunked, Ok(Length(0))),
            (Connect, 405, length, Ok(Length(9))),
        ];
        for (method, status, lines, expected) in table {
            let found = fields(false, lines).response(method, status);
            assert_eq!(found, expected, "{method:?} {status} {lines:?}");
        }
        let old = fields(true, chunked);
        assert_eq!(old.response(Other, 200), Err(Malformed::TransferEncoding));
    }
}

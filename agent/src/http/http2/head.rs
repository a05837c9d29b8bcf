//! The head of a message out of its header fields.

use super::table::Field;
use crate::http::credential::CredentialKey;
use crate::http::framing::{Framing, MethodKind};
use crate::http::head::{Fields, ResponseHead};
use crate::http::request_head::{RequestHead, host_of, is_token, target_text};
use crate::transaction::Headers;

/// Stands for the name of a field, or for a method or path, that a table entry holds which was
/// not seen.
pub const UNKNOWN: &str = "*";

/// The fields of a block, as they come.
pub struct Head {
    fields: Fields,
    method: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    protocol: bool,
    /// A pseudo-header field came twice.
    ambiguous: bool,
    /// Fields with an unknown name or value.
    pub unknown: u64,
    /// Bytes of names and values, and of a table entry beside them.
    bytes: usize,
    /// Fields beyond the limit were left out.
    pub too_long: bool,
}

/// Why there is no request or response.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// The fields lack what they must have.
    Malformed,
    /// These are trailers.
    Trailers,
    /// It is in a field that could not be named.
    Unknown,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            fields: Fields::new(1, 0, 0),
            method: None,
            path: None,
            authority: None,
            status: None,
            protocol: false,
            ambiguous: false,
            unknown: 0,
            bytes: 0,
            too_long: false,
        }
    }
}

impl Head {
    /// Takes a field; those that are beyond `max` bytes together are left out.
    pub fn add(&mut self, field: Field<'_>, max: usize, key: &CredentialKey) {
        let (name, value) = (field.name.unwrap_or_default(), field.value.unwrap_or_default());
        let size = name.len().saturating_add(value.len()).saturating_add(32);
        if field.name.is_none() || field.value.is_none() {
            self.unknown = self.unknown.saturating_add(1);
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > max {
            self.too_long = true;
            return;
        }
        let headers = &mut self.fields.headers;
        let Some(name) = field.name else {
            // It might be a credential.
            let value = field.value.map(|value| key.hash(value)).unwrap_or_default();
            return headers.push(UNKNOWN, value);
        };
        let pseudo = match name {
            b":method" => &mut self.method,
            b":path" => &mut self.path,
            b":authority" => &mut self.authority,
            b":status" => &mut self.status,
            b":protocol" => return self.protocol = true,
            [b':', ..] => return,
            name => return self.regular(name, value, key),
        };
        self.ambiguous |= pseudo.is_some();
        *pseudo = Some(value.to_vec());
    }

    /// What is no field name is left out, as in HTTP/1.
    fn regular(&mut self, name: &[u8], value: &[u8], key: &CredentialKey) {
        let token = std::str::from_utf8(name).ok().filter(|name| name.bytes().all(is_token));
        // It has no meaning here (RFC 9113, section 8.2.2).
        let frames = name.eq_ignore_ascii_case(b"transfer-encoding");
        if let Some(name) = token.filter(|name| !name.is_empty() && !frames) {
            self.fields.add(name, value, key);
        }
    }

    fn framing(&self, ended: bool) -> Framing {
        match self.fields.framing.declared() {
            _ if ended => Framing::Length(0),
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        }
    }

    /// Bytes allocated.
    pub fn heap_bytes(&self) -> usize {
        [&self.method, &self.path, &self.authority, &self.status]
            .into_iter()
            .flatten()
            .fold(self.fields.heap_bytes(), |sum, text| sum.saturating_add(text.capacity()))
    }

    /// Whether this asks for another protocol on its stream (RFC 8441).
    pub fn is_extended_connect(&self) -> bool {
        self.protocol
    }

    /// The request, whose stream ends with its head if `ended`.
    pub fn request(self, ended: bool) -> Result<RequestHead, Missing> {
        let pseudo = self.method.is_some() || self.path.is_some() || self.authority.is_some();
        if !pseudo && self.unknown == 0 {
            return Err(Missing::Trailers);
        }
        let framing = self.framing(ended);
        let host = match &self.authority {
            Some(authority) if !authority.is_empty() => authority,
            _ => &self.fields.host,
        };
        let host = host_of(&String::from_utf8_lossy(host)).to_owned();
        let is_method =
            |method: &Vec<u8>| !method.is_empty() && method.iter().copied().all(is_token);
        let method = match self.method {
            Some(method) if is_method(&method) => String::from_utf8(method).unwrap_or_default(),
            None if self.unknown > 0 => UNKNOWN.to_owned(),
            Some(_) | None => return Err(Missing::Malformed),
        };
        let kind = MethodKind::of(&method);
        let path = match self.path {
            Some(path) if !path.is_empty() => target_text(&path),
            None if kind == MethodKind::Connect && !host.is_empty() => {
                target_text(&self.authority.unwrap_or_default())
            }
            None if self.unknown > 0 => UNKNOWN.to_owned(),
            Some(_) | None => return Err(Missing::Malformed),
        };
        if self.ambiguous || path.is_empty() {
            return Err(Missing::Malformed);
        }
        let headers = self.fields.headers;
        Ok(RequestHead { method, kind, path, host, proto: "h2", headers, framing })
    }

    /// A request of which nothing is known.
    pub fn unknown_request() -> RequestHead {
        RequestHead {
            method: UNKNOWN.to_owned(),
            kind: MethodKind::Other,
            path: UNKNOWN.to_owned(),
            host: String::new(),
            proto: "h2",
            headers: Headers::default(),
            framing: Framing::UntilClose,
        }
    }

    /// The response, whose stream ends with its head if `ended`.
    pub fn response(self, ended: bool) -> Result<(ResponseHead, Framing), Missing> {
        let status = match &self.status {
            Some(status) if !self.ambiguous => status_of(status).ok_or(Missing::Malformed)?,
            None if self.unknown > 0 => return Err(Missing::Unknown),
            None => return Err(Missing::Trailers),
            Some(_) => return Err(Missing::Malformed),
        };
        let framing = self.framing(ended);
        let Fields { headers, framing: fields, plain, .. } = self.fields;
        Ok((ResponseHead { status, headers, fields, plain }, framing))
    }

    /// The fields of trailers.
    pub fn trailers(self) -> Headers {
        self.fields.headers
    }
}

/// Three digits (RFC 9110, section 15).
fn status_of(digits: &[u8]) -> Option<u16> {
    let three = digits.len() == 3 && digits.iter().all(u8::is_ascii_digit);
    let status = std::str::from_utf8(digits).ok().filter(|_| three)?.parse().ok()?;
    (status >= 100).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::{CredentialKey, Field, Framing, Head, Missing, RequestHead, ResponseHead};

    fn known(text: &str) -> Option<&[u8]> {
        Some(text.as_bytes()).filter(|text| *text != b"?")
    }

    /// A head of these fields, `?` for what is unknown.
    fn head(fields: &[(&str, &str)], max: usize) -> Head {
        let mut head = Head::default();
        for (name, value) in fields {
            let field = Field { name: known(name), value: known(value) };
            head.add(field, max, &CredentialKey::unkeyed());
        }
        head
    }

    fn request(fields: &[(&str, &str)]) -> Result<RequestHead, Missing> {
        head(fields, 1_000).request(false)
    }

    fn response(fields: &[(&str, &str)]) -> Result<(ResponseHead, Framing), Missing> {
        head(fields, 1_000).response(false)
    }

    const GET: (&str, &str) = (":method", "GET");
    const PATH: (&str, &str) = (":path", "/a");

    #[test]
    fn requests_need_a_method_and_a_path() {
        let found = request(&[GET, PATH, ("host", "h:1"), ("content-length", "7")]).unwrap();
        assert_eq!((found.method.as_str(), found.path.as_str()), ("GET", "/a"));
        assert_eq!((found.host.as_str(), found.framing), ("h", Framing::Length(7)));
        let named = request(&[GET, PATH, (":authority", "a"), ("host", "h")]).unwrap();
        assert_eq!((named.host.as_str(), named.framing), ("a", Framing::UntilClose));
        assert_eq!(head(&[GET, PATH], 1_000).request(true).unwrap().framing, Framing::Length(0));
        let connect = request(&[(":method", "CONNECT"), (":authority", "h:443")]).unwrap();
        assert_eq!((connect.path.as_str(), connect.host.as_str()), ("h:443", "h"));
        let encoded = request(&[GET, (":path", "/a b\n")]).unwrap();
        assert_eq!(encoded.path, "/a%20b%0A");
        for malformed in [
            &[GET][..],
            &[PATH],
            &[GET, GET, PATH],
            &[GET, PATH, PATH],
            &[(":method", ""), PATH],
            &[(":method", "G T"), PATH],
            &[GET, (":path", "")],
            &[(":method", "CONNECT"), (":authority", "")],
        ] {
            assert_eq!(request(malformed).unwrap_err(), Missing::Malformed, "{malformed:?}");
        }
        assert_eq!(request(&[("x-sum", "1")]).unwrap_err(), Missing::Trailers);
    }

    #[test]
    fn placeholders_stand_for_what_is_unknown() {
        let found = request(&[("?", "?"), ("?", "s3cret"), ("x", "y")]).unwrap();
        assert_eq!((found.method.as_str(), found.path.as_str()), ("*", "*"));
        let hash = CredentialKey::unkeyed().hash(b"s3cret");
        let fields: Vec<_> = found.headers.iter().collect();
        assert_eq!(fields, [("*", ""), ("*", hash.as_str()), ("x", "y")]);
        assert_eq!(request(&[("?", "?"), PATH]).unwrap().path, "/a");
    }

    #[test]
    fn responses_need_a_status_of_three_digits() {
        let (found, framing) = response(&[(":status", "401"), ("content-length", "2")]).unwrap();
        assert_eq!((found.status, framing), (401, Framing::Length(2)));
        for malformed in ["", "42", "099", "2000", "2x0", "+20"] {
            let found = response(&[(":status", malformed)]).unwrap_err();
            assert_eq!(found, Missing::Malformed, "{malformed}");
        }
        let twice = response(&[(":status", "200"), (":status", "401")]);
        assert_eq!(twice.unwrap_err(), Missing::Malformed);
        assert_eq!(response(&[("grpc-status", "0")]).unwrap_err(), Missing::Trailers);
        assert_eq!(response(&[("?", "?")]).unwrap_err(), Missing::Unknown);
    }

    #[test]
    fn fields_beyond_the_limit_and_names_that_are_none_are_left_out() {
        let found = head(&[GET, PATH, ("a", "1"), ("b", "22222")], 39 + 10 + 37 + 34);
        assert!(found.too_long);
        let fields = found.request(false).unwrap().headers;
        assert_eq!(fields.iter().collect::<Vec<_>>(), [("a", "1")]);
        let odd = [GET, PATH, ("", "1"), ("a b", "2"), (":odd", "3"), ("transfer-encoding", "x")];
        assert!(request(&odd).unwrap().headers.is_empty());
    }
}

//! One HTTP exchange, as the pipeline produces it and `portcullis replay` reads it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::time::Timestamp;

/// Whether this host served the exchange or asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    #[default]
    In,
    Out,
}

/// The transaction format, version 1: one JSON object a line. Unknown keys are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transaction {
    /// End of the request head.
    pub ts: Timestamp,
    /// The client's address as the socket saw it.
    pub src: IpAddr,
    #[serde(default)]
    pub src_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Shared with all transactions of clients that look the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ja4: Option<Arc<str>>,
    #[serde(default)]
    pub direction: Direction,
    #[serde(default = "http_1_1")]
    pub proto: String,
    #[serde(default)]
    pub scheme: String,
    /// As the request named it; empty when it did not.
    #[serde(default)]
    pub host: String,
    pub method: String,
    /// With query, as sent.
    pub path: String,
    #[serde(default)]
    pub req_headers: Headers,
    #[serde(default)]
    pub resp_headers: Headers,
    /// Excerpt of at most 16 KiB; bytes that are not UTF-8 are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub req_body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp_body: Option<String>,
    /// Sizes of the bodies in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub req_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp_bytes: Option<u64>,
    /// Absent when no response was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Of a gRPC call that told how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
}

fn http_1_1() -> String {
    "http/1.1".to_owned()
}

impl Transaction {
    /// The path without its query.
    pub fn path_only(&self) -> &str {
        self.path.split_once('?').map_or(&self.path, |(path, _)| path)
    }
}

/// Header fields in the order and case they were sent.
///
/// All text lies in one buffer, so that a message with many fields costs two allocations.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Name and value of each field in turn.
    text: String,
    /// Where each field's name and value end in `text`.
    ends: Vec<(usize, usize)>,
}

impl Headers {
    /// Room for `fields` fields of `bytes` bytes in all.
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(fields) }
    }

    pub fn push(&mut self, name: impl AsRef<str>, value: impl AsRef<str>) {
        self.push_with(name.as_ref(), |text| text.push_str(value.as_ref()));
    }

    /// Adds a field whose value is what `write` appends to the string it is given. It must only
    /// append.
    pub(crate) fn push_with(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        self.text.push_str(name);
        let name_end = self.text.len();
        write(&mut self.text);
        self.ends.push((name_end, self.text.len()));
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        (0..self.ends.len()).filter_map(|index| self.field(index))
    }

    fn field(&self, index: usize) -> Option<(&str, &str)> {
        let (name_end, value_end) = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => self.ends.get(before)?.1,
            None => 0,
        };
        Some((self.text.get(start..name_end)?, self.text.get(name_end..value_end)?))
    }

    /// The values of the fields called `name`, whatever its case (RFC 9110, section 5.1).
    pub fn all<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of the first field called `name`.
    pub fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes allocated.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * size_of::<(usize, usize)>()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// An array of `[name, value]`.
impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of [name, value]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Headers, A::Error> {
                let mut headers = Headers::default();
                while let Some((name, value)) = seq.next_element::<(String, String)>()? {
                    headers.push(name, value);
                }
                Ok(headers)
            }
        }

        deserializer.deserialize_seq(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::Headers;

    #[test]
    fn headers_keep_order_case_repetition_and_empty_values() {
        let json = r#"[["Host","shop"],["X","1"],["x",""],["","v"]]"#;
        let headers: Headers = serde_json::from_str(json).unwrap();
        assert_eq!(headers.len(), 4);
        assert_eq!(headers.get("host"), Some("shop"));
        assert_eq!(headers.all("X").collect::<Vec<_>>(), ["1", ""]);
        assert_eq!(headers.iter().next_back(), Some(("", "v")));
        assert_eq!(serde_json::to_string(&headers).unwrap(), json);
        assert!(serde_json::from_str::<Headers>(r#"[["only a name"]]"#).is_err());
    }
}

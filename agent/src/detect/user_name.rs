//! The user name of a login, reduced to a keyed hash where it is found.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::login::is_word;
use crate::transaction::Transaction;

/// Names of the fields that a user is named in, the likeliest first; without case, `-` and `_`.
const USUAL_FIELDS: &[&str] = &[
    "username",
    "userlogin",
    "loginname",
    "loginid",
    "email",
    "emailaddress",
    "useremail",
    "mail",
    "login",
    "userid",
    "uid",
    "uname",
    "user",
    "usr",
    "identifier",
    "accountname",
    "account",
    "phonenumber",
    "phone",
    "mobile",
    "jusername",
    "log",
];

/// Servers disagree on the padding of Basic credentials, so none is demanded.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The hash of the user name that `tx` logs in with: from the field `field` of its body, or one
/// of the usual fields, else from Basic credentials. A body that was cut off is read as far as
/// it goes. Case and surrounding spaces make no difference.
pub(super) fn hashed(tx: &Transaction, field: Option<&str>, key: &RandomState) -> Option<u64> {
    let mut found = Found { field, key, best: None };
    if let Some(body) = tx.req_body.as_deref() {
        let text = body.trim_start();
        if let Some(boundary) = boundary(tx) {
            read_multipart(body, boundary, &mut found);
        } else if text.starts_with(['{', '[']) {
            let mut json = serde_json::Deserializer::from_str(text);
            // The error is the end of the excerpt, or of what can be read.
            let _ = Value { found: &mut found, rank: None }.deserialize(&mut json);
        } else {
            for (name, value) in form_urlencoded::parse(text.as_bytes()) {
                found.note_field(&name, &value);
            }
        }
    }
    found.best.map(|(_, hash)| hash).or_else(|| from_basic(tx, key))
}

/// What separates the parts of a body of type `multipart/form-data` (RFC 7578, section 4.1).
fn boundary(tx: &Transaction) -> Option<&str> {
    let mut parts = tx.req_headers.get("content-type")?.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parts, "boundary")?;
    (!boundary.is_empty()).then_some(boundary)
}

/// The fields of a multipart body (RFC 2046, section 5.1.1) as far as they are whole. Reads the
/// body once.
fn read_multipart(body: &str, boundary: &str, found: &mut Found<'_>) {
    let delimiter = format!("--{boundary}");
    // What stands before the first delimiter is no part.
    for part in body.split(delimiter.as_str()).skip(1) {
        let Some((head, value)) = part.split_once("\r\n\r\n") else { continue };
        // A value that ends otherwise has been cut off.
        let Some(value) = value.strip_suffix("\r\n") else { continue };
        let disposition = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
        });
        let name = disposition.and_then(|text| parameter(text.split(';').map(str::trim), "name"));
        if let Some(name) = name {
            found.note_field(name, value);
        }
    }
}

/// The value of the parameter `wanted`. Quoted ones are taken to hold no `;`, which neither
/// boundaries nor names of usual fields do.
fn parameter<'p>(mut parts: impl Iterator<Item = &'p str>, wanted: &str) -> Option<&'p str> {
    parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"'))
    })
}

/// Of a name like `user[email]` the part in the last brackets.
fn innermost(name: &str) -> &str {
    name.strip_suffix(']').and_then(|n| n.rsplit_once('[')).map_or(name, |(_, inner)| inner)
}

/// From `Authorization: Basic` (RFC 7617), in its own form or in the one with hashes that
/// stands for it: `Basic user=<16 hex digits> credential=<16 hex digits>`.
fn from_basic(tx: &Transaction, key: &RandomState) -> Option<u64> {
    let (scheme, value) = tx.req_headers.get("authorization")?.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let value = value.trim();
    if let Some(hash) = value.split(' ').find_map(|part| part.strip_prefix("user=")) {
        return hash_of(hash, key);
    }
    let credentials = BASE64.decode(value).ok()?;
    let user = credentials.split(|byte| *byte == b':').next()?;
    hash_of(&String::from_utf8_lossy(user), key)
}

fn hash_of(user: &str, key: &RandomState) -> Option<u64> {
    let user = user.trim();
    if user.is_empty() {
        return None;
    }
    let mut hasher = key.build_hasher();
    user.chars().flat_map(char::to_lowercase).for_each(|c| c.hash(&mut hasher));
    Some(hasher.finish())
}

/// The likeliest user name so far.
struct Found<'a> {
    field: Option<&'a str>,
    key: &'a RandomState,
    best: Option<(usize, u64)>,
}

impl Found<'_> {
    /// How likely the field `name` holds the user name, 0 being the likeliest.
    fn rank(&self, name: &str) -> Option<usize> {
        match self.field {
            Some(field) => (field == name).then_some(0),
            None => USUAL_FIELDS.iter().position(|word| is_word(name, word)),
        }
    }

    /// Notes a field of a form.
    fn note_field(&mut self, name: &str, value: &str) {
        if let Some(rank) = self.rank(innermost(name)) {
            self.note(rank, value);
        }
    }

    fn note(&mut self, rank: usize, user: &str) {
        if self.best.is_none_or(|(best, _)| rank < best)
            && let Some(hash) = hash_of(user, self.key)
        {
            self.best = Some((rank, hash));
        }
    }
}

/// Reads a JSON value at any depth (serde_json stops at 128 levels) for user names, and keeps
/// what it found when the text ends early.
struct Value<'f, 'a> {
    found: &'f mut Found<'a>,
    /// The rank of the field it is the value of.
    rank: Option<usize>,
}

impl Value<'_, '_> {
    fn note(self, user: &str) {
        if let Some(rank) = self.rank {
            self.found.note(rank, user);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.note(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.note(&value.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.note(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Value { found: self.found, rank: None })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let rank = self.found.rank(&name);
            map.next_value_seed(Value { found: self.found, rank })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::detect::tests::request;

    fn body(body: &str) -> Transaction {
        let mut tx = request(0.0, "192.0.2.1", "POST", "/login");
        tx.req_body = Some(body.to_owned());
        tx
    }

    fn basic(value: &str) -> Transaction {
        let mut tx = request(0.0, "192.0.2.1", "POST", "/login");
        tx.req_headers.push("Authorization", value);
        tx
    }

    #[test]
    fn names_are_found() {
        let key = RandomState::new();
        let alice = hash_of("alice@example.org", &key);
        assert!(alice.is_some());
        for text in [
            r#"{"email":"alice@example.org","password":"x"}"#,
            r#"{"password":"x","userName":" Alice@Example.org "}"#,
            r#"{"account":"acme","user_name":"alice@example.org"}"#,
            r#"{"user_name":"alice@example.org","account":"acme"}"#,
            r#"{"user":{"email":"alice@example.org"},"password":"x"}"#,
            r#"[{"a":[1,2.5,null,true,-3]},{"login":"alice@example.org"}]"#,
            r#" {"email":"alice@example.org","password":"cut o"#,
            r#"{"email":"alice@example.org""#,
            r#"{"email":"alice\u0040example.org", nonsense"#,
            r#"{"email":"","login":"alice@example.org"}"#,
            "email=alice%40example.org&password=x",
            "password=x&user%5Bemail%5D=alice%40example.org",
            "log=Alice@example.org&pwd=x",
        ] {
            assert_eq!(hashed(&body(text), None, &key), alice, "{text}");
        }
    }

    #[test]
    fn other_bodies_name_nobody() {
        let key = RandomState::new();
        for text in [
            "",
            "{",
            "[]",
            r#"{"email":"alice@exam"#,
            r#"{"password":"x"}"#,
            r#"{"email":null,"login":true,"user":1.5}"#,
            r#"{"email":["alice"]}"#,
            "password=x",
            "alice",
            "email=&user=%20",
        ] {
            assert_eq!(hashed(&body(text), None, &key), None, "{text}");
        }
    }

    fn multipart(content_type: &str, text: &str) -> Transaction {
        let mut tx = body(text);
        tx.req_headers.push("Content-Type", content_type);
        tx
    }

    #[test]
    fn multipart_forms_name_users() {
        let key = RandomState::new();
        let alice = hash_of("alice@example.org", &key);
        let form = concat!(
            "--xYz\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\nx\r\n",
            "--xYz\r\ncontent-type: text/plain\r\ncontent-disposition:form-data;name=user[email]",
            "\r\n\r\nalice@example.org\r\n--xYz--\r\n",
        );
        for content_type in [
            "multipart/form-data; boundary=xYz",
            "Multipart/Form-Data; charset=utf-8; Boundary=\"xYz\"",
        ] {
            assert_eq!(hashed(&multipart(content_type, form), None, &key), alice);
            let preceded = format!("{{padding}}\r\n{form}");
            assert_eq!(hashed(&multipart(content_type, &preceded), None, &key), alice);
        }
        let tx = multipart("multipart/form-data; boundary=xYz", form);
        assert_eq!(hashed(&tx, Some("password"), &key), hash_of("x", &key));
        let (cut, _) = form.split_once(".org").unwrap();
        for (content_type, text) in [
            ("multipart/form-data; boundary=xYz", cut),
            ("multipart/form-data; boundary=other", form),
            ("multipart/form-data; boundary=", form),
            ("multipart/form-data", form),
            ("multipart/form-data; boundary=xYz", "--xYz\r\n\r\nalice\r\n--xYz--"),
        ] {
            let tx = multipart(content_type, text);
            assert_eq!(hashed(&tx, None, &key), None, "{content_type} {text}");
        }
    }

    #[test]
    fn numbers_name_users_too() {
        let key = RandomState::new();
        let hash = hash_of("4917012345", &key);
        assert_eq!(hashed(&body(r#"{"phone":4917012345}"#), None, &key), hash);
    }

    #[test]
    fn a_configured_field_is_the_only_one() {
        let key = RandomState::new();
        let text = r#"{"email":"alice","card":"0815"}"#;
        assert_eq!(hashed(&body(text), Some("card"), &key), hash_of("0815", &key));
        assert_eq!(hashed(&body("email=a&card=0815"), Some("card"), &key), hash_of("0815", &key));
        assert_eq!(hashed(&body(r#"{"email":"alice"}"#), Some("card"), &key), None);
    }

    #[test]
    fn basic_credentials_in_both_forms() {
        let key = RandomState::new();
        let alice = hash_of("alice", &key);
        // alice:secret, with and without padding; alice alone.
        for value in [
            "Basic YWxpY2U6c2VjcmV0",
            "basic  YWxpY2U6c2VjcmV0MQ==",
            "BASIC YWxpY2U6c2VjcmV0MQ",
            "Basic YWxpY2U=",
        ] {
            assert_eq!(hashed(&basic(value), None, &key), alice, "{value}");
        }
        let reduced = "Basic user=00112233445566aa credential=ffeeddccbbaa0099";
        let other = "Basic user=00112233445566aa credential=0000000000000000";
        let hash = hashed(&basic(reduced), None, &key);
        assert_eq!(hash, hash_of("00112233445566aa", &key));
        assert_eq!(hashed(&basic(other), None, &key), hash, "the password makes no difference");
        for value in ["Bearer YWxpY2U6c2VjcmV0", "Basic", "Basic !!!", "Basic OnNlY3JldA==", ""] {
            assert_eq!(hashed(&basic(value), None, &key), None, "{value}");
        }
    }

    #[test]
    fn the_body_goes_before_basic_credentials() {
        // A client of OAuth authenticates itself so, while the body names the user.
        let key = RandomState::new();
        let mut tx = basic("Basic YWxpY2U6c2VjcmV0");
        tx.req_body = Some("grant_type=password&username=bob&password=x".to_owned());
        assert_eq!(hashed(&tx, None, &key), hash_of("bob", &key));
    }

    proptest! {
        #[test]
        fn no_body_or_header_panics(text in ".{0,200}", value in ".{0,60}") {
            let key = RandomState::new();
            let mut tx = body(&text);
            tx.req_headers.push("Authorization", format!("Basic {value}"));
            hashed(&tx, None, &key);
            tx.req_headers.push("Content-Type", format!("multipart/form-data; boundary={value}"));
            hashed(&tx, None, &key);
        }

        /// However a body is cut after the name, the name is the same.
        #[test]
        fn a_cut_body_still_names_its_user(cut in 0usize..60) {
            let key = RandomState::new();
            let text = r#"{"email":"alice","device":{"os":"linux","é":[1,2]},"password":"x"}"#;
            let end = (16 + cut).min(text.len());
            prop_assume!(text.is_char_boundary(end));
            prop_assert_eq!(hashed(&body(&text[..end]), None, &key), hash_of("alice", &key));
        }
    }
}

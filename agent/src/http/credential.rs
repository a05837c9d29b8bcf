//! Credentials become keyed hashes here, before anything else sees them.

use std::fmt::{self, Write};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::transaction::Headers;

/// Bytes of the digest that are kept: 16 hexadecimal digits.
const HASH_BYTES: usize = 8;

/// The installation's key, under which credentials are hashed.
#[derive(Clone)]
pub struct CredentialKey(Option<Hmac<Sha256>>);

impl CredentialKey {
    /// HMAC-SHA-256 under `key`, of any length.
    pub fn new(key: &[u8]) -> Self {
        // HMAC takes keys of every length, so that there is no error to report.
        Self(Hmac::new_from_slice(key).ok())
    }

    /// Plain SHA-256, for reading recorded transactions where no key is configured.
    pub const fn unkeyed() -> Self {
        Self(None)
    }

    /// The first 16 hexadecimal digits of the hash of `value`.
    pub fn hash(&self, value: &[u8]) -> String {
        let mut text = String::with_capacity(2 * HASH_BYTES);
        self.write(value, &mut text);
        text
    }

    fn write(&self, value: &[u8], text: &mut String) {
        let digest = match &self.0 {
            Some(keyed) => keyed.clone().chain_update(value).finalize().into_bytes(),
            None => Sha256::digest(value),
        };
        for byte in digest.iter().take(HASH_BYTES) {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
    }
}

/// Tells whether there is a key, never the key.
impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "CredentialKey(keyed)"
        } else {
            "CredentialKey(unkeyed)"
        })
    }
}

/// Fields whose whole value is a credential.
const SECRET_FIELDS: &[&str] = &[
    "api-key",
    "apikey",
    "auth-token",
    "ocp-apim-subscription-key",
    "private-token",
    "session-token",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-apikey",
    "x-auth",
    "x-auth-key",
    "x-auth-token",
    "x-csrf-token",
    "x-forwarded-access-token",
    "x-functions-key",
    "x-gitlab-token",
    "x-goog-api-key",
    "x-id-token",
    "x-refresh-token",
    "x-session-id",
    "x-session-token",
    "x-shopify-access-token",
    "x-vault-token",
    "x-xsrf-token",
];

/// Schemes that may stay readable in front of the hash. Anything else could be the credential
/// itself, sent without a scheme.
const SCHEMES: &[&str] = &[
    "apikey",
    "aws4-hmac-sha256",
    "basic",
    "bearer",
    "digest",
    "dpop",
    "gnap",
    "hoba",
    "jwt",
    "mutual",
    "negotiate",
    "ntlm",
    "oauth",
    "privatetoken",
    "scram-sha-1",
    "scram-sha-256",
    "token",
    "vapid",
];

/// Adds the field `name: value` to `headers`, with hashes in place of credentials:
///
/// | field | becomes |
/// |---|---|
/// | `Authorization`, `Proxy-Authorization` | `Bearer <hash>`; without a known scheme `<hash>` |
/// | … with `Basic` | `Basic user=<hash> credential=<hash>`: of the user name and of the value after the scheme; without `user=` when no user name can be read |
/// | `Cookie` | `name=<hash>; name=<hash>`; a part without `=` becomes `<hash>` |
/// | `Set-Cookie` | `name=<hash>; Path=/; …`: the attributes stay |
/// | `X-API-Key` and its like | `<hash>` |
///
/// Bytes that are not UTF-8 are replaced in all other values.
pub fn push_field(headers: &mut Headers, name: &str, value: &[u8], key: &CredentialKey) {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    headers.push_with(name, |text| {
        if is("authorization") || is("proxy-authorization") {
            authorization(value, key, text);
        } else if is("cookie") {
            cookie(value, key, text);
        } else if is("set-cookie") {
            set_cookie(value, key, text);
        } else if SECRET_FIELDS.iter().any(|secret| is(secret)) {
            key.write(value, text);
        } else {
            text.push_str(&String::from_utf8_lossy(value));
        }
    });
}

fn authorization(value: &[u8], key: &CredentialKey, text: &mut String) {
    let (scheme, credential) = split(value, b' ').unwrap_or((b"", value));
    let known = std::str::from_utf8(scheme)
        .ok()
        .filter(|scheme| SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)));
    let Some(scheme) = known else { return key.write(value, text) };
    let credential = credential.trim_ascii();
    text.push_str(scheme);
    text.push(' ');
    if scheme.eq_ignore_ascii_case("basic") {
        if let Some(user) = basic_user(credential) {
            text.push_str("user=");
            key.write(&user, text);
            text.push(' ');
        }
        text.push_str("credential=");
    }
    key.write(credential, text);
}

/// The user name in the credentials of the Basic scheme (RFC 7617, section 2).
fn basic_user(credential: &[u8]) -> Option<Vec<u8>> {
    // As servers do: padding may be missing, and stray bits after the end are ignored.
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let mut pair = LENIENT.decode(credential).ok()?;
    pair.truncate(memchr::memchr(b':', &pair)?);
    Some(pair)
}

fn cookie(value: &[u8], key: &CredentialKey, text: &mut String) {
    for (n, pair) in value.split(|&byte| byte == b';').enumerate() {
        if n > 0 {
            text.push_str("; ");
        }
        cookie_pair(pair.trim_ascii(), key, text);
    }
}

fn set_cookie(value: &[u8], key: &CredentialKey, text: &mut String) {
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    let (pair, attributes) = value.split_at_checked(end).unwrap_or((value, b""));
    cookie_pair(pair.trim_ascii(), key, text);
    text.push_str(&String::from_utf8_lossy(attributes));
}

fn cookie_pair(pair: &[u8], key: &CredentialKey, text: &mut String) {
    match split(pair, b'=') {
        Some((name, value)) => {
            text.push_str(&String::from_utf8_lossy(name.trim_ascii()));
            text.push('=');
            key.write(value.trim_ascii(), text);
        }
        None if pair.is_empty() => {}
        None => key.write(pair, text),
    }
}

/// What lies before and after the first `separator`.
fn split(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let (before, after) = bytes.split_at_checked(memchr::memchr(separator, bytes)?)?;
    Some((before, after.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::{CredentialKey, push_field};
    use crate::transaction::Headers;

    #[test]
    fn hashes_are_the_start_of_the_standard_functions() {
        // SHA-256("abc"): FIPS 180-4 example; HMAC: RFC 4231, test case 2.
        assert_eq!(CredentialKey::unkeyed().hash(b"abc"), "ba7816bf8f01cfea");
        let keyed = CredentialKey::new(b"Jefe");
        assert_eq!(keyed.hash(b"what do ya want for nothing?"), "5bdcc146bf60754e");
        assert_eq!(format!("{keyed:?}"), "CredentialKey(keyed)");
    }

    #[test]
    fn credentials_are_replaced_and_the_rest_is_kept() {
        let key = CredentialKey::new(b"installation");
        let hash = |value: &str| key.hash(value.as_bytes());
        let table = [
            ("Authorization", "Bearer abc.def", format!("Bearer {}", hash("abc.def"))),
            ("authorization", "bearer  abc", format!("bearer {}", hash("abc"))),
            ("Authorization", "abc", hash("abc")),
            ("Authorization", "my secret", hash("my secret")),
            (
                "Proxy-Authorization",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
                format!(
                    "Basic user={} credential={}",
                    hash("Aladdin"),
                    hash("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
                ),
            ),
            (
                "Authorization",
                "Basic dTpw",
                format!("Basic user={} credential={}", hash("u"), hash("dTpw")),
            ),
            ("Authorization", "Basic !", format!("Basic credential={}", hash("!"))),
            (
                "Cookie",
                "sid=s3cret; theme=dark;  lone ;x==1",
                format!(
                    "sid={}; theme={}; {}; x={}",
                    hash("s3cret"),
                    hash("dark"),
                    hash("lone"),
                    hash("=1")
                ),
            ),
            (
                "Set-Cookie",
                "sid=s3cret; Path=/; HttpOnly",
                format!("sid={}; Path=/; HttpOnly", hash("s3cret")),
            ),
            ("set-cookie", "s3cret", hash("s3cret")),
            ("X-API-Key", "k", hash("k")),
            ("x-auth-token", "t", hash("t")),
            ("X-Other", "stays", "stays".to_owned()),
        ];
        for (name, value, expected) in table {
            let mut headers = Headers::default();
            push_field(&mut headers, name, value.as_bytes(), &key);
            assert_eq!(headers.iter().collect::<Vec<_>>(), [(name, expected.as_str())]);
        }
    }

    #[test]
    fn values_that_are_not_utf_8_are_lossy() {
        let mut headers = Headers::default();
        push_field(&mut headers, "X", b"a\xffb", &CredentialKey::unkeyed());
        assert_eq!(headers.get("x"), Some("a\u{fffd}b"));
    }
}

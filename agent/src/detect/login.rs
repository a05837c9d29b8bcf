//! Which requests are logins, and which of them failed.

use std::borrow::Cow;

use crate::config::{FailureMatch, Login, Service};
use crate::transaction::Transaction;

/// Last or last but one segment of a login's path, without case, `-`, `_` and a script's
/// extension.
const SURE_WORDS: &[&str] = &[
    "login",
    "logon",
    "signin",
    "signon",
    "authenticate",
    "dologin",
    "userlogin",
    "loginuser",
    "checklogin",
    "wplogin",
    "jsecuritycheck",
    "jspringsecuritycheck",
];

/// Words that also name other things, so that only the last segment counts.
const LAST_WORDS: &[&str] = &["auth", "token", "tokens", "session", "sessions"];

/// Extensions of scripts and formats that don't change what an endpoint is. Files are not among
/// them.
const EXTENSIONS: &[&str] =
    &["php", "asp", "aspx", "ashx", "jsp", "jsf", "do", "action", "cgi", "json", "xml"];

/// Statuses that every login endpoint fails with.
const FAILED: &[u16] = &[401, 403, 429];

/// The same of gRPC, whose HTTP status is 200: PERMISSION_DENIED, RESOURCE_EXHAUSTED,
/// UNAUTHENTICATED.
const FAILED_GRPC: &[u16] = &[7, 8, 16];

/// A login endpoint that a request went to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Endpoint<'a> {
    /// A word of the vocabulary or a configured path: nothing that the client wrote.
    pub name: &'a str,
    configured: Option<&'a Login>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
}

impl<'a> Endpoint<'a> {
    /// The endpoint that `tx` is a login at: one that `service` is configured with, or else one
    /// that the vocabulary knows.
    pub fn of(tx: &Transaction, service: Option<&'a Service>) -> Option<Self> {
        let method = tx.method.as_str();
        let method_fits = |login: &Login| match &login.method {
            Some(configured) => configured.eq_ignore_ascii_case(method),
            None => matches!(method, "POST" | "PUT" | "PATCH"),
        };
        let by_vocabulary = matches!(method, "POST" | "PUT");
        let mut configured =
            service.iter().flat_map(|s| &s.logins).filter(|login| method_fits(login)).peekable();
        if !by_vocabulary && configured.peek().is_none() {
            // Most requests end here, before their path costs anything.
            return None;
        }
        let decoded = decoded_path(tx.path_only());
        let path = resolved_path(&decoded);
        // A pattern may also be written the way that requests are, with parameters for example.
        let fits =
            |login: &&Login| path_fits(&login.path, &path) || path_fits(&login.path, &decoded);
        if let Some(login) = configured.find(fits) {
            return Some(Self { name: &login.path, configured: Some(login) });
        }
        let name = if by_vocabulary { word_of(&path) } else { None };
        name.map(|name| Self { name, configured: None })
    }

    /// The field with the user name, if it is configured.
    pub fn user_field(&self) -> Option<&'a str> {
        self.configured?.user_field.as_deref()
    }

    /// How the login went; `None` when there was no response.
    pub fn outcome(&self, tx: &Transaction) -> Option<Outcome> {
        let status = tx.status?;
        let matches = self.configured.map_or(&[][..], |login| &login.failure);
        let failed = FAILED.contains(&status)
            || tx.grpc_status.is_some_and(|status| FAILED_GRPC.contains(&status))
            || matches.iter().any(|one| response_fits(one, status, tx));
        Some(if failed { Outcome::Failure } else { Outcome::Success })
    }
}

fn response_fits(one: &FailureMatch, status: u16, tx: &Transaction) -> bool {
    match one {
        FailureMatch::Status(failed) => *failed == status,
        FailureMatch::BodyContains(text) => {
            tx.resp_body.as_ref().is_some_and(|body| body.contains(text.as_str()))
        }
        FailureMatch::LocationContains(text) => {
            tx.resp_headers.get("location").is_some_and(|at| at.contains(text.as_str()))
        }
    }
}

/// Whether `path` is `pattern`, or begins with it up to its final `*`, whatever the case. A slash
/// at the end of either makes no difference.
fn path_fits(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => {
            let start = path.as_bytes().get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
        }
        None => {
            let without = |path| match str::strip_suffix(path, '/') {
                Some(shorter) if !shorter.is_empty() => shorter,
                _ => path,
            };
            without(path).eq_ignore_ascii_case(without(pattern))
        }
    }
}

/// `path` with percent-encoding undone: of a target in absolute form (RFC 9112, section 3.2.2)
/// only the path, and never the fragment, which has no place in a target.
fn decoded_path(path: &str) -> Cow<'_, str> {
    let path = match path.split_once("://") {
        Some((_, rest)) if !path.starts_with('/') => {
            rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
        }
        _ => path,
    };
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    percent_encoding::percent_decode_str(path).decode_utf8_lossy()
}

/// The decoded `path` as servers resolve it: slashes merged, dot segments removed (RFC 3986,
/// section 5.2.4), without parameters of segments (section 3.3), as in `;jsessionid=`. The time
/// is linear in its length.
fn resolved_path(path: &str) -> String {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.split('/').peekable();
    if path.starts_with('/') {
        segments.next();
    }
    while let Some(segment) = segments.next() {
        let name = segment.split_once(';').map_or(segment, |(name, _)| name);
        if name == ".." {
            resolved.truncate(resolved.rfind('/').unwrap_or(0));
        }
        let kept = !matches!(name, "" | "." | "..");
        if kept || segments.peek().is_none() {
            resolved.push('/');
        }
        if kept {
            resolved.push_str(name);
        }
    }
    resolved
}

/// The word of the vocabulary that makes `path` a login endpoint.
fn word_of(path: &str) -> Option<&'static str> {
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let last = without_extension(segments.next()?);
    let known = |words: &'static [&'static str], segment: &str| {
        words.iter().copied().find(|word| is_word(segment, word))
    };
    known(SURE_WORDS, last)
        .or_else(|| known(LAST_WORDS, last))
        .or_else(|| known(SURE_WORDS, without_extension(segments.next()?)))
}

fn without_extension(segment: &str) -> &str {
    match segment.rsplit_once('.') {
        Some((name, extension))
            if EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)) =>
        {
            name
        }
        _ => segment,
    }
}

/// Whether `text` is `word` but for case, `-`, `_` and spaces.
pub(super) fn is_word(text: &str, word: &str) -> bool {
    text.bytes()
        .filter(|b| !matches!(b, b'-' | b'_' | b' '))
        .map(|b| b.to_ascii_lowercase())
        .eq(word.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests::request;

    fn name(method: &str, path: &str) -> Option<String> {
        let tx = request(0.0, "192.0.2.1", method, path);
        Endpoint::of(&tx, None).map(|endpoint| endpoint.name.to_owned())
    }

    #[test]
    fn the_vocabulary_finds_logins() {
        for (path, word) in [
            ("/login", "login"),
            ("/Login/", "login"),
            ("/api/v1/log-in?next=%2F", "login"),
            ("/users/sign_in", "signin"),
            ("/signIn", "signin"),
            ("/wp-login.php", "wplogin"),
            ("/account/login.aspx", "login"),
            ("/login;jsessionid=1F", "login"),
            ("/login/v2", "login"),
            ("/api/auth", "auth"),
            ("/oauth/token", "token"),
            ("/realms/x/protocol/openid-connect/token", "token"),
            ("/api/sessions", "sessions"),
            ("/session", "session"),
            ("/session.json", "session"),
            ("/authenticate", "authenticate"),
            ("/log%69n", "login"),
            ("//login//", "login"),
            ("/login/x/..", "login"),
            ("/a/b/../../%2e%2E/login", "login"),
            ("//login", "login"),
            ("/session/.", "session"),
            ("/token/x%2F..", "token"),
            ("/session/./", "session"),
            ("/%6cogin", "login"),
            ("/LOGIN", "login"),
            ("/x/..;y=z/login;a=b/;c", "login"),
            ("/login#/x", "login"),
            ("http://shop.example/login", "login"),
            ("/j_spring_security_check", "jspringsecuritycheck"),
        ] {
            assert_eq!(name("POST", path).as_deref(), Some(word), "{path}");
            assert_eq!(name("PUT", path).as_deref(), Some(word), "{path}");
        }
    }

    #[test]
    fn the_vocabulary_leaves_the_rest_alone() {
        for path in [
            "/",
            "",
            "*",
            "/author/9",
            "/authors",
            "/static/login.css",
            "/static/login.js",
            "/auth/me",
            "/sessions/9/messages",
            "/token/9",
            "/blogin",
            "/login-history",
            "/products?page=/login",
            "/login/a/b",
            "/login/..",
            "/session/x/../y",
            "http://login",
        ] {
            assert_eq!(name("POST", path), None, "{path}");
        }
        for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PATCH", "post"] {
            assert_eq!(name(method, "/login"), None, "{method}");
        }
    }

    #[test]
    fn paths_are_resolved() {
        for (path, resolved) in [
            ("", "/"),
            ("/", "/"),
            ("*", "/*"),
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("//a///b", "/a/b"),
            // RFC 3986, section 5.2.4.
            ("/a/b/c/./../../g", "/a/g"),
            ("mid/content=5/../6", "/mid/6"),
            ("/..", "/"),
            ("/../a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a;x/b;y=z", "/a/b"),
            ("/...", "/..."),
        ] {
            assert_eq!(resolved_path(path), resolved, "{path}");
        }
        let deep = "/a".repeat(20_000) + &"/..".repeat(30_000);
        assert_eq!(resolved_path(&deep), "/");
    }

    fn service(logins: Vec<Login>) -> Service {
        Service { name: "shop".into(), logins, ..Service::default() }
    }

    fn login(method: Option<&str>, path: &str, failure: Vec<FailureMatch>) -> Login {
        Login {
            method: method.map(str::to_owned),
            path: path.to_owned(),
            user_field: Some("pin".to_owned()),
            failure,
        }
    }

    #[test]
    fn configured_logins_are_found() {
        let service = service(vec![
            login(None, "/enter", vec![]),
            login(Some("GET"), "/basic/*", vec![]),
            login(Some("POST"), "/login", vec![]),
            login(None, "/old//way;v=1", vec![]),
        ]);
        for (method, path, expected) in [
            ("POST", "/enter", Some("/enter")),
            ("PATCH", "/ent%65r?x=1", Some("/enter")),
            ("POST", "/enter/", Some("/enter")),
            ("POST", "/ENTER", Some("/enter")),
            ("POST", "//enter", Some("/enter")),
            ("POST", "/x/../enter", Some("/enter")),
            ("POST", "/enter/x/..", Some("/enter")),
            ("POST", "/enter/%2e", Some("/enter")),
            ("POST", "/enter;a=b", Some("/enter")),
            ("POST", "/old//way;v=1", Some("/old//way;v=1")),
            ("GET", "/Basic//x", Some("/basic/*")),
            ("GET", "/x/%2e./basic/", Some("/basic/*")),
            ("GET", "/x", None),
            ("GET", "/", None),
            ("GET", "/enter", None),
            ("POST", "/enter/more", None),
            ("GET", "/basic/report", Some("/basic/*")),
            ("GET", "/basically", None),
            ("POST", "/login", Some("/login")),
            ("PUT", "/login", Some("login")),
        ] {
            let tx = request(0.0, "192.0.2.1", method, path);
            let found = Endpoint::of(&tx, Some(&service));
            assert_eq!(found.map(|endpoint| endpoint.name), expected, "{method} {path}");
            let configured = expected.is_some_and(|name| name.starts_with('/'));
            let field = found.and_then(|endpoint| endpoint.user_field());
            assert_eq!(field, configured.then_some("pin"), "{method} {path}");
        }
    }

    #[test]
    fn outcomes() {
        use FailureMatch::*;
        use Outcome::*;
        let service = service(vec![login(
            None,
            "/enter",
            vec![
                Status(422),
                BodyContains("\"ok\":false".into()),
                LocationContains("error=1".into()),
            ],
        )]);
        for (path, status, body, location, outcome) in [
            ("/login", Some(200), "", "", Some(Success)),
            ("/login", Some(401), "", "", Some(Failure)),
            ("/login", Some(403), "", "", Some(Failure)),
            ("/login", Some(429), "", "", Some(Failure)),
            ("/login", Some(422), "", "", Some(Success)),
            ("/login", Some(200), "{\"ok\":false}", "/?error=1", Some(Success)),
            ("/login", None, "", "", None),
            ("/enter", Some(422), "", "", Some(Failure)),
            ("/enter", Some(401), "", "", Some(Failure)),
            ("/enter", Some(200), "{\"ok\":false}", "", Some(Failure)),
            ("/enter", Some(200), "{\"ok\":true}", "", Some(Success)),
            ("/enter", Some(302), "", "/enter?error=1", Some(Failure)),
            ("/enter", Some(302), "", "/home", Some(Success)),
            ("/enter", None, "{\"ok\":false}", "", None),
        ] {
            let mut tx = request(0.0, "192.0.2.1", "POST", path);
            tx.status = status;
            tx.resp_body = Some(body.to_owned());
            tx.resp_headers.push("Location", location);
            let endpoint = Endpoint::of(&tx, Some(&service)).unwrap();
            assert_eq!(endpoint.outcome(&tx), outcome, "{path} {status:?} {body} {location}");
        }
    }

    #[test]
    fn outcomes_of_grpc() {
        use Outcome::*;
        for (grpc_status, outcome) in
            [(None, Success), (Some(0), Success), (Some(16), Failure), (Some(7), Failure)]
        {
            let mut tx = request(0.0, "192.0.2.1", "POST", "/shop.Auth/Login");
            tx.grpc_status = grpc_status;
            let endpoint = Endpoint::of(&tx, None).unwrap();
            assert_eq!(endpoint.outcome(&tx), Some(outcome), "{grpc_status:?}");
        }
    }
}

//! An attacker who tries stolen passwords, and what becomes of it.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tempfile::NamedTempFile;

use super::screen::{Timeline, Who};
use crate::curl::curl;
use crate::netns::Host;
use crate::nginx;

/// No answer for so long, and the attacker gives up on a connection.
const GIVE_UP: Duration = Duration::from_secs(1);
const CURL_SECONDS: u32 = 2;
/// Far above what the default thresholds and a busy machine need: an attacker who gets here was not stopped.
const MOST_GUESSES: u32 = 2_000;

pub struct Attacker<'a> {
    pub who: Who,
    pub host: &'a Host,
    pub server: SocketAddr,
    pub ca: &'a Path,
    /// Guesses that get a line each.
    pub shown: u32,
}

/// How far one run of guesses got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub answered: u32,
    /// On the timeline.
    pub first_guess_ms: i64,
    /// The connection went silent.
    pub silenced: bool,
}

impl Attacker<'_> {
    pub fn source(&self) -> IpAddr {
        match self.server {
            SocketAddr::V4(_) => self.host.v4().into(),
            SocketAddr::V6(_) => self.host.v6().into(),
        }
    }

    /// One guess after the other by the real curl, each as soon as the one before is answered,
    /// until nothing comes back.
    pub fn guess_passwords(&self, timeline: &Timeline) -> anyhow::Result<Run> {
        let mut guesses = Guesses::start(self.host, self.ca, self.server)?;
        let first_guess_ms = timeline.now();
        for guess in 1..=MOST_GUESSES {
            // A request is told with the time it was sent at, which is before what follows from
            // it: when the answer before it came.
            let sent_ms = timeline.now();
            let Some(status) = guesses.next_status()? else {
                let told = format!("guess {guess}: {}; the connection is dead", guesses.end()?);
                timeline.tell(self.who, &told);
                return Ok(Run { answered: guess - 1, first_guess_ms, silenced: true });
            };
            if guess <= self.shown {
                let told = format!("guess {guess}: POST /api/login as {} → {status}", user(guess));
                timeline.tell_at(sent_ms, self.who, &told);
            }
        }
        timeline.tell(self.who, &format!("{MOST_GUESSES} guesses, ALL ANSWERED"));
        Ok(Run { answered: MOST_GUESSES, first_guess_ms, silenced: false })
    }

    /// Comes back with the real curl and these arguments; whether it was answered.
    pub fn come_back(
        &self,
        timeline: &Timeline,
        how: &str,
        arguments: &[&str],
    ) -> anyhow::Result<bool> {
        let path = "/api/products";
        let curled = curl(self.host, self.ca, self.server, path, arguments, CURL_SECONDS)?;
        let answered = curled.status != 0;
        let outcome = if answered {
            format!("ANSWERED with {}", curled.status)
        } else {
            curled.error.trim().to_owned()
        };
        timeline.tell(self.who, &format!("{how} → {outcome}"));
        Ok(answered)
    }
}

fn user(guess: u32) -> String {
    format!("user{guess}@mail.example")
}

/// One curl that sends all guesses over one connection and tells each status on its own line.
struct Guesses {
    curl: Child,
    lines: Lines<BufReader<ChildStderr>>,
    /// curl's own words.
    said: String,
    /// Read by curl as it goes.
    _script: NamedTempFile,
}

impl Guesses {
    fn start(host: &Host, ca: &Path, server: SocketAddr) -> anyhow::Result<Self> {
        // Where the laboratory's clean-up finds it too.
        let dir = ca.parent().context("the certificate has no directory")?;
        let mut script = NamedTempFile::new_in(dir)?;
        for guess in 1..=MOST_GUESSES {
            if guess > 1 {
                writeln!(script, "next")?;
            }
            let login = json!({ "username": user(guess), "password": "hunter2" }).to_string();
            for option in curl_options(ca, server) {
                writeln!(script, "{option}")?;
            }
            writeln!(script, "url = \"https://{}:{}/api/login\"", nginx::NAME, server.port())?;
            writeln!(script, "header = \"Content-Type: application/json\"")?;
            writeln!(script, "data = {}", json!(login))?;
        }
        script.flush()?;
        let mut command = Command::new("curl");
        command.args(["--disable", "--fail-early", "--config"]).arg(script.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut curl = host.run(|| command.spawn().context("cannot start curl"))?;
        let stderr = curl.stderr.take().context("curl has no stderr")?;
        let lines = BufReader::new(stderr).lines();
        Ok(Self { curl, lines, said: String::new(), _script: script })
    }

    /// The next answer's status; `None` when there is none.
    fn next_status(&mut self) -> anyhow::Result<Option<u16>> {
        for line in self.lines.by_ref() {
            let line = line?;
            match line.parse() {
                Ok(0) => {}
                Ok(status) => return Ok(Some(status)),
                Err(_) => self.said = line,
            }
            if !self.said.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    /// What curl said when it gave up.
    fn end(&mut self) -> anyhow::Result<String> {
        for line in self.lines.by_ref() {
            let line = line?;
            if self.said.is_empty() && line.starts_with("curl:") {
                self.said = line;
            }
        }
        self.curl.wait()?;
        Ok(std::mem::take(&mut self.said))
    }
}

impl Drop for Guesses {
    fn drop(&mut self) {
        // Usually it has ended.
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

/// Lines of a curl configuration that every request needs, since `next` forgets them.
fn curl_options(ca: &Path, server: SocketAddr) -> [String; 8] {
    let (name, port) = (nginx::NAME, server.port());
    let address = match server {
        SocketAddr::V4(server) => server.ip().to_string(),
        SocketAddr::V6(server) => format!("[{}]", server.ip()),
    };
    [
        "silent".to_owned(),
        "show-error".to_owned(),
        "noproxy = \"*\"".to_owned(),
        "output = \"/dev/null\"".to_owned(),
        "write-out = \"%{stderr}%{http_code}\\n\"".to_owned(),
        format!("max-time = {}", GIVE_UP.as_secs()),
        format!("cacert = \"{}\"", ca.display()),
        format!("resolve = \"{name}:{port}:{address}\""),
    ]
}

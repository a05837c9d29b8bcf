//! An attacker who tries stolen passwords, and what becomes of it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::screen::{Timeline, Who};
use crate::client::{Client, Connection, Request};
use crate::curl::curl;
use crate::netns::Host;

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

    /// One guess after the other, each as soon as the one before is answered, until nothing
    /// comes back.
    pub fn guess_passwords(&self, timeline: &Timeline) -> anyhow::Result<Run> {
        let client = Client::trusting(self.ca)?.timeout(GIVE_UP);
        self.host.run(|| {
            let mut connection = client.connect(self.server)?;
            let first_guess_ms = timeline.now();
            for guess in 1..=MOST_GUESSES {
                if let Err(error) = self.guess(&mut connection, guess, timeline) {
                    let told = format!("guess {guess}: {}; the connection is dead", cause(&error));
                    timeline.tell(self.who, &told);
                    return Ok(Run { answered: guess - 1, first_guess_ms, silenced: true });
                }
            }
            timeline.tell(self.who, &format!("{MOST_GUESSES} guesses, ALL ANSWERED"));
            Ok(Run { answered: MOST_GUESSES, first_guess_ms, silenced: false })
        })
    }

    fn guess(
        &self,
        connection: &mut Connection,
        guess: u32,
        timeline: &Timeline,
    ) -> anyhow::Result<()> {
        let user = format!("user{guess}@mail.example");
        // A request is told with the time it was sent at, which is before what follows from it.
        let sent_ms = timeline.now();
        let answer = connection.request(&Request::login(&user, "hunter2"))?;
        if guess <= self.shown {
            let told = format!("guess {guess}: POST /api/login as {user} → {}", answer.status);
            timeline.tell_at(sent_ms, self.who, &told);
        }
        Ok(())
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

/// A time-out in words: the system calls it "Resource temporarily unavailable".
fn cause(error: &anyhow::Error) -> String {
    let timed_out = error.root_cause().downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    });
    if timed_out {
        format!("no answer within {} s", GIVE_UP.as_secs())
    } else {
        format!("{error:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_out_is_called_one() {
        let error = |kind: io::ErrorKind| anyhow::Error::from(io::Error::from(kind));
        let silence = error(io::ErrorKind::WouldBlock).context("no answer");
        assert_eq!(cause(&silence), "no answer within 1 s");
        let reset = error(io::ErrorKind::ConnectionReset).context("cannot send");
        assert_eq!(cause(&reset), "cannot send: connection reset");
    }
}

//! The innocent client: it shops at a steady pace for as long as the story lasts, and every one
//! of its requests must be served.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use super::screen::{Timeline, Who};
use crate::client::{Client, Connection, Request};
use crate::shop::{PASSWORD, USER};

/// Between the beginnings of two requests.
pub const PACE: Duration = Duration::from_millis(100);
/// Requests that get a line each; later ones are only counted.
const SHOWN: u64 = 6;

pub struct Innocent {
    client: Client,
    /// One for each visit in turn.
    servers: [SocketAddr; 2],
    tally: Mutex<Tally>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub made: u64,
    /// Answered as they should be.
    pub served: u64,
    /// Answered at all.
    pub answered: u64,
    pub slowest: Duration,
}

impl Tally {
    /// Rounded down: 100 is all of them.
    pub fn percent(self) -> u64 {
        (self.served * 100).checked_div(self.made).unwrap_or(0)
    }
}

/// What one visit sends, each with the status that serves it.
fn visit(number: u64) -> Vec<(Request, u16, &'static str)> {
    let login = (Request::login(USER, PASSWORD), 200, "POST /api/login");
    let mistyped = (Request::login(USER, "corect horse"), 401, "POST /api/login (mistyped)");
    let cart = Request::post_json("/api/cart", &json!({ "product": 1, "quantity": 2 }));
    let mut requests = vec![
        login,
        (Request::get("/api/products"), 200, "GET /api/products"),
        (Request::get("/api/products/1"), 200, "GET /api/products/1"),
        (cart, 201, "POST /api/cart"),
    ];
    // One person who mistypes a password is no attack.
    if number == 0 {
        requests.insert(0, mistyped);
    }
    requests
}

impl Innocent {
    pub fn new(client: Client, servers: [SocketAddr; 2]) -> Self {
        Self { client, servers, tally: Mutex::default() }
    }

    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Visits the shop over and over until `stop`, each time with a new connection. Runs in the
    /// innocent host's namespace.
    pub fn shop(&self, timeline: &Timeline, stop: &AtomicBool) {
        let mut next = Instant::now();
        for (number, server) in (0..).zip(self.servers.iter().cycle()) {
            let mut connection = None;
            for (request, status, what) in visit(number) {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(next.saturating_duration_since(Instant::now()));
                next += PACE;
                self.request(timeline, &mut connection, *server, &request, status, what);
            }
        }
    }

    fn request(
        &self,
        timeline: &Timeline,
        connection: &mut Option<Connection>,
        server: SocketAddr,
        request: &Request,
        status: u16,
        what: &str,
    ) {
        let begin = Instant::now();
        let result = self.exchange(connection, server, request);
        let took = begin.elapsed();
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.made += 1;
        tally.slowest = tally.slowest.max(took);
        let told = match result {
            Ok(got) => {
                tally.answered += 1;
                tally.served += u64::from(got == status);
                let wrong = if got == status { "" } else { " NOT SERVED" };
                let shown = tally.made <= SHOWN || got != status;
                shown.then(|| format!("{what} → {got}{wrong}"))
            }
            Err(error) => {
                *connection = None;
                Some(format!("{what} → NOT SERVED: {error:#}"))
            }
        };
        drop(tally);
        if let Some(told) = told {
            timeline.tell(Who::Innocent, &told);
        }
    }

    fn exchange(
        &self,
        connection: &mut Option<Connection>,
        server: SocketAddr,
        request: &Request,
    ) -> anyhow::Result<u16> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(self.client.connect(server)?),
        };
        let answer = open.request(request)?;
        ensure!(answer.status >= 200, "the answer is not final");
        Ok(answer.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_of_them_are_100_percent() {
        let tally = |made, served| Tally { made, served, ..Tally::default() };
        assert_eq!(tally(1_000, 1_000).percent(), 100);
        assert_eq!(tally(1_000, 999).percent(), 99);
        assert_eq!(tally(0, 0).percent(), 0);
    }
}

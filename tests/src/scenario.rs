//! What most end-to-end tests begin with: a shop behind NGINX, an attacker and an innocent
//! client; and what both do.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::agent::Agent;
use crate::client::{Client, Connection, Request};
use crate::netns::{Host, Lab};
use crate::nginx::{Nginx, Options};
use crate::shop::{PASSWORD, Shop, USER};
use crate::wait;

/// How long tests wait for what should happen at once.
pub const SOON: Duration = Duration::from_secs(10);
/// Far above what the default thresholds need.
pub const MANY: u32 = 60;

/// How long a client waits for an answer that a block may keep from it: longer than answers take
/// on a busy machine.
const ANSWER: Duration = Duration::from_secs(2);
/// The same for the first packet of a connection, which no program has to answer.
const HANDSHAKE: Duration = Duration::from_millis(900);

/// The IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The laboratory with its server running.
pub struct Scene {
    pub client: Client,
    pub nginx: Nginx,
    _shop: Shop,
    // Last: everything else runs in it.
    pub lab: Lab,
}

impl Scene {
    /// With so many client hosts, the attacker and the innocent one first.
    pub fn new(prefix: &str, clients: usize) -> anyhow::Result<Self> {
        Self::with(prefix, clients, &Options::default())
    }

    pub fn with(prefix: &str, clients: usize, options: &Options) -> anyhow::Result<Self> {
        let lab = Lab::new(prefix, clients)?;
        let shop = Shop::start(&lab)?;
        let nginx = Nginx::start(&lab, options)?;
        let client = Client::trusting(&nginx.certs().ca)?;
        Ok(Self { client, nginx, _shop: shop, lab })
    }

    /// The agent on the server host; see [`Agent::start`].
    pub fn agent(&self, config: &str) -> anyhow::Result<Agent<'_>> {
        Agent::start(&self.lab, config)
    }

    pub fn attacker(&self) -> &Host {
        self.lab.client(0)
    }

    pub fn innocent(&self) -> &Host {
        self.lab.client(1)
    }

    pub fn server(&self, family: Family) -> SocketAddr {
        match family {
            Family::V4 => self.nginx.address_v4(),
            Family::V6 => self.nginx.address_v6(),
        }
    }

    /// Guesses passwords over IPv4; see [`guess`].
    pub fn guess(&self, host: &Host, most: u32) -> anyhow::Result<Guesses> {
        let server = self.server(Family::V4);
        guess(host, &self.client, server, most, |request| request)
    }

    /// Guesses passwords until nothing comes back.
    ///
    /// # Errors
    /// When [`MANY`] guesses were answered.
    pub fn guess_until_stopped(&self, host: &Host) -> anyhow::Result<u32> {
        let guesses = self.guess(host, MANY)?;
        anyhow::ensure!(guesses.stopped, "{} guesses were answered", guesses.answered);
        Ok(guesses.answered)
    }

    /// Whether `host` can log in over IPv4, on a connection of its own.
    pub fn is_served(&self, host: &Host) -> bool {
        is_served(host, &self.client, self.server(Family::V4))
    }

    /// Whether no packet of `host` reaches the server over IPv4.
    pub fn is_cut_off(&self, host: &Host) -> bool {
        is_cut_off(host, self.server(Family::V4))
    }

    /// A connection over IPv4, to be kept until nothing is answered on it.
    pub fn connect(&self, host: &Host) -> anyhow::Result<Connection> {
        let server = self.server(Family::V4);
        let client = self.client.clone().timeout(ANSWER * wait::slowness());
        host.run(|| client.connect(server))
    }
}

/// How guessing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guesses {
    pub answered: u32,
    /// No answer came to one of them, nor can a connection be had any more.
    pub stopped: bool,
}

/// At most `most` failed logins with as many user names on one connection of `host`; `dress`
/// may change each request.
pub fn guess(
    host: &Host,
    client: &Client,
    server: SocketAddr,
    most: u32,
    dress: impl Fn(Request) -> Request + Send + Sync,
) -> anyhow::Result<Guesses> {
    let client = client.clone().timeout(ANSWER * wait::slowness());
    host.run(|| {
        let mut connection = client.connect(server)?;
        for answered in 0..most {
            let login = Request::login(&format!("user{answered}@example.com"), "hunter2");
            match connection.request(&dress(login)) {
                Ok(answer) if answer.status == 401 => {}
                Ok(answer) => anyhow::bail!("a guess was answered with {}", answer.status),
                Err(_) => {
                    return Ok(Guesses { answered, stopped: is_silent(server) });
                }
            }
        }
        Ok(Guesses { answered: most, stopped: false })
    })
}

/// Whether `host` can log in, on a connection of its own.
pub fn is_served(host: &Host, client: &Client, server: SocketAddr) -> bool {
    let login = host.run(|| client.connect(server)?.request(&Request::login(USER, PASSWORD)));
    login.is_ok_and(|answer| answer.status == 200)
}

/// Whether `host` hears nothing from `server`, not even that it is refused.
pub fn is_cut_off(host: &Host, server: SocketAddr) -> bool {
    host.run(|| Ok(is_silent(server))).is_ok_and(|silent| silent)
}

/// The same in the namespace of this thread.
fn is_silent(server: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(&server, HANDSHAKE * wait::slowness());
    connected.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// Events of one kind.
pub fn event<'a>(kind: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |event| event["event"] == kind
}

/// The block of `target`, as `portcullis blocks --json` shows it.
pub fn block_of(agent: &Agent<'_>, target: &str) -> anyhow::Result<Option<Value>> {
    let blocks = agent.json("blocks", &[])?;
    let blocks = blocks.as_array().cloned().unwrap_or_default();
    Ok(blocks.into_iter().find(|block| block["target"] == target))
}

/// A single address as `portcullis --json` names it.
pub fn host_net(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(_) => format!("{ip}/32"),
        IpAddr::V6(_) => format!("{ip}/128"),
    }
}

//! Clients on the TLS libraries that are about.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::{Client, Request};
use portcullis_tests::curl::curl;
use portcullis_tests::netns::{Host, Lab};
use portcullis_tests::{nginx, programs};

/// What is asked for, where a client asks for anything, and what is in the answer.
const PATH: &str = "/api/products/1";
const ANSWER: &str = "kettle";
/// Much longer than any of them takes, in seconds.
const PATIENCE: u32 = 20;

/// A client, by the TLS library below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    Curl,
    OpenSsl,
    GnuTls,
    Nss,
    Python,
    Node,
    Go,
    Rustls,
    RustlsPostQuantum,
    Chromium,
}

impl Stack {
    pub const ALL: [Self; 10] = [
        Self::Curl,
        Self::OpenSsl,
        Self::GnuTls,
        Self::Nss,
        Self::Python,
        Self::Node,
        Self::Go,
        Self::Rustls,
        Self::RustlsPostQuantum,
        Self::Chromium,
    ];

    /// Whether its hello has a key share of X25519MLKEM768, which no segment has room for.
    pub fn is_post_quantum(self) -> bool {
        matches!(self, Self::Go | Self::RustlsPostQuantum | Self::Chromium)
    }
}

/// How a client fared.
#[derive(Clone, Debug)]
pub struct Fared {
    /// It had the answer, or at least a TLS connection if that is all it makes.
    pub served: bool,
    /// What it said.
    pub said: String,
}

/// What the clients need.
pub struct Clients {
    ca: PathBuf,
    dir: PathBuf,
}

impl Clients {
    /// All of them trust the authority in this PEM file.
    pub fn trusting(lab: &Lab, ca: &Path) -> Result<Self> {
        let clients = Self { ca: ca.to_owned(), dir: lab.dir().join("clients") };
        fs::create_dir(&clients.dir)?;
        clients.make_nss_database()?;
        Ok(clients)
    }

    /// Lets one of them ask `server` from `host`.
    pub fn ask(&self, stack: Stack, host: &Host, server: SocketAddr) -> Result<Fared> {
        let (address, port) = (server.ip().to_string(), server.port().to_string());
        let address = address.as_str();
        let with_script = |program: &str, script: &str| {
            let mut command = limited(program);
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
            command.arg(script).args([address, &port]).arg(&self.ca);
            command
        };
        match stack {
            Stack::Curl => {
                let curled = curl(host, &self.ca, server, PATH, &[], PATIENCE)?;
                let served = curled.exit == 0 && curled.body.contains(ANSWER);
                Ok(Fared { served, said: format!("{curled:?}") })
            }
            Stack::OpenSsl => connects(host, self.openssl(server)),
            Stack::GnuTls => connects(host, self.gnutls(address, &port)),
            Stack::Nss => connects(host, self.nss(address, &port)),
            Stack::Python => answers(host, with_script("/usr/bin/python3", "client.py")),
            Stack::Node => answers(host, with_script("node", "client.js")),
            Stack::Go => {
                let program = programs::find("portcullis-lab-go-client")?;
                let mut command = limited(program.to_str().context("a path of UTF-8")?);
                command.args([address, &port]).arg(&self.ca);
                answers(host, command)
            }
            Stack::Rustls => Ok(asks(host, Client::trusting(&self.ca)?, server)),
            Stack::RustlsPostQuantum => {
                let provider = rustls_graviola::default_provider();
                Ok(asks(host, Client::by(provider, &self.ca)?, server))
            }
            Stack::Chromium => answers(host, self.chromium(server)),
        }
    }

    fn openssl(&self, server: SocketAddr) -> Command {
        let mut command = limited("openssl");
        command.args(["s_client", "-brief", "-verify_return_error", "-CAfile"]).arg(&self.ca);
        command.args(["-servername", nginx::NAME, "-verify_hostname", nginx::NAME]);
        command.args(["-connect", &server.to_string()]);
        command
    }

    fn gnutls(&self, address: &str, port: &str) -> Command {
        let mut command = limited("gnutls-cli");
        command.arg("--x509cafile").arg(&self.ca);
        command.args(["--sni-hostname", nginx::NAME, "--verify-hostname", nginx::NAME]);
        command.args(["--port", port, address]);
        command
    }

    fn nss(&self, address: &str, port: &str) -> Command {
        let mut command = limited("tstclnt");
        command.args(["-d", &self.nss_database(), "-h", address, "-p", port]);
        // Ends when it is connected.
        command.args(["-a", nginx::NAME, "-Q"]);
        command
    }

    fn chromium(&self, server: SocketAddr) -> Command {
        let mut command = limited("chromium-headless-shell");
        // What one run remembers would change the hello of the next.
        let profile = self.dir.join("chromium");
        let _ = fs::remove_dir_all(&profile);
        command.env("HOME", &self.dir).arg(format!("--user-data-dir={}", profile.display()));
        let address = match server {
            SocketAddr::V4(server) => server.ip().to_string(),
            SocketAddr::V6(server) => format!("[{}]", server.ip()),
        };
        command.arg(format!("--host-resolver-rules=MAP {} {address}", nginx::NAME));
        // Its sandbox does not work for root.
        command.args(["--no-sandbox", "--disable-gpu", "--disable-background-networking"]);
        command.args(["--ignore-certificate-errors", "--dump-dom"]);
        command.arg(format!("https://{}:{}{PATH}", nginx::NAME, server.port()));
        command
    }

    fn nss_database(&self) -> String {
        format!("sql:{}", self.dir.join("nss").display())
    }

    fn make_nss_database(&self) -> Result<()> {
        fs::create_dir(self.dir.join("nss"))?;
        let certutil = |arguments: &[&str]| {
            let mut command = Command::new("certutil");
            command.args(["-d", &self.nss_database()]).args(arguments);
            let output = command.output().context("cannot run certutil")?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "certutil: {error}");
            Ok(())
        };
        certutil(&["-N", "--empty-password"])?;
        let ca = self.ca.to_str().context("a path of UTF-8")?;
        certutil(&["-A", "-n", "laboratory", "-t", "C,,", "-i", ca])
    }
}

/// A program that is killed if it takes too long.
fn limited(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", &PATIENCE.to_string(), program]);
    command
}

/// A client that makes a connection and ends well.
fn connects(host: &Host, command: Command) -> Result<Fared> {
    let output = host.output(command)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok(Fared { served: output.status.success(), said })
}

/// A client that prints the answer.
fn answers(host: &Host, command: Command) -> Result<Fared> {
    let fared = connects(host, command)?;
    Ok(Fared { served: fared.served && fared.said.contains(ANSWER), ..fared })
}

fn asks(host: &Host, client: Client, server: SocketAddr) -> Fared {
    let answer = host.run(|| client.connect(server)?.request(&Request::get(PATH)));
    let served = answer.as_ref().is_ok_and(|answer| answer.status == 200);
    Fared { served, said: format!("{:?}", answer.map(|answer| answer.status)) }
}

//! An HTTP/1.1 client over TLS whose every step a test controls: source address, kept
//! connections, pipelining, time-outs, half requests.
//!
//! Its TLS is rustls, which no uprobe of the agent touches: to the agent it is a remote machine,
//! though it runs on the same kernel. [`crate::curl`] is a client on OpenSSL.

mod response;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Protocol, Socket, Type};

pub use response::Response;

use crate::nginx;

const TIMEOUT: Duration = Duration::from_secs(10);

/// How connections are made; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    tls: Arc<ClientConfig>,
    source: Option<IpAddr>,
    timeout: Duration,
}

/// One request, as sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A TLS connection, kept until dropped.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
    /// Whether each answer awaited has no body because its request was `HEAD`.
    awaited: std::collections::VecDeque<bool>,
}

impl Client {
    /// Trusts the authority in this PEM file.
    pub fn trusting(ca: &Path) -> anyhow::Result<Self> {
        Self::by(rustls::crypto::ring::default_provider(), ca)
    }

    /// The same with the cryptography of another library, which shows in the hello.
    pub fn by(cryptography: CryptoProvider, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(ca)
            .with_context(|| format!("no certificate in {}", ca.display()))?;
        roots.add(ca)?;
        let tls = ClientConfig::builder_with_provider(Arc::new(cryptography))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls), source: None, timeout: TIMEOUT })
    }

    /// Connects from this address of its host.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Of connecting, and of every wait for bytes afterwards.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects in the namespace of the calling thread (see [`crate::netns::Host::run`]) and
    /// completes the TLS handshake.
    pub fn connect(&self, server: SocketAddr) -> anyhow::Result<Connection> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = self.source {
            let bound = socket.bind(&SocketAddr::new(source, 0).into());
            bound.with_context(|| format!("{source} is no address of this host"))?;
        }
        socket
            .connect_timeout(&server.into(), self.timeout)
            .with_context(|| format!("cannot connect to {server}"))?;
        let tcp = TcpStream::from(socket);
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(self.timeout))?;
        tcp.set_write_timeout(Some(self.timeout))?;
        let name = ServerName::try_from(nginx::NAME)?;
        let tls = ClientConnection::new(Arc::clone(&self.tls), name)?;
        let mut stream = StreamOwned::new(tls, tcp);
        stream.conn.complete_io(&mut stream.sock).context("the TLS handshake failed")?;
        Ok(Connection { stream, buffer: Vec::new(), awaited: Default::default() })
    }
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        let headers = vec![("Host".to_owned(), nginx::NAME.to_owned())];
        Self { method: method.to_owned(), path: path.to_owned(), headers, body: Vec::new() }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post_json(path: &str, body: &serde_json::Value) -> Self {
        let body = body.to_string().into_bytes();
        Self { body, ..Self::new("POST", path) }.header("Content-Type", "application/json")
    }

    /// A login at the shop.
    pub fn login(user: &str, password: &str) -> Self {
        let body = serde_json::json!({ "username": user, "password": password });
        Self::post_json("/api/login", &body)
    }

    /// To another name than the shop's.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| header != "Host");
        self.header("Host", name)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        [head.as_bytes(), &self.body].concat()
    }
}

impl Connection {
    /// Sends a request and waits for its answer.
    pub fn request(&mut self, request: &Request) -> anyhow::Result<Response> {
        self.send(request)?;
        self.receive()
    }

    /// Sends all of them in one write, then waits for the answers, in order.
    pub fn pipeline(&mut self, requests: &[Request]) -> anyhow::Result<Vec<Response>> {
        let bytes: Vec<u8> = requests.iter().flat_map(Request::to_bytes).collect();
        self.awaited.extend(requests.iter().map(|request| request.method == "HEAD"));
        self.send_raw(&bytes)?;
        requests.iter().map(|_| self.receive()).collect()
    }

    /// Sends a request without waiting for its answer.
    pub fn send(&mut self, request: &Request) -> anyhow::Result<()> {
        self.awaited.push_back(request.method == "HEAD");
        self.send_raw(&request.to_bytes())
    }

    /// Sends these bytes as they are, in TLS records of their own.
    pub fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).context("cannot send")?;
        self.stream.flush().context("cannot send")
    }

    /// The next answer.
    pub fn receive(&mut self) -> anyhow::Result<Response> {
        let to_head = self.awaited.pop_front().unwrap_or(false);
        loop {
            if let Some((response, length)) = response::parse(&self.buffer, to_head)? {
                self.buffer.drain(..length);
                return Ok(response);
            }
            let mut piece = [0; 16 * 1024];
            let length = self.stream.read(&mut piece).context("no answer")?;
            if length == 0 {
                bail!("the connection ended before the answer");
            }
            self.buffer.extend_from_slice(&piece[..length]);
        }
    }

    pub fn local_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.stream.sock.local_addr()?)
    }

    /// Says goodbye in TLS; dropping the connection closes it without.
    pub fn close(mut self) -> anyhow::Result<()> {
        self.stream.conn.send_close_notify();
        self.stream.flush().context("cannot close")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_on_the_wire() {
        let bytes = Request::get("/tiny").header("X-A", "b").to_bytes();
        assert_eq!(bytes, b"GET /tiny HTTP/1.1\r\nHost: shop.test\r\nX-A: b\r\n\r\n");
        let bytes = Request::post_json("/api/cart", &serde_json::json!({"product": 1})).to_bytes();
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.ends_with("Content-Length: 13\r\n\r\n{\"product\":1}"), "{text}");
    }
}

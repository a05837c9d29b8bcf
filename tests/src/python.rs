//! A server in Python: another program on OpenSSL than NGINX, through other functions
//! (`SSL_read_ex`, `SSL_write_ex`).

use std::net::SocketAddr;
use std::time::Duration;

use crate::certs::Certs;
use crate::netns::{Host, Lab};
use crate::process::Process;
use crate::script::{self, Language};

pub const PORT: u16 = 8443;
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers 200 to GET and 401 to POST, keeping connections.
const SCRIPT: &str = r#"
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"{}\n")
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        self.answer(401)
    def log_message(self, *arguments):
        pass
port, cert, key = sys.argv[1:]
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), Handler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(cert, key)
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// A running server on one host; stopped when this is dropped.
pub struct PythonServer {
    address: SocketAddr,
    _process: Process,
}

impl PythonServer {
    /// Starts it on `host`, over IPv4, and waits until it accepts connections.
    pub fn start(lab: &Lab, host: &Host, certs: &Certs) -> anyhow::Result<Self> {
        let mut process = script::start(lab, host, Language::Python, SCRIPT, PORT, certs)?;
        let address = SocketAddr::new(host.v4().into(), PORT);
        process.wait_until_it_accepts(PATIENCE, host, address)?;
        Ok(Self { address, _process: process })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

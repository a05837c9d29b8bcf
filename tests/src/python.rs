//! A server in Python: another program on OpenSSL than NGINX, through other functions
//! (`SSL_read_ex`, `SSL_write_ex`).

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::certs::Certs;
use crate::netns::{Host, Lab};
use crate::process::Process;
use crate::wait;

pub const PORT: u16 = 8443;
const PATIENCE: Duration = Duration::from_secs(20);

/// Debian's own Python, which uses the system's OpenSSL.
const INTERPRETER: &str = "/usr/bin/python3";

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
        let mut command = Command::new(INTERPRETER);
        command.args(["-c", SCRIPT, &PORT.to_string()]).arg(&certs.cert).arg(&certs.key);
        let mut process = lab.spawn(host, command, "python")?;
        let address = SocketAddr::new(host.v4().into(), PORT);
        host.run(|| {
            wait::until(PATIENCE, "the Python server to accept connections", || {
                process.must_run()?;
                Ok(TcpStream::connect(address).ok())
            })
        })?;
        Ok(Self { address, _process: process })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

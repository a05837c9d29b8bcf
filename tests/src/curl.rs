//! The real curl, as a client.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::netns::Host;
use crate::nginx;

/// How one call of curl ended.
#[derive(Clone, Debug)]
pub struct Curled {
    /// curl's exit status: 0 done, 7 connection refused, 28 time-out, …
    pub exit: i32,
    /// 0 when there was no answer.
    pub status: u16,
    pub body: String,
    pub error: String,
}

/// `curl ARGUMENTS https://shop.test/PATH` on `host`, the name standing for `server`; at most
/// `max_seconds`.
pub fn curl(
    host: &Host,
    ca: &Path,
    server: SocketAddr,
    path: &str,
    arguments: &[&str],
    max_seconds: u32,
) -> anyhow::Result<Curled> {
    let mut command = Command::new("curl");
    // Settings and proxies of the user are not the laboratory's.
    command.args(["--disable", "--noproxy", "*", "--silent", "--show-error"]);
    command.args(["--max-time", &max_seconds.to_string()]).arg("--cacert").arg(ca);
    let (name, port) = (nginx::NAME, server.port());
    let address = match server {
        SocketAddr::V4(server) => server.ip().to_string(),
        SocketAddr::V6(server) => format!("[{}]", server.ip()),
    };
    command.arg("--resolve").arg(format!("{name}:{port}:{address}"));
    command.args(["--write-out", "\n%{http_code}"]).args(arguments);
    command.arg(format!("https://{name}:{port}{path}"));
    let output = host.output(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let (body, status) = stdout.rsplit_once('\n').context("curl told no status")?;
    Ok(Curled {
        exit: output.status.code().context("curl was killed")?,
        status: status.parse().context("curl told no status")?,
        body: body.to_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

//! Debian's real NGINX, serving the shop over TLS on the server host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::certs::Certs;
use crate::netns::Lab;
use crate::process::{Process, children};
use crate::{shop, wait};

/// The name that the certificate is for, beside the server's addresses.
pub const NAME: &str = "shop.test";
pub const PORT: u16 = 443;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Options {
    pub workers: u16,
    /// Lines for the `server` block, such as more locations.
    pub server_lines: String,
    /// Whether it speaks HTTP/2 to who can.
    pub http2: bool,
    /// Where its dynamic loader looks for libraries first (ld.so(8), `LD_LIBRARY_PATH`).
    pub library_path: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 1, server_lines: String::new(), http2: false, library_path: None }
    }
}

/// A running NGINX; stopped when this is dropped.
pub struct Nginx {
    process: Process,
    dir: PathBuf,
    certs: Certs,
    address_v4: SocketAddr,
    address_v6: SocketAddr,
}

impl Nginx {
    /// Starts it and waits until it accepts connections and all its workers are there.
    pub fn start(lab: &Lab, options: &Options) -> anyhow::Result<Self> {
        let dir = lab.dir().join("nginx");
        fs::create_dir(&dir).context("a laboratory has one NGINX at a time")?;
        let addresses: [IpAddr; 2] = [lab.server().v4().into(), lab.server().v6().into()];
        let certs = Certs::generate(&dir, &[NAME], &addresses)?;
        let config = dir.join("nginx.conf");
        fs::write(&config, configuration(&dir, &certs, options))?;

        // In a PID namespace of its own: NGINX's workers outlive a killed master, but nothing
        // outlives the first process of a namespace.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--", "nginx"]);
        command.arg("-p").arg(&dir).arg("-c").arg(&config).arg("-e").arg(dir.join("error.log"));
        // A user's PATH often lacks the directory of servers.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        if let Some(path) = &options.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        let mut process = lab.spawn(lab.server(), command, "nginx")?;

        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        process.wait_until_it_accepts(PATIENCE, lab.server(), local)?;
        let [address_v4, address_v6] = addresses.map(|address| SocketAddr::new(address, PORT));
        let mut nginx = Self { process, dir, certs, address_v4, address_v6 };
        // The master listens before it has workers.
        wait::until(PATIENCE, "NGINX's workers", || {
            nginx.process.must_run()?;
            Ok((nginx.workers().len() == usize::from(options.workers)).then_some(()))
        })?;
        Ok(nginx)
    }

    pub fn certs(&self) -> &Certs {
        &self.certs
    }

    pub fn address_v4(&self) -> SocketAddr {
        self.address_v4
    }

    pub fn address_v6(&self) -> SocketAddr {
        self.address_v6
    }

    /// The master process, by its number on the host.
    pub fn master(&self) -> Option<Pid> {
        children(self.process.pid()).first().copied()
    }

    /// The worker processes.
    pub fn workers(&self) -> Vec<Pid> {
        self.master().map(children).unwrap_or_default()
    }

    /// Ends it in order: workers finish their requests.
    pub fn stop(mut self) -> anyhow::Result<()> {
        if let Some(master) = self.master() {
            kill(master, Signal::SIGQUIT).context("cannot signal NGINX")?;
        }
        self.process.wait(PATIENCE)?;
        // Another one may be started in its place.
        fs::remove_dir_all(&self.dir).context("cannot remove the files of NGINX")
    }
}

fn configuration(dir: &Path, certs: &Certs, options: &Options) -> String {
    let dir = dir.display();
    let upstream = shop::ADDRESS;
    let Options { workers, server_lines, .. } = options;
    let http2 = if options.http2 { " http2" } else { "" };
    format!(
        "daemon off;
worker_processes {workers};
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 8192; }}
worker_rlimit_nofile 32768;
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000;
    upstream shop {{ server {upstream}; keepalive 64; }}
    server {{
        listen 443 ssl{http2} backlog=4096;
        listen [::]:443 ssl{http2} backlog=4096;
        server_name {NAME};
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location = /tiny {{ default_type text/plain; return 200 \"tiny\\n\"; }}
        location / {{
            proxy_pass http://shop;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
        }}
        {server_lines}
    }}
}}
",
        cert = certs.cert.display(),
        key = certs.key.display(),
    )
}

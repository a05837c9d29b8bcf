//! wrk, which loads NGINX.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::netns::Lab;
use crate::nginx::Nginx;

/// Keep-alive connections.
const CONNECTIONS: &str = "16";

/// Keeps a process's main thread on one processor.
pub fn pin(process: Pid, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(process, &cpus)?)
}

/// wrk's answers per second over TLS, with wrk on processor `cpu`.
pub fn answers_per_second(lab: &Lab, nginx: &Nginx, seconds: u32, cpu: usize) -> Result<f64> {
    let mut wrk = Command::new("taskset");
    wrk.args(["--cpu-list", &cpu.to_string(), "wrk", "--threads", "1"]);
    wrk.args(["--connections", CONNECTIONS, "--duration", &format!("{seconds}s")]);
    wrk.arg(format!("https://{}/tiny", nginx.address_v4()));
    let output = lab.client(0).output(wrk)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("Non-2xx"),
        "wrk: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.context("wrk told no rate")?.trim().parse().context("wrk's rate")
}

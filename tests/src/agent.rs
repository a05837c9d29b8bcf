//! The real agent on the laboratory's server host.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use toml::Table;

use crate::netns::{INTERFACE, Lab};
use crate::process::Process;
use crate::{programs, wait};

/// Of `/metrics` and `/healthz`, on the server host's loopback.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `portcullis run`; killed when this is dropped.
pub struct Agent<'lab> {
    lab: &'lab Lab,
    process: Process,
    files: Files,
}

/// Where a laboratory's agent keeps what.
#[derive(Clone, Debug)]
pub struct Files {
    pub config: PathBuf,
    pub control_socket: PathBuf,
    pub event_log: PathBuf,
}

impl Files {
    fn of(lab: &Lab) -> Self {
        let file = |name: &str| lab.dir().join(name);
        Self {
            config: file("portcullis.toml"),
            control_socket: file("control.sock"),
            event_log: file("events.jsonl"),
        }
    }

    /// `config`, with the places of this laboratory wherever it does not name others.
    fn complete(&self, lab: &Lab, config: &str) -> anyhow::Result<String> {
        let mut config: Table = config.parse().context("the agent's configuration is not TOML")?;
        config.entry("interfaces").or_insert_with(|| vec![INTERFACE].into());
        let text = |path: &Path| path.display().to_string();
        set_default(&mut config, "kernel", "pin_dir", text(lab.pin_dir()))?;
        // Other tests run at the same time, each in namespaces of its own.
        set_default(&mut config, "capture", "network_namespaces", "own".into())?;
        set_default(&mut config, "report", "control_socket", text(&self.control_socket))?;
        set_default(&mut config, "report", "event_log", text(&self.event_log))?;
        set_default(&mut config, "report", "metrics_listen", METRICS.to_string())?;
        Ok(toml::to_string(&config)?)
    }
}

impl<'lab> Agent<'lab> {
    /// Starts it with `config` (TOML) and waits until it answers on its control socket.
    ///
    /// `interfaces`, `kernel.pin_dir`, `capture.network_namespaces`, `report.control_socket`, `report.event_log` and
    /// `report.metrics_listen` are the laboratory's unless `config` sets them.
    pub fn start(lab: &'lab Lab, config: &str) -> anyhow::Result<Self> {
        Self::start_by(lab, Command::new(programs::find("portcullis")?), config)
    }

    /// The same in a mount namespace of its own, in which the lines of shell `mounts` have run
    /// before.
    pub fn start_with_mounts(lab: &'lab Lab, config: &str, mounts: &str) -> anyhow::Result<Self> {
        let script = format!(
            "set -e
{mounts}
exec \"$@\"
"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(programs::find("portcullis")?);
        Self::start_by(lab, command, config)
    }

    /// The same by a command of the caller's, such as one that ends in the agent's path; it gets
    /// the agent's arguments added, and must replace itself with the agent.
    pub fn start_by(lab: &'lab Lab, mut command: Command, config: &str) -> anyhow::Result<Self> {
        let files = Files::of(lab);
        fs::write(&files.config, files.complete(lab, config)?)?;
        command.args(["run", "--config"]).arg(&files.config);
        let process = lab.spawn(lab.server(), command, "portcullis")?;
        let mut agent = Self { lab, process, files };
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        // A socket file may be there from an agent that was killed: what counts is an answer.
        wait::until(PATIENCE, "the agent's control socket", || {
            self.process.must_run()?;
            Ok(UnixStream::connect(&self.files.control_socket).ok())
        })?;
        wait::until(PATIENCE, "the agent to answer `portcullis status`", || {
            self.process.must_run()?;
            let output = self.command("status", &["--json"])?;
            Ok(output.status.success().then_some(()))
        })
        .with_context(|| format!("the agent said:\n{}", self.log()))
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `portcullis SUBCOMMAND --config … ARGUMENTS` on the server host.
    pub fn command(&self, subcommand: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        Self::command_of(self.lab, subcommand, arguments)
    }

    /// The same whether an agent runs or not, with the configuration that the latest was started
    /// with.
    pub fn command_of(lab: &Lab, subcommand: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(programs::find("portcullis")?);
        command.args([subcommand, "--config"]).arg(Files::of(lab).config).args(arguments);
        lab.server().output(command)
    }

    /// The same with `--json`: what it prints.
    pub fn json(&self, subcommand: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(subcommand, &[arguments, &["--json"]].concat())?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("portcullis {subcommand} failed ({}): {error}", output.status);
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("portcullis {subcommand} printed no JSON"))
    }

    /// The event log so far; a last line that is still being written is left for later.
    pub fn events(&self) -> anyhow::Result<Vec<Value>> {
        let text = match fs::read_to_string(&self.files.event_log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("cannot read the event log")?,
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// The first event that `wanted` accepts, as soon as it is there.
    pub fn wait_for_event(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        wait::until(limit, what, || {
            self.process.must_run()?;
            Ok(self.events()?.into_iter().find(&wanted))
        })
    }

    /// The body of `/metrics`.
    pub fn metrics(&self) -> anyhow::Result<String> {
        self.lab.server().run(|| {
            let mut stream = TcpStream::connect(METRICS).context("no metrics endpoint")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            match answer.split_once("\r\n\r\n") {
                Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
                _ => bail!("/metrics answered: {answer}"),
            }
        })
    }

    /// The sum of a metric over all its labels; `None` if there is no such metric. With labels
    /// in the name, as in `a_total{b="c"}`, that one sample.
    pub fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        Ok(sum(&self.metrics()?, name))
    }

    /// Waits until a metric, as in [`Self::metric`], has a value that `wanted` accepts.
    pub fn wait_for_metric(
        &self,
        limit: Duration,
        name: &str,
        wanted: impl Fn(f64) -> bool,
    ) -> anyhow::Result<f64> {
        let mut last = None;
        let result = wait::until(limit, &format!("{name} to change"), || {
            last = self.metric(name)?;
            Ok(last.filter(|value| wanted(*value)))
        });
        result.with_context(|| format!("it is {last:?}"))
    }

    /// Replaces the configuration file, as in [`Self::start`], and sends SIGHUP. The agent reads
    /// it some time later: wait for what should come of it.
    pub fn reload(&self, config: &str) -> anyhow::Result<()> {
        self.reload_raw(&self.files.complete(self.lab, config)?)
    }

    /// The same with a file of exactly this text, be it TOML or not.
    pub fn reload_raw(&self, text: &str) -> anyhow::Result<()> {
        fs::write(&self.files.config, text)?;
        self.process.signal(Signal::SIGHUP)
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.process.signal(signal)
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop()
    }

    /// `kill -9`; nothing of it runs any more afterwards.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill()
    }
}

fn set_default(config: &mut Table, table: &str, key: &str, value: String) -> anyhow::Result<()> {
    let entry = config.entry(table).or_insert_with(|| Table::new().into());
    let table = entry.as_table_mut().with_context(|| format!("`{table}` is not a table"))?;
    table.entry(key).or_insert_with(|| value.into());
    Ok(())
}

/// Adds up the samples of `name` in the Prometheus text format.
fn sum(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    samples.reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_added_over_labels() {
        let text =
            "# HELP a_total x\na_total{l=\"1\"} 2\na_total{l=\"2\"} 3\na_total_more 9\nb 1.5\n";
        assert_eq!(sum(text, "a_total"), Some(5.0));
        assert_eq!(sum(text, "b"), Some(1.5));
        assert_eq!(sum(text, "c"), None);
    }

    #[test]
    fn what_the_configuration_sets_stays() {
        let mut config: Table = "[report]\nevent_log = \"mine\"\n".parse().expect("TOML");
        set_default(&mut config, "report", "event_log", "theirs".into()).expect("a table");
        set_default(&mut config, "kernel", "pin_dir", "pins".into()).expect("a table");
        let text = toml::to_string(&config).expect("TOML");
        assert!(text.contains("\"mine\"") && text.contains("\"pins\"") && !text.contains("theirs"));
        let mut wrong: Table = "report = 1".parse().expect("TOML");
        assert!(set_default(&mut wrong, "report", "event_log", "x".into()).is_err());
    }
}

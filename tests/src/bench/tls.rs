//! What reading TLS costs a server: NGINX's answers per second with and without the agent, with
//! probes on the library's symbols, which is what most tools do, and with empty probes.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::Effort;
use super::empty_probes::EmptyProbes;
use super::report::{Better, Case, Report, Summary};
use super::wrk;
use crate::agent::Agent;
use crate::netns::Lab;
use crate::nginx::{Nginx, Options};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libssl.so.3";
/// Nothing is to be found in the load itself.
const CONFIG: &str = "[detect.request_rate]\nenabled = false\n";

const KEPT_SHARE: f64 = 0.70;
const VS_SYMBOL_PROBES: f64 = 1.7;
/// The agent does more than empty probes; it should not cost more.
const VS_EMPTY_PROBES: f64 = 1.0;
/// Milliseconds of the agent's processor time for 1,000 requests.
const AGENT_CPU: f64 = 20.0;

/// Answers per second in each round.
#[derive(Default)]
struct Measured {
    bare: Vec<f64>,
    agent: Vec<f64>,
    symbols: Vec<f64>,
    empty: Vec<f64>,
    agent_cpu: Vec<f64>,
}

pub fn run(effort: Effort) -> Result<Report> {
    let rounds = if effort.quick { 2 } else { 6 };
    let seconds = if effort.quick { 2 } else { 5 };
    let lab = Lab::new("pcbench", 1)?;
    let nginx = Nginx::start(&lab, &Options::default())?;
    let last_cpu = thread::available_parallelism()?.get() - 1;
    nginx.workers().into_iter().try_for_each(|worker| wrk::pin(worker, 0))?;
    let load = || wrk::answers_per_second(&lab, &nginx, seconds, last_cpu);
    load().context("warm-up")?;

    let mut measured = Measured::default();
    for round in 0..rounds {
        measured.bare.push(load()?);
        let (rate, cpu) = with_agent(&lab, CONFIG, &load)?;
        measured.agent.push(rate);
        measured.agent_cpu.push(cpu);
        let symbols = format!("{CONFIG}[capture]\nprobe_sites = \"symbols\"\n");
        measured.symbols.push(with_agent(&lab, &symbols, &load)?.0);
        let probes = EmptyProbes::attach(Path::new(LIBRARY))?;
        measured.empty.push(load()?);
        drop(probes);
        eprintln!(
            "tls: round {round}: bare {:.0}/s, agent {:.0}/s ({:.1} ms of its time for 1,000), \
             symbol probes {:.0}/s, empty probes {:.0}/s",
            measured.bare[round],
            measured.agent[round],
            measured.agent_cpu[round],
            measured.symbols[round],
            measured.empty[round]
        );
    }
    Ok(Report { bench: "tls", rounds, cases: cases(&measured) })
}

fn cases(measured: &Measured) -> Vec<Case> {
    let shares: Vec<f64> =
        measured.agent.iter().zip(&measured.bare).map(|(agent, bare)| agent / bare).collect();
    let against = |name, peer, theirs: &[f64], target| Case {
        name,
        unit: "answers/s",
        ours: Summary::of(&measured.agent),
        peer: Some((peer, Summary::of(theirs))),
        target,
        better: Better::Higher,
    };
    let alone = |name, unit, ours: &[f64], target, better| Case {
        name,
        unit,
        ours: Summary::of(ours),
        peer: None,
        target,
        better,
    };
    vec![
        alone("nginx_kept_share", "share of bare", &shares, KEPT_SHARE, Better::Higher),
        against("nginx_vs_bare", "no agent", &measured.bare, KEPT_SHARE),
        against("nginx_vs_symbol_probes", "probes on symbols", &measured.symbols, VS_SYMBOL_PROBES),
        against("nginx_vs_empty_probes", "3 empty probes", &measured.empty, VS_EMPTY_PROBES),
        alone(
            "agent_cpu_per_1k",
            "ms/1,000 requests",
            &measured.agent_cpu,
            AGENT_CPU,
            Better::Lower,
        ),
    ]
}

/// The rate under load with the agent, and its processor time in milliseconds for 1,000 requests.
fn with_agent(lab: &Lab, config: &str, load: &impl Fn() -> Result<f64>) -> Result<(f64, f64)> {
    let agent = Agent::start(lab, config)?;
    let transactions = || {
        let seen = agent.metric("portcullis_transactions_total")?;
        seen.context("the agent does not count transactions")
    };
    let (seen, used) = (transactions()?, cpu_time(agent.pid())?);
    let rate = load()?;
    let seen = transactions()? - seen;
    ensure!(seen > 0.0, "the agent saw nothing; it said:\n{}", agent.log());
    let used = cpu_time(agent.pid())? - used;
    agent.stop()?;
    Ok((rate, used * 1e3 / (seen / 1e3)))
}

/// Seconds of user and system time of a process: fields 14 and 15 of proc_pid_stat(5).
fn cpu_time(pid: Pid) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("an odd /proc/PID/stat")?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> {
        Ok(fields.get(index).context("a short /proc/PID/stat")?.parse()?)
    };
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok((ticks(11)? + ticks(12)?) / per_second as f64)
}

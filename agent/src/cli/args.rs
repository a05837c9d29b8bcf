//! The command line's grammar.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::report::control::BlockAction;
use crate::rule::{Rate, Speed, Target as BlockTarget, parse_ja4, parse_network};

pub const DEFAULT_CONFIG: &str = "/etc/portcullis/portcullis.toml";

/// Reads API calls inside the TLS library and drops abusers at the network card.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    arg_required_else_help = true,
    after_help = "Exit status: 0 done, 1 the thing asked for failed, 2 the call or the \
                  configuration is wrong.\n\nExample: portcullis check && portcullis run"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub config: PathBuf,
    /// The agent's control socket, instead of the one the configuration names
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log on stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent
    #[command(after_help = "Example: portcullis run --config /etc/portcullis/portcullis.toml")]
    Run,
    /// Check the configuration and list every mistake in it
    #[command(after_help = "Example: portcullis check --config portcullis.toml")]
    Check,
    /// Look at what this host offers, and say what is missing and what to do about it
    #[command(after_help = "Example: sudo portcullis doctor")]
    Doctor,
    /// Show what the running agent sees, does and loses
    #[command(after_help = "Example: portcullis status --json | jq .transactions")]
    Status,
    /// Run recorded transactions through the detectors, without touching the kernel
    #[command(after_help = "Example: portcullis replay --decisions out.jsonl access.jsonl")]
    Replay(Replay),
    /// Drop, limit, deceive or count the packets of an address, network, TLS fingerprint or flow
    #[command(
        after_help = "Example: portcullis block 203.0.113.7 --ttl 10m --reason 'ticket 4711'\n\
                      Example: portcullis block 198.51.100.0/24 --action rate-limit \
                      --rate '50 connections/s' --each --service shop"
    )]
    Block(Block),
    /// Lift the blocks of a target
    #[command(after_help = "Example: portcullis unblock 203.0.113.7")]
    Unblock(Unblock),
    /// List the blocks in force
    #[command(after_help = "Example: portcullis blocks")]
    Blocks,
    /// Show or change whom nothing may block
    #[command(after_help = "Example: portcullis allow add 198.51.100.0/24")]
    Allow {
        #[command(subcommand)]
        change: Option<Allow>,
    },
    /// List the latest decisions
    #[command(after_help = "Example: portcullis decisions --limit 5")]
    Decisions(Limit),
    /// List the latest findings of the detectors
    #[command(after_help = "Example: portcullis findings --json | jq .evidence")]
    Findings(Limit),
    /// Take the programs off all interfaces and remove everything from the kernel
    #[command(after_help = "Example: systemctl stop portcullis && sudo portcullis detach")]
    Detach,
    /// Print the version
    #[command(after_help = "Example: portcullis version --json")]
    Version,
}

#[derive(Debug, Args)]
pub struct Replay {
    /// Write the decisions to this file, as JSON Lines
    #[arg(long, value_name = "OUT.jsonl")]
    pub decisions: Option<PathBuf>,
    /// Write the findings to this file, as JSON Lines
    #[arg(long, value_name = "OUT.jsonl")]
    pub findings: Option<PathBuf>,
    /// Transactions, as JSON Lines
    #[arg(required = true, value_name = "INPUT.jsonl")]
    pub inputs: Vec<PathBuf>,
}

/// Whose packets.
#[derive(Debug, Args)]
pub struct Subject {
    /// An IP address or network, a JA4, or a flow as CLIENT:PORT>SERVER:PORT (of UDP with /udp)
    pub target: BlockTarget,
    /// Of the network's clients only those with this TLS fingerprint
    #[arg(long, value_name = "JA4", value_parser = |text: &str| parse_ja4(text).map(str::to_owned))]
    pub ja4: Option<String>,
    /// Only on the ports and addresses of this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<Arc<str>>,
}

impl Subject {
    /// # Errors
    /// With a sentence, when the fingerprint does not go with the target.
    pub fn target(&self) -> Result<BlockTarget, String> {
        match (&self.target, &self.ja4) {
            (target, None) => Ok(target.clone()),
            (BlockTarget::Network(net), Some(ja4)) => {
                Ok(BlockTarget::Conjunction(*net, ja4.as_str().into()))
            }
            (target, Some(_)) => Err(format!("--ja4 goes with a network, and not with {target}")),
        }
    }
}

#[derive(Debug, Args)]
pub struct Block {
    #[command(flatten)]
    pub subject: Subject,
    /// How long, as in 90s, 10m or 2h; without it, until it is lifted
    #[arg(long, value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    /// Why, for the log and for whoever lists the blocks
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// What becomes of the packets
    #[arg(long, value_enum, default_value_t = Action::Drop)]
    pub action: Action,
    /// What may pass: packets (100/s), '50 connections/s' or bytes (10MiB/s)
    #[arg(long, required_if_eq("action", "rate-limit"))]
    pub rate: Option<Speed>,
    /// How much of it at once; without it, what a second allows
    #[arg(long, requires = "rate", value_name = "COUNT",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub burst: Option<u64>,
    /// Give each client the rate to itself: an IPv4 address, or an IPv6 /64 network
    #[arg(long, requires = "rate")]
    pub each: bool,
}

impl Block {
    /// # Errors
    /// With a sentence, when there is a rate for something else than a limit.
    pub fn rate(&self) -> Result<Option<Rate>, String> {
        match (self.action, self.rate) {
            (Action::RateLimit, rate) => Ok(rate.map(|rate| rate.rate(self.burst, self.each))),
            (Action::Drop | Action::Deceive | Action::Count, None) => Ok(None),
            (Action::Drop | Action::Deceive | Action::Count, Some(_)) => {
                Err("--rate is for --action rate-limit".to_owned())
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Unblock {
    #[command(flatten)]
    pub subject: Subject,
    /// Only the block that does this
    #[arg(long, value_enum)]
    pub action: Option<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Drop them
    Drop,
    /// Drop what exceeds --rate
    RateLimit,
    /// Let new connections meet the decoy
    Deceive,
    /// Count them
    Count,
}

impl From<Action> for BlockAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Drop => Self::Drop,
            Action::RateLimit => Self::RateLimit,
            Action::Deceive => Self::Deceive,
            Action::Count => Self::Count,
        }
    }
}

#[derive(Debug, Args)]
pub struct Target {
    /// An IPv4 or IPv6 address, or a network in CIDR notation
    #[arg(value_parser = parse_network)]
    pub target: IpNet,
}

#[derive(Debug, Subcommand)]
pub enum Allow {
    /// Show the allow list
    #[command(after_help = "Example: portcullis allow list")]
    List,
    /// Allow an address or network until the agent stops
    #[command(after_help = "Example: portcullis allow add 198.51.100.0/24")]
    Add(Target),
    /// Take back an `allow add`
    #[command(after_help = "Example: portcullis allow remove 198.51.100.0/24")]
    Remove(Target),
}

#[derive(Debug, Args)]
pub struct Limit {
    /// At most so many
    #[arg(long, default_value_t = 20, value_name = "COUNT")]
    pub limit: usize,
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(1) {
        return Err("must be at least one second".to_owned());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound_and_every_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example: "), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }

    #[test]
    fn good_calls_parse() {
        let calls = [
            "run",
            "run --config /x.toml --log-level debug",
            "check --json",
            "doctor",
            "status --socket /run/x.sock",
            "--json status",
            "replay in.jsonl",
            "replay --decisions d --findings f a b",
            "block 203.0.113.7",
            "block 2001:db8::/64 --ttl 1h30m --reason because",
            "block t13d1516h2_8daaf6152771_e5627efa2ab1",
            "block 10.0.0.0/8 --ja4 t13d1516h2_8daaf6152771_e5627efa2ab1 --service shop",
            "block 203.0.113.7:50000>192.0.2.1:443 --action count",
            "block 10.0.0.0/8 --action rate-limit --rate 10MiB/s --burst 4096 --each",
            "unblock 203.0.113.7",
            "unblock 203.0.113.7 --service shop --action deceive",
            "blocks",
            "allow",
            "allow list",
            "allow add 10.0.0.0/8",
            "allow remove 10.0.0.0/8",
            "decisions",
            "findings --limit 3",
            "detach",
            "version",
        ];
        for call in calls {
            let words = std::iter::once("portcullis").chain(call.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{call}");
        }
    }

    #[test]
    fn bad_calls_say_what_is_wrong() {
        let table = [
            ("explode", "unrecognized subcommand 'explode'"),
            ("block", "<TARGET>"),
            ("block host.example", "`host.example` is neither an IP address nor a network"),
            ("block 10.0.0.1/8", "`10.0.0.0/8` is the network"),
            ("block 10.0.0.1 --ttl soon", "--ttl"),
            ("block 10.0.0.1 --ttl 0s", "must be at least one second"),
            ("block 10.0.0.1 --ttl 10", "time unit needed"),
            ("block 10.0.0.1 --ja4 t13d", "`t13d` is no JA4"),
            ("block 10.0.0.1 --action rate-limit", "--rate <RATE>"),
            ("block 10.0.0.1 --action rate-limit --rate fast", "`fast` is no rate"),
            ("block 10.0.0.1 --each", "--rate <RATE>"),
            ("block 10.0.0.1 --action pass", "[possible values: drop, rate-limit, deceive, count]"),
            ("replay", "<INPUT.jsonl>"),
            ("decisions --limit many", "--limit"),
        ];
        for (call, expected) in table {
            let words = std::iter::once("portcullis").chain(call.split(' '));
            let error = Cli::try_parse_from(words).expect_err(call);
            assert_eq!(error.exit_code(), 2, "{call}");
            assert!(error.to_string().contains(expected), "{call}: {error}");
        }
    }
}

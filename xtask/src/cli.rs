//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::{build, fuzz, lab, lint, setup, test, tidy, vm};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, build, lint, test, demo and benchmarks of Portcullis",
    after_help = "Start here:\n  cargo xtask demo    an attack and its end\n  cargo xtask test    every test"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need, and nothing if it is all there
    #[command(
        long_about = "Install what the other commands need, and nothing if it is all there.\n\n\
            eBPF is compiled with nightly Rust (component rust-src) and bpf-linker when both are \
            installed, else with Debian's rustc for eBPF.",
        after_help = "Example:\n  cargo xtask setup"
    )]
    Setup,
    /// Compile the eBPF object only
    #[command(after_help = "Example:\n  cargo xtask ebpf")]
    Ebpf,
    /// Compile the eBPF object, then the workspace
    #[command(after_help = "Example:\n  cargo xtask build --release")]
    Build {
        /// Optimised binaries, in target/release
        #[arg(long)]
        release: bool,
    },
    /// Run every test; needs root
    #[command(
        long_about = "Run every test: the crates' own, then those on real network namespaces.\n\n\
            The latter need root; without it the command fails at once.\n\n\
            With --kernel, the tests of enforcement run instead on Debian's stock kernel of that \
            version, in a virtual machine.",
        after_help = "Example:\n  sudo -E cargo xtask test --filter lab\n  \
            sudo -E cargo xtask test --kernel 6.1 --kernel 6.12"
    )]
    Test {
        /// Only tests whose name contains this
        #[arg(long, value_name = "NAME")]
        filter: Option<String>,
        /// Test enforcement on Debian's kernel of this version; may be given more than once
        #[arg(long, value_name = "VERSION")]
        kernel: Vec<String>,
        /// What executes the virtual machine's instructions
        #[arg(long, value_enum, default_value_t = vm::Accel::Tcg, requires = "kernel")]
        accel: vm::Accel,
    },
    /// Check format, clippy and the project's own rules
    #[command(after_help = "Example:\n  cargo xtask lint")]
    Lint,
    /// Check the project's own rules only: imports, lengths, map names, paths
    #[command(after_help = "Example:\n  cargo xtask tidy")]
    Tidy,
    /// Show an attack on an API and its end; needs root
    #[command(
        after_help = "Example:\n  sudo -E cargo xtask demo\n  sudo -E cargo xtask demo --keep"
    )]
    Demo(DemoArgs),
    /// Measure; needs root
    #[command(
        after_help = "Example:\n  sudo -E cargo xtask bench\n  sudo -E cargo xtask bench xdp --json"
    )]
    Bench(BenchArgs),
    /// Run fuzz targets
    #[command(
        long_about = "Run fuzz targets: those of tests/fuzz, which need nightly Rust, and \"policy\", \
            which needs root: ten million frames or more through the packet programs, compared \
            with a plain reference of the policy.",
        after_help = "Example:\n  cargo xtask fuzz http1 --seconds 30\n  \
            sudo -E cargo xtask fuzz policy --seconds 600"
    )]
    Fuzz {
        /// One target; all of them, one after the other, when left out
        target: Option<String>,
        /// How long each target runs
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u32,
        /// Seed of the policy's frames, as an earlier run has said it
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
}

#[derive(Args)]
pub struct DemoArgs {
    /// Leave everything running until Ctrl-C and say how to look inside
    #[arg(long)]
    keep: bool,
    /// Passed to the demo as they are
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

#[derive(Args)]
pub struct BenchArgs {
    /// Benchmarks to run; all when left out
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// One JSON object per benchmark on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Passed to the benchmark as they are
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<String>,
}

pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Setup => setup::everything(),
        Command::Ebpf => build::ebpf().map(drop),
        Command::Build { release } => build::workspace(build::Profile::of(release)),
        Command::Test { filter, kernel, .. } if kernel.is_empty() => test::run(filter.as_deref()),
        Command::Test { filter, kernel, accel } => {
            test::on_kernels(&kernel, accel, filter.as_deref())
        }
        Command::Lint => lint::run(),
        Command::Tidy => tidy::run(),
        Command::Demo(args) => lab::demo(&args.to_args()),
        Command::Bench(args) => lab::bench(&args.to_args()),
        Command::Fuzz { target, seconds, seed } => {
            fuzz::run(&fuzz::Plan { target: target.as_deref(), seconds, seed })
        }
    }
}

impl DemoArgs {
    fn to_args(&self) -> Vec<String> {
        flag("--keep", self.keep).chain(self.more.iter().cloned()).collect()
    }
}

impl BenchArgs {
    fn to_args(&self) -> Vec<String> {
        let flags = flag("--json", self.json).chain(flag("--quick", self.quick));
        self.names.iter().cloned().chain(flags).chain(self.more.iter().cloned()).collect()
    }
}

fn flag(name: &str, given: bool) -> impl Iterator<Item = String> {
    given.then(|| name.to_owned()).into_iter()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("cargo xtask"), "{} has no example", command.get_name());
        }
    }

    #[test]
    fn flags_reach_the_benchmark() {
        let cli = Cli::parse_from(["xtask", "bench", "xdp", "tls", "--json", "--", "--rounds=2"]);
        let Command::Bench(args) = cli.command else { panic!("another command") };
        assert_eq!(args.to_args(), ["xdp", "tls", "--json", "--rounds=2"]);
    }

    #[test]
    fn unknown_flags_are_the_callers_mistake() {
        let error = Cli::try_parse_from(["xtask", "demo", "--forever"]).err().expect("refused");
        assert_eq!(error.exit_code(), 2);
    }
}

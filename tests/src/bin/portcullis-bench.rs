//! `cargo xtask bench`: what Portcullis costs, next to its peers.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use portcullis_tests::bench::{ALL, Bench, Effort};

/// Benchmarks of Portcullis, each next to its peers where it has any.
#[derive(Parser)]
#[command(
    name = "portcullis-bench",
    version,
    after_help = "Example:\n  portcullis-bench xdp --json --quick"
)]
struct Args {
    /// Benchmarks to run; all when left out
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// One JSON object per benchmark on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen = match choose(&args.names) {
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("portcullis-bench: {error:#}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for bench in chosen {
        match (bench.run)(Effort { quick: args.quick }) {
            Ok(report) if args.json => println!("{}", report.to_json()),
            Ok(report) => print!("{report}"),
            Err(error) => {
                eprintln!("portcullis-bench: {}: {error:#}", bench.name);
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn choose(names: &[String]) -> Result<Vec<&'static Bench>> {
    for name in names {
        if !ALL.iter().any(|bench| bench.name == name) {
            let known: Vec<_> = ALL.iter().map(|bench| bench.name).collect();
            bail!("there is no benchmark {name}; there are: {}", known.join(", "));
        }
    }
    let is_chosen = |bench: &&Bench| names.is_empty() || names.iter().any(|n| n == bench.name);
    Ok(ALL.iter().filter(is_chosen).collect())
}

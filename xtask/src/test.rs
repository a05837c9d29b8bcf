//! Every test, through `cargo test`.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::setup::{self, CLIENTS, LAB};
use crate::{build, exec, vm};

/// Runs the crates' own tests, then those on network namespaces; `filter` as cargo's.
pub fn run(filter: Option<&str>) -> anyhow::Result<()> {
    exec::require_root("test (it makes network namespaces and loads eBPF programs)")?;
    setup::tools(&[LAB, CLIENTS])?;
    build::ebpf()?;

    let steps = [("unit tests", unit_tests(filter)), ("end-to-end tests", end_to_end(filter))];
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, result) in steps {
        match result {
            Ok(count) => {
                eprintln!("xtask: {name}: {count} passed");
                passed += count;
            }
            Err(error) => {
                eprintln!("xtask: {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("test failed: {}", failed.join(", "));
    }
    some_ran(passed, filter)
}

/// Runs the tests of enforcement on each of these `kernels`, such as "6.1", instead.
pub fn on_kernels(
    kernels: &[String],
    accel: vm::Accel,
    filter: Option<&str>,
) -> anyhow::Result<()> {
    exec::require_root("test --kernel (a virtual machine has this one's files)")?;
    some_ran(vm::test(kernels, accel, filter)?, filter)
}

fn some_ran(passed: u64, filter: Option<&str>) -> anyhow::Result<()> {
    if passed == 0 {
        bail!("no test's name contains {:?}", filter.unwrap_or_default());
    }
    Ok(())
}

fn unit_tests(filter: Option<&str>) -> anyhow::Result<u64> {
    let mut cargo = exec::cargo();
    cargo.args(["test", "--no-fail-fast", "--workspace"]);
    cargo.args(["--exclude", "portcullis-ebpf", "--exclude", "portcullis-tests"]);
    cargo_test(cargo.args(filter))
}

/// Optimised, because they are about traffic and time; one at a time, because all of them share
/// the host's TLS library and its two or more processors.
fn end_to_end(filter: Option<&str>) -> anyhow::Result<u64> {
    build::lab_programs()?;
    build::go_programs()?;
    let mut cargo = exec::cargo();
    cargo.args(["test", "--no-fail-fast", "--release", "--package", "portcullis-tests"]);
    cargo_test(cargo.args(filter).args(["--", "--test-threads=1"]))
}

/// Runs it, passing on what it prints; the number of tests that passed.
fn cargo_test(command: &mut Command) -> anyhow::Result<u64> {
    let show = exec::show(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{show}`"))?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut passed = 0;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        passed += passed_in(&String::from_utf8_lossy(&line));
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.write_all(b"\n")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{show}`: {status}");
    }
    Ok(passed)
}

/// The number in a closing line of the test harness; 0 for any other line.
pub fn passed_in(line: &str) -> u64 {
    line.strip_prefix("test result: ok. ")
        .and_then(|rest| rest.split_once(" passed"))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_closing_lines_only() {
        let line = "test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out";
        assert_eq!(passed_in(line), 17);
        assert_eq!(passed_in("test lab::it_works ... ok"), 0);
        assert_eq!(passed_in("test result: FAILED. 1 passed; 2 failed"), 0);
    }

    #[test]
    fn a_failing_command_is_an_error() {
        assert!(cargo_test(Command::new("sh").args(["-c", "exit 101"])).is_err());
    }
}

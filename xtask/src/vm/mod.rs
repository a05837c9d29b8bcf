//! The tests of enforcement on other kernels: Debian's, in a virtual machine that has the host's
//! root, read-only, for its own.

mod initrd;
mod machine;
mod package;
mod suite;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub use machine::Accel;

use crate::setup::{self, KERNELS, LAB};
use crate::{build, exec};

/// A run takes some minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the suite on each of the lines of kernels, such as "6.1"; the number of tests that passed.
pub fn test(lines: &[String], accel: Accel, filter: Option<&str>) -> anyhow::Result<u64> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the tests on other kernels are for x86_64");
    }
    setup::tools(&[LAB, KERNELS])?;
    build::lab_programs()?;
    let programs = suite::programs()?;
    let mut failed = Vec::new();
    let mut passed = 0;
    for line in lines {
        let begin = Instant::now();
        match on_kernel(line, accel, &programs, filter) {
            Ok(count) => {
                let seconds = begin.elapsed().as_secs();
                eprintln!("xtask: kernel {line}: {count} passed in {seconds} s");
                passed += count;
            }
            Err(error) => {
                eprintln!("xtask: kernel {line}: FAILED: {error:#}");
                failed.push(line.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!("the tests failed on kernel {}", failed.join(", "));
    }
    Ok(passed)
}

fn on_kernel(
    line: &str,
    accel: Accel,
    programs: &[suite::Program],
    filter: Option<&str>,
) -> anyhow::Result<u64> {
    let kernel = package::kernel(line)?;
    let version = suite::version(line).with_context(|| format!("{line} is no kernel version"))?;
    let dir = exec::root().join("target/vm").join(line);
    let mark = format!("portcullis-{}", std::process::id());
    let script = suite::script(&kernel, programs, version, filter, &mark);
    let initrd = initrd::write(&dir, &kernel, &script)?;
    let image =
        kernel.dir.join("boot").join(format!("vmlinuz-{}", package::release(&kernel.package)));
    let machine = machine::Machine {
        kernel: &image,
        initrd: &initrd,
        accel,
        console: dir.join("console.log"),
        limit: LIMIT,
    };
    eprintln!("xtask: starting {} ({accel:?})", kernel.package);
    let mut results = suite::Results::new(&mark);
    let ended = machine.run(|line| results.line(line));
    let result = ended.and_then(|()| results.passed());
    if !results.is_done() {
        eprintln!("xtask: the end of the kernel's console:\n{}", machine.console_tail());
    }
    // Kept after a failure.
    if result.is_ok() {
        fs::remove_dir_all(&dir)?;
    }
    result
}

//! Which tests run on other kernels, the script that runs them, and what it says.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::package::Unpacked;
use crate::{exec, test};

const SCRIPT: &str = include_str!("suite.sh");

/// A kernel's version as far as a [`Suite`] looks at it.
pub type Version = (u32, u32);

/// With it came the tracepoints that capture takes.
const CAPTURES: Version = (6, 3);
const TCX: Version = (6, 6);

/// The tests of one file.
struct Suite {
    name: &'static str,
    /// More than one where tests share nothing.
    threads: u8,
    /// Tests that take what kernels before these have not.
    since: &'static [(Version, &'static str)],
}

const fn suite(name: &'static str, threads: u8) -> Suite {
    Suite { name, threads, since: &[] }
}

/// What the kernel has a part in besides capture, and short enough for an emulated processor.
const SUITES: [Suite; 8] = [
    suite("verifier", 1),
    suite("policy_verdicts", 2),
    suite("policy_maps", 2),
    suite("policy_headers", 2),
    suite("policy_differential", 2),
    Suite {
        name: "takeover",
        threads: 1,
        since: &[
            (CAPTURES, "a_detected_attacker_stays_blocked_over_a_crash"),
            (CAPTURES, "the_next_agents_configuration_decides_what_it_takes_over"),
            (TCX, "nothing_leaks_at_tcx"),
            (TCX, "the_next_agent_may_attach_elsewhere"),
        ],
    },
    suite("detach", 1),
    suite("interfaces", 1),
];

/// A compiled file of tests.
pub struct Program {
    name: String,
    path: PathBuf,
}

pub fn version(line: &str) -> Option<Version> {
    let (major, minor) = line.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Compiles the tests, optimised, and says where they are.
pub fn programs() -> anyhow::Result<Vec<Program>> {
    let mut cargo = exec::cargo();
    cargo.args(["test", "--no-run", "--release", "--package", "portcullis-tests"]);
    for suite in &SUITES {
        cargo.args(["--test", suite.name]);
    }
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`{}`: {}", exec::show(&cargo), output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let found: Vec<Program> = messages.lines().filter_map(program).collect();
    ensure!(found.len() == SUITES.len(), "cargo compiled {} of the tests", found.len());
    Ok(found)
}

/// The program that a message of cargo's tells of
/// (<https://doc.rust-lang.org/cargo/reference/external-tools.html#artifact-messages>).
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    let is_test = message["target"]["kind"] == serde_json::json!(["test"]);
    let name = message["target"]["name"].as_str()?.to_owned();
    is_test.then(|| Program { name, path: path.into() })
}

/// The script that the machine goes on with. Its own words begin with `mark`.
pub fn script(
    kernel: &Unpacked,
    programs: &[Program],
    version: Version,
    filter: Option<&str>,
    mark: &str,
) -> String {
    let modules = kernel.dir.join("lib/modules");
    let tests = exec::root().join("tests");
    let mut script = SCRIPT
        .replace("@MODULES@", &quoted(&modules.display().to_string()))
        .replace("@DIR@", &quoted(&tests.display().to_string()));
    for suite in &SUITES {
        let Some(program) = programs.iter().find(|program| program.name == suite.name) else {
            continue;
        };
        let path = quoted(&program.path.display().to_string());
        let Suite { name, threads, since } = suite;
        script.push_str(&format!("echo '{mark} begin {name}'\n{path} --color never"));
        script.push_str(&format!(" --test-threads={threads}"));
        for (_, skipped) in since.iter().filter(|(first, _)| version < *first) {
            script.push_str(&format!(" --skip {skipped}"));
        }
        if let Some(filter) = filter {
            script.push_str(&format!(" {}", quoted(filter)));
        }
        script.push_str(&format!("\necho '{mark} end {name}' $?\n"));
    }
    // Closing the serial line waits until all of it is written.
    script.push_str(&format!("echo '{mark} done'\nexec >/dev/null 2>&1\n"));
    script.push_str("echo o >/proc/sysrq-trigger\nsleep 60\n");
    script
}

/// As one word of a shell (POSIX, section 2.2.2).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What the script has said so far.
pub struct Results<'a> {
    mark: &'a str,
    passed: u64,
    running: Option<String>,
    failed: Vec<String>,
    is_done: bool,
}

impl<'a> Results<'a> {
    pub fn new(mark: &'a str) -> Self {
        Self { mark, passed: 0, running: None, failed: Vec::new(), is_done: false }
    }

    /// Whether the script came to its end.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes a line in; the tests' own are passed on.
    pub fn line(&mut self, line: &str) {
        let Some(words) = line.strip_prefix(self.mark) else {
            self.passed += test::passed_in(line);
            println!("{line}");
            return;
        };
        match words.split_whitespace().collect::<Vec<_>>()[..] {
            ["begin", name] => self.running = Some(name.to_owned()),
            ["end", name, status] => {
                self.running = None;
                if status != "0" {
                    self.failed.push(format!("{name} (status {status})"));
                }
            }
            ["done"] => self.is_done = true,
            _ => self.failed.push(format!("a line of the script: {line}")),
        }
    }

    /// How many tests passed.
    ///
    /// # Errors
    /// When any failed, or not all came to their end.
    pub fn passed(&self) -> anyhow::Result<u64> {
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        if !self.is_done {
            let during = self.running.as_deref().unwrap_or("the start, or between two of them");
            bail!("the machine ended before its tests did, during {during}");
        }
        Ok(self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(lines: &[&str]) -> anyhow::Result<u64> {
        let mut results = Results::new("mark");
        lines.iter().for_each(|line| results.line(line));
        results.passed()
    }

    #[test]
    fn only_a_whole_run_without_failures_passes() {
        let ok = ["mark begin a", "test result: ok. 3 passed; 0 failed", "mark end a 0"];
        assert_eq!(passed(&[&ok[..], &["mark done"]].concat()).expect("passed"), 3);
        let early = passed(&ok[..2]).expect_err("not the end").to_string();
        assert!(early.contains("during a"), "{early}");
        assert!(passed(&ok).is_err());
        let failed = passed(&["mark begin a", "mark end a 101", "mark done"]);
        assert!(failed.expect_err("failed").to_string().contains("a (status 101)"));
    }

    #[test]
    fn tests_of_what_a_kernel_lacks_are_left_out() {
        let kernel = Unpacked { package: "linux-image-6.1=1".into(), dir: "/k".into() };
        let programs = [Program { name: "takeover".into(), path: "/takeover".into() }];
        let script = |version| script(&kernel, &programs, version, Some("leaks"), "mark");
        let old = script((6, 1));
        assert!(old.contains("--skip nothing_leaks_at_tcx") && old.contains(" 'leaks'\n"), "{old}");
        assert!(!script((6, 12)).contains("--skip"));
    }

    #[test]
    fn cargo_says_where_a_test_is() {
        let message = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"a"},"executable":"/t/a-1"}"#;
        assert_eq!(program(message).expect("a test").path, PathBuf::from("/t/a-1"));
        assert!(program(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}

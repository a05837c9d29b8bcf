//! Servers that are scripts, called with a port, a certificate file and a key file.

use std::process::Command;

use crate::certs::Certs;
use crate::netns::{Host, Lab};
use crate::process::Process;
use crate::scenario::SOON;

#[derive(Clone, Copy, Debug)]
pub enum Language {
    /// By Debian's own Python, which uses the system's OpenSSL.
    Python,
    /// By Node.js, whose OpenSSL is in a library or in the program itself, by where it comes from.
    JavaScript,
}

/// Starts the script on `host`.
pub fn start(
    lab: &Lab,
    host: &Host,
    language: Language,
    script: &str,
    port: u16,
    certs: &Certs,
) -> anyhow::Result<Process> {
    let (program, flag) = match language {
        Language::Python => ("/usr/bin/python3", "-c"),
        Language::JavaScript => ("node", "-e"),
    };
    let mut command = Command::new(program);
    command.args([flag, script, &port.to_string()]).arg(&certs.cert).arg(&certs.key);
    lab.spawn(host, command, "script")
}

/// The script on the laboratory's server, once it says "ready".
///
/// # Panics
/// When it can't be started or ends.
pub fn serve(lab: &Lab, language: Language, script: &str, port: u16, certs: &Certs) -> Process {
    let started = start(lab, lab.server(), language, script, port, certs);
    let mut process = started.expect("the script is started");
    process.wait_until_it_says(SOON, "ready").expect("it listens");
    process
}

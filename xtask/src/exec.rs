//! Running other programs.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, bail};

/// Something that only the user can change; ends xtask with status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UserMustAct(pub String);

/// The root of this checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo put this binary: `target`, or what the user set instead.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("cannot tell where xtask itself is")?;
    let dir = me.ancestors().nth(2).context("xtask is not in a target directory")?;
    Ok(dir.to_owned())
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// `what` completes "… needs root".
pub fn require_root(what: &str) -> anyhow::Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(UserMustAct(format!(
        "{what} needs root; run it again with `sudo -E env PATH=$PATH cargo …`"
    ))
    .into())
}

/// The cargo that runs this xtask, in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo tells the program it runs is not for a cargo that program runs: some of it
    // (the manifest's path) would make build scripts run again.
    forget(&mut command, |name| {
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR"
    });
    command
}

/// Any cargo or rustc but the one that runs this xtask, free of that one's settings.
pub fn other_toolchain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    forget(&mut command, selects_toolchain_or_flags);
    command
}

/// Variables by which one toolchain's cargo would bend another's: which compiler to run, with
/// which flags and libraries. Registries, proxies and `CARGO_HOME` stay.
fn selects_toolchain_or_flags(name: &str) -> bool {
    const NAMES: [&str; 13] = [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
    ];
    const PREFIXES: [&str; 6] = [
        "CARGO_BIN_",
        "CARGO_BUILD_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn forget(command: &mut Command, unwanted: impl Fn(&str) -> bool) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(&unwanted) {
            command.env_remove(name);
        }
    }
}

/// Runs `command` to its end; what it prints goes to stderr, so that stdout stays the result's.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command.stdout(Stdio::from(io::stderr())))?;
    if !status.success() {
        bail!("`{}` failed: {status}", show(command));
    }
    Ok(())
}

pub fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    command.status().with_context(|| format!("cannot run `{}`", show(command)))
}

/// What `command` prints on stdout, or `None` if it cannot be run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as a person would type it, without its environment.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The first executable file called `name` on `PATH` or in the directories for administration,
/// which a user's `PATH` often lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_toolchain_keeps_registries_and_loses_compilers() {
        for name in ["RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_PROFILE_DEV_PANIC", "CARGO_PKG_NAME"] {
            assert!(selects_toolchain_or_flags(name), "{name} leaks");
        }
        for name in
            ["CARGO_HOME", "CARGO_REGISTRIES_CRATES_IO_PROTOCOL", "CARGO_HTTP_CAINFO", "PATH"]
        {
            assert!(!selects_toolchain_or_flags(name), "{name} is lost");
        }
    }

    #[test]
    fn finds_only_programs() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }

    #[test]
    fn what_fails_is_named() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("status 3");
        assert!(error.to_string().contains("sh -c exit 3"), "{error}");
    }
}

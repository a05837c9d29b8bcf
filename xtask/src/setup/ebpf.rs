//! A compiler for eBPF: nightly Rust if the user has it, else Debian's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::apt::{self, Wanted};
use super::exists;
use crate::exec::{self, UserMustAct};

/// A complete way to compile eBPF.
#[derive(Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// rustup's nightly with rust-src, and a bpf-linker on `PATH`.
    Nightly,
    /// Debian's rustc, cargo and `core` for eBPF, with a bpf-linker in this directory.
    Debian { linker_dir: PathBuf },
}

const LINKER_VERSION: &str = "0.13.0";
/// Must be the LLVM that Debian's rustc-web is built with.
const LLVM_FEATURE: &str = "llvm-22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

const COMPILER: &[Wanted] = &[
    Wanted { package: "rustc-web", why: "compiles eBPF" },
    Wanted { package: "cargo-web", why: "builds eBPF with that compiler" },
    Wanted { package: "libstd-rust-web-dev-bpf", why: "is Rust's core library for eBPF" },
];
const CLIPPY: &[Wanted] = &[Wanted { package: "rust-web-clippy", why: "lints eBPF code" }];
/// Only to build bpf-linker.
const LLVM: &[Wanted] = &[
    Wanted { package: "llvm-22-dev", why: "is the LLVM that bpf-linker is made with" },
    Wanted { package: "libpolly-22-dev", why: "belongs to that LLVM" },
    Wanted { package: "zlib1g-dev", why: "belongs to that LLVM" },
    Wanted { package: "libzstd-dev", why: "belongs to that LLVM" },
    Wanted { package: "g++", why: "compiles bpf-linker's C++ parts" },
];

/// The toolchain of this machine, completed if need be.
pub fn toolchain() -> anyhow::Result<Toolchain> {
    if has_nightly() {
        return Ok(Toolchain::Nightly);
    }
    let linker_dir = linker_root()?.join("bin");
    let mut wanted = Vec::new();
    if !has_debian_compiler() {
        wanted.extend(COMPILER);
    }
    if !linker_dir.join("bpf-linker").is_file() {
        wanted.extend(LLVM);
    }
    install(&wanted)?;
    // Only now: it needs the libLLVM that came with the compiler.
    if !linker_works(&linker_dir) {
        install(LLVM)?;
        install_linker(&linker_dir)?;
    }
    Ok(Toolchain::Debian { linker_dir })
}

/// The same, able to lint too.
pub fn toolchain_with_clippy() -> anyhow::Result<Toolchain> {
    let toolchain = toolchain()?;
    match toolchain {
        Toolchain::Debian { .. } if !exists("/usr/bin/cargo-clippy") => install(CLIPPY)?,
        Toolchain::Debian { .. } => {}
        Toolchain::Nightly => {
            let version = &mut exec::other_toolchain("cargo");
            if exec::output(version.args(["+nightly", "clippy", "--version"])).is_none() {
                let advice = "run `rustup component add clippy --toolchain nightly`";
                return Err(UserMustAct(format!("nightly Rust lacks clippy: {advice}")).into());
            }
        }
    }
    Ok(toolchain)
}

impl Toolchain {
    /// `cargo SUBCOMMAND` on the eBPF package, into `target_dir`.
    pub fn cargo(&self, subcommand: &str, target_dir: &Path) -> anyhow::Result<Command> {
        let mut command = match self {
            Self::Nightly => {
                let mut command = exec::other_toolchain("cargo");
                command.arg("+nightly").arg(subcommand).args(["-Z", "build-std=core"]);
                command
            }
            Self::Debian { linker_dir } => {
                let mut command = exec::other_toolchain("/usr/bin/cargo");
                command
                    .arg(subcommand)
                    .env("RUSTC", "/usr/bin/rustc")
                    // The BPF target is not a stable one.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("PATH", path_beginning_with(linker_dir)?);
                command
            }
        };
        command
            .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3")
            .args(["--package", "portcullis-ebpf", "--release"])
            .args(["--target", "bpfel-unknown-none", "--target-dir"])
            .arg(target_dir);
        Ok(command)
    }

    /// What to try when this toolchain is complete and yet fails.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Nightly => {
                "If the linker does not know nightly's LLVM: update both (`rustup update nightly`, \
                 `cargo install bpf-linker`), or take bpf-linker off PATH to use Debian's compiler."
            }
            Self::Debian { .. } => "The compiler is Debian's /usr/bin/rustc.",
        }
    }
}

fn has_nightly() -> bool {
    if exec::find_program("bpf-linker").is_none() || exec::find_program("rustup").is_none() {
        return false;
    }
    let mut rustc = exec::other_toolchain("rustc");
    // Only look: rustup would install a nightly that is not there.
    rustc.env("RUSTUP_AUTO_INSTALL", "0").args(["+nightly", "--print", "sysroot"]);
    exec::output(&mut rustc).is_some_and(|sysroot| {
        let core = "lib/rustlib/src/rust/library/core/Cargo.toml";
        Path::new(sysroot.trim()).join(core).is_file()
    })
}

fn has_debian_compiler() -> bool {
    exists("/usr/bin/rustc")
        && exists("/usr/bin/cargo")
        && exists("/usr/lib/rustlib/bpfel-unknown-none")
}

fn linker_root() -> anyhow::Result<PathBuf> {
    Ok(super::cache_dir()?.join(format!("bpf-linker-{LINKER_VERSION}-{LLVM_FEATURE}")))
}

fn linker_works(dir: &Path) -> bool {
    exec::output(Command::new(dir.join("bpf-linker")).arg("--version")).is_some()
}

fn install(wanted: &[Wanted]) -> anyhow::Result<()> {
    let missing = if wanted.is_empty() { Vec::new() } else { apt::missing(wanted) };
    apt::install(&missing).map_err(|error| match error.downcast::<UserMustAct>() {
        Ok(error) => UserMustAct(format!(
            "there is no compiler for eBPF yet: {error}\n\
             or, on any Linux: `rustup toolchain install nightly --component rust-src` and \
             `cargo install bpf-linker`"
        ))
        .into(),
        Err(error) => error,
    })
}

fn install_linker(dir: &Path) -> anyhow::Result<()> {
    let root = linker_root()?;
    eprintln!(
        "xtask: building bpf-linker {LINKER_VERSION}, which links eBPF objects, into {} (once, some minutes)",
        root.display()
    );
    let mut cargo = exec::cargo();
    cargo
        .env("LLVM_PREFIX", LLVM_PREFIX)
        // Else cargo advises to put it there.
        .env("PATH", path_beginning_with(dir)?)
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", LLVM_FEATURE, "--root"])
        .arg(&root);
    exec::run(&mut cargo)?;
    if !linker_works(dir) {
        bail!("bpf-linker in {} does not run", dir.display());
    }
    Ok(())
}

fn path_beginning_with(dir: &Path) -> anyhow::Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's cargo runs its own subcommands (clippy) by looking them up on PATH.
    let dirs = [dir.to_owned(), PathBuf::from("/usr/bin")];
    std::env::join_paths(dirs.into_iter().chain(std::env::split_paths(&path)))
        .with_context(|| format!("{} cannot be put on PATH", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_cargo_gets_debians_compiler_and_the_linker_first() {
        let toolchain = Toolchain::Debian { linker_dir: "/linker/bin".into() };
        let command = toolchain.cargo("build", Path::new("/t")).expect("a PATH");
        let env = |name: &str| {
            let value =
                command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
            value.map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
        };
        assert_eq!(command.get_program(), "/usr/bin/cargo");
        assert_eq!(env("RUSTC"), "/usr/bin/rustc");
        assert!(env("PATH").starts_with("/linker/bin:/usr/bin:"));
        assert!(exec::show(&command).ends_with("--target bpfel-unknown-none --target-dir /t"));
    }
}

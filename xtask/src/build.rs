//! The eBPF object, then what includes it.

use std::path::PathBuf;

use anyhow::Context;

use crate::{exec, setup};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    pub fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }
}

/// A directory of its own: another compiler writes it, and the agent's build script looks there.
pub fn ebpf_target_dir() -> PathBuf {
    exec::root().join("target/bpf")
}

/// Compiles the eBPF object; does nothing when it is fresh.
pub fn ebpf() -> anyhow::Result<PathBuf> {
    let toolchain = setup::ebpf::toolchain()?;
    let target_dir = ebpf_target_dir();
    let mut cargo = toolchain.cargo("build", &target_dir)?;
    exec::run(cargo.arg("--quiet")).with_context(|| toolchain.advice())?;
    Ok(target_dir.join("bpfel-unknown-none/release/portcullis-ebpf"))
}

/// Compiles everything that runs on the host.
pub fn workspace(profile: Profile) -> anyhow::Result<()> {
    ebpf()?;
    let mut cargo = exec::cargo();
    cargo.args(["build", "--workspace", "--exclude", "portcullis-ebpf"]).args(profile.flags());
    exec::run(&mut cargo)
}

/// Compiles, optimised, the agent and the programs of the laboratory, which lie beside each other
/// and find each other there.
pub fn lab_programs() -> anyhow::Result<()> {
    ebpf()?;
    let mut cargo = exec::cargo();
    cargo.args(["build", "--release", "--package", "portcullis", "--package", "portcullis-tests"]);
    exec::run(cargo.arg("--bins"))
}

/// Compiles the programs in Go and puts them beside those programs.
pub fn go_programs() -> anyhow::Result<()> {
    const STRIPPED: &str = "-ldflags=-s -w";
    let programs: [(&str, &[&str], &str); 4] = [
        ("clients/client.go", &[], "portcullis-lab-go-client"),
        ("go/program.go", &[], "portcullis-lab-go"),
        ("go/program.go", &[STRIPPED], "portcullis-lab-go-stripped"),
        ("go/program.go", &[STRIPPED, "-buildmode=pie"], "portcullis-lab-go-pie"),
    ];
    for (source, flags, name) in programs {
        let source = exec::root().join("tests/tests").join(source);
        setup::go::build(&source, flags, &exec::target_dir()?.join("release").join(name))?;
    }
    Ok(())
}

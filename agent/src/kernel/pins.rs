//! What outlives the agent, and where it is pinned:
//!
//! ```text
//! PIN_DIR/maps-vN/NAME           the policy maps of ABI version N
//! PIN_DIR/unfinished-vN/NAME     those that are to replace them
//! PIN_DIR/links/INTERFACE@HOOK   the attached programs
//! PIN_DIR/links/@sk-lookup       the one that steers connections
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nameindex;
use portcullis_common::ABI_VERSION;
use serde::Serialize;

use super::attach::{Hook, remove_filter};
use super::bpffs::{make_pin_dir, names_in};

const MAPS_PREFIX: &str = "maps-v";
/// No hook of an interface is called so.
const STEERING: &str = "@sk-lookup";

pub(super) struct PinDir(PathBuf);

/// One pinned link.
pub(super) struct LinkPin {
    pub interface: String,
    pub hook: Hook,
    pub path: PathBuf,
}

impl PinDir {
    pub fn make(path: &Path) -> Result<Self> {
        let pins = Self(path.to_owned());
        make_pin_dir(&pins.maps())?;
        make_pin_dir(&pins.links())?;
        Ok(pins)
    }

    pub fn maps(&self) -> PathBuf {
        self.0.join(format!("{MAPS_PREFIX}{ABI_VERSION}"))
    }

    /// Where maps are pinned that are to replace those at [`Self::maps`].
    pub fn unfinished_maps(&self) -> PathBuf {
        self.0.join(format!("unfinished-v{ABI_VERSION}"))
    }

    fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    pub fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.links().join(format!("{}@{}", encode(interface), hook.name()))
    }

    pub fn steering(&self) -> PathBuf {
        self.links().join(STEERING)
    }

    /// Where a link is pinned that is to replace the one at [`Self::steering`].
    pub fn unfinished_steering(&self) -> PathBuf {
        self.links().join(format!("{STEERING}-unfinished"))
    }

    /// Whether something was steered.
    pub fn remove_steering(&self) -> Result<bool> {
        let mut removed = false;
        for path in [self.steering(), self.unfinished_steering()] {
            if path.exists() {
                remove_file(&path)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    pub fn pinned_links(&self) -> Result<Vec<LinkPin>> {
        let links = self.links();
        let parse = |name: String| {
            let (interface, hook) = name.split_once('@')?;
            let hook = Hook::ALL.into_iter().find(|h| h.name() == hook)?;
            Some(LinkPin { interface: decode(interface)?, hook, path: links.join(&name) })
        };
        Ok(names_in(&links)?.into_iter().filter_map(parse).collect())
    }

    /// Directories with the maps of other ABI versions.
    pub fn foreign_maps(&self) -> Result<Vec<PathBuf>> {
        let own = self.maps();
        let names = names_in(&self.0)?;
        Ok(names
            .into_iter()
            .filter(|name| name.starts_with(MAPS_PREFIX))
            .map(|name| self.0.join(name))
            .filter(|path| *path != own)
            .collect())
    }
}

/// The BPF file system refuses names with a dot, which interfaces may have.
fn encode(interface: &str) -> String {
    let mut name = String::new();
    for byte in interface.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    name
}

fn decode(name: &str) -> Option<String> {
    let mut parts = name.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// What [`detach`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Detached {
    /// As `INTERFACE HOOK`.
    pub links: Vec<String>,
    pub maps: Vec<String>,
}

/// Takes the programs off every interface and removes all pins below `pin_dir`.
///
/// # Errors
/// When something is left behind; what can be removed is removed first.
pub fn detach(pin_dir: &Path) -> Result<Detached> {
    let pins = PinDir(pin_dir.to_owned());
    let mut detached = Detached::default();
    for link in pins.pinned_links()? {
        remove_file(&link.path)?;
        detached.links.push(format!("{} {}", link.interface, link.hook.name()));
    }
    if pins.remove_steering()? {
        detached.links.push("steering sk-lookup".to_owned());
    }
    for interface in interfaces()? {
        if remove_filter(&interface) {
            detached.links.push(format!("{interface} {}", Hook::Clsact.name()));
        }
    }
    let own = pins.maps();
    for dir in pins.foreign_maps()?.into_iter().chain([own, pins.unfinished_maps()]) {
        detached.maps.extend(remove_maps(&dir)?);
    }
    for dir in [pins.links(), pins.0.clone()] {
        remove_dir(&dir)?;
    }
    Ok(detached)
}

/// Of this network namespace, whichever one's `/sys` shows.
pub(super) fn interfaces() -> Result<Vec<String>> {
    let interfaces = if_nameindex().context("can't list the network interfaces")?;
    Ok(interfaces.iter().map(|one| one.name().to_string_lossy().into_owned()).collect())
}

/// Unpins all maps in `dir` and removes it; returns their names.
pub(super) fn remove_maps(dir: &Path) -> Result<Vec<String>> {
    let names = names_in(dir)?;
    for name in &names {
        remove_file(&dir.join(name))?;
    }
    remove_dir(dir)?;
    Ok(names)
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("can't remove {}", path.display()))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_the_pin_name() {
        for name in ["eth0", "eth0.100", "br-1a2b", "wg_0", "a@b", "50%", "…"] {
            let encoded = encode(name);
            assert!(!encoded.contains(['.', '@', '/']), "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
        assert_eq!(decode("a%"), None);
        assert_eq!(decode("a%zz"), None);
    }
}

//! What outlives the agent, and where it is pinned:
//!
//! ```text
//! PIN_DIR/maps-vN/NAME           the policy maps of ABI version N
//! PIN_DIR/unfinished-vN/NAME     those that are to replace them
//! PIN_DIR/links/INTERFACE@HOOK   the attached programs
//! PIN_DIR/links/@sk-lookup       the one that steers connections
//! PIN_DIR/links/INTERFACE@HOOK@INODE@PATH
//!                                those in the network namespace INODE, found at PATH
//! ```

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use portcullis_common::ABI_VERSION;
use serde::Serialize;

use super::attach::{Hook, remove_filter};
use super::bpffs::{make_pin_dir, names_in};
use super::links;
use super::netns::{Namespace, run_in};

const MAPS_PREFIX: &str = "maps-v";
/// No hook of an interface is called so.
const STEERING: &str = "@sk-lookup";

pub(super) struct PinDir(PathBuf);

/// A network namespace other than the agent's own, as pins name it: at one path there can be
/// one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PinnedNamespace {
    pub inode: u64,
    pub path: PathBuf,
}

/// One pinned link.
#[derive(Clone, Debug)]
pub(super) struct LinkPin {
    pub interface: String,
    pub hook: Hook,
    pub namespace: Option<PinnedNamespace>,
    pub path: PathBuf,
}

impl LinkPin {
    pub fn open(&self) -> Result<FdLink> {
        Ok(FdLink::from(PinnedLink::from_pin(&self.path)?))
    }

    /// The index of the interface that it is attached to; 0 when that has gone.
    pub fn interface_index(&self) -> Result<u32> {
        let context = || format!("can't look at the link {}", self.path.display());
        let link = open_object(&self.path).with_context(context)?;
        let path = format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd());
        let info = fs::read_to_string(path).with_context(context)?;
        index_in(&info).with_context(context)
    }

    /// The interface and where it is, for people.
    pub fn shown(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} in {}", self.interface, namespace.path.display()),
            None => self.interface.clone(),
        }
    }
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

    pub fn link(
        &self,
        interface: &str,
        hook: Hook,
        namespace: Option<&PinnedNamespace>,
    ) -> PathBuf {
        let mut name = format!("{}@{}", encode(interface.as_bytes()), hook.name());
        if let Some(PinnedNamespace { inode, path }) = namespace {
            name.push_str(&format!("@{inode}@{}", encode(path.as_os_str().as_bytes())));
        }
        self.links().join(name)
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
        Ok(names_in(&self.links())?.into_iter().filter_map(|name| self.parse(name)).collect())
    }

    fn parse(&self, name: String) -> Option<LinkPin> {
        let path = self.links().join(&name);
        let mut parts = name.split('@');
        let (interface, hook) = (decode(parts.next()?)?, parts.next()?);
        let hook = Hook::ALL.into_iter().find(|h| h.name() == hook)?;
        let namespace = match parts.next() {
            None => None,
            Some(inode) => {
                let path = decode(parts.next()?)?.into();
                Some(PinnedNamespace { inode: inode.parse().ok()?, path })
            }
        };
        Some(LinkPin { interface, hook, namespace, path })
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

/// Kernels from 5.9 tell it there (net/core/dev.c, `bpf_xdp_link_show_fdinfo`; kernel/bpf/tcx.c,
/// `tcx_link_fdinfo`).
fn index_in(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("ifindex:")?.trim().parse().ok())
}

/// `BPF_OBJ_GET` (bpf(2)): aya's links do not give their descriptor away.
fn open_object(path: &Path) -> std::io::Result<OwnedFd> {
    /// Its part of `union bpf_attr` (linux/bpf.h).
    #[repr(C)]
    struct ObjectGet {
        path: u64,
        fd: u32,
        flags: u32,
    }
    const BPF_OBJ_GET: libc::c_int = 7;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjectGet { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads `size_of` bytes of `get` and the string that it points to; both
    // live until after the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of_val(&get)) };
    match i32::try_from(fd) {
        // SAFETY: the call has made this descriptor, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The BPF file system refuses names with a dot, which interfaces and paths may have.
fn encode(bytes: &[u8]) -> String {
    let mut name = String::new();
    for &byte in bytes {
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
    /// As `INTERFACE HOOK`, or `INTERFACE in NAMESPACE HOOK`.
    pub links: Vec<String>,
    pub maps: Vec<String>,
}

/// Takes the programs off every interface and removes all pins below `pin_dir`. Filters without
/// a pin are looked for in the agent's own network namespace and in `namespaces`.
///
/// # Errors
/// When something is left behind; what can be removed is removed first.
pub fn detach(pin_dir: &Path, namespaces: &[PathBuf]) -> Result<Detached> {
    let pins = PinDir(pin_dir.to_owned());
    let mut detached = Detached::default();
    for link in pins.pinned_links()? {
        remove_file(&link.path)?;
        detached.links.push(format!("{} {}", link.shown(), link.hook.name()));
    }
    if pins.remove_steering()? {
        detached.links.push("steering sk-lookup".to_owned());
    }
    detached.links.extend(run_in(None, remove_filters)?);
    for path in namespaces {
        let Some(namespace) = Namespace::open(path)? else { continue };
        let removed = namespace.run(remove_filters)?;
        let shown = |filter: String| format!("{filter} in {}", path.display());
        detached.links.extend(removed.into_iter().map(shown));
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

/// In this thread's network namespace.
fn remove_filters() -> Result<Vec<String>> {
    let names = links::list()?.into_iter().map(|link| link.name);
    let removed = names.filter(|name| remove_filter(name));
    Ok(removed.map(|name| format!("{name} {}", Hook::Clsact.name())).collect())
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
            let encoded = encode(name.as_bytes());
            assert!(!encoded.contains(['.', '@', '/']), "{encoded}");
            assert_eq!(decode(&encoded).as_deref(), Some(name));
        }
        assert_eq!(decode("a%"), None);
        assert_eq!(decode("a%zz"), None);
    }

    #[test]
    fn a_links_interface_is_read() {
        assert_eq!(index_in("pos:\t0\nprog_id:\t7\nifindex:\t12\n"), Some(12));
        assert_eq!(index_in("pos:\t0\n"), None);
    }

    #[test]
    fn pins_are_told_apart_by_namespace() {
        let pins = PinDir("/pins".into());
        let blue = PinnedNamespace { inode: 4_026_532_210, path: "/run/netns/blue.1".into() };
        let path = pins.link("eth0", Hook::Tcx, Some(&blue));
        let name = path.strip_prefix("/pins/links").unwrap().to_str().unwrap();
        assert_eq!(name, "eth0@tcx@4026532210@%2frun%2fnetns%2fblue%2e1");
        let pin = pins.parse(name.to_owned()).unwrap();
        assert_eq!((pin.interface.as_str(), pin.hook), ("eth0", Hook::Tcx));
        assert_eq!((pin.namespace, pin.path), (Some(blue), path));
        assert_eq!(pins.parse("eth0@tcx".to_owned()).unwrap().namespace, None);
        for wrong in ["eth0", "eth0@nowhere", "eth0@tcx@x@y", "eth0@tcx@1"] {
            assert!(pins.parse(wrong.to_owned()).is_none(), "{wrong}");
        }
    }
}

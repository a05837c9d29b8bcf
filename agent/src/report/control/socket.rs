//! The socket file: who may open it, and whether another agent already listens on it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::unistd::{Gid, Group, chown};

const SOCKET_MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o750;
const BACKLOG: i32 = 64;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("there is no group `{0}` (`control_group`): create it, or name another")]
    NoGroup(String),
    #[error("another agent{} answers on {path}: stop it first", with_pid(*.pid))]
    Live { path: PathBuf, pid: Option<i32> },
    #[error("{0} is there and is not a socket: remove it, or set `control_socket` elsewhere")]
    NotASocket(PathBuf),
    #[error("can't {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

fn with_pid(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Listens at `path` with mode 0660, for the agent's user and `group`. A missing directory is
    /// created with mode 0750; the socket of an agent that died is replaced.
    ///
    /// # Errors
    /// When the group does not exist, another agent listens there, something else than a socket
    /// is in the way, or the file system refuses.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, BindError> {
        let gid = group.map(find_group).transpose()?;
        create_parent(path, gid)?;
        refuse_living(path)?;
        // Under another name until its mode and group are right, so that there is no moment at
        // which somebody else could connect and none at which `path` does not exist.
        let staging = staging_path(path);
        let io_error =
            |what, source: io::Error| BindError::Io { what, path: path.to_owned(), source };
        let bound = bind_at(&staging, gid)
            .and_then(|listener| fs::rename(&staging, path).map(|()| listener))
            .and_then(|listener| Ok((listener, fs::symlink_metadata(path)?.ino())));
        match bound {
            Ok((listener, inode)) => Ok(Self { listener, path: path.to_owned(), inode }),
            Err(source) => {
                // Best effort: the error that is reported is the one before it.
                let _ = fs::remove_file(&staging);
                Err(io_error("listen on", source))
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle on the listening socket, for an asynchronous runtime.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "can't remove the control socket");
        }
    }
}

fn find_group(name: &str) -> Result<Gid, BindError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) | Err(_) => Err(BindError::NoGroup(name.to_owned())),
    }
}

/// Creates what is missing of the socket's directory, with the group able to enter it.
fn create_parent(path: &Path, gid: Option<Gid>) -> Result<(), BindError> {
    let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) else {
        return Ok(());
    };
    let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).and_then(|()| {
        // The umask has taken its part of the mode given above.
        fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))?;
        Ok(gid.map_or(Ok(()), |gid| chown(dir, None, Some(gid)))?)
    });
    made.map_err(|source| BindError::Io { what: "create", path: dir.to_owned(), source })
}

/// Nothing to do when there is no socket or nobody listens on it.
fn refuse_living(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Io { what: "look at", path: path.to_owned(), source });
        }
    }
    match UnixStream::connect(path) {
        Ok(stream) => {
            let pid = getsockopt(&stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid());
            Err(BindError::Live { path: path.to_owned(), pid })
        }
        // What connect(2) says of a socket file that nobody listens on.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(source) => Err(BindError::Io { what: "connect to", path: path.to_owned(), source }),
    }
}

fn staging_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

fn bind_at(path: &Path, gid: Option<Gid>) -> io::Result<UnixListener> {
    // Left behind by an agent that had this process id and died between two system calls.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    if let Some(gid) = gid {
        chown(path, None, Some(gid))?;
    }
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}

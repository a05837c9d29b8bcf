//! The command line's end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Request, Response, encode};

/// A little more than the agent allows itself.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no agent is running: nothing answers on {0}. Start it with \
         `systemctl start portcullis` or `portcullis run`"
    )]
    NotRunning(PathBuf),
    #[error("not allowed to use {0}: be root, or a member of the configuration's `control_group`")]
    NotAllowed(PathBuf),
    #[error("can't talk to the agent on {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the agent on {path} did not answer in time")]
    NoAnswer { path: PathBuf },
    #[error("the agent on {path} answers in a way that this version does not understand")]
    Unreadable { path: PathBuf, source: serde_json::Error },
}

/// A connection to the running agent.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// # Errors
    /// When no agent listens at `path`, or the caller may not talk to it.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(path.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(path.to_owned()),
            _ => ClientError::Io { path: path.to_owned(), source },
        };
        let stream = UnixStream::connect(path).map_err(io_error)?;
        stream.set_read_timeout(Some(TIMEOUT)).map_err(io_error)?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(io_error)?;
        Ok(Self { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// Sends one request and waits for its answer, which may be [`Response::Error`].
    ///
    /// # Errors
    /// When there is no answer or it cannot be read.
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        let path = || self.path.clone();
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::NoAnswer { path: path() }
            }
            _ => ClientError::Io { path: path(), source },
        };
        let line = encode(request).map_err(|error| io_error(error.into()))?;
        // An agent that turns a client away answers without reading, so the answer counts even
        // when the request could not be delivered.
        let sent = self.stream.get_mut().write_all(&line);
        let mut answer = String::new();
        match self.stream.read_line(&mut answer) {
            Ok(0) => sent.and(Err(io::ErrorKind::UnexpectedEof.into())).map_err(io_error)?,
            Ok(_) => {}
            Err(error) => return Err(io_error(sent.err().unwrap_or(error))),
        }
        serde_json::from_str(&answer)
            .map_err(|source| ClientError::Unreadable { path: self.path.clone(), source })
    }
}

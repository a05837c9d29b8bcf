//! The agent's end of the control socket: lines in, [`Call`]s out, answers back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::socket::ControlSocket;
use super::{Call, ErrorKind, MAX_REQUEST, Peer, Response, ask, decode_request, encode};

/// Clients served at once; one more is told so and let go.
pub(super) const MAX_CLIENTS: usize = 32;
/// How long a client may take for a whole line, or to take its answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the pipeline may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that is turned away may take to read why.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(100);
/// Pause after the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the control socket.
#[derive(Debug)]
pub struct Server {
    socket: ControlSocket,
    listener: UnixListener,
    idle_timeout: Duration,
}

impl Server {
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn new(socket: ControlSocket) -> io::Result<Self> {
        let listener = UnixListener::from_std(socket.listener()?)?;
        Ok(Self { socket, listener, idle_timeout: IDLE_TIMEOUT })
    }

    #[cfg(test)]
    pub(super) fn with_idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// Serves until `shutdown` is done; then answers what has been asked, and removes the socket.
    pub async fn serve(self, calls: mpsc::Sender<Call>, shutdown: impl Future<Output = ()>) {
        let room = Arc::new(Semaphore::new(MAX_CLIENTS));
        let (stop, stopped) = tokio::sync::watch::channel(());
        let mut clients = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => accepted,
            };
            while clients.try_join_next().is_some() {}
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the control socket can't accept a client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                turn_away(stream).await;
                continue;
            };
            let (calls, mut stopped, idle) = (calls.clone(), stopped.clone(), self.idle_timeout);
            clients.spawn(async move {
                let _permit = permit;
                let stopped = async move {
                    // Completes when the sender is dropped.
                    while stopped.changed().await.is_ok() {}
                };
                if let Err(error) = serve_client(stream, &calls, idle, stopped).await {
                    tracing::debug!(%error, "a client of the control socket broke off");
                }
            });
        }
        drop(stop);
        drop(self.listener);
        drop(self.socket);
        while clients.join_next().await.is_some() {}
    }
}

async fn turn_away(mut stream: UnixStream) {
    let message = format!("{MAX_CLIENTS} clients are connected already");
    let Ok(line) = encode(&Response::error(ErrorKind::Busy, message)) else { return };
    // A client that does not read must not hold the others up; it will see the end instead.
    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(&line)).await;
}

async fn serve_client(
    stream: UnixStream,
    calls: &mpsc::Sender<Call>,
    idle: Duration,
    stopped: impl Future<Output = ()>,
) -> io::Result<()> {
    let credentials = stream.peer_cred()?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    tokio::pin!(stopped);
    loop {
        let line = tokio::select! {
            () = &mut stopped => return Ok(()),
            line = timeout(idle, read_line(&mut reader)) => match line {
                Ok(line) => line?,
                Err(_) => return Ok(()),
            },
        };
        let response = match &line {
            Line::End => return Ok(()),
            Line::Text(text) if text.trim().is_empty() => continue,
            Line::Text(text) => answer(text, peer, calls).await,
            Line::Unreadable(why) => Response::error(ErrorKind::BadRequest, *why),
        };
        write_response(&mut writer, &response, idle).await?;
        if matches!(line, Line::Unreadable(_)) {
            return Ok(());
        }
    }
}

async fn answer(line: &str, peer: Peer, calls: &mpsc::Sender<Call>) -> Response {
    match decode_request(line) {
        Ok(request) => ask(calls, request, Some(peer), ANSWER_TIMEOUT).await,
        Err(message) => Response::error(ErrorKind::BadRequest, message),
    }
}

async fn write_response(
    writer: &mut OwnedWriteHalf,
    response: &Response,
    limit: Duration,
) -> io::Result<()> {
    let line = encode(response)?;
    timeout(limit, writer.write_all(&line)).await?
}

enum Line {
    Text(String),
    /// What follows cannot be told apart from it, so the connection ends here.
    Unreadable(&'static str),
    End,
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Line> {
    let mut line = Vec::new();
    reader.take(MAX_REQUEST as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(Line::End);
    }
    if line.last() != Some(&b'\n') && line.len() >= MAX_REQUEST {
        return Ok(Line::Unreadable("the request is longer than 65536 bytes"));
    }
    Ok(String::from_utf8(line).map_or(Line::Unreadable("the request is not UTF-8"), Line::Text))
}

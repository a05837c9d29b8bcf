//! The tarpit: takes every connection, reads next to nothing, answers a byte now and then, for as
//! long as the client likes.
//!
//! A connection costs a descriptor and a few words, and two system calls every few seconds:
//! nobody waits for it, its turn comes round.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::State;

/// Between two turns of a connection.
const TURN: Duration = Duration::from_secs(5);
/// Read in one turn at most, and thrown away.
const MOUTHFUL: usize = 256;
/// First byte of a TLS handshake's record (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// After a failure to accept, such as no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The beginning of an answer that has no end: without a length it lasts as long as the
/// connection (RFC 9112, section 6.3).
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n";
/// And so on.
const BODY: u8 = b'\n';

/// The running tarpit; it ends with this.
pub(super) struct Tarpit(AbortHandle);

impl Tarpit {
    pub fn start(listeners: Vec<TcpListener>, max: usize, state: Arc<State>) -> Self {
        Self(tokio::spawn(run(listeners, Pit::new(max, state))).abort_handle())
    }
}

impl Drop for Tarpit {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(listeners: Vec<TcpListener>, mut pit: Pit) {
    let (sender, mut accepted) = tokio::sync::mpsc::channel(1);
    let mut acceptors = JoinSet::new();
    for listener in listeners {
        let sender = sender.clone();
        acceptors.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                // Nobody waits for it any more.
                let Ok(stream) = stream.into_std() else { continue };
                if sender.send(stream).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    loop {
        let next = tokio::time::Instant::from_std(pit.next_turn());
        tokio::select! {
            stream = accepted.recv() => match stream {
                Some(stream) => pit.take(stream, Instant::now()),
                None => return,
            },
            () = tokio::time::sleep_until(next) => pit.turn(Instant::now()),
        }
    }
}

/// The connections.
struct Pit {
    /// By their number, so that the oldest is the first.
    held: BTreeMap<u64, Held>,
    /// All turns that are to come, in their order; some are of connections that have gone.
    turns: VecDeque<(Instant, u64)>,
    next: u64,
    max: usize,
    state: Arc<State>,
}

struct Held {
    stream: TcpStream,
    since: Instant,
    /// Bytes answered.
    written: usize,
    speaks: Speech,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    /// It has said nothing yet.
    Unknown,
    Http,
    /// Every byte of an answer would be wrong, so there is none.
    Tls,
}

impl Pit {
    fn new(max: usize, state: Arc<State>) -> Self {
        Self { held: BTreeMap::new(), turns: VecDeque::new(), next: 0, max, state }
    }

    fn take(&mut self, stream: TcpStream, now: Instant) {
        if self.held.len() >= self.max
            && let Some((_, oldest)) = self.held.pop_first()
        {
            State::add(&self.state.evicted, 1);
            self.ended(&oldest, now);
        }
        State::add(&self.state.accepted, 1);
        let speaks = Speech::Unknown;
        self.held.insert(self.next, Held { stream, since: now, written: 0, speaks });
        self.turns.push_back((now + TURN, self.next));
        self.next += 1;
        self.forget_turns();
        self.state.held.store(self.held.len() as u64, Ordering::Relaxed);
    }

    /// Turns of connections that have gone would pile up when many come and go.
    fn forget_turns(&mut self) {
        if self.turns.len() > 2 * self.max + MOUTHFUL {
            self.turns.retain(|(_, number)| self.held.contains_key(number));
        }
    }

    fn next_turn(&self) -> Instant {
        self.turns.front().map_or_else(|| Instant::now() + TURN, |(at, _)| *at)
    }

    /// Everyone whose turn has come.
    fn turn(&mut self, now: Instant) {
        while let Some(&(at, number)) = self.turns.front()
            && at <= now
        {
            self.turns.pop_front();
            let Some(held) = self.held.get_mut(&number) else { continue };
            if held.turn(&self.state).is_ok() {
                self.turns.push_back((now + TURN, number));
            } else if let Some(gone) = self.held.remove(&number) {
                self.ended(&gone, now);
            }
        }
        self.state.held.store(self.held.len() as u64, Ordering::Relaxed);
    }

    fn ended(&self, held: &Held, now: Instant) {
        let held_for = now.saturating_duration_since(held.since);
        let milliseconds = u64::try_from(held_for.as_millis()).unwrap_or(u64::MAX);
        State::add(&self.state.milliseconds, milliseconds);
    }
}

impl Held {
    /// # Errors
    /// When the client has gone.
    fn turn(&mut self, state: &State) -> io::Result<()> {
        let mut mouthful = [0; MOUTHFUL];
        match self.stream.read(&mut mouthful) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                State::add(&state.bytes_read, length as u64);
                if self.speaks == Speech::Unknown {
                    let tls = mouthful.first() == Some(&TLS_HANDSHAKE);
                    self.speaks = if tls { Speech::Tls } else { Speech::Http };
                }
            }
            Err(error) => would_block(error)?,
        }
        if self.speaks == Speech::Http {
            let byte = ANSWER.get(self.written).copied().unwrap_or(BODY);
            match self.stream.write(&[byte]) {
                Ok(written) => {
                    self.written = self.written.saturating_add(written);
                    State::add(&state.bytes_written, written as u64);
                }
                Err(error) => would_block(error)?,
            }
        }
        Ok(())
    }
}

/// Not being able to go on now is no failure.
fn would_block(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A pit and what clients connect to.
    struct Scene {
        pit: Pit,
        listener: TcpListener,
        now: Instant,
    }

    impl Scene {
        fn new(max: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Self { pit: Pit::new(max, Arc::default()), listener, now: Instant::now() }
        }

        fn connect(&mut self, says: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            client.write_all(says).unwrap();
            let (stream, _) = self.listener.accept().unwrap();
            if !says.is_empty() {
                stream.peek(&mut [0]).unwrap();
            }
            stream.set_nonblocking(true).unwrap();
            self.pit.take(stream, self.now);
            client
        }

        fn turns(&mut self, count: u32) {
            for _ in 0..count {
                self.now += TURN;
                self.pit.turn(self.now);
            }
        }

        fn get(&self, counter: impl Fn(&State) -> &std::sync::atomic::AtomicU64) -> u64 {
            counter(&self.pit.state).load(Ordering::Relaxed)
        }
    }

    #[test]
    fn an_answer_comes_byte_by_byte_and_never_ends() {
        let mut scene = Scene::new(4);
        let mut client = scene.connect(b"GET / HTTP/1.1\r\n\r\n");
        let turns = ANSWER.len() + 3;
        scene.turns(turns as u32);
        let mut answer = vec![0; turns];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [ANSWER, b"\n\n\n"].concat());
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(scene.get(|state| &state.bytes_read), 18);
        assert_eq!(scene.get(|state| &state.bytes_written), turns as u64);
        drop(client);
    }

    #[test]
    fn tls_gets_nothing_and_is_read_slowly() {
        let mut scene = Scene::new(4);
        let mut hello = vec![7; 4 * MOUTHFUL];
        hello[0] = TLS_HANDSHAKE;
        let mut client = scene.connect(&hello);
        scene.turns(3);
        assert_eq!(scene.get(|state| &state.bytes_read), 3 * MOUTHFUL as u64);
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut scene = Scene::new(2);
        let mut first = scene.connect(b"");
        scene.turns(2);
        let _others = [scene.connect(b"x"), scene.connect(b"x")];
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "it was closed");
        assert_eq!(scene.get(|state| &state.evicted), 1);
        assert_eq!(scene.get(|state| &state.held), 2);
        assert_eq!(scene.get(|state| &state.milliseconds), 10_000);
    }

    #[test]
    fn clients_that_go_are_forgotten() {
        let mut scene = Scene::new(2);
        for _ in 0..1_000 {
            drop(scene.connect(b""));
        }
        assert!(scene.pit.turns.len() <= 4 + MOUTHFUL, "{}", scene.pit.turns.len());
        scene.turns(1);
        assert_eq!(scene.get(|state| &state.held), 0);
        assert_eq!(scene.pit.turns.len(), 0);
        assert_eq!(scene.get(|state| &state.accepted), 1_000);
    }
}

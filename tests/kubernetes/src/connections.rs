//! TCP connections that live long: data goes there and back all the time, and whoever holds one sees when it stops.
//!
//! A connection is never made again: one that was reset, closed, or answered by other bytes than were sent is broken for good.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bulkhead_tests::Endpoint;
use bulkhead_tests::echo::ECHO;
use bulkhead_tests::error::{LabError, Tried};

/// Bytes of a request; as many come back.
const REQUEST: usize = 1024;
/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take after the end: a loaded machine is late, and TCP sends again.
const PATIENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(15);
/// How often a thread that waits for an answer looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// A connection with a thread that talks over it.
#[derive(Debug)]
pub struct Connection {
    name: String,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    last_answer: Instant,
    stop: bool,
}

/// How a connection fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Requests sent.
    pub sent: u64,
    /// Of which answered, each by the bytes that it held.
    pub answered: u64,
    /// The longest time that an answer took.
    pub longest_wait: Duration,
    /// Why it broke, if it did.
    pub broken: Option<String>,
}

impl Progress {
    /// Some requests were sent, all answered.
    pub fn is_whole(&self) -> bool {
        self.sent > 0 && self.sent == self.answered && self.broken.is_none()
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lost, wait) = (self.sent - self.answered, self.longest_wait.as_secs_f64() * 1000.0);
        write!(f, "{} requests, {lost} unanswered, longest wait {wait:.0} ms", self.sent)?;
        self.broken.iter().try_for_each(|why| write!(f, ", broken: {why}"))
    }
}

impl Connection {
    /// Connects to the endpoint's echo; fails if that cannot be done.
    pub fn start(from: &Endpoint, to: &Endpoint) -> Result<Self, LabError> {
        let name = format!("{from} -> {to}");
        let peer = SocketAddr::from((to.address(), ECHO));
        let stream = from.netns().aside(move || TcpStream::connect_timeout(&peer, CONNECT))?;
        let stream = stream.tried(|| format!("connect {name}"))?;
        let state = State { progress: Progress::default(), last_answer: Instant::now(), stop: false };
        let state = Arc::new(Mutex::new(state));
        let body = {
            let state = Arc::clone(&state);
            move || {
                if let Err(error) = converse(stream, &state) {
                    locked(&state).progress.broken = Some(error.to_string());
                }
            }
        };
        let thread = thread::Builder::new().name(name.clone()).spawn(body);
        let thread = thread.tried(|| format!("start a thread for {name}"))?;
        Ok(Self { name, state, thread: Some(thread) })
    }

    /// Who talks to whom.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it fares now.
    pub fn progress(&self) -> Progress {
        locked(&self.state).progress.clone()
    }

    /// When the last answer came.
    pub fn last_answer(&self) -> Instant {
        locked(&self.state).last_answer
    }

    /// Asks it to end after the answer that it waits for.
    pub fn stop(&self) {
        locked(&self.state).stop = true;
    }

    /// Ends it; how it fared.
    pub fn end(mut self) -> Progress {
        self.stop();
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
        self.progress()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn converse(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut received = [0; REQUEST];
    for number in 0_u64.. {
        if locked(state).stop {
            break;
        }
        let sent: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(REQUEST).collect();
        locked(state).progress.sent += 1;
        let begin = Instant::now();
        stream.write_all(&sent)?;
        if !read_whole(&mut stream, &mut received, state)? {
            break;
        }
        if received[..] != sent[..] {
            return Err(io::Error::other("the answer is not what was sent"));
        }
        let mut state = locked(state);
        state.last_answer = Instant::now();
        state.progress.answered += 1;
        state.progress.longest_wait = state.progress.longest_wait.max(begin.elapsed());
        drop(state);
        // Its pace: it waits for nothing.
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Reads an answer however long it takes, until [`PATIENCE`] after the end was asked for; false if it did not come.
fn read_whole(stream: &mut TcpStream, buffer: &mut [u8], state: &Mutex<State>) -> io::Result<bool> {
    let (mut length, mut asked) = (0, None::<Instant>);
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => length += more,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if locked(state).stop && asked.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

//! How long the agent has been away, for STATUS alone: an agent that is being restarted or upgraded, its image perhaps still on
//! its way, must not make its node NotReady, for then the endpoints of pods that run well would be taken out of their services.
//!
//! A file beside the socket says since when. It is made by the first STATUS that finds nobody behind a socket which an agent of
//! this boot has left, and removed by the first that is answered. Runtimes ask every few seconds while they run.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bulkhead_core::protocol::away_mark;

/// How long an agent may be away before its node takes no pods any more.
pub const GRACE: Duration = Duration::from_mins(2);

/// Nobody answered: whether that is so for less than [`GRACE`]. Nothing is granted where it cannot be written down.
pub fn is_short(socket: &Path) -> bool {
    let mark = away_mark(socket);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&mark) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let since = fs::metadata(&mark).and_then(|metadata| metadata.modified());
            // A mark of the future is one of a clock that was wrong.
            since.is_ok_and(|since| SystemTime::now().duration_since(since).is_ok_and(|age| age < GRACE))
        }
        Err(_) => false,
    }
}

/// Somebody answered.
pub fn is_over(socket: &Path) {
    let _ = fs::remove_file(away_mark(socket));
}

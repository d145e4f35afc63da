//! Echo requests from a pod, in the background, while something changes: how many were answered.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bulkhead_tests::error::{LabError, promised};
use bulkhead_tests::wait;

use crate::pod::Pod;

/// Between two requests.
const INTERVAL: &str = "0.005";
/// More requests than any test sends: they end when the test does not end them.
const COUNT: u32 = 1_000_000;
/// How long a moment may be awaited at which every request is answered: requests overlap on a machine that is late.
const PATIENCE: Duration = Duration::from_mins(1);

/// Requests that are on their way. They are the pod's own: nothing has to hold on to them.
#[derive(Debug)]
pub struct Pings {
    name: String,
    from: Pod,
    answer: String,
}

/// What became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests sent.
    pub sent: u64,
    /// Of which answered.
    pub answered: u64,
}

impl Count {
    /// Requests without an answer.
    pub const fn missing(self) -> u64 {
        self.sent.saturating_sub(self.answered)
    }

    /// Whether some were sent and all answered.
    pub const fn is_whole(self) -> bool {
        self.sent > 0 && self.sent == self.answered
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} lost", self.sent, self.missing())
    }
}

impl Pings {
    /// Sends 200 requests a second until it is ended.
    pub fn start(name: &str, from: &Pod, to: IpAddr) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let answer = format!("/tmp/pings{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        from.exec_ok(&[
            "sh",
            "-c",
            &format!("ping -q -i {INTERVAL} -c {COUNT} -W 1 {to} >{answer} 2>&1 & echo $! >{answer}.pid"),
        ])?;
        Ok(Self { name: name.to_owned(), from: from.clone(), answer })
    }

    /// Their count up to now; what is on its way is not answered yet.
    fn so_far(&self) -> Result<Count, String> {
        // ping(8) tells its counts at this signal and goes on.
        let ask = format!("kill -QUIT $(cat {0}.pid) && cat {0}", self.answer);
        let said = self.from.exec_ok(&["sh", "-c", &ask]).map_err(|error| error.to_string())?;
        counted(&said).ok_or(said)
    }

    /// Ends them. None is missing if at one moment from now on every request is answered; else the count is that of the moment at
    /// which the fewest were not.
    fn end(self) -> Result<Count, LabError> {
        let mut best: Option<Count> = None;
        let whole = wait::until_or(&format!("an answer to each of the pings {}", self.name), PATIENCE, || {
            let now = self.so_far()?;
            if best.is_none_or(|best| now.missing() < best.missing()) {
                best = Some(now);
            }
            if now.is_whole() { Ok(()) } else { Err(now.to_string()) }
        });
        self.from.exec_ok(&["sh", "-c", &format!("kill -KILL $(cat {}.pid)", self.answer)])?;
        best.map_or_else(|| whole.map(|()| Count::default()), Ok)
    }
}

/// Ends them all; one that was lost, or a flow that had ended before now, is an error. Prints the counts.
pub fn expect_whole(flows: Vec<Pings>, during: &str) -> Result<(), LabError> {
    let mut wrong = Vec::new();
    for flow in flows {
        let name = flow.name.clone();
        let count = flow.end()?;
        println!("  ping {name}: {count}");
        if !count.is_whole() {
            wrong.push(format!("{name}: {count}"));
        }
    }
    promised(wrong.is_empty(), || format!("{during}: {}", wrong.join("; ")))
}

/// The last line `N/M packets, ...` of `ping(8)`: sent and answered.
fn counted(text: &str) -> Option<Count> {
    let counts = text.lines().rev().find_map(|line| line.split_once(" packets, ")?.0.trim().split_once('/'))?;
    Some(Count { sent: counts.0.parse().ok()?, answered: counts.1.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_status_line_is_read() {
        let text = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\
            \r117/117 packets, 0% loss, min/avg/ewma/max = 0.008/0.014/0.016/0.040 ms\n\r2000/1999 packets, 0% loss\n";
        let count = counted(text).unwrap();
        assert_eq!((count.sent, count.answered, count.missing(), count.is_whole()), (2000, 1999, 1, false));
        assert_eq!(counted("PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n"), None);
        assert!(!Count::default().is_whole());
    }
}

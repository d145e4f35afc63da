//! Echo requests from a pod, in the background, while something changes: how many were answered.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

use crate::pod::Pod;

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(5);
/// How late the last answer may be: the machine may send more slowly than it was asked to.
const PATIENCE: Duration = Duration::from_mins(1);

/// Requests that are on their way. They are the pod's own: nothing has to hold on to them.
#[derive(Debug)]
pub struct Pings {
    name: String,
    from: Pod,
    answer: String,
    until: Instant,
}

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Requests sent.
    pub sent: u64,
    /// Of which answered.
    pub answered: u64,
}

impl Count {
    /// Whether some were sent and all answered.
    pub const fn is_whole(self) -> bool {
        self.sent > 0 && self.sent == self.answered
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} lost", self.sent, self.sent - self.answered.min(self.sent))
    }
}

impl Pings {
    /// Sends 200 requests a second for that long; give it longer than what happens meanwhile.
    pub fn start(name: &str, from: &Pod, to: IpAddr, during: Duration) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let answer = format!("/tmp/pings{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (interval, count) = (INTERVAL.as_secs_f64(), during.as_millis() / INTERVAL.as_millis());
        from.exec_ok(&[
            "sh",
            "-c",
            &format!("ping -q -i {interval:.3} -c {count} -W 1 {to} >{answer} 2>&1 & echo $! >{answer}.pid"),
        ])?;
        Ok(Self { name: name.to_owned(), from: from.clone(), answer, until: Instant::now() + during })
    }

    /// Their count; none while they are under way.
    fn count(&self) -> Option<Count> {
        let output = self.from.exec(&["cat", &self.answer]).ok()?;
        counted(&String::from_utf8_lossy(&output.stdout))
    }

    /// Ends them now, which must be before their time. The last one may be on its way, so one that has no answer is none.
    pub fn stop(self) -> Result<Count, LabError> {
        if let Some(count) = self.count() {
            return Err(LabError::Broken(format!("the pings {} had ended already: {count}", self.name)));
        }
        // ping(8) tells its counts at this signal; the shell that started it made it deaf to SIGINT.
        self.from.exec_ok(&["sh", "-c", &format!("kill -ALRM $(cat {}.pid)", self.answer)])?;
        let count = wait::until(&format!("the end of the pings {}", self.name), PATIENCE, || self.count())?;
        let on_its_way = u64::from(count.sent == count.answered + 1);
        Ok(Count { sent: count.sent - on_its_way, ..count })
    }

    /// Waits for the last one.
    pub fn end(self) -> Result<Count, LabError> {
        let limit = self.until.saturating_duration_since(Instant::now()) + PATIENCE;
        wait::until(&format!("the end of the pings {}", self.name), limit, || self.count())
    }
}

/// Waits for the last one of all; one that was lost, or a flow that had ended before now, is an error. Prints the counts.
pub fn expect_whole(flows: Vec<Pings>, during: &str) -> Result<(), LabError> {
    let early: Vec<String> = flows.iter().filter(|flow| flow.count().is_some()).map(|flow| flow.name.clone()).collect();
    let mut wrong = not_whole(flows, Pings::end)?;
    if !early.is_empty() {
        wrong.push(format!("ended before it was over: {}", early.join(", ")));
    }
    if wrong.is_empty() { Ok(()) } else { Err(LabError::Broken(format!("{during}: {}", wrong.join("; ")))) }
}

/// Ends them all; more than the last one of any unanswered is an error. Prints the counts.
pub fn stop_whole(flows: Vec<Pings>, during: &str) -> Result<(), LabError> {
    let wrong = not_whole(flows, Pings::stop)?;
    if wrong.is_empty() { Ok(()) } else { Err(LabError::Broken(format!("{during}: {}", wrong.join("; ")))) }
}

/// Ends each and prints its count; those of which some were lost.
fn not_whole(flows: Vec<Pings>, end: fn(Pings) -> Result<Count, LabError>) -> Result<Vec<String>, LabError> {
    let mut wrong = Vec::new();
    for flow in flows {
        let name = flow.name.clone();
        let count = end(flow)?;
        println!("  ping {name}: {count}");
        if !count.is_whole() {
            wrong.push(format!("{name}: {count}"));
        }
    }
    Ok(wrong)
}

/// The line `N packets transmitted, M received, ...` of `ping(8)`.
fn counted(text: &str) -> Option<Count> {
    let line = text.lines().find(|line| line.contains(" packets transmitted"))?;
    let mut numbers = line.split(", ").map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    Some(Count { sent: numbers.next()??, answered: numbers.next()?? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_line_is_read() {
        let text = "--- 10.0.0.1 ping statistics ---\n2000 packets transmitted, 1999 received, 0.05% packet loss, time 9999ms\n";
        let count = counted(text).unwrap();
        assert_eq!((count.sent, count.answered, count.is_whole()), (2000, 1999, false));
        assert_eq!(counted("ping: unknown host"), None);
    }
}

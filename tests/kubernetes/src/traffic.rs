//! Traffic that must not notice what happens meanwhile: pings of which none may be lost, connections of which none may break.

use std::time::Duration;

use bulkhead_tests::error::{LabError, promised};
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::{Endpoint, wait};

use crate::connections::Connection;

/// Between two pings of a pair.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long the first answer over a new connection may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Two endpoints, the first of which begins.
pub type Pair<'a> = (&'a Endpoint, &'a Endpoint);

/// So many connections for each pair, all at once.
pub fn connect(pairs: &[Pair<'_>], each: usize) -> Result<Vec<Connection>, LabError> {
    let all = pairs.iter().flat_map(|pair| std::iter::repeat_n(pair, each));
    all.map(|(from, to)| Connection::start(from, to)).collect()
}

/// 200 pings a second for each pair.
pub fn ping(pairs: &[Pair<'_>]) -> Result<Vec<PacketFlow>, LabError> {
    pairs.iter().map(|(from, to)| PacketFlow::ping_each(INTERVAL, from, to.address())).collect()
}

/// Ends the pings; one that was lost is an error. Prints the counts.
pub fn expect_none_lost(pings: Vec<PacketFlow>, during: &str) -> Result<(), LabError> {
    let mut wrong = Vec::new();
    for flow in pings {
        let name = flow.name().to_owned();
        let loss = flow.stop();
        println!("    {name}: {loss}");
        if !loss.is_none() {
            wrong.push(format!("{name}: {loss}"));
        }
    }
    promised(wrong.is_empty(), || format!("{during}: {}", wrong.join("; ")))
}

/// An error if a connection has broken by now; the others go on.
pub fn expect_alive(connections: &[Connection], during: &str) -> Result<(), LabError> {
    let broken: Vec<String> = connections
        .iter()
        .map(|connection| (connection.name(), connection.progress()))
        .filter(|(_, progress)| progress.broken.is_some())
        .map(|(name, progress)| format!("{name}: {progress}"))
        .collect();
    promised(broken.is_empty(), || format!("{during}: {}", broken.join("; ")))
}

/// Ends the connections; one that broke, or a request without an answer, is an error. Prints the sums.
pub fn expect_whole(connections: Vec<Connection>, during: &str) -> Result<(), LabError> {
    let count = connections.len();
    let (requests, longest) = end(connections, during)?;
    let wait = longest.as_secs_f64() * 1000.0;
    println!("    {count} connections: {requests} requests, all answered, longest wait {wait:.0} ms");
    Ok(())
}

/// Ends the connections; how many requests were answered, and the longest wait for one.
fn end(connections: Vec<Connection>, during: &str) -> Result<(u64, Duration), LabError> {
    connections.iter().for_each(Connection::stop);
    let (mut requests, mut longest, mut wrong) = (0, Duration::ZERO, Vec::new());
    for connection in connections {
        let name = connection.name().to_owned();
        let progress = connection.end();
        requests += progress.answered;
        longest = longest.max(progress.longest_wait);
        if !progress.is_whole() {
            wrong.push(format!("{name}: {progress}"));
        }
    }
    promised(wrong.is_empty(), || format!("{during}: {}", wrong.join("; "))).map(|()| (requests, longest))
}

/// Whether new connections of a pair can be made and talked over.
pub fn expect_works(pair: Pair<'_>, count: usize) -> Result<(), LabError> {
    let fresh = connect(&[pair], count)?;
    for connection in &fresh {
        wait::until_or(&format!("an answer over {}", connection.name()), ANSWER, || {
            let progress = connection.progress();
            if progress.answered > 0 { Ok(()) } else { Err(progress.to_string()) }
        })?;
    }
    end(fresh, "new connections").map(drop)
}

//! One change, from the moment that it is written to etcd until it is in force on every node.
//!
//! A pod of one namespace sends numbered datagrams to a pod of another on each node, all the time; none is answered while
//! the two namespaces are apart. A join is written as an administrator's record; the change is in force on a node when a
//! datagram comes back from there: the far node has judged it, and the pod's own node the answer.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead_tests::cluster::netnamespace_key;
use bulkhead_tests::echo::ECHO;
use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::{Lab, Pod};
use etcd_client::Client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::report::Row;
use crate::sample::{milliseconds, percentile};

const MOVED: &str = "bench-moved";
const TARGET: &str = "bench-target";
/// Between two rounds of datagrams: the resolution of the result.
const INTERVAL: Duration = Duration::from_micros(250);
/// The longest that a change may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A thread on the infra machine with an open connection to etcd: its answer is when it began to write.
struct Writer {
    jobs: Sender<String>,
    begun: Receiver<Result<Instant, etcd_client::Error>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(infra: &Netns, endpoints: String, key: String) -> Result<Self, LabError> {
        let (jobs, queue) = channel::<String>();
        let (answer, begun) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.tried(|| "start a runtime for etcd".into())?;
        let body = move || {
            runtime.block_on(async {
                let endpoints: Vec<&str> = endpoints.split(',').collect();
                let mut client = match Client::connect(endpoints, None).await {
                    Ok(client) => client,
                    Err(error) => return drop(answer.send(Err(error))),
                };
                while let Ok(value) = queue.recv() {
                    let begin = Instant::now();
                    let put = client.put(key.as_str(), value, None).await;
                    drop(answer.send(put.map(|_| begin)));
                }
            });
        };
        Ok(Self { jobs, begun, thread: Some(infra.thread("etcd client", body)?) })
    }

    fn put(&self, value: String) -> Result<Instant, LabError> {
        let failed = |answer: String| LabError::Refused { what: "write a change to etcd".into(), answer };
        self.jobs.send(value).map_err(|error| failed(error.to_string()))?;
        let begun = self.begun.recv_timeout(LIMIT).map_err(|error| failed(error.to_string()))?;
        begun.map_err(|error| failed(error.to_string()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = channel().0;
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// One socket for each node that is asked.
struct Probes {
    sockets: Vec<UdpSocket>,
}

impl Probes {
    fn open(from: &Pod, to: &[Pod]) -> Result<Self, LabError> {
        let addresses: Vec<Ipv4Addr> = to.iter().map(Pod::address).collect();
        let open = move || {
            addresses
                .iter()
                .map(|address| {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    socket.connect((*address, ECHO))?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .collect::<std::io::Result<Vec<_>>>()
        };
        Ok(Self { sockets: from.netns().run(open)?.tried(|| format!("open sockets in {}", from.endpoint()))? })
    }

    /// One round: sends to each node, waits an interval, says who answered and when.
    fn round(&self, mut answered: impl FnMut(usize, Instant)) {
        for socket in &self.sockets {
            // A datagram that cannot be sent is one that is not answered.
            drop(socket.send(&[1]));
        }
        let until = Instant::now() + INTERVAL;
        let mut byte = [0];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            for (node, socket) in self.sockets.iter().enumerate() {
                while socket.recv(&mut byte).is_ok() {
                    answered(node, Instant::now());
                }
            }
            if left.is_zero() {
                return;
            }
            let mut ready: Vec<PollFd<'_>> =
                self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
            let wait = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let _ = poll(&mut ready, Some(&wait));
        }
    }

    /// Sends until every node has answered; when the last one did.
    fn until_all(&self) -> Result<Instant, LabError> {
        let begin = Instant::now();
        let mut first: Vec<Option<Instant>> = vec![None; self.sockets.len()];
        while begin.elapsed() < LIMIT {
            self.round(|node, when| {
                first[node].get_or_insert(when);
            });
            if let Some(all) = first.iter().copied().collect::<Option<Vec<_>>>() {
                return Ok(all.into_iter().max().unwrap_or(begin));
            }
        }
        let detail = format!("; answers came from {:?}", first.iter().map(Option::is_some).collect::<Vec<_>>());
        Err(LabError::TimedOut { what: "a join being in force on all nodes".into(), waited: LIMIT, detail })
    }

    /// Sends until none has answered for a while: 200 rounds in a row.
    fn until_none(&self) -> Result<(), LabError> {
        let begin = Instant::now();
        let mut silent = 0;
        while begin.elapsed() < LIMIT {
            silent += 1;
            self.round(|_, _| silent = 0);
            if silent == 200 {
                return Ok(());
            }
        }
        Err(LabError::TimedOut { what: "an isolate being in force".into(), waited: LIMIT, detail: String::new() })
    }
}

/// Joins and isolates `repeats` times.
pub fn rows(lab: &Lab, repeats: usize) -> Result<Vec<Row>, LabError> {
    lab.create_tenants(&[MOVED, TARGET])?;
    lab.settle()?;
    let asking = lab.pod(0, TARGET, "asking")?;
    let nodes = 0..lab.nodes().len();
    let asked = nodes.map(|node| lab.pod(node, MOVED, "asked")).collect::<Result<Vec<_>, _>>()?;
    let key = netnamespace_key(MOVED);
    let record = |action: &str, target: &str| -> Result<String, LabError> {
        let mut record = lab.etcd().get_json(&key)?;
        record["Action"] = action.into();
        record["Namespace"] = target.into();
        Ok(record.to_string())
    };
    let writer = Writer::start(&lab.underlay().infra, lab.etcd().endpoints(), key.clone())?;
    let probes = Probes::open(&asking, &asked)?;
    let mut times = Vec::new();
    for _ in 0..repeats {
        probes.until_none()?;
        let join = record("join", TARGET)?;
        let begun = writer.put(join)?;
        times.push(probes.until_all()?.duration_since(begun));
        writer.put(record("isolate", "")?)?;
    }
    for pod in asked.into_iter().chain([asking]) {
        pod.delete()?;
    }
    let mut times = milliseconds(&times);
    let name = format!("one join until in force on {} nodes", lab.nodes().len());
    Ok(vec![
        Row::new(format!("{name}, p50"), "ms", percentile(&mut times, 50.0)),
        Row::new(format!("{name}, worst"), "ms", percentile(&mut times, 100.0)),
    ])
}

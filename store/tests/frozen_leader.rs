//! A leader process that is stopped past its lease and wakes up: it knows that it lost, and etcd refuses its writes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod suite;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bulkhead_store::process::Cluster;
use bulkhead_store::{Candidate, Outcome, Settings, Store, Timeouts, Txn};
use rustix::process::{Pid, Signal, kill_process};
use suite::within;

const ENDPOINT: &str = "BULKHEAD_TEST_LEADER_ENDPOINT";
const TTL: Duration = Duration::from_secs(2);

async fn connect(endpoint: &str) -> Store {
    let settings = Settings::new(&[endpoint], None, None, Timeouts::default()).unwrap();
    Store::connect(settings).await.unwrap()
}

/// Not a test: what the child process of the test below runs. Does nothing unless that test started it.
#[tokio::test]
async fn child_leads() {
    let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
    let store = connect(&endpoint).await;
    let lead = Candidate::campaign(&store, "/election", "child", TTL).await.unwrap();
    let fence = lead.fence();
    println!("\nleading");
    // Blocks the only thread on purpose: no keep-alive task runs, and nobody tells this process that time passed.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    println!("\nheld={}", lead.is_held());
    let late = store.commit(Txn::new().fenced(&fence).put("/data", "late")).await;
    let refused = matches!(late, Ok(Outcome::Conflict(conflict)) if conflict.fenced_off());
    println!("refused={refused}");
    println!("lost={:?}", within(lead.lost()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_frozen_past_its_lease_is_refused() {
    let cluster = Cluster::start(1).unwrap();
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_leads", "--nocapture"])
        .env(ENDPOINT, cluster.endpoint(0))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut wait_for = |start: &str| loop {
        let line = lines.next().expect("the child goes on").unwrap();
        if let Some(rest) = line.strip_prefix(start) {
            return rest.to_owned();
        }
    };
    wait_for("leading");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let store = connect(&cluster.endpoint(0)).await;
    let campaign = Candidate::campaign(&store, "/election", "next", TTL);
    let next = within(campaign).await.unwrap();
    let write = Txn::new().fenced(&next.fence()).put("/data", "new");
    assert!(store.commit(write).await.unwrap().done().is_some());
    kill_process(pid, Signal::CONT).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(wait_for("held="), "false");
    assert_eq!(wait_for("refused="), "true");
    let lost = wait_for("lost=");
    assert!(["Expired", "LeaseGone"].contains(&lost.as_str()), "{lost}");
    assert!(child.wait().unwrap().success());
    assert_eq!(store.get("/data").await.unwrap().unwrap().value, b"new");
    next.resign().await.unwrap();
}

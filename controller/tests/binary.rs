//! The real binary on a real etcd: frozen past its lease with a write on its way, killed, stopped, misused.
//!
//! Needs the programs `etcd` and `setpriv`, and fails without them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod people;

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_core::Action;
use bulkhead_store::Candidate;
use bulkhead_store::process::Cluster;
use people::{People, connect, ns, within};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const BINARY: &str = env!("CARGO_BIN_EXE_bulkhead-controller");
const NETWORK: [&str; 4] = ["--cluster-name", "k8ssdn", "--network", "172.11.0.0/16"];

/// A controller that dies with this process.
struct Controller(Child);

impl Controller {
    fn start(endpoint: &str, identity: &str) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", BINARY, "--etcd-endpoints", endpoint, "--identity", identity])
            .args(["--lease-ttl", "2", "--log-level", "warn", "--state-dir", ""])
            .args(NETWORK)
            .stdin(Stdio::null())
            .spawn()
            .expect("setpriv (util-linux) is needed");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A way to etcd on which what the client sends can be held back.
struct Gate {
    endpoint: String,
    open: watch::Sender<bool>,
    /// What the client sent since the gate was shut.
    held: Arc<Mutex<Vec<u8>>>,
    /// What etcd answered since it was opened again.
    answered: Arc<Mutex<Vec<u8>>>,
}

impl Gate {
    async fn before(endpoint: &str) -> Self {
        let etcd = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            open: watch::Sender::new(true),
            held: Arc::default(),
            answered: Arc::default(),
        };
        let (open, held) = (gate.open.subscribe(), Arc::clone(&gate.held));
        let answered = Arc::clone(&gate.answered);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&etcd).await.unwrap();
                let (client_in, client_out) = client.into_split();
                let (server_in, server_out) = server.into_split();
                tokio::spawn(answer(server_in, client_out, Arc::clone(&answered)));
                tokio::spawn(forward(client_in, server_out, open.clone(), Arc::clone(&held)));
            }
        });
        gate
    }

    /// Waits until the client has sent this text into the shut gate.
    async fn until_held(&self, text: &str) {
        within(async {
            while !contains(&self.held, text) {
                // Between two looks: who fills it tells nobody.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn answer(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    answered: Arc<Mutex<Vec<u8>>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        answered.lock().unwrap().extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

fn contains(bytes: &Mutex<Vec<u8>>, text: &str) -> bool {
    bytes.lock().unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
    held: Arc<Mutex<Vec<u8>>>,
) {
    let mut waiting = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let is_open = *open.borrow_and_update();
        if is_open && !waiting.is_empty() {
            if to.write_all(&waiting).await.is_err() {
                return;
            }
            waiting.clear();
        }
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    waiting.extend_from_slice(&buffer[..count]);
                    if !*open.borrow() {
                        held.lock().unwrap().extend_from_slice(&buffer[..count]);
                    }
                }
            },
            _ = open.changed() => {}
        }
    }
    // The client is gone; what it sent is still on its way.
    drop(open.wait_for(|open| *open).await);
    let _sent = to.write_all(&waiting).await;
}

/// The leader is frozen while a write of it is on its way, and thawed when its lease is gone: etcd refuses the write,
/// though nothing but the fence speaks against it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_frozen_past_its_lease_cannot_move_the_ledger_with_a_write_under_way() {
    let cluster = Cluster::start(1).unwrap();
    let gate = Gate::before(&cluster.endpoint(0)).await;
    let people = People::new(connect(&cluster.endpoint(0)).await);
    let frozen = Controller::start(&gate.endpoint, "frozen");
    people.until_leads("frozen").await;
    people.creates("a").await;
    people.until_mirrored("a", 10).await;

    gate.open.send_replace(false);
    people.act(&["a"], &Action::Global).await;
    gate.until_held("/bulkhead/ledger/namespaces/a").await;
    frozen.signal(Signal::STOP);
    // The next leader does nothing, so that the late write meets everything as it was read.
    let election = people.keys.election();
    let campaign = Candidate::campaign(&people.store, &election, "next", Duration::from_mins(1));
    let next = within(campaign).await.unwrap();
    let ledger = people.keys.ledger_namespace(&ns("a"));
    let before = people.store.get(&ledger).await.unwrap().unwrap();
    gate.answered.lock().unwrap().clear();
    gate.open.send_replace(true);
    // The write arrives while its sender still sleeps. A refusal comes with the keys' state.
    within(async {
        while !contains(&gate.answered, "/bulkhead/ledger/namespaces/a")
            && people.store.get(&ledger).await.unwrap().as_ref() == Some(&before)
        {
            // Between two looks.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    frozen.signal(Signal::CONT);
    let after = people.store.get(&ledger).await.unwrap().unwrap();
    assert_eq!(before, after, "a former leader moved the ledger");
    assert_eq!(people.record("a").await.action, "global", "the action waits for the leader");
    next.resign().await.unwrap();
    people.until_net_id("a", 0).await;
    drop(frozen);
}

/// The same way, but the lease holds: the gate alone loses nothing, so the test above shows the fence at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_held_up_within_the_lease_is_carried_out() {
    let cluster = Cluster::start(1).unwrap();
    let gate = Gate::before(&cluster.endpoint(0)).await;
    let people = People::new(connect(&cluster.endpoint(0)).await);
    let controller = Controller::start(&gate.endpoint, "one");
    people.until_leads("one").await;
    people.creates("a").await;
    people.until_mirrored("a", 10).await;
    gate.open.send_replace(false);
    people.act(&["a"], &Action::Global).await;
    gate.until_held("/bulkhead/ledger/namespaces/a").await;
    gate.open.send_replace(true);
    people.until_net_id("a", 0).await;
    drop(controller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leads_when_the_leader_is_killed_and_at_once_when_it_is_stopped() {
    let cluster = Cluster::start(1).unwrap();
    let people = People::new(connect(&cluster.endpoint(0)).await);
    let killed = Controller::start(&cluster.endpoint(0), "killed");
    people.until_leads("killed").await;
    let mut stopped = Controller::start(&cluster.endpoint(0), "stopped");
    people.creates("a").await;
    people.until_net_id("a", 10).await;

    killed.signal(Signal::KILL);
    let since = Instant::now();
    people.until_leads("stopped").await;
    assert!(since.elapsed() < Duration::from_secs(8), "a lease of 2 s took {:?}", since.elapsed());
    people.creates("b").await;
    people.until_net_id("b", 11).await;

    let _last = Controller::start(&cluster.endpoint(0), "last");
    people.until_candidates(2).await;
    stopped.signal(Signal::TERM);
    let since = Instant::now();
    people.until_leads("last").await;
    assert!(since.elapsed() < Duration::from_millis(1500), "resigning took {:?}", since.elapsed());
    assert_eq!(stopped.0.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_waits_withdraws_when_it_is_stopped() {
    let cluster = Cluster::start(1).unwrap();
    let people = People::new(connect(&cluster.endpoint(0)).await);
    let _leader = Controller::start(&cluster.endpoint(0), "leader");
    people.until_leads("leader").await;
    let mut waiting = Controller::start(&cluster.endpoint(0), "waiting");
    people.until_candidates(2).await;
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.0.wait().unwrap().code(), Some(0));
    let left = people.store.list(&people.keys.election()).await.unwrap();
    assert_eq!(left.entries.len(), 1, "nobody has to wait behind it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_that_exists_is_not_overwritten_by_flags() {
    let cluster = Cluster::start(1).unwrap();
    let people = People::new(connect(&cluster.endpoint(0)).await);
    let config = br#"{"Name":"k8ssdn","Network":"172.12.0.0/16","HostSubnetLength":8,"Note":"mine"}"#;
    people.write(&people.keys.config(), config).await;
    let _controller = Controller::start(&cluster.endpoint(0), "one");
    people
        .until(&people.keys.ledger_cluster(), |value| {
            value.is_some_and(|value| String::from_utf8_lossy(value).contains("172.12.0.0/16"))
        })
        .await;
    assert_eq!(people.store.get(&people.keys.config()).await.unwrap().unwrap().value, config);
}

#[test]
fn wrong_flags_exit_with_2_and_name_themselves() {
    for (args, named) in [
        (&["--lease-ttl", "1"][..], "lease-ttl"),
        (&["--etcd-endpoints", "127.0.0.1:2379"], "127.0.0.1:2379"),
        (&["--log-level", "bulkhead=loud"], "log-level"),
        (&["--cluster-name", "a/b", "--network", "172.11.0.0/16"], "a/b"),
        (&["--nonsense"], "nonsense"),
    ] {
        let output = Command::new(BINARY).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(named), "{args:?}: {text}");
    }
}

//! What needs no etcd: the agent's answers, usage, help, completions, closed pipes.

use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::{AgentStatus, PodStatus, Reply, Request, receive, send};
use bulkhead_store::Store;
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{Answer, type_at};

/// A fake agent that answers one request.
fn agent(reply: Reply) -> (TempDir, JoinHandle<Request>) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("agent.sock")).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let request = receive(&[], &mut connection).unwrap();
        send(&mut connection, &reply).unwrap();
        request
    });
    (folder, thread)
}

async fn ask(reply: Reply, line: &str) -> (Answer, Request) {
    let (folder, thread) = agent(reply);
    let socket = folder.path().join("agent.sock");
    let answer = type_at(&Store::in_memory(), &format!("{line} --agent-socket {}", socket.display())).await;
    (answer, thread.join().unwrap())
}

fn pod(namespace: &str, name: &str) -> PodStatus {
    PodStatus {
        pod: name.into(),
        namespace: namespace.into(),
        container_id: "0123456789abcdef0123456789abcdef".into(),
        interface: "eth0".into(),
        host_interface: "bh1a2b3c".into(),
        addresses: vec!["172.11.0.2".parse().unwrap(), "fd00:77::2".parse().unwrap()],
        vni: 10,
        net_id: Some(10),
        ingress_bandwidth: Some(10_000_000),
        egress_bandwidth: None,
    }
}

#[tokio::test]
async fn the_agents_pods_are_listed() {
    let pods = vec![pod("red", "web"), PodStatus { net_id: None, ..pod("gone", "") }, pod("blue", "db")];
    let (answer, request) = ask(Reply::Pods(pods.clone()), "pod list").await;
    assert_eq!(request, Request::Pods);
    insta::assert_snapshot!("pods", answer.ok());
    let (answer, _) = ask(Reply::Pods(pods), "pod list -n red -o json").await;
    assert_eq!(answer.json()[0]["pod"], "web");
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
}

fn status(ready: bool) -> AgentStatus {
    AgentStatus {
        version: "0.1.0".into(),
        node: "node1".into(),
        host_ip: "10.0.0.1".into(),
        subnets: vec!["172.11.0.0/22".into()],
        mode: "multitenant".into(),
        ready,
        problems: if ready { vec![] } else { vec!["the node has no subnet yet".into()] },
        etcd_connected: ready,
        revision: 812,
        epoch: 1,
        etcd_silent_seconds: 42,
        namespaces: 12,
        nodes: 3,
        pods: 7,
        free_addresses: 1014,
        mtu: 1450,
        drops: [("verdict".to_owned(), 4)].into(),
        repairs: vec!["a pod's map entry was missing".into()],
    }
}

#[tokio::test]
async fn the_agents_status_is_shown_and_decides_the_exit_code() {
    let (answer, request) = ask(Reply::Status(Box::new(status(true))), "agent status").await;
    assert_eq!(request, Request::Status);
    insta::assert_snapshot!("agent_ready", answer.ok());
    let (answer, _) = ask(Reply::Status(Box::new(status(false))), "agent status").await;
    insta::assert_snapshot!("agent_not_ready", answer.out);
    assert_eq!(answer.code, 1);
    let (answer, _) = ask(Reply::Status(Box::new(status(true))), "-o json agent status").await;
    assert_eq!(answer.json()["freeAddresses"], json!(1014));
}

#[tokio::test]
async fn an_agent_that_is_away_or_fails_is_said() {
    let answer = type_at(&Store::in_memory(), "agent status --agent-socket /nonexistent/agent.sock").await;
    assert!(answer.refused().contains("does bulkhead-agent run on this node?"));
    let failure = Failure::new(Code::Internal, "broken", "");
    assert!(ask(Reply::Failed(failure), "pod list").await.0.refused().contains("broken"));
    assert!(ask(Reply::Done, "pod list").await.0.refused().contains("another question"));
}

#[tokio::test]
async fn wrong_usage_is_exit_code_two_and_changes_nothing() {
    let store = Store::in_memory();
    for line in [
        "",
        "tenant",
        "tenant join a",
        "tenant join --to b",
        "tenant join A --to b",
        "tenant isolate",
        "tenant create a --global --net-id 12",
        "tenant create a --net-id 5",
        "tenant isolate a --timeout 0s",
        "tenant isolate a --no-wait --timeout 1s",
        "node add-external lb1 --ip 127.0.0.1",
        "node add-external ../x --ip 10.0.0.1",
        "tenant list -o yaml",
        "tenant list --etcd-prefix no-slash",
        "completion tcsh",
    ] {
        let answer = type_at(&store, line).await;
        assert_eq!(answer.code, 2, "{line}: {answer:?}");
        assert!(answer.out.is_empty() && !answer.err.is_empty(), "{line}: {answer:?}");
    }
    assert!(store.list("").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn help_and_completions_go_to_stdout() {
    let store = Store::in_memory();
    insta::assert_snapshot!("help", type_at(&store, "-h").await.ok());
    insta::assert_snapshot!("help_tenant", type_at(&store, "tenant -h").await.ok());
    insta::assert_snapshot!("help_join", type_at(&store, "tenant join -h").await.ok());
    assert!(type_at(&store, "tenant list --help").await.ok().contains("--etcd-endpoints"));
    assert!(type_at(&store, "--version").await.ok().starts_with("bulkhead "));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(type_at(&store, &format!("completion {shell}")).await.ok().contains("isolate"), "{shell}");
    }
}

/// A pipe whose reader is gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_closed_pipe_is_no_error() {
    let mut err = Vec::new();
    for line in [&["bulkhead", "completion", "bash"][..], &["bulkhead", "--help"]] {
        let words = line.iter().map(std::ffi::OsString::from);
        let code = bulkhead_cli::run(words, Some(Store::in_memory()), &mut Closed, &mut err).await;
        assert_eq!(code, 0);
    }
    assert!(err.is_empty());
}

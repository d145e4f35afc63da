//! The real program on a real etcd, from an empty store to an empty list.

use std::process::{Command, Output, Stdio};

use bulkhead_core::keys::DEFAULT_PREFIX;
use bulkhead_core::{ClusterName, Keys};
use bulkhead_store::{Settings, Store, Timeouts, process};

use crate::leader::Leader;

struct Shell {
    endpoint: String,
}

impl Shell {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(line.split_whitespace()).env_clear().env("BULKHEAD_ETCD_ENDPOINTS", &self.endpoint);
        command.stdin(Stdio::null());
        command
    }

    async fn run(&self, line: &str) -> (i32, String, String) {
        let mut command = self.command(line);
        // The leader of this test lives on the runtime, so the wait must not block it.
        let done: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    }

    async fn ok(&self, line: &str) -> String {
        let (code, out, err) = self.run(line).await;
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrators_day() {
    let etcd = process::Cluster::start(1).unwrap();
    let shell = Shell { endpoint: etcd.endpoint(0) };
    let (code, _, err) = shell.run("tenant list").await;
    assert_eq!(code, 1);
    assert!(err.contains("bulkhead config init"), "{err}");
    shell.ok("config init --name k8ssdn --network 172.11.0.0/16 --host-subnet-length 10").await;

    let settings = Settings::new(&etcd.endpoints(), None, None, Timeouts::default()).unwrap();
    let store = Store::connect(settings).await.unwrap();
    let keys = Keys::new(DEFAULT_PREFIX, &ClusterName::new("k8ssdn").unwrap()).unwrap();
    let leader = Leader::start(&store, &keys);

    for name in ["blue", "red", "green"] {
        shell.ok(&format!("tenant create {name}")).await;
    }
    assert_eq!(shell.ok("tenant join red green --to blue").await, "green: NetID 12 -> 10\nred: NetID 11 -> 10\n");
    let list: serde_json::Value = serde_json::from_str(&shell.ok("tenant list -o json").await).unwrap();
    assert!(list.as_array().unwrap().iter().all(|row| row["netId"] == 10), "{list}");
    let (code, _, err) = shell.run("tenant join red --to nowhere").await;
    assert!(code == 1 && err.contains("nowhere does not exist yet"), "{err}");
    shell.ok("node add-external lb1 --ip 10.0.0.9").await;
    let (code, _, err) = shell.run("node remove lb1").await;
    assert!(code == 1 && err.contains("lb1 (10.0.0.9) loses its subnet") && err.contains("--yes"), "{err}");
    assert!(shell.ok("node list").await.contains("10.0.0.9"), "it is there still");
    shell.ok("node remove 10.0.0.9 --yes").await;

    // `| head -1`: the reader is gone before anything is written.
    let mut piped = shell.command("tenant list").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(piped.stdout.take());
    let ended = tokio::task::spawn_blocking(move || piped.wait_with_output().unwrap()).await.unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");

    drop(leader);
    let (code, _, err) = shell.run("tenant isolate red --timeout 200ms").await;
    assert!(code == 1 && err.contains("no controller leads"), "{err}");
    let (_, shown, _) = shell.run("tenant show red").await;
    assert!(shown.contains("ok"), "taken back: {shown}");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_ends_the_program_with_advice() {
    let shell = Shell { endpoint: "http://127.0.0.1:1".into() };
    let (code, out, err) = shell.run("tenant list").await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("127.0.0.1:1") && err.contains("check"), "{err}");
    assert!(err.contains("refused") && !err.contains("Error(") && err.lines().count() == 1, "{err}");
}

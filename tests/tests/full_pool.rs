//! A subnet without a free address: one that is freed can be used at once, for nothing of the pod that had it is left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::error::promised;
use bulkhead_tests::leak::{self, Holdings};
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::{Lab, LabError};

/// CNI's code of ours for a subnet without a free address.
const FULL: u64 = 101;
/// More than the five addresses of a subnet of eight.
const WORKERS: usize = 8;
const PODS: usize = 150;
const SOON: Duration = Duration::from_mins(1);

#[test]
fn an_address_that_is_given_out_again_at_once_serves() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).network("10.77.0.0/24", 3).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    lab.pod(0, "a", "first")?.delete()?;
    let before = Holdings::of(node)?;
    let (next, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || -> Result<(), LabError> {
        while next.fetch_add(1, Ordering::Relaxed) < PODS {
            let (netns, container) = node.sandbox("a", "p", "eth0")?;
            let deadline = Instant::now() + SOON;
            let add = loop {
                let answer = node.cni().call_for("ADD", &container).run()?;
                // Another's DEL is under way: what it frees is awaited by asking again.
                if answer.code() != Some(FULL) || Instant::now() >= deadline {
                    break answer.ok("ADD into a full subnet")?;
                }
                waited.fetch_add(1, Ordering::Relaxed);
            };
            let mut check = node.cni().call_for("CHECK", &container);
            check.with("prevResult", add.json()).run()?.ok("CHECK")?;
            node.cni().call_for("DEL", &container).run()?.ok("DEL")?;
            drop(netns);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| LabError::ThreadGone("pool".into()))?)
    })?;
    let waited = waited.into_inner();
    println!("{PODS} pods on five addresses; {waited} ADDs found none free");
    promised(waited > 0, || "the subnet was never full: this proves nothing".into())?;
    leak::await_same(node, &before)?;
    let pod = lab.pod(0, "a", "last")?;
    expect_reaches(pod.endpoint(), node.host())
}

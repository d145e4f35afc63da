//! Five hundred pods come and go, twenty at a time: no error, no leak, no address used twice.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::error::promised;
use bulkhead_tests::leak::{self, Holdings};
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::{Lab, LabError};

const PODS: usize = 500;
const AT_A_TIME: usize = 20;

#[test]
fn five_hundred_pods_come_and_go() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).network("10.77.0.0/16", 10).start()?;
    lab.create_tenants(&["a"])?;
    let node = lab.node(0);
    let stays = lab.pod(0, "a", "stays")?;
    // What the first pod brings for good is no leak.
    lab.pod(0, "a", "first")?.delete()?;
    let before = Holdings::of(node)?;
    let (next, addresses) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    let times = Mutex::new(Vec::new());
    let work = || -> Result<(), LabError> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= PODS {
                return Ok(());
            }
            let (netns, container) = node.sandbox("a", &format!("p{number}"), "eth0")?;
            let add = node.cni().call_for("ADD", &container).run()?.ok("ADD")?;
            times.lock().unwrap_or_else(PoisonError::into_inner).push(add.took);
            let address = add.json()["ips"][0]["address"].as_str().unwrap_or_default().to_owned();
            let fresh = addresses.lock().unwrap_or_else(PoisonError::into_inner).insert(address.clone());
            promised(fresh, || format!("{address} was given out twice within its rest"))?;
            let mut check = node.cni().call_for("CHECK", &container);
            check.with("prevResult", add.json()).run()?.ok("CHECK")?;
            node.cni().call_for("DEL", &container).run()?.ok("DEL")?;
            node.cni().call_for("DEL", &container).run()?.ok("DEL again")?;
            drop(netns);
        }
    };
    let begin = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| LabError::ThreadGone("churn".into()))?)
    })?;
    let mut times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    times.sort();
    println!(
        "{PODS} pods in {:.1} s; ADD, twenty at a time: p50 {:?}, p99 {:?}",
        begin.elapsed().as_secs_f64(),
        times[PODS / 2],
        times[PODS * 99 / 100]
    );
    promised(times[PODS * 99 / 100] < Duration::from_secs(5), || format!("ADD took {:?}", times[PODS * 99 / 100]))?;
    expect_reaches(stays.endpoint(), node.host())?;
    let pods = node.pods()?;
    promised(pods.len() == 1, || format!("pods are left: {pods:?}"))?;
    leak::await_same(node, &before)
}

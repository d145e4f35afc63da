//! The etcd that the chart brings along, on a real Kubernetes: installed from nothing, updated, a member's node without power,
//! and a backup put back under running pods, some of which it knows nothing of. Needs root, the programs of `build/build.sh`
//! and Go, for `scripts/etcd`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use bulkhead_kubernetes_tests::bulkhead::{self, NAMESPACE};
use bulkhead_kubernetes_tests::flow::{Pings, expect_whole};
use bulkhead_kubernetes_tests::tenants::{await_reach, create, declare, expect_silence};
use bulkhead_kubernetes_tests::{Cluster, Pod, bundled};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

const MEMBERS: [&str; 3] = ["control", "n1", "n2"];
/// A quota that is not the chart's default, and a history short enough to end within the test.
const QUOTA: f64 = 536_870_912.0;
const VALUES: [&str; 2] = ["etcd.bundled.quotaBackendBytes=536870912", "etcd.bundled.autoCompactionRetention=1m"];
/// While members are replaced the leader may move, and with it the controllers' lease.
const IN_FORCE: Duration = Duration::from_mins(2);

fn annotation(cluster: &Cluster, kind: &str, name: &str, key: &str) -> Result<String, LabError> {
    let object = cluster.kubectl().json(&["get", kind, name])?;
    Ok(object["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned())
}

/// Waits until a namespace's status begins so.
fn await_in_force(cluster: &Cluster, namespace: &str, beginning: &str) -> Result<(), LabError> {
    wait::until_or(&format!("{namespace}: {beginning}"), IN_FORCE, || {
        let found = annotation(cluster, "namespace", namespace, "bulkhead.dev/network-status");
        let found = found.map_err(|error| error.to_string())?;
        if found.starts_with(beginning) { Ok(()) } else { Err(found) }
    })
}

/// The VNIs and subnets that Kubernetes shows.
fn shown(cluster: &Cluster) -> Result<BTreeMap<String, String>, LabError> {
    let mut shown = BTreeMap::new();
    for (kind, key) in [("namespaces", "bulkhead.dev/vni"), ("nodes", "bulkhead.dev/subnet")] {
        let list = cluster.kubectl().json(&["get", kind])?;
        for object in list["items"].as_array().into_iter().flatten() {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let text = object["metadata"]["annotations"][key].as_str().unwrap_or_default();
            shown.insert(format!("{kind}/{name}"), text.to_owned());
        }
    }
    Ok(shown)
}

/// Waits until everything shows its number or subnet.
fn await_shown(cluster: &Cluster) -> Result<BTreeMap<String, String>, LabError> {
    wait::until_or("all numbers and subnets being shown", IN_FORCE, || {
        let shown = shown(cluster).map_err(|error| error.to_string())?;
        if shown.values().all(|text| !text.is_empty()) { Ok(shown) } else { Err(format!("{shown:?}")) }
    })
}

fn epoch(cluster: &Cluster) -> Result<u64, LabError> {
    let text = bundled::bulkhead(cluster, &["config", "show", "-o", "json"], &[])?;
    Ok(serde_json::from_str::<serde_json::Value>(&text).unwrap()["epoch"].as_u64().unwrap())
}

fn rolled_out(cluster: &Cluster, what: &str) -> Result<(), LabError> {
    cluster.kubectl().run(&["-n", NAMESPACE, "rollout", "status", what, "--timeout=5m"]).map(drop)
}

/// Waits until one of a member's metrics is as wanted.
fn await_metric(cluster: &Cluster, member: &str, name: &str, wanted: impl Fn(f64) -> bool) -> Result<(), LabError> {
    // What it compacted of its history a member tells a retention after it was started anew.
    wait::until_or(&format!("{name} of {member}"), Duration::from_mins(5), || {
        match bundled::metric(cluster, member, name) {
            Some(value) if wanted(value) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn flow(name: &str, from: &Pod, to: &Pod) -> Result<Pings, LabError> {
    Pings::start(name, from, to.address())
}

#[test]
fn the_bundled_etcd_is_updated_loses_a_node_and_is_restored_under_running_pods() -> Result<(), LabError> {
    let cluster = Cluster::builder().start()?;
    let kubectl = cluster.kubectl();
    bundled::install(&cluster, &VALUES)?;
    rolled_out(&cluster, "daemonset/bulkhead-etcd")?;
    for member in MEMBERS {
        await_metric(&cluster, member, "etcd_server_quota_backend_bytes", |bytes| (bytes - QUOTA).abs() < 1.0)?;
    }
    create(&cluster, &["a", "b"])?;
    let web = Pod::start(&cluster, "a", "web", "n1")?;
    let friend = Pod::start(&cluster, "a", "friend", "control")?;
    let stranger = Pod::start(&cluster, "b", "stranger", "control")?;
    await_reach(&friend, web.address())?;
    expect_silence(&stranger, web.address())?;

    println!("a rolling update of the members, while tenants and pods come");
    let running = flow("a/friend -> a/web", &friend, &web)?;
    kubectl.run(&["-n", NAMESPACE, "rollout", "restart", "daemonset/bulkhead-etcd"])?;
    thread::scope(|scope| {
        let update = scope.spawn(|| rolled_out(&cluster, "daemonset/bulkhead-etcd"));
        let mut number = 0;
        while !update.is_finished() {
            number += 1;
            let name = format!("during{number}");
            create(&cluster, &[&name])?;
            declare(&cluster, &name, Some("join:a"))?;
            await_in_force(&cluster, &name, "joined to a")?;
            let pod = Pod::start(&cluster, &name, "pod", "n2")?;
            await_reach(&pod, web.address())?;
            kubectl.run(&["-n", &name, "delete", "pod", "pod", "--wait=false"])?;
        }
        println!("  {number} tenants with a pod each meanwhile");
        assert!(number > 0);
        update.join().unwrap()
    })?;
    expect_whole(vec![running], "the members were updated")?;

    println!("a member's node without power");
    let running = flow("a/friend -> a/web", &friend, &web)?;
    cluster.power_off("n2")?;
    create(&cluster, &["c"])?;
    await_in_force(&cluster, "c", "isolated")?;
    cluster.power_on("n2")?;
    await_metric(&cluster, "n2", "etcd_server_has_leader", |has| has > 0.0)?;
    bulkhead::await_ready(&cluster)?;
    rolled_out(&cluster, "daemonset/bulkhead-etcd")?;
    expect_whole(vec![running], "a member's node was rebooted")?;

    println!("a backup, then a tenant and a node that it knows nothing of");
    await_shown(&cluster)?;
    let words = ["-n", NAMESPACE, "exec", "deploy/bulkhead-controller", "--", "bulkhead", "backup", "-"];
    // What a node's pods were before its power went is known a while longer: kubectl may have chosen one that starts just now.
    let backup = wait::until_or("a backup", IN_FORCE, || kubectl.run(&words).map_err(|error| error.to_string()))?;
    create(&cluster, &["young"])?;
    assert_eq!(cluster.add_node()?, "n3");
    cluster.await_ready("n3")?;
    let one = Pod::start(&cluster, "young", "one", "n1")?;
    let two = Pod::start(&cluster, "young", "two", "n3")?;
    let away = Pod::start(&cluster, "a", "away", "n3")?;
    await_reach(&one, two.address())?;
    await_reach(&away, web.address())?;
    let before = await_shown(&cluster)?;

    println!("the backup is put back");
    let running = vec![
        flow("young/one -> young/two", &one, &two)?,
        flow("a/away -> a/web", &away, &web)?,
        flow("a/friend -> a/web", &friend, &web)?,
    ];
    let was = epoch(&cluster)?;
    kubectl.run(&["-n", NAMESPACE, "scale", "deploy/bulkhead-controller", "--replicas=0"])?;
    wait::until_or("the backup being put back", Duration::from_mins(3), || {
        let put = bundled::bulkhead(&cluster, &["restore", "-", "--yes", "--force"], backup.as_bytes());
        put.map_err(|error| error.to_string())
    })?;
    kubectl.run(&["-n", NAMESPACE, "scale", "deploy/bulkhead-controller", "--replicas=2"])?;
    rolled_out(&cluster, "deployment/bulkhead-controller")?;
    wait::until_or("the epoch being raised", IN_FORCE, || match epoch(&cluster) {
        Ok(now) if now > was => Ok(()),
        other => Err(format!("{other:?}, was {was}")),
    })?;
    create(&cluster, &["after"])?;
    await_in_force(&cluster, "after", "isolated")?;
    await_in_force(&cluster, "young", "isolated")?;
    let after = await_shown(&cluster)?;
    for (name, text) in &before {
        assert_eq!(after.get(name), Some(text), "{name} is renumbered");
    }
    let new: u32 = after["namespaces/after"].parse().unwrap();
    assert!(before.values().all(|text| *text != after["namespaces/after"]) && new > 1 << 20, "{new}");
    let ledger = bundled::bulkhead(&cluster, &["node", "list"], &[])?;
    assert!(ledger.contains(&before["nodes/n3"]), "{ledger}");
    let friend_of_new = Pod::start(&cluster, "young", "three", "n2")?;
    await_reach(&friend_of_new, two.address())?;
    expect_silence(&friend_of_new, web.address())?;
    expect_whole(running, "a backup was put back")?;

    await_metric(&cluster, "n1", "etcd_debugging_mvcc_compact_revision", |revision| revision > 0.0)
}

//! Bulkhead on a real Kubernetes, by real pods: tenants through pods, services and `NodePorts`, and annotations under traffic, in
//! both modes of kube-proxy. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_kubernetes_tests::flow::{Pings, expect_whole};
use bulkhead_kubernetes_tests::tenants::{
    await_reach, await_silence, await_status, change_by_tool, create, declare, expect_silence,
};
use bulkhead_kubernetes_tests::{Cluster, Pod, ProxyMode, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// How soon kube-proxies have heard of a service, on a loaded machine where each way that is closed costs seconds to try.
const OPEN: Duration = Duration::from_mins(2);

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(proxy: ProxyMode) -> Result<Cluster, LabError> {
    // As kubeadm does without `--pod-network-cidr`; the other mode so is in `services.rs`.
    let knows_pods = proxy != ProxyMode::Nftables;
    let cluster = Cluster::builder().proxy(proxy).proxy_knows_pods(knows_pods).start()?;
    bulkhead::install(&cluster, &[])?;
    Ok(cluster)
}

/// Puts a service of its own name in front of a pod, by `ClusterIP` and by `NodePort`; gives the port.
fn serve(cluster: &Cluster, namespace: &str, pod: &str) -> Result<u64, LabError> {
    cluster.kubectl().run(&["-n", namespace, "expose", "pod", pod, "--type=NodePort", "--port=8080"])?;
    let service = cluster.kubectl().json(&["-n", namespace, "get", "service", pod])?;
    Ok(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap())
}

/// What of `a/web` a pod gets to see: its address, its service by address and by name, its port on every node.
fn ways(cluster: &Cluster, from: &Pod, web: &Pod, port: u64) -> Vec<(String, bool)> {
    let service = cluster.kubectl().json(&["-n", "a", "get", "service", "web"]).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let mut ways =
        vec![format!("{}:8080", web.address()), format!("{address}:8080"), "web.a.svc.cluster.local:8080".to_owned()];
    ways.extend(cluster.nodes().iter().map(|node| format!("{}:{port}", node.address())));
    ways.into_iter().map(|way| (way.clone(), from.fetches(&way).unwrap())).collect()
}

/// None of them.
fn none(ways: &[(String, bool)]) {
    assert!(ways.iter().all(|(_, reached)| !reached), "{ways:?}");
}

/// All of them, once kube-proxy has heard of the service.
fn await_all(cluster: &Cluster, from: &Pod, web: &Pod, port: u64) -> Result<(), LabError> {
    wait::until_or("every way being open", OPEN, || {
        let ways = ways(cluster, from, web, port);
        if ways.iter().all(|(_, reached)| *reached) { Ok(()) } else { Err(format!("{ways:?}")) }
    })
}

fn tenants_are_apart_on_every_way(proxy: ProxyMode) -> Result<(), LabError> {
    let cluster = start(proxy)?;
    create(&cluster, &["a", "b"])?;
    let web = Pod::start(&cluster, "a", "web", "n1")?;
    let friend = Pod::start(&cluster, "a", "friend", "n2")?;
    let beside = Pod::start(&cluster, "b", "beside", "n1")?;
    let away = Pod::start(&cluster, "b", "away", "n2")?;
    let open = Pod::start(&cluster, "kube-system", "open", "n2")?;
    let port = serve(&cluster, "a", "web")?;
    for friend in [&web, &friend, &open] {
        await_all(&cluster, friend, &web, port)?;
    }
    for stranger in [&beside, &away] {
        expect_silence(stranger, web.address())?;
        none(&ways(&cluster, stranger, &web, port));
    }
    println!("what enters a NodePort from outside is nobody's tenant: it is let in");
    let outside = &cluster.underlay().outside;
    for node in cluster.nodes() {
        let url = format!("http://{}:{port}/", node.address());
        wait::until_or(&format!("{url} being open to the outside"), OPEN, || {
            let fetched = outside.exec("curl", &["-sf", "-m", "3", "-o", "/dev/null", &url], &[]);
            fetched.map_err(|error| error.to_string())
        })?;
    }
    println!("a join by annotation opens every way, under traffic within a and with the open one");
    let flows = vec![
        Pings::start("a/friend -> a/web", &friend, web.address())?,
        Pings::start("kube-system/open -> a/web", &open, web.address())?,
    ];
    declare(&cluster, "b", Some("join:a"))?;
    await_reach(&away, web.address())?;
    for guest in [&beside, &away] {
        await_all(&cluster, guest, &web, port)?;
    }
    await_status(&cluster, "b", "joined to a")?;
    println!("an etcd action on an annotated namespace is refused, by `kubectl bulkhead` the annotation changes");
    change_by_tool(&cluster, &["isolate", "b"])?;
    await_status(&cluster, "b", "isolated")?;
    await_silence(&away, web.address())?;
    none(&ways(&cluster, &beside, &web, port));
    println!("a wrong one changes nothing and says so");
    declare(&cluster, "b", Some("join:b"))?;
    await_status(&cluster, "b", "refused")?;
    declare(&cluster, "b", Some("join:nowhere"))?;
    await_status(&cluster, "b", "waiting")?;
    expect_silence(&away, web.address())?;
    create(&cluster, &["nowhere"])?;
    await_status(&cluster, "b", "joined to nowhere")?;
    expect_whole(flows, "tenants were joined and parted")
}

#[test]
fn tenants_are_apart_on_every_way_with_iptables() -> Result<(), LabError> {
    let _turn = turn();
    tenants_are_apart_on_every_way(ProxyMode::Iptables)
}

#[test]
fn tenants_are_apart_on_every_way_with_nftables() -> Result<(), LabError> {
    let _turn = turn();
    tenants_are_apart_on_every_way(ProxyMode::Nftables)
}

//! Bulkhead on a real Kubernetes, by real pods: tenants through pods, services and `NodePorts`, annotations under traffic, and
//! what happens to a cluster in a year, in both modes of kube-proxy. Needs root and the programs of `build/build.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_kubernetes_tests::flow::{Pings, expect_whole};
use bulkhead_kubernetes_tests::tenants::{
    await_reach, await_silence, await_status, create, declare, kubectl_bulkhead, status,
};
use bulkhead_kubernetes_tests::{Cluster, Pod, ProxyMode, bulkhead};
use bulkhead_tests::error::LabError;
use bulkhead_tests::wait;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(proxy: ProxyMode) -> Result<Cluster, LabError> {
    let cluster = Cluster::builder().proxy(proxy).start()?;
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
    wait::until_or("every way being open", Duration::from_secs(15), || {
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
        assert!(!stranger.pings(web.address())?);
        none(&ways(&cluster, stranger, &web, port));
    }
    println!("what enters a NodePort from outside is nobody's tenant: it is let in");
    let outside = &cluster.underlay().outside;
    for node in cluster.nodes() {
        outside.exec(
            "curl",
            &["-sf", "-m", "3", "-o", "/dev/null", &format!("http://{}:{port}/", node.address())],
            &[],
        )?;
    }
    println!("a join by annotation opens every way, under traffic within a and with the open one");
    let flows = vec![
        Pings::start("a/friend -> a/web", &friend, web.address(), Duration::from_secs(40))?,
        Pings::start("kube-system/open -> a/web", &open, web.address(), Duration::from_secs(40))?,
    ];
    declare(&cluster, "b", Some("join:a"))?;
    await_reach(&away, web.address())?;
    for guest in [&beside, &away] {
        await_all(&cluster, guest, &web, port)?;
    }
    await_status(&cluster, "b", "joined to a")?;
    println!("an etcd action on an annotated namespace is refused, by `kubectl bulkhead` the annotation changes");
    kubectl_bulkhead(&cluster, &["tenant", "isolate", "b"])?;
    await_status(&cluster, "b", "isolated")?;
    await_silence(&away, web.address())?;
    none(&ways(&cluster, &beside, &web, port));
    println!("a wrong one changes nothing and says so");
    declare(&cluster, "b", Some("join:b"))?;
    await_status(&cluster, "b", "refused")?;
    declare(&cluster, "b", Some("join:nowhere"))?;
    await_status(&cluster, "b", "waiting")?;
    assert!(!away.pings(web.address())?);
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

#[test]
fn updates_and_faults_cost_no_running_pod_a_packet() -> Result<(), LabError> {
    let _turn = turn();
    let cluster = start(ProxyMode::Iptables)?;
    let kubectl = cluster.kubectl();
    create(&cluster, &["a", "b"])?;
    let web = Pod::start(&cluster, "a", "web", "n1")?;
    let friend = Pod::start(&cluster, "a", "friend", "n2")?;
    let stranger = Pod::start(&cluster, "b", "stranger", "n2")?;
    let flows = |during: u64| -> Result<_, LabError> {
        Ok(vec![
            Pings::start("a/friend -> a/web", &friend, web.address(), Duration::from_secs(during))?,
            Pings::start("a/web -> a/friend", &web, friend.address(), Duration::from_secs(during))?,
        ])
    };
    println!("a rolling update of the agents, then of the controllers");
    let running = flows(60)?;
    for what in ["daemonset/bulkhead-agent", "deployment/bulkhead-controller"] {
        kubectl.run(&["-n", bulkhead::NAMESPACE, "rollout", "restart", what])?;
        kubectl.run(&["-n", bulkhead::NAMESPACE, "rollout", "status", what, "--timeout=60s"])?;
    }
    bulkhead::await_ready(&cluster)?;
    assert!(!stranger.pings(web.address())?);
    expect_whole(running, "agents and controllers were updated")?;

    println!("kubelet and containerd restarted");
    let running = flows(30)?;
    for node in ["n1", "n2"] {
        cluster.restart_containerd(node)?;
        cluster.restart_kubelet(node)?;
    }
    cluster.await_nodes_ready()?;
    expect_whole(running, "kubelets and containerds were restarted")?;

    println!("etcd and the API server away: pods run");
    let running = flows(30)?;
    cluster.stop_etcd()?;
    assert!(friend_reaches(&cluster, "n2", &web)?);
    cluster.start_etcd()?;
    wait::until("the API server answering again", Duration::from_mins(1), || {
        cluster.kubectl().run(&["get", "--raw", "/readyz"]).ok()
    })?;
    expect_whole(running, "etcd was stopped and started")?;
    assert!(friend.pings(web.address())? && !stranger.pings(web.address())?);

    println!("a node without power: its pods come back with addresses that are nobody else's");
    let before = web.address();
    cluster.reboot("n1")?;
    wait::until("the pod being started again", Duration::from_mins(2), || {
        web.restarts().is_ok_and(|restarts| restarts > 0).then_some(())
    })?;
    bulkhead::await_ready(&cluster)?;
    let web = Pod::find(kubectl, "a", "web")?;
    println!("  a/web: {before}, now {}", web.address());
    await_reach(&friend, web.address())?;
    await_silence(&stranger, web.address())?;

    println!("a new tenant after all that");
    create(&cluster, &["late"])?;
    await_status(&cluster, "late", "isolated")?;
    let (one, two) = (Pod::start(&cluster, "late", "one", "n1")?, Pod::start(&cluster, "late", "two", "n2")?);
    await_reach(&one, two.address())?;
    assert!(!one.pings(web.address())? && status(&cluster, "a")?.starts_with("isolated"));
    Ok(())
}

/// Whether a node reaches a pod, without the API server's help.
fn friend_reaches(cluster: &Cluster, node: &str, pod: &Pod) -> Result<bool, LabError> {
    let node = cluster.node(node)?;
    Ok(node.exec(&["ping", "-c", "3", "-i", "0.2", "-W", "1", &pod.address().to_string()], &[]).is_ok())
}

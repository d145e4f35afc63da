//! Probes that tell the truth, numbers that are right, and a port that is taken.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use bulkhead_tests::cluster::ClusterSpec;
use bulkhead_tests::error::promised;
use bulkhead_tests::http::{self, Answer};
use bulkhead_tests::probe::expect_silence;
use bulkhead_tests::{Lab, LabError, Node, PodSpec, wait};

const SOON: Duration = Duration::from_mins(1);

fn address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 9470).into()
}

fn get(node: &Node, path: &str) -> Result<Answer, LabError> {
    http::get(node.netns(), address(), path)
}

/// The value of a series, by the start of its line.
fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn probes_and_numbers_tell_the_truth() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).bare().start()?;
    let node = lab.node(0);
    println!("alive, but not ready, and why");
    node.launch_agent()?;
    wait::until_or("an answer", SOON, || get(node, "/healthz").map_err(|error| error.to_string()))?;
    wait::until_or("a reason", SOON, || {
        let ready = get(node, "/readyz").map_err(|error| error.to_string())?;
        if ready.status == 503 && ready.body.contains("bulkhead-controller") { Ok(()) } else { Err(ready.body) }
    })?;
    promised(get(node, "/healthz")?.status == 200, || "an agent that waits is not healthy".into())?;
    promised(get(node, "/")?.status == 404, || "something is served at /".into())?;
    promised(value(&get(node, "/metrics")?.body, "bulkhead_agent_ready") == Some(0.0), || "ready".into())?;
    println!("ready");
    let arguments = ClusterSpec::default().init_arguments();
    lab.cli().ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    lab.controllers().start(0)?;
    node.await_ready()?;
    wait::until_or("readiness", SOON, || {
        let ready = get(node, "/readyz").map_err(|error| error.to_string())?;
        if ready.status == 200 { Ok(()) } else { Err(ready.body) }
    })?;
    println!("numbers");
    lab.create_tenants(&["a", "b"])?;
    let pods =
        [lab.pod_with(0, "a", "1", &PodSpec::limited(0, 10_000_000))?, lab.pod(0, "b", "2")?, lab.pod(0, "b", "3")?];
    expect_silence(pods[0].endpoint(), pods[1].endpoint(), node.host())?;
    let bad = node.cni().call_for("CHECK", pods[0].container()).run()?;
    promised(bad.exit != 0, || "CHECK without prevResult succeeded".into())?;
    let [_, _, third] = pods;
    third.delete()?;
    let expected = [
        ("bulkhead_agent_ready", 1.0),
        ("bulkhead_agent_pods", 2.0),
        ("bulkhead_agent_limited_pods{direction=\"egress\"}", 1.0),
        ("bulkhead_agent_limited_pods{direction=\"ingress\"}", 0.0),
        ("bulkhead_agent_cni_calls_total{command=\"ADD\",code=\"0\"}", 3.0),
        ("bulkhead_agent_cni_call_duration_seconds_count{command=\"DEL\",code=\"0\"}", 1.0),
        ("bulkhead_agent_namespaces", 2.0),
        ("bulkhead_agent_nodes", 1.0),
        ("bulkhead_agent_etcd_connected", 1.0),
        ("bulkhead_agent_dropped_packets_total{reason=\"policed\"}", 0.0),
    ];
    let positive = ["bulkhead_agent_dropped_packets_total{reason=\"isolated\"}", "bulkhead_agent_ledger_revision"];
    // A call is counted when it is over for the agent: its caller may have had the answer before.
    wait::until_or("the numbers being right", SOON, || {
        let metrics = get(node, "/metrics").map_err(|error| error.to_string())?.body;
        for (series, expected) in expected {
            let found = value(&metrics, series);
            if found != Some(expected) {
                return Err(format!("{series} is {found:?}, not {expected}\n{metrics}"));
            }
        }
        match positive.into_iter().find(|series| value(&metrics, series).is_none_or(|count| count <= 0.0)) {
            Some(series) => Err(format!("{series} is {:?}\n{metrics}", value(&metrics, series))),
            None => Ok(()),
        }
    })?;
    println!("etcd away: still ready, and said");
    node.cut_off()?;
    wait::until_or("the body saying so", SOON, || {
        let ready = get(node, "/readyz").map_err(|error| error.to_string())?;
        if ready.status == 200 && ready.body.contains("etcd") { Ok(()) } else { Err(ready.body) }
    })?;
    node.reconnect()?;
    println!("idle connections keep nobody out for long");
    let held: Vec<_> = (0..40).map(|_| node.netns().run(|| std::net::TcpStream::connect(address()))).collect();
    wait::until_or("an answer beside them", SOON, || {
        get(node, "/healthz")
            .map_err(|error| error.to_string())
            .and_then(|answer| if answer.status == 200 { Ok(()) } else { Err(answer.body) })
    })?;
    drop(held);
    Ok(())
}

#[test]
fn a_port_that_is_taken_stops_nothing() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).bare().start()?;
    let node = lab.node(0);
    let arguments = ClusterSpec::default().init_arguments();
    lab.cli().ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    lab.controllers().start(0)?;
    let taken = node.netns().run(|| TcpListener::bind(address()))?;
    node.start_agent()?;
    lab.create_tenants(&["a"])?;
    let pod = lab.pod(0, "a", "1")?;
    let told = |wanted: bool| {
        wait::until_or("the status", SOON, || {
            let problems = node.status().map_err(|error| error.to_string())?.problems;
            let said = problems.iter().any(|text| text.contains("9470") && text.contains("--listen"));
            if said == wanted { Ok(()) } else { Err(format!("{problems:?}")) }
        })
    };
    told(true)?;
    drop(taken);
    println!("free again, it is served");
    told(false)?;
    wait::until_or("it being ready there", SOON, || match get(node, "/readyz") {
        Ok(ready) if ready.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    pod.check()
}

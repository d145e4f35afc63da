//! Records as people write them with etcdctl, and a K8S-OVS cluster found without a ledger.

use std::time::Duration;

use bulkhead_tests::cluster::{CONFIG, ROOT, netnamespace_key};
use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::Matrix;
use bulkhead_tests::probe::{Proto, await_reaches};
use bulkhead_tests::tenancy::Tenancy;
use bulkhead_tests::wait;
use bulkhead_tests::{Endpoint, Lab, LabError};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

/// Waits until a namespace's record is as wanted.
fn record(lab: &Lab, namespace: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value, LabError> {
    wait::until_or(&format!("the leader's answer in {namespace}'s record"), SOON, || {
        let record = lab.etcd().get_json(&netnamespace_key(namespace)).map_err(|error| error.to_string())?;
        if wanted(&record) { Ok(record) } else { Err(record.to_string()) }
    })
}

fn ledger(lab: &Lab, namespace: &str) -> Result<Value, LabError> {
    lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/namespaces/{namespace}"))
}

fn has_error(record: &Value) -> bool {
    record["Error"].as_str().is_some_and(|text| !text.is_empty())
}

#[test]
fn records_written_by_hand_are_carried_out_or_answered() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).start()?;
    let put = |namespace: &str, json: &str| lab.etcd().put(&netnamespace_key(namespace), json);
    println!("NetID absent, 0, a free number");
    put("absent", r#"{"NetName":"absent"}"#)?;
    put("zero", r#"{"NetName":"zero","NetID":0,"Action":"","Namespace":""}"#)?;
    put("number", r#"{"NetName":"number","NetID":300924,"Action":"","Namespace":"","Owner":"me"}"#)?;
    let absent = record(&lab, "absent", |record| record["NetID"].as_u64().is_some())?;
    promised(absent["NetID"].as_u64() >= Some(10) && absent["NetID"] == ledger(&lab, "absent")?["netId"], || {
        absent.to_string()
    })?;
    wait::until("zero being global", SOON, || (ledger(&lab, "zero").ok()?["netId"] == 0).then_some(()))?;
    wait::until("number keeping its number", SOON, || {
        (ledger(&lab, "number").ok()?["netId"] == 300_924).then_some(())
    })?;
    println!("what cannot be is answered in the record, and nothing is given out");
    for (namespace, json) in [
        ("taken", r#"{"NetName":"taken","NetID":300924}"#),
        ("reserved", r#"{"NetName":"reserved","NetID":5}"#),
        ("negative", r#"{"NetName":"negative","NetID":-1}"#),
        ("huge", r#"{"NetName":"huge","NetID":16777216}"#),
        ("text", r#"{"NetName":"text","NetID":"12"}"#),
        ("misnamed", r#"{"NetName":"other"}"#),
        ("verb", r#"{"NetName":"verb","Action":"merge"}"#),
    ] {
        put(namespace, json)?;
        let answered = record(&lab, namespace, has_error)?;
        println!("    {namespace}: {}", answered["Error"]);
        if namespace != "verb" {
            promised(ledger(&lab, namespace)?.is_null(), || format!("{namespace} is in the ledger"))?;
        }
    }
    println!("an action, unknown fields, a NetID edited by hand, a record deleted");
    put("number", r#"{"NetName":"number","NetID":300924,"Action":"join","Namespace":"absent","Owner":"me"}"#)?;
    let joined = record(&lab, "number", |record| record["Action"] == "")?;
    promised(joined["NetID"] == absent["NetID"] && joined["Owner"] == "me", || joined.to_string())?;
    put("number", r#"{"NetName":"number","NetID":777,"Action":"","Namespace":"","Owner":"me"}"#)?;
    record(&lab, "number", |record| record["NetID"] == absent["NetID"] && record["Owner"] == "me")?;
    put("number", r#"{"NetName":"number","NetID":777,"Action":"join","Namespace":"number"}"#)?;
    let refused = record(&lab, "number", has_error)?;
    promised(refused["Action"] == "join", || refused.to_string())?;
    put("late", r#"{"NetName":"late","Action":"join","Namespace":"target"}"#)?;
    record(&lab, "late", has_error)?;
    put("target", r#"{"NetName":"target"}"#)?;
    let target = record(&lab, "target", |record| record["NetID"].as_u64().is_some())?;
    record(&lab, "late", |record| record["NetID"] == target["NetID"] && !has_error(record))?;
    put("broken", "{")?;
    lab.etcd().delete(&netnamespace_key("zero"))?;
    wait::until("zero being gone", SOON, || ledger(&lab, "zero").ok()?.is_null().then_some(()))?;
    promised(ledger(&lab, "broken")?.is_null(), || "broken is in the ledger".into())
}

#[test]
fn a_k8s_ovs_cluster_is_taken_over_as_it_is() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).bare().start()?;
    let namespace = |name: &str, net_id: u32| {
        (netnamespace_key(name), format!(r#"{{"NetName":"{name}","NetID":{net_id},"Action":"","Namespace":""}}"#))
    };
    let subnet = |node: usize, third: u8| {
        let (name, ip) = (lab.node(node).name(), lab.node(node).address());
        (
            format!("{ROOT}/subnets/{ip}"),
            format!(r#"{{"Host":"{name}","HostIP":"{ip}","Subnet":"10.77.{third}.0/24","Assign":false}}"#),
        )
    };
    lab.etcd().put_all(&[
        (CONFIG.to_owned(), r#"{"Name":"k8ssdn","Network":"10.77.0.0/16","HostSubnetLength":8,"ServiceNetwork":"10.96.0.0/16","PluginName":"k8s-ovs-multitenant"}"#.to_owned()),
        namespace("a", 300_924),
        namespace("b", 11),
        namespace("c", 300_924),
        namespace("d", 10),
        namespace("kube-system", 0),
        subnet(0, 7),
        subnet(1, 3),
    ])?;
    lab.controllers().start(0)?;
    lab.start_agents()?;
    for (name, net_id) in [("a", 300_924), ("b", 11), ("c", 300_924), ("d", 10), ("kube-system", 0)] {
        wait::until_or(&format!("{name} being taken over"), SOON, || {
            let entry = ledger(&lab, name).map_err(|error| error.to_string())?;
            if entry["netId"] == net_id { Ok(()) } else { Err(entry.to_string()) }
        })?;
    }
    for (number, subnet) in [(0, "10.77.7.0/24"), (1, "10.77.3.0/24")] {
        let status = lab.node(number).status()?;
        promised(status.subnets == [subnet], || format!("{}: {:?}", status.node, status.subnets))?;
    }
    let wanted = [(0, "a"), (1, "b"), (1, "c"), (0, "d"), (1, "kube-system")];
    let pods = wanted.iter().map(|(node, namespace)| lab.pod(*node, namespace, "p")).collect::<Result<Vec<_>, _>>()?;
    let endpoints: Vec<Endpoint> = pods.iter().map(|pod| pod.endpoint().clone()).collect();
    let mut tenancy = Tenancy::isolated(&["a", "b", "d"]);
    tenancy.join("c", "a");
    tenancy.global("kube-system");
    Matrix::expect(&endpoints, |from, to| tenancy.may(from, to))?;
    println!("a new namespace gets a number that nobody has; actions work as ever");
    lab.create_tenants(&["new"])?;
    let new = ledger(&lab, "new")?;
    let fresh =
        [&new["vni"], &new["netId"]].iter().all(|number| [10, 11, 300_924].iter().all(|used| **number != *used));
    promised(fresh, || new.to_string())?;
    lab.etcd().put(&netnamespace_key("b"), r#"{"NetName":"b","NetID":11,"Action":"join","Namespace":"a"}"#)?;
    await_reaches(&endpoints[1], &endpoints[0], Proto::Tcp, SOON).map(drop)
}

/// Waits until every agent shows a problem with this text in it, or none at all if it is empty.
fn everyone_says(lab: &Lab, text: &str) -> Result<(), LabError> {
    wait::until_or(&format!("every agent saying {text:?}"), SOON, || {
        for node in lab.nodes() {
            let problems = node.status().map_err(|error| error.to_string())?.problems;
            let right = if text.is_empty() { problems.is_empty() } else { problems.iter().any(|p| p.contains(text)) };
            if !right {
                return Err(format!("{}: {problems:?}", node.name()));
            }
        }
        Ok(())
    })
}

#[test]
fn a_network_changed_under_nodes_is_said_by_everyone_and_not_followed() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let (here, there) = (lab.pod(0, "a", "1")?, lab.pod(1, "a", "1")?);
    let config = lab.etcd().get(CONFIG)?.unwrap_or_default();
    everyone_says(&lab, "")?;
    let before = lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/cluster"))?;
    for (wrong, said) in [
        (config.replace("10.77.0.0", "10.78.0.0"), "10.78.0.0/16"),
        (config.replace(r#""HostSubnetLength":8"#, r#""HostSubnetLength":9"#), "HostSubnetLength 9"),
        ("{".to_owned(), "not valid"),
    ] {
        promised(wrong != config, || format!("nothing was changed in {config}"))?;
        lab.etcd().put(CONFIG, &wrong)?;
        everyone_says(&lab, said)?;
        let now = lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/cluster"))?;
        promised(now == before, || format!("before {before}, now {now}"))?;
    }
    lab.etcd().delete(CONFIG)?;
    everyone_says(&lab, "is gone")?;
    println!("pods are attached and reached as ever, by agents that start meanwhile, too");
    lab.node(0).restart_agent()?;
    everyone_says(&lab, "is gone")?;
    let late = lab.pod(0, "a", "late")?;
    for pod in [&here, &late] {
        await_reaches(pod.endpoint(), there.endpoint(), Proto::Tcp, SOON)?;
    }
    promised(late.address().octets()[..2] == [10, 77], || format!("a new pod at {}", late.address()))?;
    lab.etcd().put(CONFIG, &config)?;
    everyone_says(&lab, "")
}

#[test]
fn a_node_that_is_removed_while_its_agent_runs_stays_removed() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    let node = lab.node(1);
    let entry = format!("{ROOT}/bulkhead/ledger/nodes/{}", node.address());
    lab.bulkhead(&format!("node remove --yes {}", node.address()))?;
    let says_so = || {
        wait::until_or("the node saying that it was removed", SOON, || {
            let problems = node.status().map_err(|error| error.to_string())?.problems;
            let said = problems.iter().any(|problem| problem.contains("was removed from the cluster"));
            if said { Ok(()) } else { Err(format!("{problems:?}")) }
        })
    };
    says_so()?;
    println!("whatever happens to etcd");
    lab.etcd().stop_all()?;
    lab.etcd().start_all()?;
    lab.create_tenants(&["a"])?;
    lab.settle()?;
    says_so()?;
    promised(lab.etcd().get(&entry)?.is_none(), || "it registered itself again".into())?;
    println!("until its agent is restarted");
    node.restart_agent()?;
    lab.pod(1, "a", "p").map(drop)
}

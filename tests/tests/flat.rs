//! `k8s-ovs-subnet`: one flat network, every `NetID` reads as 0; and the mode can change while pods run.

use std::time::Duration;

use bulkhead_tests::cluster::CONFIG;
use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::Matrix;
use bulkhead_tests::probe::{Proto, await_reaches, await_silence};
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::{Endpoint, Lab, LabError};

#[test]
fn everybody_reaches_everybody() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).mode("flat").start()?;
    let plugin = lab.etcd().get_json(CONFIG)?["PluginName"].clone();
    promised(plugin == "k8s-ovs-subnet", || format!("PluginName is {plugin}"))?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(1, "a", "2")?, lab.pod(0, "b", "1")?, lab.pod(1, "b", "2")?];
    let mut endpoints: Vec<Endpoint> = pods.iter().map(|pod| pod.endpoint().clone()).collect();
    endpoints.extend(lab.nodes().iter().map(|node| node.host().clone()));
    Matrix::expect(&endpoints, |_, _| true)?;
    println!("switched to multitenant, namespaces are apart; what is allowed in both modes does not notice");
    let flows = Undisturbed::start(&[(&endpoints[0], &endpoints[1]), (&endpoints[4], &endpoints[3])])?;
    let config = lab.etcd().get_json(CONFIG)?;
    let text = config.to_string().replace("k8s-ovs-subnet", "k8s-ovs-multitenant");
    lab.etcd().put(CONFIG, &text)?;
    await_silence(&endpoints[0], &endpoints[3], Proto::Tcp, Duration::from_secs(20))?;
    await_silence(&endpoints[2], &endpoints[1], Proto::Tcp, Duration::from_secs(20))?;
    lab.etcd().put(CONFIG, &config.to_string())?;
    await_reaches(&endpoints[0], &endpoints[3], Proto::Tcp, Duration::from_secs(20))?;
    await_reaches(&endpoints[2], &endpoints[1], Proto::Tcp, Duration::from_secs(20))?;
    flows.expect("a change of mode")
}

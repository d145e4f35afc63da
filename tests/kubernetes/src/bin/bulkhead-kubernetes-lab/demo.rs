//! `demo`: from a cluster without a network to two tenants that are joined and parted again, with a voice.

use std::process::ExitCode;
use std::time::Instant;

use bulkhead_kubernetes_tests::flow::{Pings, expect_whole};
use bulkhead_kubernetes_tests::tenants::{await_reach, await_silence, await_status, create, declare, kubectl_bulkhead};
use bulkhead_kubernetes_tests::{Cluster, Pod, bulkhead, helm};
use bulkhead_tests::LabError;

/// Shows it; the cluster is removed by the caller.
pub fn show(cluster: &Cluster) -> Result<ExitCode, LabError> {
    println!("\nA cluster without a network: its nodes are not ready.");
    println!("{}", cluster.kubectl().run(&["get", "nodes"])?);
    println!("$ helm install bulkhead deploy/chart --namespace bulkhead-system ...");
    let begin = Instant::now();
    cluster.import(&bulkhead::image(cluster)?)?;
    helm::install(cluster, "bulkhead", &[])?;
    bulkhead::await_ready(cluster)?;
    println!("All nodes are ready and names are resolved after {:.1} s.\n", begin.elapsed().as_secs_f64());
    println!("{}", cluster.kubectl().run(&["get", "nodes"])?);

    create(cluster, &["a", "b"])?;
    let web = Pod::start(cluster, "a", "web", "n1")?;
    let db = Pod::start(cluster, "a", "db", "n2")?;
    let client = Pod::start(cluster, "b", "client", "n2")?;
    cluster.kubectl().run(&["-n", "a", "expose", "pod", "web", "--port=8080"])?;
    println!(
        "Two tenants. Within a: {}. From b to a: {}; to the service web.a: {}.\n",
        word(db.fetches(&format!("{}:8080", web.address()))?),
        word(client.fetches(&format!("{}:8080", web.address()))?),
        word(client.fetches("web.a.svc.cluster.local:8080")?)
    );

    let flows =
        vec![Pings::start("a/db -> a/web", &db, web.address())?, Pings::start("a/web -> a/db", &web, db.address())?];
    for (command, network, reached) in [
        ("kubectl annotate namespace b bulkhead.dev/network=join:a", Some("join:a"), true),
        ("kubectl annotate namespace b bulkhead.dev/network=isolated", Some("isolated"), false),
    ] {
        println!("$ {command}");
        let begin = Instant::now();
        declare(cluster, "b", network)?;
        if reached {
            await_reach(&client, web.address())?;
            println!("  pods of b reach pods of a after {:.1} s", begin.elapsed().as_secs_f64());
        } else {
            await_status(cluster, "b", "isolated")?;
            println!("  b says so after {:.1} s", begin.elapsed().as_secs_f64());
            await_silence(&client, web.address())?;
        }
        println!("  from b to the service web.a: {}\n", word(client.fetches("web.a.svc.cluster.local:8080")?));
        println!("$ kubectl bulkhead tenant list\n{}", kubectl_bulkhead(cluster, &["tenant", "list"])?);
    }
    println!("What the traffic within a felt of all that:");
    expect_whole(flows, "b was joined to a and parted from it")?;
    Ok(ExitCode::SUCCESS)
}

const fn word(reached: bool) -> &'static str {
    if reached { "an answer" } else { "nothing" }
}

//! A node's cable is pulled: no process dies, nobody is refused, packets just do not come. The node goes on by its last state and
//! says so; with the cable back it obeys what was changed meanwhile.

use std::process::Command;

use bulkhead_tests::binaries::Binaries;

use super::*;

/// How long the cable is out at least.
const OUT: Duration = Duration::from_secs(20);
/// How soon a node that is back obeys, on a loaded machine; it takes seconds.
const CAUGHT_UP: Duration = Duration::from_mins(2);
const NODE: &str = "n3";

/// What `bulkhead agent status` says on the node.
fn agent_status(scene: &Scene) -> Result<String, LabError> {
    let machine = scene.cluster.node(NODE)?.pid().unwrap();
    let socket = format!("/proc/{machine}/root/run/bulkhead/agent.sock");
    let mut command = Command::new(Binaries::find()?.cli()?);
    command.args(["agent", "status", "--agent-socket", &socket]);
    let output = command.output().tried(|| "run bulkhead agent status".into())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn await_said(scene: &Scene, wanted: &str) -> Result<(), LabError> {
    wait::until_or(&format!("the agent of {NODE} saying {wanted:?}"), MENDED, || {
        let said = agent_status(scene).map_err(|error| error.to_string())?;
        if said.contains(wanted) { Ok(()) } else { Err(said) }
    })
}

pub fn pull_a_cable(scene: &mut Scene) -> Result<(), LabError> {
    let cluster = &scene.cluster;
    let kubectl = cluster.kubectl();
    let guests = ["parts-1", "parts-2", "joins-1", "joins-2"];
    create(cluster, &guests)?;
    declare(cluster, "parts-2", Some("join:parts-1"))?;
    let wanted = guests.iter().map(|guest| (*guest, "guest")).chain([("a", "here"), ("a", "too")]);
    for (namespace, name) in wanted {
        pod::ask(kubectl, namespace, name, NODE)?;
    }
    let endpoint = |namespace: &str, name: &str| -> Result<Endpoint, LabError> {
        endpoints::of_pod(&Pod::find(kubectl, namespace, name)?)
    };
    let [one, two, three, four] = guests.map(|guest| endpoint(guest, "guest"));
    let (parting, joining) = ((one?, two?), (three?, four?));
    let (here, too, node) = (endpoint("a", "here")?, endpoint("a", "too")?, endpoints::of_node(cluster, NODE)?);
    works(&parting.1, &parting.0)?;
    works(&here, &scene.web)?;
    apart(&joining.1, &joining.0)?;

    let within: [Pair<'_>; 3] = [(&here, &too), (&too, &here), (&node, &here)];
    let (pings, steady) = (traffic::ping(&within)?, traffic::connect(&within, 5)?);
    let across = traffic::connect(&[(&here, &scene.web), (&scene.friend, &here)], 5)?;
    let begin = Instant::now();
    cluster.cut_off(NODE)?;
    declare(cluster, "parts-2", Some("isolated"))?;
    declare(cluster, "joins-2", Some("join:joins-1"))?;
    let changed = [("parts-2", "isolated"), ("joins-2", "joined to joins-1")];
    for (namespace, status) in changed {
        wait::until(&format!("{namespace} being {status}"), MENDED, || await_status(cluster, namespace, status).ok())?;
    }
    await_said(scene, "not connected for")?;
    unreachable(&scene.friend, here.address())?;
    thread::sleep(OUT.saturating_sub(begin.elapsed()));
    println!("    after {:.1} s {NODE} judges by its last state", begin.elapsed().as_secs_f64());
    works(&parting.1, &parting.0)?;
    apart(&joining.1, &joining.0)?;

    cluster.reconnect(NODE)?;
    let back = Instant::now();
    wait::until("the join made meanwhile being in force", CAUGHT_UP, || {
        reaches(&joining.1, joining.0.address(), Proto::Tcp, SILENCE).unwrap_or(false).then_some(())
    })?;
    wait::until("the parting made meanwhile being in force", CAUGHT_UP, || {
        (!reaches(&parting.1, parting.0.address(), Proto::Tcp, SILENCE).unwrap_or(true)).then_some(())
    })?;
    println!("    it has caught up {:.1} s after the cable was back", back.elapsed().as_secs_f64());
    works(&joining.1, &joining.0)?;
    apart(&parting.1, &parting.0)?;
    await_said(scene, "connected, revision")?;
    traffic::expect_none_lost(pings, "the cable pulled, within the node")?;
    traffic::expect_whole(steady, "the cable pulled, within the node")?;
    // TCP tries again ever more seldom.
    let goals: Vec<u64> = across.iter().map(|connection| connection.progress().answered + 5).collect();
    for (connection, goal) in across.iter().zip(goals) {
        wait::until_or(&format!("{} going on", connection.name()), MENDED, || {
            let progress = connection.progress();
            if progress.answered >= goal { Ok(()) } else { Err(progress.to_string()) }
        })?;
    }
    traffic::expect_whole(across, "the cable pulled, to other nodes")?;
    kubectl.wait("condition=Ready", &["node", NODE], NOTICED)?;
    scene.delete("a", "here")?;
    scene.delete("a", "too")?;
    kubectl.run(&[&["delete", "namespace", "--timeout=5m"], &guests[..]].concat())?;
    bulkhead::await_ready(cluster)
}

//! Join, isolate and global under traffic: what is allowed before and after loses nothing; what changes, changes within a
//! second; the same with an agent that is killed, frozen or cut off from etcd, and with ten changes within one second.

use std::time::{Duration, Instant};

use bulkhead_tests::cluster::netnamespace_key;
use bulkhead_tests::error::promised;
use bulkhead_tests::matrix::Matrix;
use bulkhead_tests::probe::{Proto, await_reaches, await_silence};
use bulkhead_tests::tenancy::Tenancy;
use bulkhead_tests::undisturbed::Undisturbed;
use bulkhead_tests::{Endpoint, Lab, LabError};

const SECOND: Duration = Duration::from_secs(1);

/// A change is in force within a second; where the machine lets threads wait, each of those that it passes through (the tool, etcd,
/// the controller, the agent, the probe) may have to.
fn within_a_second(lateness: Duration) -> Duration {
    SECOND + 10 * lateness
}

struct Scene {
    lab: Lab,
    a: [Endpoint; 3],
    b: [Endpoint; 3],
    c: Endpoint,
    hosts: Vec<Endpoint>,
}

impl Scene {
    /// What must never notice a change of `b`: within each namespace and with the hosts, on one node and across.
    fn flows(&self) -> Result<Undisturbed, LabError> {
        Undisturbed::start(&[
            (&self.a[0], &self.a[1]),
            (&self.b[0], &self.b[1]),
            (&self.b[0], &self.b[2]),
            (&self.hosts[0], &self.b[1]),
            (&self.b[0], &self.hosts[1]),
        ])
    }

    fn all(&self) -> Vec<Endpoint> {
        let pods = self.a.iter().chain(&self.b).chain([&self.c]);
        pods.chain(&self.hosts).cloned().collect()
    }

    fn expect(&self, model: impl FnOnce(&mut Tenancy)) -> Result<(), LabError> {
        let mut tenancy = Tenancy::isolated(&["a", "b", "c"]);
        model(&mut tenancy);
        Matrix::expect(&self.all(), |from, to| tenancy.may(from, to)).map(drop)
    }

    fn act(&self, action: &str, target: &str) -> Result<(), LabError> {
        let record = format!(r#"{{"NetName":"b","Action":"{action}","Namespace":"{target}"}}"#);
        self.lab.etcd().put(&netnamespace_key("b"), &record)
    }
}

#[test]
fn a_change_is_felt_only_by_what_it_changes() -> Result<(), LabError> {
    let lab = Lab::builder().start()?;
    lab.create_tenants(&["a", "b", "c"])?;
    let pod = |node, namespace, name| lab.pod(node, namespace, name);
    let pods = [
        pod(0, "a", "1")?,
        pod(1, "a", "2")?,
        pod(2, "a", "3")?,
        pod(0, "b", "1")?,
        pod(1, "b", "2")?,
        pod(0, "b", "3")?,
        pod(2, "c", "1")?,
    ];
    let end = |index: usize| pods[index].endpoint().clone();
    let hosts = lab.nodes().iter().map(|node| node.host().clone()).collect();
    let scene = Scene { a: [end(0), end(1), end(2)], b: [end(3), end(4), end(5)], c: end(6), hosts, lab };

    each_verb(&scene)?;
    two_move_together(&scene)?;
    with_a_node_that_does_not_hear(&scene, "agent killed")?;
    with_a_node_that_does_not_hear(&scene, "agent frozen")?;
    with_a_node_that_does_not_hear(&scene, "cut off from etcd")?;
    ten_within_a_second(&scene)
}

fn each_verb(scene: &Scene) -> Result<(), LabError> {
    let (lab, a, b) = (&scene.lab, &scene.a, &scene.b);
    for (verb, opens) in [("join b --to a", true), ("isolate b", false), ("global b", true), ("isolate b", false)] {
        println!("tenant {verb}");
        let flows = scene.flows()?;
        lab.bulkhead(&format!("tenant {verb}"))?;
        for (from, to) in [(&b[0], &a[0]), (&b[0], &a[1]), (&a[2], &b[1])] {
            for proto in Proto::ALL {
                let took = if opens {
                    await_reaches(from, to, proto, 10 * SECOND)?
                } else {
                    await_silence(from, to, proto, 10 * SECOND)?
                };
                promised(took < within_a_second(flows.lateness()), || {
                    format!("{verb}: {proto} {from} to {to} changed after {took:?}")
                })?;
            }
        }
        scene.expect(|tenancy| match verb {
            "join b --to a" => tenancy.join("b", "a"),
            "global b" => tenancy.global("b"),
            _ => {}
        })?;
        flows.expect(verb)?;
    }
    Ok(())
}

fn two_move_together(scene: &Scene) -> Result<(), LabError> {
    println!("b and c, joined with each other, move to a in one transaction: traffic between them goes on");
    scene.lab.bulkhead("tenant join c --to b")?;
    await_reaches(&scene.b[0], &scene.c, Proto::Tcp, 10 * SECOND)?;
    let flows = Undisturbed::start(&[(&scene.b[0], &scene.c), (&scene.c, &scene.b[1]), (&scene.a[0], &scene.a[2])])?;
    scene.lab.bulkhead("tenant join b c --to a")?;
    await_reaches(&scene.c, &scene.a[0], Proto::Tcp, 10 * SECOND)?;
    scene.expect(|tenancy| {
        tenancy.join("b", "a");
        tenancy.join("c", "a");
    })?;
    flows.expect("join b c --to a")?;
    scene.lab.bulkhead("tenant isolate b c")?;
    await_silence(&scene.b[0], &scene.a[0], Proto::Icmp, 10 * SECOND).map(drop)
}

/// Node n2 does not hear of the change: it judges what it receives by its last state, the others by the new one; then it
/// catches up. What is allowed before and after never notices.
fn with_a_node_that_does_not_hear(scene: &Scene, how: &str) -> Result<(), LabError> {
    println!("join and isolate with n2's {how}");
    let (lab, node) = (&scene.lab, scene.lab.node(1));
    let deafen = || match how {
        "agent killed" => node.kill_agent(),
        "agent frozen" => node.freeze_agent(true),
        _ => node.cut_off(),
    };
    let heal = || match how {
        "agent killed" => node.start_agent(),
        "agent frozen" => node.freeze_agent(false),
        _ => node.reconnect(),
    };
    let flows = scene.flows()?;
    deafen()?;
    lab.bulkhead("tenant join b --to a")?;
    await_reaches(&scene.b[0], &scene.a[0], Proto::Tcp, 10 * SECOND)?;
    await_silence(&scene.b[0], &scene.a[1], Proto::Icmp, 10 * SECOND)?;
    heal()?;
    await_reaches(&scene.b[0], &scene.a[1], Proto::Tcp, 60 * SECOND)?;
    scene.expect(|tenancy| tenancy.join("b", "a"))?;
    deafen()?;
    lab.bulkhead("tenant isolate b")?;
    await_silence(&scene.b[0], &scene.a[0], Proto::Icmp, 10 * SECOND)?;
    await_silence(&scene.a[1], &scene.b[0], Proto::Icmp, 10 * SECOND)?;
    heal()?;
    // Both are on n2: only its own state can tell them apart.
    let took = await_silence(&scene.a[1], &scene.b[1], Proto::Icmp, 60 * SECOND)?;
    println!("    n2 has caught up after {took:?}");
    scene.expect(|_| {})?;
    flows.expect(how)
}

fn ten_within_a_second(scene: &Scene) -> Result<(), LabError> {
    println!("ten changes within one second");
    let flows = scene.flows()?;
    // How long as many calls of etcdctl take that change nothing.
    let begin = Instant::now();
    for _ in 0..10 {
        scene.lab.etcd().get(&netnamespace_key("b"))?;
    }
    let calls = begin.elapsed();
    let begin = Instant::now();
    for number in 0..10 {
        if number % 2 == 0 { scene.act("join", "a")? } else { scene.act("isolate", "")? }
    }
    let took = begin.elapsed();
    println!("    written within {took:?}");
    await_silence(&scene.b[0], &scene.a[0], Proto::Icmp, 10 * SECOND)?;
    scene.expect(|_| {})?;
    scene.act("join", "a")?;
    await_reaches(&scene.b[0], &scene.a[1], Proto::Tcp, 10 * SECOND)?;
    scene.expect(|tenancy| tenancy.join("b", "a"))?;
    flows.expect("ten changes")?;
    promised(took < 2 * calls + SECOND, || {
        format!("ten writes took {took:?}, ten reads {calls:?}: not a test of haste")
    })
}

//! An agent killed with SIGKILL, twenty times, under traffic and under ADDs: no packet of a running pod is lost, nothing
//! leaks.

use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::error::promised;
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::leak::{self, Holdings};
use bulkhead_tests::probe::{Proto, await_silence, expect_reaches};
use bulkhead_tests::{Lab, LabError, PodSpec};

const KILLS: usize = 20;
/// How long an ADD may take that meets a dying agent again and again.
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn twenty_kills_lose_nothing_and_leak_nothing() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a", "b"])?;
    let pods = [
        lab.pod(0, "a", "1")?,
        lab.pod(0, "a", "2")?,
        lab.pod(1, "a", "3")?,
        lab.pod_with(0, "a", "4", &PodSpec::limited(100_000_000, 100_000_000))?,
        lab.pod(1, "b", "1")?,
    ];
    let [one, near, far, limited, foreign] = [0, 1, 2, 3, 4].map(|index: usize| pods[index].endpoint());
    let node = lab.node(0);
    expect_reaches(one, far)?;
    node.restart_agent()?;
    let before = Holdings::of(node)?;
    let flows = [
        PacketFlow::udp(one, near)?,
        PacketFlow::udp(one, far)?,
        PacketFlow::udp(far, one)?,
        PacketFlow::udp(far, limited)?,
        PacketFlow::ping(one, far.address())?,
        PacketFlow::ping(node.host(), far.address())?,
        PacketFlow::ping(far, node.address())?,
    ];
    for _ in 0..KILLS {
        node.restart_agent()?;
    }
    let mut wrong = Vec::new();
    for flow in flows {
        let name = flow.name().to_owned();
        let loss = flow.stop();
        println!("    {name}: {loss}");
        if !loss.is_none() {
            wrong.push(format!("{name}: {loss}"));
        }
    }
    promised(wrong.is_empty(), || wrong.join("\n"))?;
    println!("nothing leaked, the tenants are still apart, CHECK passes");
    leak::await_same(node, &before)?;
    await_silence(one, foreign, Proto::Icmp, Duration::from_secs(5))?;
    pods.iter().try_for_each(bulkhead_tests::Pod::check)?;
    killed_during_adds(&lab)?;
    leak::await_same(node, &before)
}

/// A runtime that gets an error calls DEL and tries again: so does this one.
fn killed_during_adds(lab: &Lab) -> Result<(), LabError> {
    println!("ADDs while the agent is killed: each comes through in the end, none is half done");
    let node = lab.node(0);
    thread::scope(|scope| {
        let adds: Vec<_> = (0..4)
            .map(|worker| {
                scope.spawn(move || -> Result<(), LabError> {
                    for number in 0..5 {
                        let (netns, container) = node.sandbox("a", &format!("k{worker}-{number}"), "eth0")?;
                        let begin = Instant::now();
                        let add = loop {
                            let answer = node.cni().call_for("ADD", &container).run()?;
                            if answer.exit == 0 || begin.elapsed() > PATIENCE {
                                break answer;
                            }
                            node.cni().call_for("DEL", &container).run()?.ok("DEL after a failed ADD")?;
                        };
                        add.ok("ADD under kills")?;
                        node.cni().call_for("DEL", &container).run()?.ok("DEL under kills")?;
                        drop(netns);
                    }
                    Ok(())
                })
            })
            .collect();
        // Then it lives: where an ADD takes longer than an agent is let live, none would ever come through.
        let mut kills = 0;
        while kills < 4 * KILLS && adds.iter().any(|add| !add.is_finished()) {
            node.restart_agent()?;
            kills += 1;
        }
        println!("    {kills} kills");
        adds.into_iter().try_for_each(|add| add.join().map_err(|_| LabError::ThreadGone("an ADD".into()))?)
    })?;
    node.await_ready()?;
    bulkhead_tests::wait::until_or("every DEL being carried out", PATIENCE, || {
        let pods = node.pods().map_err(|error| error.to_string())?;
        if pods.len() == 3 { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    })
}

//! An uninstall leaves nothing of Bulkhead on a node, is refused while the agent runs, and the node can be taken up again.

use bulkhead_tests::cluster::ClusterSpec;
use bulkhead_tests::error::promised;
use bulkhead_tests::leak::Holdings;
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::{Lab, LabError, Node, PodSpec};

/// Exit and what it said.
fn uninstall(node: &Node) -> Result<(bool, String), LabError> {
    let command = node.agent_command()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut arguments: Vec<String> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    arguments.push("--uninstall".into());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = node.netns().output(&program, &arguments, &[])?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn an_uninstall_leaves_nothing_on_the_node() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).bare().start()?;
    let node = lab.node(0);
    let before = Holdings::of(node)?;
    let arguments = ClusterSpec::default().init_arguments();
    lab.cli().ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    lab.controllers().start(0)?;
    lab.start_agents()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod_with(0, "a", "2", &PodSpec::limited(1_000_000, 1_000_000))?];
    let far = lab.pod(1, "a", "far")?;
    expect_reaches(pods[0].endpoint(), far.endpoint())?;

    println!("under a running agent");
    let (done, said) = uninstall(node)?;
    promised(!done && said.contains("stop it first"), || format!("not refused: {said}"))?;
    expect_reaches(pods[0].endpoint(), far.endpoint())?;

    println!("after it was stopped, twice");
    node.stop_agent()?;
    for _ in 0..2 {
        let (done, said) = uninstall(node)?;
        promised(done, || format!("it failed: {said}"))?;
    }
    let difference = before.difference(&Holdings::of(node)?);
    // The lab keeps it. All else an uninstall that has ended has taken away.
    let difference: Vec<&str> = difference.lines().filter(|line| !line.ends_with("files: agent.log")).collect();
    promised(difference.is_empty(), || difference.join("\n"))?;
    let tables = node.netns().exec("nft", &["list", "tables"], &[])?;
    promised(!tables.contains("bulkhead"), || tables)?;
    let qdiscs = node.netns().exec("tc", &["qdisc", "show", "dev", "eth0"], &[])?;
    promised(!qdiscs.contains("clsact"), || qdiscs)?;

    println!("taken up again");
    drop(pods);
    node.start_agent()?;
    let again = lab.pod(0, "a", "again")?;
    expect_reaches(again.endpoint(), far.endpoint())
}

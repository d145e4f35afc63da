//! The agent as its container runs it: with the capabilities of `docs/agent-in-kubernetes.md` and no other, a root file system and
//! a /proc/sys that are read-only, and nothing writable but its own folders. Everything works, and each capability is needed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::error::promised;
use bulkhead_tests::probe::{PATIENCE, Proto, expect_reaches, reaches_with};
use bulkhead_tests::process::Process;
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::{Lab, LabError, Node, PodSpec, wait};
use serde_json::json;

/// As the manifest has them; the documentation's table is held to be the same.
const NEEDED: [&str; 2] = ["NET_ADMIN", "SYS_ADMIN"];
const SOON: Duration = Duration::from_mins(1);

/// The command in a mount namespace where only the node's own folders can be written to, with these capabilities.
fn confined(node: &Node, command: &Command, capabilities: &[&str]) -> Command {
    let dir = node.dir().display().to_string();
    let set = capabilities.iter().fold("-all".to_owned(), |set, one| format!("{set},+{}", one.to_lowercase()));
    let arguments: Vec<String> = command.get_args().map(|one| format!("'{}'", one.to_string_lossy())).collect();
    // Its folders are put back behind the read-only root, as volumes of a pod are.
    let script = format!(
        "for sub in run state bpf cni; do mount --rbind {dir}/$sub {dir}/$sub; done && \
         mount -o remount,bind,ro / && mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         for top in $(awk '$2 ~ \"^/(tmp|var|run|dev/shm|work|root)(/|$)\" && $2 !~ \"^{dir}/\" {{ print $2 }}' /proc/self/mounts); \
         do mount -o remount,bind,ro $top 2>/dev/null || true; done; \
         exec setpriv --no-new-privs --bounding-set {set} --inh-caps {set} --securebits +noroot,+noroot_locked --ambient-caps {set} \
         {} {}",
        command.get_program().display(),
        arguments.join(" ")
    );
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "sh", "-ec", &script]);
    inside
}

fn launch(node: &Node, capabilities: &[&str], log: &Path) -> Result<Process, LabError> {
    let command = confined(node, &node.agent_command()?, capabilities);
    Process::start(node.netns(), "confined agent", command, log)
}

fn await_ready(node: &Node, agent: &Process) -> Result<(), LabError> {
    wait::until_or("the confined agent being ready", SOON, || match node.status() {
        Ok(status) if status.ready => Ok(()),
        Ok(status) => Err(format!("{:?}", status.problems)),
        Err(error) => Err(format!("{error}\n{}", agent.log_tail(10))),
    })
}

#[test]
fn the_agent_needs_these_capabilities_and_no_other() -> Result<(), LabError> {
    let text = include_str!("../../docs/agent-in-kubernetes.md");
    let listed = text.lines().filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next());
    promised(listed.eq(NEEDED), || "docs/agent-in-kubernetes.md lists other capabilities than this test".into())?;

    let lab = Lab::builder().nodes(2).api_servers().agent_flag("--resync", "1").start()?;
    lab.create_tenants(&["a"])?;
    let (node, api) = (lab.node(0), lab.node(0).api()?);
    // Before the confined agent: its mounts are copied when it starts, as this machine's may not propagate.
    let pod = lab.pod_with(0, "a", "limited", &PodSpec::limited(10_000_000, 10_000_000))?;
    node.stop_agent()?;
    let log = node.dir().join("confined.log");
    let agent = launch(node, &NEEDED, &log)?;
    await_ready(node, &agent)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap_or_default();
    // CAP_NET_ADMIN is 12, CAP_SYS_ADMIN 21 (capability.h).
    let wanted = format!("{:016x}", 1_u64 << 12 | 1 << 21);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let held = status.lines().find(|line| line.starts_with(set)).unwrap_or_default();
        promised(held.ends_with(&wanted), || format!("{held} instead of {wanted}"))?;
    }

    println!("pods, limits, services");
    let (near, far) = (lab.pod(0, "a", "near")?, lab.pod(1, "a", "far")?);
    expect_reaches(pod.endpoint(), near.endpoint())?;
    expect_reaches(pod.endpoint(), far.endpoint())?;
    expect_reaches(node.host(), far.endpoint())?;
    let vip = std::net::Ipv4Addr::new(10, 96, 0, 1);
    service::install(node.netns(), &[Service::new(vip, 80, far.address(), 7)])?;
    promised(reaches_with(pod.endpoint(), vip, 80, Proto::Tcp, 32, PATIENCE)?, || "a service is dead".into())?;
    pod.check()?;
    println!("limits that change");
    api.put("limited-uid", "a", "limited", &json!({"kubernetes.io/egress-bandwidth": "20M"}));
    wait::until_or("the new limit", SOON, || {
        let pods = node.pods().map_err(|error| error.to_string())?;
        let held = pods.iter().find(|pod| pod.pod == "limited").and_then(|pod| pod.egress_bandwidth);
        if held == Some(20_000_000) { Ok(()) } else { Err(format!("{held:?}: {:?}", node.status())) }
    })?;
    println!("repairs");
    node.netns().exec("sh", &["-ec", "nft flush ruleset; ip link del bulkhead0; iptables -P FORWARD DROP"], &[])?;
    wait::until_or("repairs", SOON, || {
        match reaches_with(pod.endpoint(), far.address(), 7, Proto::Tcp, 32, Duration::from_millis(300)) {
            Ok(true) => Ok(()),
            _ => Err(format!("{:?}", node.status().map(|status| status.problems))),
        }
    })?;
    println!("DEL, and a restart");
    near.delete()?;
    agent.terminate(SOON)?;
    let again = launch(node, &NEEDED, &log)?;
    await_ready(node, &again)?;
    expect_reaches(pod.endpoint(), far.endpoint())?;
    wait::until_or("no problem being left", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.is_empty() { Ok(()) } else { Err(format!("{problems:?}")) }
    })?;
    again.terminate(SOON)?;

    for missing in NEEDED {
        println!("without CAP_{missing}");
        let rest: Vec<&str> = NEEDED.into_iter().filter(|one| *one != missing).collect();
        let log = node.dir().join(format!("without-{missing}.log"));
        let agent = launch(node, &rest, &log)?;
        let (netns, container) =
            node.sandbox("a", &format!("without-{}", missing.to_lowercase().replace('_', "-")), "eth0")?;
        // Asked again until it is known why: at first there may be nobody to answer.
        let answer = wait::until_or("what it lacks being said", SOON, || {
            let answer = node.cni().call_for("ADD", &container).run().map_err(|error| error.to_string())?;
            let said = agent.log_tail(50);
            let told = answer.exit == 0 || said.contains("CAP_") || answer.stdout.contains("CAP_");
            if told { Ok(answer) } else { Err(said) }
        })?;
        println!("    {}", answer.stdout.trim());
        promised(answer.exit != 0, || format!("a pod was attached without CAP_{missing}, so it is not needed"))?;
        agent.kill()?;
        drop(netns);
        expect_reaches(pod.endpoint(), far.endpoint())?;
    }
    Ok(())
}

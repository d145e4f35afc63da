//! Agents, controllers and tools in surroundings that are wrong: each says what is wrong and what to do, and ends or waits;
//! none does half of its work.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::cluster::ROOT;
use bulkhead_tests::error::promised;
use bulkhead_tests::process::Process;
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError, Node};

/// Runs the agent in its wrong surroundings until its log or its end says one of `words`; then it must not be ready.
fn complains(node: &Node, what: &str, command: Command, words: &[&str]) -> Result<(), LabError> {
    let log = node.dir().join(format!("{}.log", what.replace(' ', "-")));
    let agent = Process::start(node.netns(), what, command, &log)?;
    wait::until_or(&format!("{what}: a complaint that names one of {words:?}"), Duration::from_mins(1), || {
        let text = agent.log_tail(30);
        if words.iter().any(|word| text.to_lowercase().contains(&word.to_lowercase())) { Ok(()) } else { Err(text) }
    })?;
    let said = agent.log_tail(3);
    println!("    {what}: {said}");
    promised(!said.contains("panicked"), || format!("{what}: a panic\n{said}"))?;
    let ready = node.status().is_ok_and(|status| status.ready);
    promised(!ready, || format!("{what}: the agent says that it is ready"))?;
    promised(!node.dir().join("cni/10-bulkhead.conflist").exists(), || format!("{what}: the CNI config is there"))?;
    agent.kill()
}

/// The same agent without a capability.
fn without(capabilities: &str, command: &Command) -> Command {
    let mut bounded = Command::new("setpriv");
    bounded.args(["--bounding-set", capabilities, "--inh-caps", capabilities]).arg(command.get_program());
    bounded.args(command.get_args());
    bounded
}

fn replaced(command: &Command, flag: &str, value: &str) -> Command {
    let mut other = Command::new(command.get_program());
    let mut skip = false;
    for argument in command.get_args() {
        if std::mem::take(&mut skip) {
            other.arg(value);
        } else {
            skip = argument == flag;
            other.arg(argument);
        }
    }
    other
}

#[test]
fn an_agent_says_what_is_wrong_around_it() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(2).bare().start()?;
    lab.cli().ok(&[
        "config",
        "init",
        "--name",
        "k8ssdn",
        "--network",
        "10.77.0.0/16",
        "--host-subnet-length",
        "8",
        "--service-network",
        "10.96.0.0/16",
        "--mode",
        "multitenant",
    ])?;
    lab.controllers().start(0)?;
    let node = lab.node(0);
    let command = node.agent_command()?;
    println!("the kernel");
    complains(
        node,
        "without CAP_BPF",
        without("-bpf,-sys_admin", &command),
        &["CAP_BPF", "permission", "not permitted"],
    )?;
    complains(
        node,
        "without CAP_NET_ADMIN",
        without("-net_admin", &command),
        &["CAP_NET_ADMIN", "permission", "not permitted"],
    )?;
    let plain = node.dir().join("run/no-bpffs");
    complains(
        node,
        "without bpffs",
        replaced(&command, "--bpf-dir", &plain.display().to_string()),
        &["bpffs", "bpf file system"],
    )?;
    node.netns().ip("link add theirs type vxlan id 7 dstport 4789 dev eth0\nlink set theirs up")?;
    complains(node, "someone's VXLAN device", command_again(node)?, &["theirs", "4789"])?;
    node.netns().ip("link del theirs")?;
    node.netns().ip("link add bulkhead0 type bridge")?;
    complains(node, "a device of our name", command_again(node)?, &["bulkhead0"])?;
    node.netns().ip("link del bulkhead0")?;
    let taken = node.netns().run(|| std::net::UdpSocket::bind("0.0.0.0:4789"))?;
    complains(node, "the port taken", command_again(node)?, &["4789"])?;
    drop(taken);
    println!("etcd and flags");
    // By the state that the agents before have cached, one starts without etcd.
    let forgetful = replaced(&command, "--state-dir", &node.dir().join("no-state").display().to_string());
    let unreachable = replaced(&forgetful, "--etcd-endpoints", "http://10.123.0.1:1");
    complains(node, "etcd out of reach", unreachable, &["etcd"])?;
    for (flag, value) in [
        ("--node-ip", "10.9.9.9"),
        ("--node-ip", "127.0.0.1"),
        ("--node-ip", "x"),
        ("--node-name", "a/b"),
        ("--etcd-endpoints", "ftp://x"),
    ] {
        complains(
            node,
            &format!("{flag} {}", value.replace('/', "_")),
            replaced(&command, flag, value),
            &[value, flag],
        )?;
    }
    println!("set right, it starts");
    node.start_agent()?;
    lab.create_tenants(&["a"])?;
    let pod = lab.pod(0, "a", "p")?;
    bulkhead_tests::probe::expect_reaches(pod.endpoint(), node.host())?;
    a_stranger_on_the_socket(node)?;
    another_machines_address(&lab)?;
    pod.check()
}

fn another_machines_address(lab: &Lab) -> Result<(), LabError> {
    println!("two machines with one address: the second takes no pods");
    let (first, second) = (lab.node(0), lab.node(1));
    second.netns().ip(&format!("address add {}/32 dev lo", first.address()))?;
    let command = replaced(&second.agent_command()?, "--node-ip", &first.address().to_string());
    let registered = format!("registered by the node {}", first.name());
    complains(second, "another machine's address", command, &[&registered])?;
    second.netns().ip(&format!("address del {}/32 dev lo", first.address()))?;
    let entry = lab.etcd().get_json(&format!("{ROOT}/bulkhead/ledger/nodes/{}", first.address()))?;
    promised(entry["host"] == first.name(), || format!("the first machine's place: {entry}"))?;
    println!("with its own, it does");
    second.start_agent()?;
    let pod = lab.pod(1, "a", "p")?;
    bulkhead_tests::probe::expect_reaches(pod.endpoint(), first.host())
}

fn command_again(node: &Node) -> Result<Command, LabError> {
    node.agent_command()
}

fn a_stranger_on_the_socket(node: &Node) -> Result<(), LabError> {
    println!("a peer that is not root is not answered, even when the file's mode lets it in");
    let socket = node.cni().socket.display().to_string();
    let mode =
        std::fs::metadata(&socket).map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o077);
    promised(mode.as_ref().is_ok_and(|mode| *mode == 0), || format!("others may open the socket: {mode:?}"))?;
    node.netns().exec("chmod", &["0777", &socket], &[])?;
    let program = node.cli().program.display().to_string();
    let arguments = ["--reuid", "65534", "--clear-groups", &program, "--agent-socket", &socket, "pod", "list"];
    let output = node.netns().output("setpriv", &arguments, &[])?;
    promised(!output.status.success(), || {
        format!("a stranger was answered: {}", String::from_utf8_lossy(&output.stdout))
    })?;
    println!("noise, silence and half a frame on the socket hold up nobody");
    let mut held = Vec::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"BLKH\0\x01\0\0\0\0\0\xff{", b"BLKH\0\x01\0\0\xff\xff\xff\xff", b""]
    {
        for _ in 0..50 {
            let stream =
                UnixStream::connect(&socket).map_err(|source| LabError::Io { what: "connect".into(), source })?;
            drop(std::io::Write::write_all(&mut &stream, bytes));
            held.push(stream);
        }
    }
    node.status().map(drop)
}

//! What goes to stdout, as golden files, and what each wrong input is answered with.

use bulkhead_core::cni::{Code, Failure};
use bulkhead_core::protocol::Reply;
use serde_json::{Value, json};

use crate::fixture::{Agent, Runtime, attachment, reply};

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn an_add_is_answered_in_each_versions_form() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let runtime = Runtime::new();
        let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Attached(attachment())));
        let dns = json!({"dns": {"nameservers": ["10.96.0.10"], "search": ["blue.svc.cluster.local"]}});
        let answer = runtime.call("ADD", &runtime.config(version, &dns)).run();
        assert_eq!(answer.code(), None, "{answer:?}");
        insta::assert_snapshot!(format!("add_{version}"), pretty(&answer.json()));
        agent.served();
    }
}

#[test]
fn version_lists_what_is_supported() {
    let answer = Runtime::new().call("VERSION", &json!({"cniVersion": "1.0.0"})).run();
    assert!(answer.success);
    insta::assert_snapshot!("version", pretty(&answer.json()));
}

#[test]
fn a_failure_of_the_agent_is_handed_through() {
    let runtime = Runtime::new();
    let failure = Failure::new(Code::AddressPoolFull, "no address is free", "172.11.0.0/22 has 1021 pods");
    let agent = Agent::start(&runtime.socket(), 1, move |c| reply(c, &Reply::Failed(failure.clone())));
    let answer = runtime.call("ADD", &runtime.config("1.0.0", &json!({}))).run();
    assert_eq!(answer.code(), Some(101));
    assert_eq!(answer.stderr, "bulkhead-cni: no address is free (172.11.0.0/22 has 1021 pods)\n");
    insta::assert_snapshot!("failed", pretty(&answer.json()));
    agent.served();
}

#[test]
fn success_without_words_prints_nothing() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 4, |c| reply(c, &Reply::Done));
    let extra = json!({"prevResult": {"ips": []}, "cni.dev/valid-attachments": []});
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let answer = runtime.call(command, &runtime.config("1.1.0", &extra)).run();
        assert_eq!((answer.code(), answer.stdout.as_str()), (None, ""), "{command}");
    }
    agent.served();
}

#[test]
fn an_answer_to_another_question_is_a_defect() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Done));
    assert_eq!(runtime.call("ADD", &runtime.config("1.1.0", &json!({}))).run().code(), Some(104));
    agent.served();
}

/// None of these has an agent: a call that is refused must not wait for one.
#[test]
fn bad_input_is_refused_before_anything_is_done() {
    let runtime = Runtime::new();
    let config = runtime.config("1.1.0", &json!({}));
    let add = || runtime.call("ADD", &config);
    let own = "/proc/self/ns/net";
    let refused = [
        (4, "CNI_COMMAND", add().without("CNI_COMMAND")),
        (4, "CNI_COMMAND", add().set("CNI_COMMAND", "RESTART")),
        (4, "CNI_CONTAINERID", add().set("CNI_CONTAINERID", "../../../etc/passwd")),
        (4, "CNI_CONTAINERID", add().set("CNI_CONTAINERID", "a".repeat(201))),
        (4, "CNI_IFNAME", add().set("CNI_IFNAME", "../eth0")),
        (4, "CNI_IFNAME", add().set("CNI_IFNAME", "a-very-long-name-for-a-device")),
        (4, "CNI_ARGS", add().set("CNI_ARGS", "K8S_POD_NAME")),
        (4, "CNI_NETNS", add().without("CNI_NETNS")),
        (4, "/nonexistent/netns", add().set("CNI_NETNS", "/nonexistent/netns")),
        (4, "not a network namespace", add().set("CNI_NETNS", "/dev/null")),
        (4, "the host's own", add().set("CNI_NETNS", own)),
        (4, "the host's own", add().set("CNI_NETNS", "/proc/thread-self/ns/net")),
        (6, "no network config", add().stdin("")),
        (6, "not JSON", add().stdin("cniVersion: 1.0.0")),
        (6, "not JSON", add().stdin("[".repeat(500_000))),
        (7, "larger than 1 MiB", add().stdin(" ".repeat(10 << 20))),
        (7, "JSON object", add().stdin("[1]")),
        (1, "2.0.0", add().stdin(runtime.config("2.0.0", &json!({})).to_string())),
        (1, "0.1.0", add().stdin("{}")),
        (7, "name", add().stdin(runtime.config("1.1.0", &json!({"name": "a/b"})).to_string())),
        (7, "socket", add().stdin(runtime.config("1.1.0", &json!({"socket": "s"})).to_string())),
        (7, "prevResult", add().stdin(runtime.config("1.1.0", &json!({"prevResult": {}})).to_string())),
        (7, "prevResult", runtime.call("CHECK", &config)),
        (1, "CHECK", runtime.call("CHECK", &runtime.config("0.3.1", &json!({})))),
        (1, "GC", runtime.call("GC", &runtime.config("1.0.0", &json!({})))),
        (7, "valid-attachments", runtime.call("GC", &config)),
    ];
    for (code, word, call) in refused {
        let answer = call.run();
        assert_eq!(answer.code(), Some(code), "{word}: {answer:?}");
        assert!(answer.msg().contains(word), "{word}: {answer:?}");
    }
    assert!(!runtime.spool().exists());
}

#[test]
fn a_refusal_speaks_the_configs_version() {
    let runtime = Runtime::new();
    let answer = runtime.call("CHECK", &runtime.config("0.4.0", &json!({}))).run();
    insta::assert_snapshot!("refused", pretty(&answer.json()));
}

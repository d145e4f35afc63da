//! What reaches the agent.

use std::io::Read;
use std::os::unix::fs::MetadataExt;

use bulkhead_core::protocol::{Command, Reply};
use rustix::fs::fstat;
use serde_json::json;

use crate::fixture::{Agent, Answer, Runtime, attachment, reply};

#[test]
fn the_agent_gets_the_call_and_the_open_netns() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Attached(attachment())));
    let config = runtime.config("1.1.0", &json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1_000_000}}}));
    assert_eq!(runtime.call("ADD", &config).run().code(), None);
    let (call, netns) = agent.served().pop().unwrap();
    assert_eq!(call.command, Command::Add);
    assert_eq!((call.container_id.as_str(), call.interface.as_str()), ("c1", "eth0"));
    assert_eq!(call.netns, runtime.netns().to_str().unwrap());
    assert_eq!(call.args["K8S_POD_NAMESPACE"], "blue");
    assert_eq!(call.config, config);
    let meant = std::fs::metadata(runtime.netns()).unwrap();
    let got = fstat(netns.unwrap()).unwrap();
    assert_eq!((got.st_dev, got.st_ino), (meant.dev(), meant.ino()));
}

/// Such a netns does not show its kind in the text of its link.
#[test]
fn a_netns_that_is_pinned_by_a_bind_mount_is_handed_over() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Attached(attachment())));
    let file = runtime.socket().with_file_name("netns");
    let child = runtime.call("ADD", &runtime.config("1.1.0", &json!({}))).start_with_pinned_netns(&file);
    assert_eq!(Answer::of(child).code(), None);
    let (call, netns) = agent.served().pop().unwrap();
    assert_eq!(call.netns, file.to_str().unwrap());
    let meant = std::fs::metadata(runtime.netns()).unwrap();
    let got = fstat(netns.unwrap()).unwrap();
    assert_eq!((got.st_dev, got.st_ino), (meant.dev(), meant.ino()));
}

#[test]
fn a_del_needs_no_netns_and_takes_none_that_is_not_the_pods() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 5, |c| reply(c, &Reply::Done));
    let del = || runtime.call("DEL", &runtime.config("1.0.0", &json!({})));
    for call in [
        del(),
        del().without("CNI_NETNS"),
        del().set("CNI_NETNS", "/nonexistent/netns"),
        del().set("CNI_NETNS", "/dev/null"),
        del().set("CNI_NETNS", "/proc/self/ns/net"),
    ] {
        assert_eq!(call.run().code(), None);
    }
    let with: Vec<bool> = agent.served().into_iter().map(|(_, netns)| netns.is_some()).collect();
    assert_eq!(with, [true, false, false, false, false]);
}

#[test]
fn a_gc_of_many_attachments_arrives_whole() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Done));
    let valid: Vec<_> = (0..8_000).map(|n| json!({"containerID": format!("{n:064x}"), "ifname": "eth0"})).collect();
    let config = runtime.config("1.1.0", &json!({"cni.dev/valid-attachments": valid}));
    assert!(config.to_string().len() > 700_000);
    assert_eq!(runtime.call("GC", &config).run().code(), None);
    let (call, netns) = agent.served().pop().unwrap();
    assert_eq!((call.container_id.as_str(), call.netns.as_str(), netns.is_none()), ("", "", true));
    assert_eq!(call.config, config);
}

/// All are started before one is answered, so a plugin that locked would hang here.
#[test]
fn concurrent_calls_do_not_wait_for_each_other() {
    const CALLS: usize = 16;
    let runtime = Runtime::new();
    let mut waiting = Vec::new();
    let agent = Agent::start(&runtime.socket(), CALLS, move |mut connection| {
        let (call, _) = crate::fixture::take(&mut connection);
        waiting.push((call.container_id.clone(), connection));
        if waiting.len() == CALLS {
            for (container_id, mut connection) in waiting.drain(..).rev() {
                let made = bulkhead_core::cni::Attachment { host_interface: container_id, ..attachment() };
                bulkhead_core::protocol::send(&mut connection, &Reply::Attached(made)).unwrap();
            }
        }
    });
    let config = runtime.config("1.0.0", &json!({}));
    let children: Vec<_> =
        (0..CALLS).map(|n| runtime.call("ADD", &config).set("CNI_CONTAINERID", format!("c{n}")).start()).collect();
    for (n, child) in children.into_iter().enumerate() {
        assert_eq!(Answer::of(child).json()["interfaces"][0]["name"], format!("c{n}"));
    }
    agent.served();
}

#[test]
fn one_connection_carries_one_request_and_then_ends() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |mut connection| {
        crate::fixture::take(&mut connection);
        bulkhead_core::protocol::send(&mut connection, &Reply::Done).unwrap();
        connection.read_to_end(&mut Vec::new()).unwrap()
    });
    assert_eq!(runtime.call("STATUS", &runtime.config("1.1.0", &json!({}))).run().code(), None);
    assert_eq!(agent.served(), [0]);
}

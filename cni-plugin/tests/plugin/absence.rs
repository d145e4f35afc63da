//! An agent that is away, late, dying, or of another version.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_core::AttachmentId;
use bulkhead_core::protocol::{Command, Reply, encode};
use bulkhead_core::spool;
use serde_json::{Value, json};

use crate::fixture::{Agent, Answer, Runtime, attachment, reply, take};

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn full(runtime: &Runtime) -> Value {
    runtime.config("1.1.0", &json!({"prevResult": {"ips": []}, "cni.dev/valid-attachments": []}))
}

#[test]
fn an_add_waits_five_seconds_and_may_be_tried_again() {
    let runtime = Runtime::new();
    let start = Instant::now();
    let answer = runtime.call("ADD", &runtime.config("1.0.0", &json!({}))).run();
    let waited = start.elapsed();
    assert_eq!(answer.code(), Some(11));
    assert!(answer.msg().contains(runtime.socket().to_str().unwrap()), "{answer:?}");
    assert!((Duration::from_millis(4_500)..Duration::from_secs(8)).contains(&waited), "{waited:?}");
}

#[test]
fn an_add_finds_the_agent_that_comes_back() {
    let runtime = Runtime::new();
    // A socket that nobody listens on, as an agent leaves it that was killed.
    drop(std::os::unix::net::UnixListener::bind(runtime.socket()).unwrap());
    let add = runtime.call("ADD", &runtime.config("1.0.0", &json!({}))).start();
    std::fs::remove_file(runtime.socket()).unwrap();
    let agent = Agent::start(&runtime.socket(), 1, |c| reply(c, &Reply::Attached(attachment())));
    assert_eq!(Answer::of(add).code(), None);
    agent.served();
}

#[test]
fn check_gc_and_status_do_not_wait() {
    let runtime = Runtime::new();
    for (command, code) in [("CHECK", 11), ("GC", 11), ("STATUS", 50)] {
        assert_eq!(runtime.call(command, &full(&runtime)).run().code(), Some(code), "{command}");
    }
}

#[test]
fn a_status_forgives_an_agent_that_left() {
    let runtime = Runtime::new();
    // As a killed agent leaves it.
    drop(std::os::unix::net::UnixListener::bind(runtime.socket()).unwrap());
    assert_eq!(runtime.call("STATUS", &full(&runtime)).run().code(), None);
}

#[test]
fn a_del_without_an_agent_is_spooled_and_succeeds() {
    let runtime = Runtime::new();
    let del = runtime.call("DEL", &runtime.config("1.0.0", &json!({})));
    for _ in 0..2 {
        assert_eq!(del.run().code(), None);
    }
    assert_eq!(files(&runtime.spool()), ["c1@eth0.json"]);
    let content = std::fs::read(runtime.spool().join("c1@eth0.json")).unwrap();
    let call = spool::parse(&AttachmentId::new("c1", "eth0").unwrap(), &content).unwrap();
    assert_eq!(call.command, Command::Del);
    assert_eq!(call.args["K8S_POD_NAME"], "web");
    assert_eq!(call.config["name"], "k8ssdn");
}

#[test]
fn a_del_that_cannot_even_be_spooled_fails() {
    let runtime = Runtime::new();
    std::fs::write(runtime.spool(), "in the way").unwrap();
    assert_eq!(runtime.call("DEL", &runtime.config("1.0.0", &json!({}))).run().code(), Some(5));
}

#[test]
fn a_del_over_which_the_agent_died_is_given_to_its_successor() {
    let runtime = Runtime::new();
    let mut died = false;
    let spooled = runtime.spool();
    let agent = Agent::start(&runtime.socket(), 2, move |mut connection| {
        if !std::mem::replace(&mut died, true) {
            take(&mut connection);
            return Vec::new();
        }
        let on_disk = files(&spooled);
        reply(connection, &Reply::Done);
        on_disk
    });
    assert_eq!(runtime.call("DEL", &runtime.config("1.0.0", &json!({}))).run().code(), None);
    assert_eq!(agent.served(), [vec![], vec!["c1@eth0.json".to_owned()]], "written down before it is asked again");
    assert_eq!(files(&runtime.spool()), Vec::<String>::new(), "and taken back once it is done");
}

#[test]
fn a_del_that_no_agent_survives_stays_in_the_spool() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 2, |mut c| drop(take(&mut c)));
    assert_eq!(runtime.call("DEL", &runtime.config("1.0.0", &json!({}))).run().code(), None);
    agent.served();
    assert_eq!(files(&runtime.spool()), ["c1@eth0.json"]);
}

#[test]
fn an_add_over_which_the_agent_died_is_asked_once_more() {
    let runtime = Runtime::new();
    let config = runtime.config("1.0.0", &json!({}));
    let mut died = false;
    let agent = Agent::start(&runtime.socket(), 2, move |mut connection| {
        if std::mem::replace(&mut died, true) {
            reply(connection, &Reply::Attached(attachment()));
        } else {
            take(&mut connection);
        }
    });
    assert_eq!(runtime.call("ADD", &config).run().code(), None);
    agent.served();
    let agent = Agent::start(&runtime.socket(), 2, |mut c| drop(take(&mut c)));
    assert_eq!(runtime.call("ADD", &config).run().code(), Some(11), "not for ever");
    agent.served();
}

#[test]
fn an_agent_that_hangs_up_in_the_middle_of_its_answer_gave_none() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |mut connection| {
        take(&mut connection);
        let frame = encode(&Reply::Done).unwrap();
        connection.write_all(&frame[..frame.len() - 3]).unwrap();
    });
    assert_eq!(runtime.call("CHECK", &full(&runtime)).run().code(), Some(11));
    agent.served();
}

#[test]
fn an_agent_that_is_late_is_waited_for_and_one_that_is_silent_is_not() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 2, {
        let mut late = true;
        move |connection| {
            if std::mem::replace(&mut late, false) {
                std::thread::sleep(Duration::from_millis(1_500));
                reply(connection, &Reply::Done);
                None
            } else {
                Some(connection) // open and silent
            }
        }
    });
    assert_eq!(runtime.call("STATUS", &full(&runtime)).run().code(), None);
    let start = Instant::now();
    let answer = runtime.call("STATUS", &full(&runtime)).run();
    assert_eq!(answer.code(), Some(50));
    assert!(answer.msg().contains("no answer within 5 s"), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(9));
    agent.served();
}

#[test]
fn an_agent_that_trickles_does_not_stretch_the_time() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |mut connection| {
        take(&mut connection);
        let frame = encode(&Reply::Done).unwrap();
        // One byte each 600 ms: no single wait is long, all of them are.
        frame.into_iter().all(|byte| {
            std::thread::sleep(Duration::from_millis(600));
            connection.write_all(&[byte]).is_ok()
        })
    });
    let start = Instant::now();
    assert_eq!(runtime.call("STATUS", &full(&runtime)).run().code(), Some(50));
    assert!(start.elapsed() < Duration::from_secs(9));
    assert_eq!(agent.served(), [false]);
}

#[test]
fn an_agent_of_another_protocol_version_is_named() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |mut connection| {
        take(&mut connection);
        let mut frame = encode(&Reply::Done).unwrap();
        frame[5] = 9;
        connection.write_all(&frame).unwrap();
    });
    let answer = runtime.call("ADD", &runtime.config("1.0.0", &json!({}))).run();
    assert_eq!(answer.code(), Some(11));
    assert!(answer.msg().contains("version 9"), "{answer:?}");
    agent.served();
}

#[test]
fn a_stranger_on_the_socket_is_not_believed() {
    let runtime = Runtime::new();
    let agent = Agent::start(&runtime.socket(), 1, |mut connection| {
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        take(&mut connection);
    });
    assert_eq!(runtime.call("CHECK", &full(&runtime)).run().code(), Some(5));
    agent.served();
}

//! The lab proves things only if it sees what happens: its probes and flows against losses that are made here, without the
//! product, and its removal after a kill. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bulkhead_tests::endpoint::Endpoint;
use bulkhead_tests::etcd::Etcd;
use bulkhead_tests::flow::{PacketFlow, TcpFlow};
use bulkhead_tests::frame;
use bulkhead_tests::goodput;
use bulkhead_tests::matrix::{Matrix, expect_large};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::packet::PacketSocket;
use bulkhead_tests::probe::{PATIENCE, Proto, SILENCE, reaches, seen_by};
use bulkhead_tests::registry::{self, Claim};
use bulkhead_tests::underlay::Underlay;
use bulkhead_tests::undisturbed::{Lateness, stall_limit};
use bulkhead_tests::wait;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Bench {
    endpoints: Vec<Endpoint>,
    underlay: Underlay,
    claim: Claim,
    _turn: MutexGuard<'static, ()>,
}

/// Machines on a switch, nothing of the product.
fn bench(machines: u8, far_mtu: Option<u32>) -> Bench {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let claim = Claim::take().unwrap();
    let spaces = claim.id().dir().join("ns");
    fs::create_dir_all(&spaces).unwrap();
    let underlay = Underlay::build(claim.id(), &spaces, far_mtu).unwrap();
    let endpoints = (0..machines)
        .map(|number| {
            let name = format!("m{number}");
            let netns = Arc::new(Netns::create(&spaces, &name).unwrap());
            let far = far_mtu.is_some() && number + 1 == machines;
            let address = if far {
                underlay.join_far(&netns).unwrap()
            } else {
                underlay.join(&netns, 11 + number).unwrap();
                underlay.address(11 + number)
            };
            Endpoint::start(&name, address, netns).unwrap()
        })
        .collect();
    Bench { endpoints, underlay, claim, _turn: turn }
}

fn drop_rule(at: &Endpoint, rule: &str) {
    at.netns()
        .nft(&format!(
            "add table ip t\nadd chain ip t c {{ type filter hook input priority 0; }}\nadd rule ip t c {rule}\n"
        ))
        .unwrap();
}

#[test]
fn probes_say_what_passes_and_what_does_not() {
    let bench = bench(3, None);
    let [a, b, c] = &bench.endpoints[..] else { panic!("three machines") };
    Matrix::expect(&bench.endpoints, |_, _| true).unwrap();
    for proto in Proto::ALL {
        assert!(!reaches(a, bench.underlay.address(99), proto, SILENCE).unwrap(), "{proto} to nobody");
    }
    assert_eq!(seen_by(a, b, Proto::Tcp).unwrap(), a.address());
    assert_eq!(seen_by(a, b, Proto::Udp).unwrap(), a.address());
    expect_large(a, b, 8000).unwrap();
    assert!(reaches(a, bulkhead_tests::underlay::BEYOND, Proto::Icmp, PATIENCE).unwrap());

    drop_rule(c, &format!("ip saddr {} drop", a.address()));
    let one_way = |from: &Endpoint, to: &Endpoint| {
        ![from.name(), to.name()].contains(&"m0") || ![from.name(), to.name()].contains(&"m2")
    };
    let matrix = Matrix::expect(&bench.endpoints, one_way).unwrap();
    println!("{matrix}");
    let wrong = matrix.surprises(&bench.endpoints, |_, _| true);
    assert_eq!(wrong.len(), 6, "{wrong:?}");
    assert!(Matrix::expect(&bench.endpoints, |_, _| true).is_err());
}

#[test]
fn flows_lose_nothing_on_a_whole_path_and_count_each_loss_on_a_broken_one() {
    let bench = bench(2, None);
    let [a, b] = &bench.endpoints[..] else { panic!("two machines") };
    let run = || {
        let (ping, udp) = (PacketFlow::ping(a, b.address()).unwrap(), PacketFlow::udp(a, b).unwrap());
        let tcp = TcpFlow::start(a, b).unwrap();
        wait::until("2000 packets", Duration::from_mins(1), || (ping.sent() > 2000 && udp.sent() > 2000).then_some(()))
            .unwrap();
        (ping.stop(), udp.stop(), tcp.stop())
    };
    let lateness = Lateness::watch();
    let (ping, udp, tcp) = run();
    let late = lateness.longest();
    println!("whole: ping {ping}; udp {udp}; tcp {tcp}");
    assert!(ping.is_none() && udp.is_none() && tcp.broken.is_none() && tcp.bytes > 100 << 10);
    assert!(tcp.longest_stall < stall_limit(late), "{tcp}; threads waited for up to {late:?}");

    drop_rule(b, "ip protocol icmp numgen inc mod 100 == 0 drop");
    drop_rule(b, "ip protocol udp numgen inc mod 100 == 0 drop");
    drop_rule(b, "tcp dport 7 numgen inc mod 100 == 0 drop");
    let (ping, udp, tcp) = run();
    println!("broken: ping {ping}; udp {udp}; tcp {tcp}");
    for loss in [&ping, &udp] {
        assert_eq!(loss.lost, loss.sent.div_ceil(100), "one in a hundred: {loss}");
    }
}

#[test]
fn goodput_is_that_of_the_shaper() {
    let bench = bench(2, None);
    let [a, b] = &bench.endpoints[..] else { panic!("two machines") };
    a.netns()
        .exec(
            "tc",
            &["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "100mbit", "burst", "65536", "limit", "300000"],
            &[],
        )
        .unwrap();
    let expected = 100e6 * goodput::share_of_payload(1500);
    // Never much faster. A machine that stood still in a window, or right before it, is measured again.
    wait::until_or("the shaper's rate", Duration::from_mins(1), || {
        let seen = goodput::tcp(a, b, Duration::from_millis(500), Duration::from_secs(2)).unwrap();
        println!("{} of {}", goodput::rate(seen), goodput::rate(expected));
        assert!(seen / expected < 1.1, "{seen} of {expected}");
        if (0.98..1.02).contains(&(seen / expected)) { Ok(()) } else { Err(format!("{seen} of {expected}")) }
    })
    .unwrap();
}

#[test]
fn frames_are_sent_as_they_are_made() {
    let bench = bench(2, None);
    let [a, b] = &bench.endpoints[..] else { panic!("two machines") };
    let ear = PacketSocket::open(b.netns(), "eth0").unwrap();
    let mouth = PacketSocket::open(a.netns(), "eth0").unwrap().bypass_qdisc().unwrap();
    let nobody = bench.underlay.address(99);
    let packet = frame::udp((nobody, 1234), (b.address(), 4321), b"not from 99");
    mouth.send(&frame::ethernet(frame::BROADCAST, [2, 0, 0, 0, 0, 9], frame::IPV4, &packet)).unwrap();
    let heard = ear.hear(Duration::from_secs(10), |bytes| {
        frame::read_udp(bytes).filter(|udp| udp.3 == 4321).map(|udp| (udp.0, udp.4.to_vec()))
    });
    assert_eq!(heard.unwrap(), Some((nobody, b"not from 99".to_vec())));
}

#[test]
fn a_narrow_path_tells_the_sender() {
    let bench = bench(2, Some(1300));
    let [near, far] = &bench.endpoints[..] else { panic!("two machines") };
    Matrix::expect(&bench.endpoints, |_, _| true).unwrap();
    let mtu = bulkhead_tests::probe::learned_mtu(near, far.address(), 1400, Duration::from_secs(15)).unwrap();
    assert_eq!(mtu, Some(1300));
    expect_large(near, far, 8000).unwrap();
}

#[test]
fn etcd_keeps_its_data_when_it_is_stopped_and_started() {
    let bench = bench(0, None);
    let addresses = bench.underlay.infra_addresses().to_vec();
    let mut etcd = Etcd::start(Arc::clone(&bench.underlay.infra), addresses, &bench.claim.id().dir()).unwrap();
    etcd.put("/a", r#"{"x": "y z"}"#).unwrap();
    etcd.put_all(&[("/b".into(), r#"{"q":"\"1\""}"#.into()), ("/c".into(), "2".into())]).unwrap();
    etcd.stop_all().unwrap();
    assert!(etcd.get("/a").is_err());
    etcd.start_all().unwrap();
    assert_eq!(etcd.get_json("/a").unwrap()["x"], "y z");
    assert_eq!(etcd.get_json("/b").unwrap()["q"], "\"1\"");
    assert_eq!(etcd.keys("/").unwrap(), ["/a", "/b", "/c"]);
}

/// Not a test: what `a_killed_lab_is_removed_by_the_next` kills.
#[test]
#[ignore = "started by another test"]
fn hold_a_lab_until_killed() {
    let bench = bench(2, Some(1300));
    let addresses = vec![bench.underlay.infra_addresses()[0]];
    let _etcd = Etcd::start(Arc::clone(&bench.underlay.infra), addresses, &bench.claim.id().dir()).unwrap();
    let file = std::env::var("LAB_SAYS").unwrap();
    fs::write(&file, bench.claim.id().number().to_string()).unwrap();
    loop {
        thread::park();
    }
}

#[test]
fn a_killed_lab_is_removed_by_the_next() {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let says = std::env::temp_dir().join(format!("bulkhead-lab-{}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_lab_until_killed", "--ignored"])
        .env("LAB_SAYS", &says)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(&says).ok().and_then(|text| text.parse::<u8>().ok());
    let number = wait::until("the other lab", Duration::from_mins(1), read).unwrap();
    let dir = format!("/dev/shm/bhl{number}");
    assert!(registry::running().unwrap().iter().any(|lab| lab.id.number() == number));
    assert!(!registry::sweep().unwrap().iter().any(|id| id.number() == number), "a running lab is left alone");
    child.kill().unwrap();
    child.wait().unwrap();
    // Another lab that starts right now may be the one that sweeps it.
    wait::until_or("the killed lab being swept", Duration::from_mins(1), || match registry::sweep() {
        Ok(_) if !Path::new(&dir).exists() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    fs::remove_file(&says).unwrap();
    assert!(registry::mounts_below(Path::new(&dir)).is_empty());
    drop(turn);
}

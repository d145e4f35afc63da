//! A pod's rate is what was asked for, each direction, 1 Mbit/s to 1 Gbit/s: TCP payload within 2 % of what headers leave of
//! it, a pod beside it untouched, and no way around it from inside.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_tests::error::promised;
use bulkhead_tests::flow::PacketFlow;
use bulkhead_tests::frame;
use bulkhead_tests::goodput::{self, bits, rate};
use bulkhead_tests::packet::PacketSocket;
use bulkhead_tests::{Endpoint, Lab, LabError, PodSpec};

const WINDOW: Duration = Duration::from_secs(5);
/// How often a rate is measured at most.
const WINDOWS: usize = 5;
const SLOW: [u32; 3] = [1_000_000, 10_000_000, 100_000_000];
const FAST: u32 = 1_000_000_000;

fn within_two_percent(lab: &Lab, from: &Endpoint, to: &Endpoint, limit: u32, what: &str) -> Result<(), LabError> {
    // The burst is spent first, and TCP must have recovered from its slow start: slow on slow links.
    let warm_up = if limit <= 10_000_000 { Duration::from_secs(10) } else { Duration::from_secs(1) };
    let expected = f64::from(limit) * goodput::share_of_payload(lab.node(0).status()?.mtu);
    let name = format!("{from} -> {to}, {what} {}", rate(f64::from(limit)));
    let mut slowest = String::new();
    // Never much faster. Where the machine stands still for longer than a burst lasts, its share is gone; what it has not delivered
    // before a window is too much in it. Either is measured again.
    for _ in 0..WINDOWS {
        let seen = goodput::tcp(from, to, warm_up, WINDOW)?;
        println!("    {name}: {} of {}", rate(seen), rate(expected));
        slowest = format!("{name}: payload {} is not within 2 % of {}", rate(seen), rate(expected));
        promised(seen / expected <= 1.1, || slowest.clone())?;
        if (0.98..=1.02).contains(&(seen / expected)) {
            return Ok(());
        }
    }
    promised(false, || slowest)
}

/// One test at a time: the other one's flood takes the CPU that this one's shapers need.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_pods_rate_is_what_was_asked_for() -> Result<(), LabError> {
    let _alone = alone();
    let lab = &Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let (near, far) = (lab.pod(0, "a", "near")?, lab.pod(1, "a", "far")?);
    // Across nodes and on one node: the two ways of delivery.
    let others = [near.endpoint(), far.endpoint()];
    let measure = |limit: u32, other: &Endpoint, egress: bool| {
        let name = format!("l{limit}-{egress}-{}", other.name().replace(['/', '@'], "-"));
        let pod = lab.pod_with(0, "a", &name, &PodSpec::limited(limit.into(), limit.into()))?;
        pod.check()?;
        if egress {
            within_two_percent(lab, pod.endpoint(), other, limit, "egress")?;
        } else {
            within_two_percent(lab, other, pod.endpoint(), limit, "ingress")?;
        }
        pod.delete()
    };
    println!("slow ones, all at once");
    thread::scope(|scope| {
        let runs: Vec<_> = SLOW
            .iter()
            .flat_map(|limit| others.map(|other| [(*limit, other, true), (*limit, other, false)]))
            .flatten()
            .map(|(limit, other, egress)| scope.spawn(move || measure(limit, other, egress)))
            .collect();
        let ended: Vec<_> =
            runs.into_iter().map(|run| run.join().map_err(|_| LabError::ThreadGone("run".into()))?).collect();
        ended.into_iter().collect::<Result<Vec<()>, LabError>>()
    })?;
    println!("a fast one at a time");
    for other in others {
        measure(FAST, other, true)?;
        measure(FAST, other, false)?;
    }
    Ok(())
}

#[test]
fn a_limit_binds_its_pod_only_and_cannot_be_bypassed() -> Result<(), LabError> {
    const LIMIT: u32 = 10_000_000;
    let _alone = alone();
    let lab = Lab::builder().nodes(2).start()?;
    lab.create_tenants(&["a"])?;
    let limited = lab.pod_with(0, "a", "limited", &PodSpec::limited(LIMIT.into(), LIMIT.into()))?;
    let (free, sink, far) = (lab.pod(0, "a", "free")?, lab.pod(0, "a", "sink")?, lab.pod(1, "a", "far")?);
    println!("an unlimited pod beside it is untouched");
    let ping = PacketFlow::ping(free.endpoint(), far.address())?;
    thread::scope(|scope| -> Result<(), LabError> {
        let busy = scope.spawn(|| goodput::tcp(limited.endpoint(), far.endpoint(), WINDOW / 5, WINDOW / 2));
        let seen = goodput::tcp(free.endpoint(), sink.endpoint(), WINDOW / 5, WINDOW / 5)?;
        println!("    beside: {}", rate(seen));
        promised(seen > f64::from(LIMIT) * 20.0, || format!("the pod beside gets {}", rate(seen)))?;
        busy.join().map_err(|_| LabError::ThreadGone("busy".into()))?.map(drop)
    })?;
    let loss = ping.stop();
    promised(loss.is_none(), || format!("the pod beside lost packets: {loss}"))?;
    println!("PACKET_QDISC_BYPASS stays within 1.25 times the limit");
    for target in [&sink, &far] {
        let passed = bypass(&limited, target)?;
        println!("    to {}: {}", target.endpoint(), rate(passed));
        promised(passed <= 1.25 * f64::from(LIMIT), || format!("{} went through a limit of 10 Mbit/s", rate(passed)))?;
        promised(passed > 0.1 * f64::from(LIMIT), || format!("only {} went through", rate(passed)))?;
    }
    Ok(())
}

/// Floods by a packet socket that skips the qdisc; gives what the target's device received, in bits per second after the
/// first second.
fn bypass(from: &bulkhead_tests::Pod, to: &bulkhead_tests::Pod) -> Result<f64, LabError> {
    let socket = PacketSocket::open(from.netns(), "eth0")?.bypass_qdisc()?;
    let packet = frame::udp((from.address(), 1), (to.address(), 9), &[0; 1300]);
    let frame = frame::ethernet(from.host_mac(), from.mac(), frame::IPV4, &packet);
    let flood = |time: Duration| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            for _ in 0..64 {
                let _ = socket.try_send(&frame);
            }
        }
        begin.elapsed()
    };
    flood(Duration::from_secs(1));
    let before = received(to)?;
    let took = flood(Duration::from_secs(3));
    Ok(bits(received(to)? - before) / took.as_secs_f64())
}

fn received(pod: &bulkhead_tests::Pod) -> Result<u64, LabError> {
    let text = pod.netns().exec("ip", &["-s", "-j", "link", "show", "dev", "eth0"], &[])?;
    let links: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let bytes = links[0]["stats64"]["rx"]["bytes"].as_u64();
    bytes.ok_or_else(|| LabError::Broken(format!("no rx counter in {text}")))
}

//! The guaranteed bound of a pod's egress: what passes in a measured time is the rate's share and one burst, no more.

use std::time::Instant;

use super::node::{Node, OWN, Pod, Tenant, on_node};
use super::packet::{PORT, Packet};
use super::run::Skb;
use bulkhead_agent::datapath::abi::PolicerValue;

/// Bytes of each frame, Ethernet included.
const FRAME: u32 = 1000;

fn skb(pod: &Pod) -> Skb {
    let packet = Packet::udp(pod.mac, (pod.ip, PORT), (OWN[0], PORT)).sized(FRAME as usize);
    Skb::received(pod.ifindex, packet.frame())
}

fn policed(node: &Node) -> u64 {
    node.counters().get("policed").map_or(0, |count| count.0)
}

/// Sends `times` frames from each of `threads` threads; how many passed, in how many seconds.
fn flood(node: &Node, pod: &Pod, skb: &Skb, threads: u32, times: u32, limit: PolicerValue) -> (f64, f64) {
    node.publish(pod, false, None);
    node.publish(pod, false, Some(limit));
    let (before, start) = (policed(node), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| node.repeat("from_pod", skb, times));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let passed = u64::from(threads * times) - (policed(node) - before);
    (f64::from(u32::try_from(passed).unwrap()), seconds)
}

fn exact(limit: u64) -> f64 {
    f64::from(u32::try_from(limit).unwrap())
}

#[test]
fn rate_and_burst_are_exact_on_every_number_of_cpus() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        for (rate, burst, times) in
            [(125_000, 30_280, 200_000), (12_500_000, 200_000, 400_000), (200_000_000, 400_000, 800_000)]
        {
            for threads in [1, 2, 4] {
                let (passed, seconds) =
                    flood(node, &pod, &skb(&pod), threads, times / threads, PolicerValue { rate, burst });
                let most = (exact(rate) * seconds + exact(burst)) / f64::from(FRAME);
                // One frame of each CPU may have seen the same moment.
                let slack = f64::from(threads);
                assert!(passed <= most + slack, "{rate} B/s, {threads} threads: {passed} of {most} in {seconds} s");
                // A thread that is not running sends nothing, so the bound is not always reached; the burst is.
                let least = (exact(burst) / f64::from(FRAME)).floor();
                assert!(passed >= least, "{rate} B/s, {threads} threads: {passed} of {least}");
            }
        }
    });
}

#[test]
fn what_keeps_to_the_rate_is_never_dropped() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        // Faster than the test can send.
        let limit = PolicerValue { rate: 125_000_000_000, burst: 1 << 20 };
        let (passed, _) = flood(node, &pod, &skb(&pod), 1, 20_000, limit);
        assert!((passed - 20_000.0).abs() < 0.5, "{passed}");
        let (passed, _) = flood(node, &pod, &skb(&pod), 1, 20_000, PolicerValue { rate: u64::MAX, burst: 1 << 20 });
        assert!((passed - 20_000.0).abs() < 0.5, "{passed}");
    });
}

#[test]
fn segments_pay_for_their_headers() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        // A frame of 1,000 bytes that the wire sees as 121 packets: 1,000 + 120 * 66. Slow enough that only the burst counts.
        let limit = PolicerValue { rate: 125, burst: 40_000 };
        for (size, segments) in [(8, 121), (8, 0)] {
            let mut skb = skb(&pod);
            (skb.gso_size, skb.gso_segs) = (size, segments);
            let (passed, _) = flood(node, &pod, &skb, 1, 100, limit);
            assert!((4.0 - passed).abs() < 0.5, "gso_segs {segments}: {passed} passed");
        }
        let (passed, _) = flood(node, &pod, &skb(&pod), 1, 100, limit);
        assert!((40.0 - passed).abs() < 0.5, "{passed} passed");
    });
}

#[test]
fn no_packet_is_too_dear_to_be_counted() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        // 65,535 segments cost 4.3 MB: at 1 kbit/s more nanoseconds than 64 bits hold with the fraction.
        let mut skb = skb(&pod);
        (skb.gso_size, skb.gso_segs) = (1, 65_535);
        let (passed, _) = flood(node, &pod, &skb, 1, 100, PolicerValue { rate: 125, burst: 1_000_000 });
        assert!(passed.abs() < 0.5, "{passed} passed");
    });
}

#[test]
fn a_limit_that_did_not_change_keeps_its_history() {
    on_node(|node| {
        let pod = node.pod(Tenant::A);
        let limit = PolicerValue { rate: 125, burst: 10_000 };
        let (passed, _) = flood(node, &pod, &skb(&pod), 1, 100, limit);
        assert!((10.0 - passed).abs() < 0.5, "{passed}");
        node.publish(&pod, false, Some(limit));
        let before = policed(node);
        node.repeat("from_pod", &skb(&pod), 50);
        assert_eq!(policed(node) - before, 50);
        // Another limit starts afresh; none is none.
        node.publish(&pod, false, Some(PolicerValue { rate: 125, burst: 20_000 }));
        node.repeat("from_pod", &skb(&pod), 50);
        assert_eq!(policed(node) - before, 80);
        node.publish(&pod, false, None);
        node.repeat("from_pod", &skb(&pod), 50);
        assert_eq!(policed(node) - before, 80);
    });
}

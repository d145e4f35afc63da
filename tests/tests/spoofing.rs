//! What a hostile pod, a machine that is no node and a stolen node may send, and what becomes of it: nothing, under the
//! right reason.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use bulkhead_tests::counters::Drops;
use bulkhead_tests::error::{Tally, Tried, promised};
use bulkhead_tests::frame::{self, BROADCAST, Mac};
use bulkhead_tests::netns::Netns;
use bulkhead_tests::packet::PacketSocket;
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::service::{self, Service};
use bulkhead_tests::{Lab, LabError, Pod};

const VXLAN_PORT: u16 = 4789;
const COUNT: u64 = 5;
const MARK: &[u8] = b"bulkhead spoofing test";
const FOREIGN: Mac = [2, 0, 0, 0, 0, 0x66];

struct Scene {
    lab: Lab,
    /// Hostile, on n1.
    mallory: Pod,
    /// On n1 and n2, of the same namespace as mallory: only the spoofing can be why it is dropped.
    near: Pod,
    far: Pod,
    /// On n2, of another namespace.
    other: Pod,
    failures: Tally,
}

/// Sends `frame` from mallory and expects that nobody of `victims` sees a byte of it, counted on n1.
fn refused(scene: &Scene, what: &str, frame: &[u8], reasons: &[&str]) -> Result<(), LabError> {
    println!("{what}: dropped as {}", reasons.join(" or "));
    let mouth = PacketSocket::open(scene.mallory.netns(), "eth0")?;
    let drops = Drops::of(scene.lab.node(0))?;
    scene.failures.note(unseen(scene, what, || (0..COUNT).try_for_each(|_| mouth.send(frame))));
    scene.failures.note(drops.expect(reasons, COUNT));
    Ok(())
}

/// Runs `send`, then fails if a victim has seen the marker.
fn unseen(scene: &Scene, what: &str, send: impl FnOnce() -> Result<(), LabError>) -> Result<(), LabError> {
    let victims = [&scene.near, &scene.far, &scene.other];
    let ears = victims.iter().map(|pod| PacketSocket::open(pod.netns(), "eth0")).collect::<Result<Vec<_>, _>>()?;
    send()?;
    for (ear, pod) in ears.iter().zip(victims) {
        let marked = |bytes: &[u8]| bytes.windows(MARK.len()).any(|window| window == MARK).then_some(());
        let seen = ear.hear(Duration::from_millis(150), marked)?;
        promised(seen.is_none(), || format!("{what}: {} got it", pod.endpoint()))?;
    }
    Ok(())
}

fn inner(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    frame::ethernet(BROADCAST, FOREIGN, frame::IPV4, &frame::udp((from, 1000), (to, 2000), MARK))
}

fn send_vxlan(netns: &Netns, to: Ipv4Addr, vni: u32, inner: &[u8]) -> Result<(), LabError> {
    let packet = frame::vxlan(vni, inner);
    let send = move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        (0..COUNT).try_for_each(|_| socket.send_to(&packet, (to, VXLAN_PORT)).map(drop))
    };
    netns.run(send)?.tried(|| "send VXLAN".into())
}

#[test]
fn what_is_forged_is_dropped_and_counted() -> Result<(), LabError> {
    let lab = Lab::builder().start()?;
    lab.create_tenants(&["a", "b"])?;
    let scene = Scene {
        mallory: lab.pod(0, "a", "mallory")?,
        near: lab.pod(0, "a", "near")?,
        far: lab.pod(1, "a", "far")?,
        other: lab.pod(1, "b", "other")?,
        failures: Tally::default(),
        lab,
    };
    expect_reaches(scene.mallory.endpoint(), scene.near.endpoint())?;
    expect_reaches(scene.mallory.endpoint(), scene.far.endpoint())?;
    a_pods_addresses(&scene)?;
    a_pods_frames(&scene)?;
    a_pods_vxlan(&scene)?;
    the_underlay(&scene)?;
    println!("and mallory's honest traffic still passes");
    expect_reaches(scene.mallory.endpoint(), scene.near.endpoint())?;
    expect_reaches(scene.mallory.endpoint(), scene.far.endpoint())?;
    scene.failures.settle()
}

fn a_pods_addresses(scene: &Scene) -> Result<(), LabError> {
    let (own, mac, host) = (scene.mallory.address(), scene.mallory.mac(), scene.mallory.host_mac());
    let (near, far) = (scene.near.address(), scene.far.address());
    let node = scene.lab.node(0).address();
    let unused = Ipv4Addr::new(10, 77, 200, 9);
    for (source, target) in [
        (near, far),
        (far, near),
        (unused, near),
        (node, far),
        (Ipv4Addr::LOCALHOST, near),
        (Ipv4Addr::UNSPECIFIED, near),
        (Ipv4Addr::new(203, 0, 113, 5), far),
    ] {
        let frame = frame::ethernet(host, mac, frame::IPV4, &frame::udp((source, 1), (target, 2), MARK));
        refused(scene, &format!("source {source} to {target}"), &frame, &["spoofed-ip"])?;
    }
    for target in [near, far] {
        let frame = frame::ethernet(host, FOREIGN, frame::IPV4, &frame::udp((own, 1), (target, 2), MARK));
        refused(scene, &format!("source MAC to {target}"), &frame, &["spoofed-mac"])?;
    }
    let gateway: Ipv4Addr =
        scene.mallory.result()["ips"][0]["gateway"].as_str().and_then(|text| text.parse().ok()).unwrap_or(own);
    for (what, claim) in
        [("another pod's", (mac, near)), ("the gateway's", (mac, gateway)), ("its own at another MAC", (FOREIGN, own))]
    {
        for operation in [1, 2] {
            let arp = frame::arp(operation, claim, ([0; 6], near));
            let frame = frame::ethernet(BROADCAST, mac, frame::ARP, &arp);
            refused(scene, &format!("ARP {operation} that claims {what} address"), &frame, &["spoofed-arp"])?;
        }
    }
    Ok(())
}

fn a_pods_frames(scene: &Scene) -> Result<(), LabError> {
    let (mac, host) = (scene.mallory.mac(), scene.mallory.host_mac());
    let packet = frame::udp((scene.mallory.address(), 1), (scene.near.address(), 2), MARK);
    let tagged = [&[0, 5][..], &frame::IPV4.to_be_bytes(), &packet].concat();
    let ipv6 = [&[0x60, 0, 0, 0, 0, 22, 17, 64][..], &[0xfe; 32], MARK].concat();
    for (what, ether_type, payload, reason) in [
        ("IPv6", frame::IPV6, ipv6, "ipv6"),
        ("a VLAN tag", frame::VLAN, tagged, "not-ip"),
        ("LLDP", 0x88cc, MARK.to_vec(), "not-ip"),
    ] {
        refused(scene, what, &frame::ethernet(host, mac, ether_type, &payload), &[reason])?;
    }
    let broken = [&[0x45, 0, 0, 200, 0, 0, 0, 0, 64, 17][..], MARK].concat();
    let frame = frame::ethernet(host, mac, frame::IPV4, &broken);
    refused(scene, "a broken IPv4 header", &frame, &["malformed", "spoofed-ip"])
}

fn a_pods_vxlan(scene: &Scene) -> Result<(), LabError> {
    let (own, mac, host) = (scene.mallory.address(), scene.mallory.mac(), scene.mallory.host_mac());
    let forged = frame::vxlan(0, &inner(scene.lab.node(0).address(), scene.other.address()));
    for node in scene.lab.nodes() {
        let packet = frame::udp((own, 40000), (node.address(), VXLAN_PORT), &forged);
        let frame = frame::ethernet(host, mac, frame::IPV4, &packet);
        refused(scene, &format!("VXLAN to {}", node.name()), &frame, &["pod-vxlan"])?;
    }
    println!("VXLAN through a service whose endpoint is a node");
    let n1 = scene.lab.node(0);
    let vip = Ipv4Addr::new(10, 96, 0, 66);
    for (target, port) in [(scene.lab.node(1).address(), VXLAN_PORT), (n1.address(), VXLAN_PORT)] {
        for masquerade in [false, true] {
            let through = Service { masquerade, ..Service::new(vip, 53, target, port) };
            service::install(n1.netns(), &[through])?;
            let frame = frame::ethernet(host, mac, frame::IPV4, &frame::udp((own, 40001), (vip, 53), &forged));
            let mouth = PacketSocket::open(scene.mallory.netns(), "eth0")?;
            let drops = Drops::of(n1)?;
            let what = format!("VXLAN through a service to {target}");
            scene.failures.note(unseen(scene, &what, || (0..COUNT).try_for_each(|_| mouth.send(&frame))));
            scene.failures.note(drops.expect(&["pod-vxlan", "translated-vxlan"], COUNT));
        }
    }
    service::remove(n1.netns())
}

fn the_underlay(scene: &Scene) -> Result<(), LabError> {
    let lab = &scene.lab;
    let (n1, n2, n3) = (lab.node(0), lab.node(1), lab.node(2));
    let vni = n1.pods()?.iter().find(|pod| pod.pod == "near").map_or(0, |pod| pod.vni);
    let unused = Ipv4Addr::new(10, 77, 200, 9);
    let outside = lab.outside().netns();
    for (what, from, source, number, reasons) in [
        ("VXLAN from a machine that is no node", outside, scene.far.address(), vni, &["unknown-peer"][..]),
        ("VXLAN from n3 with n2's pod as source", n3.netns(), scene.far.address(), vni, &["wrong-peer"]),
        ("VXLAN from n2 with nobody's source", n2.netns(), unused, vni, &["wrong-peer"]),
        ("VXLAN from n2 with n1's pod as source", n2.netns(), scene.mallory.address(), vni, &["wrong-peer"]),
        ("VXLAN from n2 with an outside source", n2.netns(), Ipv4Addr::new(203, 0, 113, 5), vni, &["wrong-peer"]),
        ("VXLAN from n3 with n2's address, VNI 0", n3.netns(), n2.address(), 0, &["wrong-peer"]),
        ("VXLAN with VNI 0 and a pod's source", n2.netns(), scene.far.address(), 0, &["vni-zero"]),
        ("VXLAN with a foreign tenant's VNI", n2.netns(), scene.other.address(), vni + 1, &["isolated"]),
        ("VXLAN with a VNI that nobody has", n2.netns(), scene.far.address(), 0x00ff_fffe, &["isolated"]),
    ] {
        println!("{what}: dropped as {}", reasons.join(" or "));
        let drops = Drops::of(n1)?;
        let inner = inner(source, scene.near.address());
        scene.failures.note(unseen(scene, what, || send_vxlan(from, n1.address(), number, &inner)));
        scene.failures.note(drops.expect(reasons, COUNT));
    }
    println!("unencapsulated packets to and from pods' addresses on the underlay: dropped as bare");
    let to_n1 = frame::parse_mac(
        n1.netns()
            .exec("ip", &["-o", "link", "show", "eth0"], &[])?
            .split("link/ether ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .unwrap_or_default(),
    );
    let to_n1 = to_n1.ok_or_else(|| LabError::Broken("n1's eth0 has no MAC".into()))?;
    for (from, source, target) in [
        (outside, lab.outside().address(), scene.near.address()),
        (n2.netns(), n2.address(), scene.near.address()),
        (n2.netns(), scene.far.address(), scene.near.address()),
        (outside, scene.far.address(), n1.address()),
        (outside, scene.far.address(), Ipv4Addr::new(10, 96, 0, 1)),
    ] {
        let drops = Drops::of(n1)?;
        let frame = frame::ethernet(to_n1, FOREIGN, frame::IPV4, &frame::udp((source, 1), (target, 2), MARK));
        let mouth = PacketSocket::open(from, "eth0")?;
        let what = format!("unencapsulated, {source} to {target}");
        scene.failures.note(unseen(scene, &what, || (0..COUNT).try_for_each(|_| mouth.send(&frame))));
        scene.failures.note(drops.expect(&["bare"], COUNT));
    }
    Ok(())
}

//! A transaction of etcd applies at once: nothing of it before the bank is switched, all of it after.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::node::{Node, Tenant, first_networks, may_talk, on_node};
use super::packet::{PORT, Packet};
use super::run::{Skb, Way};
use bulkhead_agent::datapath::Network;

/// Every tenant's pod to every tenant's pod, against `networks`.
fn holds(node: &Node, networks: &BTreeMap<u32, Network>, when: &str) {
    let of = |tenant: Tenant| networks.get(&tenant.vni()).copied().unwrap_or(Network::None);
    for from in Tenant::ALL.map(|tenant| node.pod(tenant)) {
        for to in Tenant::ALL.map(|tenant| node.sibling(tenant)) {
            let packet = Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT)).frame();
            let way = node.run("from_pod", &Skb::received(from.ifindex, packet)).way;
            let allowed = may_talk(of(from.tenant), of(to.tenant));
            let case = format!("{when}: {:?} to {:?}: {way:?}", from.tenant, to.tenant);
            assert_eq!(allowed, matches!(way, Way::Delivered(_)), "{case}");
            assert!(allowed || way == Way::Dropped("isolated"), "{case}");
        }
    }
}

/// `first_networks` with some changed.
fn with(changes: &[(Tenant, u32)]) -> BTreeMap<u32, Network> {
    let mut networks = first_networks();
    networks.extend(changes.iter().map(|(tenant, id)| (tenant.vni(), Network::Id(*id))));
    networks
}

#[test]
fn nothing_before_the_switch_and_everything_after() {
    on_node(|node| {
        let states = [
            first_networks(),
            with(&[(Tenant::A, 12), (Tenant::C, 12), (Tenant::B, 12)]),
            with(&[(Tenant::A, 0), (Tenant::Global, 13)]),
            // All change at once, and a deleted one comes back.
            with(&[(Tenant::A, 11), (Tenant::B, 10), (Tenant::C, 11), (Tenant::Global, 14), (Tenant::Gone, 14)]),
            BTreeMap::new(),
            first_networks(),
        ];
        let mut held = &states[0];
        holds(node, held, "at first");
        for (number, next) in states.iter().enumerate().skip(1) {
            let bank = node.prepare(next).expect("a change switches the bank");
            holds(node, held, &format!("state {number} prepared"));
            // Prepared again, as after an error, it is the same.
            assert_eq!(node.prepare(next), Some(bank));
            node.switch(bank);
            holds(node, next, &format!("state {number} switched"));
            assert_eq!(node.prepare(next), None, "nothing is left to do");
            holds(node, next, &format!("state {number} prepared once more"));
            held = next;
        }
    });
}

#[test]
fn a_transaction_that_was_prepared_and_replaced_leaves_nothing_behind() {
    on_node(|node| {
        node.prepare(&with(&[(Tenant::B, 0)])).unwrap();
        assert_eq!(node.prepare(&first_networks()), None);
        holds(node, &first_networks(), "taken back");
        let bank = node.prepare(&with(&[(Tenant::C, 12)])).unwrap();
        node.switch(bank);
        holds(node, &with(&[(Tenant::C, 12)]), "another in its place");
    });
}

/// Ends the other thread, though this one fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Two that move together can talk all the while, on another CPU too.
#[test]
fn packets_under_way_see_one_state() {
    on_node(|node| {
        let (from, to) = (node.pod(Tenant::A), node.pod(Tenant::C));
        let skb = Skb::received(from.ifindex, Packet::udp(from.mac, (from.ip, PORT), (to.ip, PORT)).frame());
        let (done, runs) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    node.repeat("from_pod", &skb, 1000);
                    runs.fetch_add(1, Ordering::SeqCst);
                }
            });
            let end = SetOnDrop(&done);
            for round in 0..300 {
                let id = 20 + round % 7;
                node.apply(&with(&[(Tenant::A, id), (Tenant::C, id)]));
                // In place of the agent's wait for running programs: all that read the old bank's number have ended.
                let ended = runs.load(Ordering::SeqCst) + 1;
                while runs.load(Ordering::SeqCst) < ended && !sender.is_finished() {
                    std::thread::yield_now();
                }
            }
            drop(end);
        });
        assert_eq!(node.counters().get("isolated"), None, "not one packet saw half of a transaction");
    });
}

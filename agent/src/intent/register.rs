//! This machine's place among the nodes: asked for at start and when a restore may have lost it, never after somebody took it
//! away.

use std::net::IpAddr;

use bulkhead_core::Keys;
use bulkhead_core::network::NodeSubnets;
use bulkhead_core::record::{Record, SubnetRecord};
use bulkhead_store::{Compare, Txn};

use super::follow::Follower;
use super::retry::Retry;

const REMOVED: &str = "this node was removed from the cluster; stop the agent, or restart it to register again";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// To be asked for, unless the ledger has it.
    Wanted,
    /// The record is written, or was there; the leader answers in the ledger.
    Asked,
    /// In the ledger.
    Taken,
    /// It was in the ledger: somebody removed this node.
    Lost,
}

/// How this machine stands.
pub(super) struct Registration<'a> {
    follower: &'a Follower,
    keys: &'a Keys,
    seat: Seat,
    /// What this node has, or had: after a restore of etcd from an older state it asks for the same again.
    own: Option<NodeSubnets>,
    retry: Retry,
}

/// What the intent has at an address.
fn held(follower: &Follower, ip: IpAddr) -> Option<NodeSubnets> {
    follower.shared.read(|intent, _| intent.nodes.get(&ip).map(|node| node.subnets))
}

impl<'a> Registration<'a> {
    /// At the agent's start.
    pub fn new(follower: &'a Follower, keys: &'a Keys) -> Self {
        let own = follower.register.and_then(|ip| held(follower, ip));
        Self { follower, keys, seat: Seat::Wanted, own, retry: Retry::default() }
    }

    /// A state was followed; `released`: one that etcd's restore may lie behind.
    pub fn followed(&mut self, released: bool) {
        let Some(ip) = self.follower.register else { return };
        let held = held(self.follower, ip);
        self.own = held.or(self.own);
        let seat = match (self.seat, held) {
            (_, Some(_)) => Seat::Taken,
            (_, None) if released => Seat::Wanted,
            (Seat::Taken, None) => Seat::Lost,
            (seat, None) => seat,
        };
        if seat == Seat::Wanted {
            self.retry.want();
        } else {
            self.retry.done();
        }
        if seat == Seat::Lost && self.seat != Seat::Lost {
            tracing::error!("{REMOVED}");
        }
        self.seat = seat;
        let removed = (seat == Seat::Lost).then(|| REMOVED.to_owned());
        self.follower.shared.connection(|connection| connection.removed = removed);
    }

    /// Waits until there is something to ask. Cancel-safe.
    pub async fn wait(&self) {
        self.retry.wait().await;
    }

    /// Writes the record by which a machine asks for its subnet; what etcd does not take is asked again.
    pub async fn ask(&mut self) {
        let Some(ip) = self.follower.register else { return };
        let key = self.keys.subnet(ip);
        let mut record = SubnetRecord::asking(self.follower.node.as_str(), ip);
        let named: Vec<String> = self.own.iter().flat_map(NodeSubnets::iter).map(|subnet| subnet.to_string()).collect();
        record.subnet = named.join(",");
        let txn = Txn::new().when(Compare::absent(&key)).put(&key, record.to_json());
        match self.follower.store.commit(txn).await {
            Ok(outcome) if outcome.done().is_some() => tracing::info!(key, "asked for a subnet"),
            Ok(_) => tracing::info!(key, "this node's record is there already; waiting for the leader"),
            Err(error) => {
                tracing::warn!(key, %error, "could not ask for a subnet; trying again");
                self.retry.failed();
                return;
            }
        }
        self.retry.done();
        self.seat = Seat::Asked;
    }
}

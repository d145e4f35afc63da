//! The cluster's config beside the ledger. A node reads its own cluster's name there, and obeys the ledger alone: what of the
//! config is not in force is said, never acted on.

use bulkhead_core::cluster::Networks;
use bulkhead_core::ledger::ClusterEntry;
use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterConfig, ClusterName};
use bulkhead_store::{Change, Update};

/// What an update says of one key.
pub(super) enum Said {
    /// Its value.
    Value(Vec<u8>),
    /// It is not there.
    Absent,
    /// Nothing: it is as it was.
    Nothing,
}

impl Said {
    /// What `update` says of `key`.
    pub fn of(update: &Update, key: &str) -> Self {
        match update {
            Update::Snapshot(snapshot) => {
                snapshot.get(key).map_or(Self::Absent, |entry| Self::Value(entry.value.clone()))
            }
            Update::Changes(changes) => match changes.changes.iter().find(|change| change.key() == key) {
                Some(Change::Put(entry)) => Self::Value(entry.value.clone()),
                Some(Change::Delete { .. }) => Self::Absent,
                None => Self::Nothing,
            },
            Update::Unreachable { .. } => Self::Nothing,
        }
    }
}

/// Reads the config, or says what is wrong with it.
pub(super) fn parse(key: &str, value: &[u8]) -> Result<ClusterConfig, String> {
    let invalid = |error: &dyn std::error::Error| format!("the cluster's config {key} is not valid: {error}");
    let record = ConfigRecord::parse(value).map_err(|error| invalid(&error))?;
    ClusterConfig::try_from(&record).map_err(|error| invalid(&error))
}

/// The config as it was last read.
#[derive(Debug)]
pub(super) struct Beside {
    key: String,
    serves: ClusterName,
    /// None before it was read.
    config: Option<Result<ClusterConfig, String>>,
}

impl Beside {
    /// Of a node of the cluster `serves`.
    pub const fn new(key: String, serves: ClusterName) -> Self {
        Self { key, serves, config: None }
    }

    /// Notes what the config's key holds now.
    pub fn take(&mut self, update: &Update) {
        match Said::of(update, &self.key) {
            Said::Value(value) => self.config = Some(parse(&self.key, &value)),
            Said::Absent => {
                let gone = format!("the cluster's config {} is gone; write it again", self.key);
                self.config = Some(Err(gone));
            }
            Said::Nothing => {}
        }
    }

    /// What of the config is not in force.
    pub fn problem(&self, ledger: Option<&ClusterEntry>) -> Option<String> {
        let config = match self.config.as_ref()? {
            Ok(config) => config,
            Err(problem) => return Some(format!("{problem} (until then the last one stays in force)")),
        };
        let (now, serves) = (config.name(), &self.serves);
        if now != serves {
            return Some(format!(
                "Name in the cluster's config is now {now}; this node is one of {serves}: put it back"
            ));
        }
        let held = &ledger?.networks;
        let wanted = config.networks();
        if !wanted.pools().eq(held.pools()) {
            return Some(format!(
                "the cluster's config says Network {}, the ledger {}, which stays in force while nodes hold subnets of it: \
                 put the config back, or remove the nodes first",
                network(wanted),
                network(held)
            ));
        }
        (wanted.services() != held.services()).then(|| {
            "ServiceNetwork in the cluster's config is not the ledger's, which stays in force: is bulkhead-controller \
             running, and what does its log say?"
                .to_owned()
        })
    }
}

fn network(networks: &Networks) -> String {
    let ranges: Vec<String> = networks.pools().map(|pool| pool.network().to_string()).collect();
    format!("{} (HostSubnetLength {})", ranges.join(","), networks.v4().host_bits())
}

#[cfg(test)]
mod tests {
    use bulkhead_store::{Changes, Entry, Snapshot};

    use super::*;

    fn put(json: &str) -> Update {
        let entry = Entry { key: "/p/config".into(), value: json.into(), create_revision: 1, mod_revision: 1 };
        Update::Snapshot(Snapshot { revision: 1, cluster_id: 1, entries: vec![entry], discontinuity: None })
    }

    fn said(beside: &mut Beside, update: &Update) -> String {
        beside.take(update);
        let json =
            r#"{"epoch":1,"network":["10.77.0.0/16"],"hostSubnetLength":8,"serviceNetwork":[],"mode":"multitenant"}"#;
        beside.problem(Some(&serde_json::from_str(json).unwrap())).unwrap_or_default()
    }

    #[test]
    fn what_is_not_in_force_is_said_until_it_is_put_back() {
        let mut beside = Beside::new("/p/config".into(), ClusterName::new("c").unwrap());
        assert_eq!(beside.problem(None), None, "nothing was read yet");
        let right = r#"{"Name":"c","Network":"10.77.0.0/16","HostSubnetLength":8}"#;
        let gone = Update::Changes(Changes { revision: 2, changes: vec![Change::Delete { key: "/p/config".into() }] });
        for (wrong, text) in [
            (put(&right.replace("10.77", "10.78")), "10.78.0.0/16 (HostSubnetLength 8), the ledger 10.77.0.0/16"),
            (put(&right.replace(":8", ":9")), "(HostSubnetLength 9)"),
            (put(&right.replace('}', r#","ServiceNetwork":"10.96.0.0/16"}"#)), "ServiceNetwork"),
            (put(&right.replace(r#""c""#, r#""d""#)), "this node is one of c"),
            (put("{"), "not valid"),
            (gone, "is gone"),
        ] {
            let problem = said(&mut beside, &wrong);
            assert!(problem.contains(text), "{wrong:?}: {problem}");
            assert_eq!(said(&mut beside, &put(right)), "");
        }
        assert_eq!(beside.problem(None), None, "no controller has taken it up yet");
    }
}

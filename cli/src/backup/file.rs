//! The form of a backup. Pure.
//!
//! Promises: what is read is whole and belongs to one cluster, or is refused.

use std::collections::BTreeSet;

use bulkhead_core::record::{ConfigRecord, Record};
use bulkhead_core::{ClusterConfig, ClusterName};
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// The form's number; another one is refused.
const FORMAT: u32 = 1;

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// [`FORMAT`].
    #[serde(rename = "bulkheadBackup")]
    format: u32,
    /// The cluster's name, a part of the keys.
    pub name: String,
    /// etcd's revision of all of it.
    pub revision: i64,
    /// The ledger's epoch; absent before a controller has seen the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// How many entries follow: a file that was cut off is told by it.
    keys: usize,
    /// The keys.
    pub entries: Vec<Saved>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Below the prefix, without a slash in front.
    pub key: String,
    /// The value, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// The value in hexadecimal digits, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl Saved {
    /// A key with its value.
    pub fn new(key: &str, value: &[u8]) -> Self {
        let text = String::from_utf8(value.to_vec()).ok();
        let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'));
        let hex = text.is_none().then(|| value.iter().flat_map(digits).collect());
        Self { key: key.to_owned(), value: text, hex }
    }

    /// Its value.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        let wrong = || format!("the entry {:?} has no value", self.key);
        match (&self.value, &self.hex) {
            (Some(text), None) => Ok(text.clone().into_bytes()),
            (None, Some(hex)) if hex.is_ascii() && hex.len() % 2 == 0 => (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| wrong()))
                .collect(),
            _ => Err(wrong()),
        }
    }
}

impl Backup {
    /// Of these entries.
    pub fn new(name: String, revision: i64, epoch: Option<u64>, created: u64, entries: Vec<Saved>) -> Self {
        Self { format: FORMAT, name, revision, epoch, created, keys: entries.len(), entries }
    }

    /// As it lies in the file.
    pub fn to_json(&self) -> Result<Vec<u8>, CliError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads and checks it.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let backup: Self = serde_json::from_slice(text).map_err(|error| format!("this is no backup: {error}"))?;
        if backup.format != FORMAT {
            return Err(format!("its form is {}, and this program reads {FORMAT}", backup.format));
        }
        if backup.entries.len() != backup.keys {
            return Err(format!("it says {} keys and has {}; it is not whole", backup.keys, backup.entries.len()));
        }
        let name = ClusterName::new(backup.name.clone()).map_err(|error| error.to_string())?;
        let root = format!("{name}/");
        let mut seen = BTreeSet::new();
        for entry in &backup.entries {
            entry.bytes()?;
            if !seen.insert(&entry.key) {
                return Err(format!("the key {:?} is there twice", entry.key));
            }
            if entry.key != "config" && entry.key.strip_prefix(&root).is_none_or(str::is_empty) {
                return Err(format!("the key {:?} is none of the cluster {name}", entry.key));
            }
        }
        let config = backup.entries.iter().find(|entry| entry.key == "config").ok_or("it has no config")?;
        let config = ConfigRecord::parse(&config.bytes()?).map_err(|error| format!("its config: {error}"))?;
        ClusterConfig::try_from(&config).map_err(|error| format!("its config: {error}"))?;
        if config.name != backup.name {
            return Err(format!("its config is of the cluster {}, its keys are of {name}", config.name));
        }
        Ok(backup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let entries = vec![
            Saved::new("config", ConfigRecord::EXAMPLE.as_bytes()),
            Saved::new("k8ssdn/netnamespaces/a", b"{}"),
            Saved::new("k8ssdn/odd", &[0xff, 0x00]),
        ];
        Backup::new("k8ssdn".into(), 7, Some(2), 0, entries)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let read = Backup::parse(&backup().to_json().unwrap()).unwrap();
        assert_eq!(read, backup());
        assert_eq!(read.entries[2].bytes().unwrap(), [0xff, 0x00]);
    }

    #[test]
    fn what_is_not_whole_or_not_ours_is_refused() {
        let spoilt = |spoil: &dyn Fn(&mut Backup)| {
            let mut backup = backup();
            spoil(&mut backup);
            Backup::parse(&backup.to_json().unwrap()).unwrap_err()
        };
        assert!(spoilt(&|backup| drop(backup.entries.pop())).contains("not whole"));
        assert!(spoilt(&|backup| backup.format = 2).contains("its form is 2"));
        assert!(spoilt(&|backup| backup.name = "other".into()).contains("none of the cluster other"));
        assert!(spoilt(&|backup| backup.entries[1].key = "config".into()).contains("twice"));
        assert!(spoilt(&|backup| backup.entries[1].key = "../x".into()).contains("none of the cluster"));
        assert!(spoilt(&|backup| backup.entries[0] = Saved::new("config", b"{}")).contains("config"));
        assert!(spoilt(&|backup| backup.entries[2].hex = Some("f".into())).contains("no value"));
        for bad in ["", "[]", "{}", "{\"bulkheadBackup\":1}"] {
            assert!(Backup::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}

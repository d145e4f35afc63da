//! The rows of the attachments' file as values: all of them, and the changes from one state to another. Pure.

use std::collections::BTreeMap;

use bulkhead_core::attachment::AttachmentId;

use super::record::Record;

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Those whose ADD was answered.
    pub attachments: BTreeMap<AttachmentId, Record>,
    /// Host part to the time of its release, milliseconds since boot.
    pub freed: BTreeMap<u32, u64>,
    /// Device index to host part (0: of another subnet) of pods whose records are lost.
    pub strangers: BTreeMap<u32, u32>,
    /// The meta keys of [`super::disk`].
    pub meta: BTreeMap<&'static str, String>,
}

/// One row, and what it is to hold; none removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A record.
    Attachment(AttachmentId, Option<Box<Record>>),
    /// A freed host part.
    Freed(u32, Option<u64>),
    /// A stranger.
    Stranger(u32, Option<u32>),
    /// One of the meta keys.
    Meta(&'static str, Option<String>),
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn differences<'a, K: Ord + Clone, V: PartialEq + Clone>(
    held: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> + 'a {
    let gone = held.keys().filter(|key| !wanted.contains_key(key)).map(|key| (key.clone(), None));
    let other = wanted.iter().filter(|(key, value)| held.get(key) != Some(value));
    gone.chain(other.map(|(key, value)| (key.clone(), Some(value.clone()))))
}

impl Contents {
    /// Changes rows.
    pub fn apply(&mut self, rows: Vec<Row>) {
        for row in rows {
            match row {
                Row::Attachment(id, record) => put(&mut self.attachments, id, record.map(|boxed| *boxed)),
                Row::Freed(host, when) => put(&mut self.freed, host, when),
                Row::Stranger(ifindex, host) => put(&mut self.strangers, ifindex, host),
                Row::Meta(key, value) => put(&mut self.meta, key, value),
            }
        }
    }

    /// The rows by which these become `wanted`.
    pub fn towards(&self, wanted: &Self) -> Vec<Row> {
        let mut rows = Vec::new();
        rows.extend(
            differences(&self.attachments, &wanted.attachments)
                .map(|(id, record)| Row::Attachment(id, record.map(Box::new))),
        );
        rows.extend(differences(&self.freed, &wanted.freed).map(|(host, when)| Row::Freed(host, when)));
        rows.extend(differences(&self.strangers, &wanted.strangers).map(|(index, host)| Row::Stranger(index, host)));
        rows.extend(differences(&self.meta, &wanted.meta).map(|(key, value)| Row::Meta(key, value)));
        rows
    }
}

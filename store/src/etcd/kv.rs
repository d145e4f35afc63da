//! Reads, lists by pages pinned to one revision, and transactions.

use std::collections::BTreeMap;

use etcd_client::{
    Compare as EtcdCompare, CompareOp, GetOptions, GetResponse, KeyValue, PutOptions, TxnOp, TxnOpResponse,
};

use super::{Etcd, MAX_ANSWER_BYTES, Repeat};
use crate::entry::{Entry, Snapshot};
use crate::error::StoreError;
use crate::txn::{Conflict, Operation, Outcome, Target, Txn};
use crate::watch::Prefixes;

/// Keys per page of a list. Records are small, so the first will do; but whoever may write keys may write large ones,
/// and a page that exceeds [`MAX_ANSWER_BYTES`] is asked for again with the next size: 40 values of 1.5 MiB (etcd's own
/// limit) fit, and where an etcd allows larger ones, one at a time.
const PAGES: [i64; 3] = [500, 40, 1];
/// How often a list starts over when it is compacted in the middle.
const RESTARTS: usize = 10;

/// The entry of an etcd record; `None` for a key that is not UTF-8, which nobody here wrote.
pub(super) fn entry(kv: &KeyValue) -> Option<Entry> {
    let Ok(key) = kv.key_str() else {
        tracing::warn!(key = ?kv.key(), "ignoring a key that is not UTF-8");
        return None;
    };
    Some(Entry {
        key: key.to_owned(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
    })
}

/// The end of the range of all keys that start with `prefix`; `[0]` means no end.
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The start of that range.
pub(super) fn range_start(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}

impl Etcd {
    /// Makes sure that a majority answers and takes our login. A role that may not read this key is fine.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        let options = GetOptions::new().with_count_only();
        match self.range("the connection check", vec![0], options).await {
            Ok(_) | Err(StoreError::PermissionDenied { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let what = format!("reading {key}");
        let answer = self.range(&what, key, GetOptions::new()).await?;
        Ok(answer.kvs().first().and_then(entry))
    }

    pub(crate) async fn list(&self, prefixes: &Prefixes) -> Result<Snapshot, StoreError> {
        let mut restarts = 0;
        loop {
            match self.list_once(prefixes).await {
                Err(StoreError::Compacted) if restarts < RESTARTS => restarts += 1,
                result => return result,
            }
        }
    }

    async fn list_once(&self, prefixes: &Prefixes) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot { revision: 0, cluster_id: 0, entries: Vec::new(), discontinuity: None };
        let (mut limit, mut smaller) = (PAGES[0], PAGES[1..].iter());
        for prefix in prefixes.iter() {
            let what = format!("listing {prefix:?}");
            let mut start = range_start(prefix);
            loop {
                let options =
                    GetOptions::new().with_range(range_end(prefix)).with_limit(limit).with_revision(snapshot.revision);
                let page = match (self.range(&what, start.clone(), options).await, smaller.as_slice()) {
                    (Err(StoreError::AnswerTooLarge { .. }), [next, ..]) => {
                        tracing::debug!(what, limit, "a page is too large, asking for fewer keys");
                        limit = *next;
                        smaller.next();
                        continue;
                    }
                    (page, _) => page?,
                };
                let header = page.header().ok_or_else(|| no_header(&what))?;
                if snapshot.revision == 0 {
                    snapshot.revision = header.revision();
                    snapshot.cluster_id = header.cluster_id();
                } else if snapshot.cluster_id != header.cluster_id() {
                    // Replaced between two pages: they do not belong together.
                    return Err(StoreError::Compacted);
                }
                snapshot.entries.extend(page.kvs().iter().filter_map(entry));
                let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                    break;
                };
                start = last.key().to_vec();
                start.push(0);
            }
        }
        Ok(snapshot)
    }

    async fn range(
        &self,
        what: &str,
        start: impl Into<Vec<u8>>,
        options: GetOptions,
    ) -> Result<GetResponse, StoreError> {
        let start = start.into();
        self.call(what, self.read(), |client| {
            let (start, options) = (start.clone(), options.clone());
            async move {
                let kv = client.kv_client();
                let mut kv = kv.max_decoding_message_size(MAX_ANSWER_BYTES);
                kv.get(start, Some(options)).await
            }
        })
        .await
    }

    pub(crate) async fn commit(&self, txn: &Txn) -> Result<Outcome, StoreError> {
        let what = describe(txn);
        let repeat = if txn.operations.is_empty() { self.read() } else { Repeat::Never };
        let send = |client: etcd_client::Client| async move {
            let kv = client.kv_client();
            let mut kv = kv.max_decoding_message_size(MAX_ANSWER_BYTES);
            kv.txn(encode(txn)).await
        };
        let answer = match self.call(&what, repeat, send).await {
            Err(StoreError::LeaseLost { .. }) => {
                let lease = txn.operations.iter().find_map(|operation| match operation {
                    Operation::Put { lease, .. } => *lease,
                    Operation::Delete { .. } => None,
                });
                return Err(StoreError::LeaseLost { lease: lease.unwrap_or_default() });
            }
            result => result?,
        };
        let header = answer.header().ok_or_else(|| no_header(&what))?;
        let revision = header.revision();
        if answer.succeeded() {
            return Ok(Outcome::Done { revision });
        }
        let mut current = BTreeMap::new();
        for response in answer.op_responses() {
            if let TxnOpResponse::Get(get) = response {
                let entries = get.kvs().iter().filter_map(entry);
                current.extend(entries.map(|entry| (entry.key.clone(), entry)));
            }
        }
        let state = |key: &str| current.get(key).cloned();
        Ok(Outcome::Conflict(Conflict::judge(revision, &txn.compares, state)))
    }
}

fn encode(txn: &Txn) -> etcd_client::Txn {
    let compares = txn.compares.iter().map(|compare| {
        let key = compare.key.as_str();
        match compare.target {
            // An absent key has both revisions 0.
            Target::Mod(n) => EtcdCompare::mod_revision(key, CompareOp::Equal, n),
            Target::Create(n) => EtcdCompare::create_revision(key, CompareOp::Equal, n),
        }
    });
    let operations = txn.operations.iter().map(|operation| match operation {
        Operation::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease));
            TxnOp::put(key.as_str(), value.clone(), options)
        }
        Operation::Delete { key } => TxnOp::delete(key.as_str(), None),
    });
    let reads = txn.compares.iter().map(|compare| TxnOp::get(compare.key.as_str(), None));
    etcd_client::Txn::new()
        .when(compares.collect::<Vec<_>>())
        .and_then(operations.collect::<Vec<_>>())
        .or_else(reads.collect::<Vec<_>>())
}

/// Names the transaction by its first written key.
fn describe(txn: &Txn) -> String {
    match txn.operations.as_slice() {
        [] => "a check".to_owned(),
        [only] => format!("writing {}", only.key()),
        [first, rest @ ..] => format!("writing {} and {} more", first.key(), rest.len()),
    }
}

fn no_header(what: &str) -> StoreError {
    StoreError::Unavailable { what: what.to_owned(), source: "the answer has no header".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_a_prefix() {
        assert_eq!(range_end("/a/"), b"/a0");
        assert_eq!(range_end(""), [0]);
        assert_eq!(range_start(""), [0]);
        assert_eq!(range_start("/a"), b"/a");
    }
}

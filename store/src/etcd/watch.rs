//! One watch stream of etcd, until it breaks: fragments put together, revisions kept whole, prefixes filtered.
//!
//! etcd never splits a revision over two responses unless it marks the first as a fragment, so everything up to a
//! response without that mark is whole.

use std::collections::VecDeque;

use etcd_client::{Client, Event, EventType, WatchOptions, WatchResponse, WatchStream};

use super::kv::{entry, range_end, range_start};
use super::{Etcd, MAX_ANSWER_BYTES};
use crate::entry::{Change, Changes, Snapshot};
use crate::error::StoreError;
use crate::etcd::failure::Failure;
use crate::watch::Prefixes;

/// A running watch stream.
pub(crate) struct EtcdWatch {
    etcd: Etcd,
    endpoint: usize,
    stream: WatchStream,
    assembly: Assembly,
}

impl Etcd {
    /// Watches everything after the snapshot; returns once etcd has confirmed the watch.
    pub(crate) async fn watch(&self, prefixes: &Prefixes, snapshot: &Snapshot) -> Result<EtcdWatch, StoreError> {
        let what = format!("watching {prefixes}");
        let options = WatchOptions::new()
            .with_range(range_end(prefixes.common()))
            .with_start_revision(snapshot.revision + 1)
            .with_fragment();
        let send = |client: Client| {
            let options = options.clone();
            // Read before the request, so that a failure of the stream is blamed on the right endpoint.
            let endpoint = self.current();
            async move {
                let mut watches = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
                let start = range_start(prefixes.common());
                let mut stream = watches.watch(start, Some(options)).await?;
                let created = stream.message().await?;
                Ok((stream, created, endpoint))
            }
        };
        let (stream, created, endpoint) = self.call(&what, self.read(), send).await?;
        let mut watch = EtcdWatch { etcd: self.clone(), endpoint, stream, assembly: Assembly::new(prefixes, snapshot) };
        let created = created.ok_or_else(|| broken("the stream ended at once"))?;
        watch.take(&created)?;
        Ok(watch)
    }
}

impl EtcdWatch {
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            if let Some(changes) = self.assembly.ready.pop_front() {
                return Ok(changes);
            }
            match self.stream.message().await {
                Ok(Some(response)) => self.take(&response)?,
                Ok(None) => {
                    self.etcd.give_up(self.endpoint);
                    return Err(broken("etcd ended the stream"));
                }
                Err(error) => {
                    self.etcd.give_up(self.endpoint);
                    let failure = Failure::of(error);
                    return Err(StoreError::WatchBroken { source: failure.to_string().into() });
                }
            }
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Result<(), StoreError> {
        if response.canceled() {
            return Err(self.why_canceled(response));
        }
        self.assembly.take(response)
    }

    fn why_canceled(&self, response: &WatchResponse) -> StoreError {
        let reason = response.cancel_reason();
        if response.compact_revision() > 0 {
            StoreError::Compacted
        } else if reason.contains("permission denied") {
            // The role may have changed since the login.
            self.etcd.give_up(self.endpoint);
            StoreError::PermissionDenied {
                what: format!("watching everything under {:?}", self.assembly.prefixes.common()),
                source: reason.to_owned().into(),
            }
        } else {
            self.etcd.give_up(self.endpoint);
            broken(&format!("etcd canceled it: {reason}"))
        }
    }
}

/// Puts responses together to whole revisions.
struct Assembly {
    prefixes: Prefixes,
    cluster_id: u64,
    /// The highest revision seen.
    cursor: i64,
    /// Events of a response that goes on in the next one.
    fragments: Vec<Event>,
    ready: VecDeque<Changes>,
}

impl Assembly {
    fn new(prefixes: &Prefixes, snapshot: &Snapshot) -> Self {
        Self {
            prefixes: prefixes.clone(),
            cluster_id: snapshot.cluster_id,
            cursor: snapshot.revision,
            fragments: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    fn take(&mut self, response: &WatchResponse) -> Result<(), StoreError> {
        if let Some(header) = response.header() {
            if header.cluster_id() != self.cluster_id {
                return Err(broken("another cluster answers"));
            }
            if header.revision() < self.cursor {
                return Err(broken("the revision went back"));
            }
        }
        self.fragments.extend_from_slice(response.events());
        if !response.0.fragment {
            let whole = std::mem::take(&mut self.fragments);
            self.sort_in(&whole);
        }
        Ok(())
    }

    /// Groups whole revisions and keeps what the prefixes ask for.
    fn sort_in(&mut self, events: &[Event]) {
        let revisions = events.chunk_by(|a, b| revision_of(a) == revision_of(b));
        for events in revisions {
            let Some(revision) = events.first().and_then(revision_of) else {
                continue;
            };
            self.cursor = self.cursor.max(revision);
            let changes: Vec<_> =
                events.iter().filter_map(change).filter(|change| self.prefixes.contains(change.key())).collect();
            if !changes.is_empty() {
                self.ready.push_back(Changes { revision, changes });
            }
        }
    }
}

fn broken(why: &str) -> StoreError {
    StoreError::WatchBroken { source: why.to_owned().into() }
}

fn revision_of(event: &Event) -> Option<i64> {
    event.kv().map(etcd_client::KeyValue::mod_revision)
}

fn change(event: &Event) -> Option<Change> {
    let entry = entry(event.kv()?)?;
    Some(match event.event_type() {
        EventType::Put => Change::Put(entry),
        EventType::Delete => Change::Delete { key: entry.key },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader, PbWatchResponse};

    fn response(cluster_id: u64, fragment: bool, events: &[(&str, i64)]) -> WatchResponse {
        let event = |(key, revision): &(&str, i64)| PbEvent {
            kv: Some(PbKeyValue {
                key: (*key).into(),
                mod_revision: *revision,
                create_revision: *revision,
                ..PbKeyValue::default()
            }),
            ..PbEvent::default()
        };
        WatchResponse(PbWatchResponse {
            header: Some(PbResponseHeader { cluster_id, revision: 100, ..PbResponseHeader::default() }),
            fragment,
            events: events.iter().map(event).collect(),
            ..PbWatchResponse::default()
        })
    }

    fn assembly() -> Assembly {
        let snapshot = Snapshot { revision: 9, cluster_id: 1, entries: Vec::new(), discontinuity: None };
        Assembly::new(&Prefixes::new(&["/a", "/b"]), &snapshot)
    }

    #[test]
    fn fragments_that_tear_a_revision_are_mended() {
        let mut assembly = assembly();
        let parts = [
            response(1, true, &[("/a/1", 10), ("/a/2", 11)]),
            response(1, true, &[("/b/1", 11)]),
            response(1, false, &[("/b/2", 11), ("/c", 11), ("/c", 12), ("/a/1", 13)]),
        ];
        for (at, part) in parts.iter().enumerate() {
            assert!(assembly.ready.is_empty(), "torn before part {at}");
            assembly.take(part).unwrap();
        }
        let got: Vec<_> = assembly
            .ready
            .iter()
            .map(|c| {
                let keys: Vec<_> = c.changes.iter().map(Change::key).collect();
                (c.revision, keys.join(" "))
            })
            .collect();
        let want = [(10, "/a/1"), (11, "/a/2 /b/1 /b/2"), (13, "/a/1")];
        assert_eq!(got, want.map(|(r, k)| (r, k.to_owned())));
    }

    #[test]
    fn another_cluster_or_an_older_revision_breaks_the_stream() {
        assert!(assembly().take(&response(2, false, &[])).is_err());
        let mut behind = assembly();
        behind.cursor = 101;
        assert!(behind.take(&response(1, false, &[])).is_err());
    }
}

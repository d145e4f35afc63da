//! The intent on disk, so that a node that boots while etcd is down starts pods all the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use bulkhead_core::ledger::{ClusterEntry, NodeEntry};
use bulkhead_core::{ClusterName, Namespace, Tenant};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Intent, Shared};

/// Why the cache cannot be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// Reading or writing failed.
    #[error("the cached state {path} cannot be used: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not ours, or broken.
    #[error("the cached state {path} cannot be read: {source}; it is ignored until etcd answers")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    name: Option<ClusterName>,
    cluster_id: u64,
    revision: i64,
    #[serde(default)]
    must_exceed: Option<u64>,
    cluster: Option<ClusterEntry>,
    nodes: BTreeMap<IpAddr, NodeEntry>,
    namespaces: BTreeMap<Namespace, Tenant>,
}

/// The file.
#[derive(Debug, Clone)]
pub struct Cache {
    path: PathBuf,
    /// Held while a state is read and written: the last one written is the newest.
    turn: Arc<Mutex<()>>,
}

impl Cache {
    /// The cache in this folder, which is made.
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(folder).map_err(|source| CacheError::Io { path: folder.to_owned(), source })?;
        Ok(Self { path: folder.join("intent.json"), turn: Arc::default() })
    }

    /// What was saved last; none if nothing was.
    pub fn load(&self) -> Result<Option<Intent>, CacheError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError::Io { path: self.path.clone(), source }),
        };
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|source| CacheError::Json { path: self.path.clone(), source })?;
        Ok(Some(Intent {
            name: stored.name,
            cluster_id: stored.cluster_id,
            revision: stored.revision,
            must_exceed: stored.must_exceed,
            cluster: stored.cluster,
            nodes: stored.nodes,
            namespaces: stored.namespaces,
            unreadable: BTreeMap::new(),
            cached: true,
        }))
    }

    /// Saves each new state, at most one a second, for as long as the process lives: on a thread of its own, so that a slow disk
    /// keeps no change from the kernel.
    pub fn keep(&self, shared: &Shared) {
        let (mut seen, mut saved) = (0, None);
        loop {
            seen = shared.wait_past(seen, Instant::now() + Duration::from_mins(1));
            let state = shared.read(|intent, _| (intent.cluster_id, intent.revision, intent.must_exceed));
            if saved != Some(state) && state.1 > 0 {
                match self.save_now(shared) {
                    Ok(()) => saved = Some(state),
                    Err(error) => tracing::warn!("{error}"),
                }
                // Behind a save only: the first state is written at once.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }

    /// Saves what is known at this moment: a hold is to be on disk before anybody is told of it.
    pub fn save_now(&self, shared: &Shared) -> Result<(), CacheError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.save(&shared.read(|intent, _| intent.clone()))
    }

    /// Saves by rename: a power cut leaves the old state or the new one.
    pub fn save(&self, intent: &Intent) -> Result<(), CacheError> {
        let failed = |source| CacheError::Io { path: self.path.clone(), source };
        let stored = Stored {
            name: intent.name.clone(),
            cluster_id: intent.cluster_id,
            revision: intent.revision,
            must_exceed: intent.must_exceed,
            cluster: intent.cluster.clone(),
            nodes: intent.nodes.clone(),
            namespaces: intent.namespaces.clone(),
        };
        let bytes =
            serde_json::to_vec(&stored).map_err(|source| CacheError::Json { path: self.path.clone(), source })?;
        let temporary = self.path.with_extension("new");
        let mut file = fs::File::create(&temporary).map_err(failed)?;
        io::Write::write_all(&mut file, &bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&temporary, &self.path).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_a_broken_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        assert!(cache.load().unwrap().is_none());
        let mut intent = Intent { cluster_id: 3, revision: 9, ..Intent::default() };
        let tenant: Tenant = serde_json::from_str(r#"{"vni":10,"netId":0}"#).unwrap();
        intent.namespaces.insert(Namespace::new("a").unwrap(), tenant);
        cache.save(&intent).unwrap();
        let loaded = cache.load().unwrap().unwrap();
        assert_eq!((loaded.revision, loaded.cached, loaded.namespaces), (9, true, intent.namespaces));
        fs::write(folder.path().join("intent.json"), "{").unwrap();
        assert!(matches!(cache.load(), Err(CacheError::Json { .. })));
    }
}

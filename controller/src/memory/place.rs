//! Where a memory of etcd is kept: a file of a standalone controller, or a `ConfigMap`, which outlives every controller.
//!
//! Reads and writes, nothing else. Promises: what is read was written whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use bulkhead_core::Keys;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Memory;
use crate::kubernetes::MANAGER;

/// The `ConfigMap` in the agents' namespace.
pub const CONFIG_MAP: &str = "bulkhead-epoch";

/// One of the two.
#[derive(Debug, Clone)]
pub enum Place {
    /// A file, replaced by rename.
    File(PathBuf),
    /// The `ConfigMap` [`CONFIG_MAP`] of a namespace.
    ConfigMap(Box<Api<ConfigMap>>),
}

/// Why a place cannot be read or written.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The file system refuses.
    #[error("{path:?}: {source}; is --state-dir writable?")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API server refuses, or cannot be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// What is there is no memory.
    #[error("what is there cannot be read; it is written anew")]
    Form,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
struct Form {
    /// The cluster id and the revision.
    etcd: Option<(u64, i64)>,
    epoch: u64,
    owed: Option<u64>,
}

impl Place {
    /// The file of this cluster in a folder: one machine may run controllers of several clusters.
    pub fn file(folder: &Path, keys: &Keys) -> Self {
        Self::File(folder.join(format!("history{}json", keys.root().replace('/', "."))))
    }

    /// The object in a namespace.
    pub fn config_map(client: &Client, namespace: &str) -> Self {
        Self::ConfigMap(Box::new(Api::namespaced(client.clone(), namespace)))
    }

    /// What was written last; none if nothing was.
    pub async fn read(&self) -> Result<Option<Memory>, PlaceError> {
        match self {
            Self::File(path) => match fs::read(path) {
                Ok(bytes) => {
                    let Form { etcd, epoch, owed } = serde_json::from_slice(&bytes).map_err(|_| PlaceError::Form)?;
                    Ok(etcd.map(|(cluster_id, revision)| Memory { cluster_id, revision, epoch, owed }))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(PlaceError::File { path: path.clone(), source }),
            },
            Self::ConfigMap(api) => {
                let Some(found) = api.get_opt(CONFIG_MAP).await? else { return Ok(None) };
                parse(&found.data.unwrap_or_default()).map(Some).ok_or(PlaceError::Form)
            }
        }
    }

    /// Puts a memory in the place of the one before.
    pub async fn write(&self, memory: &Memory) -> Result<(), PlaceError> {
        match self {
            Self::File(path) => write(path, memory).map_err(|source| PlaceError::File { path: path.clone(), source }),
            Self::ConfigMap(api) => {
                let patch = Patch::Apply(manifest(memory));
                api.patch(CONFIG_MAP, &PatchParams::apply(MANAGER).force(), &patch).await?;
                Ok(())
            }
        }
    }
}

fn write(path: &Path, memory: &Memory) -> io::Result<()> {
    let etcd = Some((memory.cluster_id, memory.revision));
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(&Form { etcd, epoch: memory.epoch, owed: memory.owed })?)?;
    fs::rename(&temporary, path)
}

fn manifest(memory: &Memory) -> ConfigMap {
    let data = [
        ("epoch", Some(memory.epoch.to_string())),
        ("clusterId", Some(format!("{:x}", memory.cluster_id))),
        ("revision", Some(memory.revision.to_string())),
        ("owed", memory.owed.map(|owed| owed.to_string())),
    ];
    let data = data.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    ConfigMap {
        metadata: ObjectMeta { name: Some(CONFIG_MAP.to_owned()), ..ObjectMeta::default() },
        data: Some(data.collect()),
        ..ConfigMap::default()
    }
}

fn parse(data: &BTreeMap<String, String>) -> Option<Memory> {
    Some(Memory {
        epoch: data.get("epoch")?.parse().ok()?,
        cluster_id: u64::from_str_radix(data.get("clusterId")?, 16).ok()?,
        revision: data.get("revision")?.parse().ok()?,
        owed: data.get("owed").map(|owed| owed.parse()).transpose().ok()?,
    })
}

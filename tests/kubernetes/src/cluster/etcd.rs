//! The cluster's etcd, and another one beside it: who may do what there, and how a client reaches it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::etcd::{Etcd, EtcdTls};
use bulkhead_tests::underlay::Underlay;

use super::{BULKHEAD_PREFIX, Cluster};
use crate::certificates::{Authority, Subject};

/// What a client of etcd needs; paths of the host.
#[derive(Debug, Clone)]
pub struct EtcdClient {
    /// For `--etcd-endpoints`.
    pub endpoints: String,
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The client's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One at the infra machine's address of that number, its data and certificates in `dir`.
pub(super) fn start(underlay: &Underlay, authority: &Authority, dir: &Path, number: usize) -> Result<Etcd, LabError> {
    let pki = dir.join("etcd-pki");
    let address = underlay.infra_addresses()[number];
    authority.credential().write(&pki, "ca")?;
    authority.issue(&Subject::server("etcd", &["etcd"], &[address.into()]))?.write(&pki, "server")?;
    authority.issue(&Subject::client("root", None))?.write(&pki, "root")?;
    authority.issue(&Subject::client("bulkhead", None))?.write(&pki, "bulkhead")?;
    let tls = EtcdTls {
        authority: pki.join("ca.crt"),
        certificate: pki.join("server.crt"),
        key: pki.join("server.key"),
        client_certificate: pki.join("root.crt"),
        client_key: pki.join("root.key"),
    };
    let etcd = Etcd::start_with(Arc::clone(&underlay.infra), vec![address], dir, Some(tls))?;
    limit_users(&etcd)?;
    Ok(etcd)
}

/// The API server's user may do anything, Bulkhead's only what is below its prefix. Users are certificates' common names.
fn limit_users(etcd: &Etcd) -> Result<(), LabError> {
    let prefix = ["role", "grant-permission", "bulkhead", "--prefix=true", "readwrite", BULKHEAD_PREFIX];
    for words in [
        &["user", "add", "root", "--no-password"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "bulkhead"],
        &prefix,
        &["user", "add", "bulkhead", "--no-password"],
        &["user", "grant-role", "bulkhead", "bulkhead"],
        &["auth", "enable"],
    ] {
        etcd.ctl(words)?;
    }
    Ok(())
}

impl Cluster {
    /// etcd; keep the guard short.
    pub fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an etcd beside the API server's, for the same clients: one can be away without the other.
    pub fn start_another_etcd(&self) -> Result<Etcd, LabError> {
        let dir = self.dir().join("another");
        fs::create_dir_all(&dir).tried(|| format!("create {}", dir.display()))?;
        start(&self.underlay, &self.authority, &dir, 1)
    }

    /// What a client of etcd shows; its certificate is for the user `bulkhead`, who is kept to [`BULKHEAD_PREFIX`].
    pub fn etcd_client(&self) -> EtcdClient {
        let pki = self.dir().join("etcd-pki");
        EtcdClient {
            endpoints: self.etcd().endpoints(),
            authority: pki.join("ca.crt"),
            certificate: pki.join("bulkhead.crt"),
            key: pki.join("bulkhead.key"),
        }
    }
}

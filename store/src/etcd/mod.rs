//! placeholder
use crate::{entry::*, error::StoreError, settings::Settings, store::Granted, txn::*, watch::Prefixes};
use std::{sync::Arc, time::Duration};
#[derive(Clone)]
pub(crate) struct Etcd {
    settings: Arc<Settings>,
}
pub(crate) struct EtcdWatch;
fn no<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable { what: "etcd".into(), source: "not yet implemented".into() })
}
impl EtcdWatch {
    pub(crate) async fn next(&mut self) -> Result<Changes, StoreError> {
        no()
    }
}
impl Etcd {
    pub(crate) fn open(settings: Settings) -> Result<Self, StoreError> {
        Ok(Self { settings: Arc::new(settings) })
    }
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        no()
    }
    pub(crate) async fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
        no()
    }
    pub(crate) async fn list(&self, _: &Prefixes) -> Result<Snapshot, StoreError> {
        no()
    }
    pub(crate) async fn watch(&self, _: &Prefixes, _: &Snapshot) -> Result<EtcdWatch, StoreError> {
        no()
    }
    pub(crate) async fn commit(&self, _: &Txn) -> Result<Outcome, StoreError> {
        no()
    }
    pub(crate) async fn grant(&self, _: Duration) -> Result<Granted, StoreError> {
        no()
    }
    pub(crate) async fn keep_alive(&self, _: i64, _: Duration) -> Result<(), StoreError> {
        no()
    }
    pub(crate) async fn revoke(&self, _: i64) -> Result<(), StoreError> {
        no()
    }
}

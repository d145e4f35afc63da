//! The `ConfigMap` that says where the members are: what the setup decided, and what everybody else reads.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::members::Member;
use super::membership::Age;
use crate::error::CliError;

/// Its name.
const CONFIG_MAP: &str = "bulkhead-etcd";
/// The key that says whether the cluster has ever had a quorum.
const STATE: &str = "cluster-state";

/// Ports of every member.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// For clients.
    pub client: u16,
    /// For the other members.
    pub peer: u16,
}

/// What is written down, and as which version.
#[derive(Debug, Clone)]
pub struct Record {
    /// The members.
    pub members: Vec<Member>,
    /// Whether they may bootstrap their cluster.
    pub age: Age,
    version: String,
}

/// Where it is kept.
pub struct Records {
    maps: Api<ConfigMap>,
    namespace: String,
    ports: Ports,
}

impl Records {
    /// Of that namespace.
    pub fn new(client: &Client, namespace: &str, ports: Ports) -> Self {
        Self { maps: Api::namespaced(client.clone(), namespace), namespace: namespace.to_owned(), ports }
    }

    /// Reads it, if it is there.
    pub async fn get(&self) -> Result<Option<Record>, CliError> {
        self.maps.get_opt(CONFIG_MAP).await?.as_ref().map(read).transpose()
    }

    /// Writes it down for a new cluster, unless another one was faster: then that one's holds.
    pub async fn create(&self, members: &[Member]) -> Result<Record, CliError> {
        let born = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut data = self.of_members(members);
        // Members of another installation at the same addresses are not taken for this one's.
        data.insert("cluster-token", format!("bulkhead-{born:x}"));
        data.insert(STATE, "new".to_owned());
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                namespace: Some(self.namespace.clone()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/name".to_owned(), "bulkhead".to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ..ConfigMap::default()
        };
        match self.maps.create(&PostParams::default(), &map).await {
            Ok(there) => read(&there),
            Err(kube::Error::Api(status)) if status.code == 409 => read(&self.maps.get(CONFIG_MAP).await?),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes down that the cluster has had a quorum.
    pub async fn grown_up(&self, record: &Record) -> Result<Record, CliError> {
        self.patch(record, BTreeMap::from([(STATE, "existing".to_owned())])).await
    }

    /// Writes down other members.
    pub async fn replace(&self, record: &Record, members: &[Member]) -> Result<Record, CliError> {
        self.patch(record, self.of_members(members)).await
    }

    /// Where clients find these members.
    pub fn endpoints(&self, members: &[Member]) -> Vec<String> {
        members.iter().map(|member| member.url(self.ports.client)).collect()
    }

    fn of_members(&self, members: &[Member]) -> BTreeMap<&'static str, String> {
        let list = |one: &dyn Fn(&Member) -> String| members.iter().map(one).collect::<Vec<_>>().join(",");
        BTreeMap::from([
            ("members", list(&ToString::to_string)),
            ("endpoints", self.endpoints(members).join(",")),
            ("initial-cluster", list(&|member| format!("{}={}", member.node, member.url(self.ports.peer)))),
        ])
    }

    /// Changes what is of this version; another one has been at it otherwise.
    async fn patch(&self, record: &Record, data: BTreeMap<&'static str, String>) -> Result<Record, CliError> {
        let patch = json!({"metadata": {"resourceVersion": record.version}, "data": data});
        match self.maps.patch(CONFIG_MAP, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(there) => read(&there),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(CliError::Contended),
            Err(error) => Err(error.into()),
        }
    }
}

fn read(map: &ConfigMap) -> Result<Record, CliError> {
    let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
    let members = text("members").split(',').map(str::parse).collect::<Result<_, String>>().map_err(|error| {
        CliError::Refused(format!(
            "the ConfigMap {CONFIG_MAP} cannot be read: its member {error}; correct or delete it"
        ))
    })?;
    // One of an older setup says nothing of it: its members were told to bootstrap long ago.
    let age = if text(STATE) == "new" { Age::New } else { Age::Existing };
    Ok(Record { members, age, version: map.metadata.resource_version.clone().unwrap_or_default() })
}

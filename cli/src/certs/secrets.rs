//! Certificates as Secrets of the names that the chart's bundled etcd asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::api::ObjectMeta;
use serde_json::json;

use super::{CLIENT_NAME, Credential, Set};
use crate::error::CliError;

/// The authority's Secret; nothing mounts it.
pub const CA_SECRET: &str = "bulkhead-etcd-ca";

/// The Secret of a kind: `server`, `peer`, or `client`, and its `ca.crt`.
pub fn credential_secret(name: &str, namespace: &str, ca: &str, credential: &Credential) -> Secret {
    let text = [("ca.crt", ca), ("tls.crt", &credential.certificate), ("tls.key", &credential.key)];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/name".to_owned(), "bulkhead".to_owned())])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        string_data: Some(text.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        ..Secret::default()
    }
}

/// The Secret of a client's certificate.
fn client_secret(name: &str) -> String {
    if name == CLIENT_NAME { "bulkhead-etcd-client".to_owned() } else { format!("bulkhead-etcd-client-{name}") }
}

/// All of them as one list.
pub fn manifest(set: &Set, namespace: &str) -> Result<Vec<u8>, CliError> {
    let own = &set.authority.credential;
    let fixed = [
        (CA_SECRET.to_owned(), own),
        ("bulkhead-etcd-server".to_owned(), &set.server),
        ("bulkhead-etcd-peer".to_owned(), &set.peer),
    ];
    let clients = set.clients.iter().map(|(name, credential)| (client_secret(name), credential));
    let items: Vec<Secret> = fixed
        .into_iter()
        .chain(clients)
        .map(|(name, credential)| credential_secret(&name, namespace, &own.certificate, credential))
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let mut text = serde_json::to_vec_pretty(&list).map_err(std::io::Error::from)?;
    text.push(b'\n');
    Ok(text)
}

//! The file that tells a client of the API server where it is and who it is, certificates included.

use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_tests::LabError;
use serde_json::json;

use crate::certificates::{Authority, Credential, Subject};

/// The API server's port.
pub const PORT: u16 = 6443;

/// A kubeconfig (JSON, which is YAML) for a user of the API server at `address`.
pub fn kubeconfig(authority: &Authority, address: Ipv4Addr, subject: &Subject<'_>) -> Result<String, LabError> {
    let Credential { certificate, key } = authority.issue(subject)?;
    let data = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{address}:{PORT}"),
            "certificate-authority-data": data(&authority.credential().certificate),
        }}],
        "users": [{"name": subject.name, "user": {
            "client-certificate-data": data(&certificate),
            "client-key-data": data(&key),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": subject.name}}],
        "current-context": "lab",
    });
    Ok(config.to_string())
}

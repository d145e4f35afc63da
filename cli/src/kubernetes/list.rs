//! `tenant list` and `tenant show` in Kubernetes: what the Namespaces' annotations say.

use bulkhead_core::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;

use super::Object;
use super::status::Shown;
use crate::error::CliError;
use crate::output::{Console, Row};

/// One Namespace, as `-o json` prints it.
#[derive(Serialize)]
struct TenantRow {
    namespace: String,
    /// Absent until the controller has written it.
    #[serde(skip_serializing_if = "Option::is_none")]
    vni: Option<u32>,
    /// What it declares, as the annotation says; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    declared: Option<String>,
    /// How it stands, in the controller's words; empty until it has written any.
    status: String,
}

impl Row for TenantRow {
    const HEADER: &'static [&'static str] = &["NAME", "VNI", "DECLARED", "STATUS"];

    fn cells(&self) -> Vec<String> {
        let dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
        vec![
            self.namespace.clone(),
            dash(self.vni.map(|vni| vni.to_string())),
            dash(self.declared.clone()),
            dash(Some(self.status.clone())),
        ]
    }
}

fn row(object: Object) -> TenantRow {
    let shown = Shown::of(object.metadata.annotations.as_ref());
    TenantRow {
        namespace: object.metadata.name.unwrap_or_default(),
        vni: shown.vni.and_then(|vni| vni.trim().parse().ok()),
        declared: shown.network,
        status: shown.status.unwrap_or_default(),
    }
}

/// Prints all Namespaces, or those with these labels.
pub async fn list(client: &Client, selector: Option<&str>, console: &mut Console<'_>) -> Result<(), CliError> {
    let api: Api<Object> = Api::all(client.clone());
    let params = ListParams { label_selector: selector.map(str::to_owned), ..ListParams::default() };
    let mut rows: Vec<TenantRow> = api.list(&params).await?.items.into_iter().map(row).collect();
    rows.sort_by(|a, b| a.namespace.cmp(&b.namespace));
    console.table(&rows, "there are no such namespaces")
}

/// Prints one Namespace.
pub async fn show(client: &Client, namespace: &Namespace, console: &mut Console<'_>) -> Result<(), CliError> {
    let api: Api<Object> = Api::all(client.clone());
    let Some(object) = api.get_opt(namespace.as_str()).await? else {
        return Err(CliError::Refused(format!(
            "no such namespace: {namespace}; `kubectl bulkhead tenant list` shows all"
        )));
    };
    let row = row(object);
    let [name, vni, declared, status] = <[String; 4]>::try_from(row.cells()).unwrap_or_default();
    console.card(&row, &[("Name", name), ("VNI", vni), ("Declared", declared), ("Status", status)])
}

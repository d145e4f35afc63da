//! `bulkhead tenant`: namespaces as tenant networks.

mod act;
mod create;
mod delete;
mod judge;
mod list;
mod write;

use bulkhead_core::tenant::Action;

use crate::args::{TenantVerb, Those};
use crate::cluster::Etcd;
use crate::error::CliError;
use crate::output::Console;

/// Carries a verb out.
pub async fn carry_out(verb: TenantVerb, etcd: &Etcd, console: &mut Console<'_>) -> Result<(), CliError> {
    // Before etcd is asked for anything: no answer of it would cure a wrong flag.
    let (those, action, wait) = match verb {
        TenantVerb::List { selector } => {
            refuse(selector.as_deref())?;
            return list::list(&etcd.cluster().await?.view().await?, console);
        }
        TenantVerb::Show { namespace } => return list::show(&etcd.cluster().await?.view().await?, &namespace, console),
        TenantVerb::Create { namespace, global, net_id, wait } => {
            let net_id = if global { Some(bulkhead_core::NetId::GLOBAL) } else { net_id };
            return create::create(&etcd.cluster().await?, &namespace, net_id, wait, console).await;
        }
        TenantVerb::Delete { namespaces, wait } => {
            return delete::delete(&etcd.cluster().await?, &namespaces, wait, console).await;
        }
        TenantVerb::Join { those, to, wait } => (those, Action::Join(to), wait),
        TenantVerb::Isolate { those, wait } => (those, Action::Isolate, wait),
        TenantVerb::Global { those, wait } => (those, Action::Global, wait),
    };
    let Those { namespaces, selector } = those;
    refuse(selector.as_deref())?;
    act::act(&etcd.cluster().await?, &namespaces, action, wait, console).await
}

/// Records in etcd have no labels.
fn refuse(selector: Option<&str>) -> Result<(), CliError> {
    match selector {
        None => Ok(()),
        Some(_) => Err(CliError::Usage(
            "--selector asks for labels of Kubernetes, and records in etcd have none; name the namespaces, or add --kubernetes"
                .into(),
        )),
    }
}

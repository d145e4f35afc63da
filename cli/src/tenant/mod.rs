//! `bulkhead tenant`: namespaces as tenant networks.

mod act;
mod create;
mod delete;
mod judge;
mod list;
mod write;

use bulkhead_core::tenant::Action;

use crate::args::TenantVerb;
use crate::cluster::Cluster;
use crate::error::CliError;
use crate::output::Console;

/// Carries a verb out.
pub async fn carry_out(verb: TenantVerb, cluster: &Cluster, console: &mut Console<'_>) -> Result<(), CliError> {
    match verb {
        TenantVerb::List => list::list(&cluster.view().await?, console),
        TenantVerb::Show { namespace } => list::show(&cluster.view().await?, &namespace, console),
        TenantVerb::Create { namespace, global, net_id, wait } => {
            let net_id = if global { Some(bulkhead_core::NetId::GLOBAL) } else { net_id };
            create::create(cluster, &namespace, net_id, wait, console).await
        }
        TenantVerb::Delete { namespaces, wait } => delete::delete(cluster, &namespaces, wait, console).await,
        TenantVerb::Join { namespaces, to, wait } => {
            act::act(cluster, &namespaces, Action::Join(to), wait, console).await
        }
        TenantVerb::Isolate { namespaces, wait } => {
            act::act(cluster, &namespaces, Action::Isolate, wait, console).await
        }
        TenantVerb::Global { namespaces, wait } => act::act(cluster, &namespaces, Action::Global, wait, console).await,
    }
}

//! `bulkhead tenant` in Kubernetes.

use bulkhead_core::tenant::Action;
use kube::Client;

use super::declare::{Chosen, declare};
use super::list;
use crate::args::{TenantVerb, Those};
use crate::error::CliError;
use crate::output::Console;

/// Carries a verb out.
pub async fn carry_out(verb: TenantVerb, client: &Client, console: &mut Console<'_>) -> Result<(), CliError> {
    match verb {
        TenantVerb::List { selector } => list::list(client, selector.as_deref(), console).await,
        TenantVerb::Show { namespace } => list::show(client, &namespace, console).await,
        TenantVerb::Create { namespace, .. } => Err(CliError::Usage(format!(
            "Kubernetes makes namespaces: kubectl create namespace {namespace}; Bulkhead follows"
        ))),
        TenantVerb::Delete { .. } => {
            Err(CliError::Usage("Kubernetes deletes namespaces: kubectl delete namespace; Bulkhead follows".into()))
        }
        TenantVerb::Join { those, to, wait } => declare(client, chosen(&those), &Action::Join(to), wait, console).await,
        TenantVerb::Isolate { those, wait } => declare(client, chosen(&those), &Action::Isolate, wait, console).await,
        TenantVerb::Global { those, wait } => declare(client, chosen(&those), &Action::Global, wait, console).await,
    }
}

fn chosen(those: &Those) -> Chosen<'_> {
    those.selector.as_deref().map_or(Chosen::Names(&those.namespaces), Chosen::Labels)
}

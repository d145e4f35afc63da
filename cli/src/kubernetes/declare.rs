//! `tenant join`, `isolate` and `global` in Kubernetes: the annotation is written, and the controller's answer awaited.
//!
//! All Namespaces are tried without effect first, so that what admission refuses for one of them changes none. What the
//! controller refuses, or nobody answers in time, is taken back: nothing is left that works later by surprise.

use std::collections::BTreeMap;

use bulkhead_core::Namespace;
use bulkhead_core::tenant::Action;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::json;

use super::Object;
use super::answers::answers;
use super::status::{Answer, NETWORK, Shown, declaration};
use crate::args::Wait;
use crate::error::CliError;
use crate::output::Console;

/// How often an annotation is tried to be taken back while others write the same Namespace.
const ATTEMPTS: usize = 10;
/// Who wrote, for those who look at managedFields.
const MANAGER: &str = "kubectl-bulkhead";

/// Which Namespaces.
pub enum Chosen<'a> {
    /// These.
    Names(&'a [Namespace]),
    /// Those with these labels.
    Labels(&'a str),
}

/// What became of one Namespace, as `-o json` prints it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Declared {
    namespace: Namespace,
    /// The annotation's value.
    #[serde(rename = "declared")]
    value: String,
    result: DeclareResult,
    /// How it stands; empty unless it is done.
    status: String,
    /// Why it is not done.
    error: String,
}

/// How a declaration ended.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum DeclareResult {
    /// It holds.
    Done,
    /// Written, not waited for.
    Written,
    /// It does not hold, and is taken back.
    Refused,
    /// It does not hold, and could not be taken back.
    Left,
}

/// Declares it for all, waits, and reports.
pub async fn declare(
    client: &Client,
    chosen: Chosen<'_>,
    action: &Action,
    wait: Wait,
    console: &mut Console<'_>,
) -> Result<(), CliError> {
    let api: Api<Object> = Api::all(client.clone());
    let before = find(&api, chosen, action).await?;
    if let (Action::Join(target), false) = (action, wait.no_wait) {
        refuse_missing(&api, target).await?;
    }
    let value = declaration(action);
    for namespace in before.keys() {
        write(&api, namespace, Some(&value), None, true).await?;
    }
    let mut failed = None;
    let mut written: BTreeMap<Namespace, Shown> = BTreeMap::new();
    for (namespace, shown) in before {
        match write(&api, &namespace, Some(&value), None, false).await {
            Ok(()) => drop(written.insert(namespace, shown)),
            Err(error) => {
                failed = Some((namespace, error.to_string()));
                break;
            }
        }
    }
    let answers = match &failed {
        // The others are not to move alone.
        Some((namespace, _)) => {
            let reason = format!("{namespace} could not be written");
            written.keys().map(|name| (name.clone(), Answer::Refused(reason.clone()))).collect()
        }
        None if wait.no_wait => BTreeMap::new(),
        None => answers(&api, &written, action, wait.timeout).await,
    };
    let mut all = Vec::new();
    for (namespace, shown) in &written {
        all.push(conclude(&api, namespace, shown, action, answers.get(namespace)).await);
    }
    all.extend(failed.map(|(namespace, error)| Declared {
        namespace,
        value,
        result: DeclareResult::Refused,
        status: String::new(),
        error,
    }));
    let sentences: Vec<String> = all.iter().filter_map(Declared::sentence).collect();
    console.report(&all, &sentences)?;
    let failures: Vec<String> = all.iter().filter_map(Declared::failure).collect();
    if failures.is_empty() { Ok(()) } else { Err(CliError::Unfinished(failures)) }
}

/// The Namespaces, each as it is now.
async fn find(api: &Api<Object>, chosen: Chosen<'_>, action: &Action) -> Result<BTreeMap<Namespace, Shown>, CliError> {
    let mut found = BTreeMap::new();
    match chosen {
        Chosen::Names(names) => {
            for name in names {
                let Some(object) = api.get_opt(name.as_str()).await? else {
                    return Err(CliError::Refused(format!(
                        "no such namespace: {name}; `kubectl bulkhead tenant list` shows all"
                    )));
                };
                found.insert(name.clone(), Shown::of(object.metadata.annotations.as_ref()));
            }
        }
        Chosen::Labels(selector) => {
            for object in api.list(&ListParams::default().labels(selector)).await?.items {
                if let Ok(name) = Namespace::new(object.metadata.name.unwrap_or_default()) {
                    found.insert(name, Shown::of(object.metadata.annotations.as_ref()));
                }
            }
            // A target that has the label itself is where the others go.
            if let Action::Join(target) = action {
                found.remove(target);
            }
            if found.is_empty() {
                return Err(CliError::Refused(format!("no namespace has the labels {selector}")));
            }
        }
    }
    if let Action::Join(target) = action
        && found.contains_key(target)
    {
        return Err(CliError::Usage(format!("{target} cannot join itself; name another namespace with --to")));
    }
    Ok(found)
}

/// A slip of the pen would part a namespace from the target that it has until the time is over. Who may not read the target
/// has to wait for the controller's word.
async fn refuse_missing(api: &Api<Object>, target: &Namespace) -> Result<(), CliError> {
    match api.get_opt(target.as_str()).await {
        Ok(Some(_)) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Ok(None) => Err(CliError::Refused(format!(
            "no such namespace to join: {target}; `kubectl bulkhead tenant list` shows all, and with --no-wait a join waits for \
             one that does not exist yet"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Writes the annotation, or removes it; with a version only if the Namespace still has that.
async fn write(
    api: &Api<Object>,
    namespace: &Namespace,
    value: Option<&str>,
    version: Option<&str>,
    dry: bool,
) -> Result<(), kube::Error> {
    let mut patch = json!({"metadata": {"annotations": {NETWORK: value}}});
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = version.into();
    }
    let params = PatchParams { dry_run: dry, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(namespace.as_str(), &params, &Patch::Merge(&patch)).await.map(drop)
}

/// Takes back what does not hold, and says how it ended.
async fn conclude(
    api: &Api<Object>,
    namespace: &Namespace,
    before: &Shown,
    action: &Action,
    answer: Option<&Answer>,
) -> Declared {
    let (result, status, error) = match answer {
        None => (DeclareResult::Written, String::new(), String::new()),
        Some(Answer::Done(status)) => (DeclareResult::Done, status.clone(), String::new()),
        Some(Answer::Lost(reason)) => (DeclareResult::Refused, String::new(), reason.clone()),
        Some(Answer::Refused(reason) | Answer::Pending(reason)) => {
            match take_back(api, namespace, before, action).await {
                Ok(()) => (DeclareResult::Refused, String::new(), reason.clone()),
                Err(trouble) => (DeclareResult::Left, String::new(), format!("{reason}; {trouble}")),
            }
        }
    };
    Declared { namespace: namespace.clone(), value: declaration(action), result, status, error }
}

/// Declares what was declared before, unless somebody else has declared something meanwhile.
async fn take_back(api: &Api<Object>, namespace: &Namespace, before: &Shown, action: &Action) -> Result<(), CliError> {
    for _ in 0..ATTEMPTS {
        let Some(object) = api.get_opt(namespace.as_str()).await? else { return Ok(()) };
        let now = Shown::of(object.metadata.annotations.as_ref());
        if now.network.as_deref() != Some(declaration(action).as_str()) || now.network == before.network {
            return Ok(());
        }
        let version = object.metadata.resource_version.as_deref();
        match write(api, namespace, before.network.as_deref(), version, false).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            done => return done.map_err(CliError::from),
        }
    }
    Err(CliError::Contended)
}

impl Declared {
    /// What is told of a success.
    fn sentence(&self) -> Option<String> {
        match self.result {
            DeclareResult::Done => Some(format!("{}: {}", self.namespace, self.status)),
            DeclareResult::Written => Some(format!("{}: {} is written, not waited for", self.namespace, self.value)),
            DeclareResult::Refused | DeclareResult::Left => None,
        }
    }

    /// What is told of a failure.
    fn failure(&self) -> Option<String> {
        let fate = match self.result {
            DeclareResult::Done | DeclareResult::Written => return None,
            DeclareResult::Refused => "nothing of it is left",
            DeclareResult::Left => "the annotation could NOT be taken back and may still come into force",
        };
        Some(format!("{}: {}: {}; {fate}", self.namespace, self.value, self.error))
    }
}

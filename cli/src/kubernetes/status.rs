//! What a Namespace declares, and what the controller answered, read from its annotations. Pure.
//!
//! The answer is for people: a word, and details behind it. A refusal starts with `refused`, `error` or `invalid`; what waits
//! starts with `waiting` or `pending`; everything else is how the namespace stands: `isolated`, `global`, `joined ...`.

use std::collections::BTreeMap;

use bulkhead_core::Namespace;
use bulkhead_core::tenant::Action;

/// Which network a namespace is to be in.
pub const NETWORK: &str = "bulkhead.dev/network";
/// Its number on the wire.
pub const VNI: &str = "bulkhead.dev/vni";
/// How it stands.
pub const NETWORK_STATUS: &str = "bulkhead.dev/network-status";

/// The value that declares what an action asks for.
pub fn declaration(action: &Action) -> String {
    match action {
        Action::Join(target) => format!("join:{target}"),
        Action::Isolate => "isolated".to_owned(),
        Action::Global => "global".to_owned(),
    }
}

/// The annotations that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// What is declared.
    pub network: Option<String>,
    /// The VNI.
    pub vni: Option<String>,
    /// The answer.
    pub status: Option<String>,
}

impl Shown {
    /// Reads them.
    pub fn of(annotations: Option<&BTreeMap<String, String>>) -> Self {
        let text = |key: &str| annotations.and_then(|all| all.get(key)).cloned();
        Self { network: text(NETWORK), vni: text(VNI), status: text(NETWORK_STATUS) }
    }
}

/// What has become of a declaration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It holds; how the namespace stands.
    Done(String),
    /// It was refused.
    Refused(String),
    /// Not yet; what the status says meanwhile, if it says anything of it.
    Pending(String),
    /// Somebody else declared something else, or deleted the namespace.
    Lost(String),
}

/// Judges what is shown `now` of the declaration of `action`, which was written when the status was `before`.
pub fn judge(now: Option<&Shown>, action: &Action, before: Option<&str>) -> Answer {
    let Some(now) = now else { return Answer::Lost("the namespace was deleted meanwhile".into()) };
    if now.network.as_deref() != Some(declaration(action).as_str()) {
        let other = now.network.as_deref().unwrap_or("nothing");
        return Answer::Lost(format!("somebody else declared {other} meanwhile"));
    }
    let status = now.status.as_deref().unwrap_or("").trim();
    let starts = |words: &[&str]| words.iter().any(|word| status.starts_with(word));
    if starts(&["refused", "error", "invalid"]) {
        // It may be the answer to what was declared before.
        let old = before.is_some_and(|before| before.trim() == status);
        return if old { Answer::Pending(status.to_owned()) } else { Answer::Refused(status.to_owned()) };
    }
    let holds = match action {
        Action::Isolate => status.starts_with("isolated"),
        Action::Global => status.starts_with("global"),
        Action::Join(target) => status.starts_with("join") && names(status, target),
    };
    if holds { Answer::Done(status.to_owned()) } else { Answer::Pending(status.to_owned()) }
}

/// Whether a status names a namespace, as a word of its own.
fn names(status: &str, namespace: &Namespace) -> bool {
    let part_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    status.split(|c| !part_of_name(c)).any(|word| word == namespace.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(network: &str, status: &str) -> Shown {
        Shown { network: Some(network.into()), vni: None, status: Some(status.into()) }
    }

    fn join(target: &str) -> Action {
        Action::Join(Namespace::new(target).unwrap())
    }

    #[test]
    fn a_declaration_holds_when_the_status_says_so() {
        for (network, status, action) in [
            ("isolated", "isolated", Action::Isolate),
            ("global", "global", Action::Global),
            ("join:b", "joined with b", join("b")),
            ("join:b", "joined to b (NetID 11)", join("b")),
            ("join:b-c", "join:b-c", join("b-c")),
        ] {
            assert_eq!(judge(Some(&shown(network, status)), &action, None), Answer::Done(status.into()), "{status}");
        }
    }

    #[test]
    fn another_answer_is_not_ours() {
        let pending = |network, status, action| {
            assert!(matches!(judge(Some(&shown(network, status)), &action, Some("refused: x")), Answer::Pending(_)));
        };
        pending("join:b", "", join("b"));
        pending("join:b", "isolated", join("b"));
        pending("join:b", "joined with b-c", join("b"));
        pending("join:b", "waiting: namespace b does not exist", join("b"));
        pending("isolated", "joined with b", Action::Isolate);
        pending("isolated", "refused: x", Action::Isolate);
        let refused = judge(Some(&shown("join:b", "refused: a cycle")), &join("b"), Some("isolated"));
        assert_eq!(refused, Answer::Refused("refused: a cycle".into()));
        assert!(matches!(judge(Some(&shown("global", "global")), &Action::Isolate, None), Answer::Lost(_)));
        assert!(matches!(judge(None, &Action::Isolate, None), Answer::Lost(_)));
    }
}

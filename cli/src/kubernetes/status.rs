//! What a Namespace declares, and what the controller answered, read from its annotations. Pure.
//!
//! The answer is for people, but its first words are fixed: `refused:` and `waiting:` with the reason, `refused: action` if that
//! is of a record's action and not of what is declared; behind the last `; `, or without a reason alone, how the namespace stands: `isolated`, `global`, `joined to <namespace> (...)`, `joined by others (...)`, `flat`.

use std::collections::BTreeMap;

pub use bulkhead_core::annotation::{NETWORK, NETWORK_STATUS, VNI};
use bulkhead_core::tenant::Action;

/// How the status of a namespace in whose network others are begins.
pub const JOINED_BY_OTHERS: &str = "joined by others";

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

impl Answer {
    /// Whether another one may come.
    pub const fn is_pending(&self) -> bool {
        matches!(self, Self::Pending(_))
    }
}

/// Judges what is shown `now` of the declaration of `action`, which was written when the status was `before`.
pub fn judge(now: Option<&Shown>, action: &Action, before: Option<&str>) -> Answer {
    let Some(now) = now else { return Answer::Lost("the namespace was deleted meanwhile".into()) };
    if now.network.as_deref() != Some(declaration(action).as_str()) {
        let other = now.network.as_deref().unwrap_or("nothing");
        return Answer::Lost(format!("somebody else declared {other} meanwhile"));
    }
    let status = now.status.as_deref().unwrap_or("").trim();
    // A record's action that was refused says nothing of the annotation; what holds comes last.
    let status = match status.strip_prefix("refused: action ").and_then(|rest| rest.rsplit_once("; ")) {
        Some((_, holds)) => holds,
        None => status,
    };
    if status.starts_with("refused:") {
        // It may be the answer to what was declared before.
        let old = before.is_some_and(|before| before.trim() == status);
        return if old { Answer::Pending(status.to_owned()) } else { Answer::Refused(status.to_owned()) };
    }
    // In a flat cluster a declaration is noted, and all there is.
    let holds = status == "flat"
        || match action {
            // Those who join it do not make it less of a network of its own.
            Action::Isolate => status == "isolated" || status.starts_with(JOINED_BY_OTHERS),
            Action::Global => status == "global",
            Action::Join(target) => {
                status.strip_prefix("joined to ").and_then(|rest| rest.split(' ').next()) == Some(target.as_str())
            }
        };
    if holds { Answer::Done(status.to_owned()) } else { Answer::Pending(status.to_owned()) }
}

#[cfg(test)]
mod tests {
    use bulkhead_core::Namespace;

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
            ("isolated", "joined by others (NetID 10)", Action::Isolate),
            ("global", "global", Action::Global),
            ("join:b", "joined to b (NetID 11)", join("b")),
            ("join:b-c", "joined to b-c (global)", join("b-c")),
            ("join:b", "flat", join("b")),
        ] {
            assert_eq!(judge(Some(&shown(network, status)), &action, None), Answer::Done(status.into()), "{status}");
        }
    }

    #[test]
    fn a_refused_action_of_a_record_says_nothing_of_the_annotation() {
        let left = "refused: action isolate: bulkhead.dev/network of the namespace a says join:b; so it stays; joined to b (NetID 11)";
        for before in [None, Some("isolated"), Some(left)] {
            let judged = judge(Some(&shown("join:b", left)), &join("b"), before);
            assert_eq!(judged, Answer::Done("joined to b (NetID 11)".into()));
            let other = judge(Some(&shown("join:c", left)), &join("c"), before);
            assert_eq!(other, Answer::Pending("joined to b (NetID 11)".into()));
        }
        let cut = judge(Some(&shown("join:b", "refused: action join b: and so on")), &join("b"), None);
        assert!(matches!(cut, Answer::Refused(_)));
    }

    #[test]
    fn another_answer_is_not_ours() {
        let pending = |network, status, action| {
            assert!(matches!(judge(Some(&shown(network, status)), &action, Some("refused: x")), Answer::Pending(_)));
        };
        pending("join:b", "", join("b"));
        pending("join:b", "isolated", join("b"));
        pending("join:b", "joined to b-c (NetID 11)", join("b"));
        pending("join:to", "joined to b (NetID 11)", join("to"));
        pending("global", "joined to b (global)", Action::Global);
        pending("join:b", "waiting: b does not exist; isolated", join("b"));
        pending("isolated", "joined to b (NetID 11)", Action::Isolate);
        pending("isolated", "refused: x", Action::Isolate);
        let refused = judge(Some(&shown("join:b", "refused: a cycle")), &join("b"), Some("isolated"));
        assert_eq!(refused, Answer::Refused("refused: a cycle".into()));
        assert!(matches!(judge(Some(&shown("global", "global")), &Action::Isolate, None), Answer::Lost(_)));
        assert!(matches!(judge(None, &Action::Isolate, None), Answer::Lost(_)));
    }
}

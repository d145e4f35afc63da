//! Everything that can fail between a caller and etcd.
//!
//! Each variant is one answer to "what now?": change the settings, wait, read again, or fix the request. No message
//! holds a password.

use std::time::Duration;

use crate::settings::SettingsError;
use crate::txn::TxnError;

/// The underlying error, kept for its text and chain.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The settings are unusable.
    #[error("etcd settings: {0}")]
    Settings(#[from] SettingsError),
    /// No endpoint accepted a connection; nothing was sent.
    #[error("no etcd endpoint can be reached ({endpoints}): check the addresses, the network and that etcd runs")]
    Unreachable {
        /// The endpoints tried, separated by commas.
        endpoints: String,
        /// The last failure.
        #[source]
        source: Cause,
    },
    /// The TLS handshake failed: their certificate or ours was refused.
    #[error(
        "TLS with etcd at {endpoint} failed: check the CA, that the server's certificate names this address, and that etcd trusts the client certificate"
    )]
    Tls {
        /// The endpoint.
        endpoint: String,
        /// What rustls says.
        #[source]
        source: Cause,
    },
    /// etcd refused the user name or password, or wants one and none was given.
    #[error("etcd refused the login as {user:?}: check the user and password (an empty user means that none was set)")]
    Login {
        /// The user name; empty if none was given.
        user: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// The etcd role does not allow this.
    #[error("etcd denies {what}: grant the role of this user the permission")]
    PermissionDenied {
        /// What was tried.
        what: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// etcd was reached but cannot serve now (no quorum, overload, a lost connection); nothing was changed.
    #[error("etcd cannot serve {what} now: check that a majority of its members runs")]
    Unavailable {
        /// What was tried.
        what: String,
        /// The last failure.
        #[source]
        source: Cause,
    },
    /// No answer within the time limit; nothing was changed.
    #[error("etcd gave no answer to {what} within {after:?}: check its load and the network")]
    Timeout {
        /// What was tried.
        what: String,
        /// The time limit.
        after: Duration,
    },
    /// The write was sent and its answer lost: it may or may not have been applied. Read again before writing again.
    #[error("the outcome of {what} is unknown, it may have been applied: read the keys again before another write")]
    OutcomeUnknown {
        /// What was tried.
        what: String,
        /// Why the answer is missing.
        #[source]
        source: Cause,
    },
    /// The transaction breaks a limit of etcd; it was not sent.
    #[error("transaction refused before sending: {0}")]
    Txn(#[from] TxnError),
    /// The history was compacted past the asked revision. Lists and watches heal from this by themselves.
    #[error("etcd compacted its history past the asked revision: list again")]
    Compacted,
    /// The lease has expired or was revoked.
    #[error("the lease {lease:x} does not exist any more: obtain a new one")]
    LeaseLost {
        /// The lease's id.
        lease: i64,
    },
    /// etcd refused the request; nothing was changed.
    #[error("etcd refused {what}")]
    Refused {
        /// What was tried.
        what: String,
        /// etcd's answer.
        #[source]
        source: Cause,
    },
    /// The answer is larger than 64 MiB. Lists heal from this by themselves. A transaction answers so much only when it
    /// changed nothing: then it shows the keys that it compared.
    #[error("etcd's answer to {what} is too large: look for keys with very large values that do not belong there")]
    AnswerTooLarge {
        /// What was tried.
        what: String,
        /// By how much.
        #[source]
        source: Cause,
    },
    /// A watch or its server broke off; watches heal from this by themselves.
    #[error("the watch broke off")]
    WatchBroken {
        /// Why.
        #[source]
        source: Cause,
    },
}

impl StoreError {
    /// True if waiting may help: the same request can succeed later without any change of settings or request.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Unavailable { .. }
                | Self::Timeout { .. }
                | Self::OutcomeUnknown { .. }
                | Self::Compacted
                | Self::WatchBroken { .. }
        )
    }

    /// The message with its whole chain of causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

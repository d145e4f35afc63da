//! Telling failures of etcd apart: what surely had no effect, what may have had one, and what to tell the user.
//!
//! By type where the client gives types (connect errors, TLS errors, gRPC codes), by etcd's own message texts where one
//! code has several meanings.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, ConnectError};

use crate::error::{Cause, StoreError};
use crate::settings::{Settings, SettingsError};

/// One failed attempt.
#[derive(Debug)]
pub(super) enum Failure {
    /// The TLS files became unusable.
    Settings(SettingsError),
    /// No connection; the request was not sent.
    NotSent(Cause),
    /// The handshake failed; the request was not sent.
    Tls(Cause),
    /// The TLS layer failed on an established connection; what was sent before may have been taken.
    TlsLater(Cause),
    /// The connection broke.
    ConnectionLost(Cause),
    /// The member cannot serve now and did not take the request.
    NotTaken(Cause),
    /// The login token is not valid (any more); the request was not taken.
    StaleLogin(Cause),
    /// User or password are wrong or missing.
    Login(Cause),
    Permission(Cause),
    Refused(Cause),
    /// The answer is larger than what is read of one.
    TooLarge(Cause),
    LeaseGone,
    Compacted,
    /// Sent, and the answer is lost.
    AnswerLost(Cause),
    /// Sent, and no answer for this long.
    Silent(Duration),
}

/// True if the server says that it has no authentication.
pub(super) fn auth_is_off(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
}

impl Failure {
    pub(super) fn of(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => of_status(&status),
            Error::LeaseKeepAliveError(text) if text.contains("lease not found") => Self::LeaseGone,
            Error::TransportError(error) => of_chain(&error),
            error @ (Error::InvalidArgs(_)
            | Error::InvalidUri(_)
            | Error::Utf8Error(_)
            | Error::InvalidMetadataValue(_)) => Self::Refused(Box::new(error)),
            error => Self::AnswerLost(Box::new(error)),
        }
    }

    /// The same failure on a new connection that no request was sent over yet. With TLS 1.3 the server judges our
    /// certificate after our side of the handshake is done: its refusal is a late alert, or just a lost connection.
    pub(super) fn before_sending(self, https: bool) -> Self {
        match self {
            Self::TlsLater(cause) => Self::Tls(cause),
            Self::ConnectionLost(cause) if https => {
                Self::Tls(format!("closed right after the handshake (client certificate refused?): {cause}").into())
            }
            Self::ConnectionLost(cause) | Self::AnswerLost(cause) => Self::NotSent(cause),
            Self::Silent(limit) => Self::NotSent(format!("no answer within {limit:?}").into()),
            other => other,
        }
    }

    /// True if the server itself answered, and did not refuse the login: the connection works.
    pub(super) fn proves_connection(&self) -> bool {
        !matches!(
            self,
            Self::Settings(_)
                | Self::NotSent(_)
                | Self::Tls(_)
                | Self::TlsLater(_)
                | Self::ConnectionLost(_)
                | Self::Silent(_)
                | Self::Login(_)
                | Self::StaleLogin(_)
        )
    }

    pub(super) fn may_repeat_write(&self) -> bool {
        matches!(self, Self::NotSent(_) | Self::Tls(_) | Self::NotTaken(_) | Self::StaleLogin(_))
    }

    pub(super) fn may_repeat_read(&self) -> bool {
        self.may_repeat_write()
            || matches!(self, Self::AnswerLost(_) | Self::ConnectionLost(_) | Self::TlsLater(_) | Self::Silent(_))
    }

    /// True if the next request should use another connection.
    pub(super) fn condemns_connection(&self) -> bool {
        self.may_repeat_read() || matches!(self, Self::Settings(_) | Self::Login(_))
    }

    pub(super) fn into_error(self, what: &str, settings: &Settings, at: usize, write: bool) -> StoreError {
        let what = what.to_owned();
        match self {
            Self::Settings(error) => error.into(),
            Self::NotSent(source) => StoreError::Unreachable { endpoints: settings.endpoints().join(","), source },
            Self::Tls(source) => StoreError::Tls { endpoint: settings.endpoints()[at].clone(), source },
            Self::Login(source) | Self::StaleLogin(source) => StoreError::Login {
                user: settings.auth().map_or_else(String::new, |auth| auth.user().to_owned()),
                source,
            },
            Self::Permission(source) => StoreError::PermissionDenied { what, source },
            Self::Refused(source) => StoreError::Refused { what, source },
            Self::TooLarge(source) => StoreError::AnswerTooLarge { what, source },
            Self::LeaseGone => StoreError::LeaseLost { lease: 0 },
            Self::Compacted => StoreError::Compacted,
            Self::NotTaken(source) => StoreError::Unavailable { what, source },
            Self::AnswerLost(source) | Self::ConnectionLost(source) | Self::TlsLater(source) if write => {
                StoreError::OutcomeUnknown { what, source }
            }
            Self::AnswerLost(source) | Self::ConnectionLost(source) | Self::TlsLater(source) => {
                StoreError::Unavailable { what, source }
            }
            Self::Silent(after) if write => {
                StoreError::OutcomeUnknown { what, source: format!("no answer within {after:?}").into() }
            }
            Self::Silent(after) => StoreError::Timeout { what, after },
        }
    }
}

fn of_status(status: &tonic::Status) -> Failure {
    // A status without a source is an answer of the server; with one, the transport made it up.
    if status.source().is_some() {
        return of_chain(status);
    }
    let (code, text) = (status.code(), status.message().to_owned());
    let has = |part: &str| text.contains(part);
    let cause: Cause = format!("{text} ({code:?})").into();
    match code {
        Code::PermissionDenied => Failure::Permission(cause),
        Code::Unauthenticated => Failure::StaleLogin(cause),
        Code::InvalidArgument if has("auth store is old") => Failure::StaleLogin(cause),
        Code::InvalidArgument if has("authentication failed") || has("user name is empty") => Failure::Login(cause),
        Code::OutOfRange if has("compacted") || has("future revision") => Failure::Compacted,
        // Said by tonic of an answer that it does not read.
        Code::OutOfRange if has("message length too large") => Failure::TooLarge(cause),
        Code::NotFound if has("lease not found") => Failure::LeaseGone,
        // Both are said before the request is proposed.
        Code::Unavailable if has("etcdserver: no leader") => Failure::NotTaken(cause),
        Code::ResourceExhausted if has("too many requests") => Failure::NotTaken(cause),
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::Unimplemented => Failure::Refused(cause),
        _ => Failure::AnswerLost(cause),
    }
}

/// Judges a failure of the transport by the types in its chain.
fn of_chain(error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut connecting = false;
    let mut tls = false;
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(link) = next {
        connecting |= link.is::<ConnectError>();
        // tokio-rustls wraps every error of the TLS layer, alerts of the peer included, in this kind.
        tls |= link
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::InvalidData && e.get_ref().is_some());
        next = link.source();
    }
    let cause: Cause = chain(error).into();
    match (tls, connecting) {
        (true, true) => Failure::Tls(cause),
        (true, false) => Failure::TlsLater(cause),
        (false, true) => Failure::NotSent(cause),
        (false, false) => Failure::ConnectionLost(cause),
    }
}

/// The distinct texts of an error and its causes. Those that say nothing are left out: tonic's of a failed connection, and the
/// text of a status but its message, since it has the causes in it in their debug form.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(link) = next {
        let own = link.downcast_ref::<tonic::Status>().map_or_else(|| link.to_string(), |s| s.message().to_owned());
        if own != "transport error" && !text.contains(&own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&own);
        }
        next = link.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once_and_none_in_its_debug_form() {
        let caused = |message: &str| {
            let mut status = tonic::Status::unavailable(message);
            status.set_source(std::sync::Arc::new(io::Error::other("connection refused")));
            chain(&status)
        };
        assert_eq!(caused("tcp connect error"), "tcp connect error: connection refused");
        assert_eq!(caused("transport error"), "connection refused");
        assert_eq!(caused("connection refused"), "connection refused");
        assert!(chain(&tonic::Status::unavailable("")).contains("unavailable"));
    }
}

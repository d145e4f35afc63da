//! How to reach etcd, validated before anything connects.
//!
//! Promises: a [`Settings`] names at least one well-formed endpoint, all of one scheme, with TLS exactly when that is
//! https. The password appears neither in `Debug` nor in any error.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why settings were refused. Each message names the bad value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// No endpoint was given.
    #[error("no endpoint given: name at least one as http://host:port or https://host:port")]
    NoEndpoints,
    /// An endpoint is malformed.
    #[error("endpoint {endpoint:?}: {reason}; write it as http://host:port or https://host:port")]
    Endpoint {
        /// The endpoint as given, without any user information.
        endpoint: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// http and https endpoints are mixed.
    #[error("endpoints mix http and https ({first:?}, {second:?}): use one scheme for all of them")]
    MixedSchemes {
        /// The first endpoint.
        first: String,
        /// One with another scheme.
        second: String,
    },
    /// TLS settings were given for plain http.
    #[error("TLS files are set but endpoint {endpoint:?} is http: write https:// or drop the TLS files")]
    TlsWithoutHttps {
        /// The endpoint.
        endpoint: String,
    },
    /// One of client certificate and key is missing.
    #[error("a client certificate needs its key and the key its certificate: only {given:?} is set")]
    HalfIdentity {
        /// The file that is set.
        given: PathBuf,
    },
    /// A TLS file cannot be used.
    #[error("cannot read {role} {path:?}: name a readable PEM file")]
    TlsFile {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A TLS file holds nothing of the expected kind.
    #[error("{role} {path:?} holds no PEM block {wanted:?}: check that it is the right file")]
    TlsContent {
        /// What the file is for.
        role: &'static str,
        /// Its path.
        path: PathBuf,
        /// The label looked for.
        wanted: &'static str,
    },
    /// https without a CA, and the system has no bundle either.
    #[error("https without a CA file, and no system bundle exists (looked at {looked_at}): set the CA file of etcd")]
    NoRoots {
        /// The paths tried.
        looked_at: String,
    },
    /// The user name is empty.
    #[error("the etcd user name is empty: set it or leave out user and password")]
    EmptyUser,
    /// A timeout is out of range.
    #[error("{name} is {value:?}: it must be between 100 ms and 10 minutes")]
    Timeout {
        /// Which one.
        name: &'static str,
        /// Its value.
        value: Duration,
    },
}

/// PEM files for https. Read at each new connection, so rotated files are picked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The CA that signed etcd's certificate; `None` means the system's bundle.
    pub ca: Option<PathBuf>,
    /// The client certificate (chain); together with `key` or not at all.
    pub cert: Option<PathBuf>,
    /// The client certificate's private key.
    pub key: Option<PathBuf>,
}

/// User and password for etcd's own authentication.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    user: String,
    password: String,
}

impl Auth {
    /// Takes a user and its password.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// The user name.
    pub fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("user", &self.user).field("password", &"***").finish()
    }
}

/// Time limits, each 100 ms to 10 minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For one TCP and TLS connection.
    pub connect: Duration,
    /// For one request with all its retries over the endpoints.
    pub request: Duration,
}

impl Default for Timeouts {
    /// 2 s to connect, 5 s for a request.
    fn default() -> Self {
        Self { connect: Duration::from_secs(2), request: Duration::from_secs(5) }
    }
}

/// Where etcd is and how to log in; always valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    endpoints: Vec<String>,
    tls: Option<Tls>,
    auth: Option<Auth>,
    timeouts: Timeouts,
}

impl Settings {
    /// Validates everything that can be judged without a connection. https endpoints without `tls` use the system's
    /// CA bundle.
    pub fn new<E: AsRef<str>>(
        endpoints: &[E],
        tls: Option<Tls>,
        auth: Option<Auth>,
        timeouts: Timeouts,
    ) -> Result<Self, SettingsError> {
        let endpoints: Vec<String> =
            endpoints.iter().map(|e| e.as_ref().trim().trim_end_matches('/').to_owned()).collect();
        for endpoint in &endpoints {
            check_endpoint(endpoint)?;
        }
        let first = endpoints.first().ok_or(SettingsError::NoEndpoints)?;
        let https = is_https(first);
        if let Some(second) = endpoints.iter().find(|e| is_https(e) != https) {
            return Err(SettingsError::MixedSchemes { first: first.clone(), second: second.clone() });
        }
        let tls = match (https, tls) {
            (true, tls) => Some(tls.unwrap_or_default()),
            (false, None) => None,
            (false, Some(_)) => {
                return Err(SettingsError::TlsWithoutHttps { endpoint: first.clone() });
            }
        };
        if let Some((Some(given), None) | (None, Some(given))) = tls.as_ref().map(|tls| (&tls.cert, &tls.key)) {
            return Err(SettingsError::HalfIdentity { given: given.clone() });
        }
        if auth.as_ref().is_some_and(|auth| auth.user.is_empty()) {
            return Err(SettingsError::EmptyUser);
        }
        for (name, value) in [("the connect timeout", timeouts.connect), ("the request timeout", timeouts.request)] {
            if !(Duration::from_millis(100)..=Duration::from_mins(10)).contains(&value) {
                return Err(SettingsError::Timeout { name, value });
            }
        }
        Ok(Self { endpoints, tls, auth, timeouts })
    }

    /// The endpoints, at least one.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The TLS files; `Some` exactly for https.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// User and password, if any.
    pub fn auth(&self) -> Option<&Auth> {
        self.auth.as_ref()
    }

    /// The time limits.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }
}

fn is_https(endpoint: &str) -> bool {
    endpoint.starts_with("https://")
}

fn check_endpoint(endpoint: &str) -> Result<(), SettingsError> {
    let refuse = |reason| {
        // A password put into the URL by mistake must not come back in the message.
        let shown = match endpoint.rsplit_once('@') {
            Some((_, host)) => format!("...@{host}"),
            None => endpoint.to_owned(),
        };
        Err(SettingsError::Endpoint { endpoint: shown, reason })
    };
    let Some(authority) = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://")) else {
        return refuse("it does not start with http:// or https://");
    };
    if authority.contains('@') {
        return refuse("user and password do not belong into it");
    }
    if authority.contains(['/', '?', '#']) {
        return refuse("it has a path");
    }
    let Some((host, port)) = authority.rsplit_once(':') else {
        return refuse("it has no port");
    };
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return refuse("its port is not a number in 1-65535");
    }
    let valid = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    if valid { Ok(()) } else { refuse("its host is not a name, an IPv4 address or an IPv6 address in brackets") }
}

/// Where distributions keep the bundle of trusted CAs.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The PEM texts of a [`Tls`].
pub(crate) struct TlsFiles {
    pub(crate) ca: Vec<u8>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Reads the files and checks that each holds a PEM block of its kind.
    pub(crate) fn read(&self) -> Result<TlsFiles, SettingsError> {
        let ca = match &self.ca {
            Some(path) => path.as_path(),
            None => SYSTEM_BUNDLES
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
                .ok_or_else(|| SettingsError::NoRoots { looked_at: SYSTEM_BUNDLES.join(", ") })?,
        };
        let ca = read_pem(ca, "the CA file", "CERTIFICATE")?;
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((
                read_pem(cert, "the client certificate", "CERTIFICATE")?,
                read_pem(key, "the client key", "PRIVATE KEY")?,
            )),
            _ => None,
        };
        Ok(TlsFiles { ca, identity })
    }
}

fn read_pem(path: &Path, role: &'static str, wanted: &'static str) -> Result<Vec<u8>, SettingsError> {
    let text = std::fs::read(path).map_err(|source| SettingsError::TlsFile { role, path: path.to_owned(), source })?;
    let label = format!("{wanted}-----");
    if text.windows(label.len()).any(|w| w == label.as_bytes()) {
        Ok(text)
    } else {
        Err(SettingsError::TlsContent { role, path: path.to_owned(), wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(endpoints: &[&str]) -> Result<Settings, SettingsError> {
        Settings::new(endpoints, None, None, Timeouts::default())
    }

    #[test]
    fn endpoints_are_checked_and_named() {
        for good in ["http://127.0.0.1:2379", "https://etcd-0.etcd:2379/", "http://[::1]:2379"] {
            assert!(with(&[good]).is_ok(), "{good}");
        }
        for bad in [
            "127.0.0.1:2379",
            "http://host",
            "http://host:0",
            "http://host:99999",
            "http://:2379",
            "ftp://host:1",
            "http://a b:1",
            "http://host:1/v3",
            "http://[::1:2379",
            "",
        ] {
            let error = with(&[bad]).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{bad}: {error}");
        }
        assert!(matches!(with(&[]), Err(SettingsError::NoEndpoints)));
        assert!(matches!(with(&["http://a:1", "https://b:1"]), Err(SettingsError::MixedSchemes { .. })));
    }

    #[test]
    fn secrets_stay_hidden() {
        let error = with(&["http://root:hunter2@host:1"]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let auth = Some(Auth::new("root", "hunter2"));
        let settings = Settings::new(&["http://a:1"], None, auth, Timeouts::default()).unwrap();
        let shown = format!("{settings:?}");
        assert!(shown.contains("root") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn tls_goes_with_https_only_and_whole() {
        let tls = Tls { cert: Some("c.pem".into()), ..Tls::default() };
        let new = |e, tls| Settings::new(&[e], Some(tls), None, Timeouts::default());
        assert!(matches!(new("http://a:1", tls.clone()), Err(SettingsError::TlsWithoutHttps { .. })));
        assert!(matches!(new("https://a:1", tls), Err(SettingsError::HalfIdentity { .. })));
        let missing = Tls { ca: Some("/nonexistent/ca.pem".into()), ..Tls::default() };
        let error = missing.read().err().unwrap().to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }
}

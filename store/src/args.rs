//! The etcd flags that every binary shares, so that an administrator learns them once.
//!
//! Behind the feature `args`. Only parses; [`EtcdArgs::settings`] validates and reads the password file.

use std::path::PathBuf;

use crate::settings::{Auth, Settings, SettingsError, Timeouts, Tls};

/// The largest password file that is read, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Where etcd is if nobody says it.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// They do not make valid settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The password file cannot be read.
    #[error("cannot read the password file {path:?}: name a readable file that holds the password alone")]
    PasswordFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The password file is empty or too large to be one.
    #[error("the password file {path:?} has {bytes} bytes: it must hold the password alone, 1 to 4096 bytes")]
    PasswordSize {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// Flags that say how to reach etcd, each with an environment variable.
// The heading is each flag's own: `next_help_heading` would be that of the flags behind these as well.
#[derive(Debug, Clone, clap::Args)]
pub struct EtcdArgs {
    /// etcd's client addresses, separated by commas
    #[arg(
        long,
        env = "BULKHEAD_ETCD_ENDPOINTS",
        value_name = "URL,...",
        help_heading = "etcd",
        value_delimiter = ',',
        default_value = DEFAULT_ENDPOINT
    )]
    pub etcd_endpoints: Vec<String>,
    /// CA that signed etcd's certificate [default with https: the system's CAs]
    #[arg(long, env = "BULKHEAD_ETCD_CA", value_name = "PEM", help_heading = "etcd")]
    pub etcd_ca: Option<PathBuf>,
    /// Client certificate for etcd
    #[arg(long, env = "BULKHEAD_ETCD_CERT", value_name = "PEM", help_heading = "etcd", requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Private key of the client certificate
    #[arg(long, env = "BULKHEAD_ETCD_KEY", value_name = "PEM", help_heading = "etcd", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User, if etcd asks for a login
    #[arg(
        long,
        env = "BULKHEAD_ETCD_USER",
        value_name = "NAME",
        help_heading = "etcd",
        requires = "etcd_password_file"
    )]
    pub etcd_user: Option<String>,
    /// File that holds that user's password
    #[arg(
        long,
        env = "BULKHEAD_ETCD_PASSWORD_FILE",
        value_name = "FILE",
        help_heading = "etcd",
        requires = "etcd_user"
    )]
    pub etcd_password_file: Option<PathBuf>,
    /// Prefix of all keys
    #[arg(
        long,
        env = "BULKHEAD_ETCD_PREFIX",
        value_name = "KEY",
        help_heading = "etcd",
        default_value = "/k8s.ovs.com/ovs/network"
    )]
    pub etcd_prefix: String,
}

impl EtcdArgs {
    /// Whether they name another etcd than the default.
    pub fn is_named(&self) -> bool {
        self.etcd_endpoints != [DEFAULT_ENDPOINT]
    }

    /// The validated settings, with the default time limits.
    pub fn settings(&self) -> Result<Settings, ArgsError> {
        let auth = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(path)) => Some(Auth::new(user.clone(), read_password(path)?)),
            _ => None,
        };
        let tls = Tls { ca: self.etcd_ca.clone(), cert: self.etcd_cert.clone(), key: self.etcd_key.clone() };
        let tls = (tls != Tls::default()).then_some(tls);
        Ok(Settings::new(&self.etcd_endpoints, tls, auth, Timeouts::default())?)
    }
}

/// Reads the password; one line end behind it is not a part of it.
fn read_password(path: &PathBuf) -> Result<String, ArgsError> {
    let failed = |source| ArgsError::PasswordFile { path: path.clone(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_PASSWORD_BYTES {
        return Err(ArgsError::PasswordSize { path: path.clone(), bytes });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(ArgsError::PasswordSize { path: path.clone(), bytes });
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: EtcdArgs,
    }

    fn parse(args: &[&str]) -> Result<EtcdArgs, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"x").chain(args)).map(|cli| cli.etcd)
    }

    #[test]
    fn flags_become_settings_and_the_password_file_loses_its_line_end() {
        let settings = parse(&[]).unwrap().settings().unwrap();
        assert_eq!(settings.endpoints(), ["http://127.0.0.1:2379"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\r\n").unwrap();
        let path = file.to_str().unwrap();
        let args = ["--etcd-endpoints", "http://a:1,http://b:2", "--etcd-user", "root", "--etcd-password-file", path];
        let settings = parse(&args).unwrap().settings().unwrap();
        assert_eq!(settings.endpoints(), ["http://a:1", "http://b:2"]);
        assert_eq!(settings.auth(), Some(&Auth::new("root", "secret")));
    }

    #[test]
    fn half_of_a_pair_is_refused_and_a_bad_file_is_named() {
        assert!(parse(&["--etcd-user", "root"]).is_err());
        assert!(parse(&["--etcd-cert", "c.pem"]).is_err());
        let args = parse(&["--etcd-user", "root", "--etcd-password-file", "/nonexistent/password"]).unwrap();
        assert!(args.settings().unwrap_err().to_string().contains("/nonexistent/password"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("empty");
        std::fs::write(&file, "\n").unwrap();
        let args = parse(&["--etcd-user", "root", "--etcd-password-file", file.to_str().unwrap()]).unwrap();
        assert!(matches!(args.settings(), Err(ArgsError::PasswordSize { .. })));
    }
}

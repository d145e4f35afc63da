//! `bulkhead certs`: the certificates of an etcd with mutual TLS, as files or as Secrets.
//!
//! One authority signs three kinds: `server` (etcd towards clients), `peer` (members among themselves; its common name is
//! what members let in) and clients (their common names are etcd's user names, where it asks for a login).

mod authority;
mod files;
mod secrets;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

pub use authority::{Authority, Credential};
pub use secrets::{CA_SECRET, credential_secret};

use crate::error::CliError;
use crate::output::Console;

/// Common name of the members among themselves.
pub const PEER_NAME: &str = "bulkhead-etcd-peer";
/// Common name of the members towards clients.
pub const SERVER_NAME: &str = "bulkhead-etcd-server";
/// Common name of our own clients.
pub const CLIENT_NAME: &str = "bulkhead";

/// A name or an address under which a member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(label) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err("write a DNS name or an address such as 10.0.0.1".to_owned())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What certificates are to be made.
#[derive(Debug, Clone, Args)]
pub struct CertsArgs {
    /// Addresses and names of the members, separated by commas; the loopback is added
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
    host: Vec<Host>,
    /// Names of the clients, as etcd knows its users, separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = CLIENT_NAME, value_parser = client_name)]
    client: Vec<String>,
    /// Days for which the certificates are good, the authority's ten times as many
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u16).range(1..=36_500))]
    days: u16,
    /// Write files into this folder; an authority that is there (ca.crt, ca.key) is used again
    #[arg(long, value_name = "DIR", required_unless_present = "secrets", conflicts_with = "secrets")]
    out: Option<PathBuf>,
    /// Print Secrets, as the chart's bundled etcd takes them, for `kubectl apply -f -`
    #[arg(long)]
    secrets: bool,
    /// The Secrets' namespace
    #[arg(long, value_name = "NAME", default_value = "bulkhead-system", requires = "secrets")]
    namespace: bulkhead_core::Namespace,
}

fn client_name(text: &str) -> Result<String, String> {
    let sane = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=40).contains(&text.len()) && text.bytes().all(sane) && !["ca", "server", "peer"].contains(&text);
    good.then(|| text.to_owned())
        .ok_or_else(|| "use 1 to 40 lower case letters, digits and hyphens; ca, server and peer are taken".to_owned())
}

/// All certificates of one etcd.
pub struct Set {
    /// Who signed them.
    pub authority: Authority,
    /// The members' towards clients.
    pub server: Credential,
    /// The members' among themselves.
    pub peer: Credential,
    /// The clients', by name.
    pub clients: Vec<(String, Credential)>,
}

impl Set {
    /// Signs them all.
    pub fn issue(authority: Authority, hosts: &[Host], clients: &[String], days: u16) -> Result<Self, CliError> {
        let mut everywhere: Vec<Host> = hosts.to_vec();
        for host in ["127.0.0.1", "::1", "localhost"].into_iter().flat_map(Host::from_str) {
            if !everywhere.contains(&host) {
                everywhere.push(host);
            }
        }
        Ok(Self {
            server: authority.issue(SERVER_NAME, &everywhere, days)?,
            peer: authority.issue(PEER_NAME, &everywhere, days)?,
            clients: clients
                .iter()
                .map(|name| Ok((name.clone(), authority.issue(name, &[], days)?)))
                .collect::<Result<_, CliError>>()?,
            authority,
        })
    }
}

/// Makes them.
pub fn carry_out(args: &CertsArgs, console: &mut Console<'_>) -> Result<(), CliError> {
    let authority = match &args.out {
        Some(folder) => files::authority(folder)?,
        None => None,
    };
    let authority = match authority {
        Some(authority) => authority,
        None => Authority::new(args.days.saturating_mul(10))?,
    };
    let set = Set::issue(authority, &args.host, &args.client, args.days)?;
    match &args.out {
        Some(folder) => {
            let written = files::write(folder, &set)?;
            let sentences: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
            console.report(&written, &sentences)
        }
        None => console.raw(&secrets::manifest(&set, args.namespace.as_str())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_names() {
        assert_eq!("10.0.0.1".parse(), Ok(Host::Ip("10.0.0.1".parse().unwrap())));
        assert_eq!("fd00::1".parse(), Ok(Host::Ip("fd00::1".parse().unwrap())));
        assert_eq!("etcd-0.example.com".parse(), Ok(Host::Name("etcd-0.example.com".into())));
        for bad in ["", "a b", "https://a", "a..b", "-a", &"a".repeat(64)] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
        for bad in ["", "ca", "peer", "A", "../x"] {
            assert!(client_name(bad).is_err(), "{bad}");
        }
    }
}

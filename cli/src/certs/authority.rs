//! A certificate authority, and what it signs. Pure but for the clock and the kernel's randomness.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

use super::Host;
use crate::error::CliError;

/// Common name of every authority made here: what it signs names its issuer by it.
const NAME: &str = "bulkhead-etcd-ca";
/// Clocks of nodes may be behind by so much.
const SKEW: Duration = Duration::hours(1);

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS#8.
    pub key: String,
}

/// One that can sign.
pub struct Authority {
    /// Its own certificate.
    pub credential: Credential,
    issuer: Issuer<'static, KeyPair>,
}

#[allow(clippy::needless_pass_by_value)] // it stands where map_err wants a function
fn failed(error: rcgen::Error) -> CliError {
    CliError::Certificate(error.to_string())
}

fn params(name: &str, days: u16) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(days.into());
    params
}

fn own_params(days: u16) -> CertificateParams {
    let mut params = params(NAME, days);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    /// Makes a new one.
    pub fn new(days: u16) -> Result<Self, CliError> {
        let key = KeyPair::generate().map_err(failed)?;
        let params = own_params(days);
        let certificate = params.self_signed(&key).map_err(failed)?;
        let credential = Credential { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok(Self { credential, issuer: Issuer::new(params, key) })
    }

    /// One that was made here before. The certificate is not read again: name and key are all that signing needs.
    pub fn again(credential: Credential) -> Result<Self, CliError> {
        let key = KeyPair::from_pem(&credential.key)
            .map_err(|error| CliError::Certificate(format!("the authority's key cannot be used: {error}")))?;
        Ok(Self { credential, issuer: Issuer::new(own_params(1), key) })
    }

    /// Signs a certificate for a new key: a client's, or, with hosts, a server's that is a client too.
    pub fn issue(&self, name: &str, hosts: &[Host], days: u16) -> Result<Credential, CliError> {
        let mut params = params(name, days);
        for host in hosts {
            params.subject_alt_names.push(match host {
                Host::Ip(ip) => SanType::IpAddress(*ip),
                Host::Name(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
            });
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

//! The lab's certificate authority, and what it signs. Everything is valid for as long as rcgen's default says; no key
//! leaves the lab's directory.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bulkhead_tests::error::{LabError, Tried};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A self-signed authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS#8).
    pub key: String,
}

/// For whom a certificate is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its common name: a user's name in Kubernetes and in etcd.
    pub name: &'a str,
    /// Its organisation: a group in Kubernetes.
    pub group: Option<&'a str>,
    /// Under which names it serves; none for a mere client.
    pub hosts: &'a [&'a str],
    /// Under which addresses it serves.
    pub addresses: &'a [IpAddr],
}

impl<'a> Subject<'a> {
    /// A client.
    pub fn client(name: &'a str, group: Option<&'a str>) -> Self {
        Self { name, group, hosts: &[], addresses: &[] }
    }

    /// A server, which may be a client too.
    pub fn server(name: &'a str, hosts: &'a [&'a str], addresses: &'a [IpAddr]) -> Self {
        Self { name, group: None, hosts, addresses }
    }
}

fn failed(what: &str) -> impl FnOnce(rcgen::Error) -> LabError {
    let what = what.to_owned();
    move |error| LabError::Refused { what, answer: error.to_string() }
}

impl Authority {
    /// Makes one.
    pub fn new(name: &str) -> Result<Self, LabError> {
        let what = "make a certificate authority";
        let mut params = CertificateParams::new([]).map_err(failed(what))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed(what))?;
        CertifiedIssuer::self_signed(params, key).map(Self).map_err(failed(what))
    }

    /// Its own certificate and key.
    pub fn credential(&self) -> Credential {
        Credential { certificate: self.0.pem(), key: self.0.key().serialize_pem() }
    }

    /// Makes a key and signs it.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Credential, LabError> {
        let what = format!("sign a certificate for {}", subject.name);
        let mut params = CertificateParams::new(subject.hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())
            .map_err(failed(&what))?;
        params.subject_alt_names.extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name.push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !params.subject_alt_names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate().map_err(failed(&what))?;
        let certificate = params.signed_by(&key, &self.0).map_err(failed(&what))?;
        Ok(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A key pair without a certificate, `<dir>/<name>.key` and `.pub`: what service account tokens are signed with.
pub fn write_bare_key(dir: &Path, name: &str) -> Result<(), LabError> {
    let pair = KeyPair::generate().map_err(failed("make a key"))?;
    write(&dir.join(format!("{name}.key")), &pair.serialize_pem(), 0o600)?;
    write(&dir.join(format!("{name}.pub")), &pair.public_key_pem(), 0o644)
}

impl Credential {
    /// Writes `<dir>/<name>.crt` and `<dir>/<name>.key`.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(), LabError> {
        write(&dir.join(format!("{name}.crt")), &self.certificate, 0o644)?;
        write(&dir.join(format!("{name}.key")), &self.key, 0o600)
    }
}

/// Writes a file with this mode, and the directories that lead to it.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), LabError> {
    let what = || format!("write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).tried(what)?;
    }
    fs::write(path, text).tried(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).tried(what)
}

//! The bundled etcd's certificates, as Secrets: made where there are none, and signed anew by the same authority when members
//! get addresses that they do not name.

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::access::Access;
use super::members::Member;
use crate::certs::{Authority, CA_SECRET, CLIENT_NAME, Credential, Host, PEER_NAME, SERVER_NAME, credential_secret};
use crate::error::CliError;

/// The key of a Secret that says for which addresses its certificate is, separated by commas.
const HOSTS: &str = "hosts";
const CLIENT_SECRET: &str = "bulkhead-etcd-client";
/// Those that name the members' addresses.
const OF_MEMBERS: [(&str, &str); 2] = [("bulkhead-etcd-server", SERVER_NAME), ("bulkhead-etcd-peer", PEER_NAME)];

/// Where the Secrets are, and what is asked of new ones.
pub struct Certificates {
    secrets: Api<Secret>,
    namespace: String,
    days: u16,
}

impl Certificates {
    /// Of that namespace; `days` is how long new ones are good.
    pub fn new(client: &Client, namespace: &str, days: u16) -> Self {
        Self { secrets: Api::namespaced(client.clone(), namespace), namespace: namespace.to_owned(), days }
    }

    /// Makes the Secrets that are not there, and has those of members name the addresses of all `wanted`. One that was not made
    /// here is taken to be good for `current`.
    pub async fn ensure(&self, current: &[Member], wanted: &[Member]) -> Result<(), CliError> {
        let authority = self.authority().await?;
        let mut all = current.to_vec();
        all.extend(wanted.iter().filter(|member| !current.contains(member)).cloned());
        let listed = |members: &[Member]| members.iter().map(|member| member.ip.to_string()).collect::<Vec<_>>();
        let mut hosts: Vec<Host> = all.iter().map(|member| Host::Ip(member.ip)).collect();
        hosts.extend(["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).map(Host::Ip));
        let secret = |name: &str, common: &str| {
            let mut secret = self.secret(name, &authority, &authority.issue(common, &hosts, self.days)?);
            secret.string_data.get_or_insert_default().insert(HOSTS.to_owned(), listed(&all).join(","));
            Ok::<_, CliError>(secret)
        };
        for (name, common) in OF_MEMBERS {
            let Some(there) = self.secrets.get_opt(name).await? else {
                create(&self.secrets, &secret(name, common)?).await?;
                continue;
            };
            let named = match text(&there, HOSTS) {
                Ok(text) => text.split(',').map(str::to_owned).collect(),
                Err(_) => listed(current),
            };
            if listed(wanted).iter().all(|ip| named.contains(ip)) {
                continue;
            }
            if text(&there, "ca.crt")?.trim() != authority.credential.certificate.trim() {
                return Err(CliError::Refused(format!(
                    "the certificate in the Secret {name} has to name {} as well, and its ca.crt is not the one of {CA_SECRET}: replace it by one of that authority, its key {HOSTS} naming all addresses, then try again",
                    listed(wanted).join(",")
                )));
            }
            let patch = json!({"stringData": secret(name, common)?.string_data});
            self.secrets.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        if self.secrets.get_opt(CLIENT_SECRET).await?.is_none() {
            let secret = self.secret(CLIENT_SECRET, &authority, &authority.issue(CLIENT_NAME, &[], self.days)?);
            create(&self.secrets, &secret).await?;
        }
        Ok(())
    }

    /// How a client of ours reaches etcd.
    pub async fn access(&self) -> Result<Access, CliError> {
        let secret = self.secrets.get(CLIENT_SECRET).await?;
        let bytes = |key| text(&secret, key).map(String::into_bytes);
        Ok(Access { authority: bytes("ca.crt")?, certificate: bytes("tls.crt")?, key: bytes("tls.key")? })
    }

    async fn authority(&self) -> Result<Authority, CliError> {
        if let Some(there) = self.secrets.get_opt(CA_SECRET).await? {
            return Authority::again(credential(&there)?);
        }
        let new = Authority::new(self.days.saturating_mul(10))?;
        if create(&self.secrets, &self.secret(CA_SECRET, &new, &new.credential)).await? {
            return Ok(new);
        }
        Authority::again(credential(&self.secrets.get(CA_SECRET).await?)?)
    }

    fn secret(&self, name: &str, authority: &Authority, credential: &Credential) -> Secret {
        credential_secret(name, &self.namespace, &authority.credential.certificate, credential)
    }
}

/// Creates a Secret; false if there is one already.
async fn create(secrets: &Api<Secret>, secret: &Secret) -> Result<bool, CliError> {
    match secrets.create(&PostParams::default(), secret).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn credential(secret: &Secret) -> Result<Credential, CliError> {
    Ok(Credential { certificate: text(secret, "tls.crt")?, key: text(secret, "tls.key")? })
}

fn text(secret: &Secret, key: &str) -> Result<String, CliError> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    text.ok_or_else(|| {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        CliError::Certificate(format!("the Secret {name} has no {key}; correct or delete it"))
    })
}

//! etcd's member API, asked of whichever member answers.
//!
//! Each call makes a connection of its own, so that it meets the certificates and members of this moment. Promises: it ends in
//! time, and a change is sent to one member only; whether one whose answer got lost was made, the next list tells.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, MemberAddOptions, TlsOptions};
use tokio::time::timeout;

use super::membership::Listed;

/// How long a member may take to be connected to.
const CONNECT: Duration = Duration::from_secs(3);
/// How long it may take to answer; a list and a change need the quorum.
const ANSWER: Duration = Duration::from_secs(7);

/// How etcd is reached; PEM.
#[derive(Clone)]
pub struct Access {
    /// Who signed its certificate.
    pub authority: Vec<u8>,
    /// A client's certificate.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

/// A change of the membership.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Forget a member.
    Remove(u64),
    /// Take a new one in, at this peer URL.
    Add {
        /// Where the others reach it.
        url: &'a str,
        /// Whether it is to count for no quorum before it is promoted.
        learner: bool,
    },
    /// A member's peer URL is another one.
    Move(u64, &'a str),
    /// Let a learner count.
    Promote(u64),
}

impl Access {
    async fn connect(&self, endpoint: &str) -> Result<Client, Error> {
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(Identity::from_pem(&self.certificate, &self.key));
        let options = ConnectOptions::new().with_connect_timeout(CONNECT).with_timeout(ANSWER).with_tls(tls);
        Client::connect([endpoint], Some(options)).await
    }

    /// The members, as this one says with a quorum behind it.
    pub async fn list_of(&self, endpoint: &str) -> Result<Vec<Listed>, String> {
        let ask = Box::pin(async { self.connect(endpoint).await?.member_list().await });
        let answer = within(ask).await.map_err(|error| format!("{endpoint}: {error}"))?;
        let listed = answer.members().iter().map(|member| Listed {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            started: !member.client_urls().is_empty(),
            learner: member.is_learner(),
        });
        Ok(listed.collect())
    }

    /// The members, as the first says that answers, and which one that is.
    pub async fn list<'a>(&self, endpoints: &'a [String]) -> Result<(&'a str, Vec<Listed>), String> {
        let mut errors = Vec::new();
        for endpoint in endpoints {
            match self.list_of(endpoint).await {
                Ok(listed) => return Ok((endpoint, listed)),
                Err(error) => errors.push(error),
            }
        }
        Err(errors.join("; "))
    }

    /// Asks a member for a change.
    pub async fn change(&self, endpoint: &str, change: Change<'_>) -> Result<(), String> {
        let ask = Box::pin(async {
            let mut client = self.connect(endpoint).await?;
            match change {
                Change::Remove(id) => client.member_remove(id).await.map(drop),
                Change::Add { url, learner: true } => {
                    client.member_add([url], Some(MemberAddOptions::new().with_is_learner())).await.map(drop)
                }
                Change::Add { url, learner: false } => client.member_add([url], None).await.map(drop),
                Change::Move(id, url) => client.member_update(id, [url.to_owned()]).await.map(drop),
                Change::Promote(id) => client.member_promote(id).await.map(drop),
            }
        });
        within(ask).await.map_err(|error| format!("{endpoint}: {error}"))
    }
}

/// The answer in time, or why there is none.
async fn within<T>(ask: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(CONNECT + ANSWER, ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::GRpcStatus(status))) => Err(status.message().to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

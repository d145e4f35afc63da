//! The real etcd: one connection per endpoint, used one at a time, and the rules of what may be sent again.
//!
//! Promises: what surely did not take effect (no connection, no leader, refused for load) is tried on the next endpoint
//! until the request timeout; a read is also tried again when its answer got lost, a write never is. A connection that
//! failed is thrown away, so a new one reads the TLS files and logs in afresh.

mod failure;
mod kv;
mod lease;
mod watch;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions};
use tokio::time::{Instant, timeout};

use crate::backoff::{Backoff, random};
use crate::error::StoreError;
use crate::settings::{Settings, Tls};
use failure::Failure;
pub(crate) use watch::EtcdWatch;

/// HTTP/2 pings: a frozen member is noticed within twice this time, also while nothing is asked.
const PING: Duration = Duration::from_secs(2);
/// The largest answer that is read: above what one response of a watch may hold (etcd's own limit per request is
/// 1.5 MiB), and above a page of a list unless it has very large values.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client of a real etcd; clones share their connections.
#[derive(Clone)]
pub(crate) struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    /// One per endpoint.
    clients: Vec<Mutex<Option<Client>>>,
    /// The endpoint in use; moves on when it fails.
    current: AtomicUsize,
}

/// Whether a request whose answer got lost may be sent again.
#[derive(Clone, Copy)]
enum Repeat {
    /// It may; an endpoint that is silent for this long is given up for the next.
    After(Duration),
    /// It may not.
    Never,
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        Self::of(error)
    }
}

impl Etcd {
    /// Prepares the endpoints; reads the TLS files once to refuse bad ones early.
    pub(crate) fn open(settings: Settings) -> Result<Self, StoreError> {
        if let Some(tls) = settings.tls() {
            tls.read()?;
        }
        let count = settings.endpoints().len();
        // Clients spread over the members.
        let first = usize::try_from(random() % 1024).unwrap_or_default() % count;
        Ok(Self {
            shared: Arc::new(Shared {
                clients: (0..count).map(|_| Mutex::new(None)).collect(),
                current: AtomicUsize::new(first),
                settings,
            }),
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// A read may be repeated; two silent endpoints fit into the request timeout.
    fn read(&self) -> Repeat {
        Repeat::After(self.settings().timeouts().request.mul_f32(0.45))
    }

    fn slot(&self, at: usize) -> MutexGuard<'_, Option<Client>> {
        self.shared.clients[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> usize {
        self.shared.current.load(Ordering::Relaxed)
    }

    /// Throws the connection away and moves on, unless somebody else has already.
    fn give_up(&self, at: usize) {
        *self.slot(at) = None;
        let next = (at + 1) % self.shared.clients.len();
        let _moved = self.shared.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn client(&self, at: usize) -> Result<Client, Failure> {
        if let Some(client) = self.slot(at).as_ref() {
            return Ok(client.clone());
        }
        let settings = self.settings();
        let endpoint = [settings.endpoints()[at].as_str()];
        let options = options(settings).map_err(Failure::Settings)?;
        let with_user = match settings.auth() {
            Some(auth) => options.clone().with_user(auth.user(), auth.password()),
            None => options.clone(),
        };
        let limit = settings.timeouts().connect;
        let connect = async {
            let client = match Client::connect(endpoint, Some(with_user)).await {
                // A user for an etcd without authentication is fine for etcdctl, and for us.
                Err(error) if failure::auth_is_off(&error) => Client::connect(endpoint, Some(options)).await?,
                result => result?,
            };
            prove(&client).await?;
            Ok(client)
        };
        // Only the login and the proof were sent, never the request.
        let https = settings.tls().is_some();
        let client = timeout(limit, connect)
            .await
            .unwrap_or(Err(Failure::Silent(limit)))
            .map_err(|failure| failure.before_sending(https))?;
        *self.slot(at) = Some(client.clone());
        Ok(client)
    }

    /// Sends a request, over as many endpoints and as often as `repeat` and the request timeout allow.
    async fn call<T, F, R>(&self, what: &str, repeat: Repeat, send: F) -> Result<T, StoreError>
    where
        F: Fn(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let limit = self.settings().timeouts().request;
        let deadline = Instant::now() + limit;
        let count = self.shared.clients.len();
        let mut backoff = Backoff::new();
        let mut worst = None;
        let mut tls_failures = 0;
        for attempt in 1.. {
            let at = self.current();
            let failure = match Box::pin(self.client(at)).await {
                Ok(client) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // Connecting took all the time: a write must not be sent only to be given up unheard.
                    if left.is_zero() {
                        break;
                    }
                    let patience = match repeat {
                        Repeat::After(patience) => patience.min(left),
                        Repeat::Never => left,
                    };
                    match timeout(patience, Box::pin(send(client))).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(error)) => Failure::of(error),
                        Err(_) => Failure::Silent(patience),
                    }
                }
                Err(failure) => failure,
            };
            let repeatable = match repeat {
                Repeat::After(_) => failure.may_repeat_read(),
                Repeat::Never => failure.may_repeat_write(),
            };
            if failure.condemns_connection() {
                self.give_up(at);
            }
            tls_failures += usize::from(matches!(failure, Failure::Tls(_)));
            // A certificate that every endpoint refuses will not get better by waiting.
            let hopeless = tls_failures >= count && tls_failures == attempt;
            tracing::debug!(what, endpoint = self.settings().endpoints()[at], %failure, "request failed");
            if !repeatable || hopeless {
                return Err(failure.into_error(what, self.settings(), at, repeat.is_write()));
            }
            // "Cannot connect" says less than what another endpoint answered.
            if worst.is_none() || !matches!(failure, Failure::NotSent(_)) {
                worst = Some((failure, at));
            }
            let pause = if attempt % count == 0 { backoff.pause() } else { Duration::ZERO };
            if Instant::now() + pause >= deadline {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let in_time = Failure::NotSent(format!("no connection within {limit:?}").into());
        let (failure, at) = worst.unwrap_or((in_time, 0));
        Err(failure.into_error(what, self.settings(), at, repeat.is_write()))
    }
}

impl Repeat {
    fn is_write(self) -> bool {
        matches!(self, Self::Never)
    }
}

/// Asks a new connection something harmless that the member answers from its own data. Any answer will do: what this
/// finds out about TLS, the login and dead peers is found out before a write is at stake.
async fn prove(client: &Client) -> Result<(), Failure> {
    let options = GetOptions::new().with_serializable().with_count_only();
    match client.kv_client().get([0], Some(options)).await {
        Ok(_) => Ok(()),
        Err(error) => match Failure::of(error) {
            failure if failure.proves_connection() => Ok(()),
            failure => Err(failure),
        },
    }
}

fn options(settings: &Settings) -> Result<ConnectOptions, crate::settings::SettingsError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(settings.timeouts().connect)
        .with_keep_alive(PING, PING)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(tls) = settings.tls() {
        options = options.with_tls(tls_options(tls)?);
    }
    Ok(options)
}

fn tls_options(tls: &Tls) -> Result<TlsOptions, crate::settings::SettingsError> {
    let files = tls.read()?;
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(files.ca));
    if let Some((cert, key)) = files.identity {
        options = options.identity(Identity::from_pem(cert, key));
    }
    Ok(options)
}

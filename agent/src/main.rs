//! The agent's process: flags, logs, threads, signals.
//!
//! | thread | does |
//! |---|---|
//! | main | the async runtime: follows etcd and the API server, waits for signals |
//! | reconciler | from the intent to the kernel |
//! | remover | deletes pods' devices, many at once |
//! | cache | writes the last intent to disk |
//! | http | probes and metrics |
//! | server, call | the unix socket; one thread per call |
//! | upkeep, spool | spooled DELs; whether the pods' records are in their place |

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_agent::args::{Args, LogFormat};
use bulkhead_agent::intent::{Cache, Follower, Shared};
use bulkhead_agent::kernel::Netlink;
use bulkhead_agent::node::cni_binary::{CniBinary, Installed};
use bulkhead_agent::node::cni_versions;
use bulkhead_agent::reconcile::{self, Agent};
use bulkhead_agent::{http, kubernetes, server, uninstall};
use bulkhead_store::Store;
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// How long etcd may take before a node that knows an earlier state starts by that.
const ETCD_FIRST: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = start_log(&args) {
        eprintln!("bulkhead-agent: --log-level: {error}");
        return ExitCode::from(2);
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let filter = EnvFilter::try_new(&args.log_level)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// The source address of the default route.
fn default_source() -> Option<IpAddr> {
    // Any address beyond the default route does; nothing is sent.
    let beyond = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    Netlink::here().ok()?.route_to(beyond).ok()??.prefsrc
}

fn install(asked: &CniBinary) -> Result<(), Box<dyn std::error::Error>> {
    let (outcome, target) = (asked.install()?, asked.target());
    let target = target.display();
    match outcome {
        Installed::New => println!("{target}: installed, version {}", env!("CARGO_PKG_VERSION")),
        Installed::Replaced => println!("{target}: replaced another one by version {}", env!("CARGO_PKG_VERSION")),
        Installed::Unchanged => println!("{target}: is version {} already", env!("CARGO_PKG_VERSION")),
    }
    cni_versions::learn(&asked.folder)?.iter().for_each(|told| println!("{told}"));
    Ok(())
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(asked) = args.install() {
        return install(&asked);
    }
    let config = args.into_config(default_source)?;
    if config.uninstall {
        let failed = uninstall::run(&config);
        return if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) };
    }
    let cache = Cache::open(&config.state_dir)?;
    let shared = Arc::new(Shared::default());
    let cached = cache.load().unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    let knew = cached.is_some();
    shared.update(|intent| *intent = cached.unwrap_or_default());
    let store = Store::open(config.etcd.clone())?;
    let follower = Follower {
        store,
        prefix: config.prefix.clone(),
        node: config.node.clone(),
        register: config.register.map(IpAddr::V4),
        shared: Arc::clone(&shared),
        cache: Some(cache.clone()),
    };
    let agent = Arc::new(Agent::new(config, Arc::clone(&shared)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = match &agent.config.kubernetes {
        Some(access) => Some(runtime.block_on(kubernetes::client(access))?),
        None => None,
    };
    server::serve(Arc::clone(&agent))?;
    http::serve(&agent)?;
    let reconciler = Arc::clone(&agent);
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("reconciler".into()).spawn(move || {
        if knew {
            wait_for_etcd(&reconciler.shared);
        }
        if let Some(moved) = reconcile::run(&reconciler, || server::start_upkeep(&reconciler)) {
            drop(tell.send(moved));
        }
    })?;
    let kept = Arc::clone(&shared);
    std::thread::Builder::new().name("cache".into()).spawn(move || cache.keep(&kept))?;
    runtime.block_on(async {
        let watched = async {
            if let Some(client) = client {
                kubernetes::run(client, &agent.config.node, &agent.api, &agent.shared).await;
            }
            std::future::pending::<()>().await;
        };
        let moved = async {
            match told.await {
                Ok(moved) => moved,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = watched => Ok(()),
            moved = moved => Err(moved.into()),
            ended = follower.run() => ended.map_err(Into::into),
            () = asked_to_stop() => {
                // Programs, maps and devices stay: running pods notice nothing.
                tracing::info!("stopping; the pods keep their network");
                Ok(())
            }
        }
    })
}

/// A state from etcd is better than a cached one, if it comes soon.
fn wait_for_etcd(shared: &Shared) {
    let deadline = Instant::now() + ETCD_FIRST;
    let mut seen = 0;
    while !shared.read(|_, connection| connection.connected) && Instant::now() < deadline {
        seen = shared.wait_past(seen, deadline);
    }
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

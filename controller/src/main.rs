//! The binary: flags, log, signals; everything else is the library's.
//!
//! Exits with 0 after SIGTERM or SIGINT, 1 if it cannot go on, 2 for a wrong flag.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_controller::args::{ControllerArgs, LogFormat};
use bulkhead_controller::endpoints;
use bulkhead_controller::kubernetes::{self, KubernetesOptions};
use bulkhead_controller::lead::{Outside, Tally};
use bulkhead_controller::run::{Options, RunError, connect, run};
use bulkhead_store::Settings;
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = ControllerArgs::parse();
    let checked = args.options().and_then(|options| {
        let settings = args.etcd.settings().map_err(|error| chain(&error))?;
        let filter = EnvFilter::try_new(&args.log_level).map_err(|error| format!("--log-level: {error}"))?;
        Ok((options, args.kubernetes.options()?, settings, filter))
    });
    let (options, kubernetes, settings, filter) = match checked {
        Ok(checked) => checked,
        Err(reason) => ControllerArgs::command().error(clap::error::ErrorKind::ValueValidation, reason).exit(),
    };
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(reason) => {
            error!(error = %reason, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(&options, kubernetes.as_ref(), args.listen, &settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            error!(error = chain(reason.as_ref()), "the controller cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn serve(
    options: &Options,
    kubernetes: Option<&KubernetesOptions>,
    listen: Option<SocketAddr>,
    settings: &Settings,
) -> Result<(), Box<dyn std::error::Error>> {
    let tally = Arc::new(Tally::default());
    let mut beside = JoinSet::new();
    let mut outside = None;
    // Dropped last: it ends the reflectors.
    let mut _following = None;
    if let Some(options) = kubernetes {
        let client = kubernetes::client(options).await?;
        let following = kubernetes::follow(&client, options);
        let (objects, (reports, to_report)) = (following.objects(), watch::channel(None));
        let (namespace, shown) = (options.agent_namespace.clone(), objects.clone());
        beside.spawn(async move { kubernetes::report(client, &namespace, to_report, shown).await });
        outside = Some(Outside { objects, node_release_after: options.node_release_after, reports });
        _following = Some(following);
    }
    let address = listen.map_or_else(|| endpoints::DEFAULT.parse(), Ok)?;
    let objects = outside.as_ref().map(|outside| outside.objects.clone());
    match endpoints::bind(address).await {
        Ok(listener) => {
            drop(beside.spawn(endpoints::serve(listener, endpoints::Subject { tally: Arc::clone(&tally), objects })));
        }
        Err(error) if listen.is_some() => return Err(error.into()),
        Err(error) => warn!(%error, "health and metrics are not served"),
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopping) = watch::channel(false);
    let mut waiting = stopping.clone();
    let work = async move {
        let store = tokio::select! {
            biased;
            _ = waiting.wait_for(|stop| *stop) => return Ok(()),
            store = connect(settings) => store.map_err(RunError::from)?,
        };
        run(&store, options, &tally, outside.as_ref(), stopping).await
    };
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return Ok(done?),
        _ = term.recv() => info!("SIGTERM: stopping"),
        _ = int.recv() => info!("SIGINT: stopping"),
    }
    stop.send_replace(true);
    Ok(work.await?)
}

/// A message with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

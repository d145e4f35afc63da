//! The binary: flags, log, signals; everything else is the library's.
//!
//! Exits with 0 after SIGTERM or SIGINT, 1 if it cannot go on, 2 for a wrong flag.

use std::io::IsTerminal;
use std::process::ExitCode;

use bulkhead_controller::args::{ControllerArgs, LogFormat};
use bulkhead_controller::kubernetes::{self, KubernetesOptions};
use bulkhead_controller::lead::{Outside, Tally};
use bulkhead_controller::run::{Options, RunError, connect, run};
use bulkhead_store::Settings;
use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};
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
    match runtime.block_on(serve(&options, kubernetes.as_ref(), &settings)) {
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
    settings: &Settings,
) -> Result<(), Box<dyn std::error::Error>> {
    let following = match kubernetes {
        Some(options) => Some(kubernetes::follow(&kubernetes::client(options).await?, options)),
        None => None,
    };
    let outside = following.as_ref().zip(kubernetes).map(|(following, options)| Outside {
        objects: following.objects(),
        node_release_after: options.node_release_after,
    });
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopping) = watch::channel(false);
    let mut waiting = stopping.clone();
    let work = async move {
        let store = tokio::select! {
            biased;
            _ = waiting.wait_for(|stop| *stop) => return Ok(()),
            store = connect(settings) => store.map_err(RunError::from)?,
        };
        run(&store, options, &Tally::default(), outside.as_ref(), stopping).await
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

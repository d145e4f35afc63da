//! What probes and Prometheus ask over HTTP, on a thread of its own: a slow scrape keeps nothing from its work.
//!
//! `/healthz`: the process works. `/readyz`: this node takes pods. `/metrics`: numbers. Plain HTTP without secrets; the
//! connections are few, short and bounded, whoever may reach the port.

mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::args::Listen;
use crate::reconcile::Agent;

pub use metrics::CallMetrics;

/// The longest time without a sign of the reconciler; its longest turn is far shorter.
const SILENCE: Duration = Duration::from_mins(1);
/// Pause between two attempts at a port that is taken.
const RETRY: Duration = Duration::from_secs(5);
/// Connections at once; more are closed at once.
const MOST: usize = 32;
/// How long a request may take to come, and a connection to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Under which name problems are noted.
const PART: &str = "HTTP";

/// Starts serving, unless it is off. A port that is taken is a problem of the node, no reason to stop.
pub fn serve(agent: &Arc<Agent>) -> std::io::Result<()> {
    let Listen::At(address) = agent.config.listen else { return Ok(()) };
    let agent = Arc::clone(agent);
    std::thread::Builder::new().name("http".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(listen(agent, address)),
            Err(error) => agent.note(PART, vec![format!("HTTP cannot be served: {error}")]),
        }
    })?;
    Ok(())
}

async fn listen(agent: Arc<Agent>, address: SocketAddr) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let text = format!("probes and metrics cannot be served at {address}: {error}; give another --listen");
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("{text}");
                }
                agent.note(PART, vec![text]);
            }
        }
        tokio::time::sleep(RETRY).await;
    };
    tracing::info!(%address, "serving probes and metrics");
    agent.note(PART, Vec::new());
    accept(listener, routes(agent)).await;
}

fn routes(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(agent)
}

async fn accept(listener: TcpListener, routes: Router) {
    let free = Arc::new(Semaphore::new(MOST));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
        let service = TowerToHyperService::new(routes.clone());
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            let http = http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(16 << 10);
            let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // Whoever goes away, or is slow, harms only itself.
            drop(tokio::time::timeout(PATIENCE, connection).await);
            drop(permit);
        });
    }
}

async fn healthz(State(agent): State<Arc<Agent>>) -> (StatusCode, String) {
    let silent = agent.silent_for();
    if silent > SILENCE {
        let text = format!("the reconciler has not moved for {} s\n", silent.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    (StatusCode::OK, "ok\n".into())
}

async fn readyz(State(agent): State<Arc<Agent>>) -> (StatusCode, String) {
    let mut problems = agent.all_problems();
    problems.extend(agent.shared.read(|_, connection| connection.problem.clone()));
    problems.sort_unstable();
    problems.dedup();
    let ready = agent.is_ready() && agent.is_announced();
    let (status, word) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    let lines = problems.iter().map(|problem| format!("- {problem}\n"));
    (status, format!("{word}\n{}", lines.collect::<String>()))
}

async fn scrape(State(agent): State<Arc<Agent>>) -> Response {
    match metrics::text(&agent) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

//! Health and metrics over HTTP: `/healthz`, `/readyz`, `/metrics`.
//!
//! Ready means: the cluster's config was found, so that this process leads or could; with Kubernetes, that everything
//! there was listed once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::lead::Tally;
use crate::objects::Objects;

/// Where it listens unless told otherwise.
pub const DEFAULT: &str = "127.0.0.1:9471";

/// Why nothing is served.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; name a free address (--listen)")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What the controller counts.
    pub tally: Arc<Tally>,
    /// What Kubernetes has; none standalone.
    pub objects: Option<watch::Receiver<Option<Objects>>>,
}

impl Subject {
    /// Why it is not ready.
    fn obstacle(&self) -> Option<&'static str> {
        if !self.tally.running.load(Ordering::Relaxed) {
            Some("waiting for etcd or for the cluster's config")
        } else if self.objects.as_ref().is_some_and(|objects| objects.borrow().is_none()) {
            Some("waiting for Kubernetes to be listed")
        } else {
            None
        }
    }
}

/// Listens.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves for ever. Dropping the future ends it.
pub async fn serve(listener: TcpListener, subject: Subject) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "health and metrics");
    }
    if let Err(error) = axum::serve(listener, router(subject)).await {
        warn!(%error, "health and metrics are not served any more");
    }
}

fn router(subject: Subject) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(subject)
}

async fn readyz(State(subject): State<Subject>) -> impl IntoResponse {
    match subject.obstacle() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

async fn metrics(State(subject): State<Subject>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("bulkhead_controller");
    registry.register_collector(Box::new(Counts(subject)));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            Ok(([(header::CONTENT_TYPE, kind)], text))
        }
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))),
    }
}

/// The counts of the moment.
#[derive(Debug)]
struct Counts(Subject);

impl Collector for Counts {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let tally = &self.0.tally;
        let counters = [
            ("steps", "Transactions carried out", &tally.steps),
            ("conflicts", "Transactions that met a newer state", &tally.conflicts),
            ("refusals", "Records answered with an error", &tally.refusals),
            ("restored_records", "Records that differed from the ledger and were restored", &tally.restored),
        ];
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, counter) in counters {
            let metric = ConstCounter::new(read(counter));
            let encoder =
                encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Counter)?;
            prometheus_client::encoding::EncodeMetric::encode(&metric, encoder)?;
        }
        let leading = u64::from(tally.leading.load(Ordering::Relaxed));
        let ready = u64::from(self.0.obstacle().is_none());
        let gauges = [
            ("leading", "Whether this controller leads", leading),
            ("ready", "Whether this controller leads or could", ready),
            ("namespaces", "Namespaces in the ledger; of the leader", read(&tally.namespaces) * leading),
            ("nodes", "Nodes in the ledger; of the leader", read(&tally.nodes) * leading),
        ];
        for (name, help, value) in gauges {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
            prometheus_client::encoding::EncodeMetric::encode(&metric, encoder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn ask(subject: &Subject, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(subject.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_tells_what_is_waited_for() {
        let (objects, seen) = watch::channel(None);
        let subject = Subject { tally: Arc::default(), objects: Some(seen) };
        assert_eq!(ask(&subject, "/healthz").await, (200, "ok\n".to_owned()));
        assert!(ask(&subject, "/readyz").await.1.contains("config"));
        subject.tally.running.store(true, Ordering::Relaxed);
        let (status, text) = ask(&subject, "/readyz").await;
        assert!(status == 503 && text.contains("Kubernetes"), "{text}");
        objects.send_replace(Some(Objects::default()));
        assert_eq!(ask(&subject, "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn the_tally_is_a_metric() {
        let subject = Subject { tally: Arc::default(), objects: None };
        subject.tally.refusals.store(3, Ordering::Relaxed);
        subject.tally.namespaces.store(7, Ordering::Relaxed);
        let text = ask(&subject, "/metrics").await.1;
        assert!(text.contains("bulkhead_controller_refusals_total 3\n"), "{text}");
        assert!(text.contains("bulkhead_controller_namespaces 0\n"), "it does not lead: {text}");
        subject.tally.leading.store(true, Ordering::Relaxed);
        let text = ask(&subject, "/metrics").await.1;
        assert!(text.contains("bulkhead_controller_namespaces 7\n") && text.ends_with("# EOF\n"), "{text}");
    }
}

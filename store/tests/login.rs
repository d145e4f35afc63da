//! TLS with right and wrong certificates, logins with right and wrong passwords, on real etcd: each failure is its own
//! error, in time, and names no password.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

mod suite;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_store::process::{Cluster, ClusterOptions, ServerTls};
use bulkhead_store::{Auth, Settings, Store, StoreError, Timeouts, Tls, Txn, Update};
use etcd_client::{Permission, PermissionType};
use suite::{put, snapshot, within};

const PASSWORD: &str = "correct-horse";

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl runs: apt install openssl");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {errors}");
}

/// Makes a CA `<name>.pem`, `<name>.key`.
fn ca(directory: &Path, name: &str) {
    let (key, cert, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
    #[rustfmt::skip]
    openssl(directory, &[
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", &subject, "-keyout", &key, "-out", &cert,
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
    ]);
}

/// Makes a certificate for servers and clients, signed by a CA of [`ca`].
fn certificate(directory: &Path, name: &str, authority: &str, alt_names: &str) {
    let file = |suffix: &str| format!("{name}.{suffix}");
    let extensions = format!("subjectAltName={alt_names}\nextendedKeyUsage=serverAuth,clientAuth\n");
    std::fs::write(directory.join(file("ext")), extensions).unwrap();
    #[rustfmt::skip]
    openssl(directory, &[
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", &format!("/CN={name}"), "-keyout", &file("key"), "-out", &file("csr"),
    ]);
    #[rustfmt::skip]
    openssl(directory, &[
        "x509", "-req", "-days", "2", "-in", &file("csr"), "-out", &file("pem"), "-extfile", &file("ext"),
        "-CA", &format!("{authority}.pem"), "-CAkey", &format!("{authority}.key"), "-CAcreateserial",
    ]);
}

async fn connect(endpoint: &str, tls: Option<Tls>, auth: Option<Auth>) -> Result<Store, StoreError> {
    let settings = Settings::new(&[endpoint], tls, auth, Timeouts::default()).unwrap();
    let started = Instant::now();
    let result = Store::connect(settings).await;
    assert!(started.elapsed() < Duration::from_secs(8), "connect hung: {:?}", started.elapsed());
    result
}

#[tokio::test]
async fn only_the_right_certificates_pass() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    ca(dir, "ca");
    ca(dir, "foreign");
    certificate(dir, "server", "ca", "IP:127.0.0.1");
    certificate(dir, "client", "ca", "DNS:client");
    certificate(dir, "stranger", "foreign", "DNS:stranger");
    certificate(dir, "misnamed", "ca", "DNS:elsewhere.example");
    let start = |server: &str| {
        Cluster::start_with(&ClusterOptions {
            tls: Some(ServerTls {
                cert: dir.join(format!("{server}.pem")),
                key: dir.join(format!("{server}.key")),
                client_ca: Some(dir.join("ca.pem")),
            }),
            ..ClusterOptions::default()
        })
        .unwrap()
    };
    let tls = |ca: &str, client: Option<&str>| {
        let path = |suffix: &str| -> Option<PathBuf> { client.map(|c| dir.join(format!("{c}.{suffix}"))) };
        Some(Tls { ca: Some(dir.join(format!("{ca}.pem"))), cert: path("pem"), key: path("key") })
    };
    let cluster = start("server");
    let endpoint = cluster.endpoint(0);
    let store = connect(&endpoint, tls("ca", Some("client")), None).await.unwrap();
    put(&store, "/a", "1").await;
    let mut watch = store.watch("/");
    assert_eq!(snapshot(&mut watch).await.entries.len(), 1);

    for (what, bad) in [
        ("a foreign CA", tls("foreign", Some("client"))),
        ("a client of a foreign CA", tls("ca", Some("stranger"))),
        ("no client certificate", tls("ca", None)),
        ("the system's CAs", None),
    ] {
        let error = connect(&endpoint, bad, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Tls { .. }), "{what}: {}", error.chain());
    }
    let misnamed = start("misnamed");
    let error = connect(&misnamed.endpoint(0), tls("ca", Some("client")), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "{}", error.chain());
    // Plain http to a TLS port is not reached, and does not hang either.
    let plain = endpoint.replace("https", "http");
    let error = connect(&plain, None, None).await.unwrap_err();
    assert!(error.is_transient(), "{}", error.chain());
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let endpoint = format!("http://127.0.0.1:{port}");
    let error = connect(&endpoint, None, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{}", error.chain());
    assert!(error.to_string().contains(&endpoint));
}

/// Turns authentication on: root, and `agent` who may only read under `/ours/`.
async fn enable_auth(cluster: &Cluster) {
    let mut raw = etcd_client::Client::connect(cluster.endpoints(), None).await.unwrap();
    raw.role_add("reader").await.unwrap();
    let range = Permission::new(PermissionType::Read, "/ours/").with_prefix();
    raw.role_grant_permission("reader", range).await.unwrap();
    for (user, role) in [("root", "root"), ("agent", "reader")] {
        raw.user_add(user, PASSWORD, None).await.unwrap();
        if role == "root" {
            raw.role_add("root").await.unwrap();
        }
        raw.user_grant_role(user, role).await.unwrap();
    }
    raw.auth_enable().await.unwrap();
}

#[tokio::test]
async fn only_the_right_password_passes() {
    let mut cluster = Cluster::start(1).unwrap();
    let endpoint = cluster.endpoint(0);
    let login = |user: &str, password: &str| Some(Auth::new(user, password));
    // Without authentication in etcd a login is not needed and does no harm.
    connect(&endpoint, None, login("root", PASSWORD)).await.unwrap();
    enable_auth(&cluster).await;
    let root = connect(&endpoint, None, login("root", PASSWORD)).await.unwrap();
    put(&root, "/ours/a", "1").await;

    for (what, bad) in [
        ("a wrong password", login("root", "wrong-secret")),
        ("an unknown user", login("nobody", PASSWORD)),
        ("no login", None),
    ] {
        let error = connect(&endpoint, None, bad).await.unwrap_err();
        let text = format!("{} {error:?}", error.chain());
        assert!(matches!(error, StoreError::Login { .. }), "{what}: {text}");
        assert!(!text.contains("wrong-secret") && !text.contains(PASSWORD), "{text}");
    }

    let agent = connect(&endpoint, None, login("agent", PASSWORD)).await.unwrap();
    assert_eq!(agent.list("/ours/").await.unwrap().entries.len(), 1);
    let mut watch = agent.watch("/ours/");
    snapshot(&mut watch).await;
    let denied = agent.get("/theirs").await.unwrap_err();
    assert!(matches!(denied, StoreError::PermissionDenied { .. }), "{}", denied.chain());
    let denied = agent.commit(Txn::new().put("/ours/a", "2")).await.unwrap_err();
    assert!(matches!(denied, StoreError::PermissionDenied { .. }), "{}", denied.chain());
    let mut foreign = agent.watch("/theirs/");
    let told = within(foreign.next()).await;
    let denied = matches!(&told, Some(Update::Unreachable { error: StoreError::PermissionDenied { .. }, .. }));
    assert!(denied, "{told:?}");
    assert!(!format!("{agent:?} {root:?}").contains(PASSWORD));

    // A restart forgets the tokens: watch and writes log in again by themselves.
    cluster.restart(0).unwrap();
    // The connection may not be known to be dead yet: then the outcome is unknown, and a caller reads before it writes.
    match root.commit(Txn::new().put("/ours/b", "1")).await {
        Err(StoreError::OutcomeUnknown { .. }) if root.get("/ours/b").await.unwrap().is_none() => {
            put(&root, "/ours/b", "1").await;
        }
        Err(StoreError::OutcomeUnknown { .. }) => {}
        outcome => assert!(outcome.unwrap().done().is_some()),
    }
    loop {
        match within(watch.next()).await.unwrap() {
            Update::Snapshot(snapshot) if snapshot.get("/ours/b").is_some() => break,
            Update::Changes(changes) if changes.changes.iter().any(|c| c.key() == "/ours/b") => break,
            Update::Snapshot(_) | Update::Changes(_) | Update::Unreachable { .. } => {}
        }
    }
}

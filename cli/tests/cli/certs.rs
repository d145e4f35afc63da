//! `bulkhead certs` as openssl judges it, and `bulkhead etcd remove-data`.

use std::path::Path;
use std::process::Command;

use bulkhead_store::Store;

use crate::fixture::type_at;

fn openssl(arguments: &[&str]) -> String {
    let done = Command::new("openssl").args(arguments).output().expect("this test needs openssl");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn verify(folder: &Path, purpose: &str, name: &str) {
    let at = |file: &str| folder.join(file).display().to_string();
    openssl(&["verify", "-purpose", purpose, "-CAfile", &at("ca.crt"), &at(&format!("{name}.crt"))]);
}

#[tokio::test]
async fn one_authority_signs_all_and_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pki");
    let store = Store::in_memory();
    let make =
        format!("certs --host 10.0.0.1,etcd-0.example.com --client bulkhead,bulkhead-agent --out {}", out.display());
    let said = type_at(&store, &make).await.ok();
    assert_eq!(said.lines().count(), 10, "{said}");
    let authority = std::fs::read_to_string(out.join("ca.crt")).unwrap();
    let first = std::fs::read_to_string(out.join("server.crt")).unwrap();
    type_at(&store, &make).await.ok();
    assert_eq!(std::fs::read_to_string(out.join("ca.crt")).unwrap(), authority);
    assert_ne!(std::fs::read_to_string(out.join("server.crt")).unwrap(), first);
    for (purpose, name) in [
        ("sslserver", "server"),
        ("sslclient", "server"),
        ("sslserver", "peer"),
        ("sslclient", "peer"),
        ("sslclient", "bulkhead"),
        ("sslclient", "bulkhead-agent"),
    ] {
        verify(&out, purpose, name);
    }
    let text = openssl(&["x509", "-noout", "-text", "-in", &out.join("server.crt").display().to_string()]);
    for host in ["10.0.0.1", "etcd-0.example.com", "127.0.0.1", "localhost", "bulkhead-etcd-server"] {
        assert!(text.contains(host), "{host}: {text}");
    }
    std::fs::remove_file(out.join("ca.key")).unwrap();
    let refused = type_at(&store, &make).await;
    assert!(refused.code == 2 && refused.err.contains("ca.crt alone"), "{refused:?}");
}

#[tokio::test]
async fn secrets_have_the_names_that_the_chart_mounts() {
    let answer = type_at(&Store::in_memory(), "certs --host 10.0.0.1 --secrets --namespace net").await;
    let list = answer.json();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bulkhead-etcd-ca", "bulkhead-etcd-server", "bulkhead-etcd-peer", "bulkhead-etcd-client"]);
    for item in list["items"].as_array().unwrap() {
        assert_eq!(item["metadata"]["namespace"], "net");
        for key in ["ca.crt", "tls.crt", "tls.key"] {
            assert!(item["stringData"][key].as_str().unwrap().starts_with("-----BEGIN"), "{item}");
        }
    }
    for bad in
        ["certs --host 10.0.0.1", "certs --secrets", "certs --host x_y --secrets", "certs --host a --secrets --out b"]
    {
        assert_eq!(type_at(&Store::in_memory(), bad).await.code, 2, "{bad}");
    }
}

#[tokio::test]
async fn only_a_members_data_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("etcd");
    let remove = format!("etcd remove-data {}", data.display());
    let store = Store::in_memory();
    assert!(type_at(&store, &remove).await.ok().contains("is not there"));
    std::fs::create_dir_all(data.join("data/member/wal")).unwrap();
    std::fs::write(data.join("theirs"), "").unwrap();
    assert!(type_at(&store, &remove).await.refused().contains("no folder of the bundled etcd"));
    std::fs::remove_file(data.join("theirs")).unwrap();
    std::fs::create_dir(data.join("data/member/snap")).unwrap();
    let database = std::fs::File::create(data.join("data/member/snap/db")).unwrap();
    database.lock().unwrap();
    assert!(type_at(&store, &remove).await.refused().contains("an etcd runs on"));
    database.unlock().unwrap();
    assert!(type_at(&store, &remove).await.ok().contains("is removed"));
    assert!(!data.exists());
}

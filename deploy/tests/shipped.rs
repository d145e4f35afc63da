//! What holds of the rendered manifest, `deploy/bulkhead.yaml`, and of the other files beside it. Needs no Helm: that the manifest is
//! the chart's is another test's matter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use bulkhead_deploy::kept::root;

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

#[test]
fn versions_are_pinned_and_the_projects_own() {
    let manifest = read("deploy/bulkhead.yaml");
    let images: Vec<&str> = manifest.lines().filter_map(|line| line.trim().strip_prefix("image: ")).collect();
    assert!(images.len() >= 4, "{images:?}");
    // What uninstalls is of the same version.
    let uninstall = read("deploy/uninstall.yaml");
    assert_eq!(
        uninstall.matches(concat!("ghcr.io/bulkhead-net/bulkhead:", env!("CARGO_PKG_VERSION"), "\n")).count(),
        2
    );
    for image in images {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest" && tag.chars().any(|c| c.is_ascii_digit())), "{image}");
    }
    let chart = read("deploy/chart/Chart.yaml");
    assert!(chart.contains(concat!("\nversion: ", env!("CARGO_PKG_VERSION"), "\n")), "{chart}");
    assert!(chart.contains(concat!("\nappVersion: \"", env!("CARGO_PKG_VERSION"), "\"\n")), "{chart}");
}

/// RBAC as the issue of least rights has it: nobody but the setup touches Secrets, and no rule has a wildcard.
#[test]
fn rights_are_the_least() {
    let manifest = read("deploy/bulkhead.yaml");
    let roles: Vec<&str> = manifest
        .split("\n---\n")
        .filter(|object| object.contains("kind: ClusterRole\n") || object.contains("kind: Role\n"))
        .collect();
    assert!(roles.len() >= 6, "{}", roles.len());
    for role in roles {
        assert!(!role.contains('*'), "{role}");
        assert!(!role.contains("secrets") || role.contains("bulkhead-etcd-setup"), "{role}");
    }
}

/// What the image is built from does not change by itself, and is what the tree is built and tested with.
#[test]
fn the_container_build_is_pinned() {
    let file = read("deploy/Containerfile");
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let bases: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(bases, [format!("docker.io/library/rust:{channel}-bookworm AS build").as_str(), "scratch"]);
    assert_eq!(file.matches("cargo build --locked ").count(), file.matches("cargo build ").count());
    for program in ["bulkhead-agent", "bulkhead-controller", "bulkhead-cni", "kubectl-bulkhead"] {
        assert!(file.contains(program), "{program}");
    }
    for label in ["title", "description", "source", "licenses", "version=\"$VERSION\"", "revision=\"$REVISION\""] {
        assert!(file.contains(&format!("org.opencontainers.image.{label}")), "{label}");
    }
}

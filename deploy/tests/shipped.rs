//! What holds of the rendered manifest, `deploy/bulkhead.yaml`, and of the other files beside it. Needs no Helm: that the manifest is
//! the chart's is another test's matter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
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

/// The rules of a rendered role: `group resource verb [name]`, one for each.
fn rules(manifest: &str, kind: &str, name: &str) -> BTreeSet<String> {
    let (kind, name) = (format!("kind: {kind}\n"), format!("\n  name: {name}\n"));
    let role = manifest.split("\n---\n").find(|object| object.contains(&kind) && object.contains(&name)).unwrap();
    let list = |text: &str| -> Vec<String> {
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
        inner.split(',').map(|item| item.trim().trim_matches('"').to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role.split_once("\nrules:\n").unwrap().1.split("- apiGroups: ").skip(1) {
        let of = |key: &str| list(rule.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default());
        for group in list(rule.lines().next().unwrap()) {
            let group = if group.is_empty() { "core" } else { &group };
            for (resource, verb) in
                of("resources: ").iter().flat_map(|r| of("verbs: ").into_iter().map(move |v| (r, v)))
            {
                all.insert(format!("{group} {resource} {verb} {}", of("resourceNames: ").join(",")).trim().to_owned());
            }
        }
    }
    all
}

/// The same of a document's table: its rows that begin so, by the columns that name group, resource and verbs.
fn documented(file: &str, head: &str, of: &str, [group, resource, verbs]: [usize; 3]) -> BTreeSet<String> {
    let text = read(file);
    let table = text.split_once(head).unwrap_or_else(|| panic!("{file} has no table {head:?}")).1;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let mut all = BTreeSet::new();
    for row in rows.filter(|row| row.starts_with(of)) {
        let cells: Vec<String> = row.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
        let (resource, name) = cells[resource].split_once(" named ").unwrap_or((&cells[resource], ""));
        let group = if cells[group].is_empty() { "core" } else { &cells[group] };
        all.extend(
            cells[verbs].split(',').map(|verb| format!("{group} {resource} {} {name}", verb.trim()).trim().to_owned()),
        );
    }
    all
}

/// What the documents say of rights is what the manifest gives; the lab proves that it is enough.
#[test]
fn rights_are_those_that_the_documents_list() {
    let manifest = read("deploy/bulkhead.yaml");
    let agent = "| group | resource | verbs | for |\n";
    assert_eq!(
        rules(&manifest, "ClusterRole", "bulkhead-agent"),
        documented("docs/agent-in-kubernetes.md", agent, "|", [1, 2, 3])
    );
    let controller = "| where | API group | resources | verbs |\n";
    for (kind, rows) in [("ClusterRole", "| cluster |"), ("Role", "| `--agent-namespace` |")] {
        let said = documented("docs/kubernetes.md", controller, rows, [2, 3, 4]);
        assert_eq!(rules(&manifest, kind, "bulkhead-controller"), said, "{kind}");
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

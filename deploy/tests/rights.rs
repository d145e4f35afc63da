//! What the documents say of rights is what the rendered manifest gives.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;

use bulkhead_deploy::kept::root;

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
    let text = fs::read_to_string(root().join(file)).unwrap();
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

/// That it is enough the suites on a real Kubernetes prove.
#[test]
fn rights_are_those_that_the_documents_list() {
    let manifest = fs::read_to_string(root().join("deploy/bulkhead.yaml")).unwrap();
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

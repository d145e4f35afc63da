//! CHECK looks at the datapath too: a pod whose entry in the maps somebody cleared is not as ADD left it.

use bulkhead_tests::error::promised;
use bulkhead_tests::probe::expect_reaches;
use bulkhead_tests::{Lab, LabError};

#[test]
fn a_cleared_map_entry_fails_check_and_a_restart_writes_it() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(1).agent_flag("--resync", "3600").start()?;
    lab.create_tenants(&["a"])?;
    let pods = [lab.pod(0, "a", "1")?, lab.pod(0, "a", "2")?];
    pods.iter().try_for_each(bulkhead_tests::Pod::check)?;
    let node = lab.node(0);
    let folder = node.dir().join("bpf/bulkhead");
    let versions = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let map = versions.map(|version| version.path().join("endpoints")).find(|map| map.exists()).unwrap_or(folder);
    let map = map.display().to_string();
    let info = node.netns().exec("bpftool", &["-j", "map", "show", "pinned", &map], &[])?;
    let info: serde_json::Value = serde_json::from_str(&info).unwrap_or_default();
    let size = usize::try_from(info["bytes_value"].as_u64().unwrap_or(0)).unwrap_or(0);
    // The key is the host part of the address, in the machine's order.
    let key = u32::from(pods[0].address().octets()[3]).to_ne_bytes().map(|byte| byte.to_string());
    let zeros = vec!["0"; size];
    let mut arguments = vec!["map", "update", "pinned", &map, "key"];
    arguments.extend(key.iter().map(String::as_str));
    arguments.push("value");
    arguments.extend(zeros);
    node.netns().exec("bpftool", &arguments, &[])?;
    promised(pods[0].check().is_err(), || "CHECK passes for a pod that the datapath does not know".into())?;
    pods[1].check()?;
    node.restart_agent()?;
    pods.iter().try_for_each(bulkhead_tests::Pod::check)?;
    expect_reaches(pods[0].endpoint(), pods[1].endpoint())
}

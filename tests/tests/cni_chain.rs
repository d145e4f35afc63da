//! The plugin on a node: put there by the agent, followed by others, taken away again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bulkhead_tests::error::{Tried as _, promised};
use bulkhead_tests::{Lab, LabError, Node, PodSpec, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn agent(node: &Node, more: &[&str]) -> Result<(bool, String), LabError> {
    let command = node.agent_command()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let output = node.netns().output(&program, more, &[])?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

fn conflist(node: &Node) -> Result<Value, LabError> {
    let path = node.dir().join("cni/10-bulkhead.conflist");
    let text = fs::read(&path).tried(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}

fn plugins(node: &Node) -> Result<Vec<String>, LabError> {
    let config = conflist(node)?;
    let plugins = config["plugins"].as_array().into_iter().flatten();
    Ok(plugins.filter_map(|plugin| plugin["type"].as_str()).map(str::to_owned).collect())
}

#[test]
fn the_plugin_is_installed_chained_and_removed() -> Result<(), LabError> {
    let bin = std::env::temp_dir().join(format!("bulkhead-cni-bin-{}", std::process::id()));
    let shown = bin.display().to_string();
    let lab = Lab::builder()
        .nodes(1)
        .agent_flag("--resync", "1")
        .agent_flag("--cni-bin-dir", &shown)
        .agent_flag("--cni-chain", "portmap")
        .start()?;
    let node = lab.node(0);
    println!("installed, and the same again");
    for word in ["installed", "already"] {
        let (done, said) = agent(node, &["--install-cni", &shown])?;
        println!("    {}", said.trim());
        promised(done && said.contains(word), || said.clone())?;
    }
    let installed = bin.join("bulkhead-cni");
    let mode = fs::metadata(&installed).tried(|| "look at the plugin".into())?.permissions().mode();
    promised(mode & 0o777 == 0o755, || format!("mode {mode:o}"))?;
    let (done, said) = agent(node, &["--install-cni", &shown, "--cni-binary", "/etc/passwd"])?;
    promised(!done && said.contains("no program"), || said.clone())?;

    println!("a chained plugin that is not there is left out and said");
    promised(plugins(node)? == ["bulkhead-cni"], || format!("{:?}", plugins(node)))?;
    wait::until_or("it being said", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        let said = problems.iter().any(|text| text.contains("portmap") && text.contains("hostPort"));
        if said { Ok(()) } else { Err(format!("{problems:?}")) }
    })?;
    println!("once it is there it is used");
    let portmap = bin.join("portmap");
    fs::write(&portmap, "#!/bin/sh\n").tried(|| "write portmap".into())?;
    fs::set_permissions(&portmap, fs::Permissions::from_mode(0o755)).tried(|| "chmod portmap".into())?;
    wait::until_or("the chain", SOON, || {
        let plugins = plugins(node).map_err(|error| error.to_string())?;
        if plugins == ["bulkhead-cni", "portmap"] { Ok(()) } else { Err(format!("{plugins:?}")) }
    })?;
    wait::until_or("it being no problem any more", SOON, || {
        let problems = node.status().map_err(|error| error.to_string())?.problems;
        if problems.iter().any(|text| text.contains("portmap")) { Err(format!("{problems:?}")) } else { Ok(()) }
    })?;

    println!("it is not known to speak 1.1.0; once it has said so, the whole list is offered in it");
    let last = || conflist(node).map(|config| config["cniVersions"].as_array().and_then(|all| all.last().cloned()));
    promised(last()? == Some(json!("1.0.0")), || format!("{:?}", conflist(node)))?;
    let versions = json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    fs::write(&portmap, format!("#!/bin/sh\necho '{versions}'\n")).tried(|| "write portmap".into())?;
    let (done, said) = agent(node, &["--install-cni", &shown])?;
    promised(done && said.contains("portmap: speaks CNI 0.3.1, 0.4.0, 1.0.0, 1.1.0"), || said.clone())?;
    wait::until_or("1.1.0 being offered", SOON, || match last() {
        Ok(Some(version)) if version == "1.1.0" => Ok(()),
        other => Err(format!("{other:?}")),
    })?;

    println!("calls as a runtime makes them with a chain: the result of the last plugin comes back to each");
    lab.create_tenants(&["a"])?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let spec = PodSpec { version: version.into(), ..PodSpec::default() };
        let pod = lab.pod_with(0, "a", &format!("v{}", version.replace('.', "-")), &spec)?;
        // portmap hands on what it was given; a meta plugin may add to it.
        let mut last = pod.result().clone();
        promised(last["cniVersion"] == version, || format!("{version}: {last}"))?;
        let host = last["interfaces"][0]["sandbox"].clone();
        promised(host.is_null() && last["ips"][0]["interface"] == 1, || format!("portmap cannot use {last}"))?;
        if let Some(interfaces) = last["interfaces"].as_array_mut() {
            interfaces.push(json!({"name": "added0", "mac": "0a:58:00:00:00:09"}));
        }
        let runtime = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        if version != "0.3.0" && version != "0.3.1" {
            let mut check = pod.call("CHECK");
            check.with("prevResult", last.clone()).with("runtimeConfig", runtime.clone());
            check.run()?.ok(&format!("CHECK {version}"))?;
            let mut other = last.clone();
            other["ips"][0]["address"] = "10.77.0.99/32".into();
            let refused = pod.call("CHECK").with("prevResult", other).run()?;
            promised(refused.code() == Some(103), || format!("CHECK took another pod's result: {}", refused.stdout))?;
        }
        let mut del = pod.call("DEL");
        del.with("runtimeConfig", runtime);
        if version == "0.3.0" || version == "0.3.1" {
            // Runtimes give a DEL its prevResult from 0.4.0 on.
            del.with("prevResult", Value::Null);
        } else {
            del.with("prevResult", last);
        }
        del.run()?.ok(&format!("DEL {version}"))?;
        del.run()?.ok(&format!("DEL {version} again"))?;
    }

    println!("an uninstall takes the plugin and the config away, and leaves others' plugins");
    node.stop_agent()?;
    let command = node.agent_command()?;
    let mut flags: Vec<String> = command.get_args().map(|flag| flag.to_string_lossy().into_owned()).collect();
    flags.push("--uninstall".into());
    let (done, said) = agent(node, &flags.iter().map(String::as_str).collect::<Vec<_>>())?;
    promised(done, || said)?;
    promised(!installed.exists() && portmap.exists(), || "the wrong plugin is gone".into())?;
    let left = fs::read_dir(&bin).tried(|| format!("list {shown}"))?.count();
    promised(left == 1, || format!("{left} files are left beside portmap"))?;
    fs::remove_dir_all(&bin).tried(|| format!("remove {shown}"))
}

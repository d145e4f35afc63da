//! Takes everything of Bulkhead off a node: the config first, so that no pod is sent here any more, the files last.
//!
//! Removes only what the agent made: the folders may be anybody's, and go only when nothing else is in them.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::args::Config;
use crate::datapath::abi::ABI_VERSION;
use crate::kernel::{KernelError, Netlink, Op};
use crate::node::firewall::Firewall;
use crate::node::host_firewall::HostFirewall;
use crate::node::overlay::Overlay;
use crate::node::routes::Routes;
use crate::node::{cni_binary, cni_conf, cni_versions, underlay};
use crate::pods::{disk, wire::GROUP};
use crate::server::socket_path;

/// Removes it all; goes on past errors and returns them all.
pub fn run(config: &Config) -> Vec<String> {
    let socket = socket_path(&config.run_dir);
    if UnixStream::connect(&socket).is_ok() {
        return vec![format!(
            "an agent answers at {}, which would make everything anew; stop it first",
            socket.display()
        )];
    }
    let mut failed = Vec::new();
    let mut note = |what: Result<(), String>| failed.extend(what.err());
    if let Some(folder) = &config.cni_conf_dir {
        note(cni_conf::remove(folder).map_err(|error| error.to_string()));
    }
    if let Some(folder) = &config.cni_bin_dir {
        note(cni_binary::remove(folder).map_err(|error| error.to_string()));
        note(cni_versions::remove(folder).map_err(|error| error.to_string()));
    }
    match Netlink::here() {
        Ok(mut host) => {
            note(remove_pods(&mut host).map_err(|error| error.to_string()));
            note(underlay::release(&mut host).map(drop).map_err(|error| error.to_string()));
            note(Routes::remove(&mut host).map_err(|error| error.to_string()));
            note(Overlay::remove(&mut host).map_err(|error| error.to_string()));
        }
        Err(error) => note(Err(error.to_string())),
    }
    note(HostFirewall::leave().map_err(|error| error.to_string()));
    note(Firewall::remove().map_err(|error| error.to_string()));
    for path in files(config) {
        note(remove(&path).map_err(|error| format!("{} cannot be removed: {error}", path.display())));
    }
    for folder in [&config.bpf_dir, &config.run_dir, &config.state_dir] {
        // What somebody else keeps in it stays, and the folder with it; so does a mount.
        drop(fs::remove_dir(folder));
    }
    failed
}

/// What the agent and the plugin keep on disk and on the BPF file system.
fn files(config: &Config) -> Vec<PathBuf> {
    let socket = socket_path(&config.run_dir);
    let mut files = vec![socket.with_extension("new"), socket];
    files.extend(["spool", disk::FILE, disk::DAMAGED].map(|name| config.run_dir.join(name)));
    files.extend(["intent.json", "intent.new"].map(|name| config.state_dir.join(name)));
    // The maps of this and of earlier versions.
    files.extend((0..=ABI_VERSION).map(|version| config.bpf_dir.join(format!("v{version}"))));
    files
}

fn remove(path: &Path) -> io::Result<()> {
    let done = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_pods(host: &mut Netlink) -> Result<(), KernelError> {
    for link in host.links()?.into_iter().filter(|link| link.group == GROUP) {
        host.apply(Op::link_delete(link.index).if_present())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::kernel::fixture::in_new_netns;

    fn config(folder: &Path) -> Config {
        let at = |name: &str| folder.join(name).display().to_string();
        let (run, state, bpf) = (at("run"), at("state"), at("bpf"));
        let flags = ["bulkhead-agent", "--uninstall", "--node-name", "n1", "--run-dir", &run, "--state-dir", &state];
        let flags = flags.into_iter().chain(["--bpf-dir", &bpf]);
        Args::try_parse_from(flags).unwrap().into_config(|| None).unwrap()
    }

    #[test]
    fn what_others_keep_in_our_folders_stays() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let books = ["run/pods.redb", "run/pods.redb.damaged"];
        for ours in
            ["run/spool/c1@eth0.json", "state/intent.json", "bpf/v1/state", "state/theirs"].into_iter().chain(books)
        {
            let path = folder.path().join(ours);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        // A socket that nobody serves, as a killed agent leaves it.
        drop(UnixListener::bind(config.run_dir.join("agent.sock")).unwrap());
        in_new_netns(|| assert_eq!(run(&config), Vec::<String>::new(), "this test needs root"));
        let left: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [folder.path().join("state")]);
        assert_eq!(fs::read_dir(&left[0]).unwrap().count(), 1);
        in_new_netns(|| assert_eq!(run(&config), Vec::<String>::new(), "once more finds nothing"));
    }

    #[test]
    fn an_agent_that_runs_has_to_be_stopped_first() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        fs::create_dir_all(&config.run_dir).unwrap();
        let _agent = UnixListener::bind(config.run_dir.join("agent.sock")).unwrap();
        fs::write(config.run_dir.join("pods.redb"), "").unwrap();
        in_new_netns(|| assert!(run(&config)[0].contains("stop it first")));
        assert!(config.run_dir.join("pods.redb").exists());
    }
}

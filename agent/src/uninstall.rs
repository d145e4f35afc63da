//! Takes everything of Bulkhead off a node: the config first, so that no pod is sent here any more, the kernel last.

use std::fs;
use std::io;

use crate::args::Config;
use crate::kernel::{KernelError, Netlink, Op};
use crate::node::firewall::Firewall;
use crate::node::overlay::Overlay;
use crate::node::routes::Routes;
use crate::node::{cni_conf, underlay};
use crate::pods::wire::GROUP;

/// Removes it all; goes on past errors and returns them all.
pub fn run(config: &Config) -> Vec<String> {
    let mut failed = Vec::new();
    let mut note = |what: Result<(), String>| failed.extend(what.err());
    if let Some(folder) = &config.cni_conf_dir {
        note(cni_conf::remove(folder).map_err(|error| error.to_string()));
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
    note(Firewall::remove().map_err(|error| error.to_string()));
    for folder in [&config.bpf_dir, &config.run_dir, &config.state_dir] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                note(Err(format!("{} cannot be removed: {error}", folder.display())));
            }
            _ => {}
        }
    }
    failed
}

fn remove_pods(host: &mut Netlink) -> Result<(), KernelError> {
    for link in host.links()?.into_iter().filter(|link| link.group == GROUP) {
        host.apply(Op::link_delete(link.index).if_present())?;
    }
    Ok(())
}

//! `bulkhead etcd configure`: the config file with which a member of the bundled etcd starts.
//!
//! Runs in the member's pod before etcd does, and decides how it starts: one with data as it is; one without by what the others
//! say of it ([`super::membership`]). It waits as long as the member may not start, and takes in again one whose disk was lost.
//! Promises: it never lets a member bootstrap a second cluster beside one that has ever had a quorum.

use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_store::args::EtcdArgs;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::access::{Access, Change};
use super::members::Member;
use super::membership::{Age, Start, Waiting, start};
use crate::error::CliError;
use crate::output::Console;

/// Between two looks at a cluster that this member is waiting for.
const PAUSE: Duration = Duration::from_secs(2);

/// Which member, and what is in its file besides.
#[derive(Debug, Clone, Args)]
pub struct ConfigureArgs {
    /// The config file to write
    #[arg(long, value_name = "PATH")]
    file: PathBuf,
    /// The member's data folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// What the file begins with, as YAML
    #[arg(long, value_name = "YAML", default_value = "", hide_default_value = true)]
    settings: String,
    /// The member's node
    #[arg(long, env = "BULKHEAD_NODE_NAME", value_name = "NAME")]
    node: String,
    /// The node's address
    #[arg(long, env = "BULKHEAD_NODE_IP", value_name = "ADDRESS")]
    ip: IpAddr,
    /// Port for clients
    #[arg(long, value_name = "PORT", default_value_t = 9472, value_parser = clap::value_parser!(u16).range(1..))]
    client_port: u16,
    /// Port for the other members
    #[arg(long, value_name = "PORT", default_value_t = 9473, value_parser = clap::value_parser!(u16).range(1..))]
    peer_port: u16,
    /// The members that bootstrap the cluster
    #[arg(long, env = "BULKHEAD_ETCD_INITIAL_CLUSTER", value_name = "NAME=URL,...")]
    initial_cluster: String,
    /// The cluster's token
    #[arg(long, env = "BULKHEAD_ETCD_CLUSTER_TOKEN", value_name = "TOKEN")]
    token: String,
    /// Whether the cluster has ever had a quorum
    #[arg(long, env = "BULKHEAD_ETCD_CLUSTER_STATE", value_enum, default_value = "existing")]
    state: Age,
}

/// How etcd is told to start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Beginning {
    age: Age,
    /// etcd reads it only where there is no data.
    initial_cluster: String,
}

/// Writes the file, once the member may start.
pub async fn configure(args: &ConfigureArgs, etcd: &EtcdArgs, console: &mut Console<'_>) -> Result<(), CliError> {
    let beginning = if has_data(&args.data_dir)? {
        Beginning { age: Age::Existing, initial_cluster: args.initial_cluster.clone() }
    } else {
        beginning(args, etcd, console).await?
    };
    let failed = |source| CliError::File { path: args.file.display().to_string(), source };
    let temporary = args.file.with_extension("new");
    fs::write(&temporary, text(args, &beginning)).map_err(failed)?;
    fs::rename(&temporary, &args.file).map_err(failed)
}

/// Whether etcd would find a log of its own: it looks for the same.
fn has_data(folder: &Path) -> Result<bool, CliError> {
    let wal = folder.join("member/wal");
    let failed = |source| CliError::File { path: wal.display().to_string(), source };
    let entries = match fs::read_dir(&wal) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        if entry.map_err(failed)?.path().extension().is_some_and(|extension| extension == "wal") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How a member without data starts, once it may.
async fn beginning(args: &ConfigureArgs, etcd: &EtcdArgs, console: &mut Console<'_>) -> Result<Beginning, CliError> {
    let access = access(etcd)?;
    let own = Member { node: args.node.clone(), ip: args.ip };
    let (url, own_endpoint) = (own.url(args.peer_port), own.url(args.client_port));
    let others: Vec<String> = etcd.etcd_endpoints.iter().filter(|one| **one != own_endpoint).cloned().collect();
    // The first process of a container ends by signals only that it asks for.
    let mut ended = signal(SignalKind::terminate())?;
    let mut said = String::new();
    // Set between the removal of what this member was and its return.
    let mut returns = None;
    loop {
        let answer = access.list(&others).await.ok();
        let listed = answer.as_ref().map(|(_, listed)| listed.as_slice());
        let news = match (start(&args.node, &url, args.state, listed), &answer, returns) {
            (Start::Bootstrap, ..) => {
                return Ok(Beginning { age: Age::New, initial_cluster: args.initial_cluster.clone() });
            }
            (Start::Join(initial_cluster), ..) => return Ok(Beginning { age: Age::Existing, initial_cluster }),
            (Start::Renew { id, learner }, Some((endpoint, _)), _) => {
                returns = Some(learner);
                match access.change(endpoint, Change::Remove(id)).await {
                    Ok(()) => format!("its data is lost: etcd has forgotten the member {id:x}"),
                    Err(error) => format!("its data is lost, and the member {id:x} cannot be removed: {error}"),
                }
            }
            (Start::Wait(_), Some((endpoint, _)), Some(learner)) => {
                match access.change(endpoint, Change::Add { url: &url, learner }).await {
                    Ok(()) => "it is added as a new member, and fetches the data from the others".to_owned(),
                    Err(error) => format!("it cannot be added as a new member: {error}"),
                }
            }
            (Start::Wait(why), ..) => why.to_string(),
            (Start::Renew { .. }, None, _) => Waiting::NobodyAnswers.to_string(),
        };
        if news != said {
            console.progress(&format!("{own}: {news}"))?;
            said = news;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = ended.recv() => return Err(CliError::Unfinished(vec![format!("{own} was ended while it waited: {said}")])),
        }
    }
}

fn access(etcd: &EtcdArgs) -> Result<Access, CliError> {
    let read = |flag: &str, path: &Option<PathBuf>| {
        let Some(path) = path else {
            return Err(CliError::Usage(format!("etcd configure needs --{flag}: members speak TLS only")));
        };
        fs::read(path).map_err(|source| CliError::File { path: path.display().to_string(), source })
    };
    Ok(Access {
        authority: read("etcd-ca", &etcd.etcd_ca)?,
        certificate: read("etcd-cert", &etcd.etcd_cert)?,
        key: read("etcd-key", &etcd.etcd_key)?,
    })
}

/// The file: YAML, of which JSON's strings are a part.
fn text(args: &ConfigureArgs, beginning: &Beginning) -> String {
    let own = Member { node: args.node.clone(), ip: args.ip };
    let (client, peer) = (own.url(args.client_port), own.url(args.peer_port));
    let age = match beginning.age {
        Age::New => "new",
        Age::Existing => "existing",
    };
    let lines = [
        ("name", args.node.as_str()),
        ("data-dir", &args.data_dir.to_string_lossy()),
        ("listen-client-urls", &format!("{client},https://127.0.0.1:{}", args.client_port)),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &beginning.initial_cluster),
        ("initial-cluster-token", &args.token),
        ("initial-cluster-state", age),
    ];
    lines.iter().fold(format!("{}\n", args.settings.trim_end()), |mut text, (key, value)| {
        let _ = writeln!(text, "{key}: {}", serde_json::Value::from(*value));
        text
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;

    fn args(folder: &Path, words: &[&str]) -> ConfigureArgs {
        let command = ConfigureArgs::augment_args(clap::Command::new("x"));
        let (file, data) = (folder.join("etcd.yaml"), folder.join("data"));
        let fixed = ["x", "--file", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap(), "--node", "n1"];
        let rest = ["--token", "t", "--initial-cluster", "n1=https://[fd00::1]:9473", "--ip", "fd00::1"];
        let matches = command.get_matches_from(fixed.iter().chain(&rest).chain(words));
        ConfigureArgs::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn data_is_what_etcd_would_start_from() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_data(folder.path()).unwrap());
        let wal = folder.path().join("member/wal");
        fs::create_dir_all(&wal).unwrap();
        fs::write(wal.join("0.tmp"), "").unwrap();
        assert!(!has_data(folder.path()).unwrap());
        fs::write(wal.join("0000000000000000-0000000000000000.wal"), "").unwrap();
        assert!(has_data(folder.path()).unwrap());
        fs::remove_dir_all(&wal).unwrap();
        fs::write(&wal, "").unwrap();
        assert!(has_data(folder.path()).is_err());
    }

    #[test]
    fn the_file_is_the_settings_and_how_the_member_starts() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path(), &["--settings", "quota-backend-bytes: 1\n"]);
        assert_eq!(args.state, Age::Existing);
        let beginning = Beginning { age: Age::New, initial_cluster: args.initial_cluster.clone() };
        let text = text(&args, &beginning).replace(folder.path().to_str().unwrap(), "");
        assert_eq!(
            text,
            "quota-backend-bytes: 1\n\
             name: \"n1\"\n\
             data-dir: \"/data\"\n\
             listen-client-urls: \"https://[fd00::1]:9472,https://127.0.0.1:9472\"\n\
             advertise-client-urls: \"https://[fd00::1]:9472\"\n\
             listen-peer-urls: \"https://[fd00::1]:9473\"\n\
             initial-advertise-peer-urls: \"https://[fd00::1]:9473\"\n\
             initial-cluster: \"n1=https://[fd00::1]:9473\"\n\
             initial-cluster-token: \"t\"\n\
             initial-cluster-state: \"new\"\n"
        );
    }
}

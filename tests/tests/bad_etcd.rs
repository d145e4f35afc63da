//! An etcd with TLS and passwords: the wrong certificate and the wrong password are told apart, and the right ones work.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::cli::{Cli, CliOutput};
use bulkhead_tests::error::promised;
use bulkhead_tests::netns::Netns;
use bulkhead_tests::process::Process;
use bulkhead_tests::wait;
use bulkhead_tests::{Lab, LabError};

const ADDRESS: &str = "127.0.0.1";

/// A CA with a server's and a client's certificate, and a stranger's CA.
fn certificates(netns: &Netns, dir: &Path) -> Result<(), LabError> {
    let script = format!(
        "set -e; cd {dir}\n\
         for ca in ca other; do openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$ca \
           -keyout $ca.key -out $ca.pem; done\n\
         sign() {{ openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$1 -keyout $1.key -out $1.csr\n\
           printf 'subjectAltName=IP:{ADDRESS}\\nextendedKeyUsage=serverAuth,clientAuth\\n' > $1.ext\n\
           openssl x509 -req -days 2 -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -extfile $1.ext -out $1.pem; }}\n\
         sign server ca; sign client ca; sign stranger other\n\
         printf right > right; printf wrong > wrong\n",
        dir = dir.display()
    );
    netns.exec("sh", &["-c", &script], &[]).map(drop)
}

fn start(lab: &Lab, dir: &Path, name: &str, port: u16, tls: bool) -> Result<Process, LabError> {
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{ADDRESS}:{port}");
    let peer = format!("http://{ADDRESS}:{}", port + 1);
    let mut command = Command::new("etcd");
    command
        .args(["--name", name, "--unsafe-no-fsync", "--logger", "zap", "--log-level", "warn", "--data-dir"])
        .arg(dir.join(format!("{name}.data")))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("{name}={peer}")]);
    if tls {
        command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(dir.join("ca.pem"));
        command.arg("--cert-file").arg(dir.join("server.pem")).arg("--key-file").arg(dir.join("server.key"));
    }
    Process::start(&lab.underlay().infra, name, command, &dir.join(format!("{name}.log")))
}

fn tool(lab: &Lab, flags: &[String]) -> Cli {
    Cli { flags: flags.to_vec(), ..lab.cli().clone() }
}

fn refused(what: &str, output: &CliOutput, words: &[&str]) -> Result<(), LabError> {
    println!("    {what}: {}", output.stderr.trim());
    let named = words.iter().any(|word| output.stderr.to_lowercase().contains(word));
    promised(output.exit == 1 && named && !output.stderr.contains("panicked"), || {
        format!("{what}: exit {}, a text with one of {words:?} wanted: {}{}", output.exit, output.stdout, output.stderr)
    })
}

/// The program names what is wrong in its log, whether it ends or goes on trying.
fn complains(lab: &Lab, program: &str, flags: &[String], words: &[&str]) -> Result<(), LabError> {
    let dir = lab.id().dir().join("secure").join(format!("{program}.run"));
    let mut command = Command::new(lab.cli().program.with_file_name(program));
    command.args(flags);
    if program == "bulkhead-agent" {
        command.args(["--node-name", "n1", "--node-ip", &lab.underlay().infra_addresses()[0].to_string()]);
        for (flag, sub) in
            [("--run-dir", "run"), ("--state-dir", "state"), ("--cni-conf-dir", "cni"), ("--bpf-dir", "bpf")]
        {
            command.arg(flag).arg(dir.join(sub));
        }
    }
    let log = lab.id().dir().join("secure").join(format!("{program}.log"));
    drop(std::fs::remove_file(&log));
    let process = Process::start(&lab.underlay().infra, program, command, &log)?;
    wait::until_or(&format!("{program} naming one of {words:?}"), Duration::from_mins(1), || {
        let text = process.log_tail(20);
        let named = words.iter().any(|word| text.to_lowercase().contains(word));
        if named && !text.contains("panicked") { Ok(()) } else { Err(text) }
    })?;
    println!("    {program}: {}", process.log_tail(1));
    process.kill()
}

#[test]
fn wrong_certificates_and_passwords_are_told_apart() -> Result<(), LabError> {
    let lab = Lab::builder().nodes(0).bare().start()?;
    let dir = lab.id().dir().join("secure");
    std::fs::create_dir_all(&dir).map_err(|source| LabError::Io { what: "create a directory".into(), source })?;
    certificates(&lab.underlay().infra, &dir)?;
    let at = |file: &str| dir.join(file).display().to_string();
    let _tls = start(&lab, &dir, "tls", 3379, true)?;
    let _auth = start(&lab, &dir, "auth", 4379, false)?;
    let flags = |ca: &str, who: &str| -> Vec<String> {
        let url = format!("https://{ADDRESS}:3379");
        [
            "--etcd-endpoints",
            &url,
            "--etcd-ca",
            &at(&format!("{ca}.pem")),
            "--etcd-cert",
            &at(&format!("{who}.pem")),
            "--etcd-key",
            &at(&format!("{who}.key")),
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let init = ["config", "init", "--name", "k8ssdn", "--network", "10.77.0.0/16", "--host-subnet-length", "8"];
    println!("TLS");
    let right = tool(&lab, &flags("ca", "client"));
    wait::until("the right certificate to work", Duration::from_mins(1), || {
        right.run(&init).ok().filter(|output| output.exit == 0)
    })?;
    right.ok(&["tenant", "list"])?;
    refused("a foreign CA", &tool(&lab, &flags("other", "client")).run(&["tenant", "list"])?, &["certificate", "tls"])?;
    refused(
        "a foreign client",
        &tool(&lab, &flags("ca", "stranger")).run(&["tenant", "list"])?,
        &["certificate", "tls"],
    )?;
    let plain = vec!["--etcd-endpoints".to_owned(), format!("http://{ADDRESS}:3379")];
    refused("no TLS", &tool(&lab, &plain).run(&["tenant", "list"])?, &["tls", "https", "etcd"])?;
    let missing = flags("nothing", "client");
    refused("a file that is not there", &tool(&lab, &missing).run(&["tenant", "list"])?, &["nothing.pem"])?;

    for program in ["bulkhead-controller", "bulkhead-agent"] {
        complains(&lab, program, &flags("ca", "stranger"), &["certificate", "tls"])?;
        complains(&lab, program, &flags("other", "client"), &["certificate", "tls"])?;
    }

    println!("passwords");
    let endpoint = format!("http://{ADDRESS}:4379");
    let login = |user: &str, file: &str| -> Vec<String> {
        ["--etcd-endpoints", &endpoint, "--etcd-user", user, "--etcd-password-file", &at(file)]
            .map(str::to_owned)
            .to_vec()
    };
    let ctl = format!(
        "set -e; export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={endpoint}\n\
         for i in $(seq 100); do etcdctl endpoint health && break || sleep 0.3; done\n\
         etcdctl user add root:right; etcdctl user grant-role root root; etcdctl auth enable"
    );
    lab.underlay().infra.exec("sh", &["-c", &ctl], &[])?;
    tool(&lab, &login("root", "right")).ok(&init)?;
    tool(&lab, &login("root", "right")).ok(&["tenant", "list"])?;
    let wrong = tool(&lab, &login("root", "wrong")).run(&["tenant", "list"])?;
    refused("a wrong password", &wrong, &["password", "user"])?;
    promised(!wrong.stderr.contains("wrong\n"), || "the password is in the text".into())?;
    refused("nobody's name", &tool(&lab, &login("nobody", "right")).run(&["tenant", "list"])?, &["password", "user"])?;
    for program in ["bulkhead-controller", "bulkhead-agent"] {
        complains(&lab, program, &login("root", "wrong"), &["password", "user"])?;
    }
    let none = vec!["--etcd-endpoints".to_owned(), endpoint.clone()];
    refused("no login", &tool(&lab, &none).run(&["tenant", "list"])?, &["user", "password", "login"])?;

    println!("out of reach: refused within seconds");
    let far = vec!["--etcd-endpoints".to_owned(), format!("http://{}:2379", lab.nobody())];
    refused("nobody answers", &tool(&lab, &far).run(&["tenant", "list"])?, &["etcd"])?;
    let closed = vec!["--etcd-endpoints".to_owned(), format!("http://{ADDRESS}:1")];
    refused("a closed port", &tool(&lab, &closed).run(&["tenant", "list"])?, &["etcd"])
}

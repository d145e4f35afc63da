//! A pod's own network namespace, for sockets of the test's own in it: what its source port is, and how long it stays open,
//! is the test's to say.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use bulkhead_tests::error::{LabError, Tried};
use bulkhead_tests::netns::Netns;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::Value;

use crate::cluster::Cluster;

/// The port of the lab's pods on which they answer datagrams.
pub const DATAGRAMS: u16 = 8081;
/// How long an answer is awaited.
const ANSWER: Duration = Duration::from_secs(5);
/// Where containerd's CNI library keeps what it knows of a pod.
const RESULTS: &str = "/var/lib/cni/results";

/// The network of a pod that runs, or another from which one may ask.
#[derive(Debug)]
pub struct Inner {
    netns: Netns,
}

/// A connection to the web server of a lab's pod.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    name: String,
}

impl Inner {
    /// Enters a pod's namespace.
    pub fn of(cluster: &Cluster, node: &str, namespace: &str, pod: &str) -> Result<Self, LabError> {
        let node = cluster.node(node)?;
        let refused = |answer: String| LabError::Refused { what: format!("enter {namespace}/{pod}"), answer };
        let known = node.exec(&["sh", "-c", &format!("cat {RESULTS}/*-eth0")], &[])?;
        let results = serde_json::Deserializer::from_str(&known).into_iter::<Value>().flatten();
        let has = |result: &Value, name: &str, value: &str| {
            result["cniArgs"].as_array().into_iter().flatten().any(|pair| pair[0] == name && pair[1] == value)
        };
        let result = results
            .filter(|result| has(result, "K8S_POD_NAMESPACE", namespace) && has(result, "K8S_POD_NAME", pod))
            .last()
            .ok_or_else(|| refused(format!("{} has no such pod", node.name())))?;
        let path = result["netns"].as_str().unwrap_or_default().replacen("/var/run/", "/run/", 1);
        let machine = node.pid().ok_or_else(|| refused(format!("{} is off", node.name())))?;
        let netns = Netns::open(format!("/proc/{machine}/root{path}").as_ref())?;
        Ok(Self { netns })
    }

    /// Asks once by a datagram from that port, such as `hostname` or `clientip`.
    pub fn ask(&self, source: u16, to: SocketAddr, what: &'static str) -> Result<io::Result<String>, LabError> {
        self.netns.aside(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, source))?;
            socket.set_read_timeout(Some(ANSWER))?;
            socket.connect(to)?;
            socket.send(what.as_bytes())?;
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
        })
    }

    /// Opens a connection from that port; several may be open from one port to different addresses.
    pub fn connect(&self, source: u16, to: SocketAddr) -> Result<Connection, LabError> {
        let name = format!("{} port {source} to {to}", self.netns.name());
        let opened = self.netns.aside(move || -> io::Result<TcpStream> {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            set_socket_reuseaddr(&socket, true)?;
            let stream = TcpStream::from(socket);
            // The time to connect is that of a write.
            stream.set_write_timeout(Some(ANSWER))?;
            stream.set_read_timeout(Some(ANSWER))?;
            bind(&stream, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, source)))?;
            connect(&stream, &to)?;
            Ok(stream)
        })?;
        Ok(Connection { stream: opened.tried(|| format!("connect {name}"))?, name })
    }

    /// Who answers on a new connection.
    pub fn who(&self, to: SocketAddr) -> Result<String, LabError> {
        self.connect(0, to)?.ask("hostname")
    }
}

impl Connection {
    /// Asks for a page, such as `hostname` or `clientip`; the connection stays open.
    pub fn ask(&mut self, page: &str) -> Result<String, LabError> {
        let what = || format!("ask {} for {page}", self.name);
        let request = format!("GET /{page} HTTP/1.1\r\nHost: lab\r\n\r\n");
        self.stream.write_all(request.as_bytes()).tried(what)?;
        let (mut answer, mut part) = (String::new(), [0; 1024]);
        loop {
            if let Some((head, body)) = answer.split_once("\r\n\r\n")
                && body.len() >= length(head)
            {
                return Ok(body.trim().to_owned());
            }
            let got = self.stream.read(&mut part).tried(what)?;
            if got == 0 {
                return Err(LabError::Refused { what: what(), answer: format!("it was closed after {answer:?}") });
            }
            answer.push_str(&String::from_utf8_lossy(&part[..got]));
        }
    }
}

fn length(head: &str) -> usize {
    let field =
        |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:").map(|text| text.trim().to_owned());
    head.lines().find_map(field).and_then(|text| text.parse().ok()).unwrap_or_default()
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An address and a port.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

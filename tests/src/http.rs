//! One HTTP request from inside a namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{LabError, Tried};
use crate::netns::Netns;

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code; 0 if the answer is no HTTP.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// GETs a path.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<Answer, LabError> {
    let what = || format!("GET {path} from {address} in {}", netns.name());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let text = netns
        .aside(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(15)))?;
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        })?
        .tried(what)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    Ok(Answer { status, body: body.to_owned() })
}

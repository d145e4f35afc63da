//! One blocking netlink socket in one network namespace: opening it, single questions, listings. Changes are in `batch.rs`.
//!
//! A socket stays in the namespace in which it was opened, whichever thread uses it later.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::KernelError;
use super::netns;
use super::reply::{Outcome, Reply};

/// The kernel makes no datagram of a listing larger than 32 KiB; single answers can be larger and make the buffer grow.
pub(super) const RECEIVE_BUFFER: usize = 32 * 1024;
/// Answers are there when the send returns; this bounds the wait if a kernel ever breaks that.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A listing that changes while it is read is read again.
pub(super) const DUMP_TRIES: u32 = 16;

/// A blocking `NETLINK_ROUTE` socket, bound to the network namespace in which it was opened.
pub struct Netlink {
    pub(super) socket: Socket,
    pub(super) sequence: u32,
    pub(super) buffer: Vec<u8>,
}

/// Why no datagram could be read.
pub(super) enum ReceiveError {
    /// The kernel dropped answers.
    Overrun,
    /// Nothing came.
    Silence,
    /// The datagram was larger than the buffer (which has grown since).
    Truncated,
    Failed(Errno),
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn here() -> Result<Self, KernelError> {
        let socket = open().map_err(|error| KernelError::Socket {
            operation: "open a netlink socket".into(),
            source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        })?;
        sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))
            .map_err(|source| KernelError::Socket { operation: "set the netlink socket's deadline".into(), source })?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Opens a socket in another network namespace. The calling thread stays where it is; the socket may be used by any thread.
    /// The namespace lives as long as the socket: drop it when the work is done.
    pub fn within(netns: BorrowedFd<'_>) -> Result<Self, KernelError> {
        netns::inside(netns, "open a netlink socket in a pod's network namespace", Self::here)?
    }

    /// As [`Netlink::within`] without a thread of its own: the calling thread goes there and comes back to `home`, its own
    /// namespace. Only for a thread that ends with its one duty: if it cannot come back ([`KernelError::Enter`] says so), it must
    /// do nothing more in the kernel.
    pub fn visiting(netns: BorrowedFd<'_>, home: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let go = |to, operation: &str| {
            move_into_link_name_space(to, Some(LinkNameSpaceType::Network))
                .map_err(|source| KernelError::Enter { operation: operation.to_owned(), source })
        };
        go(netns, "open a netlink socket in a pod's network namespace")?;
        let socket = Self::here();
        go(home, "come back from a pod's network namespace")?;
        socket
    }

    /// Asks for one object. `Ok(None)`: the kernel answered, but `read` could make nothing of it.
    pub(super) fn ask<T>(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Option<T>, KernelError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.request(operation, message, 0)?;
            loop {
                match self.receive(false) {
                    Ok(length) => {
                        let answer = Reply::each(&self.buffer[..length]).find(|reply| reply.sequence == sequence);
                        let Some(answer) = answer else { continue };
                        return match answer.outcome() {
                            Some(Outcome { errno: Some(errno), text }) => {
                                Err(KernelError::Refused { operation: operation.into(), errno, text })
                            }
                            _ => Ok(read(&answer)),
                        };
                    }
                    Err(ReceiveError::Truncated | ReceiveError::Overrun) => break,
                    Err(error) => return Err(receive_failed(operation, &error)),
                }
            }
        }
        Err(KernelError::Unanswered { operation: operation.into() })
    }

    /// Lists objects: everything in which `read` sees one of those that are wanted. Read again if it changed meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_TRIES {
            let sequence = self.request(operation, message, NLM_F_DUMP)?;
            match self.read_dump(operation, sequence, &mut read) {
                Ok(None) => {}
                // An earlier listing was given up half-way; reading drives it to its end.
                Err(KernelError::Refused { errno: Errno::BUSY, .. }) => self.drain(),
                Ok(Some(listed)) => return Ok(listed),
                Err(error) => return Err(error),
            }
        }
        Err(KernelError::Unsettled { operation: operation.into(), tries: DUMP_TRIES })
    }

    /// Reads a listing to its end. `None`: it must be asked for again.
    pub(super) fn read_dump<T>(
        &mut self,
        operation: &str,
        sequence: u32,
        read: &mut impl FnMut(&Reply<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, KernelError> {
        let mut listed = Vec::new();
        let mut whole = true;
        loop {
            let length = match self.receive(false) {
                Ok(length) => length,
                Err(ReceiveError::Truncated | ReceiveError::Overrun) => {
                    whole = false;
                    continue;
                }
                Err(error) => return Err(receive_failed(operation, &error)),
            };
            for reply in Reply::each(&self.buffer[..length]).filter(|reply| reply.sequence == sequence) {
                whole &= !reply.interrupted();
                match reply.outcome() {
                    Some(Outcome { errno: Some(errno), text }) => {
                        return Err(KernelError::Refused { operation: operation.into(), errno, text });
                    }
                    Some(_) if reply.is_done() => return Ok(whole.then_some(listed)),
                    Some(_) => {
                        return Err(KernelError::Malformed {
                            operation: operation.into(),
                            detail: "a listing without an end",
                        });
                    }
                    None => listed.extend(read(&reply)),
                }
            }
        }
    }

    pub(super) fn request(
        &mut self,
        operation: &str,
        message: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<u32, KernelError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        serialize(message.clone(), NLM_F_REQUEST | flags, sequence, &mut bytes);
        self.send(&bytes).map_err(|source| KernelError::Socket { operation: operation.into(), source })?;
        Ok(sequence)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let sent = self.socket.send(bytes, 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    /// Reads one datagram into the buffer; its length.
    pub(super) fn receive(&mut self, queued_only: bool) -> Result<usize, ReceiveError> {
        let flags = if queued_only { RecvFlags::TRUNC | RecvFlags::DONTWAIT } else { RecvFlags::TRUNC };
        match recv(self.socket.as_fd(), &mut self.buffer[..], flags) {
            Ok((_, length)) if length > self.buffer.len() => {
                self.buffer.resize(length.next_power_of_two(), 0);
                Err(ReceiveError::Truncated)
            }
            Ok((_, length)) => Ok(length),
            Err(Errno::NOBUFS) => Err(ReceiveError::Overrun),
            Err(Errno::AGAIN) => Err(ReceiveError::Silence),
            Err(Errno::INTR) => self.receive(queued_only),
            Err(errno) => Err(ReceiveError::Failed(errno)),
        }
    }

    /// Reads and forgets what is queued.
    fn drain(&mut self) {
        while !matches!(self.receive(true), Err(ReceiveError::Silence | ReceiveError::Failed(_))) {}
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink")
            .field("socket", &self.socket)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

fn open() -> std::io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    socket.set_netlink_get_strict_chk(true)?;
    Ok(socket)
}

pub(super) fn serialize(message: RouteNetlinkMessage, flags: u16, sequence: u32, bytes: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

fn receive_failed(operation: &str, error: &ReceiveError) -> KernelError {
    let operation = operation.to_owned();
    match error {
        ReceiveError::Failed(source) => KernelError::Socket { operation, source: *source },
        _ => KernelError::Unanswered { operation },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use netlink_packet_route::link::LinkMessage;

    use super::super::fixture::{in_new_netns, new_netns, veth_spec, wired_pod};
    use super::super::{Op, VethSpec};
    use super::*;

    /// Makes `count` devices, enough to need several datagrams for a listing.
    fn fill(netlink: &mut Netlink, peers: &impl AsFd, count: u32) -> Vec<u32> {
        let specs = (0..count).map(|n| VethSpec {
            host_index: Some(100 + n),
            peer_name: format!("eth{n}").parse().unwrap(),
            ..veth_spec(&format!("vethtest{n}"), peers.as_fd())
        });
        netlink.batch(specs.map(|spec| Op::veth(&spec)).collect()).unwrap();
        (100..100 + count).collect()
    }

    fn listed(netlink: &mut Netlink) -> Vec<u32> {
        netlink.links().unwrap().iter().map(|link| link.index).collect()
    }

    #[test]
    fn a_listing_that_was_given_up_does_not_block_the_next() {
        in_new_netns(|| {
            let peers = new_netns();
            let mut netlink = Netlink::here().unwrap();
            let wanted = fill(&mut netlink, &peers, 150);
            netlink.request("list", &RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP).unwrap();
            let links = listed(&mut netlink);
            assert!(wanted.iter().all(|index| links.contains(index)));
        });
    }

    #[test]
    fn a_listing_that_changed_half_way_is_not_taken() {
        in_new_netns(|| {
            let peers = new_netns();
            let (mut netlink, mut other) = (Netlink::here().unwrap(), Netlink::here().unwrap());
            let wanted = fill(&mut netlink, &peers, 150);
            let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
            for (change, taken) in [(true, None), (false, Some(wanted.len() + 1))] {
                // The kernel fills the first datagram when it is asked, the others when they are read.
                let sequence = netlink.request("list", &request, NLM_F_DUMP).unwrap();
                if change {
                    let gone = new_netns();
                    other
                        .apply(Op::veth(&VethSpec { host_index: Some(99), ..veth_spec("new", gone.as_fd()) }))
                        .unwrap();
                    other.apply(Op::link_delete(99)).unwrap();
                }
                let listed = netlink.read_dump("list", sequence, &mut |_| Some(())).unwrap();
                assert_eq!(listed.map(|links| links.len()), taken, "change: {change}");
            }
        });
    }

    #[test]
    fn a_listing_is_whole_while_links_come_and_go() {
        in_new_netns(|| {
            let peers = new_netns();
            let mut netlink = Netlink::here().unwrap();
            let wanted = fill(&mut netlink, &peers, 150);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut churn = Netlink::here().unwrap();
                    let other = new_netns();
                    while !done.load(Ordering::Relaxed) {
                        let spec = VethSpec { host_index: Some(99), ..veth_spec("churn", other.as_fd()) };
                        churn.apply(Op::veth(&spec)).unwrap();
                        churn.apply(Op::link_delete(99)).unwrap();
                    }
                });
                for _ in 0..50 {
                    let links = listed(&mut netlink);
                    assert!(wanted.iter().all(|index| links.iter().filter(|link| *link == index).count() == 1));
                }
                done.store(true, Ordering::Relaxed);
            });
        });
    }

    #[test]
    fn an_answer_larger_than_the_buffer_is_asked_for_again() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            for index in [pod.host_index, 1] {
                pod.host.buffer = vec![0; 64];
                assert_eq!(pod.host.link_by_index(index).unwrap().unwrap().index, index);
                pod.host.buffer = vec![0; 64];
                assert_eq!(pod.host.links().unwrap().len(), 2);
            }
        });
    }
}

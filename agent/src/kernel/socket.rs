//! One blocking netlink socket in one network namespace: batches of changes, single questions, listings.
//!
//! The kernel works through a batch in the sender's own context, so one send and one read per acknowledgement is all that a batch
//! costs. A socket stays in the namespace in which it was opened, whichever thread uses it later.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};

use super::error::{BatchError, KernelError};
use super::netns;
use super::op::{Expectation, Op};
use super::reply::{Outcome, Reply};

/// As many operations go out in one send; their acknowledgements fit the smallest receive buffer that distributions set.
const OPS_PER_SEND: usize = 128;
/// As many bytes go out in one send, well under the default send buffer of 208 KiB.
const BYTES_PER_SEND: usize = 64 * 1024;
/// The kernel makes no datagram of a listing larger than 32 KiB; single answers can be larger and make the buffer grow.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// Answers are there when the send returns; this bounds the wait if a kernel ever breaks that.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// A listing that changes while it is read is read again.
const DUMP_TRIES: u32 = 16;

/// A blocking `NETLINK_ROUTE` socket, bound to the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Why no datagram could be read.
enum ReceiveError {
    /// The kernel dropped answers.
    Overrun,
    /// Nothing came.
    Silence,
    /// The datagram was larger than the buffer (which has grown since).
    Truncated,
    Failed(Errno),
}

/// The first operation of one send that was not done, and how many after it were not done either.
struct Failure {
    first: usize,
    further: usize,
    source: KernelError,
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
    pub fn within(netns: BorrowedFd<'_>) -> Result<Self, KernelError> {
        netns::inside(netns, "open a netlink socket in a pod's network namespace", Self::here)?
    }

    /// Applies `ops` in their order and reads every acknowledgement.
    ///
    /// An operation that fails does not stop those after it (save beyond 128 operations or 64 KiB, where the batch is cut into
    /// several sends and ends with the send that failed): after an error the caller undoes or reads back.
    pub fn batch(&mut self, ops: Vec<Op<'_>>) -> Result<(), BatchError> {
        let of = ops.len();
        let mut bytes = Vec::new();
        let mut sent = Vec::new();
        for (index, op) in ops.into_iter().enumerate() {
            let (message, flags, expectation) = op.into_parts();
            serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags, self.next_sequence(), &mut bytes);
            sent.push(expectation);
            if index + 1 == of || sent.len() == OPS_PER_SEND || bytes.len() >= BYTES_PER_SEND {
                let start = index + 1 - sent.len();
                self.exchange(&bytes, &sent).map_err(|failure| BatchError {
                    index: start + failure.first,
                    of,
                    further: failure.further,
                    source: failure.source,
                })?;
                bytes.clear();
                sent.clear();
            }
        }
        Ok(())
    }

    /// Applies one operation.
    pub fn apply(&mut self, op: Op<'_>) -> Result<(), KernelError> {
        self.batch(vec![op]).map_err(|error| error.source)
    }

    /// Sends the serialized operations `sent`, whose last has the newest sequence number, and reads their answers.
    fn exchange(&mut self, bytes: &[u8], sent: &[Expectation]) -> Result<(), Failure> {
        let count = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let first_sequence = self.sequence.wrapping_sub(count).wrapping_add(1);
        let failed = |source| {
            let operation = sent.first().map(|first| first.operation.clone()).unwrap_or_default();
            Failure { first: 0, further: sent.len() - 1, source: KernelError::Socket { operation, source } }
        };
        self.send(bytes).map_err(failed)?;

        let mut outcomes: Vec<Option<Outcome>> = vec![None; sent.len()];
        let mut missing = sent.len();
        let mut overrun = false;
        while missing > 0 {
            // After an overrun no more than what is queued already will come.
            match self.receive(overrun) {
                Ok(length) => {
                    for reply in Reply::each(&self.buffer[..length]) {
                        // What lies outside is a late answer to an earlier batch.
                        let at = usize::try_from(reply.sequence.wrapping_sub(first_sequence)).unwrap_or(usize::MAX);
                        if let (Some(slot @ None), Some(outcome)) = (outcomes.get_mut(at), reply.outcome()) {
                            *slot = Some(outcome);
                            missing -= 1;
                        }
                    }
                }
                Err(ReceiveError::Overrun) => overrun = true,
                Err(ReceiveError::Truncated) => {}
                Err(ReceiveError::Silence) => break,
                Err(ReceiveError::Failed(source)) => return Err(failed(source)),
            }
        }
        settle(sent, outcomes)
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
            if let Some(listed) = self.read_dump(operation, sequence, &mut read)? {
                return Ok(listed);
            }
        }
        Err(KernelError::Unsettled { operation: operation.into(), tries: DUMP_TRIES })
    }

    /// Reads a listing to its end. `None`: it must be asked for again.
    fn read_dump<T>(
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

    fn request(&mut self, operation: &str, message: &RouteNetlinkMessage, flags: u16) -> Result<u32, KernelError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        serialize(message.clone(), NLM_F_REQUEST | flags, sequence, &mut bytes);
        self.send(&bytes).map_err(|source| KernelError::Socket { operation: operation.into(), source })?;
        Ok(sequence)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let sent = self.socket.send(bytes, 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    /// Reads one datagram into the buffer; its length.
    fn receive(&mut self, queued_only: bool) -> Result<usize, ReceiveError> {
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

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
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

fn serialize(message: RouteNetlinkMessage, flags: u16, sequence: u32, bytes: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

fn settle(sent: &[Expectation], outcomes: Vec<Option<Outcome>>) -> Result<(), Failure> {
    let mut failures = sent.iter().zip(outcomes).enumerate().filter_map(|(index, (sent, outcome))| {
        let operation = || sent.operation.clone();
        match outcome {
            Some(Outcome { errno: None, .. }) => None,
            Some(Outcome { errno: Some(errno), .. }) if sent.tolerated.contains(&errno) => None,
            Some(Outcome { errno: Some(errno), text }) => {
                Some((index, KernelError::Refused { operation: operation(), errno, text }))
            }
            None => Some((index, KernelError::Unanswered { operation: operation() })),
        }
    });
    match failures.next() {
        None => Ok(()),
        Some((first, source)) => Err(Failure { first, further: failures.count(), source }),
    }
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
    use std::os::fd::AsFd;

    use super::super::fixture::{in_new_netns, new_netns, wired_pod};
    use super::super::{MAIN_TABLE, Netns, NetnsError, Route};
    use super::*;

    fn routes(index: u32, count: u32) -> Vec<Route> {
        let to = |n: u32| std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        (0..count)
            .map(|n| Route { index: Some(index), ..Route::to(ipnetwork::IpNetwork::from(to(n)), MAIN_TABLE, 98) })
            .collect()
    }

    #[test]
    fn the_first_failure_is_named_and_the_others_are_tried() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            let error = pod
                .host
                .batch(vec![
                    Op::link_set_mtu(index, 1300),
                    Op::link_up(999),
                    Op::link_set_group(index, 5),
                    Op::link_delete(998),
                    Op::link_delete(997).if_present(),
                ])
                .unwrap_err();
            assert_eq!((error.index, error.of, error.further), (1, 5, 1));
            assert_eq!(error.source.errno(), Some(Errno::NODEV));
            assert!(
                error
                    .to_string()
                    .starts_with("operation 2 of 5 failed (and 1 after it): set link 999 up: No such device"),
                "{error}"
            );
            let link = pod.host.link_by_index(index).unwrap().unwrap();
            assert_eq!((link.mtu, link.group), (1300, 5));
        });
    }

    #[test]
    fn a_batch_of_any_size_is_done_and_a_failure_in_it_found() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let routes = routes(pod.host_index, 1000);
            pod.host.batch(vec![]).unwrap();
            pod.host.batch(routes.iter().map(Op::route_add).collect()).unwrap();
            assert_eq!(pod.host.routes(MAIN_TABLE, Some(98)).unwrap().len(), 1000);
            pod.host.apply(Op::route_delete(&routes[700])).unwrap();
            let error = pod.host.batch(routes.iter().map(Op::route_delete).collect()).unwrap_err();
            assert_eq!((error.index, error.further), (700, 0));
        });
    }

    #[test]
    fn lost_answers_are_told_and_the_socket_recovers() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let routes = routes(pod.host_index, 100);
            sockopt::set_socket_recv_buffer_size(pod.host.socket.as_fd(), 0).unwrap();
            let error = pod.host.batch(routes.iter().map(Op::route_add).collect()).unwrap_err();
            assert!(matches!(error.source, KernelError::Unanswered { .. }), "{error}");
            assert!(error.index > 0, "the smallest buffer holds an answer");
            sockopt::set_socket_recv_buffer_size(pod.host.socket.as_fd(), 1 << 16).unwrap();
            assert_eq!(pod.host.routes(MAIN_TABLE, Some(98)).unwrap().len(), 100);
            pod.host.batch(routes.iter().map(Op::route_delete).collect()).unwrap();
        });
    }

    #[test]
    fn late_answers_of_an_earlier_request_are_passed_over() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            // A refusal, an acknowledgement and a whole listing that nobody reads.
            for op in [Op::link_up(999), Op::link_up(pod.host_index)] {
                let (message, flags, _) = op.into_parts();
                let mut bytes = Vec::new();
                serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags, pod.host.next_sequence(), &mut bytes);
                pod.host.send(&bytes).unwrap();
            }
            pod.host
                .request(
                    "list",
                    &RouteNetlinkMessage::GetLink(netlink_packet_route::link::LinkMessage::default()),
                    NLM_F_DUMP,
                )
                .unwrap();
            pod.host.apply(Op::link_set_mtu(pod.host_index, 1400)).unwrap();
            assert_eq!(pod.host.link_by_index(pod.host_index).unwrap().unwrap().mtu, 1400);
            assert_eq!(pod.host.links().unwrap().len(), 2);
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

    #[test]
    fn the_calling_thread_stays_where_it_is() {
        in_new_netns(|| {
            let before = Netns::own().unwrap().id();
            let pod = new_netns();
            assert_ne!(pod.id(), before);
            let mut inside = Netlink::within(pod.as_fd()).unwrap();
            assert_eq!(Netns::own().unwrap().id(), before);
            inside.apply(Op::link_up(1)).unwrap();
            assert!(!Netlink::here().unwrap().link_by_index(1).unwrap().unwrap().up);
        });
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netns");
        assert!(Netns::open(&file).unwrap_err().is_absent());
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Netns::open(&file), Err(NetnsError::NotNamespace { .. })));
        let other_kind = Netns::open(std::path::Path::new("/proc/self/ns/mnt")).unwrap();
        assert!(matches!(Netlink::within(other_kind.as_fd()), Err(KernelError::Enter { source: Errno::INVAL, .. })));
    }
}

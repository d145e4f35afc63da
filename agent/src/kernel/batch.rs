//! Many changes in one send: every acknowledgement is read, and the first failure told by its place in the batch.
//!
//! The kernel works through a batch in the sender's own context, so one send and one read per acknowledgement is all that it costs.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::error::{BatchError, KernelError};
use super::op::{Expectation, Op};
use super::reply::{Outcome, Reply};
use super::socket::{Netlink, ReceiveError, serialize};

/// As many operations go out in one send; their acknowledgements fit the smallest receive buffer that distributions set.
const OPS_PER_SEND: usize = 128;
/// As many bytes go out in one send, well under the default send buffer of 208 KiB.
const BYTES_PER_SEND: usize = 64 * 1024;

/// The first operation of one send that was not done, and how many after it were not done either.
struct Failure {
    first: usize,
    further: usize,
    source: KernelError,
}

impl Netlink {
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

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_DUMP;
    use netlink_packet_route::RouteNetlinkMessage;
    use rustix::io::Errno;
    use rustix::net::sockopt;
    use std::os::fd::AsFd;

    use super::super::fixture::{in_new_netns, wired_pod};
    use super::super::{MAIN_TABLE, Route};
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
}

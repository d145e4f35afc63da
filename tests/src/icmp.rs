//! Echo requests and replies on a raw socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with, sockopt,
};

use crate::frame::checksum;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const MAGIC: [u8; 4] = *b"bhlp";
/// ICMP header, magic, sequence number.
const LEAST: usize = 8 + 4 + 8;

/// A socket that pings one peer; opened in the calling thread's namespace.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    to: SocketAddrV4,
    id: u16,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The reply to the request of that number, and the bytes of its ICMP payload.
    Reply(u64, usize),
    /// Somebody says that a packet of ours cannot pass: type 3 with this code and next-hop MTU.
    Unreachable(u8, u16),
    /// Something else.
    Other,
}

impl Pinger {
    /// Opens the socket; `id` tells this one's replies from others'.
    pub fn open(to: Ipv4Addr, id: u16) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::ICMP))?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
        // Not connected: a connected one would not hear a router's unreachable.
        Ok(Self { socket, to: SocketAddrV4::new(to, 0), id })
    }

    /// Sends request `number` with `payload` bytes (at least 12).
    pub fn send(&self, number: u64, payload: usize) -> io::Result<()> {
        let mut packet = vec![0; (8 + payload).max(LEAST)];
        packet[0] = ECHO_REQUEST;
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        let low = number.to_be_bytes();
        packet[6..8].copy_from_slice(&low[6..8]);
        packet[8..12].copy_from_slice(&MAGIC);
        packet[12..20].copy_from_slice(&low);
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        sendto(&self.socket, &packet, SendFlags::DONTWAIT, &self.to)?;
        Ok(())
    }

    /// How long [`Self::hear`] waits.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(patience))?)
    }

    /// The next packet; an error of kind `WouldBlock` when none came in time.
    pub fn hear(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        let (length, _) = recv(&self.socket, &mut *buffer, RecvFlags::empty())?;
        Ok(self.read(&buffer[..length]))
    }

    fn read(&self, packet: &[u8]) -> Heard {
        let Some(header) = packet.first().map(|first| usize::from(first & 15) * 4) else { return Heard::Other };
        let Some(icmp) = packet.get(header..).filter(|icmp| icmp.len() >= 8) else { return Heard::Other };
        if icmp[0] == UNREACHABLE {
            return Heard::Unreachable(icmp[1], u16::from_be_bytes([icmp[6], icmp[7]]));
        }
        let ours = icmp.len() >= LEAST
            && icmp[0] == ECHO_REPLY
            && icmp[4..6] == self.id.to_be_bytes()
            && icmp[8..12] == MAGIC
            && checksum(icmp) == 0;
        if !ours {
            return Heard::Other;
        }
        let mut number = [0; 8];
        number.copy_from_slice(&icmp[12..20]);
        Heard::Reply(u64::from_be_bytes(number), icmp.len() - 8)
    }
}

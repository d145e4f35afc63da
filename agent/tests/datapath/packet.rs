//! Frames, byte by byte: well-formed ones, and ones that lie in exactly one field.

use std::net::Ipv4Addr;

use bulkhead_agent::kernel::Mac;

pub const ETH_IPV4: u16 = 0x0800;
pub const ETH_ARP: u16 = 0x0806;
pub const ETH_IPV6: u16 = 0x86dd;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// Below every range that means something to the datapath.
pub const PORT: u16 = 8080;
/// The first port of flows that the host's stack translated.
pub const SERVICE_PORT: u16 = 61_000;
/// Whoever a frame is addressed to: the programs do not look at it.
const ANYBODY: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);

/// An Ethernet frame of any type.
pub fn frame(source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&ANYBODY.0[..], &source.0, &ether_type.to_be_bytes(), payload].concat()
}

/// What an ARP packet claims and asks.
#[derive(Debug, Clone, Copy)]
pub struct Arp {
    pub frame_source: Mac,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target: Ipv4Addr,
    /// 1: request, 2: reply.
    pub operation: u16,
}

impl Arp {
    pub fn frame(&self) -> Vec<u8> {
        let mut arp = vec![0, 1, 8, 0, 6, 4];
        arp.extend(self.operation.to_be_bytes());
        arp.extend(self.sender_mac.0);
        arp.extend(self.sender.octets());
        arp.extend([0; 6]);
        arp.extend(self.target.octets());
        frame(self.frame_source, ETH_ARP, &arp)
    }
}

/// An IPv4 packet in an Ethernet frame.
#[derive(Debug, Clone)]
pub struct Packet {
    pub mac: Mac,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub tos: u8,
    /// Flags and fragment offset, as in the header.
    pub fragment: u16,
    /// IP options, padded to whole words.
    pub options: Vec<u8>,
    pub version: u8,
    /// The header's length in words, if it lies.
    pub words: Option<u8>,
    /// The packet's length, if it lies.
    pub length: Option<u16>,
    pub body: Vec<u8>,
}

impl Packet {
    pub fn new(mac: Mac, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, body: Vec<u8>) -> Self {
        let options = Vec::new();
        let (version, words, length) = (4, None, None);
        Self { mac, source, destination, protocol, tos: 0, fragment: 0, options, version, words, length, body }
    }

    pub fn udp(mac: Mac, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        let body = [&ports[..], &[0, 16, 0, 0], b"bulkhead"].concat();
        Self::new(mac, source.0, destination.0, UDP, body)
    }

    pub fn tcp(mac: Mac, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
        let rest = [0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0];
        Self::new(mac, source.0, destination.0, TCP, [&ports[..], &rest].concat())
    }

    pub fn ping(mac: Mac, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::new(mac, source, destination, ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1])
    }

    /// An ICMP error that quotes the first `quoted` bytes of a packet.
    pub fn icmp_error(mac: Mac, kind: u8, (from, to): (Ipv4Addr, Ipv4Addr), about: &Self, quoted: usize) -> Self {
        let quote = about.ip();
        let body = [&[kind, 0, 0, 0, 0, 0, 0, 0], &quote[..quoted.min(quote.len())]].concat();
        Self::new(mac, from, to, ICMP, body)
    }

    pub fn fragment(mut self, flags_and_offset: u16) -> Self {
        self.fragment = flags_and_offset;
        self
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Makes the frame `length` bytes long.
    pub fn sized(mut self, length: usize) -> Self {
        let header = 14 + 20 + self.options.len();
        self.body.resize(length - header, 0xa5);
        self
    }

    /// From the IP header on.
    pub fn ip(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let words = self.words.unwrap_or_else(|| u8::try_from(header / 4).unwrap());
        let length = self.length.unwrap_or_else(|| u16::try_from(header + self.body.len()).unwrap_or(0));
        let mut ip = vec![self.version << 4 | words & 0xf, self.tos];
        ip.extend(length.to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([64, self.protocol, 0, 0]);
        ip.extend(self.source.octets());
        ip.extend(self.destination.octets());
        ip.extend(&self.options);
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(&self.body);
        ip
    }

    pub fn frame(&self) -> Vec<u8> {
        frame(self.mac, ETH_IPV4, &self.ip())
    }
}

/// RFC 1071.
pub fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

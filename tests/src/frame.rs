//! Frames made by hand, right to the checksum, for sending what an honest kernel would not.

use std::net::Ipv4Addr;

/// A MAC address.
pub type Mac = [u8; 6];

/// Everybody.
pub const BROADCAST: Mac = [0xff; 6];
/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of a VLAN tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// IP protocol ICMP.
pub const ICMP: u8 = 1;
/// IP protocol UDP.
pub const UDP: u8 = 17;

/// Reads `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// The Internet checksum (RFC 1071) of bytes whose own checksum field is zero; 0 over bytes that carry a right one.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// An Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), payload].concat()
}

/// An IPv4 packet without options, not to be fragmented.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// An IPv4 packet's fragment: `offset` in units of 8 bytes.
pub fn ipv4_fragment(packet: &[u8], offset: u16, more: bool) -> Vec<u8> {
    let mut fragment = packet.to_vec();
    let field = offset | if more { 0x2000 } else { 0 };
    fragment[6..8].copy_from_slice(&field.to_be_bytes());
    fragment[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&fragment[..20]);
    fragment[10..12].copy_from_slice(&sum.to_be_bytes());
    fragment
}

/// A UDP datagram within its IPv4 packet.
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, UDP], &length.to_be_bytes()].concat();
    pseudo.extend(&datagram);
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv4(from.0, to.0, UDP, &datagram)
}

/// An ICMP echo request within its IPv4 packet.
pub fn echo_request(from: Ipv4Addr, to: Ipv4Addr, id: u16) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0];
    icmp.extend(id.to_be_bytes());
    icmp.extend([0, 1]);
    icmp.extend(b"spoofed?");
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, ICMP, &icmp)
}

/// A VXLAN header (RFC 7348) before an inner frame.
pub fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), inner].concat()
}

/// An ARP packet for IPv4 over Ethernet; `operation` 1 asks, 2 answers.
pub fn arp(operation: u16, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(from.0);
    packet.extend(from.1.octets());
    packet.extend(to.0);
    packet.extend(to.1.octets());
    packet
}

/// The parts of a received UDP datagram: ports and payload, if the frame is one.
pub fn read_udp(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u16, u16, &[u8])> {
    let ip = frame.get(14..)?;
    if frame.get(12..14)? != IPV4.to_be_bytes() || *ip.get(9)? != UDP {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let datagram = ip.get(usize::from(ip[0] & 15) * 4..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*datagram.get(at)?, *datagram.get(at + 1)?]));
    Some((address(12)?, address(16)?, port(0)?, port(2)?, datagram.get(8..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_verify_to_zero() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let packet = udp((a, 1000), (b, 2000), b"odd");
        assert_eq!(checksum(&packet[..20]), 0);
        let echo = echo_request(a, b, 7);
        assert_eq!(checksum(&echo[20..]), 0);
        let fragment = ipv4_fragment(&packet, 3, true);
        assert_eq!(checksum(&fragment[..20]), 0);
    }

    #[test]
    fn a_datagram_reads_back() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let frame = ethernet(BROADCAST, [2; 6], IPV4, &udp((a, 1), (b, 2), b"x"));
        assert_eq!(read_udp(&frame), Some((a, b, 1, 2, &b"x"[..])));
        assert_eq!(read_udp(&frame[..20]), None);
    }

    #[test]
    fn macs_are_read() {
        assert_eq!(parse_mac("0a:58:ac:0b:00:02"), Some([0x0a, 0x58, 0xac, 0x0b, 0, 2]));
        assert_eq!(parse_mac("0a:58:ac:0b:00"), None);
    }
}

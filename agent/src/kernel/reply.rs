//! Reading the kernel's answers: messages of a datagram, their attributes, acknowledgements with the kernel's explanation.
//!
//! Attributes are read one by one instead of being decoded as a whole: an attribute of a newer kernel that we have no use for cannot
//! make a listing fail. Nothing here panics on any input; what is short or malformed reads as absent.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NlaBuffer, NlasIterator};
use rustix::io::Errno;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One netlink message of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply<'a> {
    pub sequence: u32,
    pub kind: u16,
    flags: u16,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

/// How the kernel ended a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// `None` is success.
    pub errno: Option<Errno>,
    pub text: Option<String>,
}

impl<'a> Reply<'a> {
    /// The messages of one datagram; ends at the first that is not whole.
    pub fn each(mut datagram: &'a [u8]) -> impl Iterator<Item = Reply<'a>> {
        std::iter::from_fn(move || {
            let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
            let body = datagram.get(HEADER_LEN..length)?;
            let reply =
                Reply { kind: u16_at(datagram, 4)?, flags: u16_at(datagram, 6)?, sequence: u32_at(datagram, 8)?, body };
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(reply)
        })
    }

    /// Whether the listing that this message belongs to changed while it was read.
    pub fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// The acknowledgement, refusal or end of listing that this message is, if it is one.
    pub fn outcome(&self) -> Option<Outcome> {
        let extras = match self.kind {
            // The refused request is echoed before the attributes: its header only if capped, else all of it.
            NLMSG_ERROR if self.flags & NLM_F_CAPPED != 0 => 4 + HEADER_LEN,
            NLMSG_ERROR => 4 + usize::try_from(u32_at(self.body, 4)?).ok()?.next_multiple_of(4),
            NLMSG_DONE => 4,
            _ => return None,
        };
        // The end of a listing may come without a code.
        let code = u32_at(self.body, 0).map_or(0, u32::cast_signed);
        let errno = (code != 0).then(|| Errno::from_raw_os_error(code.saturating_neg()));
        let text = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| Attributes::parse(self.body.get(extras..).unwrap_or_default()).text(NLMSGERR_ATTR_MSG))
            .flatten();
        Some(Outcome { errno, text })
    }

    /// Whether this is the end of a listing (and no refusal).
    pub fn is_done(&self) -> bool {
        self.kind == NLMSG_DONE
    }
}

/// The attributes of a message or of a nest.
#[derive(Debug, Clone)]
pub(super) struct Attributes<'a>(Vec<NlaBuffer<&'a [u8]>>);

impl<'a> Attributes<'a> {
    pub fn parse(bytes: &'a [u8]) -> Self {
        Self(NlasIterator::new(bytes).map_while(Result::ok).collect())
    }

    /// The attributes behind a fixed header of `header` bytes.
    pub fn behind(body: &'a [u8], header: usize) -> Self {
        Self::parse(body.get(header..).unwrap_or_default())
    }

    pub fn kinds(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(NlaBuffer::kind)
    }

    pub fn bytes(&self, kind: u16) -> Option<&[u8]> {
        self.0.iter().find(|attribute| attribute.kind() == kind).map(NlaBuffer::value)
    }

    /// All attributes of one kind, in their order.
    pub fn all(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |attribute| attribute.kind() == kind).map(NlaBuffer::value)
    }

    pub fn nest(&self, kind: u16) -> Attributes<'_> {
        Attributes::parse(self.bytes(kind).unwrap_or_default())
    }

    pub fn u8(&self, kind: u16) -> Option<u8> {
        self.bytes(kind)?.first().copied()
    }

    pub fn u16_be(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }

    pub fn u32(&self, kind: u16) -> Option<u32> {
        u32_at(self.bytes(kind)?, 0)
    }

    pub fn u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(kind)?.try_into().ok()?))
    }

    /// A string, with or without its closing zero.
    pub fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.bytes(kind)?;
        let bytes = bytes.split(|&c| c == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// An IPv4 or IPv6 address, told apart by its length.
    pub fn ip(&self, kind: u16) -> Option<IpAddr> {
        ip(self.bytes(kind)?)
    }
}

/// Four bytes are an IPv4, sixteen an IPv6 address.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Some(IpAddr::from(octets))
    } else {
        <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + body.len()).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_refusal_carries_errno_and_the_kernels_words() {
        let mut body = (-17i32).to_ne_bytes().to_vec();
        body.extend(message(20, 0, &[]));
        body.extend([10, 0, 1, 0]);
        body.extend(b"taken\0\0\0");
        let bytes = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &body);
        let reply = Reply::each(&bytes).next().unwrap();
        assert_eq!(reply.sequence, 7);
        assert_eq!(reply.outcome(), Some(Outcome { errno: Some(Errno::EXIST), text: Some("taken".into()) }));
    }

    #[test]
    fn an_acknowledgement_is_success() {
        let bytes = message(NLMSG_ERROR, NLM_F_CAPPED, &[0; 20]);
        assert_eq!(Reply::each(&bytes).next().unwrap().outcome(), Some(Outcome { errno: None, text: None }));
    }

    #[test]
    fn a_truncated_message_ends_the_datagram() {
        let mut bytes = message(16, 0, &[1; 8]);
        bytes.extend(&message(16, 0, &[2; 8])[..20]);
        assert_eq!(Reply::each(&bytes).count(), 1);
    }

    proptest! {
        #[test]
        fn no_input_panics_or_loops(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            for reply in Reply::each(&bytes).take(64) {
                let _ = reply.outcome();
                let attributes = Attributes::behind(reply.body, 16);
                let _ = (attributes.text(1), attributes.ip(2), attributes.nest(3).u64(4));
            }
            prop_assert!(Reply::each(&bytes).take(65).count() <= 16);
        }
    }
}

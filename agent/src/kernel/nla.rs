//! Netlink attributes as they are built, for what `netlink-packet-route` has no words for: nftables, and some of a device.
//!
//! An attribute is its length, its kind and its value, filled up to four bytes. Whoever builds knows the kinds, and keeps each
//! value far below the 64 KiB that the length can say.

use netlink_packet_core::NLA_F_NESTED;

/// Attributes, one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Nla(Vec<u8>);

impl Nla {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn raw(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in the machine's byte order, as routing has them.
    pub fn ne32(self, kind: u16, value: u32) -> Self {
        self.raw(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as nfnetlink has them.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.raw(kind, &value.to_be_bytes())
    }

    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.raw(kind, &value.to_be_bytes())
    }

    /// A string with its closing zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.raw(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.raw(kind | NLA_F_NESTED, &inner.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Attributes;
    use super::*;

    #[test]
    fn what_is_built_is_read_back() {
        let inner = Nla::default().ne32(1, 7).raw(2, &[9]);
        let built = Nla::default().text(3, "abcd").nest(4, &inner).be64(5, 1);
        let read = Attributes::parse(built.bytes());
        assert_eq!(read.kinds().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(read.text(3).as_deref(), Some("abcd"));
        assert_eq!((read.nest(4).u32(1), read.nest(4).u8(2)), (Some(7), Some(9)));
        assert_eq!(read.bytes(5), Some(&[0, 0, 0, 0, 0, 0, 0, 1][..]));
        assert_eq!(built.bytes().len() % 4, 0);
    }
}

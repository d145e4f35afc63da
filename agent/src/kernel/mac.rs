//! An Ethernet address as a value: parsed and printed in the usual colon form, never confused with six other bytes.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (MAC) address, bytes in wire order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is not six pairs of hexadecimal digits joined by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a MAC address; write six pairs of hexadecimal digits, as in 0a:58:0a:01:02:03")]
pub struct MacError {
    text: String,
}

impl Mac {
    /// Whether the address may be given to a device: neither all zero nor a group (multicast, broadcast) address.
    pub fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }

    /// Reads an address as netlink carries it; anything but six bytes is none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let refuse = || MacError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            // from_str_radix alone would take "+a" for a digit pair.
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn printed_form_parses_back(bytes: [u8; 6]) {
            let mac = Mac(bytes);
            prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,24}") {
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string(), text.to_lowercase());
            }
        }
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in
            ["", "0a:58:0a:01:02", "0a:58:0a:01:02:03:04", "0a:58:0a:01:02:3", "+a:58:0a:01:02:03", "0a-58-0a-01-02-03"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn unicast_excludes_zero_and_groups() {
        assert!(Mac([0x0a, 0x58, 0, 0, 0, 1]).is_unicast());
        assert!(!Mac([0; 6]).is_unicast());
        assert!(!Mac([0xff; 6]).is_unicast());
    }
}

//! The two numbers of a namespace: its VNI, which VXLAN carries, and its `NetID`, the tenant network it is in.
//!
//! Both are 24-bit. A [`Vni`] is given at birth and never changes; a [`NetId`] changes with join, isolate and global.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One past the largest 24-bit number (RFC 7348, section 5: the VNI is 24 bits).
pub const SPACE: u32 = 1 << 24;
/// The first number that is given to a namespace; 1 to 9 are reserved.
pub const FIRST: u32 = 10;

/// Why a number is not a VNI or a `NetID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NumberError {
    /// Larger than 24 bits.
    #[error("{0} does not fit 24 bits; the largest number is 16777215")]
    TooLarge(u64),
    /// One of the numbers that no namespace can have.
    #[error("{0} is reserved; a namespace has 0 (global) or a number from 10 to 16777215")]
    Reserved(u32),
}

/// A VXLAN network identifier: a namespace's name on the wire. 0 is the nodes' own; 10 to 2^24 - 1 are namespaces'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The nodes' own traffic.
    pub const NODE: Self = Self(0);

    /// A namespace's VNI, 10 to 2^24 - 1.
    pub fn namespace(number: u32) -> Result<Self, NumberError> {
        match number {
            FIRST..SPACE => Ok(Self(number)),
            0..FIRST => Err(NumberError::Reserved(number)),
            _ => Err(NumberError::TooLarge(number.into())),
        }
    }

    /// The number itself, below 2^24.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = NumberError;

    fn try_from(number: u32) -> Result<Self, NumberError> {
        if number == 0 { Ok(Self::NODE) } else { Self::namespace(number) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The tenant network a namespace is in. Two endpoints may talk if their `NetID`s are equal or one of them is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct NetId(u32);

impl NetId {
    /// Reaches all and is reached by all.
    pub const GLOBAL: Self = Self(0);

    /// A `NetID` as a user may write it: 0, or 10 to 2^24 - 1.
    pub fn new(number: u32) -> Result<Self, NumberError> {
        Vni::try_from(number).map(|vni| Self(vni.0))
    }

    /// The number itself, below 2^24.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this network is open to all.
    pub const fn is_global(self) -> bool {
        self.0 == 0
    }

    /// The verdict on two endpoints (design, section 2).
    pub const fn reaches(self, other: Self) -> bool {
        self.0 == other.0 || self.0 == 0 || other.0 == 0
    }
}

impl From<Vni> for NetId {
    fn from(vni: Vni) -> Self {
        Self(vni.0)
    }
}

impl TryFrom<u32> for NetId {
    type Error = NumberError;

    fn try_from(number: u32) -> Result<Self, NumberError> {
        Self::new(number)
    }
}

impl From<NetId> for u32 {
    fn from(id: NetId) -> Self {
        id.0
    }
}

impl fmt::Display for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_has_24_bits_and_skips_the_reserved() {
        assert_eq!(Vni::namespace(9), Err(NumberError::Reserved(9)));
        assert_eq!(Vni::namespace(SPACE), Err(NumberError::TooLarge(SPACE.into())));
        assert_eq!(Vni::namespace(SPACE - 1).map(Vni::get), Ok(SPACE - 1));
        assert_eq!(Vni::try_from(0), Ok(Vni::NODE));
        assert!(serde_json::from_str::<Vni>("16777216").is_err());
        assert!(serde_json::from_str::<NetId>("-1").is_err());
    }

    #[test]
    fn global_reaches_all() {
        let (a, b) = (NetId::new(10).unwrap(), NetId::new(11).unwrap());
        assert!(a.reaches(a) && !a.reaches(b) && !b.reaches(a));
        assert!(NetId::GLOBAL.reaches(a) && a.reaches(NetId::GLOBAL));
    }
}

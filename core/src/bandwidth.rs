//! Bandwidth values as users write them: Kubernetes' `resource.Quantity`, in bits per second, from 1k to 1P.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The smallest limit, 1 kbit/s.
pub const MIN: u64 = 1_000;
/// The largest limit, 1 Pbit/s.
pub const MAX: u64 = 1_000_000_000_000_000;

/// Why a text or number is not a bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BandwidthError {
    /// Not a quantity.
    #[error(
        "{0:?} is not a bandwidth; write bits per second such as 10M, 1.5G or 100k (suffixes k, M, G, T, P, Ki, Mi, Gi, Ti, Pi)"
    )]
    NotAQuantity(String),
    /// Outside 1k to 1P.
    #[error("the bandwidth {0} is out of range; allowed are 1k to 1P bits per second")]
    OutOfRange(String),
}

/// A rate limit, 1,000 to 10^15 bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// A limit of so many bits per second.
    pub fn from_bits(bits: u64) -> Result<Self, BandwidthError> {
        if (MIN..=MAX).contains(&bits) { Ok(Self(bits)) } else { Err(BandwidthError::OutOfRange(bits.to_string())) }
    }

    /// Bits per second.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bytes per second, rounded down; at least 125.
    pub const fn bytes(self) -> u64 {
        self.0 / 8
    }
}

impl TryFrom<u64> for Bandwidth {
    type Error = BandwidthError;

    fn try_from(bits: u64) -> Result<Self, BandwidthError> {
        Self::from_bits(bits)
    }
}

impl From<Bandwidth> for u64 {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.0
    }
}

impl fmt::Display for Bandwidth {
    /// The shortest form that is exact: `10M`, `1500k`, `1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] =
            [(MAX, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
        match UNITS.iter().find(|(unit, _)| self.0.is_multiple_of(*unit)) {
            Some((unit, suffix)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A suffix of `resource.Quantity` as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let whole = |number| Some((number, 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "" => whole(1),
        "k" => whole(1_000),
        "M" => whole(1_000_000),
        "G" => whole(1_000_000_000),
        "T" => whole(1_000_000_000_000),
        "P" => whole(1_000_000_000_000_000),
        "E" => whole(1_000_000_000_000_000_000),
        "Ki" => whole(1 << 10),
        "Mi" => whole(1 << 20),
        "Gi" => whole(1 << 30),
        "Ti" => whole(1 << 40),
        "Pi" => whole(1 << 50),
        "Ei" => whole(1 << 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Beyond 128 bits the multiplication overflows, which is answered as out of range.
            let power = 10u128.checked_pow(exponent.unsigned_abs()).unwrap_or(u128::MAX);
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    /// Parses `<number><suffix>` (Kubernetes API reference, Quantity). A fraction of a bit rounds up, as there.
    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        let shown = || text.chars().take(40).collect::<String>();
        let not_a_quantity = || BandwidthError::NotAQuantity(shown());
        let out_of_range = || BandwidthError::OutOfRange(shown());
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(not_a_quantity());
        }
        let (numerator, denominator) = scale(suffix).ok_or_else(not_a_quantity)?;
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| out_of_range())?;
        let places = u32::try_from(fraction.len()).ok().and_then(|places| 10u128.checked_pow(places));
        let value = digits
            .checked_mul(numerator)
            .zip(places.and_then(|places| places.checked_mul(denominator)))
            .map(|(top, bottom)| top.div_ceil(bottom))
            .and_then(|bits| u64::try_from(bits).ok());
        match value {
            Some(bits) if !negative => Self::from_bits(bits).map_err(|_| out_of_range()),
            _ => Err(out_of_range()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, bits) in [
            ("10M", 10_000_000),
            ("1.5G", 1_500_000_000),
            ("100k", 100_000),
            ("1e6", 1_000_000),
            ("1E6", 1_000_000),
            ("128Ki", 131_072),
            ("1P", MAX),
            ("1k", MIN),
            ("2000", 2_000),
            ("+1M", 1_000_000),
            ("1000000m", 1_000),
            (".5M", 500_000),
            ("5.M", 5_000_000),
        ] {
            assert_eq!(text.parse::<Bandwidth>().map(Bandwidth::bits), Ok(bits), "{text}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for text in ["10X", "", "M", ".", "1.2.3M", "10 M", "ten", "0x10", "1ee3", "10MM", "\u{661}0M"] {
            assert!(matches!(text.parse::<Bandwidth>(), Err(BandwidthError::NotAQuantity(_))), "{text}");
        }
        for text in ["0", "-1", "2P", "999", "1e40", "-10M", "99999999999999999999999999999999999999999", "1e-3"] {
            assert!(matches!(text.parse::<Bandwidth>(), Err(BandwidthError::OutOfRange(_))), "{text}");
        }
        assert!("10X".parse::<Bandwidth>().unwrap_err().to_string().contains("10X"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered_without_a_panic(text in ".{0,60}") {
            let _ = text.parse::<Bandwidth>();
        }

        #[test]
        fn what_is_shown_reads_back(bits in MIN..=MAX) {
            let bandwidth = Bandwidth::from_bits(bits).unwrap();
            prop_assert_eq!(bandwidth.to_string().parse::<Bandwidth>(), Ok(bandwidth));
        }
    }
}

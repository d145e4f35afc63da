//! A pod's rate limits: from the runtime's words to a shaper in each direction and a policer outside the pod.
//!
//! Shape, never police TCP: the shaper (TBF) does the work, towards the pod on the host's side, from the pod on its own
//! side, where it presses back on the socket. A pod can go round a qdisc in its own netns, so a policer somewhat above
//! the shaped rate is the guaranteed bound; what went through the shaper never meets it.

use bulkhead_core::bandwidth::BandwidthError;
use bulkhead_core::{Bandwidth, annotation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::datapath::abi::PolicerValue;

/// The annotation for the direction towards the pod.
pub const INGRESS: &str = annotation::INGRESS_BANDWIDTH;
/// The annotation for the direction from the pod.
pub const EGRESS: &str = annotation::EGRESS_BANDWIDTH;
/// The capability by which containerd and CRI-O hand a pod's annotations to a plugin.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Why a pod's limits cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LimitError {
    /// An annotation's value.
    #[error("pod {pod}: {annotation}: {source}")]
    Annotation {
        /// `namespace/name`.
        pod: String,
        /// Which one.
        annotation: &'static str,
        /// What is wrong with it.
        source: BandwidthError,
    },
    /// A value of `runtimeConfig.bandwidth`.
    #[error(
        "pod {pod}: runtimeConfig.bandwidth.{field} is {value}; it must be whole bits per second from 1000 to 1000000000000000, or 0 for no limit"
    )]
    Runtime {
        /// `namespace/name`.
        pod: String,
        /// `ingressRate` or `egressRate`.
        field: &'static str,
        /// What it is.
        value: String,
    },
}

/// A pod's limits; none is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Towards the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Bandwidth>,
    /// From the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Bandwidth>,
}

fn of_runtime(pod: &str, bandwidth: Option<&Value>, field: &'static str) -> Result<Option<Bandwidth>, LimitError> {
    let Some(value) = bandwidth.and_then(|bandwidth| bandwidth.get(field)) else { return Ok(None) };
    match value.as_u64() {
        // The runtime fills in 0 for the direction that has no limit.
        Some(0) => Ok(None),
        Some(bits) if Bandwidth::from_bits(bits).is_ok() => Ok(Bandwidth::from_bits(bits).ok()),
        _ if value.is_null() => Ok(None),
        _ => {
            Err(LimitError::Runtime { pod: pod.to_owned(), field, value: value.to_string().chars().take(40).collect() })
        }
    }
}

fn of_annotation(pod: &str, config: &Value, annotation: &'static str) -> Result<Option<Bandwidth>, LimitError> {
    let Some(value) =
        config.get("runtimeConfig").and_then(|rc| rc.get(ANNOTATIONS)).and_then(|all| all.get(annotation))
    else {
        return Ok(None);
    };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map(Some).map_err(|source| LimitError::Annotation { pod: pod.to_owned(), annotation, source })
}

impl Limits {
    /// The limits in a CNI config: the pod's annotations where the runtime hands them on, else `runtimeConfig.bandwidth`.
    pub fn of_config(pod: &str, config: &Value) -> Result<Self, LimitError> {
        let bandwidth = config.get("runtimeConfig").and_then(|runtime| runtime.get("bandwidth"));
        let annotated = |name| of_annotation(pod, config, name);
        let (ingress, egress) = (annotated(INGRESS)?, annotated(EGRESS)?);
        Ok(Self {
            ingress: ingress.or(of_runtime(pod, bandwidth, "ingressRate")?),
            egress: egress.or(of_runtime(pod, bandwidth, "egressRate")?),
        })
    }

    /// The policer that bounds the pod's egress.
    pub fn policer(&self) -> Option<PolicerValue> {
        let shaper = Shaper::of(self.egress?);
        // A tenth above the shaper's rate and two of its bursts: the shaper's own output always passes.
        Some(PolicerValue { rate: shaper.rate + shaper.rate / 10, burst: 2 * u64::from(shaper.burst) })
    }
}

/// A token bucket filter's parameters (tc-tbf(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shaper {
    /// Bytes per second, Ethernet headers included.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

impl Shaper {
    /// The largest segment that a pod's stack should hand to its shaper: 2 ms of the rate, from two frames to 64 KiB, so that
    /// a start at a low rate is not lost in the queue.
    pub fn segment(&self) -> u32 {
        u32::try_from((self.rate / 500).clamp(3_028, 65_536)).unwrap_or(65_536)
    }

    /// One that holds nothing back: for a device whose limit was removed.
    pub const fn open() -> Self {
        Self { rate: bulkhead_core::bandwidth::MAX / 8, burst: 1 << 31, limit: u32::MAX }
    }

    /// The shaper for a bandwidth: bursts of 8 ms, at least ten frames; a queue of 25 ms, at least forty frames.
    pub fn of(bandwidth: Bandwidth) -> Self {
        const FRAME: u64 = 1_514;
        let rate = bandwidth.bytes();
        let of_time = |milliseconds: u64, frames: u64| {
            let bytes = u128::from(rate) * u128::from(milliseconds) / 1_000;
            // Over 2 GB the kernel's 32-bit fields end; at such rates that is still milliseconds.
            u32::try_from(bytes.max(u128::from(frames * FRAME)).min(1 << 31)).unwrap_or(1 << 31)
        };
        let burst = of_time(8, 10);
        Self { rate, burst, limit: burst.saturating_add(of_time(25, 40)) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_come_before_what_the_runtime_made_of_them() {
        let config = json!({"runtimeConfig": {
            "bandwidth": {"ingressRate": 5_000_000, "egressRate": 0},
            (ANNOTATIONS): {(INGRESS): "10M"},
        }});
        let limits = Limits::of_config("a/p", &config).unwrap();
        assert_eq!(limits.ingress.map(Bandwidth::bits), Some(10_000_000));
        assert_eq!(limits.egress, None);
        assert_eq!(Limits::of_config("a/p", &json!({})), Ok(Limits::default()));
    }

    #[test]
    fn a_bad_value_names_the_pod_the_annotation_and_the_form() {
        for bad in ["10X", "0", "-1", "2P", ""] {
            let config = json!({"runtimeConfig": {(ANNOTATIONS): {(EGRESS): bad}}});
            let error = Limits::of_config("a/p", &config).unwrap_err().to_string();
            let source = bad.parse::<Bandwidth>().unwrap_err().to_string();
            assert!(error.contains("a/p") && error.contains(EGRESS) && error.contains(&source), "{error}");
        }
        for bad in [json!(-1), json!(2_000_000_000_000_000_u64), json!("10M"), json!(1.5), json!(999)] {
            let config = json!({"runtimeConfig": {"bandwidth": {"egressRate": bad}}});
            assert!(matches!(Limits::of_config("a/p", &config), Err(LimitError::Runtime { .. })), "{bad}");
        }
    }

    #[test]
    fn the_policer_lets_all_of_the_shaper_pass() {
        for bits in [1_000, 1_000_000, 100_000_000, 1_000_000_000, 1_000_000_000_000_000] {
            let limits = Limits { egress: Bandwidth::from_bits(bits).ok(), ingress: None };
            let (policer, shaper) = (limits.policer().unwrap(), Shaper::of(limits.egress.unwrap()));
            assert!(policer.rate >= shaper.rate && policer.burst >= 2 * u64::from(shaper.burst), "{bits}");
            assert!(shaper.burst >= 15_140 && shaper.limit > shaper.burst);
        }
    }
}

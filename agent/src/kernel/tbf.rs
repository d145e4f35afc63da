//! The token bucket filter: a shaper that holds a device's outgoing bytes to a rate.
//!
//! The kernel keeps the bucket as the time that it takes to fill at the rate. A bucket given in bytes (`TCA_TBF_BURST`) and a rate
//! above 4 GB/s (`TCA_TBF_RATE64`) travel in attributes of their own; the old fields are filled in beside them, as `tc` shows those.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcOption};

use super::op::{Op, REPLACE};
use super::qdisc::message;
use super::reply::{Attributes, u32_at};

/// `TCA_TBF_*` of `linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel computes transmission times itself and needs no table of them.
const LINKLAYER_ETHERNET: u8 = 1;
/// The kernel's unit of scheduling time, in nanoseconds (`PSCHED_SHIFT` of `include/net/pkt_sched.h`).
const TICK_NS: u128 = 64;
const SECOND_NS: u128 = 1_000_000_000;

/// A shaper that is wanted at the root of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TbfSpec {
    /// The device.
    pub index: u32,
    /// The rate in bytes per second; 0 is taken for 1, for the kernel would take it for no limit.
    pub bytes_per_second: u64,
    /// The bucket in bytes: so much passes at once. Less than the MTU and the kernel drops full-sized packets.
    pub burst_bytes: u32,
    /// The queue in bytes, the bucket not included; what does not fit is dropped.
    pub limit_bytes: u32,
}

/// A shaper as the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tbf {
    /// The rate in bytes per second.
    pub bytes_per_second: u64,
    /// The time that the bucket takes to fill, in ticks of 64 ns.
    pub burst_ticks: u32,
    /// The queue in bytes.
    pub limit_bytes: u32,
}

impl TbfSpec {
    fn rate(&self) -> u64 {
        self.bytes_per_second.max(1)
    }

    /// The time that the bucket takes to fill, in ticks.
    fn exact_ticks(&self) -> u128 {
        u128::from(self.burst_bytes) * SECOND_NS / u128::from(self.rate()) / TICK_NS
    }

    fn burst_ticks(&self) -> u32 {
        // Slower than that the old field cannot tell; the kernel obeys TCA_TBF_BURST, and shows this modulo 2^32.
        u32::try_from(self.exact_ticks()).unwrap_or(u32::MAX)
    }

    /// `struct tc_tbf_qopt`: two `tc_ratespec` (rate and no peak rate), then limit, bucket and an unused MTU.
    fn parameters(&self) -> Vec<u8> {
        let mut bytes = vec![0, LINKLAYER_ETHERNET];
        bytes.extend([0; 6]);
        bytes.extend(u32::try_from(self.rate()).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(self.limit_bytes.to_ne_bytes());
        bytes.extend(self.burst_ticks().to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

impl Tbf {
    /// Whether this is what `spec` asks for, but for the kernel's rounding of the bucket.
    pub fn is(&self, spec: &TbfSpec) -> bool {
        let exact = spec.exact_ticks();
        // The field is 32 bits wide and wraps; the kernel's own multiplication is good to one part in 2^24 or so.
        let wrapped = u32::try_from(exact & u128::from(u32::MAX)).unwrap_or_default();
        let slack = u32::try_from(exact >> 20).unwrap_or(u32::MAX).max(1);
        let apart = wrapped.wrapping_sub(self.burst_ticks);
        self.bytes_per_second == spec.rate()
            && self.limit_bytes == spec.limit_bytes
            && apart.min(apart.wrapping_neg()) <= slack
    }

    /// The bucket in bytes, to the precision of a tick.
    pub fn burst_bytes(&self) -> u64 {
        let bytes = u128::from(self.burst_ticks) * TICK_NS * u128::from(self.bytes_per_second) / SECOND_NS;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    pub(super) fn parse(options: &Attributes<'_>) -> Option<Self> {
        let parameters = options.bytes(TCA_TBF_PARMS)?;
        let narrow = u64::from(u32_at(parameters, 8)?);
        Some(Self {
            bytes_per_second: options.u64(TCA_TBF_RATE64).unwrap_or(narrow),
            burst_ticks: u32_at(parameters, 28)?,
            limit_bytes: u32_at(parameters, 24)?,
        })
    }
}

impl Op<'_> {
    /// Shapes a device's outgoing packets. A shaper that is there changes its values and keeps its queue.
    pub fn tbf(spec: &TbfSpec) -> Self {
        let mut message = message(spec.index, TcHandle::ROOT, TcHandle::UNSPEC, "tbf");
        let mut options = vec![
            TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, spec.parameters())),
            TcOption::Other(DefaultNla::new(TCA_TBF_BURST, spec.burst_bytes.to_ne_bytes().to_vec())),
        ];
        if spec.bytes_per_second > u64::from(u32::MAX) {
            let rate = spec.bytes_per_second.to_ne_bytes().to_vec();
            options.push(TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, rate)));
        }
        message.attributes.push(TcAttribute::Options(options));
        let operation = format!("shape link {} to {} bytes/s", spec.index, spec.bytes_per_second);
        Self::new(operation, RouteNetlinkMessage::NewQueueDiscipline(message), REPLACE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Netlink;
    use super::super::fixture::{in_new_netns, json_of, wired_pod};
    use super::*;

    const RATES_IN_BITS: [u64; 6] =
        [1_000, 1_000_000, 100_000_000, 1_000_000_000, 40_000_000_000, 1_000_000_000_000_000];

    fn shaper(host: &mut Netlink, index: u32) -> Option<Tbf> {
        host.qdiscs(index).unwrap().into_iter().find(|qdisc| qdisc.root).and_then(|qdisc| qdisc.tbf)
    }

    #[test]
    fn every_rate_reads_back_as_asked_here_and_in_tc() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            for bits in RATES_IN_BITS {
                let bytes_per_second = bits / 8;
                // About 10 ms of the rate; what the field holds at the fastest.
                let burst_bytes = u32::try_from((bytes_per_second / 100).clamp(20_000, 1 << 31)).unwrap();
                let spec = TbfSpec { index, bytes_per_second, burst_bytes, limit_bytes: 300_000 };
                pod.host.apply(Op::tbf(&spec)).unwrap();

                let tbf = shaper(&mut pod.host, index).unwrap();
                assert!(tbf.is(&spec), "{spec:?} {tbf:?}");
                assert!(!tbf.is(&TbfSpec { bytes_per_second: bytes_per_second + 1, ..spec }));
                assert!(!tbf.is(&TbfSpec { limit_bytes: 1, ..spec }));
                assert!(!tbf.is(&TbfSpec { burst_bytes: burst_bytes / 2, ..spec }));

                let shown = json_of("tc", &["-r", "-j", "qdisc", "show", "dev", "vethtest0", "root"]);
                let options = &shown[0]["options"];
                assert_eq!(shown[0]["kind"], "tbf", "{shown}");
                assert_eq!(options["rate"], bytes_per_second, "{shown}");
                assert_eq!(options["limit"], spec.limit_bytes, "{shown}");
                let tick_bytes = bytes_per_second * 64 / 1_000_000_000 + 1;
                assert!(tbf.burst_bytes().abs_diff(u64::from(burst_bytes)) <= 2 * tick_bytes, "{tbf:?} {burst_bytes}");
                // tc computes with whole microseconds.
                let shown_burst = options["burst"].as_u64().unwrap();
                let slack = 2 * tick_bytes + 2 * bytes_per_second / 1_000_000;
                assert!(shown_burst.abs_diff(u64::from(burst_bytes)) <= slack, "{shown} {burst_bytes}");
            }
        });
    }

    #[test]
    fn a_change_keeps_the_qdisc_and_a_deletion_ends_it() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            let spec = TbfSpec { index, bytes_per_second: 125_000, burst_bytes: 20_000, limit_bytes: 50_000 };
            let handle = |host: &mut Netlink| host.qdiscs(index).unwrap().iter().find(|q| q.root).map(|q| q.handle);
            pod.host.apply(Op::tbf(&spec)).unwrap();
            let before = handle(&mut pod.host);
            let faster = TbfSpec { bytes_per_second: 6_000_000_000, ..spec };
            pod.host.apply(Op::tbf(&faster)).unwrap();
            assert!(shaper(&mut pod.host, index).unwrap().is(&faster));
            assert_eq!(handle(&mut pod.host), before);
            // Down again from a 64-bit rate.
            pod.host.apply(Op::tbf(&spec)).unwrap();
            assert!(shaper(&mut pod.host, index).unwrap().is(&spec));
            pod.host.apply(Op::qdisc_delete(index)).unwrap();
            assert_eq!(shaper(&mut pod.host, index), None);
        });
    }

    #[test]
    fn no_rate_is_the_slowest_not_the_fastest() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let spec = TbfSpec { index: pod.host_index, bytes_per_second: 0, burst_bytes: 2_000, limit_bytes: 65_536 };
            pod.host.apply(Op::tbf(&spec)).unwrap();
            assert_eq!(shaper(&mut pod.host, spec.index).unwrap().bytes_per_second, 1);
        });
    }

    #[test]
    fn a_large_bucket_at_a_tiny_rate_is_recognised_though_its_field_wraps() {
        in_new_netns(|| {
            let mut pod = wired_pod();
            let spec =
                TbfSpec { index: pod.host_index, bytes_per_second: 125, burst_bytes: 65_536, limit_bytes: 65_536 };
            pod.host.apply(Op::tbf(&spec)).unwrap();
            assert!(shaper(&mut pod.host, spec.index).unwrap().is(&spec));
        });
    }
}

//! One run of one program: the skb that it sees, and what became of it.

use std::collections::BTreeMap;

use aya::programs::{TestRun, TestRunOptions};

use super::node::Node;

/// `sizeof(struct __sk_buff)` and offsets in it (`linux/bpf.h`). The kernel takes these fields from a test, and `cb`,
/// `priority`, `wire_len` and time stamps; the VLAN tag and the packet's type, among others, it refuses.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// What a program is given.
#[derive(Debug, Clone)]
pub struct Skb {
    pub bytes: Vec<u8>,
    /// The device that it is at; must be live.
    pub ifindex: u32,
    /// The device that it came in by; 0: made on this node.
    pub ingress: u32,
    pub mark: u32,
    pub gso_size: u32,
    pub gso_segs: u32,
}

impl Skb {
    /// As a device receives it.
    pub fn received(ifindex: u32, bytes: Vec<u8>) -> Self {
        Self { bytes, ifindex, ingress: ifindex, mark: 0, gso_size: 0, gso_segs: 0 }
    }

    /// As the host's stack sends it.
    pub fn sent(ifindex: u32, ingress: u32, mark: u32, bytes: Vec<u8>) -> Self {
        Self { bytes, ifindex, ingress, mark, gso_size: 0, gso_segs: 0 }
    }

    fn context(&self) -> [u8; CONTEXT] {
        let mut context = [0; CONTEXT];
        for (offset, value) in [
            (MARK, self.mark),
            (INGRESS_IFINDEX, self.ingress),
            (IFINDEX, self.ifindex),
            (GSO_SEGS, self.gso_segs),
            (GSO_SIZE, self.gso_size),
        ] {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        context
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `TC_ACT_SHOT`, counted once under this reason, with the frame's length.
    Dropped(&'static str),
    /// `TC_ACT_SHOT`, and not counted so.
    Vanished(BTreeMap<&'static str, (u64, u64)>),
    /// `TC_ACT_OK`, the frame as it was.
    Passed,
    /// `TC_ACT_UNSPEC`, the frame as it was.
    Unjudged,
    /// `TC_ACT_REDIRECT`, the frame as it was: into the overlay device.
    Tunnelled,
    /// `TC_ACT_REDIRECT`, the first twelve bytes changed: into a pod.
    Delivered([u8; 12]),
    /// `TC_ACT_REDIRECT`, another frame: an answer to the sender.
    Answered(Vec<u8>),
}

/// What a run leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub way: Way,
    pub mark: u32,
}

impl Outcome {
    /// The namespace index in the mark.
    pub fn index(&self) -> u32 {
        self.mark >> 16
    }
}

impl Node {
    /// Runs `program` once.
    pub fn run(&self, program: &'static str, skb: &Skb) -> Outcome {
        let before = self.counters();
        let (mut bytes, mut context) = (vec![0; skb.bytes.len() + 64], [0; CONTEXT]);
        let mut options = TestRunOptions::new();
        let input = skb.context();
        options.data_in = Some(&skb.bytes);
        options.data_out = Some(&mut bytes);
        options.ctx_in = Some(&input);
        options.ctx_out = Some(&mut context);
        let result = self.datapath.programs.program(program).unwrap().test_run(options).unwrap();
        bytes.truncate(result.data_size_out as usize);
        let after = self.counters();
        let mark = u32::from_ne_bytes(context[MARK..MARK + 4].try_into().unwrap());

        let drops: BTreeMap<&'static str, (u64, u64)> = after
            .into_iter()
            .map(|(reason, (packets, octets))| {
                let held = before.get(reason).copied().unwrap_or_default();
                (reason, (packets - held.0, octets - held.1))
            })
            .filter(|(_, change)| *change != (0, 0))
            .collect();
        let once = match drops.iter().next() {
            Some((reason, &change)) if drops.len() == 1 && change == (1, skb.bytes.len() as u64) => Some(*reason),
            _ => None,
        };
        let same = bytes == skb.bytes;
        let way = match (result.return_value.cast_signed(), once) {
            (2, Some(reason)) => Way::Dropped(reason),
            (2, None) => Way::Vanished(drops.clone()),
            (0, _) if same => Way::Passed,
            (-1, _) if same => Way::Unjudged,
            (7, _) if same => Way::Tunnelled,
            (7, _) if bytes.len() == skb.bytes.len() && bytes[12..] == skb.bytes[12..] => {
                Way::Delivered(bytes[..12].try_into().unwrap())
            }
            (7, _) => Way::Answered(bytes),
            (verdict, _) => panic!("{program}: verdict {verdict} with a frame that changed to {bytes:02x?}"),
        };
        let dropped = matches!(way, Way::Dropped(_) | Way::Vanished(_));
        assert!(dropped || drops.is_empty(), "{program}: {way:?}, and counted as dropped: {drops:?}");
        Outcome { way, mark }
    }

    /// Runs `program` on the same skb again and again; the mean time of a run in nanoseconds.
    pub fn repeat(&self, program: &'static str, skb: &Skb, times: u32) -> u64 {
        let input = skb.context();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&skb.bytes);
        options.ctx_in = Some(&input);
        options.repeat = times;
        let result = self.datapath.programs.program(program).unwrap().test_run(options).unwrap();
        u64::try_from(result.duration.as_nanos()).unwrap()
    }

    /// Packets and bytes that were dropped, by reason.
    pub fn counters(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let counts = self.datapath.drops.read().unwrap();
        counts.into_iter().map(|(reason, count)| (reason, (count.packets, count.bytes))).collect()
    }
}

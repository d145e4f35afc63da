//! eBPF programs at a device's clsact hook, through netlink: attached, replaced in place, read back, detached.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::error::KernelError;
use super::op::Op;
use super::qdisc::{HEADER_LEN, TCA_KIND, TCA_OPTIONS, message};
use super::reply::{Attributes, Reply, u32_at};
use super::socket::Netlink;

/// `RTM_NEWTFILTER` of `linux/rtnetlink.h`.
const RTM_NEWTFILTER: u16 = 44;
/// `TCA_BPF_*` of `linux/pkt_cls.h`.
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// `ETH_P_ALL`: the filter sees every protocol.
const ETH_P_ALL: u16 = 3;

/// Which packets of a device a filter sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Those that come in by the device.
    Ingress,
    /// Those that leave by it.
    Egress,
}

/// A program that is wanted at a hook. Index, hook, priority and handle together are its place.
#[derive(Debug, Clone)]
pub struct BpfFilterSpec<'fd> {
    /// The device.
    pub index: u32,
    /// Which packets.
    pub hook: Hook,
    /// The order among filters, from 1, the first. With 0 the kernel chooses, and no later operation finds the place again.
    pub priority: u16,
    /// The filter's number within its priority, from 1.
    pub handle: u32,
    /// What listings show.
    pub name: String,
    /// The loaded program (`BPF_PROG_TYPE_SCHED_CLS`).
    pub program: BorrowedFd<'fd>,
}

/// A filter as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `bpf`, `u32`, `flower`, ...
    pub kind: String,
    /// The order among filters.
    pub priority: u16,
    /// The number within the priority.
    pub handle: u32,
    /// An eBPF filter's name.
    pub name: Option<String>,
    /// An eBPF filter's program.
    pub program_id: Option<u32>,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { major: u16::MAX, minor }
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl<'fd> Op<'fd> {
    /// Attaches a program in direct-action mode, or exchanges the one in that place: between the two no packet passes unfiltered.
    /// The device needs [`Op::clsact`] first; the same batch will do.
    pub fn bpf_filter(spec: &BpfFilterSpec<'fd>) -> Self {
        let mut message = place(spec.index, spec.hook, spec.priority, spec.handle);
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(spec.program.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(spec.name.clone())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let operation = format!("attach {} to {} of link {}", spec.name, spec.hook, spec.index);
        // Without EXCL the kernel changes what is in that place; NLM_F_REPLACE means nothing to filters.
        Self::new(operation, RouteNetlinkMessage::NewTrafficFilter(message), netlink_packet_core::NLM_F_CREATE)
    }

    /// Detaches the filter in that place.
    pub fn bpf_filter_delete(index: u32, hook: Hook, priority: u16, handle: u32) -> Self {
        let operation = format!("detach filter {priority}/{handle} from {hook} of link {index}");
        let message = place(index, hook, priority, handle);
        // Without a clsact the kernel says EINVAL.
        Self::new(operation, RouteNetlinkMessage::DelTrafficFilter(message), 0).absent_if_invalid()
    }
}

impl Netlink {
    /// The filters at a hook of a device, in the kernel's order; none without clsact.
    pub fn filters(&mut self, index: u32, hook: Hook) -> Result<Vec<Filter>, KernelError> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = hook.parent();
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        self.dump(&format!("list filters at {hook} of link {index}"), &request, parse)
    }
}

fn place(index: u32, hook: Hook, priority: u16, handle: u32) -> TcMessage {
    let mut message = message(index, hook.parent(), TcHandle::from(handle), TcFilterBpf::KIND);
    message.header.info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

fn parse(reply: &Reply<'_>) -> Option<Filter> {
    if reply.kind != RTM_NEWTFILTER {
        return None;
    }
    let handle = u32_at(reply.body, 8)?;
    let info = u32_at(reply.body, 16)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let options = attributes.nest(TCA_OPTIONS);
    // A priority is announced by a message of its own, without a filter in it.
    attributes.bytes(TCA_OPTIONS)?;
    Some(Filter {
        kind: attributes.text(TCA_KIND)?,
        priority: u16::try_from(info >> 16).ok()?,
        handle,
        name: options.text(TCA_BPF_NAME),
        program_id: options.u32(TCA_BPF_ID),
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use aya::programs::SchedClassifier;
    use aya::{Ebpf, EbpfLoader};
    use rustix::io::Errno;

    use super::super::fixture::{in_new_netns, json_of, wired_pod};
    use super::*;

    /// Loads a program that lets everything pass; `value` sets it apart from others.
    fn load(value: i32) -> Ebpf {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) = (dir.path().join("pass.c"), dir.path().join("pass.o"));
        let text = format!(
            "__attribute__((section(\"classifier\"), used)) int pass(void *skb) {{ return {value}; }}\n\
             __attribute__((section(\"license\"), used)) char _license[] = \"GPL\";\n"
        );
        std::fs::write(&source, text).unwrap();
        let status = Command::new("clang")
            .args(["-O2", "-g", "-target", "bpf", "-c"])
            .arg(&source)
            .arg("-o")
            .arg(&object)
            .status();
        assert!(status.expect("this test needs clang").success());
        let mut object = EbpfLoader::new().load_file(object).unwrap();
        program(&mut object).load().expect("cannot load a BPF program: this test needs root (CAP_BPF)");
        object
    }

    fn program(object: &mut Ebpf) -> &mut SchedClassifier {
        object.program_mut("pass").unwrap().try_into().unwrap()
    }

    #[test]
    fn a_program_is_attached_exchanged_in_place_and_detached() {
        let (mut first, mut second) = (load(0), load(-1));
        in_new_netns(|| {
            let mut pod = wired_pod();
            let index = pod.host_index;
            for hook in [Hook::Ingress, Hook::Egress] {
                for object in [&mut first, &mut second] {
                    let program = program(object);
                    let spec = BpfFilterSpec {
                        index,
                        hook,
                        priority: 5,
                        handle: 3,
                        name: "bulkhead/pod".into(),
                        program: program.fd().unwrap().as_fd(),
                    };
                    pod.host.batch(vec![Op::clsact(index), Op::bpf_filter(&spec)]).unwrap();
                    let wanted = Filter {
                        kind: "bpf".into(),
                        priority: 5,
                        handle: 3,
                        name: Some("bulkhead/pod".into()),
                        program_id: Some(program.info().unwrap().id()),
                    };
                    assert_eq!(pod.host.filters(index, hook).unwrap(), [wanted]);
                }
                let shown = json_of("tc", &["-j", "filter", "show", "dev", "vethtest0", &hook.to_string()]);
                assert!(shown.to_string().contains("\"direct-action\":true"), "{shown}");
            }
            pod.host.apply(Op::bpf_filter_delete(index, Hook::Ingress, 5, 3)).unwrap();
            assert_eq!(pod.host.filters(index, Hook::Ingress).unwrap(), []);
            assert_eq!(pod.host.filters(index, Hook::Egress).unwrap().len(), 1);
            pod.host.apply(Op::bpf_filter_delete(index, Hook::Ingress, 5, 3).if_present()).unwrap();
        });
    }

    #[test]
    fn without_clsact_attaching_fails_and_listing_is_empty() {
        let mut object = load(0);
        in_new_netns(|| {
            let mut pod = wired_pod();
            let (index, hook) = (pod.host_index, Hook::Egress);
            let program = program(&mut object).fd().unwrap().as_fd();
            let spec = BpfFilterSpec { index, hook, priority: 1, handle: 1, name: "x".into(), program };
            let error = pod.host.apply(Op::bpf_filter(&spec)).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::INVAL));
            assert!(matches!(&error, KernelError::Refused { text: Some(_), .. }), "the kernel says why: {error}");
            assert_eq!(pod.host.filters(index, hook).unwrap(), []);
            pod.host.apply(Op::bpf_filter_delete(index, hook, 1, 1).if_present()).unwrap();
        });
    }
}

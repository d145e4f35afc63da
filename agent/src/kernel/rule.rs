//! Policy routing rules by firewall mark: which table packets of a mark look into.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage};

use super::address::family;
use super::error::KernelError;
use super::op::{CREATE, Op};
use super::reply::{Attributes, Reply, u32_at};
use super::socket::Netlink;

/// `RTM_NEWRULE` of `linux/rtnetlink.h`.
const RTM_NEWRULE: u16 = 32;
/// Length of `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;
/// `FRA_*`, `FR_ACT_*` and `FIB_RULE_*` of `linux/fib_rules.h`.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
/// `AF_INET` and `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];

/// A rule that sends packets by their mark to a table: `ip rule add [not] fwmark MARK/MASK lookup TABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The order among rules, lowest first.
    pub priority: u32,
    /// The mark that packets have in the bits of `fwmask`.
    pub fwmark: u32,
    /// The bits of the mark that are looked at; 0 is every packet.
    pub fwmask: u32,
    /// The rule is for all packets but those.
    pub invert: bool,
    /// The table.
    pub table: u32,
    /// Who made it (`RTPROT_*` of `linux/rtnetlink.h`).
    pub protocol: u8,
    /// For IPv6 packets, else for IPv4 ones.
    pub ipv6: bool,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header = RuleHeader {
            family: family(!self.ipv6),
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            action: RuleAction::ToTable,
            flags: if self.invert { RuleFlags::Invert } else { RuleFlags::empty() },
            ..RuleHeader::default()
        };
        message.attributes.extend([
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.fwmark),
            RuleAttribute::FwMask(self.fwmask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ]);
        message
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (family, not) = (if self.ipv6 { "IPv6" } else { "IPv4" }, if self.invert { "not " } else { "" });
        let Self { priority, fwmark, fwmask, table, .. } = self;
        write!(f, "{family} {priority}: {not}fwmark {fwmark:#x}/{fwmask:#x} lookup {table}")
    }
}

impl Op<'_> {
    /// Adds a rule; `EEXIST` if there is one like it.
    pub fn rule_add(rule: &Rule) -> Self {
        Self::new(format!("add rule {rule}"), RouteNetlinkMessage::NewRule(rule.message()), CREATE)
    }

    /// Deletes one rule of that priority, mark, mask, table and maker.
    pub fn rule_delete(rule: &Rule) -> Self {
        Self::new(format!("delete rule {rule}"), RouteNetlinkMessage::DelRule(rule.message()), 0)
    }
}

impl Netlink {
    /// The rules of both families that [`Rule`] can express. Those that look at anything but the mark are left out.
    pub fn rules(&mut self) -> Result<Vec<Rule>, KernelError> {
        self.dump("list rules", &RouteNetlinkMessage::GetRule(RuleMessage::default()), parse)
    }
}

fn parse(reply: &Reply<'_>) -> Option<Rule> {
    let &[family, dst_len, src_len, tos, table, _, _, action, ..] = reply.body else { return None };
    let flags = u32_at(reply.body, 8)?;
    let attributes = Attributes::behind(reply.body, HEADER_LEN);
    let understood = [FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PAD, FRA_PROTOCOL];
    let plain = attributes.kinds().all(|kind| match kind {
        // Every rule shows this; all ones means that nothing is suppressed.
        FRA_SUPPRESS_PREFIXLEN => attributes.u32(kind) == Some(u32::MAX),
        kind => understood.contains(&kind),
    });
    let by_mark = FAMILIES.contains(&family) && action == FR_ACT_TO_TBL && [dst_len, src_len, tos] == [0; 3];
    (reply.kind == RTM_NEWRULE && plain && by_mark).then(|| Rule {
        priority: attributes.u32(FRA_PRIORITY).unwrap_or_default(),
        fwmark: attributes.u32(FRA_FWMARK).unwrap_or_default(),
        fwmask: attributes.u32(FRA_FWMASK).unwrap_or_default(),
        invert: flags & FIB_RULE_INVERT != 0,
        table: attributes.u32(FRA_TABLE).unwrap_or(u32::from(table)),
        protocol: attributes.u8(FRA_PROTOCOL).unwrap_or_default(),
        ipv6: family == FAMILIES[1],
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::io::Errno;

    use super::super::fixture::{in_new_netns, json_of};
    use super::*;

    #[test]
    fn rules_are_added_once_read_back_and_deleted() {
        in_new_netns(|| {
            let mut netlink = Netlink::here().unwrap();
            let rule = |ipv6, invert, table| Rule {
                priority: 180,
                fwmark: 0,
                fwmask: 0xffff_0000,
                invert,
                table,
                protocol: 180,
                ipv6,
            };
            let marked = Rule { fwmark: 0x2000, fwmask: 0x2000, priority: 181, ..rule(false, false, 101) };
            for rule in [rule(false, true, 100), rule(true, true, 100), rule(false, true, 0x626b), marked] {
                netlink.apply(Op::rule_add(&rule)).unwrap();
                assert!(netlink.rules().unwrap().contains(&rule), "{rule}");
                assert_eq!(netlink.apply(Op::rule_add(&rule)).unwrap_err().errno(), Some(Errno::EXIST));
                netlink.apply(Op::rule_add(&rule).unless_present()).unwrap();
                netlink.apply(Op::rule_delete(&rule)).unwrap();
                assert!(!netlink.rules().unwrap().contains(&rule), "{rule}");
                assert!(netlink.apply(Op::rule_delete(&rule)).unwrap_err().is_absent());
                netlink.apply(Op::rule_delete(&rule).if_present()).unwrap();
            }
            netlink.apply(Op::rule_add(&rule(false, true, 100))).unwrap();
            let shown = json_of("ip", &["-j", "rule", "show", "priority", "180"]);
            assert!(shown[0].get("not").is_some(), "{shown}");
            assert_eq!((&shown[0]["fwmark"], &shown[0]["fwmask"]), (&"0".into(), &"0xffff0000".into()), "{shown}");
        });
    }

    #[test]
    fn a_rule_that_looks_at_more_than_the_mark_is_left_out() {
        in_new_netns(|| {
            let mut netlink = Netlink::here().unwrap();
            let before = netlink.rules().unwrap();
            assert!(before.iter().any(|rule| rule.table == super::super::MAIN_TABLE && rule.fwmask == 0), "{before:?}");
            for more in [["iif", "lo"], ["from", "10.0.0.0/8"], ["ipproto", "udp"]] {
                let status =
                    Command::new("ip").args(["rule", "add", "fwmark", "1", "lookup", "99"]).args(more).status();
                assert!(status.expect("this test needs `ip`").success());
            }
            assert_eq!(netlink.rules().unwrap(), before);
        });
    }
}

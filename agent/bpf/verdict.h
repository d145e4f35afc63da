/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Drops with their reason, and the one question of this product: may this namespace talk to that endpoint?
 */
#pragma once
#include <linux/pkt_cls.h>
#include "packet.h"

enum drop_reason {
#define REASON(number, name, counter, meaning) DROP_##name = number,
#include "reasons.h"
#undef REASON
};

static __always_inline struct state *get_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&state, &zero);
}

static __always_inline struct ns *get_ns(__u32 index)
{
	return bpf_map_lookup_elem(&namespaces, &index);
}

static __noinline int report(struct __sk_buff *skb, struct packet *p, __u64 reason_and_ns)
{
	__u32 reason = reason_and_ns & 0xff, source = (reason_and_ns >> 8) & 0xffff, destination = (reason_and_ns >> 24) & 0xffff;
	struct drop_event *event;
	__u64 now = bpf_ktime_get_ns(), *last = bpf_map_lookup_elem(&last_event, &reason);
	struct ns *ns;

	if (!p || !last || now - *last < EVENT_INTERVAL)
		return 0;
	*last = now;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return 0;
	event->time = now;
	event->reason = reason;
	event->ifindex = skb->ifindex;
	event->source = bpf_htonl(p->source);
	event->destination = bpf_htonl(p->destination);
	event->source_port = bpf_htons(p->source_port);
	event->destination_port = bpf_htons(p->destination_port);
	event->protocol = p->protocol;
	ns = get_ns(source);
	event->source_vni = ns ? ns->vni : 0;
	ns = get_ns(destination);
	event->destination_vni = ns ? ns->vni : 0;
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline void count_drop(struct __sk_buff *skb, __u32 reason)
{
	struct drop_count *count = bpf_map_lookup_elem(&drops, &reason);

	if (count) {
		count->packets++;
		count->bytes += skb->len;
	}
}

/* Counts and ends the packet. `source` and `destination` are namespace indices where they are known, else NS_NONE. */
static __always_inline int drop_between(struct __sk_buff *skb, struct packet *p, __u32 reason, __u32 source, __u32 destination)
{
	count_drop(skb, reason);
	report(skb, p, (__u64)reason | (__u64)(source & 0xffff) << 8 | (__u64)(destination & 0xffff) << 24);
	return TC_ACT_SHOT;
}

static __always_inline int drop(struct __sk_buff *skb, struct packet *p, __u32 reason)
{
	return drop_between(skb, p, reason, NS_NONE, NS_NONE);
}

/* A frame that is not IPv4. Every kernel speaks IPv6 on its own (MLD, router solicitations): that is no event. */
static __always_inline int drop_other(struct __sk_buff *skb)
{
	struct packet none = {};

	if (skb->protocol != bpf_htons(ETH_P_IPV6) || skb->vlan_present)
		return drop(skb, &none, DROP_NOT_IP);
	count_drop(skb, DROP_IPV6);
	return TC_ACT_SHOT;
}

/*
 * The verdict on (source namespace, destination endpoint): one function, so that finer rules have one place to go.
 * The bank is read once by the caller, so both sides are judged by the state of one transaction.
 */
static __always_inline int may_talk(__u32 bank, __u32 source, __u32 destination)
{
	struct ns *s = get_ns(source), *d = get_ns(destination);
	__u32 a, b;

	if (!s || !d || !(s->flags & d->flags & NS_ASSIGNED)) /* a zeroed or freed entry would read as global */
		return 0;
	a = s->net_id[bank & 1];
	b = d->net_id[bank & 1];
	return a == 0 || b == 0 || (a == b && a != NETID_NONE);
}

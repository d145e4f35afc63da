/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who is the source? Each packet has one answer, and doubt means drop (docs/architecture.md, "The datapath").
 */
#pragma once
#include "verdict.h"

static __always_inline struct address mapped(__u32 address)
{
	struct address key = { { 0, 0, bpf_htonl(0xffff), bpf_htonl(address) } };

	return key;
}

static __always_inline struct node_address *node_address_of(__u32 address)
{
	struct address key = mapped(address);

	return bpf_map_lookup_elem(&node_addresses, &key);
}

static __always_inline struct node *node_of(__u32 address)
{
	__u32 block = block_of(address);
	struct node *node = bpf_map_lookup_elem(&nodes, &block);

	return node && node->flags & NODE_PRESENT ? node : 0;
}

static __always_inline int is_gateway(__u32 address)
{
	return in_cluster(address) && host_part(address) == GATEWAY_PART;
}

/* An address of this very node. */
static __always_inline int is_own(__u32 address)
{
	struct node_address *own;

	if (in_cluster(address))
		return block_of(address) == LOCAL_BLOCK && host_part(address) == GATEWAY_PART;
	own = node_address_of(address);
	return own && own->flags & NODE_LOCAL;
}

static __always_inline struct endpoint *endpoint_of(__u32 address)
{
	__u32 host = host_part(address);
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &host);

	return ep && ep->ifindex && ep->ip4 == bpf_htonl(address) ? ep : 0;
}

static __always_inline void set_mark(struct __sk_buff *skb, __u32 ns)
{
	skb->mark = ns << MARK_SHIFT;
}

static __always_inline void clear_mark(struct __sk_buff *skb)
{
	skb->mark &= MARK_LOWER;
}

/*
 * The namespace index of a packet that the host's stack sends: from the mark if it came in by one of our devices, else
 * from its address. NS_NONE with the reason in *reason: drop.
 */
static __always_inline __u32 source_in_stack(struct __sk_buff *skb, __u32 source, __u32 *reason)
{
	__u32 iif = skb->ingress_ifindex;

	if (iif && bpf_map_lookup_elem(&ports, &iif)) {
		__u32 index = skb->mark >> MARK_SHIFT;
		struct ns *ns = get_ns(index);

		*reason = DROP_UNMARKED;
		return index && ns && ns->flags & NS_ASSIGNED ? index : NS_NONE;
	}
	*reason = DROP_CLUSTER_SOURCE;
	return !in_cluster(source) || is_own(source) ? NS_NODE : NS_NONE;
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The overlay device, a VXLAN device in collect-metadata mode. to_overlay gives each packet its VNI and its peer;
 * from_overlay believes a packet only from the node that owns its inner source, judges it and delivers it.
 */
#pragma once
#include "pod.h"

SEC("classifier")
int to_overlay(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	struct node_address *address;
	struct packet p = {};
	__u32 source, reason, direct;
	struct node *node;
	struct ns *ns;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop_other(skb);
	if (read_ipv4(skb, &p))
		return drop(skb, &p, DROP_MALFORMED);
	source = source_in_stack(skb, p.source, &reason);
	if (source == NS_NONE)
		return drop(skb, &p, reason);
	ns = get_ns(source);
	if (!ns || source == NS_UNKNOWN)
		return drop(skb, &p, DROP_UNMARKED);
	/* The peer believes only our own pods' and our own addresses. */
	if (!(in_cluster(p.source) && block_of(p.source) == LOCAL_BLOCK) && !is_own(p.source))
		return drop_between(skb, &p, DROP_FOREIGN_SOURCE, source, NS_NONE);
	if (in_cluster(p.destination)) {
		node = node_of(p.destination);
		if (!node || node->flags & NODE_LOCAL)
			return drop_between(skb, &p, DROP_NO_NODE, source, NS_NONE);
		key.remote_ipv4 = bpf_ntohl(node->remote4);
	} else {
		address = node_address_of(p.destination);
		if (!address || address->flags & NODE_LOCAL)
			return drop_between(skb, &p, DROP_NO_NODE, source, NS_NONE);
		key.remote_ipv4 = bpf_ntohl(address->remote4);
	}
	key.tunnel_id = ns->vni;
	key.local_ipv4 = NODE_IP;
	key.tunnel_ttl = 64;
	key.tunnel_tos = p.tos & 0xfc; /* DSCP; the device adds ECN (RFC 6040) */
	/*
	 * A pod's own packets ask routers what fits, and too_big.h passes the answer on. What comes from the host's stack is
	 * cut on the way if need be: set_tunnel_key takes the route from the packet, so that the stack cannot learn.
	 */
	direct = skb->tc_index == DIRECT;
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), p.df && direct ? BPF_F_DONT_FRAGMENT : 0))
		return drop_between(skb, &p, DROP_NO_ROOM, source, NS_NONE);
	if (direct)
		skb->tc_index = 0;
	clear_mark(skb);
	return TC_ACT_OK;
}

/* To this node's own stack, with its namespace. */
static __always_inline int into_stack(struct __sk_buff *skb, __u32 ns)
{
	set_mark(skb, ns);
	bpf_skb_change_type(skb, 0 /* PACKET_HOST: the inner frame is addressed to nobody in particular */);
	return TC_ACT_OK;
}

SEC("classifier")
int from_overlay(struct __sk_buff *skb)
{
	struct state *state = get_state();
	struct bpf_tunnel_key key = {};
	struct node_address *address;
	__u32 *index, source, vni;
	struct packet p = {};
	struct endpoint *ep;
	struct node *node;

	if (!state)
		return TC_ACT_SHOT;
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present)
		return drop_other(skb);
	if (read_ipv4(skb, &p) || bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop(skb, &p, DROP_MALFORMED);
	vni = key.tunnel_id;

	/* The peer must be the very node that owns the inner source. */
	if (in_cluster(p.source)) {
		node = node_of(p.source);
		if (!node || node->flags & NODE_LOCAL || node->remote4 != bpf_htonl(key.remote_ipv4)) {
			address = node_address_of(key.remote_ipv4);
			return drop(skb, &p, address ? DROP_WRONG_PEER : DROP_UNKNOWN_PEER);
		}
		/* A node's own address comes with any VNI: a tenant's masqueraded traffic leaves under it. A pod's does not. */
		if (!vni && host_part(p.source) != GATEWAY_PART)
			return drop(skb, &p, DROP_VNI_ZERO);
	} else {
		address = node_address_of(p.source);
		if (!address || address->flags & NODE_LOCAL || address->remote4 != bpf_htonl(key.remote_ipv4)) {
			address = node_address_of(key.remote_ipv4);
			return drop(skb, &p, address ? DROP_WRONG_PEER : DROP_UNKNOWN_PEER);
		}
	}
	index = bpf_map_lookup_elem(&vnis, &vni);
	source = index ? *index : NS_UNKNOWN;

	if (is_own(p.destination))
		return into_stack(skb, source);
	if (!in_cluster(p.destination) || block_of(p.destination) != LOCAL_BLOCK)
		return drop_between(skb, &p, DROP_NOT_HERE, source, NS_NONE);
	ep = endpoint_of(p.destination);
	if (!ep)
		return drop_between(skb, &p, DROP_NO_ENDPOINT, source, NS_NONE);
	if (!may_talk(state->bank, source, ep->ns))
		return drop_between(skb, &p, DROP_ISOLATED, source, ep->ns);
	if (p.fragment || p.destination_port >= SERVICE_PORTS)
		return into_stack(skb, source);
	set_mark(skb, source);
	bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	return deliver(skb, ep);
}

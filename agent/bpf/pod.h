/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A pod's two directions. from_pod: the frame is the pod's own or it is dropped; then the shortest way to its
 * destination. to_pod: the last gate before a pod for what the host's stack sends.
 */
#pragma once
#include "too_big.h"

struct arp_ipv4 { /* RFC 826, for Ethernet and IPv4 */
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

/* A pod's ARP speaks for itself only. A probe (RFC 5227) has no sender address yet and asks for its own. */
static __always_inline int arp_from_pod(struct __sk_buff *skb)
{
	struct packet p = {};
	struct arp_ipv4 *arp;
	struct endpoint *ep;
	struct ethhdr *eth;
	__be32 sender, target;

	if (linear(skb, ETH_HLEN + sizeof(*arp)))
		return drop(skb, &p, DROP_MALFORMED);
	eth = (void *)(long)skb->data;
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		return drop(skb, &p, DROP_MALFORMED);
	__builtin_memcpy(&sender, arp->sender_ip, 4);
	__builtin_memcpy(&target, arp->target_ip, 4);
	p.source = bpf_ntohl(sender);
	p.destination = bpf_ntohl(target);
	ep = endpoint_of(sender ? p.source : p.destination);
	if (!ep || ep->ifindex != skb->ifindex || !same_mac(arp->sender_mac, ep->mac) || !same_mac(eth->h_source, ep->mac))
		return drop_between(skb, &p, DROP_SPOOFED_ARP, ep ? ep->ns : NS_NONE, NS_NONE);
	return TC_ACT_OK;
}

/* Whether the pod stays within its egress limit. Only what went past the pod's own shaper ever fails. */
static __always_inline int within_limit(struct __sk_buff *skb, __u32 host)
{
	struct policer *policer = bpf_map_lookup_elem(&policers, &host);
	__u64 now, arrival, next, charge;
	__u32 bytes = skb->len, segments = skb->gso_segs;

	if (!policer || !policer->cost)
		return 1;
	if (!segments && skb->gso_size) /* a packet socket leaves the count to whoever cuts the packet */
		segments = skb->len / skb->gso_size + 1;
	if (segments > 1) /* each segment has headers of its own on the wire: Ethernet, IPv4, TCP with time stamps */
		bytes += (segments - 1) * 66;
	/* In two parts, for the product of many bytes at a low rate is more than 64 bits hold. */
	charge = bytes * (policer->cost >> POLICER_SHIFT);
	charge += (bytes * (policer->cost & ((1u << POLICER_SHIFT) - 1))) >> POLICER_SHIFT;
	now = bpf_ktime_get_ns();
	arrival = policer->arrival;
	next = (arrival > now ? arrival : now) + charge;
	if (next - now > policer->burst)
		return 0;
	/* Whoever loses the race to catch up with the clock pays too: the bound must hold on any number of CPUs. */
	if (arrival > now || __sync_val_compare_and_swap(&policer->arrival, arrival, next) != arrival)
		__sync_fetch_and_add(&policer->arrival, charge);
	return 1;
}

/* Delivery on this node: the frame gets the pod's addresses and goes straight into its netns, or through its shaper. */
static __always_inline int deliver(struct __sk_buff *skb, struct endpoint *ep)
{
	void *data = (void *)(long)skb->data;

	if (data + ETH_HLEN > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, ep->mac, 6);
	__builtin_memcpy(data + 6, ep->gw_mac, 6);
	if (ep->flags & EP_SHAPED)
		return bpf_redirect(ep->ifindex, 0);
	clear_mark(skb);
	return bpf_redirect_peer(ep->ifindex, 0);
}

/*
 * Only a node ends tunnels, and a pod is none. A host may have devices that take any sender's packet apart (tunl0, gre0,
 * sit0 are there by themselves once their module is), and what comes out of them is not marked.
 */
static __always_inline int is_tunnel(struct packet *p)
{
	switch (p->protocol) {
	case IPPROTO_UDP:
		return p->destination_port == VXLAN_PORT;
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
	case 115: /* L2TP (RFC 3931) */
	case 137: /* MPLS in IP (RFC 4023) */
		return 1;
	default:
		return 0;
	}
}

static __always_inline int ipv4_from_pod(struct __sk_buff *skb, struct state *state)
{
	struct packet p;
	struct endpoint *ep, *to;
	struct node_address *address;
	struct ethhdr *eth;
	__be32 remote;
	__u32 ns, service, narrow, mtu;

	if (read_ipv4(skb, &p)) {
		struct packet none = {};

		return drop(skb, &none, DROP_MALFORMED);
	}
	ep = endpoint_of(p.source);
	if (!ep || ep->ifindex != skb->ifindex)
		return drop(skb, &p, DROP_SPOOFED_IP);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return drop(skb, &p, DROP_MALFORMED);
	ns = ep->ns;
	if (!same_mac(eth->h_source, ep->mac))
		return drop_between(skb, &p, DROP_SPOOFED_MAC, ns, NS_NONE);
	if (ep->flags & EP_POLICED && !within_limit(skb, host_part(p.source)))
		return drop_between(skb, &p, DROP_POLICED, ns, NS_NONE);
	set_mark(skb, ns);

	service = p.fragment || p.source_port >= SERVICE_PORTS;
	if (in_cluster(p.destination) && host_part(p.destination) != GATEWAY_PART) {
		if (block_of(p.destination) == LOCAL_BLOCK) {
			to = endpoint_of(p.destination);
			if (!to)
				return drop_between(skb, &p, DROP_NO_ENDPOINT, ns, NS_NONE);
			if (!may_talk(state->bank, ns, to->ns))
				return drop_between(skb, &p, DROP_ISOLATED, ns, to->ns);
			if (service || p.destination_port >= SERVICE_PORTS)
				return TC_ACT_OK;
			if (skb->pkt_type)
				bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
			return deliver(skb, to);
		}
		struct node *node = node_of(p.destination);

		if (!node)
			return drop_between(skb, &p, DROP_NO_NODE, ns, NS_NONE);
		remote = node->remote4;
		mtu = node->mtu;
	} else {
		if (is_tunnel(&p))
			return drop_between(skb, &p, DROP_POD_VXLAN, ns, NS_NONE);
		if (is_gateway(p.destination)) {
			struct node *node = node_of(p.destination);

			if (block_of(p.destination) == LOCAL_BLOCK)
				return TC_ACT_OK;
			if (!node)
				return drop_between(skb, &p, DROP_NO_NODE, ns, NS_NONE);
			remote = node->remote4;
			mtu = node->mtu;
		} else {
			address = node_address_of(p.destination);
			if (!address || address->flags & NODE_LOCAL)
				return TC_ACT_OK; /* this node, a service, the outside */
			remote = address->remote4;
			mtu = address->mtu;
		}
	}
	if (service)
		return TC_ACT_OK;
	narrow = narrowest(skb, &p, remote, mtu);
	if (narrow == USE_STACK)
		return TC_ACT_OK;
	if (narrow != FITS)
		return answer_too_big(skb, &p, ep, narrow);
	skb->tc_index = DIRECT;
	return bpf_redirect(state->overlay_ifindex, 0);
}

SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	struct state *state = get_state();

	if (!state)
		return TC_ACT_SHOT;
	skb->tc_index = 0; /* a pod can set it on its own side */
	if (skb->vlan_present) /* the tag is beside the frame: its protocol alone looks like an IPv4 packet's */
		return drop_other(skb);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return ipv4_from_pod(skb, state);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return arp_from_pod(skb);
	return drop_other(skb);
}

SEC("classifier")
int to_pod(struct __sk_buff *skb)
{
	struct state *state = get_state();
	struct packet p = {};
	struct endpoint *ep;
	__u32 source, reason;

	if (!state)
		return TC_ACT_SHOT;
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK; /* made by this node's stack alone: nothing else can send here without an IP packet */
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return drop_other(skb);
	if (read_ipv4(skb, &p))
		return drop(skb, &p, DROP_MALFORMED);
	source = source_in_stack(skb, p.source, &reason);
	if (source == NS_NONE)
		return drop(skb, &p, reason);
	ep = endpoint_of(p.destination);
	if (!ep || ep->ifindex != skb->ifindex)
		return drop_between(skb, &p, DROP_NO_ENDPOINT, source, NS_NONE);
	if (!may_talk(state->bank, source, ep->ns))
		return drop_between(skb, &p, DROP_ISOLATED, source, ep->ns);
	clear_mark(skb);
	return TC_ACT_OK;
}

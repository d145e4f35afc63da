/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Path MTU (RFC 1191) for a pod's packets into the tunnel. The route to the peer may be narrower than the underlay device,
 * by configuration or by what a router said; the host's stack knows, but a forwarding stack does not pass on what it has
 * learned (net.ipv4.ip_forward_use_pmtu), for any forged error could then narrow everybody's path. So the answer is made
 * here, for this very packet, and needs no state.
 */
#pragma once
#include "source.h"

#define TUNNEL_ROOM 50 /* outer IPv4, UDP, VXLAN and inner Ethernet headers */
#define SURELY_FITS 1230 /* with the tunnel's headers the smallest MTU of IPv6, which any sane underlay has */

#define FITS 0
#define USE_STACK 1 /* any other answer of narrowest() is the MTU that does fit */

/* Whether the packet, or each of its segments, fits the tunnel on its way to `remote4`. */
static __always_inline __u32 narrowest(struct __sk_buff *skb, struct packet *p, __be32 remote4, __u32 mtu)
{
	__u32 length = skb->len - ETH_HLEN;
	struct bpf_fib_lookup fib = {};

	if (skb->gso_size) {
		__u8 words = 2 << 4; /* a UDP header's length, in TCP's notation */

		if (p->protocol == IPPROTO_TCP && bpf_skb_load_bytes(skb, ETH_HLEN + p->header + 12, &words, 1))
			return USE_STACK;
		length = skb->gso_size + p->header + (words >> 4) * 4;
	}
	if (length > OVERLAY_MTU)
		return USE_STACK;
	if (length <= SURELY_FITS)
		return FITS;
	fib.family = 2; /* AF_INET */
	fib.ifindex = skb->ifindex;
	fib.ipv4_src = bpf_htonl(NODE_IP);
	fib.ipv4_dst = remote4;
	fib.l4_protocol = IPPROTO_UDP;
	fib.tot_len = length + TUNNEL_ROOM;
	/* What a router said is known here at once. What the route was given, without a lock, is not: the agent tells. */
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SKIP_NEIGH) == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		mtu = mtu && mtu < fib.mtu_result ? mtu : fib.mtu_result;
	else if (!mtu || length + TUNNEL_ROOM <= mtu)
		return FITS;
	/* Without DF it may be cut: the tunnel's own packet is, by the stack. Errors are not answered by errors (RFC 1122). */
	if (!p->df || p->header != sizeof(struct iphdr) || p->protocol == IPPROTO_ICMP)
		return USE_STACK;
	return mtu > TUNNEL_ROOM + 68 ? mtu - TUNNEL_ROOM : USE_STACK;
}

struct too_big { /* ICMP destination unreachable, fragmentation needed (RFC 792, RFC 1191) */
	struct ethhdr eth;
	struct iphdr ip;
	struct {
		__u8 type, code;
		__u16 check;
		__be16 unused, mtu;
		__u8 quote[sizeof(struct iphdr) + 8];
	} icmp;
} __attribute__((packed));

static __always_inline __u16 checksum(void *data, __u32 length)
{
	__u32 sum = bpf_csum_diff(0, 0, data, length, 0);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Turns the packet into its answer and sends it back to the pod, in the gateway's name. */
static __always_inline int answer_too_big(struct __sk_buff *skb, struct packet *p, struct endpoint *ep, __u32 mtu)
{
	struct too_big answer = {};

	if (bpf_skb_load_bytes(skb, ETH_HLEN, answer.icmp.quote, sizeof(answer.icmp.quote)))
		return drop(skb, p, DROP_MALFORMED);
	__builtin_memcpy(answer.eth.h_dest, ep->mac, 6);
	__builtin_memcpy(answer.eth.h_source, ep->gw_mac, 6);
	answer.eth.h_proto = bpf_htons(ETH_P_IP);
	answer.icmp.type = ICMP_UNREACHABLE;
	answer.icmp.code = 4;
	answer.icmp.mtu = bpf_htons(mtu);
	answer.icmp.check = checksum(&answer.icmp, sizeof(answer.icmp));
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tos = 0xc0;
	answer.ip.tot_len = bpf_htons(sizeof(answer) - ETH_HLEN);
	answer.ip.ttl = 64;
	answer.ip.protocol = IPPROTO_ICMP;
	answer.ip.saddr = bpf_htonl(NETWORK_BASE | LOCAL_BLOCK << HOST_BITS | GATEWAY_PART);
	answer.ip.daddr = ep->ip4;
	answer.ip.check = checksum(&answer.ip, sizeof(answer.ip));
	if (bpf_skb_change_tail(skb, sizeof(answer), 0) || bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), 0))
		return drop(skb, p, DROP_NO_ROOM);
	set_mark(skb, NS_NODE); /* to_pod asks who sends: a namespace that is gone does not reach even itself */
	return bpf_redirect(skb->ifindex, 0);
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The underlay devices' ingress: the cluster network exists inside the tunnel only. The fast path (VXLAN from a known peer
 * to a local pod, judged and delivered here) has its place behind the check; what it leaves goes on to the VXLAN device.
 */
#pragma once
#include "source.h"

SEC("classifier")
int from_underlay(struct __sk_buff *skb)
{
	struct packet p = {};
	struct iphdr ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	/* From the network header: not every underlay device has Ethernet's (WireGuard, tun). */
	if (bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET))
		return TC_ACT_UNSPEC;
	p.source = bpf_ntohl(ip.saddr);
	p.destination = bpf_ntohl(ip.daddr);
	p.protocol = ip.protocol;
	if (in_cluster(p.source) || in_cluster(p.destination))
		return drop(skb, &p, DROP_BARE);
	return TC_ACT_UNSPEC;
}

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
	struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (linear(skb, ETH_HLEN + sizeof(*ip)))
		return TC_ACT_UNSPEC;
	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	p.source = bpf_ntohl(ip->saddr);
	p.destination = bpf_ntohl(ip->daddr);
	p.protocol = ip->protocol;
	if (in_cluster(p.source) || in_cluster(p.destination))
		return drop(skb, &p, DROP_BARE);
	return TC_ACT_UNSPEC;
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a frame says: addresses, protocol, ports. It may assume an Ethernet header at the frame's start and promises
 * bounds-checked reads; what cannot be read is MALFORMED.
 */
#pragma once
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include "maps.h"

/* Ports above Linux' ephemeral range: a local pod's port here means a flow that the host's stack translated. */
#define SERVICE_PORTS 61000

/* ICMP (RFC 792): linux/icmp.h wants the C library's headers. */
#define ICMP_HEADER 8
#define ICMP_UNREACHABLE 3
#define ICMP_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12

#define IP_FRAGMENT 0x3fff /* offset and "more fragments" */
#define IP_DF 0x4000

struct packet {
	__u32 source, destination; /* host order */
	__u16 source_port, destination_port; /* host order; of an ICMP error: the other way round, as quoted */
	__u8 protocol;
	__u8 fragment;
	__u8 df;
	__u8 tos;
	__u16 length;      /* of the IP packet, as its header says; GSO packets may say 0 */
	__u16 header;      /* of the IP header, bytes */
};

/* Pulls `length` bytes into the linear part. The pointers before it are void afterwards. */
static __always_inline int linear(struct __sk_buff *skb, __u32 length)
{
	if ((void *)(long)skb->data + length <= (void *)(long)skb->data_end)
		return 0;
	return bpf_skb_pull_data(skb, length);
}

static __always_inline int is_icmp_error(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_QUENCH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* The ports of the packet that an ICMP error quotes. */
static __noinline __u32 quoted_ports(struct __sk_buff *skb, __u32 icmp)
{
	__u32 ports = 0;
	struct iphdr quoted;

	if (bpf_skb_load_bytes(skb, icmp + ICMP_HEADER, &quoted, sizeof(quoted)))
		return 0;
	if (!has_ports(quoted.protocol))
		return 0;
	bpf_skb_load_bytes(skb, icmp + ICMP_HEADER + quoted.ihl * 4, &ports, sizeof(ports));
	return ports;
}

static __always_inline int read_ports(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = ETH_HLEN + p->header;
	__be16 ports[2];

	if (p->fragment)
		return 0;
	if (has_ports(p->protocol)) {
		if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
			return -1;
		p->source_port = bpf_ntohs(ports[0]);
		p->destination_port = bpf_ntohs(ports[1]);
	} else if (p->protocol == IPPROTO_ICMP) {
		__u8 type;

		if (bpf_skb_load_bytes(skb, at, &type, sizeof(type)))
			return -1;
		if (is_icmp_error(type)) {
			__u32 quoted = quoted_ports(skb, at);

			p->source_port = bpf_ntohs(quoted >> 16);
			p->destination_port = bpf_ntohs(quoted & 0xffff);
		}
	}
	return 0;
}

/* Reads the IPv4 packet behind the Ethernet header; non-zero: MALFORMED. */
static __always_inline int read_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip;
	void *data, *end;
	__u16 frag;

	if (linear(skb, ETH_HLEN + sizeof(*ip)))
		return -1;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return -1;
	frag = bpf_ntohs(ip->frag_off);
	p->source = bpf_ntohl(ip->saddr);
	p->destination = bpf_ntohl(ip->daddr);
	p->protocol = ip->protocol;
	p->tos = ip->tos;
	p->length = bpf_ntohs(ip->tot_len);
	p->header = ip->ihl * 4;
	p->fragment = (frag & IP_FRAGMENT) != 0;
	p->df = (frag & IP_DF) != 0;
	p->source_port = 0;
	p->destination_port = 0;
	/* Ports straight from the linear part where they are: nearly always. */
	if (ip->ihl == 5 && !p->fragment && has_ports(p->protocol)) {
		__be16 *ports = (void *)(ip + 1);

		if ((void *)(ports + 2) <= end) {
			p->source_port = bpf_ntohs(ports[0]);
			p->destination_port = bpf_ntohs(ports[1]);
			return 0;
		}
	}
	return read_ports(skb, p);
}

static __always_inline int in_cluster(__u32 address)
{
	return address - NETWORK_BASE < NETWORK_SIZE;
}

static __always_inline __u32 block_of(__u32 address)
{
	return (address - NETWORK_BASE) >> HOST_BITS;
}

static __always_inline __u32 host_part(__u32 address)
{
	return address & ((1u << HOST_BITS) - 1);
}

#define GATEWAY_PART 1 /* the host part of a node's own address on the overlay device */

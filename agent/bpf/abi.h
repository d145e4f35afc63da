/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and the agent share in memory: map values, flags, the mark. Integers only, explicit padding.
 * datapath/abi.rs writes and reads the same bytes; its test holds each offset against these structs by BTF.
 * A change of any layout here raises ABI_VERSION, which names the folder of the pinned maps.
 */
#pragma once
#include <linux/types.h>

#define ABI_VERSION 1

/* The namespace's index travels in the upper half of skb->mark; kube-proxy and kubelet use bits of the lower half. */
#define MARK_SHIFT 16
#define MARK_LOWER 0xffffu
/* In skb->tc_index, from from_pod straight to to_overlay: the stack never saw it. The mark's lower half is others'. */
#define DIRECT 0x626b

/* Namespace indices. */
#define NS_NONE 0    /* no mark: never a namespace */
#define NS_NODE 1    /* the nodes' own, and the outside: VNI 0 */
#define NS_UNKNOWN 2 /* a VNI that this node does not know (yet) */
#define NS_FIRST 3
#define NS_MAX 65536

/* In place of a NetID: reaches NetID 0 only, not even its like. */
#define NETID_NONE 0xffffffffu

struct ns {
	__u32 vni;
	__u32 net_id[2]; /* one for each bank */
	__u32 flags;
};
#define NS_ASSIGNED 1u

/* One element: read once per packet. */
struct state {
	__u32 bank; /* which NetIDs hold: switched after the other bank is written, so a transaction applies at once */
	__u32 overlay_ifindex;
	__u64 origin; /* the agent's: which state of etcd the NetIDs are of; 0: not told (it was reserved once) */
};

struct node { /* by block: the part of an address between the cluster's prefix and the host part */
	__be32 remote4; /* its underlay address */
	__u32 flags;
	__u32 mtu; /* of the route to it, if that is narrower than its device; else 0 */
	__u32 reserved;
	__u8 remote6[16];
};
#define NODE_PRESENT 1u
#define NODE_LOCAL 2u

struct address { /* IPv4 as ::ffff:a.b.c.d */
	__u32 word[4];
};

struct node_address { /* by address: every address of every node, its gateway address aside */
	__be32 remote4; /* where the tunnel to it ends */
	__u32 flags;    /* NODE_* */
	__u32 mtu;      /* as struct node's */
	__u32 reserved;
	__u8 remote6[16];
};

struct endpoint { /* a pod of this node, by the host part of its address */
	__be32 ip4;
	__u32 ifindex; /* the host's side of its veth; 0: no such pod */
	__u32 ns;      /* namespace index */
	__u32 flags;
	__u8 mac[6];     /* its own, then the gateway's: ready to be copied over a frame's start */
	__u8 gw_mac[6];
	__u32 reserved0;
	__u8 ip6[16];
	__u32 reserved1[4];
};
#define EP_SHAPED 1u  /* a qdisc on the host's side must see what goes to it */
#define EP_POLICED 2u /* its egress has a limit: see policers */

/* The guaranteed bound of a pod's egress: a virtual-scheduling token bucket (ITU-T I.371, GCRA) in one word. */
struct policer {
	__u64 arrival; /* theoretical arrival time, ns of CLOCK_MONOTONIC */
	__u64 cost;    /* ns per byte, times 2^24 */
	__u64 burst;   /* ns by which the arrival may run ahead */
	__u64 reserved;
};
#define POLICER_SHIFT 24

struct drop_count {
	__u64 packets;
	__u64 bytes;
};

struct drop_event {
	__u64 time; /* ns of CLOCK_MONOTONIC */
	__u32 reason;
	__u32 ifindex;
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
	__u32 source_vni;
	__u32 destination_vni;
};
/* No map holds it, so it is in no BTF: the offsets that abi.rs reads by are held here. */
_Static_assert(sizeof(struct drop_event) == 40 && __builtin_offsetof(struct drop_event, source) == 16 &&
	       __builtin_offsetof(struct drop_event, source_port) == 24 &&
	       __builtin_offsetof(struct drop_event, protocol) == 28 &&
	       __builtin_offsetof(struct drop_event, destination_vni) == 36, "datapath/abi.rs reads drop_event");

/* What a device in the host's netns is to us. */
#define PORT_POD 1u
#define PORT_OVERLAY 2u

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * All state that outlives a program: pinned, adopted by the next agent after a check of its layout. Sizes that depend on
 * the cluster's network are set by the loader. Hot look-ups are ARRAYs, which the JIT inlines.
 */
#pragma once
#include "abi.h"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NS_MAX);
	__type(key, __u32);
	__type(value, struct ns);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} namespaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NS_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* VNI */
	__type(value, __u32); /* namespace index */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} vnis SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* blocks of the cluster's network */
	__type(key, __u32);
	__type(value, struct node);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct node_address);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} node_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* addresses of a node's subnet */
	__type(key, __u32);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* as endpoints */
	__type(key, __u32);
	__type(value, struct policer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* ifindex */
	__type(value, __u32); /* PORT_* */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32); /* reason */
	__type(value, struct drop_count);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32); /* reason */
	__type(value, __u64); /* when its last event was sent */
} last_event SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

/* Set by the loader before the programs are loaded. Host byte order. */
const volatile __u32 NETWORK_BASE = 0; /* the cluster's IPv4 network */
const volatile __u32 NETWORK_SIZE = 0; /* addresses in it */
const volatile __u32 HOST_BITS = 8;    /* host bits of one node's subnet */
const volatile __u32 LOCAL_BLOCK = 0;  /* this node's block */
const volatile __u32 NODE_IP = 0;      /* this node's underlay address */
const volatile __u32 VXLAN_PORT = 4789;
const volatile __u32 OVERLAY_MTU = 1450; /* what fits the tunnel on a path of the underlay device's MTU */
const volatile __u32 EVENT_INTERVAL = 100000000; /* ns between two events of one reason on one CPU */

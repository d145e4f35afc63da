/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Why a packet was dropped. The one list that the programs and the agent share: build.rs reads these lines.
 *
 * REASON(number, NAME, "name in counters", "what it means, for a person")
 * Included with REASON defined. Numbers are never given to another reason: counters survive an upgrade of the agent.
 */
REASON(1, MALFORMED, "malformed", "too short or broken to be judged")
REASON(2, NOT_IP, "not-ip", "a frame that is neither IP nor ARP")
REASON(3, SPOOFED_MAC, "spoofed-mac", "a pod sent from a MAC address that is not its own")
REASON(4, SPOOFED_IP, "spoofed-ip", "a pod sent from an IP address that is not its own")
REASON(5, SPOOFED_ARP, "spoofed-arp", "a pod's ARP claimed an address that is not its own")
REASON(6, POD_VXLAN, "pod-vxlan", "a pod sent VXLAN, or another tunnel's packet, to something that is no pod")
REASON(7, ISOLATED, "isolated", "the two namespaces are not in one network")
REASON(8, NO_ENDPOINT, "no-endpoint", "no pod of this node has the destination address")
REASON(9, NO_NODE, "no-node", "no node holds the destination's subnet")
REASON(10, POLICED, "policed", "a pod sent faster than its egress limit allows, past its own shaper")
REASON(11, UNMARKED, "unmarked", "a packet of a pod lost its namespace in the host's stack")
REASON(12, CLUSTER_SOURCE, "cluster-source", "an address of the cluster network as source, from where it cannot come")
REASON(13, UNKNOWN_PEER, "unknown-peer", "VXLAN from an address that is no node")
REASON(14, WRONG_PEER, "wrong-peer", "VXLAN from a node that does not own the inner source address")
REASON(15, VNI_ZERO, "vni-zero", "VXLAN with the nodes' own VNI and a pod's source address")
REASON(16, BARE, "bare", "an unencapsulated packet from or to the cluster network on the underlay")
REASON(17, NOT_HERE, "not-here", "a packet out of the tunnel for an address that is not on this node")
REASON(18, FOREIGN_SOURCE, "foreign-source", "a packet into the tunnel from an address outside the cluster")
REASON(19, NO_ROOM, "no-room", "the kernel could not change the packet")
REASON(20, IPV6, "ipv6", "an IPv6 frame, such as every kernel sends on a new link; counted, not told one by one")

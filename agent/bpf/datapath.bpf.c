// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The datapath: five tc programs, one object, loaded once for the node and keyed by ifindex and address.
 *
 *   from_pod       ingress of a pod's host veth
 *   to_pod         egress of a pod's host veth
 *   to_overlay     egress of the overlay device
 *   from_overlay   ingress of the overlay device
 *   from_underlay  ingress of the underlay devices
 *
 * No rule, chain or program is added for a pod or a tenant. Everything unusual (fragments, what does not fit, flows that
 * the host's stack translated) takes the host's stack, marked with its namespace.
 */
#include "pod.h"
#include "overlay.h"
#include "underlay.h"

char _license[] SEC("license") = "Dual BSD/GPL";

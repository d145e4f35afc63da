//! What joins the nodes: a switch in a namespace of its own, the infra machine (etcd, controllers), a machine that is no
//! node with a network behind it, and, if wanted, a narrow path to the last node.
//!
//! ```text
//!   infra .2-.4   n1 .11   n2 .12   outside .50 -- 198.51.100.1 (lo)
//!        \          |        |        /
//!         +------- switch (bridge) --+
//!                      | .60
//!                   router-a --(smaller MTU)-- router-b .129 -- n3 .130
//! ```

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::LabError;
use crate::netns::Netns;
use crate::registry::LabId;
use crate::wait;

/// An address of the network behind the outside machine.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The last octet of the outside machine.
const OUTSIDE: u8 = 50;
const INFRA: u8 = 2;
const ROUTER: u8 = 60;
const FAR_GATEWAY: u8 = 129;
const FORWARDING: Duration = Duration::from_secs(10);

/// The lab's physical network.
#[derive(Debug)]
pub struct Underlay {
    id: LabId,
    dir: PathBuf,
    switch: Netns,
    routers: Vec<Netns>,
    far_mtu: Option<u32>,
    /// The machine that etcd and the controllers run on.
    pub infra: Arc<Netns>,
    /// The machine that is no node.
    pub outside: Arc<Netns>,
}

impl Underlay {
    /// Builds the switch and the two machines; with `far_mtu` a narrow path stands ready for [`Self::join_far`].
    pub fn build(id: LabId, dir: &Path, far_mtu: Option<u32>) -> Result<Self, LabError> {
        let switch = Netns::create(dir, "switch")?;
        for key in ["iptables", "ip6tables", "arptables"] {
            // Bridged frames would pass the switch's netfilter; absent without the br_netfilter module.
            drop(switch.sysctl(&format!("bridge/bridge-nf-call-{key}"), "0"));
        }
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        let infra = Arc::new(Netns::create(dir, "infra")?);
        let outside = Arc::new(Netns::create(dir, "outside")?);
        let mut this = Self { id, dir: dir.to_owned(), switch, routers: Vec::new(), far_mtu, infra, outside };
        this.join(&this.infra, INFRA)?;
        for extra in [INFRA + 1, INFRA + 2] {
            this.infra.ip(&format!("address add {}/24 dev eth0", this.address(extra)))?;
        }
        this.join(&this.outside, OUTSIDE)?;
        this.outside.ip(&format!("address add {BEYOND}/32 dev lo"))?;
        if let Some(mtu) = far_mtu {
            this.build_routers(mtu)?;
        }
        Ok(this)
    }

    /// An address of the lab's underlay.
    pub fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 123, self.id.number(), last)
    }

    /// The infra machine's addresses.
    pub fn infra_addresses(&self) -> [Ipv4Addr; 3] {
        [INFRA, INFRA + 1, INFRA + 2].map(|last| self.address(last))
    }

    /// The outside machine's address.
    pub fn outside_address(&self) -> Ipv4Addr {
        self.address(OUTSIDE)
    }

    /// Whether the last node is behind the narrow path.
    pub fn has_far(&self) -> bool {
        self.far_mtu.is_some()
    }

    /// Plugs a namespace into the switch: its device is `eth0`, its default route the outside machine.
    pub fn join(&self, netns: &Netns, last: u8) -> Result<(), LabError> {
        let (port, path) = (netns.name(), netns.path().display());
        // A machine that is started anew keeps its card.
        let mac = format!("02:62:68:{:02x}:00:{last:02x}", self.id.number());
        self.switch.ip(&format!(
            "link add {port} type veth peer name eth0 address {mac} netns {path}\nlink set {port} master br0 up"
        ))?;
        let mut lines = format!("address add {}/24 dev eth0\nlink set eth0 up\n", self.address(last));
        if last != OUTSIDE {
            let _ = writeln!(lines, "route add default via {}", self.outside_address());
        }
        if self.has_far() && last != ROUTER {
            let _ = writeln!(lines, "route add {}/26 via {}", self.address(128), self.address(ROUTER));
        }
        netns.ip(&lines)?;
        // The kernel may take a second to tell the switch of a link that came up.
        wait::until_or(&format!("the switch forwarding for {port}"), FORWARDING, || {
            let state =
                self.switch.exec("bridge", &["link", "show", "dev", port], &[]).map_err(|error| error.to_string())?;
            if state.contains("state forwarding") { Ok(()) } else { Err(state) }
        })
    }

    /// Pulls the plug of a namespace that joined under this name.
    pub fn leave(&self, name: &str) -> Result<(), LabError> {
        match self.switch.ip(&format!("link del {name}")) {
            // A namespace that has ended took its link along.
            Err(_) if self.switch.exec("ip", &["link", "show", "dev", name], &[]).is_err() => Ok(()),
            other => other.map(drop),
        }
    }

    /// The switch forwards nothing to or from this machine any more; its link stays up.
    pub fn cut(&self, name: &str) -> Result<(), LabError> {
        self.switch.ip(&format!("link set {name} nomaster")).map(drop)
    }

    /// Undoes [`Self::cut`].
    pub fn mend(&self, name: &str) -> Result<(), LabError> {
        self.switch.ip(&format!("link set {name} master br0")).map(drop)
    }

    /// Plugs a namespace in behind the narrow path.
    pub fn join_far(&self, netns: &Netns) -> Result<Ipv4Addr, LabError> {
        let [_, router_b] = &self.routers[..] else {
            return Err(LabError::Refused { what: "join the far segment".into(), answer: "the lab has none".into() });
        };
        let (address, gateway) = (self.address(FAR_GATEWAY + 1), self.address(FAR_GATEWAY));
        router_b.ip(&format!(
            "link add far type veth peer name eth0 netns {}\naddress add {gateway}/26 dev far\nlink set far up",
            netns.path().display()
        ))?;
        netns.ip(&format!("address add {address}/26 dev eth0\nlink set eth0 up\nroute add default via {gateway}"))?;
        Ok(address)
    }

    /// Changes the narrow path's MTU, as a changed route in the underlay would.
    pub fn set_far_mtu(&self, mtu: u32) -> Result<(), LabError> {
        self.routers.iter().try_for_each(|router| router.ip(&format!("link set narrow mtu {mtu}")).map(drop))
    }

    fn build_routers(&mut self, mtu: u32) -> Result<(), LabError> {
        let (a, b) = (Netns::create(&self.dir, "router-a")?, Netns::create(&self.dir, "router-b")?);
        self.join(&a, ROUTER)?;
        let (left, right) = (self.address(253), self.address(254));
        a.ip(&format!(
            "link add narrow type veth peer name narrow netns {}\n\
             address add {left}/30 dev narrow\nlink set narrow mtu {mtu} up\nroute add {far}/26 via {right}",
            b.path().display(),
            far = self.address(128),
        ))?;
        b.ip(&format!(
            "address add {right}/30 dev narrow\nlink set narrow mtu {mtu} up\nroute add default via {left}"
        ))?;
        for router in [&a, &b] {
            router.sysctl("ipv4/ip_forward", "1")?;
            // Each lost packet should be told, not one in a while.
            router.sysctl("ipv4/icmp_ratelimit", "0")?;
        }
        self.routers = vec![a, b];
        Ok(())
    }
}

//! One pod's attachment: what an ADD made, and the names and addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr};

use bulkhead_core::Namespace;
use bulkhead_core::attachment::AttachmentId;
<<<<<<< HEAD
=======
use ipnetwork::Ipv4Network;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
>>>>>>> k8s-agent
use serde::{Deserialize, Serialize};

use super::limit::Limits;
use crate::kernel::Mac;

/// How far an ADD came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Not answered yet: what exists of it may be undone.
    Attaching,
    /// Answered.
    Attached,
}

/// One pod's attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container and interface.
    pub id: AttachmentId,
    /// The pod's name, empty if the runtime did not say.
    pub pod: String,
    /// Its UID, empty if the runtime did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// The VNI that its namespace had at its birth: a namespace re-created under the name is another one.
    pub vni: u32,
    /// Where its netns is mounted.
    pub netns: String,
    /// The host part of its addresses.
    pub host: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host's side of its veth.
    pub ifindex: u32,
    /// Bytes.
    pub mtu: u32,
    /// Its limits.
    #[serde(default)]
    pub limits: Limits,
    /// Which run of the plugin asked for it.
    #[serde(default)]
    pub attempt: String,
    /// How far its ADD came.
    pub stage: Stage,
}

impl Record {
    /// Its MAC address: 0a:58 and its IPv4 address, so that nothing needs to remember it.
    pub fn mac(&self) -> Mac {
        let [a, b, c, d] = v4_of(&self.addresses).octets();
        Mac([0x0a, 0x58, a, b, c, d])
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        v4_of(&self.addresses)
    }

    /// The name of the host's side of its veth: `bh` and its IPv4 address in hexadecimal.
    pub fn host_interface(&self) -> String {
        format!("bh{:08x}", u32::from(self.ip4()))
    }

    /// What the names of the devices of all of a network's pods start with: `bh` and the digits that their addresses share.
    pub fn host_interface_prefix(network: Ipv4Network) -> String {
        let digits = format!("{:08x}", u32::from(network.network()));
        format!("bh{}", &digits[..usize::from(network.prefix() / 4)])
    }

    /// The address of the pod whose host device has this name.
    pub fn address_of(host_interface: &str) -> Option<Ipv4Addr> {
        let digits = host_interface.strip_prefix("bh").filter(|digits| digits.len() == 8)?;
        u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from)
    }
}

fn v4_of(addresses: &[IpAddr]) -> Ipv4Addr {
    let v4 = addresses.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    v4.unwrap_or(Ipv4Addr::UNSPECIFIED)
}
<<<<<<< HEAD
=======

/// Device indices of pods start here, far from what the kernel counts up.
const FIRST_INDEX: u32 = 0x0100_0000;
const LAST_INDEX: u32 = 0x3fff_fff0;

#[derive(Debug)]
struct Inner {
    pool: Pool,
    by_id: BTreeMap<AttachmentId, Record>,
    strangers: BTreeMap<u32, u32>,
    index: u32,
}

impl Inner {
    fn spare(&mut self, ifindex: u32, host: u32) {
        if host != 0 {
            self.pool.occupy(host);
        }
        self.index = self.index.max(ifindex & !1);
        self.strangers.insert(ifindex, host);
    }
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub struct Records {
    database: Database,
    inner: Mutex<Inner>,
}

/// The time since boot, suspended time included.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Records {
    /// Opens the file in `folder`, which is made. Records of an earlier boot are dropped.
    pub fn open(folder: &Path, host_bits: u8, rest: Duration) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(|source| RecordError::Io { path: folder.to_owned(), source })?;
        let path = folder.join("pods.redb");
        let mut database = Database::create(&path).map_err(failed("opened"))?;
        if Self::boot_of(&database)?.is_some_and(|boot| boot != boot_id()) {
            tracing::info!(path = %path.display(), "records of an earlier boot are dropped");
            drop(database);
            fs::remove_file(&path).map_err(|source| RecordError::Io { path: path.clone(), source })?;
            database = Database::create(&path).map_err(failed("opened"))?;
        }
        let pool = Pool::new(host_bits, rest);
        let mut inner = Inner { pool, by_id: BTreeMap::new(), strangers: BTreeMap::new(), index: FIRST_INDEX };
        let write = database.begin_write().map_err(failed("opened"))?;
        {
            let mut meta = write.open_table(META).map_err(failed("opened"))?;
            meta.insert("boot", boot_id().as_str()).map_err(failed("written"))?;
            let index = meta.get("index").map_err(failed("read"))?.and_then(|index| index.value().parse().ok());
            inner.index = index.unwrap_or(FIRST_INDEX);
            if index.is_none() {
                inner.pool.start_at(boot_id().bytes().fold(0, |seed, byte| seed * 31 % 0xffff_fffb + u64::from(byte)));
            }
            let freed = write.open_table(FREED).map_err(failed("opened"))?;
            for entry in freed.iter().map_err(failed("read"))? {
                let (host, when) = entry.map_err(failed("read"))?;
                inner.pool.freed(host.value(), Duration::from_millis(when.value()));
            }
            let strangers = write.open_table(STRANGERS).map_err(failed("opened"))?;
            for entry in strangers.iter().map_err(failed("read"))? {
                let (ifindex, host) = entry.map_err(failed("read"))?;
                inner.spare(ifindex.value(), host.value());
            }
            let attachments = write.open_table(ATTACHMENTS).map_err(failed("opened"))?;
            for entry in attachments.iter().map_err(failed("read"))? {
                let (id, json) = entry.map_err(failed("read"))?;
                let record = parse(id.value(), json.value())?;
                inner.pool.occupy(record.host);
                inner.by_id.insert(record.id.clone(), record);
            }
        }
        write.commit().map_err(failed("written"))?;
        Ok(Self { database, inner: Mutex::new(inner) })
    }

    fn boot_of(database: &Database) -> Result<Option<String>, RecordError> {
        let read = database.begin_read().map_err(failed("read"))?;
        match read.open_table(META) {
            Ok(meta) => Ok(meta.get("boot").map_err(failed("read"))?.map(|boot| boot.value().to_owned())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(failed("read")(error)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the file was made anew and nobody has looked yet for pods whose records were lost with the old one.
    pub fn is_fresh(&self) -> Result<bool, RecordError> {
        let read = self.database.begin_read().map_err(failed("read"))?;
        let meta = read.open_table(META).map_err(failed("read"))?;
        Ok(meta.get("searched").map_err(failed("read"))?.is_none())
    }

    /// Devices of pods whose records are lost, with the host parts of their addresses (0: of another subnet).
    pub fn strangers(&self) -> BTreeMap<u32, u32> {
        self.lock().strangers.clone()
    }

    /// Keeps the addresses and indices of devices that no record names from being given out, in this process and the next
    /// ones, until they are gone. The file is not fresh any more.
    pub fn adopt_strangers(&self, found: &BTreeMap<u32, u32>) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let write = self.database.begin_write().map_err(failed("written"))?;
        {
            let mut meta = write.open_table(META).map_err(failed("written"))?;
            meta.insert("searched", "yes").map_err(failed("written"))?;
            let mut strangers = write.open_table(STRANGERS).map_err(failed("written"))?;
            for (ifindex, host) in found {
                strangers.insert(ifindex, host).map_err(failed("written"))?;
            }
        }
        write.commit().map_err(failed("written"))?;
        for (ifindex, host) in found {
            inner.spare(*ifindex, *host);
        }
        Ok(())
    }

    /// The devices are gone: their addresses may be given out, after their rest.
    pub fn forget_strangers(&self, gone: &[u32]) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let (now, write) = (since_boot(), self.database.begin_write().map_err(failed("written"))?);
        {
            let mut strangers = write.open_table(STRANGERS).map_err(failed("written"))?;
            let mut freed = write.open_table(FREED).map_err(failed("written"))?;
            for ifindex in gone {
                let host = strangers.remove(ifindex).map_err(failed("written"))?.map(|host| host.value());
                if let Some(host) = host.filter(|host| *host != 0) {
                    let when = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
                    freed.insert(host, when).map_err(failed("written"))?;
                }
            }
        }
        write.commit().map_err(failed("written"))?;
        for host in gone.iter().filter_map(|ifindex| inner.strangers.remove(ifindex)).collect::<Vec<_>>() {
            if host != 0 {
                inner.pool.freed(host, now);
            }
        }
        Ok(())
    }

    /// One record.
    pub fn get(&self, id: &AttachmentId) -> Option<Record> {
        self.lock().by_id.get(id).cloned()
    }

    /// All records.
    pub fn all(&self) -> Vec<Record> {
        self.lock().by_id.values().cloned().collect()
    }

    /// How many pods there are, and how many addresses are free.
    pub fn counts(&self) -> (usize, u32) {
        let inner = self.lock();
        (inner.by_id.len(), inner.pool.free())
    }

    /// Takes an address and a device index for the record that `make` makes of them. It is written down by [`Records::update`],
    /// address and all in one transaction, before its ADD is answered: what a crash leaves of it till then is a device that no
    /// record names.
    pub fn create(&self, make: impl FnOnce(u32, u32) -> Record) -> Result<Record, RecordError> {
        let mut inner = self.lock();
        let host = inner.pool.take(since_boot())?;
        // Even: the odd one behind it is the device in the pod.
        inner.index = if inner.index >= LAST_INDEX { FIRST_INDEX } else { inner.index + 2 };
        let record = make(host, inner.index);
        inner.by_id.insert(record.id.clone(), record.clone());
        Ok(record)
    }

    /// Writes a record down: its ADD is about to be answered, or its limits changed.
    pub fn update(&self, record: &Record) -> Result<(), RecordError> {
        let mut inner = self.lock();
        self.write(Some(record), None, Some(inner.index))?;
        inner.by_id.insert(record.id.clone(), record.clone());
        Ok(())
    }

    /// Removes a record; its address rests from now.
    pub fn remove(&self, id: &AttachmentId) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let Some(record) = inner.by_id.get(id).cloned() else { return Ok(()) };
        let now = since_boot();
        self.write(None, Some((&record, now)), None)?;
        inner.by_id.remove(id);
        inner.pool.freed(record.host, now);
        Ok(())
    }

    fn write(
        &self,
        put: Option<&Record>,
        remove: Option<(&Record, Duration)>,
        index: Option<u32>,
    ) -> Result<(), RecordError> {
        let write = self.database.begin_write().map_err(failed("written"))?;
        {
            let mut attachments = write.open_table(ATTACHMENTS).map_err(failed("written"))?;
            let mut freed = write.open_table(FREED).map_err(failed("written"))?;
            if let Some(record) = put {
                let json = serde_json::to_vec(record)
                    .map_err(|source| RecordError::Json { id: record.id.to_string(), source })?;
                attachments.insert(record.id.to_string().as_str(), json.as_slice()).map_err(failed("written"))?;
                freed.remove(record.host).map_err(failed("written"))?;
            }
            if let Some((record, when)) = remove {
                attachments.remove(record.id.to_string().as_str()).map_err(failed("written"))?;
                let when = u64::try_from(when.as_millis()).unwrap_or(u64::MAX);
                freed.insert(record.host, when).map_err(failed("written"))?;
            }
            if let Some(index) = index {
                let mut meta = write.open_table(META).map_err(failed("written"))?;
                meta.insert("index", index.to_string().as_str()).map_err(failed("written"))?;
            }
        }
        write.commit().map_err(failed("written"))
    }
}

fn parse(id: &str, json: &[u8]) -> Result<Record, RecordError> {
    serde_json::from_slice(json).map_err(|source| RecordError::Json { id: id.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_a_network_share_a_prefix() {
        let prefix = |text: &str| Record::host_interface_prefix(text.parse().unwrap());
        assert_eq!(prefix("10.77.0.0/16"), "bh0a4d");
        assert_eq!(prefix("10.128.0.0/14"), "bh0a8");
        assert_eq!(prefix("172.16.0.0/12"), "bhac1");
        assert_eq!(prefix("10.0.0.0/8"), "bh0a");
    }

    #[test]
    fn devices_without_a_record_are_spared_by_every_agent_until_they_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Records::open(folder.path(), 3, Duration::from_mins(1)).unwrap();
        let records = open();
        assert!(records.is_fresh().unwrap());
        drop(records);
        // The first agent ended before it had looked.
        let records = open();
        assert!(records.is_fresh().unwrap());
        let found = BTreeMap::from([(FIRST_INDEX + 4, 3), (FIRST_INDEX + 6, 0)]);
        records.adopt_strangers(&found).unwrap();
        drop(records);
        let records = open();
        assert!(!records.is_fresh().unwrap());
        assert_eq!((records.strangers(), records.counts()), (found, (0, 4)));
        let taken: Vec<u32> = {
            let mut inner = records.lock();
            assert_eq!(inner.index, FIRST_INDEX + 6);
            (0..4).map(|_| inner.pool.take(Duration::ZERO).unwrap()).collect()
        };
        assert!(!taken.contains(&3), "{taken:?}");
        records.forget_strangers(&[FIRST_INDEX + 4, FIRST_INDEX + 6]).unwrap();
        drop(records);
        let records = open();
        assert_eq!((records.strangers().len(), records.counts()), (0, (0, 5)));
    }
}
>>>>>>> k8s-agent

//! The attachments of this node: in memory, and in a file ([`super::disk`]) with a record and its address in one transaction.
//!
//! The file belongs on a tmpfs: pods do not outlive a boot, and a record of an earlier boot is dropped when it is opened.
//! A crash of the agent loses nothing that an ADD has answered. A file that cannot be written to makes ADD fail; once it can be
//! again, or was made anew, it is brought in line with memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bulkhead_core::attachment::AttachmentId;
use thiserror::Error;

use super::contents::{Contents, Row};
use super::disk::{DAMAGE, Disk, DiskError, INDEX, SEARCHED, boot_id};
use super::pool::{Pool, PoolFull};
use super::record::Record;

/// Why a record cannot be kept.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No address is free.
    #[error(transparent)]
    Full(#[from] PoolFull),
}

/// Device indices of pods start here, far from what the kernel counts up.
const FIRST_INDEX: u32 = 0x0100_0000;
const LAST_INDEX: u32 = 0x3fff_fff0;

#[derive(Debug)]
struct Inner {
    disk: Disk,
    /// What the file holds, or has to once it can be written to again.
    contents: Contents,
    /// Not answered yet, and not on disk.
    attaching: BTreeMap<AttachmentId, Record>,
    pool: Pool,
    index: u32,
    /// Why the file cannot be written to; what it holds is older than `contents` then.
    trouble: Option<String>,
}

impl Inner {
    fn spare(&mut self, ifindex: u32, host: u32) {
        if host != 0 {
            self.pool.occupy(host);
        }
        self.index = self.index.max(ifindex & !1);
    }

    /// On disk, then in memory. One failed write is answered by opening the file anew.
    fn write(&mut self, rows: Vec<Row>) -> Result<(), RecordError> {
        let wrong = |error: &DiskError| tracing::warn!(%error, "the records of pods are opened anew");
        if self.trouble.is_some() || self.disk.commit(&rows).inspect_err(wrong).is_err() {
            let written = self.disk.rewrite(&self.contents).and_then(|()| self.disk.commit(&rows));
            self.trouble = written.as_ref().err().map(ToString::to_string);
            written?;
        }
        self.contents.apply(rows);
        Ok(())
    }

    /// In memory whatever becomes of the file, which is brought in line once it can be.
    fn write_later(&mut self, rows: Vec<Row>) {
        if let Err(error) = self.write(rows.clone()) {
            tracing::warn!(%error, "what is gone is written down later");
            self.contents.apply(rows);
        }
    }

    fn freed(&mut self, host: u32, now: Duration) -> Row {
        self.pool.freed(host, now);
        Row::Freed(host, Some(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub struct Records {
    inner: Mutex<Inner>,
}

/// The time since boot, suspended time included.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Records {
    /// Opens the file in `folder`, which is made. Records of an earlier boot are dropped.
    pub fn open(folder: &Path, host_bits: u8, rest: Duration) -> Result<Self, RecordError> {
        let (disk, contents) = Disk::open(folder)?;
        let index: Option<u32> = contents.meta.get(INDEX).and_then(|index| index.parse().ok());
        let mut pool = Pool::new(host_bits, rest);
        if index.is_none() {
            pool.start_at(boot_id().bytes().fold(0, |seed, byte| seed * 31 % 0xffff_fffb + u64::from(byte)));
        }
        for (host, when) in &contents.freed {
            pool.freed(*host, Duration::from_millis(*when));
        }
        for record in contents.attachments.values() {
            pool.occupy(record.host);
        }
        let (strangers, attaching) = (contents.strangers.clone(), BTreeMap::new());
        let index = index.unwrap_or(FIRST_INDEX);
        let mut inner = Inner { disk, contents, attaching, pool, index, trouble: None };
        for (ifindex, host) in strangers {
            inner.spare(ifindex, host);
        }
        Ok(Self { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether records can be written down. If the last one could not, or if the file is not the one that was opened any more, it
    /// is opened or made anew, and brought in line with memory.
    pub fn check(&self) -> Result<(), RecordError> {
        let inner = &mut *self.lock();
        let in_place = inner.disk.is_in_place();
        if inner.trouble.is_none() && in_place {
            return Ok(());
        }
        let written = inner.disk.rewrite(&inner.contents);
        match &written {
            Ok(()) if in_place => tracing::info!("the records of pods can be written again"),
            Ok(()) => tracing::warn!("something removed or replaced the records of pods; they are written anew"),
            Err(_) => {}
        }
        inner.trouble = written.as_ref().err().map(ToString::to_string);
        Ok(written?)
    }

    /// What is wrong with the file, for a person.
    pub fn problems(&self) -> Vec<String> {
        let inner = self.lock();
        let damage = inner.contents.meta.get(DAMAGE).filter(|_| !inner.contents.strangers.is_empty());
        inner.trouble.iter().chain(damage).cloned().collect()
    }

    /// Whether nobody has looked yet for pods whose records were lost with an earlier file, or in this one.
    pub fn is_fresh(&self) -> bool {
        !self.lock().contents.meta.contains_key(SEARCHED)
    }

    /// Devices of pods whose records are lost, with the host parts of their addresses (0: of another subnet).
    pub fn strangers(&self) -> BTreeMap<u32, u32> {
        self.lock().contents.strangers.clone()
    }

    /// Keeps the addresses and indices of devices that no record names from being given out, in this process and the next
    /// ones, until they are gone. The file is not fresh any more.
    pub fn adopt_strangers(&self, found: &BTreeMap<u32, u32>) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let mut rows = vec![Row::Meta(SEARCHED, Some("yes".to_owned()))];
        rows.extend(found.iter().map(|(ifindex, host)| Row::Stranger(*ifindex, Some(*host))));
        inner.write(rows)?;
        for (ifindex, host) in found {
            inner.spare(*ifindex, *host);
        }
        Ok(())
    }

    /// The devices are gone: their addresses may be given out, after their rest.
    pub fn forget_strangers(&self, gone: &[u32]) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let now = since_boot();
        let hosts = gone.iter().filter_map(|ifindex| inner.contents.strangers.get(ifindex).copied());
        let hosts: Vec<u32> = hosts.filter(|host| *host != 0).collect();
        let mut rows: Vec<Row> = gone.iter().map(|ifindex| Row::Stranger(*ifindex, None)).collect();
        if inner.contents.strangers.keys().all(|ifindex| gone.contains(ifindex)) {
            // Nothing is left of what the damage cost.
            rows.push(Row::Meta(DAMAGE, None));
        }
        let when = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        rows.extend(hosts.iter().map(|host| Row::Freed(*host, Some(when))));
        inner.write(rows)?;
        for host in hosts {
            inner.pool.freed(host, now);
        }
        Ok(())
    }

    /// One record.
    pub fn get(&self, id: &AttachmentId) -> Option<Record> {
        let inner = self.lock();
        inner.attaching.get(id).or_else(|| inner.contents.attachments.get(id)).cloned()
    }

    /// All records.
    pub fn all(&self) -> Vec<Record> {
        let inner = self.lock();
        inner.contents.attachments.values().chain(inner.attaching.values()).cloned().collect()
    }

    /// How many pods there are, and how many addresses are free.
    pub fn counts(&self) -> (usize, u32) {
        let inner = self.lock();
        (inner.contents.attachments.len() + inner.attaching.len(), inner.pool.free())
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
        inner.attaching.insert(record.id.clone(), record.clone());
        Ok(record)
    }

    /// Writes a record down: its ADD is about to be answered, or its limits changed.
    pub fn update(&self, record: &Record) -> Result<(), RecordError> {
        let mut inner = self.lock();
        let index = Row::Meta(INDEX, Some(inner.index.to_string()));
        let rows = vec![
            Row::Attachment(record.id.clone(), Some(Box::new(record.clone()))),
            Row::Freed(record.host, None),
            index,
        ];
        inner.write(rows)?;
        inner.attaching.remove(&record.id);
        Ok(())
    }

    /// Removes a record; its address rests from now. A file that cannot be written to hinders no DEL: what it still says after a
    /// crash is a pod whose device and netns are gone, which the next resync forgets.
    pub fn remove(&self, id: &AttachmentId) {
        let mut inner = self.lock();
        let (attaching, attached) = (inner.attaching.remove(id), inner.contents.attachments.get(id).cloned());
        let mut rows = Vec::new();
        if let Some(record) = &attached {
            rows.push(Row::Attachment(record.id.clone(), None));
        }
        for record in attaching.iter().chain(&attached) {
            rows.push(inner.freed(record.host, since_boot()));
        }
        if !rows.is_empty() {
            inner.write_later(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bulkhead_core::Namespace;

    use super::super::limit::Limits;
    use super::super::record::Stage;
    use super::*;

    #[test]
    fn devices_without_a_record_are_spared_by_every_agent_until_they_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Records::open(folder.path(), 3, Duration::from_mins(1)).unwrap();
        let records = open();
        assert!(records.is_fresh());
        drop(records);
        // The first agent ended before it had looked.
        let records = open();
        assert!(records.is_fresh());
        let found = BTreeMap::from([(FIRST_INDEX + 4, 3), (FIRST_INDEX + 6, 0)]);
        records.adopt_strangers(&found).unwrap();
        drop(records);
        let records = open();
        assert!(!records.is_fresh());
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

    /// On a thread with mounts of its own, so that none is left behind. Needs root.
    fn on_a_tmpfs(size: &str, test: impl FnOnce(&Path) + Send) {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let work = || {
            #[expect(
                deprecated,
                reason = "its successor is unsafe for CLONE_FILES and the like, which are not used here"
            )]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).expect("this test needs root");
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let options = std::ffi::CString::new(format!("size={size}")).unwrap();
            mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
            test(path);
        };
        std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn add(records: &Records, number: u32) -> Result<Record, RecordError> {
        let record = records.create(|host, ifindex| Record {
            id: AttachmentId::new(format!("c{number}"), "eth0").unwrap(),
            pod: "x".repeat(2000),
            namespace: Namespace::new("a").unwrap(),
            vni: 10,
            netns: String::new(),
            host,
            addresses: vec![Ipv4Addr::from(host).into()],
            ifindex,
            mtu: 1450,
            limits: Limits::default(),
            attempt: String::new(),
            stage: Stage::Attaching,
        })?;
        let done = Record { stage: Stage::Attached, ..record.clone() };
        records.update(&done).inspect_err(|_| records.remove(&record.id)).map(|()| done)
    }

    #[test]
    fn a_full_disk_fails_adds_only_and_only_until_there_is_room() {
        on_a_tmpfs("512k", |folder| {
            let open = || Records::open(folder, 8, Duration::from_mins(1)).unwrap();
            let records = open();
            let mut held: BTreeMap<u32, Record> =
                (0..3).map(|number| (number, add(&records, number).unwrap())).collect();
            let filler = folder.join("filler");
            drop(std::fs::write(&filler, vec![1; 1 << 20]));
            let full = (3..200).find_map(|number| match add(&records, number) {
                Ok(record) => {
                    held.insert(number, record);
                    None
                }
                Err(error) => Some(error.to_string()),
            });
            assert!(full.expect("the disk is full").contains("with room"));
            assert_eq!((records.counts().0, records.problems().len()), (held.len(), 1));
            assert!(records.check().is_err() && add(&records, 300).is_err());
            // A DEL need not wait.
            let gone = held.remove(&1).unwrap();
            records.remove(&gone.id);
            assert!(records.get(&gone.id).is_none());
            std::fs::remove_file(&filler).unwrap();
            let new = add(&records, 301).unwrap();
            assert!(held.values().all(|record| record.host != new.host));
            held.insert(301, new);
            assert!(records.check().is_ok() && records.problems().is_empty());
            drop(records);
            let mut read = open().all();
            read.sort_by_key(|record| record.host);
            let mut held: Vec<Record> = held.into_values().collect();
            held.sort_by_key(|record| record.host);
            assert_eq!(read, held);
        });
    }

    #[test]
    fn a_file_that_is_gone_is_missed_and_what_it_lost_told_only_while_a_pod_lives() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(folder.path(), 8, Duration::from_mins(1)).unwrap();
        let held = add(&records, 1).unwrap();
        records.check().unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        records.check().unwrap();
        drop(records);
        let file = folder.path().join(super::super::disk::FILE);
        let records = Records::open(folder.path(), 8, Duration::from_mins(1)).unwrap();
        assert_eq!(records.all(), std::slice::from_ref(&held));
        drop(records);
        std::fs::write(file, "not redb").unwrap();
        let records = Records::open(folder.path(), 8, Duration::from_mins(1)).unwrap();
        assert!(records.is_fresh() && records.problems().is_empty());
        records.adopt_strangers(&BTreeMap::from([(held.ifindex, held.host)])).unwrap();
        assert!(records.problems()[0].contains("damaged"));
        assert_ne!(add(&records, 2).unwrap().host, held.host);
        records.forget_strangers(&[held.ifindex]).unwrap();
        assert!(records.problems().is_empty());
    }
}

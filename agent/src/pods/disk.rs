//! The file of the attachments, `pods.redb`: its tables, what of it can be read, the transactions that change it.
//!
//! Assumes that memory is the truth once the file was read: whatever becomes of the file then, it is written anew from there.
//! Promises that no file keeps a node down: one that cannot be read is put aside and made anew, one record that cannot be read is
//! dropped, and [`DAMAGE`] says so. The caller then looks for devices that no record names.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use bulkhead_core::attachment::AttachmentId;
use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition};
use thiserror::Error;

use super::contents::{Contents, Row};
use super::record::Record;

/// The file's name in the run-dir.
pub const FILE: &str = "pods.redb";
/// What the last file that could not be read is named.
pub const DAMAGED: &str = "pods.redb.damaged";

/// Attachment ID to record, in JSON.
const ATTACHMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("attachments");
/// Host part to the time of its release, milliseconds since boot.
const FREED: TableDefinition<u32, u64> = TableDefinition::new("freed");
/// Device index to host part (0: an address of another subnet), of pods whose records were lost with an earlier file.
const STRANGERS: TableDefinition<u32, u32> = TableDefinition::new("strangers");
/// The keys below to their values.
const META: TableDefinition<&str, &str> = TableDefinition::new("meta");

/// Meta: the boot that the file is of.
const BOOT: &str = "boot";
/// Meta: the last device index given out.
pub const INDEX: &str = "index";
/// Meta: strangers were looked for.
pub const SEARCHED: &str = "searched";
/// Meta: what of the file could not be read, for a person.
pub const DAMAGE: &str = "damage";
const KEYS: [&str; 4] = [BOOT, INDEX, SEARCHED, DAMAGE];

/// Why the file cannot be read or written.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file or its folder.
    #[error("the records of pods {path} cannot be used: {source}; is --run-dir writable, on a tmpfs with room?")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database.
    #[error(
        "the records of pods (pods.redb in --run-dir) cannot be {doing}: {source}; is --run-dir writable, on a tmpfs with room, \
         and is no other agent running there?"
    )]
    Database {
        /// opened, read, written.
        doing: &'static str,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// A record has no JSON.
    #[error("the record of {id} cannot be written: {source}")]
    Json {
        /// Whose.
        id: AttachmentId,
        /// What is wrong.
        source: serde_json::Error,
    },
}

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> DiskError {
    move |source| DiskError::Database { doing, source: Box::new(source.into()) }
}

impl DiskError {
    /// Whether the file itself is wrong, so that no later attempt could read it.
    fn is_damage(&self) -> bool {
        use redb::Error::{
            DatabaseAlreadyOpen, DatabaseClosed, Io, LockPoisoned, PreviousIo, TransactionInProgress, Unsupported,
        };
        let Self::Database { source, .. } = self else { return false };
        match &**source {
            // So redb names what is cut off.
            Io(error) => matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            other => !matches!(
                other,
                DatabaseAlreadyOpen
                    | DatabaseClosed
                    | LockPoisoned(_)
                    | PreviousIo
                    | TransactionInProgress
                    | Unsupported
            ),
        }
    }
}

#[derive(Debug)]
struct Open {
    database: Database,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

/// The file, open unless the last attempt to open it failed.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    open: Option<Open>,
}

pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

impl Disk {
    /// Opens the file in `folder`, which is made. What is of an earlier boot is dropped, what is damaged is put aside.
    pub fn open(folder: &Path) -> Result<(Self, Contents), DiskError> {
        let path = folder.join(FILE);
        let (open, contents) = open_or_replace(&path)?;
        Ok((Self { path, open: Some(open) }, contents))
    }

    /// Changes rows in one transaction.
    pub fn commit(&self, rows: &[Row]) -> Result<(), DiskError> {
        let closed = || failed("written")(redb::Error::DatabaseClosed);
        self.open.as_ref().ok_or_else(closed).and_then(|open| commit(&open.database, rows))
    }

    /// Opens the file anew, or makes a new one, and writes what differs from `wanted`. After one failed read or write redb refuses
    /// all others until then.
    pub fn rewrite(&mut self, wanted: &Contents) -> Result<(), DiskError> {
        // Its lock would be in the way.
        self.open = None;
        let (open, held) = open_or_replace(&self.path)?;
        commit(&open.database, &held.towards(wanted))?;
        self.open = Some(open);
        Ok(())
    }

    /// Whether the open file is the one at its place.
    pub fn is_in_place(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.file.is_some() && open.file == file_at(&self.path))
    }
}

fn open_or_replace(path: &Path) -> Result<(Open, Contents), DiskError> {
    let error = match open(path) {
        Err(error) if error.is_damage() => error,
        other => return other,
    };
    let aside = path.with_file_name(DAMAGED);
    fs::rename(path, &aside).map_err(|source| DiskError::Io { path: aside.clone(), source })?;
    tracing::error!(
        %error, kept = %aside.display(),
        "the records of pods are damaged and are made anew; running pods keep their network"
    );
    let (open, mut contents) = open(path)?;
    let what = format!("{FILE} in --run-dir was damaged and is kept as {DAMAGED}");
    let rows = vec![Row::Meta(DAMAGE, Some(what))];
    commit(&open.database, &rows)?;
    contents.apply(rows);
    Ok((open, contents))
}

fn open(path: &Path) -> Result<(Open, Contents), DiskError> {
    let io = |source| DiskError::Io { path: path.to_owned(), source };
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(io)?;
    let mut database = Database::create(path).map_err(failed("opened"))?;
    if boot_of(&database)?.is_some_and(|boot| boot != boot_id()) {
        tracing::info!(path = %path.display(), "records of an earlier boot are dropped");
        drop(database);
        fs::remove_file(path).map_err(io)?;
        database = Database::create(path).map_err(failed("opened"))?;
    }
    // Also of a file that was closed: redb trusts its page allocator else, and panics when that is damaged.
    database.check_integrity().map_err(failed("read"))?;
    let contents = read(&database)?;
    Ok((Open { database, file: file_at(path) }, contents))
}

fn boot_of(database: &Database) -> Result<Option<String>, DiskError> {
    let read = database.begin_read().map_err(failed("read"))?;
    match read.open_table(META) {
        Ok(meta) => Ok(meta.get(BOOT).map_err(failed("read"))?.map(|boot| boot.value().to_owned())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(failed("read")(error)),
    }
}

/// All of it, with the tables made that are missing and the records dropped that cannot be read.
fn read(database: &Database) -> Result<Contents, DiskError> {
    let mut contents = Contents::default();
    let write = database.begin_write().map_err(failed("opened"))?;
    {
        let mut meta = write.open_table(META).map_err(failed("opened"))?;
        meta.insert(BOOT, boot_id().as_str()).map_err(failed("written"))?;
        let mut attachments = write.open_table(ATTACHMENTS).map_err(failed("opened"))?;
        let mut unreadable = Vec::new();
        for entry in attachments.iter().map_err(failed("read"))? {
            let (id, json) = entry.map_err(failed("read"))?;
            match serde_json::from_slice::<Record>(json.value()) {
                Ok(record) if record.id.to_string() == id.value() => {
                    contents.attachments.insert(record.id.clone(), record);
                }
                Ok(record) => unreadable.push((id.value().to_owned(), format!("it is of {}", record.id))),
                Err(error) => unreadable.push((id.value().to_owned(), error.to_string())),
            }
        }
        for (id, why) in &unreadable {
            tracing::error!(id, why, "the record of a pod cannot be read and is dropped; the pod keeps its network");
            attachments.remove(id.as_str()).map_err(failed("written"))?;
        }
        if let Some((id, why)) = unreadable.first() {
            // Its device has to be found again.
            meta.remove(SEARCHED).map_err(failed("written"))?;
            let what = format!("{} records in {FILE} could not be read, of {id}: {why}", unreadable.len());
            meta.insert(DAMAGE, what.as_str()).map_err(failed("written"))?;
        }
        for key in KEYS {
            let value = meta.get(key).map_err(failed("read"))?.map(|value| value.value().to_owned());
            contents.apply(vec![Row::Meta(key, value)]);
        }
        let freed = write.open_table(FREED).map_err(failed("opened"))?;
        for entry in freed.iter().map_err(failed("read"))? {
            let (host, when) = entry.map_err(failed("read"))?;
            contents.freed.insert(host.value(), when.value());
        }
        let strangers = write.open_table(STRANGERS).map_err(failed("opened"))?;
        for entry in strangers.iter().map_err(failed("read"))? {
            let (ifindex, host) = entry.map_err(failed("read"))?;
            contents.strangers.insert(ifindex.value(), host.value());
        }
    }
    write.commit().map_err(failed("written"))?;
    Ok(contents)
}

fn commit(database: &Database, rows: &[Row]) -> Result<(), DiskError> {
    let write = database.begin_write().map_err(failed("written"))?;
    {
        let mut attachments = write.open_table(ATTACHMENTS).map_err(failed("written"))?;
        let mut freed = write.open_table(FREED).map_err(failed("written"))?;
        let mut strangers = write.open_table(STRANGERS).map_err(failed("written"))?;
        let mut meta = write.open_table(META).map_err(failed("written"))?;
        for row in rows {
            match row {
                Row::Attachment(id, Some(record)) => {
                    let json =
                        serde_json::to_vec(record).map_err(|source| DiskError::Json { id: id.clone(), source })?;
                    attachments.insert(id.to_string().as_str(), json.as_slice()).map(drop)
                }
                Row::Attachment(id, None) => attachments.remove(id.to_string().as_str()).map(drop),
                Row::Freed(host, Some(when)) => freed.insert(host, when).map(drop),
                Row::Freed(host, None) => freed.remove(host).map(drop),
                Row::Stranger(ifindex, Some(host)) => strangers.insert(ifindex, host).map(drop),
                Row::Stranger(ifindex, None) => strangers.remove(ifindex).map(drop),
                Row::Meta(key, Some(value)) => meta.insert(*key, value.as_str()).map(drop),
                Row::Meta(key, None) => meta.remove(*key).map(drop),
            }
            .map_err(failed("written"))?;
        }
    }
    write.commit().map_err(failed("written"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn record(number: u32) -> Record {
        let json = serde_json::json!({
            "id": format!("c{number}@eth0"), "pod": "p", "namespace": "a", "vni": 10, "netns": "/run/netns/p", "host": number,
            "addresses": [format!("10.77.0.{number}")], "ifindex": 100 + number, "mtu": 1450, "stage": "attached",
        });
        serde_json::from_value(json).unwrap()
    }

    /// A folder with a file of so many records, as SIGKILL leaves it or closed, and what it holds.
    fn filled(records: u32, closed: bool) -> (tempfile::TempDir, Contents) {
        let (folder, result) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (disk, mut contents) = Disk::open(folder.path()).unwrap();
        let mut rows = vec![Row::Meta(SEARCHED, Some("yes".into())), Row::Freed(9, Some(5)), Row::Stranger(7, Some(3))];
        rows.extend(
            (2..records + 2).map(record).map(|record| Row::Attachment(record.id.clone(), Some(Box::new(record)))),
        );
        for row in rows {
            disk.commit(std::slice::from_ref(&row)).unwrap();
            contents.apply(vec![row]);
        }
        if closed {
            drop(disk);
        }
        fs::copy(folder.path().join(FILE), result.path().join(FILE)).unwrap();
        (result, contents)
    }

    #[test]
    fn what_was_written_is_read_and_a_second_agent_is_refused() {
        for closed in [true, false] {
            let (folder, contents) = filled(20, closed);
            let (_disk, read) = Disk::open(folder.path()).unwrap();
            assert_eq!(read, contents);
            let error = Disk::open(folder.path()).unwrap_err();
            assert!(!error.is_damage(), "{error}");
            assert!(!folder.path().join(DAMAGED).exists());
        }
    }

    type Damage = fn(&fs::File);

    #[test]
    fn a_damaged_file_is_put_aside_and_a_new_one_is_fresh() {
        let damages: [(&str, Damage); 5] = [
            ("another magic", |file| file.write_all_at(b"not redb", 0).unwrap()),
            ("zeros", |file| file.write_all_at(&vec![0; 1 << 20], 0).unwrap()),
            ("cut off behind the header", |file| file.set_len(5000).unwrap()),
            ("cut off within the header", |file| file.set_len(100).unwrap()),
            ("both checksums", |file| file.write_all_at(&[0xa5; 256], 64).unwrap()),
        ];
        for (what, damage) in damages {
            let (folder, _) = filled(3, false);
            damage(&fs::File::options().write(true).open(folder.path().join(FILE)).unwrap());
            fs::write(folder.path().join(DAMAGED), "of an earlier damage").unwrap();
            let (disk, contents) = Disk::open(folder.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(contents.attachments.is_empty() && !contents.meta.contains_key(SEARCHED), "{what}");
            assert!(contents.meta[DAMAGE].contains(DAMAGED), "{what}: {contents:?}");
            drop(disk);
            assert_ne!(fs::read(folder.path().join(DAMAGED)).unwrap(), b"of an earlier damage", "{what}");
            let (_, again) = Disk::open(folder.path()).unwrap();
            assert!(again.meta.contains_key(DAMAGE), "the next agent says so, too");
        }
    }

    #[test]
    fn whatever_byte_is_damaged_the_file_opens() {
        for closed in [true, false] {
            let (folder, contents) = filled(20, closed);
            let path = folder.path().join(FILE);
            let whole = fs::read(&path).unwrap();
            // The header, and where redb keeps anything.
            let mut places: Vec<usize> = (0..512).step_by(3).collect();
            places.extend((512..whole.len()).step_by(509).filter(|at| whole[*at] != 0));
            for at in places {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x41;
                fs::write(&path, bytes).unwrap();
                match Disk::open(folder.path()) {
                    Ok((_, read)) if read.meta.contains_key(DAMAGE) => {}
                    Ok((_, read)) => assert!(closed || read.attachments.len() <= contents.attachments.len()),
                    Err(error) => panic!("byte {at} of {}: {error}", whole.len()),
                }
            }
        }
    }

    #[test]
    fn one_unreadable_record_is_dropped_and_its_device_is_looked_for() {
        let (folder, contents) = filled(3, true);
        let database = Database::create(folder.path().join(FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(ATTACHMENTS).unwrap().insert("c3@eth0", b"{\"id\":".as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let (_, read) = Disk::open(folder.path()).unwrap();
            assert_eq!(read.attachments.len(), 2);
            assert_eq!(read.freed, contents.freed);
            assert!(!read.meta.contains_key(SEARCHED) && read.meta[DAMAGE].contains("c3@eth0"), "{read:?}");
        }
        assert!(!folder.path().join(DAMAGED).exists());
    }

    #[test]
    fn a_file_that_was_removed_or_replaced_is_written_anew() {
        let (folder, mut contents) = filled(3, true);
        let path = folder.path().join(FILE);
        let (mut disk, _) = Disk::open(folder.path()).unwrap();
        assert!(disk.is_in_place());
        let (other, _) = filled(5, true);
        let changes: [&dyn Fn(); 3] = [
            &|| fs::remove_dir_all(folder.path()).unwrap(),
            &|| fs::rename(other.path().join(FILE), &path).unwrap(),
            &|| {
                fs::remove_file(&path).unwrap();
                fs::write(&path, "not redb").unwrap();
            },
        ];
        for change in changes {
            change();
            assert!(!disk.is_in_place());
            contents.apply(vec![Row::Freed(11, Some(6))]);
            disk.rewrite(&contents).unwrap();
            assert!(disk.is_in_place());
        }
        drop(disk);
        assert_eq!(Disk::open(folder.path()).unwrap().1, contents);
    }
}

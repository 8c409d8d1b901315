//! A record of where a merge found its inputs, in the user's cache folder, so that `weld verify` finds them again.
//!
//! A lock is published with its checkpoint, so it names no absolute path. The record stays on this machine: one small
//! file for each merge, named by the digest of the lock. It only says where to look: what is found there is compared
//! with the lock like any other input, and the report says that the record led to it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::environment;
use run::Lock;

/// The version of the format.
const FORMAT: &str = "weldment-inputs/1";

/// The largest record that is read; one takes about a hundred bytes for each input.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// The most records that are kept; the oldest go first.
const MAX_RECORDS: usize = 4096;

/// Records the paths of the inputs by their names in the lock with this digest.
///
/// # Errors
/// The cache folder is not the user's, or cannot be written.
pub(super) fn write(lock: blake3::Hash, inputs: &[(String, PathBuf)]) -> io::Result<()> {
    let Some(cache) = environment::cache() else {
        return Ok(());
    };
    // Under sudo, say, with the home of another user: nothing of ours belongs there.
    if fs::metadata(&cache).is_ok_and(|metadata| !belongs_to_user(&metadata)) {
        return Ok(());
    }
    let folder = folder(&cache);
    create(&folder)?;
    let paths = inputs
        .iter()
        .filter_map(|(name, path)| Some((name.clone(), path.to_str()?.into())));
    let paths: serde_json::Map<String, Value> = paths.collect();
    let record = json!({"format": FORMAT, "lock": lock.to_string(), "inputs": paths});
    let mut file = tempfile::NamedTempFile::new_in(&folder)?;
    file.write_all(format!("{record:#}\n").as_bytes())?;
    file.persist(folder.join(name(lock)))?;
    prune(&folder, &name(lock), MAX_RECORDS);
    Ok(())
}

/// The paths that were recorded for a lock, by name; none if there is no record, or others could have written it.
pub(super) fn read(lock: &Lock) -> Vec<(String, PathBuf)> {
    let digest = lock.digest();
    let path = environment::cache().map(|cache| folder(&cache).join(name(digest)));
    let bytes = path.and_then(|path| own_bytes(&path).ok());
    bytes
        .and_then(|bytes| parse(&bytes, digest))
        .unwrap_or_default()
}

fn folder(cache: &Path) -> PathBuf {
    cache.join("weldment/inputs")
}

fn name(lock: blake3::Hash) -> String {
    format!("{lock}.json")
}

/// Removes the oldest records beyond `most`, but not the one called `newest`. What is no record stays, and one that
/// cannot be removed is left for the next time.
fn prune(folder: &Path, newest: &str, most: usize) {
    let Ok(files) = fs::read_dir(folder) else {
        return;
    };
    let record = |file: fs::DirEntry| {
        let name = file.file_name();
        let name = name.to_str().filter(|name| *name != newest)?;
        blake3::Hash::from_hex(name.strip_suffix(".json")?).ok()?;
        // Of links, this is the link's own.
        let metadata = file.metadata().ok()?;
        let time = metadata.modified().ok()?;
        metadata.is_file().then(|| (time, file.path()))
    };
    let mut records: Vec<_> = files.flatten().filter_map(record).collect();
    records.sort();
    let old = (records.len() + 1).saturating_sub(most);
    for (_, path) in records.into_iter().take(old) {
        let _ = fs::remove_file(path);
    }
}

/// Creates a folder that nobody else can write to.
fn create(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    builder.mode(0o700);
    builder.create(folder)?;
    match is_own(&fs::symlink_metadata(folder)?) {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "others can write to {}",
            folder.display()
        ))),
    }
}

/// The bytes of a regular file that only this user can write to.
fn own_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let refused = || io::Error::other("not a file that only this user can write to");
    // Looked at before it is opened, as opening a pipe would wait.
    if !is_own(&fs::symlink_metadata(path)?) {
        return Err(refused());
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !is_own(&metadata) || metadata.len() > MAX_RECORD_BYTES {
        return Err(refused());
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file or folder, not a link, belongs to this user, and no one else can write to it.
fn is_own(metadata: &fs::Metadata) -> bool {
    !metadata.is_symlink() && belongs_to_user(metadata) && !is_shared(metadata)
}

fn belongs_to_user(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

fn is_shared(metadata: &fs::Metadata) -> bool {
    metadata.mode() & 0o022 != 0
}

/// The paths of a record, if it is one of this lock. A path that is not absolute would depend on where weld runs.
fn parse(bytes: &[u8], lock: blake3::Hash) -> Option<Vec<(String, PathBuf)>> {
    let record: Value = serde_json::from_slice(bytes).ok()?;
    if record.get("format")?.as_str()? != FORMAT
        || record.get("lock")?.as_str()? != lock.to_string()
    {
        return None;
    }
    let inputs = record.get("inputs")?.as_object()?;
    let path = |(name, path): (&String, &Value)| {
        let path = PathBuf::from(path.as_str()?);
        path.is_absolute().then(|| (name.clone(), path))
    };
    Some(inputs.iter().filter_map(path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_lock_or_with_relative_paths_says_nothing() {
        let lock = blake3::hash(b"lock");
        let text = |lock: blake3::Hash, path: &str| {
            json!({"format": FORMAT, "lock": lock.to_string(), "inputs": {"a": path}}).to_string()
        };
        let read = |text: &str| parse(text.as_bytes(), lock);
        let found = read(&text(lock, "/models/a"));
        assert_eq!(
            found,
            Some(vec![("a".to_owned(), PathBuf::from("/models/a"))])
        );
        assert_eq!(read(&text(lock, "models/a")), Some(Vec::new()));
        assert_eq!(read(&text(blake3::hash(b"other"), "/models/a")), None);
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "[]",
            "{}",
            &deep,
            r#"{"format": 1, "lock": {}, "inputs": []}"#,
        ] {
            assert_eq!(read(text), None, "{text:.20}");
        }
    }

    #[test]
    fn the_oldest_records_go_and_nothing_else() {
        use std::time::{Duration, SystemTime};
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let records: Vec<String> = (0..5u8).map(|n| name(blake3::hash(&[n]))).collect();
        for (days, record) in (0..).zip(&records) {
            let file = File::create(place(record)).unwrap();
            let age = Duration::from_secs(86_400 * days);
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let link = name(blake3::hash(b"link"));
        std::os::unix::fs::symlink(place(&records[0]), place(&link)).unwrap();
        let others = ["notes.json", &link];
        fs::write(place("notes.json"), "x").unwrap();
        // The one just written stays, though its time is the oldest.
        prune(folder.path(), &records[4], 3);
        let left = |name: &str| fs::symlink_metadata(place(name)).is_ok();
        let kept: Vec<bool> = records.iter().map(|name| left(name)).collect();
        assert_eq!(kept, [true, true, false, false, true]);
        assert!(others.iter().all(|name| left(name)));
        prune(folder.path(), &records[4], 3);
        assert!(left(&records[0]) && left(&records[1]));
    }

    #[test]
    fn what_others_can_write_to_is_not_read() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        fs::write(&path, "x").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        assert_eq!(own_bytes(&path).unwrap(), b"x");
        for shared in [0o664, 0o646] {
            mode(shared);
            assert!(own_bytes(&path).is_err(), "{shared:o}");
        }
        mode(0o600);
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(own_bytes(&link).is_err());
        assert!(own_bytes(folder.path()).is_err());
        assert!(own_bytes(Path::new("/dev/zero")).is_err());
    }
}

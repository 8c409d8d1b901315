//! The cache, laid out as huggingface_hub has it: blobs by their digest, snapshots of links to them, refs to commits.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Observer;
use super::error::HubError;
use super::listing::Entry;

/// How often a file that another process fetches is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The folder of one repository in the cache.
pub(crate) struct Repository {
    cache: PathBuf,
    name: String,
}

impl Repository {
    pub(crate) fn new(cache: &Path, repo: &str) -> Repository {
        Repository {
            cache: cache.to_owned(),
            name: format!("models--{}", repo.replace('/', "--")),
        }
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// Where a file's content is kept.
    pub(crate) fn blob(&self, entry: &Entry) -> PathBuf {
        self.folder().join("blobs").join(entry.digest())
    }

    /// Where its first part is kept until the rest has come.
    pub(crate) fn incomplete(&self, entry: &Entry) -> PathBuf {
        let name = format!("{}.incomplete", entry.digest());
        self.folder().join("blobs").join(name)
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// Whether the content of a file is there.
    pub(crate) fn has(&self, entry: &Entry) -> bool {
        let blob = fs::metadata(self.blob(entry));
        blob.is_ok_and(|blob| blob.is_file() && blob.len() == entry.size)
    }

    /// How much of a file has come already.
    pub(crate) fn came(&self, entry: &Entry) -> u64 {
        fs::metadata(self.incomplete(entry)).map_or(0, |part| part.len())
    }

    /// Waits until no other process fetches the same content, and holds it off.
    pub(crate) fn lock(&self, entry: &Entry, observer: &dyn Observer) -> Result<File, HubError> {
        let folder = self.cache.join(".locks").join(&self.name);
        create(&folder)?;
        let path = folder.join(format!("{}.lock", entry.digest()));
        let file = File::create(&path).map_err(|source| HubError::io("open", &path, source))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                // Some network file systems have no locks; huggingface_hub goes on without them too.
                Err(TryLockError::Error(_)) => return Ok(file),
                Err(TryLockError::WouldBlock) if observer.stopped() => {
                    return Err(HubError::Stopped);
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
            }
        }
    }

    /// Puts a link to a file's content in the snapshot of a commit.
    pub(crate) fn link(&self, commit: &str, entry: &Entry) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(&entry.name);
        let folder = path.parent().unwrap_or(&path);
        create(folder)?;
        let depth = entry.name.split('/').count() + 1;
        let target: PathBuf = ["..", "/"].concat().repeat(depth).into();
        let target = target.join("blobs").join(entry.digest());
        if fs::read_link(&path).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let put = || -> io::Result<()> {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match symlink(&target, &path) {
                // Another process was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                done => done,
            }
        };
        put().map_err(|source| HubError::io("link", &path, source))
    }

    /// Notes the commit that a revision points to.
    pub(crate) fn point(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        write_whole(
            &self.folder().join("refs").join(revision),
            commit.as_bytes(),
        )
    }

    /// Notes the files of a commit, in huggingface_hub's own form.
    pub(crate) fn note_files(&self, commit: &str, entries: &[Entry]) -> Result<(), HubError> {
        let file = |entry: &Entry| {
            let mut file = json!({"size": entry.size, "blob_id": entry.blob_id});
            if let Some(sha256) = &entry.sha256 {
                file["lfs_sha256"] = sha256.clone().into();
                file["lfs_size"] = entry.size.into();
            }
            if let Some(hash) = &entry.xet_hash {
                file["xet_hash"] = hash.clone().into();
            }
            (entry.name.clone(), file)
        };
        let files: Map<String, Value> = entries.iter().map(file).collect();
        let list = json!({"format_version": 1, "files": files});
        let path = self.folder().join("trees").join(format!("{commit}.json"));
        write_whole(&path, list.to_string().as_bytes())
    }
}

/// Creates a folder and those above it.
pub(crate) fn create(folder: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).map_err(|source| HubError::io("create", folder, source))
}

/// Writes a small file beside its place and puts it there whole.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    create(folder)?;
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| HubError::io("write", path, source))
}

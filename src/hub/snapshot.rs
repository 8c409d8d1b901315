//! Fetches the files of a model that a merge reads, several at a time.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;

use rustix::fs::statvfs;

use super::cache::{self, Repository};
use super::error::HubError;
use super::listing::Entry;
use super::{Hub, Observer, Until};
use checkpoint::{RemoteFiles, is_weights, wanted};

/// How many files come at a time.
pub(crate) const AT_A_TIME: usize = 8;

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Their folder.
    pub folder: PathBuf,
    /// The commit that they are of.
    pub commit: String,
    /// The weight files of which only the headers are there.
    pub remote: RemoteFiles,
}

impl Hub {
    /// Fetches the files of a model that a merge reads into the cache: those that are not there, and of each only what
    /// is not. They are of the commit that the revision points to now.
    ///
    /// # Errors
    /// There is no such model or revision, the Hub does not give it, or sends something else; or the disk is full.
    pub fn snapshot(
        &self,
        repo: &str,
        revision: &str,
        observer: &dyn Observer,
    ) -> Result<Snapshot, HubError> {
        let commit = self.commit(repo, revision, observer)?;
        let entries = self.files(repo, &commit, observer)?;
        let wanted = wanted(&entries);
        check_weights(repo, &entries, &wanted)?;
        self.fetch(repo, &commit, &wanted, observer)?;
        self.keep(repo, revision, commit, &entries)
    }

    /// Notes what was fetched for others that read the cache.
    pub(crate) fn keep(
        &self,
        repo: &str,
        revision: &str,
        commit: String,
        entries: &[Entry],
    ) -> Result<Snapshot, HubError> {
        let cache = Repository::new(&self.settings.cache, repo);
        cache.note_files(&commit, entries)?;
        cache.point(revision, &commit)?;
        Ok(Snapshot {
            folder: cache.snapshot(&commit),
            commit,
            remote: RemoteFiles::default(),
        })
    }

    /// Fetches files into the cache, several at a time. The first failure ends all.
    pub(crate) fn fetch(
        &self,
        repo: &str,
        commit: &str,
        entries: &[&Entry],
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let cache = Repository::new(&self.settings.cache, repo);
        let missing: Vec<&Entry> = entries.iter().copied().filter(|e| !cache.has(e)).collect();
        for entry in entries.iter().filter(|entry| cache.has(entry)) {
            cache.link(commit, entry)?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let size = |entry: &&Entry| entry.size.saturating_sub(cache.came(entry));
        let bytes = missing.iter().map(size).fold(0, u64::saturating_add);
        self.check_room(repo, bytes)?;
        let total = missing.iter().map(|e| e.size).fold(0, u64::saturating_add);
        observer.begin(repo, total);
        let done = self.fetch_all(repo, commit, &missing, observer);
        observer.finish();
        done
    }

    fn fetch_all(
        &self,
        repo: &str,
        commit: &str,
        entries: &[&Entry],
        observer: &dyn Observer,
    ) -> Result<(), HubError> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first = Mutex::new(None);
        let has_failed = || failed.load(SeqCst);
        let observer = Until {
            observer,
            stopped: &has_failed,
        };
        let work = || {
            while !failed.load(SeqCst)
                && let Some(entry) = entries.get(next.fetch_add(1, SeqCst))
            {
                if let Err(error) = self.fetch_file(repo, commit, entry, &observer) {
                    // Those that stop because of it come later.
                    if let Ok(mut first) = first.lock() {
                        first.get_or_insert(error);
                    }
                    failed.store(true, SeqCst);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(entries.len()) {
                scope.spawn(work);
            }
        });
        match first.into_inner().ok().flatten() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Checks that the disk of the cache has room for so many bytes, if the system can tell.
    fn check_room(&self, repo: &str, needed: u64) -> Result<(), HubError> {
        let folder = &self.settings.cache;
        cache::create(folder)?;
        let free = match statvfs(folder) {
            Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
            Err(_) => return Ok(()),
        };
        match needed > free {
            true => Err(HubError::NoRoom {
                repo: repo.to_owned(),
                folder: folder.clone(),
                needed,
                free,
            }),
            false => Ok(()),
        }
    }
}

/// Checks that a repository has weights that are read, or is one of those that need none, such as of a tokenizer.
pub(crate) fn check_weights(
    repo: &str,
    entries: &[Entry],
    wanted: &[&Entry],
) -> Result<(), HubError> {
    const OTHER: [&str; 4] = [".gguf", ".h5", ".msgpack", ".onnx"];
    let is_other = |entry: &&Entry| OTHER.iter().any(|end| entry.name.ends_with(end));
    match entries.iter().find(is_other) {
        Some(other) if !wanted.iter().any(|entry| is_weights(&entry.name)) => {
            Err(HubError::NoWeights {
                repo: repo.to_owned(),
                found: Some(other.name.clone()),
            })
        }
        _ => Ok(()),
    }
}

//! Weight files that are fetched while a merge runs, one after the other, and dropped when it is done with them.
//!
//! Each is a file without blocks that has the length of the one on the Hub and holds its header. What is fetched is
//! written into it, so that whoever has mapped it sees it; what is dropped is cut off, and it is as before. When a run
//! begins, its name goes: however the process ends, the system takes the room back.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::statvfs;
use tempfile::TempDir;

use super::cache::{self, Repository};
use super::error::HubError;
use super::listing::Entry;
use super::snapshot::AT_A_TIME;
use super::transfer::Partial;
use super::{Hub, Observer, Until};
use checkpoint::RemoteFile;
use errors::Refusal;

/// What becomes of the weight files whose headers are fetched.
#[derive(Clone)]
pub enum Later {
    /// Nothing more of them comes.
    Never,
    /// They are fetched while they are used. The observer hears of it, and can stop it. The folder in which they are stays
    /// as long as one of them.
    Fetched(Arc<dyn Observer>, Arc<ScratchFolder>),
}

/// A folder in the cache for what is there only while a process runs. What killed processes have left goes with the next.
#[derive(Debug)]
pub struct ScratchFolder {
    folder: TempDir,
    /// Locked as long as the folder is used.
    _lock: File,
}

/// What the names of such folders begin with.
const PREFIX: &str = ".weldment-scratch-";

/// The file in it that is locked.
const LOCK: &str = "lock";

impl ScratchFolder {
    /// Makes one in a cache, and removes those that nobody uses.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn new(cache: &Path) -> Result<ScratchFolder, HubError> {
        cache::create(cache)?;
        sweep(cache);
        let make = || {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache)?;
            // Locked before it has its name: who sweeps must not find it free.
            let early = folder.path().join("new");
            let lock = File::create(&early)?;
            // Some network file systems have no locks. What cannot be locked is not swept either.
            let _ = lock.lock();
            fs::rename(&early, folder.path().join(LOCK))?;
            Ok(ScratchFolder {
                folder,
                _lock: lock,
            })
        };
        make().map_err(|source| HubError::io("make a folder in", cache, source))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of processes that are no more. What cannot be removed stays.
fn sweep(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let lock = entry.path().join(LOCK);
        if is_ours && is_folder && File::open(lock).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A weight file of which the header is here.
pub(crate) struct ScratchFile {
    pub(crate) hub: Hub,
    pub(crate) repo: String,
    pub(crate) commit: String,
    pub(crate) entry: Entry,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The length of its header, with the number before it.
    pub(crate) header: u64,
    pub(crate) later: Later,
    pub(crate) state: Mutex<State>,
}

/// What has happened to it.
#[derive(Default)]
pub(crate) struct State {
    /// The ranges that have come.
    here: BTreeSet<(u64, u64)>,
    /// Why a range did not come.
    failed: Option<Refusal>,
    /// Whether its name is gone.
    begun: bool,
}

impl fmt::Debug for ScratchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ScratchFile").field(&self.name()).finish()
    }
}

impl ScratchFile {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observer(&self) -> Result<&dyn Observer, Refusal> {
        match &self.later {
            Later::Fetched(observer, _) => Ok(observer.as_ref()),
            Later::Never => Err(Refusal::new(format!(
                "of {} only the header was fetched",
                self.name()
            ))),
        }
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Refusal {
        move |source| Refusal::from(&HubError::io(action, &self.path, source))
    }

    /// Fetches a range.
    fn fetch_range(&self, range: (u64, u64), observer: &dyn Observer) -> Result<(), HubError> {
        let mut bytes = Vec::new();
        let (repo, commit, entry) = (&self.repo, &self.commit, &self.entry);
        let range_of = range.0..range.1;
        (self.hub).read_range(repo, commit, entry, range_of, &mut bytes, observer)?;
        let written = self.file.write_all_at(&bytes, range.0);
        written.map_err(|source| HubError::io("write", &self.path, source))?;
        self.state().here.insert(range);
        Ok(())
    }

    /// Fetches ranges, several at a time.
    fn fetch_ranges(&self, ranges: &[(u64, u64)], observer: &dyn Observer) -> Result<(), HubError> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first = Mutex::new(None);
        let work = || {
            while !failed.load(SeqCst)
                && let Some(&range) = ranges.get(next.fetch_add(1, SeqCst))
            {
                if let Err(error) = self.fetch_range(range, observer) {
                    failed.store(true, SeqCst);
                    if let Ok(mut first) = first.lock() {
                        first.get_or_insert(error);
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(ranges.len()) {
                scope.spawn(work);
            }
        });
        first.into_inner().ok().flatten().map_or(Ok(()), Err)
    }
}

impl RemoteFile for ScratchFile {
    fn name(&self) -> String {
        format!("{} of `{}`", errors::printable(&self.entry.name), self.repo)
    }

    fn size(&self) -> u64 {
        self.entry.size
    }

    fn is_header_only(&self) -> bool {
        matches!(self.later, Later::Never)
    }

    fn peek(&self, ranges: &[Range<u64>]) -> Result<(), Refusal> {
        let observer = self.observer()?;
        let missing: Vec<(u64, u64)> = {
            let state = self.state();
            let within = ranges.iter().map(|range| {
                let end = range.end.min(self.entry.size);
                (range.start.min(end), end)
            });
            let missing = within.filter(|range| {
                range.0 < range.1 && range.1 > self.header && !state.here.contains(range)
            });
            missing.collect()
        };
        let done = self.fetch_ranges(&missing, observer);
        done.map_err(|error| {
            let refusal = Refusal::from(&error);
            self.state().failed.get_or_insert(refusal).clone()
        })
    }

    fn begin(&self) -> Result<(), Refusal> {
        self.observer()?;
        let mut state = self.state();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        if state.begun {
            return Ok(());
        }
        // What stands for it says by its name what the file has as its digest, as in a snapshot.
        let blob = Repository::new(&self.hub.settings.cache, &self.repo).blob(&self.entry);
        let replace = || {
            fs::remove_file(&self.path)?;
            symlink(&blob, &self.path)
        };
        replace().map_err(self.io("remove"))?;
        state.begun = true;
        Ok(())
    }

    fn fetch(&self, stopped: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal> {
        let observer = Until {
            observer: self.observer()?,
            stopped,
        };
        let partial = Partial::in_place(&self.file, &self.entry);
        let mut partial = partial.map_err(self.io("write"))?;
        let (repo, commit, entry) = (&self.repo, &self.commit, &self.entry);
        let done = (self.hub).complete(repo, commit, entry, &mut partial, &self.path, &observer);
        done.map_err(|error| Refusal::from(&error))
    }

    fn drop_content(&self) -> Result<(), Refusal> {
        self.state().here.clear();
        let cut = || {
            self.file.set_len(self.header)?;
            self.file.set_len(self.entry.size)
        };
        cut().map_err(self.io("cut"))
    }

    fn room(&self) -> Option<u64> {
        let disk = statvfs(&self.hub.settings.cache).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

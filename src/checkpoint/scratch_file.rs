//! Weight files that are fetched while a merge runs, one after the other, and dropped when it is done with them.
//!
//! Each is a file without blocks that has the length of the one elsewhere and holds its header. What is fetched is
//! written into it, so that whoever has mapped it sees it; what is dropped is cut off, and it is as before. When a run
//! begins, its name goes: however the process ends, the system takes the room back.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::statvfs;

use super::error::CheckpointError;
use super::remote::RemoteFile;
use super::scratch_folder::ScratchFolder;
use errors::Refusal;

/// How many ranges are fetched at a time.
const AT_A_TIME: usize = 8;

/// Where the bytes of a weight file come from.
pub trait Origin: fmt::Debug + Send + Sync {
    /// The file's name, and where it lies, for messages.
    fn name(&self) -> String;

    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Reads a few bytes.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, Refusal>;

    /// Fetches all of it into a file of its length, which messages call `path`.
    ///
    /// # Errors
    /// It cannot be fetched, is not what was listed, or `stopped` says so.
    fn fetch(
        &self,
        file: &File,
        path: &Path,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal>;

    /// Where the cache would keep it, named by its digest; none if nothing is known of its content.
    fn blob(&self) -> Option<PathBuf> {
        None
    }
}

/// What becomes of the weight files whose headers are fetched.
#[derive(Debug, Clone)]
pub enum ScratchUse {
    /// Nothing more of them comes.
    HeaderOnly,
    /// They are fetched while they are used. The folder in which they are stays as long as one of them.
    Fetched(Arc<ScratchFolder>),
}

/// A weight file of which the header is here.
pub struct ScratchFile {
    origin: Box<dyn Origin>,
    path: PathBuf,
    file: File,
    /// The length of its header, with the number before it.
    header: u64,
    used: ScratchUse,
    state: Mutex<State>,
}

/// What has happened to it.
#[derive(Default)]
struct State {
    /// The ranges that have come.
    here: BTreeSet<(u64, u64)>,
    /// Whether all of it has come.
    is_whole: bool,
    /// Why a range did not come.
    failed: Option<Refusal>,
    /// Whether its name is gone.
    begun: bool,
}

impl ScratchFile {
    /// Makes the file at `path` from its header, with the number before it.
    ///
    /// # Errors
    /// The system refuses it.
    pub fn new(
        path: PathBuf,
        header: &[u8],
        origin: Box<dyn Origin>,
        used: ScratchUse,
    ) -> io::Result<ScratchFile> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // The same model may be here already, under another name: its file stays with it.
        let _ = fs::remove_file(&path);
        let mut options = File::options();
        let mut file = (options.read(true).write(true).create_new(true)).open(&path)?;
        file.write_all(header)?;
        file.set_len(origin.size())?;
        Ok(ScratchFile {
            origin,
            path,
            file,
            header: header.len() as u64,
            used,
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_used(&self) -> Result<(), Refusal> {
        match &self.used {
            ScratchUse::Fetched(_) => Ok(()),
            ScratchUse::HeaderOnly => Err(Refusal::new(format!(
                "of {} only the header was fetched",
                self.name()
            ))),
        }
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> Refusal {
        move |source| Refusal::from(&CheckpointError::io(action, &self.path, source))
    }

    /// Fetches a range.
    fn fetch_range(&self, range: (u64, u64)) -> Result<(), Refusal> {
        let bytes = self.origin.read(range.0..range.1)?;
        let written = self.file.write_all_at(&bytes, range.0);
        written.map_err(self.io("write"))?;
        self.state().here.insert(range);
        Ok(())
    }

    /// Fetches ranges, several at a time.
    fn fetch_ranges(&self, ranges: &[(u64, u64)]) -> Result<(), Refusal> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let first = Mutex::new(None);
        let work = || {
            while !failed.load(SeqCst)
                && let Some(&range) = ranges.get(next.fetch_add(1, SeqCst))
            {
                if let Err(error) = self.fetch_range(range) {
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

impl fmt::Debug for ScratchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ScratchFile").field(&self.name()).finish()
    }
}

impl RemoteFile for ScratchFile {
    fn name(&self) -> String {
        self.origin.name()
    }

    fn size(&self) -> u64 {
        self.origin.size()
    }

    fn is_header_only(&self) -> bool {
        matches!(self.used, ScratchUse::HeaderOnly)
    }

    fn peek(&self, ranges: &[Range<u64>]) -> Result<(), Refusal> {
        self.check_used()?;
        let missing: Vec<(u64, u64)> = {
            let state = self.state();
            let within = ranges.iter().map(|range| {
                let end = range.end.min(self.size());
                (range.start.min(end), end)
            });
            let missing = within.filter(|range| {
                range.0 < range.1 && range.1 > self.header && !state.here.contains(range)
            });
            missing.collect()
        };
        let done = self.fetch_ranges(&missing);
        done.map_err(|refusal| self.state().failed.get_or_insert(refusal).clone())
    }

    fn begin(&self) -> Result<(), Refusal> {
        self.check_used()?;
        let mut state = self.state();
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        if state.begun {
            return Ok(());
        }
        let replace = || {
            fs::remove_file(&self.path)?;
            // What stands for it says by its name what the file has as its digest, as in a snapshot.
            self.origin
                .blob()
                .map_or(Ok(()), |blob| symlink(&blob, &self.path))
        };
        replace().map_err(self.io("remove"))?;
        state.begun = true;
        Ok(())
    }

    fn fetch(&self, stopped: &(dyn Fn() -> bool + Sync)) -> Result<(), Refusal> {
        self.check_used()?;
        // An adapter on several models is fetched by the first.
        if !self.state().is_whole {
            self.origin.fetch(&self.file, &self.path, stopped)?;
            self.state().is_whole = true;
        }
        Ok(())
    }

    fn drop_content(&self) -> Result<(), Refusal> {
        let mut state = self.state();
        state.here.clear();
        state.is_whole = false;
        drop(state);
        let cut = || {
            self.file.set_len(self.header)?;
            self.file.set_len(self.size())
        };
        cut().map_err(self.io("cut"))
    }

    fn room(&self) -> Option<u64> {
        let ScratchUse::Fetched(folder) = &self.used else {
            return None;
        };
        let disk = statvfs(folder.path()).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

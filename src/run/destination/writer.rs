//! Writes tiles of output to disk on threads of its own.
//!
//! Workers go on computing while the disk works. Tiles bypass the page cache if the file system allows it: a merge
//! writes gigabytes that nobody reads soon, and the page cache would cost a copy and a page for each, and would evict
//! the inputs. Otherwise they are written the usual way.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{FallocateFlags, fallocate};

use super::disk::{Disk, DiskError, Step};
use super::stage::is_unsupported;
use engine::{PAGE, Tile};

/// Writing threads: while one waits for a busy processor, the disk has the other's tile to write.
const WRITERS: usize = 2;

/// Fewer bytes than this are not written past the page cache.
const FEW: usize = 64 << 10;

/// A new file of known length, written in any order, each byte once.
#[derive(Debug)]
pub(super) struct NewFile {
    disk: Disk,
    path: PathBuf,
    buffered: File,
    /// The same file, past the page cache.
    direct: Option<File>,
    /// Whether a direct write was refused.
    refused: AtomicBool,
}

impl NewFile {
    /// Creates the file and reserves its room, so that a full disk is noticed at once.
    pub(super) fn create(disk: &Disk, path: PathBuf, length: u64) -> Result<Self, DiskError> {
        let buffered = disk.step(Step::Create, &path, || File::create_new(&path))?;
        disk.step(Step::Allocate, &path, || {
            let allocated = fallocate(&buffered, FallocateFlags::empty(), 0, length);
            match allocated.map_err(io::Error::from) {
                // Not every file system supports this; the call may also be interrupted.
                Err(error) if is_unsupported(&error) => buffered.set_len(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    buffered.set_len(length)
                }
                done => done,
            }
        })?;
        Ok(Self {
            disk: disk.clone(),
            direct: open_direct(&path),
            path,
            buffered,
            refused: AtomicBool::new(false),
        })
    }

    /// Writes the start of the file through the page cache: the header's memory is not page-aligned, as direct writes
    /// require.
    pub(super) fn write_header(&self, header: &[u8]) -> Result<(), DiskError> {
        let write = || self.buffered.write_all_at(header, 0);
        self.disk.step(Step::Write, &self.path, write)
    }

    /// Writes bytes at their offset.
    fn write(&self, start: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let write = || self.write_in_pages(start, bytes);
        self.disk.step(Step::Write, &self.path, write)
    }

    /// Writes whole pages past the page cache, and the partial pages at both ends through it.
    fn write_in_pages(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = whole_pages(start, bytes.len());
        let direct = self.direct.as_ref().filter(|_| !self.refused.load(Relaxed));
        let Some(direct) = direct.filter(|_| pages.len() >= FEW) else {
            return self.buffered.write_all_at(bytes, start);
        };
        match direct.write_all_at(&bytes[pages.clone()], start + pages.start as u64) {
            // Some file systems open a file for direct writes and then refuse them.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Relaxed);
                return self.buffered.write_all_at(bytes, start);
            }
            done => done?,
        }
        let (before, after) = (&bytes[..pages.start], &bytes[pages.end..]);
        self.buffered.write_all_at(before, start)?;
        self.buffered.write_all_at(after, start + pages.end as u64)
    }

    /// Waits until all of it is on the disk.
    fn sync(&self) -> Result<(), DiskError> {
        let sync = || self.buffered.sync_all();
        self.disk.step(Step::Sync, &self.path, sync)
    }
}

/// The range of whole pages among `len` bytes that begin at offset `start`.
fn whole_pages(start: u64, len: usize) -> Range<usize> {
    let to_page = (start.next_multiple_of(PAGE as u64) - start) as usize;
    match len.checked_sub(to_page) {
        Some(rest) => to_page..to_page + rest / PAGE * PAGE,
        None => 0..0,
    }
}

/// Opens a file for writes past the page cache, if the system supports them.
fn open_direct(path: &Path) -> Option<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path)
            .ok()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (path, OpenOptions::new());
        None
    }
}

/// Writes files from several threads.
pub(super) struct Writer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// State shared by the workers and the writing threads.
struct Shared {
    files: Vec<NewFile>,
    state: Mutex<State>,
    /// Notified on every change of the state that a writing thread may wait for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Tiles that wait to be written: file, offset, bytes.
    waiting: VecDeque<(usize, u64, Tile)>,
    /// Whether no more tiles will come.
    closed: bool,
    /// The first write that failed.
    failure: Option<DiskError>,
}

impl Writer {
    /// Starts the threads.
    pub(super) fn new(files: Vec<NewFile>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            files,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut writer = Self {
            shared,
            threads: Vec::new(),
        };
        for number in 0..WRITERS {
            let its = Arc::clone(&writer.shared);
            let thread = std::thread::Builder::new().name(format!("weld-writer-{number}"));
            writer.threads.push(thread.spawn(move || its.write_all())?);
        }
        Ok(writer)
    }

    /// Queues bytes of a file that begin at offset `start`; each byte once, in any order.
    ///
    /// # Errors
    /// An earlier write failed.
    pub(super) fn write(&self, file: usize, start: u64, bytes: Tile) -> io::Result<()> {
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failure {
            return Err(again(&failure.source));
        }
        state.waiting.push_back((file, start, bytes));
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// The first write that failed, or a file that cannot be synced.
    pub(super) fn finish(mut self) -> Result<(), DiskError> {
        self.close();
        if let Some(failure) = self.shared.lock().failure.take() {
            return Err(failure);
        }
        self.shared.files.iter().try_for_each(NewFile::sync)
    }

    /// Closes the queue, and waits until the threads have written it.
    fn close(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let panicked = io::Error::other("a writing thread panicked");
                let failure = DiskError::at(Step::Write, Path::new("the weights"))(panicked);
                self.shared.lock().failure.get_or_insert(failure);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // The run has failed, so the rest need not be written.
            self.shared.lock().waiting.clear();
            self.close();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of a writing thread: writes tiles until no more will come.
    fn write_all(&self) {
        let mut state = self.lock();
        loop {
            let Some((file, start, bytes)) = state.waiting.pop_front() else {
                if state.closed {
                    return;
                }
                let changed = self.changed.wait(state);
                state = changed.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // After a failure tiles are only returned, because somebody may wait for one.
            let failed = state.failure.is_some();
            drop(state);
            let done = match self.files.get(file) {
                Some(file) if !failed => file.write(start, &bytes),
                _ => Ok(()),
            };
            drop(bytes);
            state = self.lock();
            if let Err(error) = done {
                state.failure.get_or_insert(error);
            }
        }
    }
}

/// A copy of an I/O error.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use engine::Tiles;

    /// Writes pieces in the given order by two threads that share `tiles` tiles, and compares the files.
    fn round_trip(lengths: &[usize], pieces: &[(usize, Range<usize>)], tiles: usize) {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = lengths
            .iter()
            .map(|&length| (0..length).map(|i| (i * 7 + length) as u8).collect())
            .collect();
        let files = lengths.iter().enumerate().map(|(number, &length)| {
            NewFile::create(
                &Disk::default(),
                folder.path().join(number.to_string()),
                length as u64,
            )
            .unwrap()
        });
        let writer = Writer::new(files.collect()).unwrap();
        let tiles = Tiles::new(400_000 + PAGE, tiles);
        let (one, other) = pieces.split_at(pieces.len() / 2);
        std::thread::scope(|scope| {
            for pieces in [one, other] {
                let (writer, contents, tiles) = (&writer, &contents, &tiles);
                scope.spawn(move || {
                    for (file, range) in pieces {
                        let mut tile = tiles.take(range.start % PAGE, range.len()).unwrap();
                        tile.copy_from_slice(&contents[*file][range.clone()]);
                        writer.write(*file, range.start as u64, tile).unwrap();
                    }
                });
            }
        });
        writer.finish().unwrap();
        for (number, content) in contents.iter().enumerate() {
            let found = fs::read(folder.path().join(number.to_string())).unwrap();
            assert!(found == *content, "file {number}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_order_any_cuts_and_few_tiles(
            lengths in prop::collection::vec(1usize..400_000, 1..4),
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
            order in any::<u64>(),
            tiles in 1usize..5,
        ) {
            let mut pieces = Vec::new();
            for (file, &length) in lengths.iter().enumerate() {
                let mut at: Vec<usize> = vec![0, length];
                at.extend(cuts.iter().filter(|(which, _)| which.index(lengths.len()) == file).map(|(_, cut)| cut.index(length)));
                at.sort_unstable();
                pieces.extend(at.windows(2).map(|pair| (file, pair[0]..pair[1])));
            }
            // Any order will do, except that of the files.
            pieces.sort_by_key(|(file, range)| (range.start as u64 ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(*file as u32));
            round_trip(&lengths, &pieces, tiles);
        }
    }

    #[test]
    fn a_write_that_fails_is_told_to_those_after_it_and_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let mut file = NewFile::create(&Disk::default(), path.clone(), 1 << 20).unwrap();
        // Not open for writing, so every write fails.
        file.buffered = File::open(&path).unwrap();
        file.direct = None;
        let writer = Writer::new(vec![file]).unwrap();
        // With a single tile: it must come back even from a write that failed.
        let tiles = Tiles::new(PAGE, 1);
        let results: Vec<io::Result<()>> = (0..256)
            .map(|n| writer.write(0, n * 4096, tiles.take(0, PAGE).unwrap()))
            .collect();
        assert!(results.iter().any(Result::is_err));
        let failure = writer.finish().unwrap_err();
        assert_eq!((failure.step, failure.path), (Step::Write, path));
    }

    #[test]
    fn direct_writes_that_are_refused_go_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let len = 2 * FEW + 10;
        let file = NewFile::create(&Disk::default(), path.clone(), len as u64).unwrap();
        let bytes = vec![7u8; len + 1];
        // The system reports unaligned memory with the same error as a file system that refuses direct writes.
        let unaligned = usize::from((bytes.as_ptr() as usize).is_multiple_of(PAGE));
        file.write(0, &bytes[unaligned..][..len]).unwrap();
        file.sync().unwrap();
        assert_eq!(fs::read(path).unwrap(), vec![7u8; len]);
    }

    #[test]
    fn a_long_header_does_not_send_what_follows_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let file = NewFile::create(&Disk::default(), path.clone(), 2 * FEW as u64).unwrap();
        let header = vec![7u8; 2 * FEW + 1];
        let unaligned = usize::from((header.as_ptr() as usize).is_multiple_of(PAGE));
        file.write_header(&header[unaligned..][..2 * FEW]).unwrap();
        assert!(!file.refused.load(Relaxed));
        file.sync().unwrap();
        assert_eq!(fs::read(path).unwrap(), vec![7u8; 2 * FEW]);
    }

    #[test]
    fn whole_pages_of_any_bytes() {
        assert_eq!(whole_pages(0, 2 * PAGE + 1), 0..2 * PAGE);
        assert_eq!(whole_pages(1, 2 * PAGE - 1), PAGE - 1..2 * PAGE - 1);
        assert_eq!(whole_pages(1, 2 * PAGE - 2), PAGE - 1..PAGE - 1);
        assert_eq!(whole_pages(1, 5), 0..0);
        assert_eq!(whole_pages(0, 0), 0..0);
    }
}

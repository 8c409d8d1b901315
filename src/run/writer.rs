//! Bytes on their way to the disk: put together into aligned chunks, which threads of their own write.
//!
//! Workers go on computing while the disk works. Chunks are written past the page cache where the file system
//! can: a merge writes gigabytes that nobody reads soon, and through the cache they cost a copy, a page each,
//! and the inputs' place in it. Elsewhere they are written the usual way.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate};

/// What direct writes are aligned to: the page size, which is a multiple of every disk's sector.
const ALIGNMENT: usize = 4096;

/// Threads that write: while one waits for its turn on a busy processor, the disk has the other's chunk to write.
const WRITERS: usize = 2;

/// How much memory bytes may hold on their way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes of a chunk; a multiple of 4096.
    pub(super) chunk: usize,
    /// How many chunks there may be; at least one.
    pub(super) chunks: usize,
}

/// A new file of a known length, to be written in any order, each byte once.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    length: u64,
    buffered: File,
    /// The same file, past the page cache.
    direct: Option<File>,
    /// Whether a direct write was refused.
    refused: AtomicBool,
}

impl NewFile {
    /// Creates the file and sets its room aside, so that a full disk shows at once.
    pub(super) fn create(path: PathBuf, length: u64) -> io::Result<Self> {
        let buffered = File::create_new(&path)?;
        match fallocate(&buffered, FallocateFlags::empty(), 0, length) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(rustix::io::Errno::NOSPC.into()),
            // Not every file system can.
            Err(_) => buffered.set_len(length)?,
        }
        Ok(Self {
            direct: open_direct(&path),
            path,
            length,
            buffered,
            refused: AtomicBool::new(false),
        })
    }

    /// Writes a whole chunk; what lies in it beyond the file's end is cut off later.
    fn write_chunk(&self, start: u64, bytes: &mut [u8]) -> io::Result<()> {
        let length = bytes.len().min((self.length - start) as usize);
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Relaxed)) {
            let whole = length.next_multiple_of(ALIGNMENT).min(bytes.len());
            bytes[length..whole].fill(0);
            match direct.write_all_at(&bytes[..whole], start) {
                // Some file systems open a file for direct writes and take none.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Relaxed);
                }
                done => return done,
            }
        }
        self.buffered.write_all_at(&bytes[..length], start)
    }

    /// Gives the file its length and waits until all of it is on the disk.
    fn sync(&self) -> io::Result<()> {
        self.buffered.set_len(self.length)?;
        self.buffered.sync_all()
    }
}

/// Opens a file for writes past the page cache, where the system has such a thing.
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

/// What the workers and the writing thread share.
struct Shared {
    files: Vec<NewFile>,
    room: Room,
    state: Mutex<State>,
    /// Told of every change of the state that somebody may wait for.
    changed: Condvar,
}

/// A chunk's place: the file, and the chunk's number in it.
type Place = (usize, u64);

#[derive(Default)]
struct State {
    /// Chunks that are not full; `None` while a worker fills it.
    open: BTreeMap<Place, Option<Chunk>>,
    /// Full chunks that wait to be written.
    full: VecDeque<(Place, Chunk)>,
    /// Chunks that are being written.
    writing: usize,
    /// Memory of chunks that were written.
    free: Vec<MmapMut>,
    /// How many chunks have memory.
    allocated: usize,
    /// Whether no more will come.
    closed: bool,
    /// The file that could not be written, and why.
    failure: Option<(usize, io::Error)>,
}

/// Bytes of a chunk and which of them are there.
struct Chunk {
    bytes: MmapMut,
    filled: Vec<Range<usize>>,
}

impl Writer {
    /// Starts the threads.
    pub(super) fn new(files: Vec<NewFile>, room: Room) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            files,
            room,
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
            writer
                .threads
                .push(thread.spawn(move || its.write_chunks())?);
        }
        Ok(writer)
    }

    /// Takes bytes of a file at an offset; waits while there is no room.
    ///
    /// # Errors
    /// Those of this write, and of any before it.
    pub(super) fn write(&self, file: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.shared.put(file, offset, bytes)
    }

    /// Waits until everything is on the disk; on failure gives the file too.
    pub(super) fn finish(mut self) -> Result<(), (PathBuf, io::Error)> {
        self.close();
        let named = |(file, error): (usize, io::Error)| {
            let path = self.shared.files.get(file).map(|file| file.path.clone());
            (path.unwrap_or_default(), error)
        };
        if let Some(failure) = self.shared.lock().failure.take() {
            return Err(named(failure));
        }
        let open = std::mem::take(&mut self.shared.lock().open);
        for (place, chunk) in open {
            if let Some(chunk) = chunk {
                let written = self.shared.write_pieces(place, &chunk);
                written.map_err(|error| named((place.0, error)))?;
            }
        }
        for (file, new) in self.shared.files.iter().enumerate() {
            new.sync().map_err(|error| named((file, error)))?;
        }
        Ok(())
    }

    /// Lets the threads write what is full, and waits for them.
    fn close(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let failure = (0, io::Error::other("a writing thread panicked"));
                self.shared.lock().failure.get_or_insert(failure);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // The run has failed: what is not written need not be.
            self.shared.lock().full.clear();
            self.close();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, file: usize, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let size = self.room.chunk as u64;
        while !bytes.is_empty() {
            let place = (file, offset / size);
            let within = (offset % size) as usize;
            let (here, rest) = bytes.split_at(bytes.len().min(self.room.chunk - within));
            let mut chunk = self.take(place)?;
            chunk.bytes[within..][..here.len()].copy_from_slice(here);
            chunk.filled.push(within..within + here.len());
            self.give_back(place, chunk);
            offset += here.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// The chunk of this place, for this thread alone.
    fn take(&self, place: Place) -> io::Result<Chunk> {
        let mut state = self.lock();
        loop {
            if let Some((_, error)) = &state.failure {
                return Err(again(error));
            }
            match state.open.get_mut(&place).map(Option::take) {
                Some(Some(chunk)) => return Ok(chunk),
                Some(None) => {}
                None => {
                    if let Some(bytes) = self.memory(&mut state)? {
                        state.open.insert(place, None);
                        let filled = Vec::new();
                        return Ok(Chunk { bytes, filled });
                    }
                    if state.writing == 0 && state.full.is_empty() {
                        self.make_room(&mut state)?;
                    }
                    if !state.free.is_empty() {
                        continue;
                    }
                }
            }
            state = self.wait(state);
        }
    }

    /// Memory for a chunk, if there is any left.
    fn memory(&self, state: &mut State) -> io::Result<Option<MmapMut>> {
        if let Some(bytes) = state.free.pop() {
            return Ok(Some(bytes));
        }
        if state.allocated == self.room.chunks {
            return Ok(None);
        }
        state.allocated += 1;
        // Anonymous maps begin at a page, as direct writes want it.
        let bytes = MmapMut::map_anon(self.room.chunk)?;
        // In large pages, of which the system has fewer to look up for a write; where it has none, as it is.
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        Ok(Some(bytes))
    }

    /// Writes what there is of the first chunk, so that another can have its memory.
    ///
    /// Tensors are finished nearly in the order of their places, so this is rare, and need not be fast.
    fn make_room(&self, state: &mut State) -> io::Result<()> {
        let first = state.open.iter().find(|(_, chunk)| chunk.is_some());
        let Some(place) = first.map(|(&place, _)| place) else {
            return Ok(());
        };
        if let Some(Some(chunk)) = state.open.remove(&place) {
            self.write_pieces(place, &chunk)?;
            state.free.push(chunk.bytes);
        }
        Ok(())
    }

    /// Gives a chunk back, to be written if it is full.
    fn give_back(&self, place: Place, chunk: Chunk) {
        let (file, number) = place;
        let start = number * self.room.chunk as u64;
        let length = self.files.get(file).map_or(0, |file| file.length - start);
        let filled: u64 = chunk.filled.iter().map(|range| range.len() as u64).sum();
        let mut state = self.lock();
        if filled == length.min(self.room.chunk as u64) {
            state.open.remove(&place);
            state.full.push_back((place, chunk));
        } else {
            state.open.insert(place, Some(chunk));
        }
        self.changed.notify_all();
    }

    /// Writes the parts of a chunk that are there, through the page cache.
    fn write_pieces(&self, (file, number): Place, chunk: &Chunk) -> io::Result<()> {
        let start = number * self.room.chunk as u64;
        chunk.filled.iter().try_for_each(|range| {
            let bytes = &chunk.bytes[range.clone()];
            self.files[file]
                .buffered
                .write_all_at(bytes, start + range.start as u64)
        })
    }

    /// The work of a thread: writes full chunks until no more will come.
    fn write_chunks(&self) {
        let mut state = self.lock();
        loop {
            let Some((place, mut chunk)) = state.full.pop_front() else {
                if state.closed {
                    return;
                }
                state = self.wait(state);
                continue;
            };
            state.writing += 1;
            drop(state);
            let (file, number) = place;
            let start = number * self.room.chunk as u64;
            let done = self.files[file].write_chunk(start, &mut chunk.bytes);
            state = self.lock();
            state.writing -= 1;
            state.free.push(chunk.bytes);
            if let Err(error) = done {
                state.failure.get_or_insert((file, error));
            }
            self.changed.notify_all();
        }
    }
}

/// The same error once more.
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

    /// Writes pieces in the order given, by two threads, and compares the files.
    fn round_trip(lengths: &[usize], pieces: &[(usize, Range<usize>)], room: Room) {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = lengths
            .iter()
            .map(|&length| (0..length).map(|i| (i * 7 + length) as u8).collect())
            .collect();
        let files = lengths.iter().enumerate().map(|(number, &length)| {
            NewFile::create(folder.path().join(number.to_string()), length as u64).unwrap()
        });
        let writer = Writer::new(files.collect(), room).unwrap();
        let (one, other) = pieces.split_at(pieces.len() / 2);
        std::thread::scope(|scope| {
            for pieces in [one, other] {
                let (writer, contents) = (&writer, &contents);
                scope.spawn(move || {
                    for (file, range) in pieces {
                        let bytes = &contents[*file][range.clone()];
                        writer.write(*file, range.start as u64, bytes).unwrap();
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
        fn any_order_any_cuts_and_little_room(
            lengths in prop::collection::vec(1usize..60_000, 1..4),
            cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40),
            order in any::<u64>(),
            chunks in 1usize..5,
        ) {
            let mut pieces = Vec::new();
            for (file, &length) in lengths.iter().enumerate() {
                let mut at: Vec<usize> = vec![0, length];
                at.extend(cuts.iter().filter(|(which, _)| which.index(lengths.len()) == file).map(|(_, cut)| cut.index(length)));
                at.sort_unstable();
                pieces.extend(at.windows(2).map(|pair| (file, pair[0]..pair[1])));
            }
            // Any order will do, as long as it is not that of the files.
            pieces.sort_by_key(|(file, range)| (range.start as u64 ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(*file as u32));
            round_trip(&lengths, &pieces, Room { chunk: 8192, chunks });
        }
    }

    #[test]
    fn a_write_that_fails_is_told_to_those_after_it_and_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let mut file = NewFile::create(path.clone(), 1 << 20).unwrap();
        // Not open for writing: every write fails.
        file.buffered = File::open(&path).unwrap();
        file.direct = None;
        let room = Room {
            chunk: 4096,
            chunks: 3,
        };
        let writer = Writer::new(vec![file], room).unwrap();
        let results: Vec<io::Result<()>> = (0..256)
            .map(|n| writer.write(0, n * 4096, &[1; 4096]))
            .collect();
        assert!(results.iter().any(Result::is_err));
        let (found, _) = writer.finish().unwrap_err();
        assert_eq!(found, path);
    }

    #[test]
    fn direct_writes_that_are_refused_go_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let file = NewFile::create(path.clone(), 10_000).unwrap();
        let mut bytes = vec![7u8; 12_288];
        // Memory that is not aligned: what the system says of it is what a refusing file system says.
        let (_, unaligned) = bytes.split_at_mut(1);
        file.write_chunk(0, unaligned).unwrap();
        file.sync().unwrap();
        assert_eq!(fs::read(path).unwrap(), vec![7u8; 10_000]);
    }
}

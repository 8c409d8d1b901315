//! The copy floor: every input byte read once, every output byte written once, as durable as a merge.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};

/// Bytes that a thread reads or writes at a time.
const CHUNK: usize = 4 << 20;

/// How the output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// Through the page cache, then synced.
    Buffered,
    /// Past the page cache, then synced.
    Direct,
}

/// How inputs are read where nothing is written.
#[allow(dead_code, reason = "not every benchmark reads without writing")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Through the page cache, from one thread.
    Buffered,
    /// Past the page cache, from all threads.
    Direct,
}

/// Reads the inputs, one after the other, and gives the time it took.
#[allow(dead_code, reason = "not every benchmark reads without writing")]
pub(crate) fn read(inputs: &[PathBuf], reading: Reading, threads: usize) -> io::Result<Duration> {
    let started = Instant::now();
    let mut options = OpenOptions::new();
    options.read(true);
    let threads = match reading {
        Reading::Buffered => 1,
        Reading::Direct => {
            options.custom_flags(libc::O_DIRECT);
            threads
        }
    };
    for path in inputs {
        let file = options.open(path)?;
        let length = file.metadata()?.len();
        let next = AtomicUsize::new(0);
        on_threads(threads, |buffer| {
            loop {
                let start = (next.fetch_add(1, Relaxed) * CHUNK) as u64;
                if start >= length {
                    return Ok(());
                }
                let mut done = 0;
                while done < CHUNK && start + (done as u64) < length {
                    done += file.read_at(&mut buffer[done..], start + done as u64)?;
                }
            }
        })?;
    }
    Ok(started.elapsed())
}

/// Reads the inputs through maps and writes as much as the first one holds; gives the time it took.
#[allow(dead_code, reason = "each benchmark uses one of the two")]
pub(crate) fn copy(
    inputs: &[PathBuf],
    out: &Path,
    writing: Writing,
    threads: usize,
) -> io::Result<Duration> {
    let Some(first) = inputs.first() else {
        return Err(io::Error::other("no input"));
    };
    let length = fs::metadata(first)?.len() as usize;
    work(
        inputs,
        out,
        writing,
        threads,
        length,
        |maps, start, buffer| {
            for (index, map) in maps.iter().enumerate() {
                let end = map.len().min(start + CHUNK);
                let piece = map.get(start..end).unwrap_or_default();
                if index == 0 {
                    buffer[..piece.len()].copy_from_slice(piece);
                } else {
                    std::hint::black_box(touch(piece));
                }
            }
        },
    )
}

/// Writes so many bytes, copied from one input after the other, again and again; gives the time it took.
#[allow(dead_code, reason = "each benchmark uses one of the two")]
pub(crate) fn copy_length(
    inputs: &[PathBuf],
    out: &Path,
    writing: Writing,
    threads: usize,
    length: u64,
) -> io::Result<Duration> {
    work(
        inputs,
        out,
        writing,
        threads,
        length as usize,
        |maps, start, buffer| {
            let number = start / CHUNK;
            let map = &maps[number % maps.len()];
            // Whole chunks of it in turn.
            let chunks = (map.len() / CHUNK).max(1);
            let from = number / maps.len() % chunks * CHUNK;
            let piece = map
                .get(from..map.len().min(from + CHUNK))
                .unwrap_or_default();
            buffer[..piece.len()].copy_from_slice(piece);
        },
    )
}

/// Writes `length` bytes that `fill` gives, a chunk at a time, from several threads.
fn work(
    inputs: &[PathBuf],
    out: &Path,
    writing: Writing,
    threads: usize,
    exact: usize,
    fill: impl Fn(&[Mmap], usize, &mut [u8]) + Sync,
) -> io::Result<Duration> {
    let _ = fs::remove_file(out);
    let started = Instant::now();
    let maps: Vec<Mmap> = inputs
        .iter()
        .map(|path| {
            // SAFETY: the benchmark's own files, which nobody writes to.
            unsafe { Mmap::map(&File::open(path)?) }
        })
        .collect::<io::Result<_>>()?;
    let length = exact.next_multiple_of(CHUNK);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    if writing == Writing::Direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(out)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length as u64)?;
    let next = AtomicUsize::new(0);
    on_threads(threads, |buffer| {
        loop {
            let start = next.fetch_add(1, Relaxed) * CHUNK;
            if start >= length {
                return Ok(());
            }
            fill(&maps, start, buffer);
            file.write_all_at(buffer, start as u64)?;
        }
    })
    .and_then(|()| file.set_len(exact as u64))
    .and_then(|()| file.sync_all())?;
    let elapsed = started.elapsed();
    fs::remove_file(out)?;
    Ok(elapsed)
}

/// Lets threads work, each with a chunk of memory that is aligned as direct reads and writes want it, in large pages
/// where the system has them: so writes take a quarter less time than from small ones.
fn on_threads(threads: usize, work: impl Fn(&mut [u8]) -> io::Result<()> + Sync) -> io::Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = MmapMut::map_anon(CHUNK)?;
                    let _ = buffer.advise(memmap2::Advice::HugePage);
                    work(&mut buffer)
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker reads or writes"))
    })
}

/// Reads every byte.
#[allow(dead_code, reason = "not every benchmark reads without writing")]
fn touch(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |sum, word| sum ^ u64::from_le_bytes(*word))
}

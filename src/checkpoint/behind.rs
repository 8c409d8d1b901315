//! Drop-behind: bytes of a mapped file that have been read for the last time leave the map. For inputs that do not fit
//! into memory, they leave the page cache too.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes reclaimed at once; pieces start at multiples of it. A system's read-ahead is a power of two and not larger, so
/// it lies within one piece.
const PIECE: u64 = 8 << 20;

/// Where bytes that are not needed again are reclaimed from. They can still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    /// The map of the process. At exit the system would remove the map slowly, on one thread; so the workers do it as
    /// they go.
    Map,
    /// The page cache too: a later read comes from the disk.
    Cache,
}

/// How much of each piece of a file has been read for the last time.
#[derive(Debug)]
pub(super) struct Behind {
    file_size: u64,
    read: Vec<AtomicU64>,
}

impl Behind {
    pub(super) fn new(file_size: u64) -> Self {
        let pieces = file_size.div_ceil(PIECE);
        Self {
            file_size,
            read: (0..pieces).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that these bytes are not needed again. Returns the pieces that are now complete: all of their bytes have
    /// been noted.
    ///
    /// A piece that contains a header, or a tensor that is never read, never becomes complete.
    pub(super) fn note(&self, bytes: Range<u64>) -> Vec<Range<u64>> {
        let mut done = Vec::new();
        let mut start = bytes.start;
        let end = bytes.end.min(self.file_size);
        while start < end {
            let number = start / PIECE;
            let first = number * PIECE;
            let piece = first..self.file_size.min(first + PIECE);
            let here = end.min(piece.end) - start;
            let Some(read) = self.read.get(number as usize) else {
                break;
            };
            let before = read.fetch_add(here, Relaxed);
            if before + here == piece.end - piece.start {
                done.push(piece.clone());
            }
            start = piece.end;
        }
        done
    }
}

/// Reclaims mapped bytes that start at a page; a later read gets them from their file again. Does nothing if the system
/// has no such advice, or refuses it.
pub(super) fn reclaim(bytes: &[u8], from: Reclaim) {
    #[cfg(target_os = "linux")]
    {
        let start = bytes.as_ptr().cast_mut().cast();
        let advice = match from {
            Reclaim::Map => libc::MADV_DONTNEED,
            Reclaim::Cache => libc::MADV_PAGEOUT,
        };
        // SAFETY: the bytes are of a map of a file that is never written to, so that pages leave it and come back as
        // they are in the file when they are touched.
        unsafe { libc::madvise(start, bytes.len(), advice) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (bytes, from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_leaves_when_all_of_it_was_read_and_only_once() {
        let file_size = 2 * PIECE + 100;
        let behind = Behind::new(file_size);
        assert_eq!(behind.note(10..PIECE), []);
        assert_eq!(behind.note(PIECE..PIECE + 7), []);
        let first = 0..PIECE;
        assert_eq!(behind.note(0..10), [first]);
        assert_eq!(behind.note(2 * PIECE + 50..file_size), []);
        // Across the boundary of two pieces.
        assert_eq!(
            behind.note(PIECE + 7..2 * PIECE + 50),
            [PIECE..2 * PIECE, 2 * PIECE..file_size]
        );
        // Read again, for another tensor.
        assert_eq!(behind.note(0..PIECE), []);
        // Beyond the end of the file, which has changed since it was opened.
        assert_eq!(behind.note(file_size..file_size + PIECE), []);
    }
}

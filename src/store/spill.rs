//! Weight files on their way to a store: bytes come in any order, and go in pieces, each when all of it is there.
//!
//! What waits lies in files with holes on the local disk: the header, which stays so that the output can be looked at,
//! and the pieces that have not gone yet.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::AcqRel};

use rustix::fs::{FallocateFlags, fallocate};

/// The length of a piece, and the most pieces of a file: S3 takes 10,000, of at least 5 MiB but for the last. Tests send
/// small ones, many times.
pub(crate) const PIECE: u64 = if cfg!(test) { 64 << 10 } else { 8 << 20 };
const MOST_PIECES: u64 = 9_000;

/// Holes are made of whole pages.
const PAGE: u64 = 4096;

/// A weight file that goes to a store piece by piece.
#[derive(Debug)]
pub(crate) struct Spill {
    file: File,
    path: PathBuf,
    header: u64,
    size: u64,
    piece: u64,
    /// How many bytes each piece still lacks.
    missing: Vec<AtomicU64>,
}

impl Spill {
    /// A file of this length with its header, in which all else is missing. Also returns the pieces that the header
    /// completes.
    pub(crate) fn new(
        path: PathBuf,
        header: &[u8],
        size: u64,
    ) -> io::Result<(Spill, Range<usize>)> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(size)?;
        file.write_all_at(header, 0)?;
        let piece = piece_len(size);
        let spill = Spill {
            file,
            path,
            header: header.len() as u64,
            size,
            piece,
            missing: (0..size.div_ceil(piece))
                .map(|number| AtomicU64::new(piece.min(size - number * piece)))
                .collect(),
        };
        let whole = spill.came(0, header.len() as u64)?;
        Ok((spill, whole))
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many pieces it has.
    pub(crate) fn pieces(&self) -> usize {
        self.missing.len()
    }

    /// Takes bytes, each once, and returns the pieces that they complete: at most those that they lie in.
    ///
    /// # Errors
    /// They lie beyond the file, or the disk does not take them.
    pub(crate) fn write(&self, start: u64, bytes: &[u8]) -> io::Result<Vec<usize>> {
        let len = bytes.len() as u64;
        if start.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(io::Error::other("no place is planned for these bytes"));
        }
        self.file.write_all_at(bytes, start)?;
        self.count(start, len)
    }

    /// Counts bytes that are there from the start on.
    fn came(&self, start: u64, len: u64) -> io::Result<Range<usize>> {
        let whole = self.count(start, len)?;
        Ok(0..whole.len())
    }

    /// Counts bytes that are there now; returns the pieces that are whole with them.
    fn count(&self, start: u64, len: u64) -> io::Result<Vec<usize>> {
        let mut whole = Vec::new();
        let (mut at, end) = (start, start + len);
        while at < end {
            let number = at / self.piece;
            let next = end.min((number + 1) * self.piece);
            let twice = || io::Error::other("bytes of the output came twice");
            let missing = self.missing.get(number as usize).ok_or_else(twice)?;
            let had = missing.fetch_sub(next - at, AcqRel);
            match had.checked_sub(next - at) {
                None => return Err(twice()),
                Some(0) => whole.push(number as usize),
                Some(_) => {}
            }
            at = next;
        }
        Ok(whole)
    }

    /// The bytes of a piece.
    ///
    /// # Errors
    /// The disk does not give them.
    pub(crate) fn piece(&self, number: usize) -> io::Result<Vec<u8>> {
        let range = self.range(number);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Gives the room of a piece that has gone back to the disk, but for the header. A file system that cannot do that
    /// keeps it until the run ends.
    pub(crate) fn drop_piece(&self, number: usize) {
        let range = self.range(number);
        let start = range.start.max(self.header.next_multiple_of(PAGE));
        if start < range.end {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.file, hole, start, range.end - start);
        }
    }

    fn range(&self, number: usize) -> Range<u64> {
        let start = number as u64 * self.piece;
        start..self.size.min(start + self.piece)
    }
}

/// The length of the pieces of a file: all but the last are of one length, as some stores want it.
pub(crate) fn piece_len(size: u64) -> u64 {
    let least = size.div_ceil(MOST_PIECES);
    PIECE.max(least.next_multiple_of(PIECE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_whole_when_its_last_byte_came() {
        let folder = tempfile::tempdir().unwrap();
        let size = 2 * PIECE + 100;
        let (spill, whole) = Spill::new(folder.path().join("a/w"), &[7; 10], size).unwrap();
        assert_eq!((whole, spill.pieces()), (0..0, 3));
        let rest = vec![1; PIECE as usize];
        // The second piece but for its last ten bytes, then what lies over its end, then the first.
        let second = &rest[..rest.len() - 10];
        assert_eq!(spill.write(PIECE, second).unwrap(), [] as [usize; 0]);
        assert_eq!(spill.write(2 * PIECE - 10, &[2; 110]).unwrap(), [1, 2]);
        let first = &rest[..rest.len() - 10];
        assert_eq!(spill.write(10, first).unwrap(), [0]);
        assert_eq!(spill.piece(2).unwrap(), [2; 100]);
        spill.drop_piece(0);
        let piece = spill.piece(0).unwrap();
        assert!(piece[..10] == [7; 10]);
        // Bytes that came before, and those beyond the file.
        assert!(spill.write(5, &[1]).is_err());
        assert!(spill.write(size, &[1]).is_err());
        assert!(spill.write(u64::MAX, &[1]).is_err());
    }

    #[test]
    fn a_header_may_fill_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let header = vec![3; PIECE as usize + 5];
        let (_, whole) = Spill::new(folder.path().join("w"), &header, 2 * PIECE).unwrap();
        assert_eq!(whole, 0..1);
    }

    #[test]
    fn no_file_has_more_pieces_than_stores_take() {
        for size in [1, PIECE, PIECE * 9_000, PIECE * 9_000 + 1, 5 << 40] {
            let piece = piece_len(size);
            assert!(piece >= PIECE && size.div_ceil(piece) <= 10_000, "{size}");
        }
    }
}

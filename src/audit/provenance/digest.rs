//! Hashes files and ranges of files with all threads, in bounded memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use sha2::Digest;

use engine::{Observer, scan};
use run::RunError;

/// The most bytes in memory per worker.
const BUFFER: usize = 1 << 20;

/// A hash algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Sha256,
    Blake3,
}

impl Algorithm {
    /// The algorithm with this name in a signature.
    pub(super) fn named(name: &str) -> Option<Algorithm> {
        [Algorithm::Sha256, Algorithm::Blake3]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Blake3 => "blake3",
        }
    }

    /// Bytes per digest.
    pub(super) fn bytes(self) -> usize {
        32
    }
}

/// A range of bytes with a digest of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DigestedRange {
    pub(super) path: PathBuf,
    pub(super) first: u64,
    pub(super) bytes: u64,
    /// Whether the file must end after the range.
    pub(super) ends: bool,
}

/// Returns for each piece its digest, or why it could not be read.
///
/// # Errors
/// The observer cancelled the work, or the threads could not be started.
pub(super) fn digests(
    pieces: &[DigestedRange],
    algorithm: Algorithm,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<io::Result<Vec<u8>>>, RunError> {
    let stopped = || observer.cancelled();
    scan(
        pieces,
        threads,
        &stopped,
        |_: &mut (), piece| match digest(piece, algorithm, observer) {
            Err(_) if stopped() => Err(RunError::Cancelled),
            done => Ok(done),
        },
    )
}

fn digest(
    piece: &DigestedRange,
    algorithm: Algorithm,
    observer: &dyn Observer,
) -> io::Result<Vec<u8>> {
    let mut file = File::open(&piece.path)?;
    file.seek(SeekFrom::Start(piece.first))?;
    let digest = match algorithm {
        Algorithm::Sha256 => {
            let mut hasher = sha2::Sha256::new();
            each(&mut file, piece.bytes, observer, |bytes| {
                hasher.update(bytes);
            })?;
            hasher.finalize().to_vec()
        }
        Algorithm::Blake3 => {
            let mut hasher = blake3::Hasher::new();
            each(&mut file, piece.bytes, observer, |bytes| {
                hasher.update(bytes);
            })?;
            hasher.finalize().as_bytes().to_vec()
        }
    };
    if piece.ends && file.read(&mut [0])? > 0 {
        return Err(io::Error::other("it grew while it was read"));
    }
    Ok(digest)
}

/// Passes a range of a file to a function, one buffer at a time.
fn each(
    file: &mut File,
    bytes: u64,
    observer: &dyn Observer,
    mut look: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut left = bytes;
    let most = usize::try_from(bytes).map_or(BUFFER, |bytes| bytes.min(BUFFER));
    let mut buffer = vec![0; most];
    while left > 0 {
        if observer.cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let room = usize::try_from(left).map_or(most, |left| left.min(most));
        let (now, _) = buffer.split_at_mut(room);
        match file.read(now) {
            Ok(0) => {
                return Err(io::Error::other(
                    "it ended early: it shrank while it was read",
                ));
            }
            Ok(count) => {
                look(now.get(..count).unwrap_or_default());
                observer.advance(count as u64);
                left = left.saturating_sub(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

//! Digests of tensors that are in files: all of a checkpoint, by all threads.

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::error::RunError;
use crate::checkpoint::Checkpoint;
use crate::engine::{EngineError, Observer};
use crate::numeric::TreeDigest;

/// Bytes that a worker hashes at a time.
const PIECE: usize = 4 << 20;

/// The BLAKE3 digest of the stored bytes of these tensors of a checkpoint; none for one whose bytes are not one after the other.
///
/// Bytes as they are stored: an adapter changes nothing.
///
/// # Errors
/// The observer stopped it, or the threads could not be started.
pub fn digests(
    model: &Checkpoint,
    tensors: &[usize],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Option<blake3::Hash>>, RunError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|source| RunError::Engine(EngineError::Threads { threads, source }))?;
    let bytes: Vec<Option<&[u8]>> = tensors.iter().map(|&tensor| model.stored(tensor)).collect();
    let trees: Vec<TreeDigest> = bytes
        .iter()
        .map(|bytes| TreeDigest::new(bytes.map_or(0, <[u8]>::len) as u64))
        .collect();
    let pieces: Vec<(usize, usize)> = bytes
        .iter()
        .enumerate()
        .flat_map(|(tensor, bytes)| {
            let len = bytes.map_or(0, <[u8]>::len);
            (0..len).step_by(PIECE).map(move |first| (tensor, first))
        })
        .collect();
    pool.install(|| {
        pieces.par_iter().try_for_each(|&(tensor, first)| {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            if let Some(bytes) = bytes[tensor] {
                let piece = &bytes[first..bytes.len().min(first + PIECE)];
                trees[tensor].update(first as u64, piece);
                observer.advance(piece.len() as u64);
            }
            Ok(())
        })
    })?;
    Ok(trees
        .into_iter()
        .zip(bytes)
        .map(|(tree, bytes)| bytes.and_then(|_| tree.finish()))
        .collect())
}

/// [`digests`] of all tensors.
///
/// # Errors
/// As there.
pub fn all_digests(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Option<blake3::Hash>>, RunError> {
    let all: Vec<usize> = (0..model.tensors().len()).collect();
    digests(model, &all, threads, observer)
}

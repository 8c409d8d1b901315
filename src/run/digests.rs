//! Passes over the tensors of files on all threads; each piece is hashed while it is in the cache.

use super::error::RunError;
use checkpoint::{Checkpoint, Reclaim};
use engine::{Observer, Piece, pieces, scan};
use numeric::TreeDigest;

/// Bytes that a worker hashes at a time.
const PIECE: u64 = 4 << 20;

/// The BLAKE3 digest of a tensor's stored bytes; none if they do not lie contiguously.
pub type Digest = Option<blake3::Hash>;

/// Digests of tensors, and the findings from their pieces: each with the index of its tensor, in the order of the
/// bytes.
pub type Seen<T> = (Vec<Digest>, Vec<(usize, T)>);

/// The digests of some tensors of a checkpoint.
///
/// Stored bytes are hashed: an adapter changes nothing.
///
/// # Errors
/// The observer cancelled, or the threads could not be started.
pub fn digests(
    model: &Checkpoint,
    tensors: &[usize],
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Digest>, RunError> {
    let (digests, _) = each_piece(model, tensors, threads, PIECE, observer, |_, _| ())?;
    Ok(digests)
}

/// [`digests`] of all tensors.
///
/// # Errors
/// As for [`digests`].
pub fn all_digests(
    model: &Checkpoint,
    threads: usize,
    observer: &dyn Observer,
) -> Result<Vec<Digest>, RunError> {
    let all: Vec<usize> = (0..model.tensors().len()).collect();
    digests(model, &all, threads, observer)
}

/// Hashes these tensors piece by piece, and passes each piece, of at most `piece` bytes, to `look` while it is in the
/// cache.
///
/// `look` also receives the index of the tensor in `tensors`.
///
/// # Errors
/// The observer cancelled, or the threads could not be started.
pub fn each_piece<T: Send>(
    model: &Checkpoint,
    tensors: &[usize],
    threads: usize,
    piece: u64,
    observer: &dyn Observer,
    look: impl Fn(usize, &[u8]) -> T + Sync,
) -> Result<Seen<T>, RunError> {
    model.read_ahead();
    let bytes: Vec<Option<&[u8]>> = tensors.iter().map(|&tensor| model.stored(tensor)).collect();
    let trees: Vec<TreeDigest> = bytes
        .iter()
        .map(|bytes| TreeDigest::new(bytes.map_or(0, <[u8]>::len) as u64))
        .collect();
    let lengths = bytes
        .iter()
        .map(|bytes| bytes.map_or(0, <[u8]>::len) as u64);
    let look = |_: &mut (), Piece { of, range }: &Piece| {
        let bytes = bytes[*of].unwrap_or_default();
        let bytes = &bytes[range.start as usize..range.end as usize];
        trees[*of].update(range.start, bytes);
        let seen = look(*of, bytes);
        model.release(tensors[*of], range.clone(), Reclaim::Map);
        observer.advance(bytes.len() as u64);
        Ok::<_, RunError>((*of, seen))
    };
    let stopped = || observer.cancelled();
    let seen = scan(&pieces(lengths, piece), threads, &stopped, look)?;
    let digests = trees.into_iter().zip(bytes);
    let digests = digests.map(|(tree, bytes)| bytes.and_then(|_| tree.finish()));
    Ok((digests.collect(), seen))
}

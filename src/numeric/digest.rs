//! The BLAKE3 digest of bytes that arrive in pieces, from several threads, in any order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use blake3::Hash;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};

/// Bytes of the smallest subtree: a power of two of BLAKE3 chunks, enough to hash several side by side.
const UNIT: u64 = 16 << 10;

/// The plain BLAKE3 hash of a run of bytes; each byte must be passed exactly once.
///
/// Each piece is hashed as it arrives, while it is in the cache. Only two things are kept: the values of subtrees
/// that cannot be joined yet, and units of 16 KiB that are still incomplete.
#[derive(Debug)]
pub struct TreeDigest {
    len: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Subtrees by the offset of their first byte: length and value.
    subtrees: BTreeMap<u64, (u64, ChainingValue)>,
    /// Incomplete units by the offset of their first byte: the bytes, and how many have arrived.
    partial: BTreeMap<u64, (Vec<u8>, usize)>,
    /// The hash, if all bytes came in one piece or fit into one unit.
    whole: Option<Hash>,
}

impl TreeDigest {
    /// A digest of `len` bytes.
    pub fn new(len: u64) -> Self {
        let state = State {
            whole: (len == 0).then(|| blake3::hash(&[])),
            ..State::default()
        };
        Self {
            len,
            state: Mutex::new(state),
        }
    }

    /// Adds the bytes from `offset` on. Bytes beyond the length are ignored.
    pub fn update(&self, offset: u64, bytes: &[u8]) {
        let room = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = &bytes[..bytes.len().min(room)];
        if bytes.is_empty() {
            return;
        }
        if bytes.len() as u64 == self.len {
            let hash = blake3::hash(bytes);
            self.with(|state| state.whole = Some(hash));
            return;
        }
        let mut offset = offset;
        while !bytes.is_empty() {
            let len = self.subtree(offset, bytes.len() as u64);
            match len {
                0 => {
                    let to_end = (UNIT - offset % UNIT).min(bytes.len() as u64);
                    let (piece, rest) = bytes.split_at(to_end as usize);
                    self.fill(offset, piece);
                    (offset, bytes) = (offset + to_end, rest);
                }
                len => {
                    let (piece, rest) = bytes.split_at(len as usize);
                    let value = value(offset, piece);
                    self.with(|state| state.insert(offset, len, value, self.len));
                    (offset, bytes) = (offset + len, rest);
                }
            }
        }
    }

    /// The hash; `None` if bytes are missing.
    pub fn finish(self) -> Option<Hash> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if state.whole.is_some() {
            return state.whole;
        }
        let mut covered = 0;
        let complete = state.subtrees.iter().all(|(&start, &(len, _))| {
            let next = start == covered;
            covered += len;
            next
        });
        if !complete || covered != self.len {
            return None;
        }
        // The subtrees that remain are powers of two, each smaller than the one before; or two halves, if the total
        // is a power of two.
        let mut values = state.subtrees.into_values().rev().map(|(_, value)| value);
        let mut right = values.next()?;
        let mut left = values.next()?;
        for next in values {
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
            left = next;
        }
        Some(merge_subtrees_root(&left, &right, Mode::Hash))
    }

    /// The length of the largest subtree that starts at `offset` and fits into `available` bytes; 0 if there is
    /// none.
    fn subtree(&self, offset: u64, available: u64) -> u64 {
        if !offset.is_multiple_of(UNIT) {
            return 0;
        }
        let rest = self.len - offset;
        if rest <= UNIT && available == rest && offset > 0 {
            return rest;
        }
        let mut len = 0;
        let mut next = UNIT;
        while next <= available && offset.is_multiple_of(next) && next < self.len {
            len = next;
            next *= 2;
        }
        len
    }

    /// Adds bytes to a unit that is not complete yet.
    fn fill(&self, offset: u64, piece: &[u8]) {
        let start = offset - offset % UNIT;
        let len = UNIT.min(self.len - start) as usize;
        let full = self.with(|state| {
            let (unit, there) = state
                .partial
                .entry(start)
                .or_insert_with(|| (vec![0; len], 0));
            let at = (offset - start) as usize;
            unit[at..at + piece.len()].copy_from_slice(piece);
            *there += piece.len();
            (*there == len)
                .then(|| state.partial.remove(&start))
                .flatten()
        });
        let Some((unit, _)) = full else { return };
        if unit.len() as u64 == self.len {
            self.with(|state| state.whole = Some(blake3::hash(&unit)));
        } else {
            let value = value(start, &unit);
            self.with(|state| state.insert(start, unit.len() as u64, value, self.len));
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A poisoned lock means that another thread panicked; that panic is passed on elsewhere.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// Adds a subtree, and joins it with its neighbour for as long as both are present.
    fn insert(&mut self, mut start: u64, mut len: u64, mut value: ChainingValue, total: u64) {
        while len.is_power_of_two() && len >= UNIT {
            let is_left = start.is_multiple_of(2 * len);
            let first = if is_left { start } else { start - len };
            let other = if is_left { start + len } else { first };
            let joined_len = 2 * len;
            // A pair that reaches beyond the end is no subtree, and the root is joined by another function.
            let joinable = first + joined_len <= total && joined_len < total;
            let same = |&(other_len, _): &(u64, ChainingValue)| other_len == len;
            if !joinable || !self.subtrees.get(&other).is_some_and(same) {
                break;
            }
            let Some((_, sibling)) = self.subtrees.remove(&other) else {
                break;
            };
            let (left, right) = if is_left {
                (&value, &sibling)
            } else {
                (&sibling, &value)
            };
            value = merge_subtrees_non_root(left, right, Mode::Hash);
            (start, len) = (first, joined_len);
        }
        self.subtrees.insert(start, (len, value));
    }
}

/// The chaining value of a subtree that starts at `offset`.
fn value(offset: u64, bytes: &[u8]) -> ChainingValue {
    blake3::Hasher::new()
        .set_input_offset(offset)
        .update(bytes)
        .finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    /// The digest of bytes that are cut at these places and passed in the order of these keys.
    fn digest(bytes: &[u8], cuts: &[usize], keys: &[u32]) -> Option<Hash> {
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        bounds.extend([0, bytes.len()]);
        bounds.sort_unstable();
        let mut pieces: Vec<(usize, usize)> =
            bounds.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let mut keys = keys.iter().cycle();
        pieces.sort_by_cached_key(|_| keys.next().copied().unwrap_or(0));
        let tree = TreeDigest::new(bytes.len() as u64);
        for (from, to) in pieces {
            tree.update(from as u64, &bytes[from..to]);
        }
        tree.finish()
    }

    #[test]
    fn lengths_about_units_and_powers_of_two() {
        let unit = UNIT as usize;
        for units in [0, 1, 2, 3, 4, 5, 7, 8, 9] {
            for more in [0, 1, 63, 64, 65, 1023, 1024, 1025, unit - 1] {
                let bytes = bytes(units * unit + more);
                let expected = Some(blake3::hash(&bytes));
                assert_eq!(digest(&bytes, &[], &[0]), expected, "{units} {more}");
                let middle = bytes.len() / 2;
                assert_eq!(digest(&bytes, &[middle], &[1, 0]), expected);
                let every: Vec<usize> = (0..=units).map(|at| at * unit).collect();
                assert_eq!(digest(&bytes, &every, &[0]), expected, "{units} {more}");
                let every: Vec<usize> = (0..=units).map(|at| at * unit + 5).collect();
                assert_eq!(digest(&bytes, &every, &[3, 1, 2]), expected);
            }
        }
    }

    #[test]
    fn missing_bytes_give_no_digest() {
        for len in [1, 100, 40_000, 1 << 17] {
            let bytes = bytes(len);
            let tree = TreeDigest::new(len as u64);
            tree.update(0, &bytes[..len - 1]);
            assert_eq!(tree.finish(), None, "{len}");
            let tree = TreeDigest::new(len as u64);
            tree.update(1, &bytes[1..]);
            assert_eq!(tree.finish(), None, "{len}");
        }
    }

    #[test]
    fn many_pieces_hold_little() {
        let bytes = bytes(1 << 22);
        let tree = TreeDigest::new(bytes.len() as u64);
        for (at, piece) in bytes.chunks(1 << 16).enumerate() {
            tree.update(at as u64 * (1 << 16), piece);
            let state = tree.state.lock().unwrap();
            assert!(state.subtrees.len() <= 8 && state.partial.is_empty());
        }
        assert_eq!(tree.finish(), Some(blake3::hash(&bytes)));
    }

    proptest! {
        #[test]
        fn any_cuts_and_any_order_give_the_plain_hash(
            len in 0usize..200_000,
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
            keys in proptest::collection::vec(any::<u32>(), 1..40),
        ) {
            let bytes = bytes(len);
            prop_assert_eq!(digest(&bytes, &cuts, &keys), Some(blake3::hash(&bytes)));
        }
    }
}

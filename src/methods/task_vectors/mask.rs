//! Masks: which elements of a task vector are kept.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::interval::{BlockInterval, Bounds, KeyInterval};
use super::super::order::Keys;
use super::ranks::{Chances, RankedRows, rank_rows};
use super::scheme::STRIP;
use engine::Block;
use numeric::{MaskKey, NoMemory, Real, WORD, filled, pack, reserve, resize, unpack, vectorised};

/// Which elements of a task vector are kept.
#[derive(Debug, Clone)]
pub(crate) enum Mask {
    All,
    Nothing,
    /// By the magnitude of the task vector.
    Magnitudes(KeyInterval),
    Random {
        key: MaskKey,
        bound: u64,
    },
    /// With a probability that rises with the rank in the row; for each rank, `bounds` has the bound of the draw.
    ByRank {
        key: MaskKey,
        bounds: Arc<[u32]>,
    },
    /// The same, each kept element divided by its probability.
    ByRankScaled {
        key: MaskKey,
        chances: Chances,
        row: usize,
    },
}

/// A mask in one block. Elements must be asked for in order.
pub(crate) struct BlockMask<'m> {
    mask: &'m Mask,
    /// The index of the block's first element in the tensor.
    first: u64,
    interval: Option<BlockInterval>,
    /// The bounds of magnitudes for the whole block, if there are such.
    whole: Option<Bounds>,
    /// For each element of the block, whether it is kept; if that is known for all of them.
    kept: Option<Cow<'m, [u64]>>,
    /// The same for the elements asked for so far, if draws are remembered.
    drawn: Option<Vec<u64>>,
    /// For each element of the block, its rank in its row, if ranks decide its scale; otherwise empty.
    ranks: Vec<u32>,
}

/// How the elements of a strip are chosen: each has a number, and those within the bounds are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choose {
    by: Number,
    bounds: Bounds,
}

/// Where an element's number comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// It is the magnitude key of the task vector.
    Magnitude,
    /// It is passed in a slice.
    Given,
}

impl Choose {
    /// Keeps all elements.
    pub(crate) const ALL: Self = Self::magnitudes(Bounds::ALL);

    const fn magnitudes(bounds: Bounds) -> Self {
        Self {
            by: Number::Magnitude,
            bounds,
        }
    }

    /// Keeps elements whose given number is within the bounds.
    pub(crate) const fn given(bounds: Bounds) -> Self {
        Self {
            by: Number::Given,
            bounds,
        }
    }
}

/// A strip of a masked task vector; all slices have its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masked<'s, R> {
    pub(crate) source: &'s [R],
    base: &'s [R],
    /// The elements' numbers; zeros if the numbers are the magnitudes.
    numbers: &'s [u32],
    /// All bits set if the numbers are the magnitudes, otherwise zero; so one loop serves both.
    magnitudes: u32,
    bounds: Bounds,
}

/// Used when no numbers are given.
static NO_NUMBERS: [u32; STRIP] = [0; STRIP];

impl<'s, R: Real> Masked<'s, R> {
    /// The source minus the base, at the chosen elements. `numbers` is used only if `choose` needs it. At most
    /// [`STRIP`] elements.
    pub(crate) fn new(source: &'s [R], base: &'s [R], choose: Choose, numbers: &'s [u32]) -> Self {
        let given = choose.by == Number::Given;
        Self {
            source,
            base,
            numbers: if given { numbers } else { &NO_NUMBERS },
            magnitudes: if given { 0 } else { u32::MAX },
            bounds: choose.bounds,
        }
    }

    /// The first `length` elements; tells the compiler that all slices have this length.
    #[inline(always)]
    pub(super) fn cut(self, length: usize) -> Self {
        Self {
            source: &self.source[..length],
            base: &self.base[..length],
            numbers: &self.numbers[..length],
            ..self
        }
    }

    /// The task vector's element, kept or not.
    #[inline(always)]
    pub(super) fn whole(&self, at: usize) -> R {
        self.source[at] - self.base[at]
    }

    /// Whether an element is kept.
    #[inline(always)]
    pub(super) fn keeps(&self, at: usize) -> bool {
        let magnitude = self.whole(at).magnitude_key() & self.magnitudes;
        self.bounds.keep(magnitude | self.numbers[at])
    }

    /// The task vector's element if it is kept, otherwise zero.
    #[inline(always)]
    pub(super) fn kept(&self, at: usize) -> R {
        if self.keeps(at) {
            self.whole(at)
        } else {
            R::ZERO
        }
    }

    /// Sets `kept` to the task vector, with zeros for dropped elements.
    pub(crate) fn fill(self, kept: &mut [R]) {
        fill_kept(self, kept);
    }

    /// Sets `whole` to the task vector, and `kept` to the same with zeros for dropped elements.
    pub(super) fn fill_both(self, whole: &mut [R], kept: &mut [R]) {
        fill_both(self, whole, kept);
    }
}

vectorised! {
    fn fill_kept<R: Real>(masked: Masked<'_, R>, kept: &mut [R]) {
        let masked = masked.cut(kept.len());
        for (at, kept) in kept.iter_mut().enumerate() {
            *kept = masked.kept(at);
        }
    }
}

vectorised! {
    fn fill_both<R: Real>(masked: Masked<'_, R>, whole: &mut [R], kept: &mut [R]) {
        let masked = masked.cut(kept.len());
        for (at, (whole, kept)) in whole.iter_mut().zip(kept).enumerate() {
            *whole = masked.whole(at);
            *kept = masked.kept(at);
        }
    }
}

impl Mask {
    /// Whether it keeps every element.
    pub(super) fn keeps_all(&self) -> bool {
        matches!(self, Self::All)
    }

    /// Whether each kept element is scaled by its own factor.
    pub(super) fn scales_each(&self) -> bool {
        matches!(self, Self::ByRankScaled { .. })
    }

    /// Whether computing it takes so long that the pass that measures norms leaves the result to the pass that
    /// applies it.
    pub(super) fn is_remembered(&self) -> bool {
        match *self {
            Self::ByRank { .. } => true,
            // If some draws are not below the bound.
            Self::Random { bound, .. } => u32::try_from(bound).is_ok(),
            _ => false,
        }
    }

    /// The mask of a source's task vector in a block. `known` holds the kept elements, if an earlier pass has found
    /// them. If the block has room to remember them, they are recorded for [`BlockMask::known`].
    pub(crate) fn in_block<'m, R: Real>(
        &'m self,
        block: &Block<'_, R>,
        magnitudes: impl Keys<R>,
        source: usize,
        known: Option<&'m [u64]>,
    ) -> Result<BlockMask<'m>, NoMemory> {
        let mut mask = BlockMask {
            mask: self,
            first: block.first,
            interval: None,
            whole: None,
            kept: known.map(Cow::Borrowed),
            drawn: None,
            ranks: Vec::new(),
        };
        match self {
            _ if known.is_some() => {}
            Self::Magnitudes(interval) => {
                let interval = interval.in_block(block.index);
                mask.whole = interval.bounds();
                mask.interval = Some(interval);
            }
            Self::ByRank { key, bounds } => {
                let keys =
                    |row: &Block<'_, R>, keys: &mut [u32]| magnitudes.fill(row, source, keys);
                mask.kept = Some(Cow::Owned(keep_by_rank(*key, bounds, block, keys)?));
            }
            Self::ByRankScaled { row, .. } => {
                resize(&mut mask.ranks, block.len(), 0)?;
                magnitudes.fill(block, source, &mut mask.ranks)?;
                rank_rows(&mut mask.ranks, *row)?;
            }
            Self::Random { .. } if self.is_remembered() && block.carried.is_some() => {
                let mut drawn = Vec::new();
                reserve(&mut drawn, block.len().div_ceil(WORD))?;
                mask.drawn = Some(drawn);
            }
            Self::All | Self::Nothing | Self::Random { .. } => {}
        }
        Ok(mask)
    }
}

/// The elements of a block's rows that are kept with probabilities by rank; `fill` computes the keys of a row.
fn keep_by_rank<R: Real>(
    key: MaskKey,
    bounds: &[u32],
    block: &Block<'_, R>,
    fill: impl Fn(&Block<'_, R>, &mut [u32]) -> Result<(), NoMemory>,
) -> Result<Vec<u64>, NoMemory> {
    let row = bounds.len();
    let mut kept = filled(block.len(), 0)?;
    let (mut keys, mut draws) = (filled(row, 0)?, filled(row, 0)?);
    let mut room = Vec::new();
    let mut rows = RankedRows::new(bounds)?;
    for (index, kept) in kept.chunks_mut(row).enumerate() {
        let places = index * row..index * row + kept.len();
        let part = block.part(places, &mut room);
        key.fill(part.first, &mut draws);
        fill(&part, &mut keys)?;
        rows.keep(&keys, &draws, kept)?;
    }
    let mut words = filled(kept.len().div_ceil(WORD), 0)?;
    pack(&kept, &mut words);
    Ok(words)
}

/// Packs flags into words: whether each draw is below the bound. At most [`STRIP`] draws.
fn pack_below(draws: &[u32], bound: u32, words: &mut [u64]) {
    let mut below = [0; STRIP];
    let below = &mut below[..draws.len()];
    are_below(draws, bound, below);
    pack(below, words);
}

vectorised! {
    /// One if a draw is below the bound, otherwise zero.
    fn are_below(draws: &[u32], bound: u32, below: &mut [u8]) {
        for (below, &draw) in below.iter_mut().zip(draws) {
            *below = u8::from(draw < bound);
        }
    }
}

impl BlockMask<'_> {
    /// How to choose `numbers.len()` elements, at most [`STRIP`], from index `start` of the block on; sets
    /// `numbers` if the choice needs them. Strips must be asked for in order, and all but the last must be whole.
    pub(crate) fn choose<R: Real>(
        &mut self,
        start: usize,
        source: &[R],
        base: &[R],
        numbers: &mut [u32],
    ) -> Choose {
        if let Some(kept) = &self.kept {
            unpack(&kept[start / WORD..], numbers);
            return Choose::given(Bounds::NON_ZERO);
        }
        let first = self.first + start as u64;
        match (self.mask, &mut self.interval) {
            (Mask::Nothing, _) => Choose::magnitudes(Bounds::NOTHING),
            (Mask::Magnitudes(_), Some(interval)) => match self.whole {
                Some(bounds) => Choose::magnitudes(bounds),
                None => {
                    difference_keys(source, base, numbers);
                    Choose::given(interval.choose(numbers))
                }
            },
            (&Mask::Random { key, bound }, _) if let Ok(bound) = u32::try_from(bound) => {
                key.fill(first, numbers);
                if let Some(drawn) = &mut self.drawn {
                    let words = drawn.len();
                    drawn.resize(words + numbers.len().div_ceil(WORD), 0);
                    pack_below(numbers, bound, &mut drawn[words..]);
                }
                Choose::given(Bounds::below(bound))
            }
            (&Mask::ByRankScaled { key, chances, row }, _) => {
                let ranks = &self.ranks[start..];
                for (offset, (number, &rank)) in numbers.iter_mut().zip(ranks).enumerate() {
                    let draw = key.draw(first + offset as u64);
                    *number = u32::from(draw < chances.bound(rank, row));
                }
                Choose::given(Bounds::NON_ZERO)
            }
            // Intervals and ranks have been handled above, and a bound may be above all draws.
            (Mask::All | Mask::Magnitudes(_) | Mask::Random { .. } | Mask::ByRank { .. }, _) => {
                Choose::ALL
            }
        }
    }

    /// The kept elements of the whole block, if all have been asked for and the mask is
    /// [remembered](Mask::is_remembered).
    pub(super) fn known(&self) -> Option<&[u64]> {
        self.kept.as_deref().or(self.drawn.as_deref())
    }

    /// Divides each element of the task vector by its probability, if the mask does so.
    pub(crate) fn scale<R: Real>(&self, start: usize, deltas: &mut [R]) {
        if let Mask::ByRankScaled { chances, row, .. } = *self.mask {
            for (delta, &rank) in deltas.iter_mut().zip(&self.ranks[start..]) {
                *delta = *delta / R::from_f64(chances.of(rank, row));
            }
        }
    }
}

vectorised! {
    /// Sets `keys` to the magnitude keys of a task vector.
    pub(super) fn difference_keys<R: Real>(source: &[R], base: &[R], keys: &mut [u32]) {
        for (key, (&x, &base)) in keys.iter_mut().zip(source.iter().zip(base)) {
            *key = (x - base).magnitude_key();
        }
    }
}

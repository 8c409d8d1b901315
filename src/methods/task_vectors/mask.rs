//! Which elements of a task vector are kept, known for every element.

use std::borrow::Cow;
use std::sync::Arc;

use super::super::band::{Band, BlockBand, Bounds};
use super::super::order::Keys;
use super::STRIP;
use super::choice::difference_keys;
use super::ranks::{Chances, RankedRows, rank_rows};
use engine::Block;
use numeric::{MaskKey, Real, WORD, pack, unpack, vectorised};

/// Which elements of a task vector are kept.
#[derive(Debug, Clone)]
pub(crate) enum Mask {
    All,
    Nothing,
    /// By the magnitude of the task vector.
    Magnitudes(Band),
    Random {
        key: MaskKey,
        bound: u64,
    },
    /// By a chance that rises with the rank in the row; `bounds` are of the draws, for each rank.
    ByRank {
        key: MaskKey,
        bounds: Arc<[u32]>,
    },
    /// The same, each element divided by its chance.
    ByRankScaled {
        key: MaskKey,
        chances: Chances,
        row: usize,
    },
}

/// A mask in one block, whose elements are asked for in order.
pub(crate) struct BlockMask<'m> {
    mask: &'m Mask,
    /// The number of the block's first element.
    first: u64,
    band: Option<BlockBand>,
    /// The bounds of magnitudes that hold in the whole block, where they do.
    whole: Option<Bounds>,
    /// For each element of the block, whether it is kept; where that is known for all of them.
    kept: Option<Cow<'m, [u64]>>,
    /// The same of the elements that were asked for, where draws are remembered.
    drawn: Option<Vec<u64>>,
    /// For each element of the block, its rank in its row; where that scales it.
    ranks: Vec<u32>,
}

/// By what the elements of a strip are chosen: each has a number, and those within the bounds are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choose {
    by: Number,
    bounds: Bounds,
}

/// What an element's number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    /// The magnitude key of the task vector.
    Magnitude,
    /// One that stands in a slice.
    Given,
}

impl Choose {
    /// All elements.
    pub(crate) const ALL: Self = Self::magnitudes(Bounds::ALL);

    const fn magnitudes(bounds: Bounds) -> Self {
        Self {
            by: Number::Magnitude,
            bounds,
        }
    }

    /// Elements whose given number is within the bounds.
    pub(crate) const fn given(bounds: Bounds) -> Self {
        Self {
            by: Number::Given,
            bounds,
        }
    }
}

/// A strip of a masked task vector: all slices are of its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masked<'s, R> {
    pub(crate) source: &'s [R],
    base: &'s [R],
    /// The elements' numbers; zeros where magnitudes are the numbers.
    numbers: &'s [u32],
    /// All ones where magnitudes are the numbers, else zero: so that one loop serves both.
    magnitudes: u32,
    bounds: Bounds,
}

/// What stands where no numbers are given.
static NO_NUMBERS: [u32; STRIP] = [0; STRIP];

impl<'s, R: Real> Masked<'s, R> {
    /// The source less the base where it is chosen, by these numbers if they count; [`STRIP`] elements at the most.
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

    /// The first elements, so many that the compiler sees it.
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

    /// The task vector's element if it is kept, else zero.
    #[inline(always)]
    pub(super) fn kept(&self, at: usize) -> R {
        if self.keeps(at) {
            self.whole(at)
        } else {
            R::ZERO
        }
    }

    /// Sets `kept` to the task vector where it is kept, else to zero.
    pub(crate) fn fill(self, kept: &mut [R]) {
        fill_kept(self, kept);
    }

    /// Sets `whole` to the task vector, `kept` to that where it is kept, else to zero.
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

    /// Whether each kept element is scaled by a factor of its own.
    pub(super) fn scales_each(&self) -> bool {
        matches!(self, Self::ByRankScaled { .. })
    }

    /// Whether finding it out takes so long that the pass that measures norms leaves it to the one that applies.
    pub(super) fn is_remembered(&self) -> bool {
        match *self {
            Self::ByRank { .. } => true,
            // Where not all draws are below.
            Self::Random { bound, .. } => u32::try_from(bound).is_ok(),
            _ => false,
        }
    }

    /// The mask of a source's task vector in a block; `known` is what it keeps, if a pass before has found that
    /// out. Where the block has room for it, what it keeps is put down for [`BlockMask::known`].
    pub(crate) fn in_block<'m, R: Real>(
        &'m self,
        block: &Block<'_, R>,
        magnitudes: impl Keys<R>,
        source: usize,
        known: Option<&'m [u64]>,
    ) -> BlockMask<'m> {
        let mut mask = BlockMask {
            mask: self,
            first: block.first,
            band: None,
            whole: None,
            kept: known.map(Cow::Borrowed),
            drawn: None,
            ranks: Vec::new(),
        };
        match self {
            _ if known.is_some() => {}
            Self::Magnitudes(band) => {
                let band = band.in_block(block.index);
                mask.whole = band.bounds();
                mask.band = Some(band);
            }
            Self::ByRank { key, bounds } => {
                let keys =
                    |row: &Block<'_, R>, keys: &mut [u32]| magnitudes.fill(row, source, keys);
                mask.kept = Some(Cow::Owned(keep_by_rank(*key, bounds, block, keys)));
            }
            Self::ByRankScaled { row, .. } => {
                mask.ranks.resize(block.len(), 0);
                magnitudes.fill(block, source, &mut mask.ranks);
                rank_rows(&mut mask.ranks, *row);
            }
            Self::Random { .. } if self.is_remembered() && block.memo.is_some() => {
                mask.drawn = Some(Vec::with_capacity(block.len().div_ceil(WORD)));
            }
            Self::All | Self::Nothing | Self::Random { .. } => {}
        }
        mask
    }
}

/// What is kept of the rows of a block by chances that rise with the rank; `fill` gives the keys of a row.
fn keep_by_rank<R: Real>(
    key: MaskKey,
    bounds: &[u32],
    block: &Block<'_, R>,
    fill: impl Fn(&Block<'_, R>, &mut [u32]),
) -> Vec<u64> {
    let row = bounds.len();
    let mut kept = vec![0; block.len()];
    let (mut keys, mut draws) = (vec![0; row], vec![0; row]);
    let mut room = Vec::new();
    let mut rows = RankedRows::new(bounds);
    for (index, kept) in kept.chunks_mut(row).enumerate() {
        let places = index * row..index * row + kept.len();
        let part = block.part(places, &mut room);
        key.fill(part.first, &mut draws);
        fill(&part, &mut keys);
        rows.keep(&keys, &draws, kept);
    }
    let mut words = vec![0; kept.len().div_ceil(WORD)];
    pack(&kept, &mut words);
    words
}

/// Sets words to whether draws, [`STRIP`] at the most, are below the bound.
fn pack_below(draws: &[u32], bound: u32, words: &mut [u64]) {
    let mut below = [0; STRIP];
    let below = &mut below[..draws.len()];
    are_below(draws, bound, below);
    pack(below, words);
}

vectorised! {
    /// One where a draw is below the bound, else zero.
    fn are_below(draws: &[u32], bound: u32, below: &mut [u8]) {
        for (below, &draw) in below.iter_mut().zip(draws) {
            *below = u8::from(draw < bound);
        }
    }
}

impl BlockMask<'_> {
    /// By what the elements from number `start` of the block on are chosen, as many as there are `numbers`, [`STRIP`]
    /// at the most; sets `numbers` if it is by them. Strips are asked for in order, and all but the last are whole.
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
        match (self.mask, &mut self.band) {
            (Mask::Nothing, _) => Choose::magnitudes(Bounds::NOTHING),
            (Mask::Magnitudes(_), Some(band)) => match self.whole {
                Some(bounds) => Choose::magnitudes(bounds),
                None => {
                    difference_keys(source, base, numbers);
                    Choose::given(band.choose(numbers))
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
            // Bands and ranks are looked up before, and a bound may be above all draws.
            (Mask::All | Mask::Magnitudes(_) | Mask::Random { .. } | Mask::ByRank { .. }, _) => {
                Choose::ALL
            }
        }
    }

    /// What is kept of the whole block, if that is known and all elements were asked for: of masks that are
    /// [remembered](Mask::is_remembered).
    pub(super) fn known(&self) -> Option<&[u64]> {
        self.kept.as_deref().or(self.drawn.as_deref())
    }

    /// Divides the task vector by the chance of each element, where the mask says so.
    pub(crate) fn scale<R: Real>(&self, start: usize, deltas: &mut [R]) {
        if let Mask::ByRankScaled { chances, row, .. } = *self.mask {
            for (delta, &rank) in deltas.iter_mut().zip(&self.ranks[start..]) {
                *delta = *delta / R::from_f64(chances.of(rank, row));
            }
        }
    }
}

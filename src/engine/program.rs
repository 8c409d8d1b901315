//! What a merge method does with the elements of one tensor: passes over blocks, or over columns.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::whole::Whole;
use errors::Refusal;
use numeric::{BLOCK, Real, prefetch};

/// The elements of one block, decoded.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a, R> {
    /// The block's number in its tensor; all blocks but the last hold [`Cost::block_len`] elements.
    pub index: usize,
    /// The number of its first element in its tensor.
    pub first: u64,
    /// The sources' elements, all of one length.
    pub sources: &'a [&'a [R]],
    /// The bytes of the block that the worker decodes next, of each source where they are known.
    pub next: &'a [&'a [u8]],
    /// Where a pass that measures may leave what it found out, and where later ones find it; none where the
    /// memory does not suffice, and then it is found out again. See [`Cost::memo`].
    pub memo: Option<&'a Memo>,
}

/// What a pass over a block leaves for later ones.
pub type Memo = OnceLock<Box<[u64]>>;

impl<'a, R> Block<'a, R> {
    /// How many elements each source has here.
    pub fn len(&self) -> usize {
        self.sources.first().map_or(0, |source| source.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of its elements; `room` holds what its sources are.
    pub fn part<'p>(&'p self, places: Range<usize>, room: &'p mut Vec<&'a [R]>) -> Block<'p, R>
    where
        'a: 'p,
    {
        room.clear();
        let source = |source: &&'a [R]| &source[places.clone()];
        room.extend(self.sources.iter().map(source));
        Block {
            index: self.index,
            first: self.first + places.start as u64,
            sources: room,
            next: &[],
            memo: None,
        }
    }

    /// Asks the memory for the next block's elements at these places of it, so that they arrive while this block
    /// is computed.
    ///
    /// For passes that work strip by strip: called once for each strip, it spreads the reading over the computing.
    pub fn ahead(&self, strip: Range<usize>) {
        let length = self.len().max(1);
        for bytes in self.next {
            let place = |element: usize| bytes.len() * element.min(length) / length;
            prefetch(
                bytes
                    .get(place(strip.start)..place(strip.end))
                    .unwrap_or_default(),
            );
        }
    }
}

/// A merge of one tensor: passes that measure, then one that applies.
///
/// [`next`](Self::next) is the serial decision between two passes: from all that was measured so far, which
/// pass comes next. It must depend on nothing else.
pub trait Program<R: Real>: Send + Sync {
    /// The pass after those whose results are `measured`, in order.
    fn next(&self, measured: &[Measured]) -> Pass<R>;
}

/// A program in both precisions.
pub trait AnyProgram: Program<f32> + Program<f64> {
    /// An upper bound of what it needs.
    fn cost(&self) -> Cost;
}

/// What a program needs of the engine, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Passes that measure; each reads every source once more.
    pub measures: usize,
    /// Length of the longest vector of counts.
    pub counts: usize,
    /// Length of the longest vector of sums.
    pub sums: usize,
    /// Elements of a row, where the program must see whole rows; zero where it need not.
    pub row: usize,
    /// Bytes that its passes hold for each element of the block a worker is at.
    pub scratch: usize,
    /// Length of the longest vector of sums over columns; see [`MeasureColumns`].
    pub column_sums: usize,
    /// Outputs beside the first; see [`Apply::outputs`].
    pub more_outputs: usize,
    /// Bytes that a pass over whole matrices holds, its result among them, which stays until the tensor is written;
    /// see [`Whole`].
    pub matrix: u64,
    /// Bytes of all memos of the tensor; wished for, not needed.
    pub memo: u64,
}

impl Cost {
    /// Elements in each block of a tensor but its last: as many whole rows as a [`BLOCK`] holds, one at least.
    ///
    /// Depends on the tensor only, so that sums fold in the same order whatever the memory and the threads.
    pub fn block_len(&self) -> usize {
        match self.row {
            0 => BLOCK,
            row if row > BLOCK => row,
            row => BLOCK - BLOCK % row,
        }
    }

    /// The larger of each need.
    pub fn max(self, other: Self) -> Self {
        Self {
            measures: self.measures.max(other.measures),
            counts: self.counts.max(other.counts),
            sums: self.sums.max(other.sums),
            row: self.row.max(other.row),
            scratch: self.scratch.max(other.scratch),
            column_sums: self.column_sums.max(other.column_sums),
            more_outputs: self.more_outputs.max(other.more_outputs),
            matrix: self.matrix.max(other.matrix),
            memo: self.memo.max(other.memo),
        }
    }
}

/// One pass over the blocks of a tensor.
pub enum Pass<R> {
    /// Collects a statistic.
    Measure(Box<dyn Measure<R>>),
    /// Collects a statistic of so many neighbouring elements of each block, at a place that differs from block
    /// to block: what a program may guess by, and must not rely on.
    Sample(usize, Box<dyn Measure<R>>),
    /// Collects sums over each column of a tensor whose rows have so many elements.
    MeasureColumns(usize, Box<dyn MeasureColumns<R>>),
    /// Computes a matrix from whole ones, whose rows have so many elements, with all threads for itself.
    Whole(usize, Box<dyn Whole>),
    /// Computes the output; the last pass.
    Apply(Box<dyn Apply<R>>),
    /// There is no result for what was measured: why, in words for the user.
    Refuse(Refusal),
}

/// Collects sums and counts over blocks.
pub trait Measure<R>: Send + Sync {
    /// How many sums; each is folded over the blocks in block order.
    fn sums(&self) -> usize;
    /// How many counts; integers, so their order does not matter.
    fn counts(&self) -> usize;
    /// Sets the block's `sums` (given as zeros) and adds to `counts`.
    fn block(&self, block: Block<'_, R>, sums: &mut [f64], counts: &mut [u64]);
}

/// Collects sums over each column of a tensor.
///
/// A worker takes some neighbouring columns and goes through all rows in order: so each sum is made by one
/// worker, in row order, and needs no folding, however many columns there are.
pub trait MeasureColumns<R>: Send + Sync {
    /// How many sums each column has.
    fn sums(&self) -> usize;
    /// Adds the elements of one row to the sums of their columns: `sums[k * width + column]` is sum `k` of a
    /// column, `width` the number of columns at hand.
    fn row(&self, sources: &[&[R]], sums: &mut [f64]);
}

/// Computes the output of a block.
pub trait Apply<R>: Send + Sync {
    /// Sets every element of `out`, which has the block's length.
    fn block(&self, block: Block<'_, R>, out: &mut [R]);

    /// Sets every element of each of the job's outputs that the block gives; for programs that have several.
    fn outputs(&self, block: Block<'_, R>, outputs: &mut [Vec<R>]) {
        if let [out, ..] = outputs {
            self.block(block, out);
        }
    }
}

/// What a pass that measured found over the whole tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The sums. Of a pass over columns, sum `k` of each column in turn, for each `k`.
    pub sums: Vec<f64>,
    /// The counts.
    pub counts: Vec<u64>,
    /// What a pass over whole matrices computed, row after row.
    pub matrix: Arc<Vec<f32>>,
}

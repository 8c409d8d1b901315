//! What a merge method does with one tensor: passes over blocks, columns or whole matrices.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::whole::Whole;
use errors::Refusal;
use numeric::{BLOCK, NoMemory, Real, prefetch};

/// The elements of one block, decoded.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a, R> {
    /// The block's index in its tensor. All blocks but the last hold [`Cost::block_len`] elements.
    pub index: usize,
    /// The index of its first element in the tensor.
    pub first: u64,
    /// The elements of each source; all slices have the same length.
    pub sources: &'a [&'a [R]],
    /// For each source whose bytes are stored, the bytes of the block that the worker decodes next.
    pub next: &'a [&'a [u8]],
    /// Where a measuring pass may store its mask for later passes; `None` if there is not enough memory, so that they
    /// compute it again. See [`Cost::carried`].
    pub carried: Option<&'a CarriedMask>,
}

/// The mask of a block that one pass stores for later ones.
pub type CarriedMask = OnceLock<Box<[u64]>>;

impl<'a, R> Block<'a, R> {
    /// How many elements each source has in this block.
    pub fn len(&self) -> usize {
        self.sources.first().map_or(0, |source| source.len())
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of its elements. `room` is a buffer for the slices of the sources.
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
            carried: None,
        }
    }

    /// Prefetches the next block's elements at these places, so that they arrive while this block is computed.
    ///
    /// Call it once for each strip: this spreads the reads over the computation.
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

/// The computation of one tensor: passes that measure, then one that applies.
///
/// [`next`](Self::next) is the serial decision between two passes: which pass follows, given all that was measured
/// so far. It must depend on nothing else, but for what a [survey](AnyProgram::survey) decided.
pub trait Program<R: Real>: Send + Sync {
    /// The pass that follows those whose results are `measured`, in order.
    fn next(&self, measured: &[Measured]) -> Pass<R>;
}

/// A program for both precisions.
pub trait AnyProgram: Program<f32> + Program<f64> {
    /// An upper bound on what it needs.
    fn cost(&self) -> Cost;

    /// What must be known of all tensors of the model before its first pass; most programs need nothing. Until it is
    /// known, the first pass is the one that counts for it. Its passes over the tensors are among
    /// [`Cost::measures`].
    fn survey(&self) -> Option<&dyn Survey> {
        None
    }
}

/// Counts over all tensors of a model, and what is decided by them. The programs of these tensors share it; see
/// [`AnyProgram::survey`].
pub trait Survey: Send + Sync {
    /// How many counts the next pass over all tensors has; `None` once everything is decided.
    fn counts(&self) -> Option<usize>;

    /// Ends a pass: takes its counts, added up over all tensors.
    fn decide(&self, counts: &[u64]);
}

/// An upper bound on what a program needs from the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Passes that measure; each reads every source once more.
    pub measures: usize,
    /// Length of the longest vector of counts.
    pub counts: usize,
    /// Length of the longest vector of sums.
    pub sums: usize,
    /// Elements per row if the program needs whole rows, otherwise zero.
    pub row: usize,
    /// Bytes that its passes hold for each element of the block that a worker computes.
    pub scratch: usize,
    /// Length of the longest vector of sums over columns; see [`MeasureColumns`].
    pub column_sums: usize,
    /// Outputs besides the first; see [`Apply::outputs`].
    pub more_outputs: usize,
    /// Bytes that a pass over whole matrices holds, including its result, which is kept until the tensor is
    /// written; see [`Whole`].
    pub matrix: u64,
    /// Bytes of all carried masks of the tensor; useful, but not required.
    pub carried: u64,
    /// Elements that a worker holds until they can be encoded together; see [`Encoded`](super::Encoded).
    pub band: usize,
}

impl Cost {
    /// Elements in each block but the last: as many whole rows as fit into a [`BLOCK`], but at least one.
    ///
    /// It depends on the tensor only, so sums are folded in the same order whatever the memory and the threads.
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
            carried: self.carried.max(other.carried),
            band: self.band.max(other.band),
        }
    }
}

/// One pass over the blocks of a tensor.
pub enum Pass<R> {
    /// Collects a statistic.
    Measure(Box<dyn Measure<R>>),
    /// Collects a statistic over this many adjacent elements of each block, at a place that differs from block to
    /// block. A program may use it to guess, but must not rely on it.
    Sample(usize, Box<dyn Measure<R>>),
    /// Collects sums over each column of a tensor; rows have this many elements.
    MeasureColumns(usize, Box<dyn MeasureColumns<R>>),
    /// Computes a matrix from whole matrices whose rows have this many elements, with all threads on one matrix.
    Whole(usize, Box<dyn Whole>),
    /// Computes the output; the last pass.
    Apply(Box<dyn Apply<R>>),
    /// The measured values have no result; the reason is meant for the user.
    Refuse(Refusal),
}

/// Collects sums and counts over blocks.
pub trait Measure<R>: Send + Sync {
    /// How many sums. Each is folded over the blocks in block order.
    fn sums(&self) -> usize;
    /// How many counts. They are integers, so the order does not matter.
    fn counts(&self) -> usize;
    /// Sets the block's `sums`, which are zero on entry, and adds to `counts`.
    ///
    /// # Errors
    /// If there is no memory for what it holds.
    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory>;
}

/// Collects sums over each column of a tensor.
///
/// A worker takes some adjacent columns and reads all rows in order. So each sum is computed by one worker, in row
/// order, and needs no folding, however many columns there are.
pub trait MeasureColumns<R>: Send + Sync {
    /// How many sums each column has.
    fn sums(&self) -> usize;
    /// Adds the elements of one row to the sums of their columns. `sums[k * width + column]` is sum `k` of a
    /// column, where `width` is the number of columns that the worker has.
    fn row(&self, sources: &[&[R]], sums: &mut [f64]);
}

/// Computes the output of a block.
pub trait Apply<R>: Send + Sync {
    /// Sets every element of `out`, which has the block's length.
    ///
    /// # Errors
    /// If there is no memory for what it holds.
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory>;

    /// Sets every element that the block computes of each of the job's outputs; for programs that have several.
    ///
    /// # Errors
    /// If there is no memory for what it holds.
    fn outputs(&self, block: Block<'_, R>, outputs: &mut [Vec<R>]) -> Result<(), NoMemory> {
        match outputs {
            [out, ..] => self.block(block, out),
            [] => Ok(()),
        }
    }
}

/// The result of a measuring pass over the whole tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// The sums. For a pass over columns: for each `k` in turn, sum `k` of all columns.
    pub sums: Vec<f64>,
    /// The counts.
    pub counts: Vec<u64>,
    /// The matrix that a pass over whole matrices computed, in row order.
    pub matrix: Arc<Vec<f32>>,
}

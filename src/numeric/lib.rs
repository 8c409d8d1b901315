//! Arithmetic on slices: number formats, weighted sums, reductions, selection, keyed randomness.
//!
//! This layer knows no file, no tensor name and no thread. Every kernel returns the same bits however its input is
//! cut, as long as the cuts fall on multiples of [`BLOCK`]. Each kernel has a slow f64 twin in its tests.

mod bits;
mod blocks;
mod boxes;
mod census;
mod coded;
mod combine;
mod digest;
mod distance;
mod elements;
mod encoding;
mod format;
mod gather;
mod lanes;
mod low_rank;
mod memory;
mod microscaling;
mod narrow;
mod normal;
mod oddities;
mod paired;
mod patched;
mod prefetch;
mod product;
mod random;
mod real;
mod reduce;
mod rounding;
mod scaled;
mod select;
mod strided;
mod submatrix;
mod survival;
mod ulp_counts;
mod ulps;
mod vector;
mod zero_runs;

pub use bits::{WORD, pack, unpack};
pub use blocks::{BlockFormat, Blocks};
pub use boxes::{BoxPlace, Boxes};
pub use census::Census;
pub use coded::{Coded, Codes, Grid, Meaning, Packing, Powers, Quotient, Shifted, Zeros};
pub use combine::{SumRule, weighted_sum};
pub use digest::TreeDigest;
pub use distance::{Distance, DistanceSums, TaskSums, distance, squares, squares_bf16, task_sums};
pub use elements::{Constant, Elements, Factor, FactorStrides, Fill, Order, Product, Stored};
pub use encoding::{CodeFormat, Coding, Encoding, EncodingError};
pub use format::{FloatType, Narrowed, NonFinite};
pub use gather::{Gather, RowMap};
pub use low_rank::{Lengths, LowRank, Norms};
pub use memory::{NoMemory, filled, reserve, resize};
pub use microscaling::E2M1;
pub use normal::NormalKey;
pub use oddities::Oddities;
pub use paired::{Paired, PairedMatrix, Pairing};
pub use patched::{Patch, Patched, Tail};
pub use prefetch::prefetch;
pub use product::{View, add_product, multiply, multiply_into, product_instructions};
pub use random::{MaskKey, keep_threshold};
pub use real::Real;
pub use reduce::{PairProducts, abs_sum, dot};
pub use rounding::RoundingKey;
pub use scaled::Scaled;
pub use select::{HIGH_BINS, LOW_BINS, Rank, high_bin, low_bin, rank_from_top};
pub use strided::{Strided, Strides};
pub use submatrix::{HConcat, Joined, Picks, Submatrix};
pub use survival::Survival;
pub use ulp_counts::{ULP_BOUNDS, UlpCounts};
pub use zero_runs::{ZeroRuns, all_zero};

/// Elements per block: the unit in which tensors are decoded and sums are accumulated.
///
/// It is part of the numerics: with another value, sums differ in their last bits.
pub const BLOCK: usize = 16_384;

/// The version of the arithmetic. If it changes, the same recipe and inputs may give other bits.
///
/// 2: whether weights add up to one is decided without a division; values that round beyond `F8_E4M3` are counted.
/// 3: angles and logarithms come from the crate libm: the system's differ in their last bits between processors.
pub const NUMERICS: u32 = 3;

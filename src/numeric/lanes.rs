//! Some elements at a time, in registers: what kernels over many slices at once are made of.
//!
//! A loop over many slices is not turned into vectors; short arrays of a length that the compiler knows are, if
//! each step does little: one operation, no load of a field where it is conditional, and no more than a dozen
//! steps in a row before a loop ends.

use super::real::Real;

/// Elements of an array: those of the widest register in `f32`.
pub(super) const LANES: usize = 16;

/// The elements from `start` on, of which there must be so many.
#[inline(always)]
pub(super) fn load<R: Real, const N: usize>(values: &[R], start: usize) -> [R; N] {
    let mut lanes = [R::ZERO; N];
    lanes.copy_from_slice(&values[start..start + N]);
    lanes
}

/// What is made for each lane.
#[inline(always)]
pub(super) fn each<R: Real, const N: usize>(make: impl Fn(usize) -> R) -> [R; N] {
    let mut lanes = [R::ZERO; N];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = make(lane);
    }
    lanes
}

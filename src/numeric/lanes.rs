//! A few elements at a time, in registers: the building block of kernels over many slices.
//!
//! The compiler does not vectorise a loop over many slices. It does vectorise short arrays of constant length, if
//! each step is simple: one operation, no conditional load of a field, and at most a dozen steps in a row before a
//! loop ends.

use super::real::Real;

/// Elements per array: as many `f32` as the widest register holds.
pub(super) const LANES: usize = 16;

/// The `N` elements from `start` on; they must exist.
#[inline(always)]
pub(super) fn load<R: Real, const N: usize>(values: &[R], start: usize) -> [R; N] {
    let mut lanes = [R::ZERO; N];
    lanes.copy_from_slice(&values[start..start + N]);
    lanes
}

/// Calls `make` for each lane.
#[inline(always)]
pub(super) fn each<R: Real, const N: usize>(make: impl Fn(usize) -> R) -> [R; N] {
    let mut lanes = [R::ZERO; N];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = make(lane);
    }
    lanes
}

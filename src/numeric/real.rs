//! The two precisions that merges compute in.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use super::elements::{Elements, Fill};
use super::memory::NoMemory;

/// `f32` or `f64`: sources are decoded to it, and kernels compute in it.
///
/// Sources of 16 bits or fewer are computed in `f32`, which holds each of their values exactly with at least 13
/// bits to spare. `F32` and `F64` sources are computed in `f64`.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Infinity.
    const INFINITY: Self;
    /// Four ULPs of one: the rounding error allowed in a sum of a few weights that should add up to one.
    const NOISE: Self;
    /// The nearest value of this precision.
    fn from_f64(value: f64) -> Self;
    /// The same value, exactly.
    fn to_f64(self) -> f64;
    /// The same value from `f32`, exactly.
    fn from_f32(value: f32) -> Self;
    /// The nearest `f32`.
    fn to_f32(self) -> f32;
    /// The magnitude.
    fn abs(self) -> Self;
    /// `self * factor + sum` with one rounding in `f32`, two in `f64`.
    ///
    /// For `vectorised!` kernels only: elsewhere the fused operation is a slow library call.
    fn times_plus(self, factor: Self, sum: Self) -> Self;

    /// [`Fill::fill`] in this precision.
    ///
    /// # Errors
    /// Those of [`Fill::fill`].
    fn fill(elements: &dyn Elements, first: u64, out: &mut [Self]) -> Result<usize, NoMemory>;

    /// An integer below 2^31 that sorts as the magnitudes do: the bits of the magnitude rounded to `f32`.
    #[inline(always)]
    fn magnitude_key(self) -> u32 {
        self.to_f32().to_bits() & 0x7fff_ffff
    }
}

macro_rules! real {
    ($float:ty, $times_plus:expr) => {
        impl Real for $float {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = <$float>::INFINITY;
            const NOISE: Self = 4.0 * <$float>::EPSILON;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $float
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                <$float>::from(value)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$float>::abs(self)
            }
            #[inline(always)]
            fn times_plus(self, factor: Self, sum: Self) -> Self {
                $times_plus(self, factor, sum)
            }
            #[inline(always)]
            fn fill(
                elements: &dyn Elements,
                first: u64,
                out: &mut [Self],
            ) -> Result<usize, NoMemory> {
                Fill::<$float>::fill(elements, first, out)
            }
        }
    };
}

real!(f32, f32::mul_add);
real!(f64, |value: f64, factor, sum| value * factor + sum);

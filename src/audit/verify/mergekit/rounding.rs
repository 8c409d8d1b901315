//! The dtypes that mergekit computes in: the result of every operation is rounded to the tensor's dtype.

use numeric::{FloatType, Real};

/// The arithmetic with which mergekit made a checkpoint: that of `dtype` in its recipe, or of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Every operation in float32.
    Float32,
    /// Every operation rounded to bfloat16.
    Bfloat16,
    /// Every operation rounded to float16.
    Float16,
}

impl Profile {
    /// All of them.
    pub const ALL: [Profile; 3] = [Profile::Float32, Profile::Bfloat16, Profile::Float16];

    /// The name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Float32 => "mergekit-float32",
            Profile::Bfloat16 => "mergekit-bfloat16",
            Profile::Float16 => "mergekit-float16",
        }
    }

    /// The profile that computes in a dtype, if there is one.
    pub fn computing_in(format: FloatType) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.format() == format)
    }

    fn format(self) -> FloatType {
        match self {
            Profile::Float32 => FloatType::F32,
            Profile::Bfloat16 => FloatType::Bf16,
            Profile::Float16 => FloatType::F16,
        }
    }

    /// The result of one operation on values of the profile, rounded as it would be stored.
    ///
    /// 16-bit operations are computed in float32 and rounded again. An `f64` has more than twice the digits of an
    /// `f32`, so sums, products, quotients and roots computed in it and rounded to float32 equal those computed in
    /// float32.
    #[inline(always)]
    pub(super) fn step<R: Real>(self, value: R) -> R {
        let single = value.to_f32();
        R::from_f32(match self {
            Profile::Float32 => single,
            Profile::Bfloat16 => half::bf16::from_f32(single).to_f32(),
            Profile::Float16 => half::f16::from_f32(single).to_f32(),
        })
    }

    /// A Python number as a value of the profile.
    pub(super) fn scalar<R: Real>(self, value: f64) -> R {
        self.step(R::from_f32(value as f32))
    }

    /// The value that is `places` values after this one in the profile's dtype; the value itself if there is none.
    pub(super) fn neighbour(self, value: f32, places: i32) -> f32 {
        let shift = match self {
            Profile::Float32 => 0,
            Profile::Bfloat16 => 16,
            Profile::Float16 => return neighbour_f16(value, places),
        };
        let ordered = |bits: i32| {
            if bits < 0 {
                i32::MIN.wrapping_sub(bits)
            } else {
                bits
            }
        };
        let moved = ordered(value.to_bits() as i32).saturating_add(places << shift);
        let moved = f32::from_bits(ordered(moved) as u32);
        if moved.is_finite() { moved } else { value }
    }

    /// The ULP of one.
    pub(super) fn epsilon(self) -> f64 {
        match self.format() {
            FloatType::Bf16 => 2f64.powi(-7),
            FloatType::F16 => 2f64.powi(-10),
            _ => 2f64.powi(-23),
        }
    }
}

fn neighbour_f16(value: f32, places: i32) -> f32 {
    let ordered = |bits: i16| {
        if bits < 0 {
            i16::MIN.wrapping_sub(bits)
        } else {
            bits
        }
    };
    let bits = ordered(half::f16::from_f32(value).to_bits() as i16);
    let moved = i32::from(bits).saturating_add(places);
    let moved = moved.clamp(i32::from(i16::MIN) + 1, i32::from(i16::MAX)) as i16;
    let moved = half::f16::from_bits(ordered(moved) as u16).to_f32();
    if moved.is_finite() { moved } else { value }
}

/// One operation rounded to float32, whatever the precision of `R`: how sums of narrower values are accumulated.
#[inline(always)]
pub(super) fn single<R: Real>(value: R) -> R {
    R::from_f32(value.to_f32())
}

/// The sum of a few adjacent values in torch's order: four partial sums, with the rest added to the first.
pub(super) fn inner_sum(values: &[f32]) -> f32 {
    let quads = values.chunks_exact(4);
    let rest = quads.remainder();
    let mut partial = [0f32; 4];
    for quad in quads {
        partial
            .iter_mut()
            .zip(quad)
            .for_each(|(sum, value)| *sum += value);
    }
    rest.iter().for_each(|value| partial[0] += value);
    partial[0] + partial[1] + partial[2] + partial[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_rounded_to_the_dtype() {
        // 1 + 2^-8 is midway between two bfloat16 values and rounds to the even one; 2^-7 is one ULP.
        let step = |value: f32| Profile::Bfloat16.step(value);
        assert_eq!(step(1.0 + 2f32.powi(-8)), 1.0);
        assert_eq!(step(1.0 + 3.0 * 2f32.powi(-8)), 1.0 + 2f32.powi(-6));
        // Added one by one, three times three eighths of an ULP are lost; together they are more than an ULP.
        let part = 3.0 * 2f32.powi(-10);
        assert_eq!(step(step(step(1.0 + part) + part) + part), 1.0);
        assert_eq!(step(1.0 + 3.0 * part), 1.0 + 2f32.powi(-7));
        assert_eq!(Profile::Float16.step(1.0f64 + 2f64.powi(-11)), 1.0);
        // From f64, rounded to float32 first, as in torch.
        assert_eq!(
            Profile::Bfloat16.step(1.0 + 2f64.powi(-8) + 2f64.powi(-40)),
            1.0
        );
        assert_eq!(Profile::Float32.step(1.0 + 2f64.powi(-25)), 1.0);
    }

    #[test]
    fn neighbours_lie_next_to_each_other() {
        for (profile, epsilon) in [
            (Profile::Float32, f32::EPSILON),
            (Profile::Bfloat16, 2f32.powi(-7)),
            (Profile::Float16, 2f32.powi(-10)),
        ] {
            assert_eq!(profile.neighbour(1.0, 1), 1.0 + epsilon, "{profile:?}");
            assert_eq!(profile.neighbour(1.0, -2), 1.0 - epsilon, "{profile:?}");
            assert_eq!(
                profile.neighbour(-1.0, 1),
                -1.0 + epsilon / 2.0,
                "{profile:?}"
            );
            assert!(profile.neighbour(0.0, -1) < 0.0, "{profile:?}");
            assert_eq!(f64::from(epsilon), profile.epsilon());
        }
    }

    #[test]
    fn neighbouring_values_are_added_as_four_sums() {
        assert_eq!(inner_sum(&[]), 0.0);
        assert_eq!(inner_sum(&[1.0, 2.0, 3.0]), 6.0);
        // The fifth value is added to the first; in plain order, the small values would be lost one by one.
        let tiny = 2f32.powi(-24);
        assert_eq!(inner_sum(&[tiny, 1.0, 0.0, 0.0, tiny]), 1.0 + 2.0 * tiny);
        assert_eq!(tiny + 1.0 + 0.0 + 0.0 + tiny, 1.0);
    }
}

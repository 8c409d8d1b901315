//! Rounding up or down by a keyed draw, so that what is lost of many small changes is nothing in the mean.

use super::format::FloatType;
use super::random::MaskKey;
use super::real::Real;
use super::vector::vectorised;

/// Selects one stream of draws for stochastic rounding: that of one tensor.
///
/// A value between two neighbours of a format becomes the upper one with the probability of its distance from the
/// lower, in units of their distance. So the expected result is the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundingKey(MaskKey);

/// Values that are rounded at a time; their draws lie on the stack.
const STRIP: usize = 512;

impl RoundingKey {
    /// The key of the tensor `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        // No model has this place, so no mask has the same draws.
        Self(MaskKey::new(seed, name, usize::MAX))
    }

    /// Rounds values, of which the first is element `first` of the tensor, to values of the format.
    ///
    /// NaN and magnitudes from the largest value of the format on stay as they are.
    pub fn round<R: Real>(self, format: FloatType, first: u64, values: &mut [R]) {
        if let Some(grid) = Grid::new(format) {
            self.round_on(grid, first, values);
        }
    }

    /// The same for the 4-bit floats of MXFP4.
    pub(crate) fn round_to_e2m1<R: Real>(self, first: u64, values: &mut [R]) {
        self.round_on(Grid::E2M1, first, values);
    }

    fn round_on<R: Real>(self, grid: Grid, first: u64, values: &mut [R]) {
        let mut draws = [0; STRIP];
        let firsts = (first..).step_by(STRIP);
        for (values, first) in values.chunks_mut(STRIP).zip(firsts) {
            let draws = &mut draws[..values.len()];
            self.0.fill(first, draws);
            round(values, draws, grid);
        }
    }
}

/// The values of a format: how far they are apart at each magnitude, and the largest.
#[derive(Debug, Clone, Copy)]
struct Grid {
    /// Bits of the mantissa.
    mantissa: u64,
    /// The exponent of the smallest normal value, with the bias of `f64`.
    least: u64,
    largest: f64,
}

impl Grid {
    const E2M1: Grid = Grid {
        mantissa: 1,
        least: 1023,
        largest: 6.0,
    };

    /// The grid of a format; `None` for `F64`, which holds every value that is computed.
    fn new(format: FloatType) -> Option<Self> {
        let (mantissa, least): (u64, i64) = match format {
            FloatType::F64 => return None,
            FloatType::F32 => (23, -126),
            FloatType::F16 => (10, -14),
            FloatType::Bf16 => (7, -126),
            FloatType::F8E4m3 => (3, -6),
            FloatType::F8E5m2 => (2, -14),
        };
        Some(Self {
            mantissa,
            least: least.wrapping_add(1023) as u64,
            largest: format.largest(),
        })
    }
}

vectorised! {
    fn round<R: Real>(values: &mut [R], draws: &[u32], grid: Grid) {
        for (value, draw) in values.iter_mut().zip(draws) {
            let wide = value.to_f64();
            let magnitude = wide.abs();
            // The distance between neighbours, a power of two, and its inverse.
            let exponent = (magnitude.to_bits() >> 52).max(grid.least) - grid.mantissa;
            let (apart, inverse) = (f64::from_bits(exponent << 52), f64::from_bits((2046 - exponent) << 52));
            let scaled = magnitude * inverse;
            let below = scaled.trunc();
            let drawn = (f64::from(*draw) + 0.5) * (1.0 / 4_294_967_296.0);
            let up = if drawn < scaled - below { 1.0 } else { 0.0 };
            let rounded = ((below + up) * apart).copysign(wide);
            *value = if magnitude < grid.largest { R::from_f64(rounded) } else { *value };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NARROW: [FloatType; 4] = [
        FloatType::F16,
        FloatType::Bf16,
        FloatType::F8E4m3,
        FloatType::F8E5m2,
    ];

    /// All magnitudes of a format, ascending.
    fn magnitudes(format: FloatType) -> Vec<f64> {
        let codes = 0..1u32 << (8 * format.size() - 1);
        let values = codes.map(|bits| {
            let mut decoded = [0f64];
            format.decode(&bits.to_le_bytes()[..format.size()], &mut decoded);
            decoded[0]
        });
        values.filter(|value| value.is_finite()).collect()
    }

    /// The slow twin: looks the neighbours up among all values of the format.
    fn twin(all: &[f64], value: f64, draw: u32) -> f64 {
        let magnitude = value.abs();
        let above = all.partition_point(|known| *known <= magnitude);
        let low = all[above - 1];
        let Some(high) = all.get(above) else {
            return value;
        };
        let share = (magnitude - low) / (high - low);
        let up = (f64::from(draw) + 0.5) / 2f64.powi(32) < share;
        (if up { *high } else { low }).copysign(value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_takes_the_neighbour_that_the_draw_says(
            format in prop::sample::select(NARROW.to_vec()),
            mantissas in prop::collection::vec(-2f64..2.0, 700),
            exponent in -30i32..14, seed: u64, first in 0u64..1 << 40,
        ) {
            let all = magnitudes(format);
            let key = RoundingKey::new(seed, "a");
            let exact: Vec<f64> = mantissas.iter().map(|mantissa| mantissa * 2f64.powi(exponent)).collect();
            let (mut double, mut single) = (exact.clone(), exact.iter().map(|value| *value as f32).collect::<Vec<_>>());
            let short = single.clone();
            key.round(format, first, &mut double);
            key.round(format, first, &mut single);
            for (at, value) in exact.iter().enumerate() {
                let draw = key.0.draw(first + at as u64);
                prop_assert_eq!(double[at], twin(&all, *value, draw), "{:?} {:e}", format, value);
                let wide = f64::from(short[at]);
                prop_assert_eq!(f64::from(single[at]), twin(&all, wide, draw), "{:?} {:e}", format, wide);
            }
        }

        #[test]
        fn the_mean_of_many_roundings_is_the_value(
            format in prop::sample::select([NARROW.as_slice(), &[FloatType::F32]].concat()),
            mantissa in 1f64..2.0, exponent in -18i32..7, negative: bool, seed: u64,
        ) {
            const COUNT: usize = 20_000;
            let value = mantissa * 2f64.powi(exponent) * if negative { -1.0 } else { 1.0 };
            let mut rounded = vec![value; COUNT];
            RoundingKey::new(seed, "a").round(format, 0, &mut rounded);
            let (least, most) = rounded.iter().fold((f64::MAX, f64::MIN), |(least, most), r| (least.min(*r), most.max(*r)));
            prop_assert!(least <= value && value <= most);
            let apart = if most > least { most - least } else { (value - least).abs() };
            // Six standard errors of a draw between two values, where both were drawn.
            let share = ((value - least) / apart.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
            let allowed = 6.0 * apart * ((share * (1.0 - share)).max(1e-3) / COUNT as f64).sqrt();
            let mean = value + rounded.iter().map(|r| r - value).sum::<f64>() / COUNT as f64;
            prop_assert!((mean - value).abs() <= allowed, "{:?} {:e}: {:e} {:e}", format, value, mean - value, allowed);
        }
    }

    #[test]
    fn what_the_format_holds_stays_and_what_it_does_not_reach_is_left_alone() {
        for format in NARROW {
            let all = magnitudes(format);
            let mut values: Vec<f64> = all.iter().flat_map(|value| [*value, -value]).collect();
            let before: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
            RoundingKey::new(1, "a").round(format, 3, &mut values);
            let after: Vec<u64> = values.iter().map(|value| value.to_bits()).collect();
            assert_eq!(before, after, "{format:?}");
            let largest = all[all.len() - 1];
            let beyond = [largest * 1.001, -largest * 1e9, f64::INFINITY];
            let mut values = beyond;
            RoundingKey::new(1, "a").round(format, 0, &mut values);
            assert_eq!(values, beyond, "{format:?}");
            let mut nan = [f64::NAN];
            RoundingKey::new(1, "a").round(format, 0, &mut nan);
            assert!(nan[0].is_nan());
        }
    }

    #[test]
    fn draws_belong_to_seed_name_and_element() {
        let round = |seed, name, first, count: usize| {
            let mut values = vec![1.0 + 2f64.powi(-9); count];
            RoundingKey::new(seed, name).round(FloatType::Bf16, first, &mut values);
            values
        };
        let all = round(1, "a", 0, 3000);
        for cut in [1, 511, 512, 1024, 2999] {
            let parts = [round(1, "a", 0, cut), round(1, "a", cut as u64, 3000 - cut)];
            assert_eq!(parts.concat(), all);
        }
        assert_ne!(all, round(2, "a", 0, 3000));
        assert_ne!(all, round(1, "b", 0, 3000));
    }
}

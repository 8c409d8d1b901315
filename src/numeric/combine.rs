//! Weighted sums of sources: what every merge ends in.

use super::real::Real;
use super::vector::vectorised;

/// Elements summed at a time, so that the partial sums stay in the first cache.
const STRIP: usize = 2048;

vectorised! {
    /// `out[i] = sum of weights[k] * sources[k][i]`, summed in source order.
    ///
    /// With `fused`, each term is added with one rounding; without, its product is rounded first, so that terms
    /// that cancel give zero. mergekit does the first in `linear`, the second in `slerp`.
    /// A source of weight zero is left out, so that an infinity in it does not turn into NaN.
    /// All slices have the length of `out`.
    pub fn weighted_sum<R: Real>(sources: &[&[R]], weights: &[R], fused: bool, out: &mut [R]) {
        let mut start = 0;
        for out in out.chunks_mut(STRIP) {
            let mut first = true;
            for (source, &weight) in sources.iter().zip(weights) {
                if weight == R::ZERO {
                    continue;
                }
                let source = &source[start..][..out.len()];
                if first {
                    out.iter_mut()
                        .zip(source)
                        .for_each(|(sum, &value)| *sum = weight * value);
                } else if fused {
                    out.iter_mut()
                        .zip(source)
                        .for_each(|(sum, &value)| *sum = value.times_plus(weight, *sum));
                } else {
                    out.iter_mut()
                        .zip(source)
                        .for_each(|(sum, &value)| *sum += weight * value);
                }
                first = false;
            }
            if first {
                out.fill(R::ZERO);
            }
            start += out.len();
        }
    }
}

vectorised! {
    /// Puts each element of `out` between the least and the largest of the sources there.
    ///
    /// A weighted mean with weights of one sign lies there by its definition; rounding can carry it out by a
    /// step. So elements in which all sources agree come out as they went in, to the bit.
    pub fn clamp_to_hull<R: Real>(sources: &[&[R]], out: &mut [R]) {
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let start = chunks.len() * LANES;
        for (index, out) in chunks.iter_mut().enumerate() {
            clamp_lanes(sources, index * LANES, out);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            clamp_lanes(sources, start + index, std::array::from_mut(out));
        }
    }
}

/// Elements whose bounds are found together, in registers.
const LANES: usize = 8;

#[inline(always)]
fn clamp_lanes<R: Real, const N: usize>(sources: &[&[R]], start: usize, out: &mut [R; N]) {
    let lanes = |source: &[R]| source[start..].first_chunk::<N>().copied();
    let mut sources = sources.iter().filter_map(|source| lanes(source));
    let Some(first) = sources.next() else {
        return;
    };
    let (mut low, mut high) = (first, first);
    for source in sources {
        for ((low, high), value) in low.iter_mut().zip(&mut high).zip(source) {
            *low = if value < *low { value } else { *low };
            *high = if value > *high { value } else { *high };
        }
    }
    for ((value, low), high) in out.iter_mut().zip(low).zip(high) {
        // Comparisons with NaN are false, so a NaN stays. At equality too, as a minus zero equals a plus zero.
        let raised = if *value <= low { low } else { *value };
        *value = if raised >= high { high } else { raised };
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, Axis};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_matrix_product_in_f64(
            length in 0usize..5000, count in 1usize..5, seed in 0u64..1000,
        ) {
            let value = |row: usize, column: usize| {
                ((row * 7919 + column * 104_729 + seed as usize * 31) % 2003) as f32 / 1000.0 - 1.0
            };
            let rows: Vec<Vec<f32>> = (0..count).map(|r| (0..length).map(|c| value(r, c)).collect()).collect();
            let weights: Vec<f32> = (0..count).map(|r| value(r, length + 1)).collect();
            let sources: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let mut out = vec![0f32; length];
            weighted_sum(&sources, &weights, seed % 2 == 0, &mut out);

            let matrix = Array2::from_shape_fn((count, length), |(r, c)| f64::from(rows[r][c]));
            let twin = Array1::from_iter(weights.iter().map(|&w| f64::from(w))).dot(&matrix);
            for (fast, slow) in out.iter().zip(&twin) {
                prop_assert!((f64::from(*fast) - slow).abs() <= 1e-6);
            }

            clamp_to_hull(&sources, &mut out);
            for (column, clamped) in matrix.axis_iter(Axis(1)).zip(&out) {
                let low = column.fold(f64::INFINITY, |a, &b| a.min(b));
                let high = column.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                prop_assert!((low..=high).contains(&f64::from(*clamped)));
            }
        }
    }

    #[test]
    fn a_source_of_weight_zero_does_not_matter() {
        let mut out = [0f32; 2];
        weighted_sum(
            &[&[1.0, 2.0], &[f32::INFINITY, f32::NAN]],
            &[1.0, 0.0],
            true,
            &mut out,
        );
        assert_eq!(out, [1.0, 2.0]);
        weighted_sum(&[&[1.0f32, 2.0]], &[0.0], true, &mut out);
        assert_eq!(out, [0.0, 0.0]);
    }

    #[test]
    fn copies_come_out_as_they_went_in() {
        let values = [0.1f64, -3.7e200, 5e-324, 1.0 / 3.0];
        let mut out = [0f64; 4];
        weighted_sum(
            &[&values, &values, &values],
            &[0.1, 0.2, 0.7],
            true,
            &mut out,
        );
        clamp_to_hull(&[&values, &values, &values], &mut out);
        assert_eq!(out, values);
    }
}

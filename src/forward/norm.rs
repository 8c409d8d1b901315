//! The root mean square norm, over all features of a token or over those of each head.

/// Divides each token's values by their root mean square and multiplies them by `weight + offset`.
///
/// `values`: features x tokens. If `weight` is shorter than a token, each run of that many features is a head and is
/// normed separately. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
pub(super) fn rms_norm(values: &mut [f32], tokens: usize, weight: &[f32], offset: f32, eps: f64) {
    let mut sums = vec![0f64; tokens];
    for head in values.chunks_exact_mut(weight.len() * tokens) {
        sums.fill(0.0);
        for row in head.chunks_exact(tokens) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        for sum in &mut sums {
            *sum = 1.0 / (*sum / weight.len() as f64 + eps).sqrt();
        }
        for (row, weight) in head.chunks_exact_mut(tokens).zip(weight) {
            let weight = f64::from(weight + offset);
            for (value, inverse) in row.iter_mut().zip(&sums) {
                *value = (f64::from(*value) * inverse * weight) as f32;
            }
        }
    }
}

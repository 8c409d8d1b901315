//! Draws router rows: normal, uniform or orthonormal.

use super::Recipe;
use super::rows::{Rows, normalize, project_out};
use errors::Refusal;
use numeric::NormalKey;
use recipe::GateMode;

/// The rows of the layer whose router has this name, which keys the draws.
pub(super) fn rows(recipe: &Recipe, name: &str) -> Result<Rows, Refusal> {
    let key = NormalKey::new(recipe.seed, name, 0);
    let mut rows = Rows::zero(recipe);
    let bound = 1.0 / (recipe.hidden as f64).sqrt();
    for (place, value) in (0..).zip(&mut rows.values) {
        *value = match recipe.mode {
            GateMode::UniformRandom => bound * key.uniform(place),
            _ => key.draw(place),
        };
    }
    if recipe.mode == GateMode::Orthogonal {
        orthonormalize(&mut rows.values, recipe.hidden)?;
    }
    Ok(rows)
}

/// Makes rows orthonormal by two passes of Gram-Schmidt, which is exact up to rounding ("twice is enough", Kahan).
fn orthonormalize(values: &mut [f64], hidden: usize) -> Result<(), Refusal> {
    for row in 0..values.len() / hidden {
        let (before, rest) = values.split_at_mut(row * hidden);
        let row = &mut rest[..hidden];
        for _ in 0..2 {
            project_out(row, before);
            if !normalize(row) {
                return Err(Refusal::new(format!(
                    "more than {hidden} rows cannot be orthogonal in {hidden} dimensions"
                ))
                .with_hint("use `gate_mode: random`"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_orthonormal() {
        let key = NormalKey::new(1, "a", 0);
        let mut values: Vec<f64> = (0..6 * 8).map(|index| key.draw(index)).collect();
        orthonormalize(&mut values, 8).unwrap();
        let rows: Vec<&[f64]> = values.chunks(8).collect();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                let inner: f64 = a.iter().zip(*b).map(|(a, b)| a * b).sum();
                let expected = f64::from(u8::from(i == j));
                assert!((inner - expected).abs() < 1e-14, "{i} {j} {inner}");
            }
        }
    }
}

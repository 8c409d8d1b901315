//! How much of an update survives its rounding: the projection of what was kept on what was meant.

use std::ops::AddAssign;

use super::real::Real;
use super::vector::vectorised;

/// Sums over the elements of a tensor that is written as an update of a base.
///
/// What was meant is the computed value minus the base's; what was kept is the written value minus the base's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Survival {
    /// The sum of the products of what was kept and what was meant.
    pub kept: f64,
    /// The sum of the squares of what was meant.
    pub meant: f64,
}

/// Partial sums, so that the compiler can use vectors.
const LANES: usize = 8;

impl Survival {
    /// The sums over a run of elements: computed values, those of the base, and those that were written.
    pub fn measure<R: Real>(computed: &[R], base: &[R], written: &[R]) -> Self {
        let [mut kept, mut meant] = [[0.0; LANES]; 2];
        add(computed, base, written, &mut kept, &mut meant);
        Self {
            kept: kept.iter().sum(),
            meant: meant.iter().sum(),
        }
    }

    /// The fraction of the update that survives; `None` if nothing was to change, or a value is not finite.
    pub fn fraction(self) -> Option<f64> {
        let fraction = self.kept / self.meant;
        (self.meant > 0.0 && fraction.is_finite()).then_some(fraction)
    }
}

impl AddAssign for Survival {
    fn add_assign(&mut self, other: Self) {
        self.kept += other.kept;
        self.meant += other.meant;
    }
}

vectorised! {
    fn add<R: Real>(computed: &[R], base: &[R], written: &[R], kept: &mut [f64; LANES], meant: &mut [f64; LANES]) {
        let runs = computed.chunks(LANES).zip(base.chunks(LANES)).zip(written.chunks(LANES));
        for ((computed, base), written) in runs {
            let elements = computed.iter().zip(base).zip(written);
            for (((computed, base), written), (kept, meant)) in elements.zip(kept.iter_mut().zip(meant.iter_mut())) {
                let base = base.to_f64();
                let update = computed.to_f64() - base;
                *kept += (written.to_f64() - base) * update;
                *meant += update * update;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FloatType, NormalKey};

    #[test]
    fn it_is_the_projection_of_what_was_kept_on_what_was_meant() {
        // Of three updates by one, one is kept, one lost, one doubled.
        let sums = Survival::measure(&[1f32, 2.0, 3.0], &[0.0, 1.0, 2.0], &[1.0, 1.0, 4.0]);
        assert_eq!((sums.kept, sums.meant), (3.0, 3.0));
        assert_eq!(sums.fraction(), Some(1.0));
        assert_eq!(Survival::measure(&[1f64], &[1.0], &[1.0]).fraction(), None);
        assert_eq!(Survival::default().fraction(), None);
    }

    #[test]
    fn a_plain_loop_gives_the_same() {
        for count in [1, 7, 8, 9, 1000] {
            let draws = |slot| {
                let key = NormalKey::new(5, "a", slot);
                (0..count).map(|at| key.draw(at)).collect::<Vec<_>>()
            };
            let (computed, base, written) = (draws(0), draws(1), draws(2));
            let (mut kept, mut meant) = (0.0, 0.0);
            for at in 0..count as usize {
                kept += (written[at] - base[at]) * (computed[at] - base[at]);
                meant += (computed[at] - base[at]).powi(2);
            }
            let sums = Survival::measure(&computed, &base, &written);
            assert!((sums.kept - kept).abs() < 1e-9 * meant, "{count}");
            assert!((sums.meant - meant).abs() < 1e-9 * meant, "{count}");
        }
    }

    /// A base of root mean square 0.02 in bfloat16 with an update of 1e-5 keeps about 28 % of it.
    #[test]
    fn small_updates_of_bfloat16_are_lost() {
        const COUNT: u64 = 1 << 18;
        let format = FloatType::Bf16;
        let rounded = |values: &[f64]| {
            let mut bytes = vec![0; 2 * values.len()];
            format.encode(&mut values.to_vec(), false, &mut bytes);
            let mut back = vec![0.0; values.len()];
            format.decode(&bytes, &mut back);
            back
        };
        let (at, update) = (NormalKey::new(1, "base", 0), NormalKey::new(1, "update", 0));
        let base = rounded(&(0..COUNT).map(|i| 0.02 * at.draw(i)).collect::<Vec<_>>());
        let computed = (0..COUNT)
            .zip(&base)
            .map(|(i, base)| base + 1e-5 * update.draw(i));
        let computed: Vec<f64> = computed.collect();
        let fraction = Survival::measure(&computed, &base, &rounded(&computed))
            .fraction()
            .unwrap();
        assert!((0.26..0.30).contains(&fraction), "{fraction}");
    }
}

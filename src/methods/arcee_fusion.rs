//! `arcee_fusion`: the most important changes of one fine-tune; everything else from the base.

use super::order::{self, Keys, Order};
use super::{Action, Arity, BaseRule, Method, MethodInfo, Tensor, TensorParams};
use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real, filled, reserve};

/// Takes elements with important changes from the fine-tune, all others from the base.
pub(super) struct ArceeFusion;

/// Added to each probability, as in mergekit.
const LEAST_PROBABILITY: f64 = 1e-8;

static INFO: MethodInfo = MethodInfo {
    name: "arcee_fusion",
    summary: "the elements of one fine-tune whose change is most important; all others keep the base's value",
    formula: "importance = |x - base| * KL(softmax(x) || softmax(base)), softmax and KL over each row (the last \
              dimension), 1e-8 added to each probability; out = x where importance >= median + 1.5 * (Q3 - Q1) over \
              the tensor, else base; the quartiles are elements floor(q * (N - 1)) of the ascending order",
    when: "one fine-tune of which only the strongest changes are wanted",
    departs: "The quartiles are those of the whole tensor; above a million elements mergekit samples a million at \
              random. Softmax and KL are computed in float64; in bfloat16 some importances come out negative. The \
              result has the dtype of the recipe or the models; mergekit writes float32. Importances are compared as \
              float32.",
    source: "Arcee AI; mergekit 0.1.5",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Required,
    params: &[],
    random: false,
    statistics: None,
};

impl Method for ArceeFusion {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, _params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let Some(other) = (0..tensor.sources).find(|&source| source != base) else {
            return Ok(Action::Copy(base));
        };
        let mut program = Fusion {
            importance: Importance {
                base,
                other,
                row: tensor.row(),
            },
            elements: tensor.elements(),
            blocks: 0,
        };
        let block = program.cost().block_len() as u64;
        program.blocks = program.elements.div_ceil(block) as usize;
        Ok(Action::Compute(Box::new(program)))
    }
}

/// Finds the quartiles, then applies the threshold.
struct Fusion {
    importance: Importance,
    elements: u64,
    blocks: usize,
}

impl AnyProgram for Fusion {
    fn cost(&self) -> Cost {
        let order = Order {
            keys: self.importance,
            elements: self.elements,
            blocks: self.blocks,
        };
        Cost {
            measures: order::CUTS,
            counts: order.counts(3),
            row: self.importance.row,
            // A key and two probabilities per element.
            scratch: 4 + 2 * 8,
            ..Cost::default()
        }
    }
}

impl<R: Real> Program<R> for Fusion {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let order = Order {
            keys: self.importance,
            elements: self.elements,
            blocks: self.blocks,
        };
        let last = self.elements.saturating_sub(1);
        // Converts the positions floor(q * last) in ascending order, for q = 3/4, 1/2 and 1/4, to ranks from the
        // top.
        let places = [last - last.div_ceil(4), last / 2, last / 4];
        let ranks = places.map(|place| (0, self.elements - place));
        let cuts = match order.cuts(&mut measured.iter(), &ranks) {
            Ok(cuts) => cuts,
            Err(measure) => return measure.pass(),
        };
        let value = |place: usize| {
            cuts.get(place)
                .map_or(0.0, |cut| f64::from(f32::from_bits(cut.key)))
        };
        let threshold = value(1) + 1.5 * (value(0) - value(2));
        Pass::Apply(Box::new(Fuse {
            importance: self.importance,
            from: key_from(threshold),
        }))
    }
}

/// The smallest key whose magnitude reaches the threshold.
fn key_from(threshold: f64) -> u32 {
    let nearest = threshold as f32;
    let least = if f64::from(nearest) < threshold {
        nearest.next_up()
    } else {
        nearest
    };
    least.magnitude_key()
}

/// The importance of each element; a single stream of keys.
#[derive(Debug, Clone, Copy)]
struct Importance {
    base: usize,
    other: usize,
    row: usize,
}

impl<R: Real> Keys<R> for Importance {
    fn need_blocks(&self) -> bool {
        true
    }

    fn fill(&self, block: &Block<'_, R>, _stream: usize, keys: &mut [u32]) -> Result<(), NoMemory> {
        let row = self.row.max(1);
        let rows = block.sources[self.other]
            .chunks(row)
            .zip(block.sources[self.base].chunks(row));
        let (mut p, mut q) = (Vec::new(), Vec::new());
        reserve(&mut p, row)?;
        reserve(&mut q, row)?;
        for (keys, (x, base)) in keys.chunks_mut(row).zip(rows) {
            softmax(x, &mut p);
            softmax(base, &mut q);
            let divergence = divergence(&p, &q);
            for (key, (&x, &base)) in keys.iter_mut().zip(x.iter().zip(base)) {
                *key = ((x - base).abs().to_f64() * divergence).magnitude_key();
            }
        }
        Ok(())
    }
}

/// Sets `probabilities` to the softmax of a row.
fn softmax<R: Real>(row: &[R], probabilities: &mut Vec<f64>) {
    let most = row
        .iter()
        .fold(f64::NEG_INFINITY, |most, value| most.max(value.to_f64()));
    probabilities.clear();
    probabilities.extend(row.iter().map(|value| libm::exp(value.to_f64() - most)));
    let sum: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|value| *value /= sum);
}

/// The Kullback-Leibler divergence of `p` from `q`, with [`LEAST_PROBABILITY`] added to each probability; never
/// negative.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(p, q)| (p + LEAST_PROBABILITY, q + LEAST_PROBABILITY))
        .map(|(p, q)| p * libm::log(p / q))
        .sum();
    sum.max(0.0)
}

struct Fuse {
    importance: Importance,
    /// The smallest key that counts as important.
    from: u32,
}

impl<R: Real> Apply<R> for Fuse {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let mut keys = filled(out.len(), 0)?;
        self.importance.fill(&block, 0, &mut keys)?;
        let pairs = block.sources[self.importance.other]
            .iter()
            .zip(block.sources[self.importance.base]);
        for ((out, key), (&x, &base)) in out.iter_mut().zip(keys).zip(pairs) {
            *out = if key >= self.from { x } else { base };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_round_up() {
        assert_eq!(key_from(0.0), 0);
        assert_eq!(key_from(1.0), 1f32.to_bits());
        assert_eq!(key_from(1.0 + 1e-12), 1f32.to_bits() + 1);
        assert_eq!(key_from(1.0 - 1e-12), 1f32.to_bits());
    }

    #[test]
    fn softmax_and_divergence_by_hand() {
        let (mut p, mut q) = (Vec::new(), Vec::new());
        softmax(&[0f64, 3f64.ln()], &mut p);
        softmax(&[700f64, 700.0], &mut q);
        assert!((p[0] - 0.25).abs() < 1e-15 && (p[1] - 0.75).abs() < 1e-15);
        assert_eq!(q, [0.5, 0.5]);
        let expected = 0.25 * 0.5f64.ln() + 0.75 * 1.5f64.ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-7);
        assert_eq!(divergence(&q, &q), 0.0);
    }
}

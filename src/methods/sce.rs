//! `sce`: select elements by variance, weigh models by energy, erase what lost the vote on the sign.

use super::interval::KeyInterval;
use super::order::{self, Keys, Order};
use super::task_vectors::{self, AddUp, Choose, Consensus, Mask, Masked, MaskedTerm, STRIP, Sum};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use engine::{AnyProgram, Block, Cost, Measure, Measured, Pass, Program};
use errors::Refusal;
use numeric::{BLOCK, NoMemory, Real, dot, vectorised};

/// Select, calculate, erase.
pub(super) struct Sce;

static INFO: MethodInfo = MethodInfo {
    name: "sce",
    summary: "task vectors where they vary most, each weighted by its energy; where signs conflict, the majority \
              is merged",
    formula: "d_i = x_i - base, set to zero except at the k = floor(select_topk * M) elements with the largest \
              variance over the models, M the number of elements whose variance is not zero; w_i = sum(d_i^2) / sum \
              over all models; s = sign(sum(d_i)), + if the sum is 0; out = base + the mean of those d_i with sign \
              s, weighted by w_i",
    when: "fine-tunes that learned very different things; select_topk 0.1 to 0.3, or 1",
    departs: "Weights are shares of the energy, however small it is. mergekit weighs all models equally if their \
              mean squares add up to less than 1e-6, which is usual for light fine-tunes, and shrinks an element \
              where the weights of the agreeing models add up to less than 1e-6. Standard deviations are compared as \
              float32; of equal ones, those with the lowest index are kept. An element on which all models agree has no \
              variance: with `select_topk` below 1 it keeps the base's value, as in mergekit. With one model besides \
              the base this would be every element, so it is an error.",
    source: "Wan et al., FuseChat, arXiv:2408.07990",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            name: "select_topk",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "The fraction of elements that is merged, those with the largest variance first; 1 merges all, even \
                  those without variance.",
        },
        task_vectors::INT8_MASK,
    ],
    random: false,
    statistics: None,
};

impl Method for Sce {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let others: Vec<usize> = (0..tensor.sources)
            .filter(|&source| source != base)
            .collect();
        let share = params.number("select_topk");
        if others.is_empty() || share <= 0.0 {
            return Ok(Action::Copy(base));
        }
        if others.len() == 1 && share < 1.0 {
            return Err(Refusal::new(format!(
                "`select_topk` is {share}, which selects by the variance over the models, but there is one model \
                 besides the base"
            ))
            .with_hint("add a model, or set `select_topk: 1`"));
        }
        let elements = tensor.elements();
        Ok(Action::Compute(Box::new(SelectWeighErase {
            base,
            others,
            share,
            elements,
            blocks: elements.div_ceil(BLOCK as u64) as usize,
        })))
    }
}

/// Finds the threshold of variances, measures the energies, applies.
struct SelectWeighErase {
    base: usize,
    others: Vec<usize>,
    share: f64,
    elements: u64,
    blocks: usize,
}

impl AnyProgram for SelectWeighErase {
    fn cost(&self) -> Cost {
        Cost {
            measures: if self.share < 1.0 {
                1 + order::PASSES
            } else {
                1
            },
            counts: self.order().counts(1),
            sums: self.others.len(),
            scratch: 4,
            ..Cost::default()
        }
    }
}

impl SelectWeighErase {
    fn order(&self) -> Order<Spread> {
        Order {
            keys: Spread {
                sources: self.others.clone(),
            },
            elements: self.elements,
            blocks: self.blocks,
        }
    }

    /// The interval of variances that is merged, or the measure that is needed next.
    fn interval<'m>(
        &self,
        measured: &mut impl Iterator<Item = &'m Measured>,
    ) -> Result<KeyInterval, order::Counts<Spread>> {
        let found = self.order().share(measured, self.share)?;
        Ok(found.map_or_else(KeyInterval::nothing, |found| KeyInterval::from(&found)))
    }
}

impl<R: Real> Program<R> for SelectWeighErase {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let mut measured = measured.iter();
        let mut common = None;
        if self.share < 1.0 {
            common = match self.interval(&mut measured) {
                Ok(interval) => Some((interval, self.order().keys)),
                Err(measure) => return measure.pass(),
            };
        }
        let Some(energies) = measured.next() else {
            return Pass::Measure(Box::new(Energies {
                base: self.base,
                common,
                others: self.others.clone(),
            }));
        };
        let total: f64 = energies.sums.iter().sum();
        let terms = self
            .others
            .iter()
            .zip(&energies.sums)
            .map(|(&source, &energy)| {
                // If all energies are zero, there is nothing to weigh, and any weights will do.
                let weight = R::from_f64(if total > 0.0 { energy / total } else { 1.0 });
                MaskedTerm {
                    source,
                    weight,
                    scaled: weight,
                    mask: Mask::All,
                }
            })
            .collect();
        Pass::Apply(Box::new(AddUp {
            base: self.base,
            terms,
            sum: Sum {
                consensus: Consensus::Sign,
                lambda: 1.0,
                normalize: true,
                total: 1.0,
            },
            agreement: None,
            common,
        }))
    }
}

/// The standard deviation over some sources; a single stream of keys.
#[derive(Debug, Clone)]
struct Spread {
    sources: Vec<usize>,
}

impl<R: Real> Keys<R> for Spread {
    fn fill(&self, block: &Block<'_, R>, _stream: usize, keys: &mut [u32]) -> Result<(), NoMemory> {
        let Some((&first, others)) = self.sources.split_first() else {
            keys.fill(0);
            return Ok(());
        };
        let count = self.sources.len() as f64;
        let first = block.sources[first];
        if let [other] = *others {
            half_difference_keys(block.sources[other], first, keys);
            return Ok(());
        }
        let mut mean = [0f64; STRIP];
        let mut squares = [0f64; STRIP];
        for (index, keys) in keys.chunks_mut(STRIP).enumerate() {
            let place = index * STRIP..index * STRIP + keys.len();
            let first = &first[place.clone()];
            // Computed relative to the first source, so that the variance is exactly zero where all sources agree.
            let (mean, squares) = (&mut mean[..keys.len()], &mut squares[..keys.len()]);
            mean.fill(0.0);
            for &source in others {
                add_differences(&block.sources[source][place.clone()], first, mean);
            }
            square_of_mean(count, mean, squares);
            for &source in others {
                add_squares(&block.sources[source][place.clone()], first, mean, squares);
            }
            deviation_keys(squares, count, keys);
        }
        Ok(())
    }
}

vectorised! {
    /// The result of [`deviation_keys`] for two sources: half their difference, rounded once.
    fn half_difference_keys<R: Real>(source: &[R], first: &[R], keys: &mut [u32]) {
        let half = R::from_f64(0.5);
        for ((key, &x), &first) in keys.iter_mut().zip(source).zip(first) {
            *key = ((x - first) * half).magnitude_key();
        }
    }
}

vectorised! {
    fn add_differences<R: Real>(source: &[R], first: &[R], sums: &mut [f64]) {
        for ((sum, &x), &first) in sums.iter_mut().zip(source).zip(first) {
            *sum += x.to_f64() - first.to_f64();
        }
    }
}

vectorised! {
    /// Divides the sums by `count`, and sets `squares` to the squares of these means.
    fn square_of_mean(count: f64, sums: &mut [f64], squares: &mut [f64]) {
        for (mean, square) in sums.iter_mut().zip(squares) {
            *mean /= count;
            *square = *mean * *mean;
        }
    }
}

vectorised! {
    fn add_squares<R: Real>(source: &[R], first: &[R], mean: &[f64], squares: &mut [f64]) {
        let means = mean.iter().zip(squares);
        for (((mean, squares), &x), &first) in means.zip(source).zip(first) {
            let off = x.to_f64() - first.to_f64() - mean;
            *squares += off * off;
        }
    }
}

vectorised! {
    /// The deviation sorts as the variance does, but has no squares that overflow or underflow float32.
    fn deviation_keys(squares: &[f64], count: f64, keys: &mut [u32]) {
        for (key, squares) in keys.iter_mut().zip(squares) {
            *key = (squares / count).sqrt().magnitude_key();
        }
    }
}

/// Measures the sum of squares of each task vector over the elements that are merged.
struct Energies {
    base: usize,
    common: Option<(KeyInterval, Spread)>,
    others: Vec<usize>,
}

impl<R: Real> Measure<R> for Energies {
    fn sums(&self) -> usize {
        self.others.len()
    }

    fn counts(&self) -> usize {
        0
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        _counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let mut room = Vec::new();
        let mut keys = [0; STRIP];
        let mut kept = [R::ZERO; STRIP];
        let mut common = self
            .common
            .as_ref()
            .map(|(interval, keys)| (interval.in_block(block.index), keys));
        for start in (0..block.len()).step_by(STRIP) {
            let strip = start..block.len().min(start + STRIP);
            block.ahead(strip.clone());
            let part = block.part(strip.clone(), &mut room);
            let keys = &mut keys[..strip.len()];
            let mut choose = Choose::ALL;
            if let Some((interval, spread)) = &mut common {
                spread.fill(&part, 0, keys)?;
                choose = Choose::given(interval.choose(keys));
            }
            let base = part.sources[self.base];
            let kept = &mut kept[..strip.len()];
            for (&source, sum) in self.others.iter().zip(&mut *sums) {
                Masked::new(part.sources[source], base, choose, keys).fill(kept);
                *sum += dot(kept, kept);
            }
        }
        Ok(())
    }
}

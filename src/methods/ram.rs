//! `ram` and `ramplus_tl`: changes made by one fine-tune are kept whole, changes made by several are averaged.

use std::cmp::Ordering::{Equal, Less};

use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real};

/// Keeps unique changes and averages shared ones.
pub(super) struct Ram;
/// The same, but amplifies a model's unique changes by how much of its change is shared.
pub(super) struct RamPlus;

const EPSILON: ParamInfo = ParamInfo {
    name: "epsilon",
    kind: AT_LEAST_ZERO,
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Number(1e-5)),
    required: false,
    doc: "How much an element must differ from the base to count as changed.",
};

const AT_LEAST_ZERO: ParamKind = ParamKind::Range {
    min: 0.0,
    max: f64::INFINITY,
};

const SOURCE: &str = "Reinforced Agent Merging, arXiv:2601.13572; mergekit 0.1.5";

static RAM: MethodInfo = MethodInfo {
    name: "ram",
    summary: "elements changed by one fine-tune alone are taken from it, those changed by several become their mean",
    formula: "changed_i = |x_i - base| > epsilon; out = base where no model changed the element, else the mean of \
              the x_i of the models that changed it",
    when: "fine-tunes of one base that change few elements each, such as those trained by reinforcement learning",
    departs: "",
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[EPSILON],
    random: false,
    statistics: None,
};

static RAM_PLUS: MethodInfo = MethodInfo {
    name: "ramplus_tl",
    summary: "like ram, with unique changes amplified in tensors where much of a model's change is shared",
    formula: "changed_i = |x_i - base| > epsilon; out = base where no model changed the element, base + l_i * (x_i - \
              base) where only model i changed it, else the mean of the x_i of the models that changed it; l_i = 1 + \
              r * min(shared_i / unique_i, alpha), shared_i and unique_i the numbers of the tensor's elements that \
              model i changed with others and alone",
    when: "the same as ram, if averaging shared changes weakens what the models have learned",
    departs: "The output has the dtype of the recipe or the models; mergekit always writes float32.",
    source: SOURCE,
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            name: "r",
            kind: ParamKind::Number,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.1)),
            required: false,
            doc: "How strongly sharing amplifies unique changes.",
        },
        ParamInfo {
            name: "alpha",
            kind: AT_LEAST_ZERO,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.2)),
            required: false,
            doc: "The largest ratio of shared to unique changes that counts.",
        },
        EPSILON,
    ],
    random: false,
    statistics: None,
};

impl Method for Ram {
    fn info(&self) -> &'static MethodInfo {
        &RAM
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        action(params, tensor, None)
    }
}

impl Method for RamPlus {
    fn info(&self) -> &'static MethodInfo {
        &RAM_PLUS
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let amplify = Amplify {
            r: params.number("r"),
            alpha: params.number("alpha"),
        };
        action(params, tensor, Some(amplify))
    }
}

fn action(
    params: &TensorParams,
    tensor: &Tensor<'_>,
    amplify: Option<Amplify>,
) -> Result<Action, Refusal> {
    let base = tensor.base.ok_or("the method needs a base model")?;
    let members: Vec<usize> = (0..tensor.sources)
        .filter(|&source| source != base)
        .collect();
    if members.is_empty() {
        return Ok(Action::Copy(base));
    }
    Ok(Action::Compute(Box::new(Reinforced {
        changes: Changes {
            base,
            members,
            epsilon: params.number("epsilon"),
        },
        amplify,
    })))
}

/// How much unique changes are amplified.
#[derive(Debug, Clone, Copy)]
struct Amplify {
    r: f64,
    alpha: f64,
}

impl Amplify {
    /// The factor of a model that changed `shared` elements together with others and `unique` elements alone.
    fn factor(self, shared: u64, unique: u64) -> f64 {
        // Without unique changes the factor has no effect; `max` only avoids a division by zero.
        let ratio = shared as f64 / unique.max(1) as f64;
        1.0 + self.r * ratio.min(self.alpha)
    }
}

/// Decides which elements each model has changed.
#[derive(Debug, Clone)]
struct Changes {
    base: usize,
    members: Vec<usize>,
    epsilon: f64,
}

impl Changes {
    /// Each model's value at one place, and whether the model has changed it.
    #[inline(always)]
    fn at<'b, R: Real>(
        &'b self,
        block: &Block<'b, R>,
        place: usize,
        epsilon: R,
    ) -> impl Iterator<Item = (R, bool)> + 'b {
        let base = block.sources[self.base][place];
        let sources = block.sources;
        self.members.iter().map(move |&member| {
            let value = sources[member][place];
            let size = (value - base).abs();
            // NaN counts as a change, so that it is not lost.
            let same = matches!(size.partial_cmp(&epsilon), Some(Less | Equal));
            (value, !same)
        })
    }
}

/// Counts changes if they are amplified, then merges.
struct Reinforced {
    changes: Changes,
    amplify: Option<Amplify>,
}

impl AnyProgram for Reinforced {
    fn cost(&self) -> Cost {
        match self.amplify {
            None => Cost::default(),
            Some(_) => Cost {
                measures: 1,
                counts: 2 * self.changes.members.len(),
                ..Cost::default()
            },
        }
    }
}

impl<R: Real> Program<R> for Reinforced {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let factors = match (self.amplify, measured.first()) {
            (None, _) => vec![R::ONE; self.changes.members.len()],
            (Some(_), None) => return Pass::Measure(Box::new(Sharing(self.changes.clone()))),
            (Some(amplify), Some(measured)) => measured
                .counts
                .chunks_exact(2)
                .map(|pair| R::from_f64(amplify.factor(pair[0], pair[1])))
                .collect(),
        };
        Pass::Apply(Box::new(AddUp {
            changes: self.changes.clone(),
            factors,
        }))
    }
}

/// Counts each model's shared and unique changes.
struct Sharing(Changes);

impl<R: Real> Measure<R> for Sharing {
    fn sums(&self) -> usize {
        0
    }

    fn counts(&self) -> usize {
        2 * self.0.members.len()
    }

    fn block(
        &self,
        block: Block<'_, R>,
        _sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let epsilon = R::from_f64(self.0.epsilon);
        for place in 0..block.len() {
            let changed = self.0.at(&block, place, epsilon);
            let unique = changed.filter(|(_, changed)| *changed).count() == 1;
            let changed = self.0.at(&block, place, epsilon);
            for ((_, changed), counts) in changed.zip(counts.chunks_exact_mut(2)) {
                counts[usize::from(unique)] += u64::from(changed);
            }
        }
        Ok(())
    }
}

/// Takes unique changes and averages shared ones.
struct AddUp<R> {
    changes: Changes,
    /// For each member, the factor of its unique changes.
    factors: Vec<R>,
}

impl<R: Real> Apply<R> for AddUp<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let epsilon = R::from_f64(self.changes.epsilon);
        let base = block.sources[self.changes.base];
        for (place, (out, &base)) in out.iter_mut().zip(base).enumerate() {
            // The mean of the models that changed the element, clamped to the least and the largest of them.
            let (mut sum, mut count, mut last) = (R::ZERO, R::ZERO, (base, R::ONE));
            let (mut low, mut high) = (base, base);
            let values = self.changes.at(&block, place, epsilon);
            for ((value, _), &factor) in values.zip(&self.factors).filter(|((_, c), _)| *c) {
                if count == R::ZERO {
                    (sum, low, high) = (value, value, value);
                } else {
                    sum += value;
                    low = if value < low { value } else { low };
                    high = if value > high { value } else { high };
                }
                count += R::ONE;
                last = (value, factor);
            }
            *out = if count == R::ZERO {
                base
            } else if count == R::ONE {
                let (value, factor) = last;
                match factor == R::ONE {
                    true => value,
                    false => base + factor * (value - base),
                }
            } else {
                let mean = sum / count;
                // Replaces equal values too, since -0 equals +0.
                let raised = if mean <= low { low } else { mean };
                if raised >= high { high } else { raised }
            };
        }
        Ok(())
    }
}

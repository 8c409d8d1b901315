//! `fisher`: the mean of the models, in which each element counts by how much its model needs it.

use std::sync::Arc;

use super::weighted_sum::WeightedSum;
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, Need, NeedOf, ParamInfo, ParamKind, ParamScope,
    ParamValue, Statistic, Tensor, TensorParams, TensorStatistics,
};
use engine::{AnyProgram, Apply, Block, Cost, Measure, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real, filled};

/// Fisher-weighted averaging.
pub(super) struct Fisher;

static INFO: MethodInfo = MethodInfo {
    name: "fisher",
    summary: "the mean of the models, in which each element counts by the Fisher information of its model",
    formula: "out = sum(w_i * F_i * x_i) / sum(w_i * F_i), element by element; where the divisor is 0, out = sum(w_i * x_i) / \
              sum(w_i). With `normalize`, F_i is divided by its length over the tensor first",
    when: "fine-tunes whose gradients can be had: the files of statistics come from elsewhere, as from the script \
           in the docs",
    departs: "No constant is added to F_i, so that nothing depends on its unit. Tensors for which no model has \
              statistics take the mean. Values below zero, NaN and infinity are refused.",
    source: "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832",
    models: Arity { min: 1, max: None },
    base: BaseRule::OneOfModels,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::EachModel,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "How much the model counts. A model whose weight is 0 takes no part.",
        },
        ParamInfo {
            name: "normalize",
            kind: ParamKind::Bool,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Bool(false)),
            required: false,
            doc: "Divide the Fisher information of each model by its length (the root of the sum of squares over the tensor), \
                  so that a model whose gradients are larger everywhere does not count more.",
        },
    ],
    random: false,
    statistics: Some(Need {
        kind: Statistic::Fisher,
        of: NeedOf::EachModel,
    }),
};

impl Method for Fisher {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let weight = |source| params.source_number(source, "weight");
        let all = 0..tensor.sources;
        let part: Vec<usize> = all
            .clone()
            .filter(|&source| weight(source) != 0.0)
            .collect();
        match part[..] {
            [] => {
                let why = Refusal::new("the weights of all models are 0");
                return Err(why.with_hint("give a model that is to take part another weight"));
            }
            [only] => return Ok(Action::Copy(only)),
            _ => {}
        }
        let model = |source: usize| {
            Some(Model {
                source,
                weight: weight(source),
                fisher: Arc::clone(tensor.statistics(source)?),
            })
        };
        let models: Option<Vec<Model>> = part.into_iter().map(model).collect();
        Ok(Action::Compute(match models {
            None => Box::new(WeightedSum {
                weights: all.map(weight).collect(),
                normalize: true,
                fused: true,
            }),
            Some(models) => Box::new(Weighted {
                models: models.into(),
                normalize: params.flag("normalize"),
            }),
        }))
    }
}

/// A model that takes part.
struct Model {
    source: usize,
    weight: f64,
    fisher: Arc<dyn TensorStatistics>,
}

struct Weighted {
    models: Arc<[Model]>,
    normalize: bool,
}

impl AnyProgram for Weighted {
    fn cost(&self) -> Cost {
        Cost {
            measures: 1,
            sums: self.models.len(),
            counts: 1,
            // The Fisher information of each model.
            scratch: 8 * self.models.len(),
            ..Cost::default()
        }
    }
}

impl<R: Real> Program<R> for Weighted {
    fn next(&self, measured: &[Measured]) -> Pass<R> {
        let models = Arc::clone(&self.models);
        match measured {
            [] => Pass::Measure(Box::new(Look(models))),
            [found, ..] if found.counts[0] > 0 => Pass::Refuse(
                Refusal::new(format!(
                    "{} values of its Fisher information are below zero, NaN or infinite",
                    found.counts[0]
                ))
                .with_hint("make the statistics again: they are means of squares"),
            ),
            [found, ..] => {
                let weights = models.iter().zip(&found.sums).map(|(model, sum)| {
                    let divisor = if self.normalize && *sum > 0.0 {
                        sum.sqrt()
                    } else {
                        1.0
                    };
                    model.weight / divisor
                });
                let weights = weights.collect();
                Pass::Apply(Box::new(Mean { models, weights }))
            }
        }
    }
}

/// Sums up squares, and counts what cannot be a mean of squares.
struct Look(Arc<[Model]>);

impl<R: Real> Measure<R> for Look {
    fn sums(&self) -> usize {
        self.0.len()
    }

    fn counts(&self) -> usize {
        1
    }

    fn block(
        &self,
        block: Block<'_, R>,
        sums: &mut [f64],
        counts: &mut [u64],
    ) -> Result<(), NoMemory> {
        let mut values = filled(block.len(), 0f64)?;
        for (model, sum) in self.0.iter().zip(sums) {
            model.fisher.read(0, block.first, &mut values)?;
            for value in &values {
                counts[0] += u64::from(!(*value >= 0.0 && value.is_finite()));
                *sum += value * value;
            }
        }
        Ok(())
    }
}

/// The weighted mean.
struct Mean {
    models: Arc<[Model]>,
    /// What each model's Fisher information is multiplied with.
    weights: Vec<f64>,
}

impl<R: Real> Apply<R> for Mean {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let read = |model: &Model| {
            let mut values = filled(block.len(), 0f64)?;
            model.fisher.read(0, block.first, &mut values)?;
            Ok(values)
        };
        let fisher = self.models.iter().map(read);
        let fisher = fisher.collect::<Result<Vec<Vec<f64>>, NoMemory>>()?;
        for (at, out) in out.iter_mut().enumerate() {
            let (mut sum, mut total) = (0.0, 0.0);
            let (mut plain, mut weights) = (0.0, 0.0);
            // A mean of models lies between them, whatever the roundings.
            let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
            for ((model, weight), fisher) in self.models.iter().zip(&self.weights).zip(&fisher) {
                let value = block.sources[model.source][at].to_f64();
                let counted = weight * fisher[at];
                sum += counted * value;
                total += counted;
                plain += model.weight * value;
                weights += model.weight;
                least = least.min(value);
                most = most.max(value);
            }
            let mean = if total > 0.0 {
                sum / total
            } else {
                plain / weights
            };
            *out = R::from_f64(match least == most {
                // Copies to the bit: of zeros, with their sign.
                true => block.sources[self.models[0].source][at].to_f64(),
                false => mean.max(least).min(most),
            });
        }
        Ok(())
    }
}

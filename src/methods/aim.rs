//! `aim`: a merged model that keeps more of the base where the base's inputs are large.

use std::sync::Arc;

use super::{
    Action, Arity, BaseRule, Linear, Method, MethodInfo, Need, NeedOf, ParamInfo, ParamKind,
    ParamScope, ParamValue, Statistic, Tensor, TensorParams, TensorStatistics,
};
use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real, filled};

/// Activation-informed merging.
pub(super) struct Aim;

static INFO: MethodInfo = MethodInfo {
    name: "aim",
    summary: "a merged model that keeps more of the base where the base's inputs are large",
    formula: "s_j = mean |input j of the base| / the largest of them in the layer; out = base + (x - base) * (1 - s_j * (1 - \
              omega)) in the weights of input j of a linear layer; elsewhere out = x",
    when: "after any other method: a second document whose model is the result of the first, with `statistics` of the base \
           by `weld stats`",
    departs: "Linear layers for which there are no statistics, the head among them, and all other tensors stay as they are \
              in the merged model. Where all inputs of a layer are zero, it stays too.",
    source: "Nobari et al., Activation-Informed Merging of Large Language Models, arXiv:2502.02421",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Required,
    params: &[ParamInfo {
        name: "omega",
        kind: ParamKind::Range { min: 0.0, max: 1.0 },
        scope: ParamScope::Tensor,
        default: Some(ParamValue::Number(0.4)),
        required: false,
        doc: "The share of the update that is left where the base's inputs are largest. 1 changes nothing. The paper takes \
              0.4, and finds 0.2 to 0.6 to work.",
    }],
    random: false,
    statistics: Some(Need {
        kind: Statistic::Magnitude,
        of: NeedOf::Base,
    }),
};

impl Method for Aim {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let mut others = (0..tensor.sources).filter(|&source| source != base);
        let merged = others.next().ok_or("the method needs a merged model")?;
        let omega = params.number("omega");
        Ok(match (tensor.linear, tensor.statistics(base)) {
            (Some(linear), Some(statistics)) if omega < 1.0 => {
                Action::Compute(Box::new(Relaxation {
                    base,
                    merged,
                    omega,
                    linear,
                    magnitudes: Arc::clone(statistics),
                }))
            }
            _ => Action::Copy(merged),
        })
    }
}

#[derive(Clone)]
struct Relaxation {
    base: usize,
    merged: usize,
    omega: f64,
    linear: Linear,
    magnitudes: Arc<dyn TensorStatistics>,
}

impl Relaxation {
    /// The share of the update that is left for each input of a matrix.
    fn shares(&self, matrix: usize) -> Result<Vec<f64>, NoMemory> {
        let mut shares = filled(self.linear.inputs(), 0f64)?;
        self.magnitudes.read(matrix, 0, &mut shares)?;
        let most = shares.iter().fold(0f64, |most, share| most.max(*share));
        for share in &mut shares {
            *share = match most > 0.0 {
                true => 1.0 - *share / most * (1.0 - self.omega),
                false => 1.0,
            };
        }
        Ok(shares)
    }
}

impl AnyProgram for Relaxation {
    fn cost(&self) -> Cost {
        let Linear { columns, .. } = self.linear;
        Cost {
            row: columns,
            // The shares of all inputs, for a block that has a row at least.
            scratch: 8 * self.linear.inputs().div_ceil(columns.max(1)),
            ..Cost::default()
        }
    }
}

impl<R: Real> Program<R> for Relaxation {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(self.clone()))
    }
}

impl<R: Real> Apply<R> for Relaxation {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let Linear {
            rows,
            columns,
            in_out,
            ..
        } = self.linear;
        let (base, merged) = (block.sources[self.base], block.sources[self.merged]);
        let mut shares: Option<(usize, Vec<f64>)> = None;
        let pairs = base.chunks(columns).zip(merged.chunks(columns));
        for ((out, (base, merged)), at) in out.chunks_mut(columns).zip(pairs).zip(0..) {
            let row = block.first as usize / columns + at;
            let (matrix, row) = (row / rows, row % rows);
            let of_matrix = match shares.take() {
                Some((known, shares)) if known == matrix => shares,
                _ => self.shares(matrix)?,
            };
            for (column, ((out, base), merged)) in out.iter_mut().zip(base).zip(merged).enumerate()
            {
                let share = of_matrix[if in_out { row } else { column }];
                // Zero added to minus zero would be plus zero.
                *out = match share == 1.0 || merged == base {
                    true => *merged,
                    false => *base + R::from_f64(share) * (*merged - *base),
                };
            }
            shares = Some((matrix, of_matrix));
        }
        Ok(())
    }
}

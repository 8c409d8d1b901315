//! `regmean`: weights whose outputs are closest to those of all models, on the inputs that each model had.

use std::sync::Arc;

use super::super::weighted_sum::WeightedSum;
use super::super::{
    Action, Arity, BaseRule, Method, MethodInfo, Need, NeedOf, ParamInfo, ParamKind, ParamScope,
    ParamValue, Statistic, Tensor, TensorParams, TensorStatistics,
};
use super::{Failure, Merger, Size, Task, Tasks, Turn, Update, WholeProgram};
use errors::Refusal;
use matrix::{Matrix, MatrixError, solve_bytes, solve_on_the_right};

/// Regression mean.
pub(in super::super) struct Regmean;

static INFO: MethodInfo = MethodInfo {
    name: "regmean",
    summary: "weights whose outputs are closest to those of all models, on inputs that each model had",
    formula: "G_i = w_i * (r * X_i^T X_i + (1 - r) * diag(X_i^T X_i)) / tokens_i; out = (sum of x_i G_i) (sum of G_i)^-1, in \
              linear layers, whose weights are [out, in]; elsewhere out = sum(w_i * x_i) / sum(w_i)",
    when: "fine-tunes with some hundred texts of the kind that each was made for: `weld stats` writes the Gram matrices \
           X_i^T X_i of each, and needs no gradients and no answers; given this recipe, it makes them layer by layer \
           through the merged model (RegMean++)",
    departs: "The authors' code fails where a feature is zero in all models; here its column takes the mean. A \
              linear layer for which no model has statistics takes the mean too. The sums are f64, and what is added to the \
              first model is rounded to float32.",
    source: "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv:2212.09849; \
             Nguyen et al., RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging, \
             arXiv:2508.03121",
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
            doc: "How much the model's outputs count. A model whose weight is 0 takes no part.",
        },
        ParamInfo {
            name: "reduction",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.9)),
            required: false,
            doc: "What the elements beside the diagonal of Gram matrices are multiplied with. 1 is plain least squares, which \
                  is singular where there are fewer tokens than features; 0 leaves a mean by feature. The paper \
                  takes 0.9, and 0.1 for T5; MergeBench takes 0.5 for Llama and Gemma.",
        },
    ],
    random: false,
    statistics: Some(Need {
        kind: Statistic::Gram,
        of: NeedOf::EachModel,
    }),
};

impl Method for Regmean {
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
        let Some((&first, rest)) = part.split_first() else {
            let why = Refusal::new("the weights of all models are 0");
            return Err(why.with_hint("give a model that is to take part another weight"));
        };
        if rest.is_empty() {
            return Ok(Action::Copy(first));
        }
        let gram = |&source: &usize| {
            Some(Gram {
                source: Arc::clone(tensor.statistics(source)?),
                weight: weight(source),
            })
        };
        let grams: Option<Vec<Gram>> = part.iter().map(gram).collect();
        let (Some(linear), Some(grams)) = (tensor.linear, grams) else {
            return Ok(Action::Compute(Box::new(WeightedSum {
                weights: all.map(weight).collect(),
                normalize: true,
                fused: true,
            })));
        };
        let counted = grams.iter().filter(|gram| gram.source.tokens(0).is_some());
        if ![0, grams.len()].contains(&counted.count()) {
            let why = "only some files of statistics say how many tokens they were made of (`tokens/...`)";
            return Err(Refusal::new(why).with_hint("make all of them by `weld stats`"));
        }
        let task = |&source: &usize| Task {
            source,
            weight: 1.0,
        };
        Ok(Action::Compute(Box::new(WholeProgram(Arc::new(Update {
            base: first,
            tasks: rest.iter().map(task).collect(),
            lambda: 1.0,
            linear,
            merger: Arc::new(Regression {
                grams,
                reduction: params.number("reduction"),
            }),
        })))))
    }
}

/// The inputs of one model.
struct Gram {
    source: Arc<dyn TensorStatistics>,
    weight: f64,
}

impl Gram {
    /// The Gram matrix, times the model's weight and by token; as it is where no file says how many there were.
    fn read(&self, matrix: usize, size: usize, reduction: f64) -> Result<Matrix<f64>, Failure> {
        let mut out = Matrix::zeros(size, size)?;
        self.source.read(matrix, 0, out.values_mut())?;
        let tokens = self.source.tokens(matrix).unwrap_or(1).max(1);
        out.scale(self.weight / tokens as f64);
        let diagonal: Vec<f64> = (0..size).map(|at| out.at(at, at)).collect();
        out.scale(reduction);
        let places = out.values_mut().iter_mut().step_by(size + 1);
        places
            .zip(diagonal)
            .for_each(|(place, value)| *place = value);
        Ok(out)
    }
}

/// The solution of the least squares. The first of the models is the base of the update.
struct Regression {
    grams: Vec<Gram>,
    reduction: f64,
}

impl Merger for Regression {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, size) = tasks.shape();
        let read = |gram: &Gram| gram.read(tasks.matrix(), size, self.reduction);
        let mut square = read(&self.grams[0])?;
        let mut right: Matrix<f64> = Matrix::zeros(rows, size)?;
        let mut plain: Matrix<f64> = Matrix::zeros(rows, size)?;
        let mut weights = self.grams[0].weight;
        for (task, gram) in self.grams[1..].iter().enumerate() {
            tasks.sources.check_running()?;
            let difference = tasks.read::<f64>(task)?;
            plain.add(&difference, gram.weight);
            weights += gram.weight;
            let gram = read(gram)?;
            right.add(&difference.times(&gram)?, 1.0);
            square.add(&gram, 1.0);
        }
        // A feature that is always zero has no say in any output: its column takes the mean.
        for at in 0..size {
            if square.at(at, at) == 0.0 {
                square.values_mut()[at * (size + 1)] = 1.0;
                for row in 0..rows {
                    let place = row * size + at;
                    right.values_mut()[place] = plain.values()[place] / weights;
                }
            }
        }
        drop(plain);
        tasks.sources.check_running()?;
        solve_on_the_right(square, &mut right).map_err(|error| match error {
            MatrixError::Singular => Failure::Refused(
                Refusal::new("the sum of the Gram matrices of its inputs has no inverse").with_hint(
                    "set `reduction` below 1, such as 0.9, or make the statistics from more texts",
                ),
            ),
            MatrixError::NotFinite => Failure::Refused(
                Refusal::new("the Gram matrices of its inputs, or its weights, hold NaN or infinity")
                    .with_hint("make the statistics again with `weld stats`"),
            ),
            error => Failure::Matrix(error),
        })?;
        Ok(right.narrowed()?)
    }

    fn bytes(&self, size: Size) -> u64 {
        // In f64: the sum and a Gram matrix; both sums, a task vector and its product; and the narrow result.
        let square = size.columns.saturating_mul(size.columns).saturating_mul(8);
        let matrix = size.matrix();
        square
            .saturating_mul(2)
            .saturating_add(matrix.saturating_mul(9))
            .saturating_add(solve_bytes(size.columns as usize))
    }

    fn turn(&self) -> Turn {
        Turn::OutIn
    }
}

//! `geometric_median`: the point with the least sum of distances to the models.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// The geometric median of the models.
pub(super) struct GeometricMedian;

static INFO: MethodInfo = MethodInfo {
    name: "geometric_median",
    summary: "the point with the smallest sum of distances to the models",
    formula: "out = the m with the least sum(w_i * |x_i - m|), tensor by tensor; with `base_model` the x_i are \
              differences from it, which changes rounding alone",
    when: "several models, if one of them may be far off: it pulls the result less than it would pull a mean",
    departs: "",
    source: "Weiszfeld, 1937; Vardi and Zhang, The multivariate L1-median, 2000; sd-mecha",
    models: Arity { min: 1, max: None },
    base: BaseRule::Optional,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::EachButBase,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "How much the distance to the model counts.",
        },
        ParamInfo {
            name: "max_iter",
            kind: ParamKind::Range { min: 1.0, max: 1e6 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1000.0)),
            required: false,
            doc: "The largest number of steps; the iteration ends earlier if no model's share changes by more than \
                  `tol`.",
        },
        ParamInfo {
            name: "tol",
            kind: ParamKind::Range { min: 0.0, max: 1.0 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1e-9)),
            required: false,
            doc: "The iteration ends when no model's share changes by more than this.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for GeometricMedian {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let vectors = Vectors::from_base(tensor.sources, tensor.base);
        let members = vectors.members.iter();
        let weights: Vec<f64> = members
            .map(|&source| params.source_number(source, "weight"))
            .collect();
        if weights.iter().all(|weight| *weight == 0.0) {
            return Err(Refusal::new("the weights of all models are 0")
                .with_hint("give a model that should count a weight above 0"));
        }
        Ok(Action::Compute(Box::new(GramProgram {
            vectors,
            extent: Extent::Whole,
            solve: Arc::new(Median {
                weights,
                steps: params.number("max_iter") as usize,
                tolerance: params.number("tol"),
            }),
        })))
    }
}

struct Median {
    weights: Vec<f64>,
    steps: usize,
    tolerance: f64,
}

impl Solve for Median {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let vertex = (0..gram.count()).find(|&at| self.is_median(gram, at));
        if let Some(vertex) = vertex {
            let share = |at| f64::from(u8::from(at == vertex));
            return (0..gram.count()).map(share).collect();
        }
        let mut shares = normalised(self.weights.clone());
        for _ in 0..self.steps {
            let distances = distances(gram, &shares);
            let pulls = self.weights.iter().zip(&distances);
            let next = normalised(pulls.map(|(weight, distance)| weight / distance).collect());
            if !next.iter().all(|share| share.is_finite()) {
                break;
            }
            let pairs = shares.iter().zip(&next);
            let change = pairs
                .map(|(old, new)| (old - new).abs())
                .fold(0.0, f64::max);
            shares = next;
            if change <= self.tolerance {
                break;
            }
        }
        shares
    }
}

impl Median {
    /// Whether a vector is the median itself: the others do not pull it away.
    fn is_median(&self, gram: &Gram, at: usize) -> bool {
        let square = |other: usize| {
            gram.inner(at, at) - 2.0 * gram.inner(at, other) + gram.inner(other, other)
        };
        // Vectors at the same place pull with it.
        let scale = gram.inner(at, at);
        let is_apart = |other: usize| square(other) > 1e-14 * scale.max(gram.inner(other, other));
        let mut own = 0.0;
        let mut pull = 0.0;
        for i in 0..gram.count() {
            if !is_apart(i) {
                own += self.weights[i];
                continue;
            }
            for j in (0..gram.count()).filter(|&j| is_apart(j)) {
                let inner = gram.inner(i, j) - gram.inner(i, at) - gram.inner(j, at) + scale;
                let lengths = (square(i) * square(j)).sqrt();
                pull += self.weights[i] * self.weights[j] * inner / lengths;
            }
        }
        pull <= own * own
    }
}

/// The distances of the vectors from a combination of them.
fn distances(gram: &Gram, shares: &[f64]) -> Vec<f64> {
    let count = gram.count();
    let along: Vec<f64> = (0..count)
        .map(|i| (0..count).map(|j| shares[j] * gram.inner(i, j)).sum())
        .collect();
    let length: f64 = shares.iter().zip(&along).map(|(a, b)| a * b).sum();
    let square = |i: usize| length - 2.0 * along[i] + gram.inner(i, i);
    (0..count).map(|i| square(i).max(0.0).sqrt()).collect()
}

fn normalised(mut values: Vec<f64>) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    values.iter_mut().for_each(|value| *value /= sum);
    values
}

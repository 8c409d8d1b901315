//! `multislerp`: the mean direction of several models, or of their task vectors, at their mean length.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// Barycentric interpolation on a sphere.
pub(super) struct Multislerp;

static INFO: MethodInfo = MethodInfo {
    name: "multislerp",
    summary: "the weighted mean direction of the models, or of their differences from a base, at their mean length",
    formula: "u_i = x_i / (|x_i| + eps); out = sum(w_i * |x_i|) * m / |m|, m = sum(w_i * u_i), the w_i divided by \
              their sum with `normalize_weights`; with `base_model`, the same for x_i - base, added to base",
    when: "several models whose tensors, or updates, differ in length; unlike a plain mean, the result does not \
           become shorter",
    departs: "mergekit steps from the mean direction along the mean of the tangents. That mean is zero, so the \
              formula above is what remains (apart from a factor of cos(eps), which is 1). For two models this is \
              not slerp. mergekit returns a single model unchanged, whatever its weight; here it is treated like \
              several, so its weight counts if `normalize_weights` is off. If all models equal the base in a tensor, \
              the result is the base; mergekit fails there with three or more models. Weights that sum to zero are \
              an error with `normalize_weights`; mergekit writes NaN.",
    source: "Goddard, multislerp, 2024; mergekit 0.1.5",
    models: Arity { min: 1, max: None },
    base: BaseRule::Optional,
    params: &[
        ParamInfo {
            name: "weight",
            kind: ParamKind::Number,
            scope: ParamScope::EachButBase,
            default: None,
            required: true,
            doc: "How much the model's direction and length count.",
        },
        ParamInfo {
            name: "normalize_weights",
            kind: ParamKind::Bool,
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Bool(true)),
            required: false,
            doc: "Divide the weights by their sum.",
        },
        ParamInfo {
            name: "eps",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1e-8)),
            required: false,
            doc: "Added to lengths before dividing by them; directions cancel if their weighted sum is shorter than \
                  this.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Multislerp {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let vectors = Vectors::from_base(tensor.sources, tensor.base);
        if vectors.members.is_empty() {
            return Err("multislerp needs a model besides the base".into());
        }
        let mut weights: Vec<f64> = vectors
            .members
            .iter()
            .map(|&source| params.source_number(source, "weight"))
            .collect();
        if params.flag("normalize_weights") {
            let sum: f64 = weights.iter().sum();
            let size: f64 = weights.iter().map(|weight| weight.abs()).sum();
            if sum.abs() <= 1e-9 * size {
                return Err(Refusal::new(format!(
                    "the weights {weights:?} sum to zero, and `normalize_weights` divides by their sum"
                ))
                .with_hint("choose weights with another sum, or set `normalize_weights: false`"));
            }
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        Ok(Action::Compute(Box::new(GramProgram {
            vectors,
            extent: Extent::Whole,
            solve: Arc::new(MeanDirection {
                weights,
                eps: params.number("eps"),
            }),
        })))
    }
}

/// Computes the weights of the mean direction, scaled to the mean length.
struct MeanDirection {
    weights: Vec<f64>,
    eps: f64,
}

/// The weights divided by the vectors' lengths, and the length of the weighted sum of unit vectors.
struct Direction {
    coefficients: Vec<f64>,
    length: f64,
    /// The length that the sum would have if all vectors had the same direction.
    most: f64,
}

impl MeanDirection {
    fn direction(&self, gram: &Gram) -> Direction {
        let mut most = 0.0;
        let mut coefficients = Vec::with_capacity(gram.count());
        for (i, &weight) in self.weights.iter().enumerate() {
            let norm = gram.norm(i);
            // A zero vector has no direction.
            let coefficient = if norm == 0.0 {
                0.0
            } else {
                weight / (norm + self.eps)
            };
            most += coefficient.abs() * norm;
            coefficients.push(coefficient);
        }
        let squared: f64 = coefficients
            .iter()
            .enumerate()
            .flat_map(|(i, a)| {
                let products = coefficients.iter().enumerate();
                products.map(move |(j, b)| a * b * gram.inner(i, j))
            })
            .sum();
        Direction {
            coefficients,
            length: squared.max(0.0).sqrt(),
            most,
        }
    }

    /// Whether the vectors are too short to have a direction.
    fn is_nothing(&self, direction: &Direction) -> bool {
        direction.most == 0.0 || direction.most < self.eps
    }

    /// Whether the directions cancel. Vectors that cancel exactly leave about 1e-8 by rounding.
    fn cancels(&self, direction: &Direction) -> bool {
        direction.length <= self.eps.max(1e-7 * direction.most)
    }
}

impl Solve for MeanDirection {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let direction = self.direction(gram);
        // As in mergekit, two models that cancel are simply added.
        if self.is_nothing(&direction) || self.cancels(&direction) {
            return self.weights.clone();
        }
        let length: f64 = self
            .weights
            .iter()
            .enumerate()
            .map(|(i, weight)| weight * gram.norm(i))
            .sum();
        let factor = length / direction.length;
        direction
            .coefficients
            .iter()
            .map(|coefficient| coefficient * factor)
            .collect()
    }

    fn refusal(&self, gram: &Gram) -> Option<Refusal> {
        let direction = self.direction(gram);
        let cancels = !self.is_nothing(&direction) && self.cancels(&direction);
        (cancels && gram.count() > 2).then(|| {
            Refusal::new(format!(
                "the weighted directions of its {} models cancel, so they have no mean direction",
                gram.count()
            ))
            .with_hint("choose other weights for this tensor, or another method")
        })
    }
}

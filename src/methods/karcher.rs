//! `karcher`: the mean direction on the sphere, found by iteration.

use std::sync::Arc;

use super::gram::{Extent, Gram, GramProgram, Solve, Vectors};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use errors::Refusal;

/// The Riemannian (Karcher) mean of the models.
pub(super) struct Karcher;

static INFO: MethodInfo = MethodInfo {
    name: "karcher",
    summary: "the Karcher mean of the models' directions, at their mean length",
    formula: "u_i = x_i / |x_i|; m = mean(u_i) / |mean(u_i)|; then, until |tangent| < tol, but at most max_iter \
              times: tangent = mean(theta_i / sin(theta_i) * (u_i - cos(theta_i) * m)), theta_i the angle between m \
              and u_i; m = cos(|tangent|) * m + sin(|tangent|) * tangent / |tangent|; out = mean(|x_i|) * m",
    when: "several models that should count equally, as slerp with t = 0.5 does for two",
    departs: "As in mergekit, a `base_model` is one of the models and counts like the others; a note says so if \
              `models:` does not list it. Tensors whose norms are all below tol are merged like any others; mergekit \
              writes zeros. A direction within tol of the opposite of the mean does not move the mean; mergekit \
              divides by the sine of the angle, which is nearly zero.",
    source: "Karcher, Riemannian center of mass, 1977; arXiv:2603.04972; mergekit 0.1.5",
    models: Arity { min: 1, max: None },
    base: BaseRule::OneOfModels,
    params: &[
        ParamInfo {
            name: "max_iter",
            kind: ParamKind::Range { min: 0.0, max: 1e6 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(10.0)),
            required: false,
            doc: "The largest number of steps; a whole number.",
        },
        ParamInfo {
            name: "tol",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1e-5)),
            required: false,
            doc: "The iteration stops when a step, in radians, is shorter than this. Also the norm below which a \
                  tensor has no direction, if any other is longer.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Karcher {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let steps = params.number("max_iter");
        if steps.fract() != 0.0 {
            return Err(Refusal::new(format!(
                "expected `max_iter` to be a whole number, found {steps}"
            ))
            .with_hint(
                "write one whole number: values between those of a gradient are fractions",
            ));
        }
        if tensor.sources == 1 {
            return Ok(Action::Copy(0));
        }
        Ok(Action::Compute(Box::new(GramProgram {
            vectors: Vectors::from_base(tensor.sources, None),
            extent: Extent::Whole,
            solve: Arc::new(KarcherMean {
                steps: steps as usize,
                tolerance: params.number("tol"),
            }),
        })))
    }
}

/// Iterates on the coefficients of the mean instead of on its elements.
struct KarcherMean {
    steps: usize,
    tolerance: f64,
}

impl Solve for KarcherMean {
    fn weights(&self, gram: &Gram) -> Vec<f64> {
        let count = gram.count();
        let norms: Vec<f64> = (0..count).map(|i| gram.norm(i)).collect();
        let longest = norms.iter().copied().fold(0.0, f64::max);
        let least = match longest > self.tolerance {
            true => self.tolerance,
            false => self.tolerance * longest,
        };
        let directed: Vec<usize> = (0..count).filter(|&i| norms[i] > least).collect();
        let mut weights = vec![0.0; count];
        let units = Units::new(gram, &directed);
        let Some(mean) = units.mean(self.steps, self.tolerance) else {
            // All vectors are zero or NaN, and so is their plain mean.
            weights.fill(1.0 / count as f64);
            return weights;
        };
        // Models without a direction still count in the mean length.
        let length = norms.iter().sum::<f64>() / count as f64;
        for (&i, coefficient) in directed.iter().zip(mean) {
            weights[i] = length * coefficient / norms[i];
        }
        weights
    }
}

/// Unit vectors, represented by their cosines.
struct Units {
    /// The matrix of cosines, row by row.
    cosines: Vec<Vec<f64>>,
}

impl Units {
    fn new(gram: &Gram, directed: &[usize]) -> Self {
        let row = |&i: &usize| {
            let cosine = |&j: &usize| if i == j { Some(1.0) } else { gram.cosine(i, j) };
            directed.iter().map(|j| cosine(j).unwrap_or(0.0)).collect()
        };
        Self {
            cosines: directed.iter().map(row).collect(),
        }
    }

    /// The inner products of a combination of the vectors with each of them.
    fn dots(&self, combination: &[f64]) -> Vec<f64> {
        let dot = |row: &Vec<f64>| row.iter().zip(combination).map(|(a, b)| a * b).sum();
        self.cosines.iter().map(dot).collect()
    }

    /// The length of a combination of the vectors.
    fn length(&self, combination: &[f64]) -> f64 {
        let dots = self.dots(combination);
        let squared: f64 = dots.iter().zip(combination).map(|(a, b)| a * b).sum();
        squared.max(0.0).sqrt()
    }

    /// The coefficients of the mean direction; `None` if there is no vector.
    fn mean(&self, steps: usize, tolerance: f64) -> Option<Vec<f64>> {
        let count = self.cosines.len();
        let share = 1.0 / count as f64;
        let mut mean = vec![share; count];
        let length = self.length(&mean);
        if length < tolerance || length == 0.0 {
            // The vectors cancel: any start will do, so take the first.
            mean.fill(0.0);
            *mean.first_mut()? = 1.0;
        } else {
            mean.iter_mut().for_each(|part| *part /= length);
        }
        for _ in 0..steps {
            let dots = self.dots(&mean);
            let mut tangent = vec![0.0; count];
            let mut along = 0.0;
            for (part, &dot) in tangent.iter_mut().zip(&dots) {
                let dot = dot.clamp(-1.0, 1.0);
                let angle = libm::acos(dot);
                let sine = libm::sin(angle);
                // The direction of the mean itself, or its opposite, from which every way is equally short.
                if angle < tolerance || std::f64::consts::PI - angle < tolerance || sine == 0.0 {
                    continue;
                }
                *part = share * angle / sine;
                along += *part * dot;
            }
            for (part, mean) in tangent.iter_mut().zip(&mean) {
                *part -= along * mean;
            }
            let step = self.length(&tangent);
            if step < tolerance || step == 0.0 {
                break;
            }
            let (sine, cosine) = (libm::sin(step), libm::cos(step));
            for (mean, part) in mean.iter_mut().zip(&tangent) {
                *mean = cosine * *mean + sine / step * part;
            }
            let length = self.length(&mean);
            if length > tolerance {
                mean.iter_mut().for_each(|part| *part /= length);
            }
        }
        Some(mean).filter(|mean| !mean.is_empty())
    }
}

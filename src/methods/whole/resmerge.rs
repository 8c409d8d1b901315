//! `resmerge`: the common direction of what the task vectors are without their strongest directions.

use std::sync::Arc;

use super::super::{Arity, BaseRule, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue};
use super::others::OTHERS;
use super::{Failure, LAMBDA, Merger, Size, Tasks, WEIGHT, WholeMethod};
use errors::Refusal;
use matrix::{Matrix, RANK, singular_vectors};

static INFO: MethodInfo = MethodInfo {
    name: "resmerge",
    summary: "the common direction of the task vectors' weak parts, with a little of their strongest directions where \
              these agree",
    formula: "D_i = w_i * (x_i - base), of T models; H_i its first `rank` singular triplets, R_i = D_i - H_i; q = sum(R_i \
              / |R_i|), c = |q| / T, s the mean cosine of two R_i; b = beta_max - (beta_max - beta_min) * ((s + 1) + (c \
              + 1)) / 4; A = c^b * mean(|R_i|) * q / |q|, or mean(R_i) where c <= 1 / sqrt(T); a the mean over pairs of \
              max(0, cos(H_i, H_j)); out = base + lambda * (A + head_budget * a * |A| * H / |H|), H = mean(H_i)",
    when: "fine-tunes by reinforcement learning, whose strongest directions disagree",
    departs: "All weights of linear layers are treated as the authors' code treats those of attention and MLPs. A \
              weak part that is only rounding (below 1e-5 of its task vector) is zero.",
    source: "ResMerge, arXiv:2606.02252, with the authors' code",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        WEIGHT,
        LAMBDA,
        ParamInfo {
            name: "rank",
            kind: ParamKind::Range { min: 1.0, max: 1e6 },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "How many singular triplets make the strong part; a whole number.",
        },
        ParamInfo {
            name: "beta_min",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.7)),
            required: false,
            doc: "The exponent of the agreement if the weak parts agree fully.",
        },
        ParamInfo {
            name: "beta_max",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "The exponent if they do not agree at all.",
        },
        ParamInfo {
            name: "head_budget",
            kind: ParamKind::Range {
                min: 0.0,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(0.2)),
            required: false,
            doc: "How much of the strong parts is added at most, as a share of the norm of the weak ones.",
        },
        OTHERS,
    ],
    random: false,
    statistics: None,
};

/// Residual merging.
pub(in super::super) static RESMERGE: WholeMethod = WholeMethod {
    info: &INFO,
    merger: |params| {
        let rank = params.number("rank");
        if rank.fract() != 0.0 {
            let message = format!("expected `rank` to be a whole number, found {rank}");
            return Err(Refusal::new(message).with_hint(
                "write one whole number: values between those of a gradient are fractions",
            ));
        }
        Ok(Arc::new(Residuals {
            rank: rank as usize,
            exponents: [params.number("beta_min"), params.number("beta_max")],
            budget: params.number("head_budget"),
        }))
    },
    keeps_one: false,
};

struct Residuals {
    rank: usize,
    /// Where weak parts agree wholly, and where not at all.
    exponents: [f64; 2],
    budget: f64,
}

/// A strong part: `left right^T`.
struct Head {
    left: Matrix<f32>,
    right: Matrix<f32>,
}

impl Head {
    /// The inner product of two of them.
    fn inner(&self, other: &Self) -> Result<f64, Failure> {
        let left = self.left.transposed_times(&other.left)?;
        let right = self.right.transposed_times(&other.right)?;
        let pairs = left.values().iter().zip(right.values());
        Ok(pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
    }
}

/// How far strong parts agree: the mean of the positive cosines of two; 1 if only one is there.
fn agreement(heads: &[Head]) -> Result<f64, Failure> {
    let mut lengths = Vec::with_capacity(heads.len());
    for head in heads {
        lengths.push(head.inner(head)?.max(0.0).sqrt());
    }
    let there: Vec<usize> = (0..heads.len()).filter(|&at| lengths[at] > 0.0).collect();
    let (mut sum, mut pairs) = (0.0, 0);
    for (number, &a) in there.iter().enumerate() {
        for &b in &there[number + 1..] {
            let cosine = heads[a].inner(&heads[b])? / (lengths[a] * lengths[b]);
            sum += cosine.max(0.0);
            pairs += 1;
        }
    }
    Ok(match (there.len(), pairs) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (_, pairs) => (sum / f64::from(pairs)).min(1.0),
    })
}

impl Residuals {
    /// What the directions and the sum of the weak parts become.
    fn backbone(
        &self,
        mut directions: Matrix<f32>,
        mut sum: Matrix<f32>,
        lengths: &[f64],
    ) -> Matrix<f32> {
        let count = lengths.len() as f64;
        let length = directions.squared_norm().sqrt();
        let coherence = (length / count).min(1.0);
        if length == 0.0 || coherence <= 1.0 / count.sqrt() && lengths.len() > 1 {
            sum.scale(1.0 / count);
            return sum;
        }
        let similarity = match lengths.len() {
            1 => 1.0,
            _ => {
                let there = lengths.iter().filter(|length| **length > 0.0).count();
                (length * length - there as f64) / (count * (count - 1.0))
            }
        };
        let score = ((similarity + 1.0) + (coherence + 1.0)) / 4.0;
        let [least, most] = self.exponents;
        let exponent = most - (most - least) * score.clamp(0.0, 1.0);
        let mean = lengths.iter().sum::<f64>() / count;
        directions.scale(libm::pow(coherence, exponent) * mean / length);
        directions
    }
}

impl Merger for Residuals {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let (rows, columns) = tasks.shape();
        let mut directions = Matrix::zeros(rows, columns)?;
        let mut sum = Matrix::zeros(rows, columns)?;
        let (mut heads, mut lengths) = (Vec::new(), Vec::new());
        for task in 0..tasks.count() {
            let mut rest = tasks.read::<f32>(task)?;
            let whole = rest.squared_norm().sqrt();
            tasks.sources.check_running()?;
            let mut found = singular_vectors(&rest, self.rank)?;
            found.left.scale_columns(&found.values);
            rest.add(&found.left.times_transposed(&found.right)?, -1.0);
            let length = rest.squared_norm().sqrt();
            // What is left of a matrix of that rank is rounding.
            let is_there = length > RANK * whole;
            if is_there {
                directions.add(&rest, 1.0 / length);
                sum.add(&rest, 1.0);
            }
            lengths.push(if is_there { length } else { 0.0 });
            heads.push(Head {
                left: found.left,
                right: found.right,
            });
        }
        let mut update = self.backbone(directions, sum, &lengths);
        let budget = self.budget * agreement(&heads)? * update.squared_norm().sqrt();
        let mut head = Matrix::zeros(rows, columns)?;
        for part in &heads {
            head.add(&part.left.times_transposed(&part.right)?, 1.0);
        }
        let length = head.squared_norm().sqrt();
        if length > 0.0 {
            update.add(&head, budget / length);
        }
        Ok(update)
    }

    fn bytes(&self, size: Size) -> u64 {
        // The directions, the sum, a task vector and its strong part; all strong parts by their factors.
        let rank = size.least().min(self.rank as u64);
        let factors = (size.rows.saturating_add(size.columns))
            .saturating_mul(rank)
            .saturating_mul(4 * size.tasks);
        size.matrix()
            .saturating_mul(5)
            .saturating_add(factors)
            .saturating_add(size.square())
            .saturating_add(size.decomposition())
    }
}

//! `svc`: the singular values of a merged update, calibrated by what the tasks have along its singular vectors.

use std::sync::Arc;

use super::super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, ParamValue,
    Tensor, TensorParams,
};
use super::{Failure, Merger, Size, Task, Tasks, Turn, Update, WholeProgram};
use errors::Refusal;
use matrix::{Matrix, singular_vectors};

/// Singular value calibration.
pub(in super::super) struct Svc;

static INFO: MethodInfo = MethodInfo {
    name: "svc",
    summary: "a merged model whose update is weakened along directions that the fine-tunes share, and raised along others",
    formula: "M = merged - base = U diag(s) V^T; D_i = x_i - base, of T models; a_r = u_r^T M, b_ri = u_r^T D_i; p_ri = \
              <a_r, b_ri> / |b_ri|^2; g_r = T / sum over i of max(alpha, p_ri); out = base + U diag(g * s) V^T",
    when: "after any other method: a second document whose models are the result of the first, marked `merged: true`, \
           and the fine-tunes that it was made from",
    departs: "A fine-tune that has nothing along a direction counts there with alpha. Tensors that are no weights of \
              linear layers stay as they are in the merged model.",
    source: "Singular value calibration, arXiv:2602.05536",
    models: Arity { min: 3, max: None },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            name: "merged",
            kind: ParamKind::Bool,
            scope: ParamScope::EachButBase,
            default: Some(ParamValue::Bool(false)),
            required: false,
            doc: "Marks the merged model; one model must be marked.",
        },
        ParamInfo {
            name: "alpha",
            kind: ParamKind::Range {
                min: 1e-6,
                max: f64::INFINITY,
            },
            scope: ParamScope::Tensor,
            default: Some(ParamValue::Number(1.0)),
            required: false,
            doc: "The least that a fine-tune counts along a direction, so that none is raised by more than 1/alpha. 1 \
                  only weakens. The paper takes 0.1 for some sums, which easily goes too far.",
        },
    ],
    random: false,
    statistics: None,
};

impl Method for Svc {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let (merged, others): (Vec<usize>, Vec<usize>) = (0..tensor.sources)
            .filter(|&source| source != base)
            .partition(|&source| params.source_flag(source, "merged"));
        let &[merged] = merged.as_slice() else {
            let message = format!(
                "expected one model with `merged: true`, found {}",
                merged.len()
            );
            return Err(Refusal::new(message).with_hint(
                "give the model that svc calibrates `parameters: {merged: true}`, and no other",
            ));
        };
        let task = |source| Task {
            source,
            weight: 1.0,
        };
        let linear = tensor.linear.filter(|_| !others.is_empty());
        Ok(match linear {
            None => Action::Copy(merged),
            Some(linear) => Action::Compute(Box::new(WholeProgram(Arc::new(Update {
                base,
                tasks: [merged].into_iter().chain(others).map(task).collect(),
                lambda: 1.0,
                linear,
                merger: Arc::new(Calibration {
                    alpha: params.number("alpha"),
                }),
            })))),
        })
    }
}

/// The first of the task vectors is the merged update.
struct Calibration {
    alpha: f64,
}

impl Merger for Calibration {
    fn merge(&self, tasks: &Tasks<'_>) -> Result<Matrix<f32>, Failure> {
        let merged = tasks.read(0)?;
        tasks.sources.check_running()?;
        let found = singular_vectors(&merged, usize::MAX)?;
        drop(merged);
        let right = found.right.transposed()?;
        let columns = right.columns().max(1);
        let mut sums = vec![0.0; found.values.len()];
        for task in 1..tasks.count() {
            let along = found.left.transposed_times(&tasks.read(task)?)?;
            let directions = along.values().chunks(columns);
            let vectors = right.values().chunks(columns);
            let both = directions.zip(vectors).zip(&found.values);
            for (sum, ((along, vector), value)) in sums.iter_mut().zip(both) {
                let product = |a: &[f32], b: &[f32]| -> f64 {
                    let pairs = a.iter().zip(b);
                    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                let length = product(along, along).max(1e-12);
                let share = value * product(along, vector) / length;
                *sum += share.max(self.alpha);
            }
        }
        let count = (tasks.count() - 1) as f64;
        let pairs = found.values.iter().zip(&sums);
        let values: Vec<f64> = pairs.map(|(value, sum)| value * count / sum).collect();
        Ok(found.with_values(&values)?)
    }

    fn bytes(&self, size: Size) -> u64 {
        // The left vectors, a task vector, what it has along them, or the update.
        let held = size.matrix().saturating_mul(4);
        held.saturating_add(size.square().saturating_mul(2))
            .saturating_add(size.decomposition())
    }

    fn turn(&self) -> Turn {
        Turn::OutIn
    }
}

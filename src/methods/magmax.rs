//! `magmax`: of each element, the largest change that any fine-tune made.

use super::task_vectors::{LAMBDA, WEIGHT};
use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamValue, Tensor, TensorParams,
};
use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real};

/// Takes the largest change.
pub(super) struct Magmax;

static INFO: MethodInfo = MethodInfo {
    name: "magmax",
    summary: "the base plus, for each element, the largest of the fine-tunes' changes",
    formula: "out = base + lambda * d_k, where d_i = w_i * (x_i - base) and k is the i with the largest |d_i|, the last \
              of equal ones",
    when: "fine-tunes trained one after the other, each from the last; for independent ones, lambda is about 0.6",
    departs: "",
    source: "Marczak et al., MagMax, arXiv:2407.06322",
    models: Arity { min: 1, max: None },
    base: BaseRule::Required,
    params: &[
        ParamInfo {
            default: Some(ParamValue::Number(1.0)),
            required: false,
            ..WEIGHT
        },
        LAMBDA,
    ],
    random: false,
    statistics: None,
};

impl Method for Magmax {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let base = tensor.base.ok_or("the method needs a base model")?;
        let weight = |source| (source, params.source_number(source, "weight"));
        let others = (0..tensor.sources).filter(|&source| source != base);
        let tasks: Vec<(usize, f64)> = others.map(weight).collect();
        match tasks.is_empty() {
            true => Ok(Action::Copy(base)),
            false => Ok(Action::Compute(Box::new(Largest {
                base,
                tasks,
                lambda: params.number("lambda"),
            }))),
        }
    }
}

struct Largest<W = f64> {
    base: usize,
    /// The sources but the base, with their weights.
    tasks: Vec<(usize, W)>,
    lambda: W,
}

impl AnyProgram for Largest {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl<R: Real> Program<R> for Largest {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        let tasks = self.tasks.iter();
        Pass::Apply(Box::new(Largest {
            base: self.base,
            tasks: tasks
                .map(|&(source, weight)| (source, R::from_f64(weight)))
                .collect(),
            lambda: R::from_f64(self.lambda),
        }))
    }
}

impl<R: Real> Apply<R> for Largest<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let base = block.sources[self.base];
        for (at, (out, &base)) in out.iter_mut().zip(base).enumerate() {
            let (mut largest, mut value) = (R::ZERO, base);
            for &(source, weight) in &self.tasks {
                let model = block.sources[source][at];
                let change = weight * (model - base);
                // What is NaN stays so.
                if change.abs() >= largest.abs() || change.abs().to_f64().is_nan() {
                    let factor = weight * self.lambda;
                    largest = change;
                    value = match factor == R::ONE {
                        true => model,
                        false => base + factor * (model - base),
                    };
                }
            }
            *out = value;
        }
        Ok(())
    }
}

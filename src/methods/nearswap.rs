//! `nearswap`: moves each element of the base towards another model by at most a fixed step.

use super::{
    Action, Arity, BaseRule, Method, MethodInfo, ParamInfo, ParamKind, ParamScope, Tensor,
    TensorParams,
};
use engine::{AnyProgram, Apply, Block, Cost, Measured, Pass, Program};
use errors::Refusal;
use numeric::{NoMemory, Real};

/// Takes the other model's elements where they are near the base.
pub(super) struct Nearswap;

static INFO: MethodInfo = MethodInfo {
    name: "nearswap",
    summary: "the other model where it is within t of the base; elsewhere the base, moved towards it by t",
    formula: "out = x where |x - base| <= t, else base + t * sign(x - base)",
    when: "two models, to add a little of the other; t about as large as a small update (1e-4 to 1e-3)",
    departs: "mergekit computes weight = t / max(|x - base|, 1e-6), which is the same except for t < 1e-6, where its \
              step shrinks with the difference. A negative t is an error; mergekit returns the base.",
    source: "alchemonaut, QuartetAnemoi-70B-t0.0001, 2024; mergekit 0.1.5",
    models: Arity {
        min: 2,
        max: Some(2),
    },
    base: BaseRule::Required,
    params: &[ParamInfo {
        name: "t",
        kind: ParamKind::Range {
            min: 0.0,
            max: f64::INFINITY,
        },
        scope: ParamScope::Tensor,
        default: None,
        required: true,
        doc: "How far an element may move, in units of the weights; 0 returns the base.",
    }],
    random: false,
    statistics: None,
};

impl Method for Nearswap {
    fn info(&self) -> &'static MethodInfo {
        &INFO
    }

    fn action(&self, params: &TensorParams, tensor: &Tensor<'_>) -> Result<Action, Refusal> {
        let t = params.number("t");
        match (tensor.base, tensor.sources) {
            (Some(base), 2) if t == 0.0 => Ok(Action::Copy(base)),
            (Some(base @ (0 | 1)), 2) => Ok(Action::Compute(Box::new(Swap { t, base }))),
            _ => Err("nearswap needs a base and one other model".into()),
        }
    }
}

struct Swap {
    t: f64,
    base: usize,
}

impl AnyProgram for Swap {
    fn cost(&self) -> Cost {
        Cost::default()
    }
}

impl<R: Real> Program<R> for Swap {
    fn next(&self, _measured: &[Measured]) -> Pass<R> {
        Pass::Apply(Box::new(Step {
            t: R::from_f64(self.t),
            base: self.base,
        }))
    }
}

struct Step<R> {
    t: R,
    base: usize,
}

impl<R: Real> Apply<R> for Step<R> {
    fn block(&self, block: Block<'_, R>, out: &mut [R]) -> Result<(), NoMemory> {
        let (base, other) = (block.sources[self.base], block.sources[1 - self.base]);
        for ((out, &base), &other) in out.iter_mut().zip(base).zip(other) {
            let difference = other - base;
            *out = if difference.abs() <= self.t {
                other
            } else if difference > R::ZERO {
                base + self.t
            } else if difference < R::ZERO {
                base - self.t
            } else {
                // The difference is NaN, and so is the result.
                difference
            };
        }
        Ok(())
    }
}

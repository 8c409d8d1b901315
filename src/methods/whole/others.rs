//! What the methods on whole matrices do with tensors that are no matrices of linear layers.

use super::super::{
    Action, ParamInfo, ParamKind, ParamScope, ParamValue, Tensor, TensorParams, find,
};
use super::Task;
use errors::Refusal;

/// What may be named.
const WORDS: &[&str] = &["mean", "base", "task_arithmetic", "ties"];

/// What happens to all other tensors.
pub(super) const OTHERS: ParamInfo = ParamInfo {
    name: "others",
    kind: ParamKind::Word {
        words: WORDS,
        booleans: None,
    },
    scope: ParamScope::Tensor,
    default: Some(ParamValue::Word("mean")),
    required: false,
    doc: "What happens to tensors that are no matrices of linear layers (embeddings, the head, norms, biases, \
          convolutions): `mean` adds the mean of the task vectors, times lambda; `base` takes the base's; a method's \
          name merges them by that method at its defaults, with the models' weights and lambda.",
};

/// How a tensor that is no matrix of a linear layer is computed; also one with a single task vector that comes out as
/// it is (`alone`).
pub(super) fn action(
    params: &TensorParams,
    tensor: &Tensor<'_>,
    tasks: &[Task],
    lambda: f64,
    alone: bool,
) -> Result<Action, Refusal> {
    let base = tensor.base.ok_or("the method needs a base model")?;
    let (name, share) = match params.word("others") {
        _ if alone => ("task_arithmetic", 1.0),
        "base" => return Ok(Action::Copy(base)),
        "" | "mean" => ("task_arithmetic", 1.0 / tasks.len() as f64),
        name => (name, 1.0),
    };
    if tasks.is_empty() {
        return Ok(Action::Copy(base));
    }
    let method = find(name).ok_or_else(|| Refusal::new(format!("there is no method `{name}`")))?;
    let weight = |source| {
        let task = tasks.iter().find(|task| task.source == source);
        task.map_or(0.0, |task| task.weight * share)
    };
    let inner = TensorParams::of_method(method.info(), tensor.sources, |name, source| {
        let value = match (name, source) {
            ("lambda", None) => lambda,
            ("weight", Some(source)) => weight(source),
            _ => return None,
        };
        Some(ParamValue::Number(value))
    });
    method.action(&inner, tensor)
}

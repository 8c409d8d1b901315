//! Reads any part of a tensor, by name, as f32.

use super::error::ForwardError;
use checkpoint::Checkpoint;
use numeric::Fill;

/// The shape of a tensor; none if there is no such tensor.
pub(super) fn shape<'a>(model: &'a Checkpoint, name: &str) -> Option<&'a [usize]> {
    Some(&model.tensors().get(model.find(name)?)?.shape)
}

/// Fills `out` with the elements of a tensor from number `start` on, in row order.
///
/// # Errors
/// If there is no such tensor, it ends before `start + out.len()`, or its values cannot be read.
pub fn read(
    model: &Checkpoint,
    name: &str,
    start: usize,
    out: &mut [f32],
) -> Result<(), ForwardError> {
    let failed = |detail: String| ForwardError::Read {
        tensor: name.into(),
        detail,
    };
    let found = model.find(name);
    let Some((index, tensor)) = found.and_then(|at| Some((at, model.tensors().get(at)?))) else {
        return Err(failed("there is none of that name".into()));
    };
    let end = start.checked_add(out.len()).map(|end| end as u64);
    if end.is_none_or(|end| end > tensor.elements()) {
        let (elements, count) = (tensor.elements(), out.len());
        return Err(failed(format!(
            "{count} elements from {start} on, of {elements}"
        )));
    }
    let Some(elements) = model.elements(index) else {
        return Err(failed(format!("its dtype is {:?}", tensor.dtype)));
    };
    if !out.is_empty() {
        let read = Fill::<f32>::fill(&*elements, start as u64, out);
        read.map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

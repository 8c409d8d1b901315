//! Where weights come from: by name, any part of a tensor, as f32.

use super::error::ForwardError;
use checkpoint::Checkpoint;
use numeric::Fill;

/// Gives weights by name: a stored checkpoint, or whatever else knows the values of one.
pub trait Weights: Sync {
    /// The shape of a tensor; none if there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Fills `out` with the elements of a tensor from number `start` on, in row order.
    ///
    /// # Errors
    /// If there is no such tensor, it ends before `start + out.len()`, or its values can't be had.
    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ForwardError>;
}

impl Weights for Checkpoint {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors().get(self.find(name)?)?.shape)
    }

    fn read(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), ForwardError> {
        let failed = |detail: String| ForwardError::Read {
            tensor: name.into(),
            detail,
        };
        let found = self.find(name);
        let Some((index, tensor)) = found.and_then(|at| Some((at, self.tensors().get(at)?))) else {
            return Err(failed("there is none of that name".into()));
        };
        let end = start.checked_add(out.len()).map(|end| end as u64);
        if end.is_none_or(|end| end > tensor.elements()) {
            let (elements, count) = (tensor.elements(), out.len());
            return Err(failed(format!(
                "{count} elements from {start} on, of {elements}"
            )));
        }
        let Some(elements) = self.elements(index) else {
            return Err(failed(format!("its dtype is {:?}", tensor.dtype)));
        };
        if !out.is_empty() {
            Fill::<f32>::fill(&*elements, start as u64, out);
        }
        Ok(())
    }
}

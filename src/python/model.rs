//! An open model, of which Python maps what lies in files.

use std::path::PathBuf;

use checkpoint::{Checkpoint, TensorEntry};
use cli::CallError;
use errors::{About, Refusal};
use numeric::{Fill, FloatType, Real};
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::error;

/// Elements that are converted at once.
const CHUNK: usize = 1 << 16;

/// An open model.
#[pyclass(frozen, module = "weldment")]
pub(crate) struct Model(pub(crate) Checkpoint);

#[pymethods]
impl Model {
    /// Its name, dtype and shape for each tensor.
    fn tensors(&self) -> Vec<(String, String, Vec<usize>)> {
        let tensors = self.0.tensors().iter();
        let row = |tensor: &TensorEntry| {
            (
                tensor.name.clone(),
                tensor.dtype.to_string(),
                tensor.shape.clone(),
            )
        };
        tensors.map(row).collect()
    }

    /// Its `config.json`, if it has one.
    fn config(&self) -> Option<String> {
        Some(self.0.config()?.value().to_string())
    }

    /// The file of a tensor, where its values begin there, and their bytes; none if they are not in a file as they are.
    fn place(&self, index: usize) -> Option<(PathBuf, u64, usize)> {
        let len = self.0.bytes(index)?.len();
        let (shard, start) = self.0.place(index)?;
        Some((shard.path.clone(), start, len))
    }

    /// The values of a tensor, computed from what the files hold.
    fn values<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyByteArray>> {
        let values = py.detach(|| values(&self.0, index));
        match values {
            Ok(bytes) => Ok(PyByteArray::new(py, &bytes)),
            Err(refusal) => Err(error::raised(py, &CallError::from(refusal))),
        }
    }
}

fn values(model: &Checkpoint, index: usize) -> Result<Vec<u8>, Refusal> {
    let tensor = &model.tensors()[index];
    let about = || About::default().tensor(&tensor.name).model(model.label());
    let refused = |what: String| Refusal::new(what).about(about());
    if let Some(bytes) = model.bytes(index) {
        return Ok(bytes.to_vec());
    }
    model.prepare(1, &|| false)?;
    let elements = model.elements(index);
    let elements = elements.ok_or_else(|| {
        refused(format!(
            "tensor `{}` of dtype {} has no plain values",
            tensor.name, tensor.dtype
        ))
    })?;
    let encoded = match elements.format().wants_f64() {
        true => encoded::<f64>(elements.as_ref(), tensor),
        false => encoded::<f32>(elements.as_ref(), tensor),
    };
    encoded.map_err(refused)
}

/// The values in the format of a tensor, rounded once to nearest.
fn encoded<R: Real>(
    elements: &(impl Fill<R> + ?Sized),
    tensor: &TensorEntry,
) -> Result<Vec<u8>, String> {
    let TensorEntry { name, dtype, .. } = tensor;
    let format = FloatType::from_dtype(*dtype);
    let format =
        format.ok_or_else(|| format!("tensor `{name}` of dtype {dtype} is not of floats"))?;
    let count = tensor.elements();
    let mut bytes = numeric::filled(tensor.len as usize, 0u8).map_err(|error| error.to_string())?;
    let chunk = numeric::filled(CHUNK, R::default());
    let mut chunk = chunk.map_err(|error| error.to_string())?;
    let mut beyond = 0;
    for (first, place) in (0..count)
        .step_by(CHUNK)
        .zip(bytes.chunks_mut(CHUNK * format.size()))
    {
        let values = &mut chunk[..place.len() / format.size()];
        elements
            .fill(first, values)
            .map_err(|error| error.to_string())?;
        beyond += format.encode(values, false, place).overflowed;
    }
    match beyond {
        0 => Ok(bytes),
        _ => Err(format!(
            "{beyond} values of tensor `{name}` are too large for {dtype}"
        )),
    }
}

//! Models whose tensors Python holds: they are read where they are.

use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::{Bytes, Checkpoint, InMemory, ModelConfig};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use safetensors::Dtype;

/// A tensor of Python: its name, its dtype as safetensors writes it, its shape, where it lies, how many bytes it has,
/// and the object that owns them.
pub(crate) type ForeignTensor = (String, String, Vec<usize>, usize, usize, Py<PyAny>);

/// Bytes that a Python object owns.
struct Foreign {
    address: usize,
    len: usize,
    _owner: Py<PyAny>,
}

impl AsRef<[u8]> for Foreign {
    #[expect(
        unsafe_code,
        reason = "memory of another language is read without a copy"
    )]
    fn as_ref(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `_arrays.py` takes address and length from a contiguous array or tensor, which is `_owner` or what
        // keeps it alive, so that the bytes stay where they are as long as `self` does. It tells its callers not to
        // write to them meanwhile.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }
}

/// A model of tensors in memory, with its `config.json` if there is one.
pub(crate) fn model(
    name: &str,
    tensors: Vec<ForeignTensor>,
    config: Option<&str>,
) -> PyResult<Checkpoint> {
    let wrong = |error: String| PyValueError::new_err(format!("model {name:?}: {error}"));
    let mut held = Vec::new();
    for (tensor, dtype, shape, address, len, owner) in tensors {
        let dtype: Dtype = serde_json::from_value(dtype.into())
            .map_err(|_| wrong(format!("tensor `{tensor}` has a dtype that there is not")))?;
        let bytes: Bytes = Box::new(Foreign {
            address,
            len,
            _owner: owner,
        });
        held.push((tensor, dtype, shape, bytes));
    }
    let held = InMemory::new(held).map_err(|error| wrong(error.to_string()))?;
    let config = config.map(serde_json::from_str).transpose();
    let config = config.map_err(|error| wrong(format!("its config: {error}")))?;
    let place = PathBuf::from(format!("{name}/config.json"));
    let config = config.map(|value| ModelConfig::made(place, value));
    Checkpoint::in_memory(name, config, Arc::new(held))
        .map_err(|error| wrong(errors::in_one_line(&error)))
}

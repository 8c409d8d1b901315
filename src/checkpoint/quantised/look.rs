//! A checkpoint that is looked at, and what a reader may say of one of its tensors.

use std::collections::HashMap;

use safetensors::Dtype;

use super::super::source::{TensorEntry, TensorSource};
use super::bytes::words;
use super::dequantised::{Storage, StoredCodes};
use super::settings::Settings;
use numeric::FloatType;

/// A tensor that was decoded.
pub(super) struct Reading {
    /// The name of the values.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// The dtype of the values, if it is not that of the model.
    pub(super) dtype: Option<Dtype>,
    pub(super) storage: Storage,
    /// Tensors that only say how others are stored.
    pub(super) beside: Vec<usize>,
    /// How it is stored, in words: `FP8 with a scale for each 128 x 128 values`.
    pub(super) scheme: String,
}

/// Something about a tensor that contradicts how it is stored.
pub(super) struct Contradiction {
    pub(super) tensor: usize,
    pub(super) expected: String,
    pub(super) found: String,
}

/// What a reader says of a tensor: not mine, or what it is.
pub(super) type Said = Option<Result<Reading, Contradiction>>;

/// A checkpoint that is looked at.
pub(super) struct Look<'a> {
    pub(super) source: &'a dyn TensorSource,
    pub(super) by_name: &'a HashMap<String, usize>,
    pub(super) settings: Settings,
    /// Rows and columns that share a scale, if the config names a block.
    pub(super) block: Option<[u64; 2]>,
    /// Whether the weights are here; otherwise only headers are.
    pub(super) is_here: bool,
}

impl<'a> Look<'a> {
    /// A tensor by its name, and its number.
    pub(super) fn tensor(&self, name: &str) -> Option<(usize, &'a TensorEntry)> {
        let at = *self.by_name.get(name)?;
        Some((at, &self.source.entries()[at]))
    }

    /// A tensor that must stand beside another, and its number.
    pub(super) fn needed(
        &self,
        beside: usize,
        name: &str,
    ) -> Result<(usize, &'a TensorEntry), Contradiction> {
        self.tensor(name).ok_or_else(|| Contradiction {
            tensor: beside,
            expected: format!("`{name}` beside it"),
            found: "none".into(),
        })
    }

    /// Whether a tensor's bytes lie one after the other and hold its codes.
    pub(super) fn holds(&self, codes: &StoredCodes) -> bool {
        let bytes = self.source.bytes(codes.tensor);
        bytes.is_some_and(|bytes| codes.fits(bytes))
    }

    /// A contradiction: the tensor is not what it should be.
    pub(super) fn contradiction(
        &self,
        tensor: usize,
        expected: impl Into<String>,
    ) -> Contradiction {
        Contradiction {
            tensor,
            expected: expected.into(),
            found: words(&self.source.entries()[tensor]),
        }
    }

    /// Checks that the config's `quant_method`, if it names one, is one that has tensors of this name.
    pub(super) fn is_of(&self, tensor: usize, methods: &[&str]) -> Result<(), Contradiction> {
        match self.settings.method() {
            Some(method) if !methods.contains(&method.as_str()) => Err(Contradiction {
                tensor,
                expected: format!("no such tensor, by the quant_method `{method}` of config.json"),
                found: words(&self.source.entries()[tensor]),
            }),
            _ => Ok(()),
        }
    }

    /// That some bytes are needed to know how a tensor is stored, and are not here.
    pub(super) fn not_here(&self, tensor: usize) -> Contradiction {
        Contradiction {
            tensor,
            expected: "its bytes, which say how weights are stored: download the model first"
                .into(),
            found: "its header alone".into(),
        }
    }
}

/// The float type that a config or a quantiser's settings name.
pub(super) fn float_named(name: &str) -> Option<FloatType> {
    Some(match name.strip_prefix("torch.").unwrap_or(name) {
        "bfloat16" => FloatType::Bf16,
        "float16" => FloatType::F16,
        "float32" => FloatType::F32,
        _ => return None,
    })
}

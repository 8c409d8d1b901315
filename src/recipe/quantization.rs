//! `quantization:`: how the weights of the output are stored.

use super::nearest::suggestion;
use super::problem::{Located, ProblemKind, quoted};
use super::walk::Walk;
use super::yaml::Entry;

/// How the weights of the output are stored, if not as plain floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// As those of the model that gives the config. What is only copied keeps its bytes.
    Keep,
    /// 8-bit floats with a scale for each 128 x 128 values: DeepSeek's `quant_method: fp8`.
    Fp8Block,
    /// 8-bit floats with a scale for each row: `float-quantized` of compressed-tensors.
    Fp8Channel,
    /// 8-bit floats with one scale for a tensor: the same.
    Fp8Tensor,
    /// The same as ComfyUI reads it: tensors beside the weights say so, no config.
    ComfyFp8,
    /// 4-bit floats with a scale for each 32: the experts of gpt-oss.
    Mxfp4,
}

/// The names in recipes; `none` stands for plain floats.
const NAMES: [(&str, Option<Quantization>); 7] = [
    ("none", None),
    ("keep", Some(Quantization::Keep)),
    ("fp8_block", Some(Quantization::Fp8Block)),
    ("fp8_channel", Some(Quantization::Fp8Channel)),
    ("fp8_tensor", Some(Quantization::Fp8Tensor)),
    ("comfy_fp8", Some(Quantization::ComfyFp8)),
    ("mxfp4", Some(Quantization::Mxfp4)),
];

impl Quantization {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        let known = NAMES.iter().find(|(_, known)| *known == Some(self));
        known.map_or("", |(name, _)| name)
    }
}

impl Walk<'_> {
    /// `quantization: NAME`.
    pub(super) fn quantization(&mut self, entry: &Entry) -> Option<Located<Quantization>> {
        let text = self.text(entry)?;
        let at = entry.node.at;
        if let Some((_, known)) = NAMES.iter().find(|(name, _)| *name == text) {
            return known.map(|value| Located { value, at });
        }
        let message = format!("unknown quantization {}", quoted(&text));
        let hint = suggestion(&text, "the choices are", &NAMES.map(|(name, _)| name));
        self.refuse(ProblemKind::Unknown, at, message, hint.as_deref());
        None
    }
}

//! Tells stored codes and their scales from plain weights, whatever the format: a merge cannot compute with such numbers.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;

use super::super::source::TensorEntry;

/// Tensors that GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, HQQ, QuIP#, EXL2 and EXL3 checkpoints store beside
/// their weights or in place of them.
const TELL_TALE_ENDS: [&str; 13] = [
    ".W_q",
    ".q_weight",
    ".Qidxs",
    ".trellis",
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale_inv",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".nested_absmax",
];

/// The ending of a scale's name, and that of the weight it scales, where the weight has a name of its own.
const SCALES: [(&str, &str); 2] = [(".scale_weight", ".weight"), ("_scales", "_blocks")];

/// The tensors whose numbers may be codes; a scale beside them is the evidence.
pub(super) struct Evidence<'a> {
    tensors: &'a [TensorEntry],
    by_name: &'a HashMap<String, usize>,
    /// The modules that have such a tensor.
    modules: HashSet<&'a str>,
}

impl<'a> Evidence<'a> {
    pub(super) fn new(tensors: &'a [TensorEntry], by_name: &'a HashMap<String, usize>) -> Self {
        let codes = tensors.iter().filter(|tensor| may_be_codes(tensor));
        Self {
            tensors,
            by_name,
            modules: codes
                .map(|tensor| module_and_last(&tensor.name).0)
                .collect(),
        }
    }

    /// The evidence in a tensor that the checkpoint is quantised.
    pub(super) fn in_tensor(&self, tensor: &TensorEntry) -> Option<String> {
        let name = &tensor.name;
        if is_packed(tensor.dtype) {
            return Some(format!("tensor `{name}` of dtype {}", tensor.dtype));
        }
        let tell_tale = TELL_TALE_ENDS.iter().any(|end| name.ends_with(end))
            || name.contains("quant_state.")
            || name == "scaled_fp8";
        let scale = SCALES.iter().any(|(scale, weight)| {
            name.strip_suffix(scale)
                .and_then(|stem| self.by_name.get(&format!("{stem}{weight}")))
                .is_some_and(|&at| is_narrow(self.tensors[at].dtype))
        });
        (tell_tale || scale || self.is_scale(tensor)).then(|| format!("tensor `{name}`"))
    }

    /// Whether its name is that of a scale, and it lies in a module with codes or its name begins with that of such a
    /// tensor.
    fn is_scale(&self, tensor: &TensorEntry) -> bool {
        let (module, last) = module_and_last(&tensor.name);
        let scale = ["scale", "scaling"]
            .into_iter()
            .find_map(|word| last.find(word));
        let Some(at) = scale.filter(|_| !is_narrow(tensor.dtype)) else {
            return false;
        };
        let scaled = last[..at].trim_end_matches('_');
        let scaled = match module {
            "" => scaled.to_owned(),
            module => format!("{module}.{scaled}"),
        };
        let is_code = |at: &usize| may_be_codes(&self.tensors[*at]);
        self.modules.contains(module) || self.by_name.get(&scaled).is_some_and(is_code)
    }
}

/// The name up to its last dot, and what follows.
fn module_and_last(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Whether only the config says that it is quantised: every tensor holds plain numbers.
pub(crate) fn only_config_says(tensors: &[TensorEntry], by_name: &HashMap<String, usize>) -> bool {
    let codes = Evidence::new(tensors, by_name);
    let plain = |tensor: &TensorEntry| {
        codes.in_tensor(tensor).is_none() && !is_narrow(tensor.dtype) && tensor.dtype != Dtype::I32
    };
    tensors.iter().all(plain)
}

/// Whether the dtype is that of codes: 8-bit floats, or matrices of integers or of the words that they are packed in.
/// Matrices of 64-bit integers are positions.
fn may_be_codes(tensor: &TensorEntry) -> bool {
    match tensor.dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => true,
        Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 => {
            tensor.shape.len() > 1
        }
        _ => false,
    }
}

/// Formats that store less than one number per element, or numbers that no method decodes.
fn is_packed(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F4
            | Dtype::F6_E2M3
            | Dtype::F6_E3M2
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ
    )
}

fn is_narrow(dtype: Dtype) -> bool {
    dtype.bitsize() <= 8 && dtype != Dtype::BOOL
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{safetensors, write};
    use super::super::super::locate::Location;
    use super::super::super::reader::Checkpoint;

    /// Name, dtype, shape.
    type Tensors<'a> = &'a [(&'a str, &'a str, &'a [usize])];

    fn open(config: &str, tensors: Tensors) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("config.json"), config.as_bytes());
        write(
            &folder.path().join("model.safetensors"),
            &safetensors(tensors),
        );
        Checkpoint::open("org/q", &Location::local(folder.path()))
            .map(|_| ())
            .map_err(|e| errors::in_one_line(&e))
    }

    #[test]
    fn quantised_checkpoints_are_refused_by_what_shows_it() {
        let plain: (&str, &str, &[usize]) = ("a.weight", "BF16", &[2, 2]);
        let gptq = r#"{"quantization_config": {"quant_method": "gptq"}}"#;
        let cases: [(&str, Tensors, &str); 21] = [
            (gptq, &[plain], "quant_method `gptq`"),
            (
                r#"{"text_config": {"quantization_config": {"bits": 4}}}"#,
                &[plain],
                "quantization_config",
            ),
            (
                r#"{"quantization_config": "x"}"#,
                &[plain],
                "quantization_config",
            ),
            ("{}", &[("a.qweight", "I32", &[2])], "`a.qweight`"),
            ("{}", &[("a.qzeros", "I32", &[2])], "`a.qzeros`"),
            (
                "{}",
                &[("a.weight_packed", "I32", &[2])],
                "`a.weight_packed`",
            ),
            ("{}", &[("a.SCB", "F32", &[2])], "`a.SCB`"),
            (
                "{}",
                &[("a.weight.quant_state.bitsandbytes__nf4", "U8", &[2])],
                "quant_state",
            ),
            ("{}", &[("a.weight", "F4", &[4])], "dtype F4"),
            (
                "{}",
                &[("a.weight", "F8_E4M3FNUZ", &[4])],
                "dtype F8_E4M3FNUZ",
            ),
            (
                "{}",
                &[("e.up_blocks", "U8", &[4]), ("e.up_scales", "U8", &[4])],
                "`e.up_blocks`",
            ),
            (
                r#"{"quantization": {"group_size": 64, "bits": 4}}"#,
                &[plain],
                "a `quantization`",
            ),
            (
                "{}",
                &[
                    ("e.gate_up_proj", "F8_E4M3", &[4]),
                    ("e.gate_up_proj_scale_inv", "BF16", &[2]),
                ],
                "`e.gate_up_proj_scale_inv`",
            ),
            (
                "{}",
                &[
                    ("a._weight_qdata", "I8", &[2, 2]),
                    ("a._weight_scale", "F32", &[2]),
                ],
                "`a._weight_scale`",
            ),
            // HQQ, torchao, a format of no name, quanto and MLX.
            (
                "{}",
                &[("a.W_q", "I32", &[2, 2]), ("a.meta", "F16", &[2])],
                "`a.W_q`",
            ),
            (
                "{}",
                &[
                    ("a._weight_qdata", "I32", &[2, 2]),
                    ("a._weight_scale_and_zero", "BF16", &[2]),
                ],
                "`a._weight_scale_and_zero`",
            ),
            // TensorRT-LLM.
            (
                "{}",
                &[
                    ("fc.weight", "F8_E4M3", &[4]),
                    ("fc.weights_scaling_factor", "F32", &[1]),
                ],
                "`fc.weights_scaling_factor`",
            ),
            (
                "{}",
                &[("a.codes", "I16", &[2, 2]), ("a.scales", "F16", &[2])],
                "`a.scales`",
            ),
            (
                "{}",
                &[("a.packed", "I32", &[2, 2]), ("a.group_scale", "F16", &[2])],
                "`a.group_scale`",
            ),
            (
                "{}",
                &[
                    ("a.weight._data", "I8", &[2, 2]),
                    ("a.weight._scale", "F16", &[2]),
                ],
                "`a.weight._scale`",
            ),
            (
                "{}",
                &[("a.weight", "U32", &[2, 2]), ("a.scales", "F16", &[2, 2])],
                "`a.scales`",
            ),
        ];
        for (config, tensors, expected) in cases {
            let message = open(config, tensors).unwrap_err();
            // Either the storage is not known, or it is and does not fit together.
            let is_unknown =
                message.contains("`org/q` is quantised") && message.contains("hint: dequantise");
            let is_misfit = message.contains(": expected ")
                && message.contains("hint: weights and config.json");
            assert!(is_unknown || is_misfit, "{message}");
            assert!(message.contains(expected), "{expected}: {message}");
        }
    }

    #[test]
    fn plain_checkpoints_raise_no_false_alarm() {
        let cases: [(&str, Tensors); 8] = [
            (
                "{}",
                &[("a.weight", "BF16", &[2]), ("a.weight_scale", "BF16", &[2])],
            ),
            ("{}", &[("a.weight_scale", "F32", &[2])]),
            // The second Swin's attention.
            (
                "{}",
                &[
                    ("a.relative_position_index", "I64", &[4, 4]),
                    ("a.logit_scale", "F32", &[2, 1, 1]),
                ],
            ),
            (
                "{}",
                &[("a.weight", "F8_E4M3", &[4]), ("b.scale", "F32", &[])],
            ),
            (
                "{}",
                &[("a.steps", "U8", &[4]), ("a.logit_scale", "F32", &[])],
            ),
            ("{}", &[("a.weight", "F8_E4M3", &[4])]),
            (r#"{"quantization_config": null}"#, &[("a", "F32", &[])]),
            (r#"{"quantization_config": {}}"#, &[("a", "F32", &[])]),
        ];
        for (config, tensors) in cases {
            open(config, tensors).unwrap();
        }
    }
}

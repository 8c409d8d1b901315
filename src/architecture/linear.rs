//! Which tensors are the weights of linear layers, and how they lie.

use serde_json::Value;

use super::config::{TEXT_PARTS, field};
use super::names::{is_input_embedding, is_output_head, may_hold_zeros};

/// How the weight of a linear layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightOrder {
    /// A row for each output, as PyTorch's `Linear` has it.
    OutIn,
    /// A row for each input, as GPT-2's `Conv1D` has it.
    InOut,
}

/// Model types in transformers that use Conv1D, whose weights are `[in, out]`.
const CONV1D_TYPES: [&str; 6] = [
    "clvp_decoder",
    "clvp_encoder",
    "decision_transformer",
    "gpt2",
    "imagegpt",
    "openai-gpt",
];

/// The modules that are Conv1D in those models.
const CONV1D_MODULES: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

/// Model types whose stacks of experts are `[experts, in, out]`; those of all others are `[experts, out, in]`.
const STACKED_IN_OUT: [&str; 7] = [
    "aria",
    "aria_text",
    "gpt_oss",
    "llama4",
    "llama4_text",
    "openai_privacy_filter",
    "qwen3_vl_moe",
];

/// Modules with a row for each token or position.
const TABLES: [&str; 2] = ["wpe", "wte"];

/// Modules that give a model's answer: of the vocabulary, or of classes.
const HEADS: [&str; 3] = ["classifier", "qa_outputs", "score"];

/// Whether models of this type use Conv1D.
pub fn has_conv1d(model_type: &str) -> bool {
    CONV1D_TYPES.contains(&model_type)
}

/// Whether a module, by the last part of its name, is a Conv1D where [`has_conv1d`] says that there are some.
pub fn is_conv1d_module(module: &str) -> bool {
    CONV1D_MODULES.contains(&module)
}

/// How a tensor lies, if it is the weight of a linear layer, or of one layer for each expert.
///
/// Embeddings, tables of positions, heads, norms, biases and kernels of convolutions are none, nor is a matrix with a
/// single row or column.
pub fn linear_weight(name: &str, shape: &[usize], config: Option<&Value>) -> Option<WeightOrder> {
    let mut parts = name.rsplit(['.', '/']);
    let last = parts.next().unwrap_or_default();
    let stack = shape.len() == 3 && name.split('.').any(|part| part == "experts");
    let module = match (last == "weight", stack || last.ends_with("_weight")) {
        (true, _) => parts.next().unwrap_or_default(),
        (false, true) => last,
        (false, false) => return None,
    };
    let matrix = (shape.len() == 2 || stack) && shape.iter().rev().take(2).all(|&size| size > 1);
    let other = is_input_embedding(name)
        || is_output_head(name)
        || may_hold_zeros(module)
        || TABLES.contains(&module)
        || HEADS.contains(&module)
        || ["bias", "emb", "norm"]
            .iter()
            .any(|part| module.contains(part))
        || module.ends_with("head");
    if !matrix || other {
        return None;
    }
    let in_out = match stack {
        true => is_of(config, |kind| STACKED_IN_OUT.contains(&kind)),
        false => is_conv1d_module(module) && is_of(config, has_conv1d),
    };
    Some(match in_out {
        true => WeightOrder::InOut,
        false => WeightOrder::OutIn,
    })
}

/// Whether the model, or its text part, is of such a type.
fn is_of(config: Option<&Value>, is_type: impl Fn(&str) -> bool) -> bool {
    let Some(config) = config else {
        return false;
    };
    let parts = TEXT_PARTS.iter().filter_map(|part| field(config, part));
    let types = [config]
        .into_iter()
        .chain(parts)
        .filter_map(|part| field(part, "model_type"));
    types.filter_map(Value::as_str).any(is_type)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn matrices_of_linear_layers_are_told_by_name_and_shape() {
        let order = |name, shape: &[usize]| linear_weight(name, shape, None);
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.experts.3.down_proj.weight",
            "visual.blocks.0.attn.in_proj_weight",
            "unet/time_embedding.linear_1.weight",
            "vit.encoder.layer.0.attention.output.dense.weight",
        ] {
            assert_eq!(order(name, &[8, 6]), Some(WeightOrder::OutIn), "{name}");
            assert_eq!(order(name, &[8]), None);
            assert_eq!(order(name, &[8, 1]), None);
            assert_eq!(order(name, &[8, 6, 1, 1]), None);
        }
        for name in [
            "model.embed_tokens.weight",
            "transformer.wpe.weight",
            "bert.embeddings.position_embeddings.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "lm_head.weight",
            "score.weight",
            "classifier.weight",
            "model.layers.0.mlp.experts.gate_up_proj_bias",
            "model.layers.0.mixer.A_log",
            "model.layers.0.norm.weight",
            "pos_embed",
            "",
        ] {
            assert_eq!(order(name, &[8, 6]), None, "{name}");
        }
        let experts = "model.layers.0.mlp.experts.gate_up_proj";
        assert_eq!(order(experts, &[4, 8, 6]), Some(WeightOrder::OutIn));
        assert_eq!(order("encoder.conv.weight", &[4, 8, 6]), None);
    }

    #[test]
    fn what_lies_the_other_way_round_is_told_by_the_model_type() {
        let order = |name, shape: &[usize], config| linear_weight(name, shape, Some(&config));
        let conv1d = "transformer.h.0.attn.c_attn.weight";
        let config = json!({"model_type": "gpt2"});
        assert_eq!(order(conv1d, &[8, 24], config), Some(WeightOrder::InOut));
        let config = json!({"model_type": "gpt_bigcode"});
        assert_eq!(order(conv1d, &[24, 8], config), Some(WeightOrder::OutIn));
        let experts = "model.layers.0.mlp.experts.down_proj";
        let config = json!({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}});
        assert_eq!(order(experts, &[4, 8, 6], config), Some(WeightOrder::InOut));
        let config = json!({"model_type": "qwen3_moe"});
        assert_eq!(order(experts, &[4, 8, 6], config), Some(WeightOrder::OutIn));
    }
}

//! What a tensor's name says about its role, whatever the family: the field's habits.

use super::family::Family;
use super::mixture::SharedLayout;

/// Modules whose weight has a row for each token.
const EMBEDDINGS: [&str; 8] = [
    "embed_in",
    "embed_tokens",
    "embed_tokens_per_layer",
    "tok_embeddings",
    "token_embedding",
    "token_embeddings",
    "word_embeddings",
    "wte",
];

/// Embeddings whose name is too common to be believed anywhere but at these places.
const EMBEDDINGS_AT: [&str; 4] = [
    "shared.weight",
    "model.shared.weight",
    "backbone.embeddings.weight",
    "backbone.embedding.weight",
];

/// Output heads that are so only at the top.
const HEADS_AT: [&str; 4] = [
    "embed_out.weight",
    "output.weight",
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
];

/// The name within its part of the model: that of a pipeline's tensor begins with a folder, as `unet/conv_in.weight`.
fn within_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Whether the tensor maps the last hidden state to the vocabulary.
pub fn is_output_head(name: &str) -> bool {
    let name = within_part(name);
    let module = name
        .strip_suffix(".weight")
        .or_else(|| name.strip_suffix(".bias"));
    HEADS_AT.contains(&name)
        || module.is_some_and(|module| module == "lm_head" || module.ends_with(".lm_head"))
}

/// Whether the tensor maps tokens to hidden states: its first axis is the vocabulary.
pub fn is_input_embedding(name: &str) -> bool {
    let name = within_part(name);
    let Some(module) = name.strip_suffix(".weight") else {
        return false;
    };
    let last = module.rsplit('.').next().unwrap_or(module);
    EMBEDDINGS.contains(&last) || EMBEDDINGS_AT.contains(&name)
}

/// Whether the tensor is computed from the config, not trained: rotary frequencies, causal masks, positions.
///
/// Old checkpoints store these; new ones of the same model do not.
pub fn is_derived_buffer(name: &str) -> bool {
    let mut parts = within_part(name).rsplit('.');
    let last = parts.next().unwrap_or_default();
    let module = parts.next().unwrap_or_default();
    let parent = parts.next().unwrap_or_default();
    match last {
        "position_ids" => true,
        "inv_freq" | "cos_cached" | "sin_cached" => {
            matches!(module, "rotary_emb" | "rotary_pos_emb" | "rotary_embedding")
        }
        "masked_bias" => matches!(module, "attn" | "attention"),
        "bias" => match module {
            "attn" => is_number(parent),
            // A layer's own `attention` is a module (NeoX, GPT-Neo); elsewhere it may be a linear map.
            "attention" => parent == "attn" || is_number(parent),
            _ => false,
        },
        _ => false,
    }
}

/// Whether a matrix may hold long runs of zeros, or huge values, by its kind: masks, and tables of positions.
pub fn may_hold_zeros(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["mask", "pos_emb", "position", "relative", "sinusoid"]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether the tensor is the range of values that an observer of quantisation-aware training has seen. It is infinite
/// before the first value.
pub fn is_observed_range(name: &str) -> bool {
    let Some((module, last)) = name.rsplit_once('.') else {
        return false;
    };
    let observers = ["activation_post_process", "fake_quant", "observer"];
    matches!(last, "min_val" | "max_val" | "min_vals" | "max_vals")
        && observers.iter().any(|observer| module.contains(observer))
}

/// Whether the tensor bounds values or masks them, so that infinity is no damage: it means that there is no bound, or
/// that nothing is seen there.
pub fn may_be_infinite(name: &str) -> bool {
    let last = within_part(name).rsplit('.').next().unwrap_or_default();
    let parts = || last.split('_');
    is_observed_range(name)
        || last.contains('_') && parts().any(|part| matches!(part, "min" | "max"))
        || parts().any(|part| part == "mask")
}

/// What the factors of updates are called: PEFT's, kohya's, LyCORIS', torchtune's and MLX's.
const FACTORS: [&str; 15] = [
    "base_layer",
    "boft_R",
    "dora_scale",
    "lora_A",
    "lora_B",
    "lora_a",
    "lora_b",
    "lora_down",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_up",
    "oft_R",
    "vera_lambda_b",
    "vera_lambda_d",
];

/// How the names of more such factors begin.
const FACTOR_STARTS: [&str; 4] = ["hada_w", "hada_t", "lokr_w", "lokr_t"];

/// Whether the tensor is a part of an update to a weight, such as one factor of a product: a mean of such parts is
/// no mean of what they stand for.
pub fn is_update_factor(name: &str) -> bool {
    let is_factor = |part: &str| {
        FACTORS.contains(&part) || FACTOR_STARTS.iter().any(|start| part.starts_with(start))
    };
    // diffusers' `to_q_lora.down` and `lora.up`.
    let parts = || name.split('.');
    let mut pairs = parts().zip(parts().skip(1));
    parts().any(is_factor)
        || pairs.any(|(module, part)| {
            let is_lora = module == "lora" || module.ends_with("_lora");
            is_lora && matches!(part, "down" | "up")
        })
}

/// Routers of families that no table has, and of those whose table lists their tensors.
const OTHER_ROUTERS: [&str; 2] = ["mlp.router.weight", "feed_forward.router.weight"];

/// Whether the tensor has a row for each expert of its layer, by which tokens are sent to them.
pub fn is_router(name: &str) -> bool {
    let of_family = |router: &str| name.ends_with(router);
    let mut mixtures = Family::all().filter_map(Family::mixture);
    OTHER_ROUTERS.into_iter().any(of_family)
        || mixtures.any(|mixture| {
            [false, true]
                .into_iter()
                .any(|held| of_family(mixture.names(held).router))
        })
}

/// Whether the tensor is a matrix of an expert that every token of its layer goes through.
pub fn is_shared_expert(name: &str) -> bool {
    let mixtures = Family::all().filter_map(Family::mixture);
    let mut layouts = mixtures.filter_map(|mixture| Some(&mixture.shared.as_ref()?.layout));
    layouts.any(|layout| match layout {
        SharedLayout::Each(each) => name.contains(&format!(".{each}")),
        SharedLayout::Fused(input, output) => name.ends_with(input) || name.ends_with(output),
    })
}

/// Tensors outside of the layers that have a part for each of them, in one dimension: those of Gemma 3n and 4.
const BY_LAYER: [&str; 2] = [
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
];

/// Whether a dimension of the tensor is a multiple of the number of layers, as it has a part for each.
pub fn has_part_for_each_layer(name: &str) -> bool {
    BY_LAYER.iter().any(|end| name.ends_with(end))
}

/// Whether a component of a name is a plain number: the position in a list of modules.
pub fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

/// The position in a list of modules that a component of a name says. `07` and `+7` are none: names are made from
/// integers, and nothing but `7` is what they make of seven.
pub fn module_index(part: &str) -> Option<usize> {
    let canonical = is_number(part) && (part == "0" || !part.starts_with('0'));
    canonical.then(|| part.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(role: fn(&str) -> bool, yes: &[&str], no: &[&str]) {
        for name in yes {
            assert!(role(name), "{name}");
        }
        for name in no {
            assert!(!role(name), "{name}");
        }
    }

    #[test]
    fn a_position_is_written_in_one_way() {
        let read = |part| module_index(part);
        assert_eq!(["0", "7", "10"].map(read), [Some(0), Some(7), Some(10)]);
        for part in ["", "00", "07", "+7", "-0", "7a", "99999999999999999999"] {
            assert_eq!(read(part), None, "{part}");
        }
    }

    #[test]
    fn roles_are_told_by_name() {
        check(
            is_output_head,
            &[
                "lm_head.weight",
                "lm_head.bias",
                "language_model.lm_head.weight",
                "embed_out.weight",
                "output.weight",
                "cls.predictions.decoder.weight",
            ],
            &[
                "",
                "lm_head",
                "xlm_head.weight",
                "layers.0.output.weight",
                "lm_head.dense.weight",
            ],
        );
        check(
            is_input_embedding,
            &[
                "model.embed_tokens.weight",
                "transformer.wte.weight",
                "gpt_neox.embed_in.weight",
                "bert.embeddings.word_embeddings.weight",
                "tok_embeddings.weight",
                "shared.weight",
                "encoder.embed_tokens.weight",
            ],
            &[
                "",
                "weight",
                "transformer.wpe.weight",
                "bert.embeddings.position_embeddings.weight",
                "model.layers.0.mlp.shared.weight",
                "embed_tokens.bias",
            ],
        );
        check(
            is_update_factor,
            &[
                "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                "model.layers.0.self_attn.q_proj.lora_B.default.weight",
                "model.layers.0.self_attn.q_proj.base_layer.weight",
                "lora_unet_mid_block_proj_in.lora_down.weight",
                "lora_te_layers_0_fc1.hada_w1_a",
                "x.lokr_w2",
                "x.dora_scale",
                "layers.0.attn.q_proj.lora_a.weight",
                "down_blocks.0.attn1.processor.to_q_lora.down.weight",
                "unet.mid_block.proj_in.lora.up.weight",
                "layers.0.q_proj.oft_R.default.weight",
                "layers.0.q_proj.vera_lambda_d",
            ],
            &[
                "",
                "model.layers.0.self_attn.q_proj.weight",
                "model.lora_projector.weight",
                "flora_A.weight",
                "alpha",
                "model.layers.0.attn.w_lora.lora.0.weight",
                "down_blocks.0.up.weight",
            ],
        );
        check(
            may_be_infinite,
            &[
                "layers.0.feed_forward1.ffw_layer_1.input_max",
                "layers.0.self_attn.post.output_min",
                "model.clip_min",
                "encoder.attn_mask",
                "mask",
                "fc.activation_post_process.min_val",
            ],
            &[
                "",
                "max",
                "min_proj.weight",
                "mask_decoder.weight",
                "model.layers.0.mlp.up_proj.weight",
                "maximum_bias",
            ],
        );
        check(
            is_derived_buffer,
            &[
                "model.layers.0.self_attn.rotary_emb.inv_freq",
                "transformer.h.0.attn.bias",
                "h.0.attn.masked_bias",
                "gpt_neox.layers.3.attention.bias",
                "gpt_neox.layers.3.attention.masked_bias",
                "transformer.h.0.attn.attention.bias",
                "bert.embeddings.position_ids",
            ],
            &[
                "",
                "bias",
                "attn.bias",
                "pooler.attention.bias",
                "h.0.attn.c_attn.bias",
                "model.norm.bias",
                "ssm.inv_freq",
            ],
        );
    }
}

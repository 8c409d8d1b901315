//! Gemma 3 with a tower that looks at images, and what joins them.

use crate::family::{Body, Family, Head};

pub(super) static FAMILY: Family = Family {
    types: &["gemma3"],
    class: "Gemma3ForConditionalGeneration",
    bodies: &[
        Body {
            prefixes: &["language_model.model.", "model.language_model."],
            part: Some("text_config"),
            ..Body::DECODER
        },
        Body {
            prefixes: &[
                "vision_tower.vision_model.",
                "vision_tower.",
                "model.vision_tower.vision_model.",
                "model.vision_tower.",
            ],
            layers: "encoder.layers.",
            part: Some("vision_config"),
            tensors: &[SIGLIP],
            ..Body::LISTED
        },
        Body {
            prefixes: &["multi_modal_projector.", "model.multi_modal_projector."],
            layers: "",
            part: Some("text_config"),
            tensors: &["mm_input_projection_weight VH H\nmm_soft_emb_norm.weight VH"],
            ..Body::LISTED
        },
    ],
    head: Head::tied(&["lm_head.weight", "language_model.lm_head.weight"]),
    decoder: Some(super::gemma3_text::DECODER),
};

const SIGLIP: &str = "embeddings.patch_embedding.weight H _ _ _\nembeddings.patch_embedding.bias H\n\
    embeddings.position_embedding.weight _ H\npost_layernorm.weight H\npost_layernorm.bias H\n\
    encoder.layers.*.layer_norm1.weight H\nencoder.layers.*.layer_norm1.bias H\n\
    encoder.layers.*.layer_norm2.weight H\nencoder.layers.*.layer_norm2.bias H\n\
    encoder.layers.*.self_attn.q_proj.weight H H\nencoder.layers.*.self_attn.q_proj.bias H\n\
    encoder.layers.*.self_attn.k_proj.weight H H\nencoder.layers.*.self_attn.k_proj.bias H\n\
    encoder.layers.*.self_attn.v_proj.weight H H\nencoder.layers.*.self_attn.v_proj.bias H\n\
    encoder.layers.*.self_attn.out_proj.weight H H\nencoder.layers.*.self_attn.out_proj.bias H\n\
    encoder.layers.*.mlp.fc1.weight I H\nencoder.layers.*.mlp.fc1.bias I\n\
    encoder.layers.*.mlp.fc2.weight H I\nencoder.layers.*.mlp.fc2.bias H\n\
    ?head.probe 1 1 H\n?head.attention.in_proj_weight HHH H\n?head.attention.in_proj_bias HHH\n\
    ?head.attention.out_proj.weight H H\n?head.attention.out_proj.bias H\n?head.layernorm.weight H\n\
    ?head.layernorm.bias H\n?head.mlp.fc1.weight I H\n?head.mlp.fc1.bias I\n?head.mlp.fc2.weight H I\n\
    ?head.mlp.fc2.bias H";

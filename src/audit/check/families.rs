//! Which tensors each architecture has, and their shapes: a table, a family in a few lines.
//!
//! `*` is a layer, `#` an expert; sizes are named as in [`size`](super::structure). A line may start with `?`: such a
//! tensor may be left out, in all layers or in none; `-`: only layers without experts have it; `+`: only layers with
//! experts.

/// What a family's checkpoints hold.
pub(super) struct Family {
    /// The `model_type`s of config.json.
    pub(super) types: &'static [&'static str],
    /// What the names start with: the first of these that any tensor has. With the empty one the body may have been
    /// saved alone; without it the first one is missing.
    pub(super) prefixes: &'static [&'static str],
    /// What stands before a layer's number, after the prefix; empty where there are no layers.
    pub(super) layers: &'static str,
    /// Fields that say how many layers there are, the first that is there.
    pub(super) counts: &'static [&'static str],
    /// The part of config.json that its sizes are in, where a model has several bodies.
    pub(super) part: Option<&'static str>,
    /// Whether only a model that writes text has it, beside an encoder.
    pub(super) is_decoder: bool,
    /// The tensors, in parts that families share: a line each, the name and its sizes.
    pub(super) parts: &'static [&'static str],
    /// The tensors where all experts of a layer are in two, as transformers 5 holds them.
    pub(super) held: Option<&'static [&'static str]>,
    /// What the head may be called, and whether it is the embedding where config.json says nothing.
    pub(super) head: Option<(&'static [&'static str], bool)>,
    /// Whether the size of a head of attention follows from the hidden size where config.json says nothing.
    pub(super) head_dim_follows: bool,
}

const EMBEDDING: &str = "embed_tokens.weight V H\nnorm.weight H";
const ATTENTION: &str = "layers.*.self_attn.q_proj.weight Q H\nlayers.*.self_attn.k_proj.weight K H\n\
    layers.*.self_attn.v_proj.weight K H\nlayers.*.self_attn.o_proj.weight H Q";
const MAY_HAVE_BIASES: &str = "?layers.*.self_attn.q_proj.bias Q\n?layers.*.self_attn.k_proj.bias K\n\
    ?layers.*.self_attn.v_proj.bias K\n?layers.*.self_attn.o_proj.bias H\n?layers.*.mlp.gate_proj.bias I\n\
    ?layers.*.mlp.up_proj.bias I\n?layers.*.mlp.down_proj.bias H";
const HAS_BIASES: &str = "layers.*.self_attn.q_proj.bias Q\nlayers.*.self_attn.k_proj.bias K\n\
    layers.*.self_attn.v_proj.bias K";
const HEAD_NORMS: &str = "layers.*.self_attn.q_norm.weight D\nlayers.*.self_attn.k_norm.weight D";
const MLP: &str = "-layers.*.mlp.gate_proj.weight I H\n-layers.*.mlp.up_proj.weight I H\n\
    -layers.*.mlp.down_proj.weight H I";
const NORMS: &str = "layers.*.input_layernorm.weight H\nlayers.*.post_attention_layernorm.weight H";
const FEEDFORWARD_NORMS: &str = "layers.*.pre_feedforward_layernorm.weight H\n\
    layers.*.post_feedforward_layernorm.weight H";
const EXPERTS: &str = "+layers.*.mlp.gate.weight E H\n+layers.*.mlp.experts.#.gate_proj.weight M H\n\
    +layers.*.mlp.experts.#.up_proj.weight M H\n+layers.*.mlp.experts.#.down_proj.weight H M";

const HELD: &str = "+layers.*.mlp.gate.weight E H\n+layers.*.mlp.experts.gate_up_proj E MM H\n\
    +layers.*.mlp.experts.down_proj E H M";
const SHARED: &str = "+layers.*.mlp.shared_expert.gate_proj.weight S H\n\
    +layers.*.mlp.shared_expert.up_proj.weight S H\n+layers.*.mlp.shared_expert.down_proj.weight H S\n\
    +layers.*.mlp.shared_expert_gate.weight 1 H";
const BERT: &str = "embeddings.word_embeddings.weight V H\nembeddings.position_embeddings.weight P H\n\
    embeddings.token_type_embeddings.weight _ H\nembeddings.LayerNorm.weight H\n\
    embeddings.LayerNorm.bias H\nencoder.layer.*.attention.self.query.weight H H\n\
    encoder.layer.*.attention.self.query.bias H\nencoder.layer.*.attention.self.key.weight H H\n\
    encoder.layer.*.attention.self.key.bias H\nencoder.layer.*.attention.self.value.weight H H\n\
    encoder.layer.*.attention.self.value.bias H\nencoder.layer.*.attention.output.dense.weight H H\n\
    encoder.layer.*.attention.output.dense.bias H\nencoder.layer.*.attention.output.LayerNorm.weight H\n\
    encoder.layer.*.attention.output.LayerNorm.bias H\nencoder.layer.*.intermediate.dense.weight I H\n\
    encoder.layer.*.intermediate.dense.bias I\nencoder.layer.*.output.dense.weight H I\n\
    encoder.layer.*.output.dense.bias H\nencoder.layer.*.output.LayerNorm.weight H\n\
    encoder.layer.*.output.LayerNorm.bias H\n?pooler.dense.weight H H\n?pooler.dense.bias H";

const DEEPSEEK: &str = "?layers.*.self_attn.q_proj.weight QH H\n?layers.*.self_attn.q_a_proj.weight QL H\n\
    ?layers.*.self_attn.q_a_layernorm.weight QL\n?layers.*.self_attn.q_b_proj.weight QH QL\n\
    ?layers.*.self_attn.q_a_proj.bias QL\n?layers.*.self_attn.kv_a_proj_with_mqa.bias KA\n\
    ?layers.*.self_attn.o_proj.bias H\n\
    layers.*.self_attn.kv_a_proj_with_mqa.weight KA H\nlayers.*.self_attn.kv_a_layernorm.weight KL\n\
    layers.*.self_attn.kv_b_proj.weight KB KL\nlayers.*.self_attn.o_proj.weight H VO\n\
    ?+layers.*.mlp.gate.e_score_correction_bias E\n?+layers.*.mlp.shared_experts.gate_proj.weight SM H\n\
    ?+layers.*.mlp.shared_experts.up_proj.weight SM H\n?+layers.*.mlp.shared_experts.down_proj.weight H SM";
const T5_ENCODER: &str = "shared.weight V H\n?encoder.embed_tokens.weight V H\n?decoder.embed_tokens.weight V H\n\
    encoder.final_layer_norm.weight H\n\
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight B N\n\
    encoder.block.*.layer.0.SelfAttention.q.weight Q H\nencoder.block.*.layer.0.SelfAttention.k.weight Q H\n\
    encoder.block.*.layer.0.SelfAttention.v.weight Q H\nencoder.block.*.layer.0.SelfAttention.o.weight H Q\n\
    encoder.block.*.layer.0.layer_norm.weight H\n?encoder.block.*.layer.1.DenseReluDense.wi.weight I H\n\
    ?encoder.block.*.layer.1.DenseReluDense.wi_0.weight I H\n\
    ?encoder.block.*.layer.1.DenseReluDense.wi_1.weight I H\n\
    encoder.block.*.layer.1.DenseReluDense.wo.weight H I\nencoder.block.*.layer.1.layer_norm.weight H";
const T5_DECODER: &str = "decoder.final_layer_norm.weight H\n\
    decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight B N\n\
    ?decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight B N\n\
    decoder.block.*.layer.0.SelfAttention.q.weight Q H\ndecoder.block.*.layer.0.SelfAttention.k.weight Q H\n\
    decoder.block.*.layer.0.SelfAttention.v.weight Q H\ndecoder.block.*.layer.0.SelfAttention.o.weight H Q\n\
    decoder.block.*.layer.0.layer_norm.weight H\n\
    decoder.block.*.layer.1.EncDecAttention.q.weight Q H\ndecoder.block.*.layer.1.EncDecAttention.k.weight Q H\n\
    decoder.block.*.layer.1.EncDecAttention.v.weight Q H\ndecoder.block.*.layer.1.EncDecAttention.o.weight H Q\n\
    decoder.block.*.layer.1.layer_norm.weight H\n?decoder.block.*.layer.2.DenseReluDense.wi.weight I H\n\
    ?decoder.block.*.layer.2.DenseReluDense.wi_0.weight I H\n\
    ?decoder.block.*.layer.2.DenseReluDense.wi_1.weight I H\n\
    decoder.block.*.layer.2.DenseReluDense.wo.weight H I\ndecoder.block.*.layer.2.layer_norm.weight H";
const GEMMA3: &[&str] = &[
    EMBEDDING,
    ATTENTION,
    MAY_HAVE_BIASES,
    HEAD_NORMS,
    MLP,
    NORMS,
    FEEDFORWARD_NORMS,
];
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

/// Fields that say how many layers there are.
pub(super) const LAYER_COUNTS: [&str; 4] =
    ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// A family of the Llama kind.
const fn llama_like(types: &'static [&'static str], parts: &'static [&'static str]) -> Family {
    Family {
        types,
        prefixes: &["model.", ""],
        layers: "layers.",
        counts: &LAYER_COUNTS,
        part: None,
        is_decoder: false,
        parts,
        held: None,
        head: Some((&["lm_head.weight"], false)),
        head_dim_follows: true,
    }
}

pub(super) static FAMILIES: &[Family] = &[
    llama_like(
        &["llama", "mistral", "granite"],
        &[EMBEDDING, ATTENTION, MAY_HAVE_BIASES, MLP, NORMS],
    ),
    llama_like(&["qwen2"], &[EMBEDDING, ATTENTION, HAS_BIASES, MLP, NORMS]),
    Family {
        head_dim_follows: false,
        ..llama_like(
            &["qwen3"],
            &[
                EMBEDDING,
                ATTENTION,
                MAY_HAVE_BIASES,
                HEAD_NORMS,
                MLP,
                NORMS,
            ],
        )
    },
    Family {
        head: Some((&["lm_head.weight"], true)),
        head_dim_follows: false,
        ..llama_like(
            &["gemma"],
            &[EMBEDDING, ATTENTION, MAY_HAVE_BIASES, MLP, NORMS],
        )
    },
    Family {
        head: Some((&["lm_head.weight"], true)),
        head_dim_follows: false,
        ..llama_like(
            &["gemma2"],
            &[
                EMBEDDING,
                ATTENTION,
                MAY_HAVE_BIASES,
                MLP,
                NORMS,
                FEEDFORWARD_NORMS,
            ],
        )
    },
    Family {
        head: Some((&["lm_head.weight"], true)),
        head_dim_follows: false,
        ..llama_like(&["gemma3_text"], GEMMA3)
    },
    llama_like(
        &["phi3"],
        &[
            EMBEDDING,
            NORMS,
            "layers.*.self_attn.qkv_proj.weight QKK H\nlayers.*.self_attn.o_proj.weight H Q\n\
             layers.*.mlp.gate_up_proj.weight II H\nlayers.*.mlp.down_proj.weight H I",
        ],
    ),
    llama_like(
        &["olmo2"],
        &[
            EMBEDDING,
            ATTENTION,
            MAY_HAVE_BIASES,
            MLP,
            "layers.*.self_attn.q_norm.weight Q\nlayers.*.self_attn.k_norm.weight K\n\
             layers.*.post_attention_layernorm.weight H\nlayers.*.post_feedforward_layernorm.weight H",
        ],
    ),
    Family {
        held: Some(&[
            EMBEDDING,
            ATTENTION,
            NORMS,
            "layers.*.mlp.gate.weight E H\nlayers.*.mlp.experts.gate_up_proj E II H\n\
             layers.*.mlp.experts.down_proj E H I",
        ]),
        ..llama_like(
            &["mixtral"],
            &[
                EMBEDDING,
                ATTENTION,
                NORMS,
                "layers.*.block_sparse_moe.gate.weight E H\nlayers.*.block_sparse_moe.experts.#.w1.weight I H\n\
                 layers.*.block_sparse_moe.experts.#.w2.weight H I\n\
                 layers.*.block_sparse_moe.experts.#.w3.weight I H",
            ],
        )
    },
    Family {
        held: Some(&[
            EMBEDDING,
            ATTENTION,
            MAY_HAVE_BIASES,
            MLP,
            NORMS,
            HELD,
            SHARED,
        ]),
        ..llama_like(
            &["qwen2_moe"],
            &[
                EMBEDDING,
                ATTENTION,
                MAY_HAVE_BIASES,
                MLP,
                NORMS,
                EXPERTS,
                SHARED,
            ],
        )
    },
    Family {
        held: Some(&[
            EMBEDDING,
            ATTENTION,
            MAY_HAVE_BIASES,
            HEAD_NORMS,
            MLP,
            NORMS,
            HELD,
        ]),
        head_dim_follows: false,
        ..llama_like(
            &["qwen3_moe"],
            &[
                EMBEDDING,
                ATTENTION,
                MAY_HAVE_BIASES,
                HEAD_NORMS,
                MLP,
                NORMS,
                EXPERTS,
            ],
        )
    },
    Family {
        held: Some(&[EMBEDDING, MLP, NORMS, HELD, DEEPSEEK]),
        ..llama_like(
            &["deepseek_v2", "deepseek_v3"],
            &[EMBEDDING, MLP, NORMS, EXPERTS, DEEPSEEK],
        )
    },
    // Families of several bodies: one entry for each.
    Family {
        prefixes: &["transformer.", ""],
        layers: "encoder.block.",
        head: Some((&["lm_head.weight"], true)),
        head_dim_follows: false,
        ..llama_like(&["t5", "mt5"], &[T5_ENCODER])
    },
    Family {
        prefixes: &["transformer.", ""],
        layers: "decoder.block.",
        counts: &["num_decoder_layers", "num_layers"],
        is_decoder: true,
        head: None,
        head_dim_follows: false,
        ..llama_like(&["t5", "mt5"], &[T5_DECODER])
    },
    Family {
        prefixes: &["language_model.model.", "model.language_model."],
        part: Some("text_config"),
        head: Some((&["lm_head.weight", "language_model.lm_head.weight"], true)),
        head_dim_follows: false,
        ..llama_like(&["gemma3"], GEMMA3)
    },
    Family {
        prefixes: &[
            "vision_tower.vision_model.",
            "vision_tower.",
            "model.vision_tower.vision_model.",
            "model.vision_tower.",
        ],
        layers: "encoder.layers.",
        part: Some("vision_config"),
        head: None,
        ..llama_like(&["gemma3"], &[SIGLIP])
    },
    Family {
        prefixes: &["multi_modal_projector.", "model.multi_modal_projector."],
        layers: "",
        part: Some("text_config"),
        head: None,
        ..llama_like(
            &["gemma3"],
            &["mm_input_projection_weight VH H\nmm_soft_emb_norm.weight VH"],
        )
    },
    Family {
        prefixes: &["gpt_neox.", ""],
        head: Some((&["embed_out.weight"], false)),
        ..llama_like(
            &["gpt_neox"],
            &[
                "embed_in.weight V H\nfinal_layer_norm.weight H\nfinal_layer_norm.bias H\n\
                 layers.*.input_layernorm.weight H\nlayers.*.input_layernorm.bias H\n\
                 layers.*.post_attention_layernorm.weight H\nlayers.*.post_attention_layernorm.bias H\n\
                 layers.*.attention.query_key_value.weight HHH H\n?layers.*.attention.query_key_value.bias HHH\n\
                 layers.*.attention.dense.weight H H\n?layers.*.attention.dense.bias H\n\
                 layers.*.mlp.dense_h_to_4h.weight I H\nlayers.*.mlp.dense_h_to_4h.bias I\n\
                 layers.*.mlp.dense_4h_to_h.weight H I\nlayers.*.mlp.dense_4h_to_h.bias H",
            ],
        )
    },
    Family {
        prefixes: &["transformer.", ""],
        layers: "h.",
        head: Some((&["lm_head.weight"], true)),
        ..llama_like(
            &["gpt2"],
            &[
                "wte.weight V H\nwpe.weight P H\nln_f.weight H\nln_f.bias H\nh.*.ln_1.weight H\nh.*.ln_1.bias H\n\
                 h.*.ln_2.weight H\nh.*.ln_2.bias H\nh.*.attn.c_attn.weight H HHH\nh.*.attn.c_attn.bias HHH\n\
                 h.*.attn.c_proj.weight H H\nh.*.attn.c_proj.bias H\nh.*.mlp.c_fc.weight H I\nh.*.mlp.c_fc.bias I\n\
                 h.*.mlp.c_proj.weight I H\nh.*.mlp.c_proj.bias H",
            ],
        )
    },
    Family {
        prefixes: &["bert.", ""],
        layers: "encoder.layer.",
        head: None,
        ..llama_like(&["bert"], &[BERT])
    },
    Family {
        prefixes: &["roberta.", ""],
        layers: "encoder.layer.",
        head: None,
        ..llama_like(&["roberta", "xlm-roberta", "camembert"], &[BERT])
    },
    Family {
        prefixes: &["distilbert.", ""],
        layers: "transformer.layer.",
        head: None,
        ..llama_like(
            &["distilbert"],
            &[
                "embeddings.word_embeddings.weight V H\nembeddings.position_embeddings.weight P H\n\
                 embeddings.LayerNorm.weight H\nembeddings.LayerNorm.bias H\n\
                 transformer.layer.*.attention.q_lin.weight H H\ntransformer.layer.*.attention.q_lin.bias H\n\
                 transformer.layer.*.attention.k_lin.weight H H\ntransformer.layer.*.attention.k_lin.bias H\n\
                 transformer.layer.*.attention.v_lin.weight H H\ntransformer.layer.*.attention.v_lin.bias H\n\
                 transformer.layer.*.attention.out_lin.weight H H\ntransformer.layer.*.attention.out_lin.bias H\n\
                 transformer.layer.*.sa_layer_norm.weight H\ntransformer.layer.*.sa_layer_norm.bias H\n\
                 transformer.layer.*.ffn.lin1.weight I H\ntransformer.layer.*.ffn.lin1.bias I\n\
                 transformer.layer.*.ffn.lin2.weight H I\ntransformer.layer.*.ffn.lin2.bias H\n\
                 transformer.layer.*.output_layer_norm.weight H\ntransformer.layer.*.output_layer_norm.bias H",
            ],
        )
    },
];

//! Which tensors each architecture has, and their shapes: a table, a family in a few lines.
//!
//! `*` is a layer, `#` an expert; sizes are named as in [`size`](super::structure). A line may start with `?`: such a
//! tensor may be left out, in all layers or in none; `-`: only layers without experts have it; `+`: only layers with
//! experts.

/// What a family's checkpoints hold.
pub(super) struct Family {
    /// The `model_type`s of config.json.
    pub(super) types: &'static [&'static str],
    /// What the names start with where a head is beside the body; without it the body was saved alone.
    pub(super) prefix: &'static str,
    /// What stands before a layer's number, after the prefix.
    pub(super) layers: &'static str,
    /// The tensors, in parts that families share: a line each, the name and its sizes.
    pub(super) parts: &'static [&'static str],
    /// The tensors where all experts of a layer are in two, as transformers 5 holds them.
    pub(super) held: Option<&'static [&'static str]>,
    /// The head, and whether it is the embedding where config.json says nothing.
    pub(super) head: Option<(&'static str, bool)>,
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

/// A family of the Llama kind.
const fn llama_like(types: &'static [&'static str], parts: &'static [&'static str]) -> Family {
    Family {
        types,
        prefix: "model.",
        layers: "layers.",
        parts,
        held: None,
        head: Some(("lm_head.weight", false)),
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
        head: Some(("lm_head.weight", true)),
        head_dim_follows: false,
        ..llama_like(
            &["gemma"],
            &[EMBEDDING, ATTENTION, MAY_HAVE_BIASES, MLP, NORMS],
        )
    },
    Family {
        head: Some(("lm_head.weight", true)),
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
        head: Some(("lm_head.weight", true)),
        head_dim_follows: false,
        ..llama_like(
            &["gemma3_text"],
            &[
                EMBEDDING,
                ATTENTION,
                MAY_HAVE_BIASES,
                HEAD_NORMS,
                MLP,
                NORMS,
                FEEDFORWARD_NORMS,
            ],
        )
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
    llama_like(
        &["deepseek_v2", "deepseek_v3"],
        &[
            EMBEDDING,
            MLP,
            NORMS,
            EXPERTS,
            "?layers.*.self_attn.q_proj.weight _ H\n?layers.*.self_attn.q_a_proj.weight _ H\n\
             ?layers.*.self_attn.q_a_layernorm.weight _\n?layers.*.self_attn.q_b_proj.weight _ _\n\
             ?layers.*.self_attn.q_a_proj.bias _\n?layers.*.self_attn.kv_a_proj_with_mqa.bias _\n\
             ?layers.*.self_attn.o_proj.bias H\n\
             layers.*.self_attn.kv_a_proj_with_mqa.weight _ H\nlayers.*.self_attn.kv_a_layernorm.weight _\n\
             layers.*.self_attn.kv_b_proj.weight _ _\nlayers.*.self_attn.o_proj.weight H _\n\
             ?+layers.*.mlp.gate.e_score_correction_bias E\n?+layers.*.mlp.shared_experts.gate_proj.weight _ H\n\
             ?+layers.*.mlp.shared_experts.up_proj.weight _ H\n?+layers.*.mlp.shared_experts.down_proj.weight H _",
        ],
    ),
    Family {
        prefix: "gpt_neox.",
        head: Some(("embed_out.weight", false)),
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
        prefix: "transformer.",
        layers: "h.",
        head: Some(("lm_head.weight", true)),
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
        prefix: "bert.",
        layers: "encoder.layer.",
        head: None,
        ..llama_like(&["bert"], &[BERT])
    },
    Family {
        prefix: "roberta.",
        layers: "encoder.layer.",
        head: None,
        ..llama_like(&["roberta", "xlm-roberta", "camembert"], &[BERT])
    },
    Family {
        prefix: "distilbert.",
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

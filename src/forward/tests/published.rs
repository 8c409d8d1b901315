//! Configs of published models, reduced to the fields that are read: none is refused, and each is understood.

use serde_json::{Value, json};

use super::super::activation::Activation;
use super::super::rope::Rope;
use super::super::settings::{QueryNorm, Routing, Settings};
use architecture::Fields;

fn read(config: &Value) -> (Settings, Rope) {
    let fields = Fields::new(config).unwrap();
    let settings = Settings::read(&fields).unwrap();
    let rope = Rope::new(&fields, &settings.rope, settings.head_dim).unwrap();
    (settings, rope)
}

#[test]
fn llama_3_2() {
    let (settings, _) = read(&json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131_072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500_000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128_256,
    }));
    assert!(settings.tied && !settings.qkv_bias);
    assert_eq!(
        (settings.heads, settings.key_heads, settings.head_dim),
        (32, 8, 64)
    );
}

#[test]
fn mistral_7b_sees_a_window_unless_it_says_null() {
    let mut config = json!({
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14_336,
        "max_position_embeddings": 32_768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "sliding_window": 1024, "tie_word_embeddings": false, "vocab_size": 32_000,
    });
    assert_eq!(read(&config).0.windows.of_layer(31), Some(1024));
    config["sliding_window"] = Value::Null;
    assert_eq!(read(&config).0.windows.of_layer(31), None);
    config.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(read(&config).0.windows.of_layer(31), Some(4096));
}

#[test]
fn qwen_2_5_has_biases_and_no_window_in_use() {
    let mut config = json!({
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18_944,
        "max_position_embeddings": 32_768, "max_window_layers": 28, "model_type": "qwen2",
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "sliding_window": 131_072, "tie_word_embeddings": false,
        "use_mrope": false, "use_sliding_window": false, "vocab_size": 152_064,
        // As its card recommends for long prompts.
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32_768, "type": "yarn"},
    });
    let (settings, _) = read(&config);
    assert!(settings.qkv_bias && !settings.output_bias);
    assert_eq!(settings.windows.of_layer(27), None);
    config["use_sliding_window"] = true.into();
    config["max_window_layers"] = 21.into();
    let windows = read(&config).0.windows;
    assert_eq!(
        [20, 21].map(|layer| windows.of_layer(layer)),
        [None, Some(131_072)]
    );
}

#[test]
fn qwen_3_and_its_mixture() {
    let mut config = json!({
        "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40_960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "output_router_logits": false, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1_000_000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": null, "tie_word_embeddings": false,
        "use_sliding_window": false, "vocab_size": 151_936,
    });
    let (settings, _) = read(&config);
    let mixture = settings.mixture.unwrap();
    assert_eq!(
        (mixture.experts, mixture.per_token, mixture.width),
        (128, 8, 768)
    );
    assert_eq!(mixture.routing, Routing::Softmax { renormalise: true });
    assert_eq!(
        (mixture.shared, settings.query_norm),
        (None, QueryNorm::Head)
    );
    config["model_type"] = "qwen3".into();
    assert!(read(&config).0.mixture.is_none());
}

#[test]
fn phi_3_128k_has_two_sets_of_frequencies() {
    let factors =
        |last: f64| -> Vec<f64> { (0..48).map(|i| 1.0 + f64::from(i) * last / 47.0).collect() };
    let mut config = json!({
        "attention_bias": false, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
        "max_position_embeddings": 131_072, "model_type": "phi3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_scaling": {"long_factor": factors(64.0), "short_factor": factors(2.0),
        "type": "longrope"}, "rope_theta": 10_000.0, "sliding_window": 262_144, "vocab_size": 32_064,
    });
    let (settings, _) = read(&config);
    assert!(settings.fused);
    // As transformers 5 writes it; Phi-4-mini rotates three quarters of a head.
    let mut scaling = config["rope_scaling"].take();
    scaling["rope_theta"] = 10_000.0.into();
    scaling["rope_type"] = "longrope".into();
    scaling["partial_rotary_factor"] = 0.75.into();
    scaling["original_max_position_embeddings"] = 4096.into();
    config["rope_parameters"] = scaling;
    config["num_attention_heads"] = 24.into();
    config["num_key_value_heads"] = 8.into();
    assert_eq!(read(&config).0.head_dim, 128);
}

#[test]
fn gemma_2b_approximates_whatever_it_says() {
    let mut config = json!({
        "attention_bias": false, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": null,
        "hidden_size": 2048, "intermediate_size": 16_384, "max_position_embeddings": 8192,
        "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 10_000.0, "vocab_size": 256_000,
    });
    for activation in [Value::Null, json!("gelu_pytorch_tanh"), json!("gelu")] {
        config["hidden_activation"] = activation;
        let (settings, _) = read(&config);
        assert_eq!(settings.activation, Activation::GeluTanh);
        assert!(settings.tied);
        assert_eq!(
            (settings.norm_offset, settings.embedding_scale),
            (1.0, 2048f32.sqrt())
        );
    }
}

#[test]
fn granite_has_multipliers_of_its_own() {
    let (settings, _) = read(&json!({
        "attention_bias": false, "attention_multiplier": 0.015_625, "embedding_multiplier": 12.0,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 512, "logits_scaling": 6.0,
        "max_position_embeddings": 4096, "model_type": "granitemoe", "num_attention_heads": 16,
        "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 10_000,
        "router_aux_loss_coef": 0.0, "tie_word_embeddings": true, "vocab_size": 49_155,
    }));
    assert_eq!(
        (settings.attention_scale, settings.logits_divisor),
        (0.015_625, 6.0)
    );
    assert_eq!(
        (settings.embedding_scale, settings.residual_scale),
        (12.0, 0.22)
    );
    assert_eq!(settings.mixture.unwrap().routing, Routing::TopSoftmax);
}

#[test]
fn glm_4_5_rotates_half_of_a_head() {
    let (settings, _) = read(&json!({
        "attention_bias": true, "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 10_944, "max_position_embeddings": 131_072,
        "model_type": "glm4_moe", "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 96, "num_experts_per_tok": 8,
        "num_hidden_layers": 46, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 1_000_000,
        "routed_scaling_factor": 1.0, "tie_word_embeddings": false, "topk_group": 1, "use_qk_norm": false,
        "vocab_size": 151_552,
    }));
    let mixture = settings.mixture.unwrap();
    assert_eq!(
        [0, 1, 45].map(|layer| mixture.layers.has(layer)),
        [false, true, true]
    );
    assert_eq!(
        (mixture.shared.unwrap().width, settings.query_norm),
        (1408, QueryNorm::None)
    );
    assert!(settings.qkv_bias && !settings.output_bias);
}

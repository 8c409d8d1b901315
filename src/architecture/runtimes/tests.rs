use serde_json::{Value, json};

use super::*;

fn found(runtime: &str, config: &Value, names: &[&str]) -> Vec<(Topic, Outcome)> {
    let served = Served {
        config,
        names: names.to_vec(),
        is_zero: None,
    };
    let version = Runtime::all().find(|known| known.version.starts_with(runtime));
    let misreadings = version.unwrap().misreadings(&served);
    let short = misreadings.iter().map(|found| (found.topic, found.outcome));
    short.collect()
}

/// A config with its class, sizes and what is added.
fn config(kind: &str, class: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": kind, "architectures": [class], "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 7, "intermediate_size": 96, "rope_theta": 1e4,
        "rms_norm_eps": 1e-6, "vocab_size": 320, "max_position_embeddings": 128, "head_dim": 16,
        "tie_word_embeddings": false
    });
    for (field, value) in more.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

#[test]
fn the_names_are_each_once() {
    assert_eq!(
        Runtime::names(),
        ["llama.cpp", "mlx", "vllm", "transformers"]
    );
    for runtime in Runtime::all() {
        for reading in runtime.readings {
            for kind in reading.types {
                let several = runtime
                    .readings
                    .iter()
                    .filter(|other| other.types.contains(kind));
                assert_eq!(several.count(), 1, "{} {kind}", runtime.version);
            }
        }
    }
}

#[test]
fn a_family_must_be_named_where_the_runtime_looks_for_it() {
    let all = ["llama.cpp", "mlx-lm", "vLLM", "transformers 5"];
    let of = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config("llama", "LlamaForCausalLM", json!({"hidden_act": "silu"}));
        change(config.as_object_mut().unwrap());
        all.map(|runtime| found(runtime, &config, &[]).first().copied())
    };
    let fails = Some((Topic::Family, Outcome::Fails));
    let silent = Some((Topic::Family, Outcome::Silent));
    let remove = |field: &'static str| of(&move |config| drop(config.remove(field)));
    assert_eq!(remove("model_type"), [None, fails, None, fails]);
    assert_eq!(remove("architectures"), [fails, None, fails, None]);
    for value in [
        json!(null),
        json!([]),
        json!([3]),
        json!("LlamaForCausalLM"),
    ] {
        let said = of(&|config| drop(config.insert("architectures".into(), value.clone())));
        assert_eq!(said, [fails, None, fails, None], "{value}");
    }
    let class = |class: &str| {
        let class = json!([class]);
        of(&move |config| drop(config.insert("architectures".into(), class.clone())))
    };
    assert_eq!(class("Qwen2ForCausalLM"), [silent, None, silent, None]);
    assert_eq!(class("LlamaModel"), [None; 4]);
    // Code of its own says what it is.
    let own = of(&|config| {
        config.remove("model_type");
        config.insert("auto_map".into(), json!({"AutoConfig": "x.Y"}));
    });
    assert_eq!(own, [None, fails, None, None]);
}

#[test]
fn a_family_that_a_runtime_does_not_have_is_the_only_finding() {
    let flex = config(
        "flex_olmo",
        "FlexOlmoForCausalLM",
        json!({"hidden_act": "gelu"}),
    );
    let lacks = [(Topic::Family, Outcome::Fails)];
    for runtime in ["llama.cpp", "mlx-lm", "transformers 4.56"] {
        let known = Runtime::all().any(|known| known.version.starts_with(runtime));
        if known {
            assert_eq!(found(runtime, &flex, &[]), lacks, "{runtime}");
        }
    }
    assert_eq!(found("transformers 5", &flex, &[]), []);
    assert_eq!(found("vLLM", &flex, &[]), []);
    let dots = config("dots1", "Dots1ForCausalLM", json!({}));
    assert_eq!(found("vLLM", &dots, &[]), lacks);
    let own = config(
        "own",
        "OwnForCausalLM",
        json!({"auto_map": {"AutoConfig": "own.Own"}}),
    );
    assert_eq!(found("transformers 5", &own, &[]), []);
    assert_eq!(found("llama.cpp", &own, &[]), lacks);
}

#[test]
fn activations_and_rope_are_told_where_a_runtime_computes_others() {
    let mixtral = |more| config("mixtral", "MixtralForCausalLM", more);
    let gelu = mixtral(json!({"hidden_act": "gelu_pytorch_tanh"}));
    let silent = (Topic::Activation, Outcome::Silent);
    assert_eq!(found("llama.cpp", &gelu, &[]), [silent]);
    assert_eq!(found("mlx-lm", &gelu, &[]), [silent]);
    assert_eq!(found("vLLM", &gelu, &[]), [silent]);
    let llama3 = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}});
    assert_eq!(found("llama.cpp", &mixtral(llama3.clone()), &[]), []);
    let unscaled = [(Topic::Rope, Outcome::Silent)];
    assert_eq!(found("mlx-lm", &mixtral(llama3.clone()), &[]), unscaled);
    // It counts for texts only that are longer than those of the training.
    let dynamic = mixtral(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}));
    assert_eq!(
        found("llama.cpp", &dynamic, &[]),
        [(Topic::Rope, Outcome::Slight)]
    );
    let granite = config("granitemoe", "GraniteMoeForCausalLM", llama3.clone());
    assert_eq!(
        found("llama.cpp", &granite, &[]),
        [(Topic::Rope, Outcome::Fails)]
    );
    let new =
        json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}});
    let mut new = config("llama", "LlamaForCausalLM", new);
    new.as_object_mut().unwrap().remove("rope_theta");
    for runtime in ["mlx-lm", "transformers 4"] {
        assert_eq!(found(runtime, &new, &[]), unscaled, "{runtime}");
    }
    let mut default = new.clone();
    default["rope_parameters"]["rope_theta"] = json!(1e4);
    for runtime in ["mlx-lm", "transformers 4"] {
        assert_eq!(found(runtime, &default, &[]), [], "{runtime}");
    }
    for runtime in ["llama.cpp", "transformers 5", "vLLM"] {
        assert_eq!(found(runtime, &new, &[]), [], "{runtime}");
    }
}

#[test]
fn layers_out_of_their_period_and_windows_are_told() {
    let kinds = |full: &[usize]| -> Vec<&str> {
        let kind = |layer| match full.contains(&layer) {
            true => "full_attention",
            false => "sliding_attention",
        };
        (0..7).map(kind).collect()
    };
    let gemma = |full: &[usize]| {
        let more =
            json!({"layer_types": kinds(full), "tie_word_embeddings": true, "sliding_window": 5});
        config("gemma3_text", "Gemma3ForCausalLM", more)
    };
    assert_eq!(found("llama.cpp", &gemma(&[5]), &[]), []);
    for runtime in ["llama.cpp", "mlx-lm"] {
        let layers = [(Topic::Layers, Outcome::Silent)];
        assert_eq!(found(runtime, &gemma(&[4]), &[]), layers, "{runtime}");
        // The language model of a larger one.
        let whole = json!({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
                           "text_config": gemma(&[4])});
        assert_eq!(found(runtime, &whole, &[]), layers, "{runtime}");
    }
    let mistral = |window: Value| {
        config(
            "mistral",
            "MistralForCausalLM",
            json!({"sliding_window": window}),
        )
    };
    for runtime in ["llama.cpp", "mlx-lm"] {
        let window = [(Topic::Window, Outcome::Slight)];
        assert_eq!(found(runtime, &mistral(json!(5)), &[]), window, "{runtime}");
        // No text is longer than this, and null means none.
        for none in [json!(128), Value::Null] {
            assert_eq!(found(runtime, &mistral(none), &[]), [], "{runtime}");
        }
    }
}

#[test]
fn experts_heads_and_names_are_told() {
    let qwen = |more| {
        let mut config = config(
            "qwen2_moe",
            "Qwen2MoeForCausalLM",
            json!({
                "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32, "norm_topk_prob": true, "decoder_sparse_step": 1
            }),
        );
        for (field, value) in json!(more).as_object().unwrap() {
            config[field] = value.clone();
        }
        config
    };
    let biases = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ];
    let weighed = (Topic::Experts, Outcome::Silent);
    for runtime in ["llama.cpp", "mlx-lm"] {
        assert_eq!(
            found(runtime, &qwen(json!({})), &biases),
            [weighed],
            "{runtime}"
        );
        // All experts sum to one anyway.
        assert_eq!(
            found(runtime, &qwen(json!({"num_experts_per_tok": 4})), &biases),
            [],
            "{runtime}"
        );
        let tied = qwen(json!({"num_experts_per_tok": 4, "tie_word_embeddings": true}));
        assert_eq!(
            found(runtime, &tied, &biases),
            [(Topic::Head, Outcome::Fails)],
            "{runtime}"
        );
        let dense = qwen(json!({"num_experts_per_tok": 4, "mlp_only_layers": [1]}));
        assert_eq!(
            found(runtime, &dense, &biases),
            [(Topic::Layers, Outcome::Fails)],
            "{runtime}"
        );
    }
    let all = qwen(json!({"num_experts_per_tok": 4}));
    let without = [(Topic::Attention, Outcome::Fails)];
    assert_eq!(found("mlx-lm", &all, &biases[..1]), without);
    assert_eq!(found("vLLM", &all, &biases[..1]), without);
    assert_eq!(found("llama.cpp", &all, &biases[..1]), []);
    let gate = ["model.layers.0.mlp.shared_expert_gate.weight"];
    let served = |zero: &'static dyn Fn(usize) -> bool| {
        let config: &'static Value = Box::leak(Box::new(all.clone()));
        Served {
            config,
            names: gate.to_vec(),
            is_zero: Some(zero),
        }
    };
    let llama_cpp = Runtime::all().next().unwrap();
    let topics: Vec<Topic> = llama_cpp
        .misreadings(&served(&|_| true))
        .iter()
        .map(|found| found.topic)
        .collect();
    assert_eq!(topics, [Topic::Experts]);
    assert_eq!(llama_cpp.misreadings(&served(&|_| false)), []);
    let mixtral = config(
        "mixtral",
        "MixtralForCausalLM",
        json!({"num_local_experts": 4}),
    );
    let fused = ["model.layers.0.mlp.experts.gate_up_proj"];
    for runtime in ["llama.cpp", "mlx-lm", "transformers 4"] {
        assert_eq!(
            found(runtime, &mixtral, &fused),
            [(Topic::Tensors, Outcome::Fails)],
            "{runtime}"
        );
    }
    assert_eq!(found("transformers 5", &mixtral, &fused), []);
}

#[test]
fn what_a_loader_wants_is_told_by_its_field() {
    let granite = config("granitemoe", "GraniteMoeForCausalLM", json!({}));
    let served = Served {
        config: &granite,
        names: Vec::new(),
        is_zero: None,
    };
    let mlx = Runtime::all()
        .find(|runtime| runtime.name == "mlx")
        .unwrap();
    let [wanted] = &mlx.misreadings(&served)[..] else {
        panic!()
    };
    assert_eq!(
        (wanted.topic, wanted.outcome),
        (Topic::Config, Outcome::Fails)
    );
    assert!(
        wanted.means.contains("`attention_multiplier`"),
        "{}",
        wanted.means
    );
    let lists = |more| config("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", more);
    let topics = |config: &Value| -> Vec<Topic> {
        found("llama.cpp", config, &[])
            .into_iter()
            .map(|(topic, _)| topic)
            .collect()
    };
    let number = lists(json!({"moe_topk": 2}));
    assert_eq!(topics(&number), [Topic::Config, Topic::Tokenizer]);
    let each = lists(json!({
        "moe_topk": [2, 2], "moe_intermediate_size": [96, 96], "num_shared_expert": [1, 1]
    }));
    assert_eq!(topics(&each), [Topic::Tokenizer]);
}

//! Configs and tensors that lie: each leads to an error that names the fault, never to a panic or a large allocation.

use serde_json::{Value, json};

use super::super::{Decoder, ForwardError};
use super::Held;
use super::whole::{config, held};

fn message(config: &Value, held: &Held) -> String {
    match Decoder::new(config, &held.model()) {
        Ok(_) => panic!("expected an error from {config}"),
        Err(error) => errors::in_one_line(&error),
    }
}

/// The config with one field changed, or removed if the value is null.
fn with(field: &str, value: Value) -> Value {
    let mut config = config();
    let fields = config.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(field),
        value => fields.insert(field.into(), value),
    };
    config
}

#[test]
fn the_whole_may_be_anything() {
    for config in [json!(null), json!([]), json!(3), json!("x")] {
        assert!(message(&config, &held()).contains("expected an object"));
    }
    assert!(message(&json!({}), &held()).contains("can't run model_type ``"));
    let other = message(&with("model_type", json!("gemma3_text")), &held());
    assert!(
        other.contains("can't run model_type `gemma3_text`, expected one of llama, "),
        "{other}"
    );
}

#[test]
fn fields_that_can_t_be_are_named() {
    let cases = [
        ("hidden_size", Value::Null),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(-4)),
        ("hidden_size", json!(1.5)),
        ("hidden_size", json!("12")),
        ("hidden_size", json!(u64::MAX)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", Value::Null),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("vocab_size", json!([])),
        ("rms_norm_eps", json!(-1e-6)),
        ("rms_norm_eps", Value::Null),
        ("hidden_act", json!("relu")),
        ("hidden_act", json!(7)),
        ("attention_bias", json!("yes")),
        ("sliding_window", json!(0)),
        ("num_experts", json!(0)),
        ("num_experts_per_tok", json!(4)),
        ("num_experts_per_tok", json!(0)),
        ("num_local_experts", json!(4)),
        ("decoder_sparse_step", json!(0)),
        ("mlp_only_layers", json!(["1"])),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(1.0)),
        ("rope_theta", json!("large")),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_scaling", json!([])),
        ("attn_logit_softcapping", json!(30.0)),
        ("clip_qkv", json!(8.0)),
        ("use_bidirectional_attention", json!(true)),
        ("position_embedding_type", json!("nope")),
    ];
    for (field, value) in cases {
        let found = message(&with(field, value.clone()), &held());
        let named = format!("config.json: `{field}`: expected ");
        assert!(found.starts_with(&named), "{field} {value}: {found}");
        assert!(found.contains("; hint: "), "{found}");
    }
}

#[test]
fn positions_that_are_not_understood_are_refused() {
    let cases = [
        (json!({"type": "mrope"}), "rope_scaling.type"),
        (json!({"rope_type": "longrope"}), "rope_scaling.rope_type"),
        (json!({"rope_type": "dynamic"}), "max_position_embeddings"),
        (json!({"rope_type": "linear"}), "rope_scaling.factor"),
        (
            json!({"rope_type": "linear", "factor": 0}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_type": "linear", "factor": 2, "mrope_section": [1]}),
            "rope_scaling.mrope_section",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8}),
            "rope_scaling.low_freq_factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "rope_scaling.low_freq_factor",
        ),
        (json!({"rope_type": "yarn"}), "max_position_embeddings"),
        (
            json!({"rope_type": "yarn", "original_max_position_embeddings": 0}),
            "rope_scaling.original_max_position_embeddings",
        ),
        (json!({"rope_theta": 51.0}), "rope_theta"),
        (
            json!({"full_attention": {"rope_theta": 50.0}}),
            "rope_scaling",
        ),
    ];
    for (scaling, field) in cases {
        let found = message(&with("rope_scaling", scaling.clone()), &held());
        assert!(
            found.starts_with(&format!("config.json: `{field}`: ")),
            "{scaling}: {found}"
        );
    }
    // Both spellings, one of which says more.
    let mut config = with(
        "rope_scaling",
        json!({"rope_type": "linear", "factor": 2.0}),
    );
    config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 50.0});
    assert!(message(&config, &held()).contains("transformers 4 and 5 would disagree"));
    config["rope_parameters"] = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0});
    assert!(Decoder::new(&config, &held().model()).is_ok());
}

#[test]
fn odd_heads_can_t_be_rotated() {
    let mut held = held();
    let mut config = with("head_dim", json!(3));
    config["num_attention_heads"] = json!(8);
    config["num_key_value_heads"] = json!(4);
    for layer in 0..3 {
        for norm in ["q_norm", "k_norm"] {
            held.add(
                &format!("model.layers.{layer}.self_attn.{norm}.weight"),
                &[3],
                1.0,
                0.1,
            );
        }
    }
    assert!(message(&config, &held).contains("`head_dim`: expected an even number"));
}

/// Each claim is far larger than what could be allocated; the first tensor that contradicts it ends the run.
#[test]
fn huge_claims_reserve_nothing() {
    for field in [
        "num_hidden_layers",
        "vocab_size",
        "head_dim",
        "moe_intermediate_size",
        "num_experts",
        "hidden_size",
        "intermediate_size",
    ] {
        let found = message(&with(field, json!(1u64 << 31)), &held());
        assert!(found.starts_with("tensor `model."), "{field}: {found}");
    }
    let mut config = with("head_dim", json!(1u64 << 31));
    config["num_attention_heads"] = json!(1u64 << 31);
    config["num_key_value_heads"] = json!(1u64 << 31);
    let found = message(&config, &held());
    assert!(found.starts_with("tensor `model."), "{found}");
}

#[test]
fn tensors_must_be_there_and_fit() {
    for name in held()
        .0
        .keys()
        .filter(|name| *name != "lm_head.weight" && *name != "model.norm.weight")
    {
        let mut lacking = held();
        lacking.0.remove(name);
        let found = message(&config(), &lacking);
        assert!(
            found.starts_with(&format!("tensor `{name}` is missing")),
            "{found}"
        );

        let shape = &held().0[name].0;
        for other in [
            vec![],
            vec![0],
            vec![1; 9],
            [&[1], shape.as_slice()].concat(),
            vec![shape[0] + 1],
        ] {
            let mut wrong = held();
            wrong.add(name, &other, 0.0, 1.0);
            let found = message(&config(), &wrong);
            assert!(
                found.starts_with(&format!("tensor `{name}`: expected shape {shape:?}")),
                "{found}"
            );
        }
    }
    // The head's tensors are only looked for when they are needed.
    for name in ["lm_head.weight", "model.norm.weight"] {
        let mut lacking = held();
        lacking.0.remove(name);
        let (config, model) = (config(), lacking.model());
        let error = Decoder::new(&config, &model).unwrap().logits(&[vec![1]], 1);
        assert!(error.unwrap_err().to_string().contains(name));
    }
}

#[test]
fn tensors_of_which_the_config_says_nothing_are_refused() {
    for (name, length) in [
        ("self_attn.q_proj", 24),
        ("self_attn.o_proj", 12),
        ("mlp.down_proj", 12),
    ] {
        let mut more = held();
        let name = format!("model.layers.0.{name}.bias");
        more.add(&name, &[length], 0.0, 1.0);
        assert!(
            matches!(Decoder::new(&config(), &more.model()), Err(ForwardError::Surplus { tensor }) if tensor == name)
        );
    }
    // A llama has no norms of queries.
    let mut config = with("model_type", json!("llama"));
    config["mlp_only_layers"] = Value::Null;
    let found = message(&config, &held());
    assert!(
        found.contains("model.layers.0.self_attn.q_norm.weight` is there"),
        "{found}"
    );
}

/// Weights that are not numbers, or that end early.
#[test]
fn a_checkpoint_reads_within_its_tensors() {
    use super::fixtures::{safetensors, write};
    use crate::weights::{read, shape};
    use checkpoint::{Checkpoint, Location};

    let folder = tempfile::tempdir().unwrap();
    let bytes = safetensors(&[
        ("half", "BF16", &[2, 2]),
        ("whole", "I64", &[2]),
        ("none", "F32", &[0]),
    ]);
    write(&folder.path().join("model.safetensors"), &bytes);
    let checkpoint = Checkpoint::open("m", &Location::local(folder.path())).unwrap();
    assert_eq!(shape(&checkpoint, "half"), Some([2, 2].as_slice()));
    assert_eq!(shape(&checkpoint, "other"), None);
    let mut out = [9f32; 2];
    read(&checkpoint, "half", 2, &mut out).unwrap();
    assert_eq!(
        out,
        [[4, 5], [6, 7]].map(|[low, high]: [u32; 2]| f32::from_bits((low | high << 8) << 16))
    );
    read(&checkpoint, "none", 0, &mut []).unwrap();
    for (name, start) in [
        ("half", 3),
        ("half", usize::MAX),
        ("whole", 0),
        ("other", 0),
        ("none", 0),
    ] {
        let error = read(&checkpoint, name, start, &mut out).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("tensor `{name}` can't be read: "))
        );
    }
}

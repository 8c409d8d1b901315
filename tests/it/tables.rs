//! `weld check` against its tables of architectures: families of several bodies, and what it holds against models
//! that no table has.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, Spec, floats, noise, read_json, without};

/// Copies a model of the goldens to `m`.
pub(crate) fn golden(bench: &Bench, model: &str) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/golden/models");
    for file in ["config.json", "model.safetensors"] {
        let bytes = fs::read(models.join(model).join(file)).unwrap();
        bench.file(&format!("m/{file}"), bytes);
    }
}

fn specs(shapes: Vec<(String, Vec<usize>)>) -> Vec<Spec> {
    let spec = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let values: Vec<f64> = match name.contains("norm") {
            true => vec![1.0; count],
            false => noise(seed, count).collect(),
        };
        floats(&name, Dtype::F32, &shape, values)
    };
    (0..).zip(shapes).map(spec).collect()
}

/// The tensors of a T5 of four layers in each half.
fn t5_specs(gated: bool, tied: bool) -> Vec<Spec> {
    let mut shapes = vec![("shared.weight".to_owned(), vec![24, 16])];
    for half in ["encoder", "decoder"] {
        let mut add = |name: String, shape: &[usize]| {
            shapes.push((format!("{half}.{name}"), shape.to_vec()));
        };
        let bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        add(bias.to_owned(), &[8, 3]);
        add("final_layer_norm.weight".to_owned(), &[16]);
        for block in 0..4 {
            let attentions: &[&str] = match half {
                "encoder" => &["SelfAttention"],
                _ => &["SelfAttention", "EncDecAttention"],
            };
            for (layer, attention) in attentions.iter().enumerate() {
                let layer = format!("block.{block}.layer.{layer}");
                for matrix in ["q", "k", "v"] {
                    add(format!("{layer}.{attention}.{matrix}.weight"), &[12, 16]);
                }
                add(format!("{layer}.{attention}.o.weight"), &[16, 12]);
                add(format!("{layer}.layer_norm.weight"), &[16]);
            }
            let layer = format!("block.{block}.layer.{}", attentions.len());
            let into: &[&str] = if gated { &["wi_0", "wi_1"] } else { &["wi"] };
            for matrix in into {
                add(format!("{layer}.DenseReluDense.{matrix}.weight"), &[20, 16]);
            }
            add(format!("{layer}.DenseReluDense.wo.weight"), &[16, 20]);
            add(format!("{layer}.layer_norm.weight"), &[16]);
        }
    }
    if !tied {
        shapes.push(("lm_head.weight".to_owned(), vec![24, 16]));
    }
    specs(shapes)
}

fn t5_config(gated: bool, tied: bool) -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 20,
        "num_heads": 3, "num_layers": 4, "num_decoder_layers": 4, "relative_attention_num_buckets": 8,
        "vocab_size": 24, "feed_forward_proj": if gated { "gated-gelu" } else { "relu" },
        "tie_word_embeddings": tied, "is_encoder_decoder": true, "eos_token_id": 1, "pad_token_id": 0
    })
}

/// A T5 in `m`.
pub(crate) fn t5(gated: bool, tied: bool) -> Bench {
    let bench = Bench::new();
    bench.model("m", &t5_config(gated, tied), &t5_specs(gated, tied));
    bench
}

/// The findings on `m`: id, severity and tensor or field.
fn found(bench: &Bench) -> Vec<[String; 3]> {
    let outcome = bench.weld(&["check", "m", "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    let told = findings.map(|finding| {
        let place = ["tensor", "field"].map(|key| text(&finding[key])).concat();
        [text(&finding["check"]), text(&finding["severity"]), place]
    });
    told.collect()
}

/// The ids of the findings on `m`, each once.
fn ids(bench: &Bench) -> Vec<String> {
    let mut ids: Vec<String> = found(bench).into_iter().map(|[id, ..]| id).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Sees that one more of each of these fields is found; a dot leads into a part of the config.
fn one_more(bench: &Bench, fields: &[(&str, &str)]) {
    let path = bench.path("m/config.json");
    let before = read_json(&path);
    for (field, id) in fields {
        let mut config = before.clone();
        let pointer = format!("/{}", field.replace('.', "/"));
        let value = config
            .pointer_mut(&pointer)
            .unwrap_or_else(|| panic!("no {field}"));
        *value = json!(value.as_u64().unwrap() + 1);
        fs::write(&path, config.to_string()).unwrap();
        assert_eq!(ids(bench), [*id], "{field}");
    }
    fs::write(&path, before.to_string()).unwrap();
}

#[test]
fn a_t5_has_two_halves() {
    for (gated, tied) in [(false, true), (true, true), (true, false), (false, false)] {
        assert_eq!(found(&t5(gated, tied)), [[""; 3]; 0], "{gated} {tied}");
        // Every tensor is missed where it is lost; one of a layer, and one of all.
        for lost in t5_specs(gated, tied) {
            let bench = Bench::new();
            let left = without(t5_specs(gated, tied), &lost.name);
            bench.model("m", &t5_config(gated, tied), &left);
            let id = match lost.name.as_str() {
                "lm_head.weight" => "structure.missing-head",
                _ => "structure.missing-tensor",
            };
            assert_eq!(found(&bench), [[id, "error", &lost.name]], "{gated} {tied}");
        }
    }
    let kind = "DenseReluDense.wi_1.weight";
    let mut left = t5_specs(true, true);
    left.retain(|spec| !spec.name.ends_with(kind));
    let bench = Bench::new();
    bench.model("m", &t5_config(true, true), &left);
    assert_eq!(found(&bench).len(), 8, "of all layers");
    one_more(
        &t5(true, false),
        &[
            ("d_model", "structure.shape"),
            ("d_kv", "structure.shape"),
            ("d_ff", "structure.shape"),
            ("num_heads", "structure.shape"),
            ("relative_attention_num_buckets", "structure.shape"),
            ("num_layers", "structure.layer-count"),
            ("num_decoder_layers", "structure.layer-count"),
            ("vocab_size", "structure.vocab-size"),
        ],
    );
}

/// What an encoder was saved as alone needs no decoder.
#[test]
fn the_encoder_of_a_t5_may_stand_alone() {
    let mut config = t5_config(false, true);
    config["architectures"] = json!(["T5EncoderModel"]);
    let mut specs = t5_specs(false, true);
    specs.retain(|spec| !spec.name.starts_with("decoder."));
    let bench = Bench::new();
    bench.model("m", &config, &specs);
    assert_eq!(found(&bench), [[""; 3]; 0]);
    config["architectures"] = json!(["T5Model"]);
    bench.model("m", &config, &specs);
    assert!(ids(&bench).contains(&"structure.missing-tensor".to_owned()));
}

#[test]
fn a_gemma_3_has_a_language_model_a_tower_and_what_joins_them() {
    let bench = Bench::new();
    golden(&bench, "gemma3-vision-a-bf16");
    assert_eq!(found(&bench), [[""; 3]; 0]);
    let tensors = crate::fixtures::load(&bench.path("m/model.safetensors"));
    for (name, _) in &tensors {
        let left: Vec<Spec> = tensors
            .iter()
            .filter(|(other, _)| other != name)
            .map(|(name, loaded)| Spec {
                name: name.clone(),
                dtype: loaded.dtype,
                shape: loaded.shape.clone(),
                bytes: loaded.bytes.clone(),
            })
            .collect();
        bench.tensors("m/model.safetensors", &left);
        let told = found(&bench);
        match name.contains("vision_tower.head.") {
            // The table lets the head of the tower be left out.
            true => assert_eq!(told, [[""; 3]; 0], "{name}"),
            false => assert_eq!(told, [["structure.missing-tensor", "error", name]]),
        }
    }
    golden(&bench, "gemma3-vision-a-bf16");
    one_more(
        &bench,
        &[
            ("text_config.hidden_size", "structure.shape"),
            ("text_config.intermediate_size", "structure.shape"),
            ("text_config.head_dim", "structure.shape"),
            ("text_config.num_attention_heads", "structure.shape"),
            ("text_config.num_key_value_heads", "structure.shape"),
            ("text_config.num_hidden_layers", "structure.layer-count"),
            ("text_config.vocab_size", "structure.vocab-size"),
            ("vision_config.hidden_size", "structure.shape"),
            ("vision_config.intermediate_size", "structure.shape"),
            ("vision_config.num_hidden_layers", "structure.layer-count"),
        ],
    );
}

#[test]
fn latent_attention_has_the_sizes_of_the_config() {
    let bench = Bench::new();
    golden(&bench, "deepseek-v3-a-bf16");
    // transformers announces a further layer, and saves none.
    let further = ["structure.missing-mtp", "note", "num_nextn_predict_layers"];
    let path = bench.path("m/config.json");
    assert_eq!(found(&bench), [further.map(String::from)]);
    let mut config = read_json(&path);
    config["num_nextn_predict_layers"] = json!(0);
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(found(&bench), [[""; 3]; 0]);
    one_more(
        &bench,
        &[
            ("q_lora_rank", "structure.shape"),
            ("kv_lora_rank", "structure.shape"),
            ("qk_nope_head_dim", "structure.shape"),
            ("qk_rope_head_dim", "structure.shape"),
            ("v_head_dim", "structure.shape"),
            ("num_attention_heads", "structure.shape"),
            ("moe_intermediate_size", "structure.shape"),
            ("n_shared_experts", "structure.shape"),
            ("n_routed_experts", "structure.expert-count"),
        ],
    );
    // Without a rank, one matrix makes the queries.
    let mut config = read_json(&bench.path("m/config.json"));
    config["q_lora_rank"] = Value::Null;
    fs::write(bench.path("m/config.json"), config.to_string()).unwrap();
    let told = found(&bench);
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(
        told.iter().all(
            |[id, _, name]| id == "structure.missing-tensor" && name.ends_with("q_proj.weight")
        )
    );
}

/// Layers of a family that no table has: `lacks` says which have which tensor.
fn unknown(layers: usize, lacks: impl Fn(usize, &str) -> bool) -> Vec<[String; 3]> {
    unknown_with(layers, json!({}), &[], lacks)
}

/// The same with more fields in the config, and with tensors that one layer alone has.
fn unknown_with(
    layers: usize,
    fields: Value,
    own: &[(usize, &str)],
    lacks: impl Fn(usize, &str) -> bool,
) -> Vec<[String; 3]> {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![24, 16])];
    for layer in 0..layers {
        for (name, shape) in [
            ("attn_norm.weight", vec![16]),
            ("attn.in.weight", vec![16, 16]),
            ("attn.out.weight", vec![16, 16]),
            ("mlp.up.weight", vec![20, 16]),
            ("mlp.down.weight", vec![16, 20]),
        ] {
            if !lacks(layer, name) {
                shapes.push((format!("model.layers.{layer}.{name}"), shape));
            }
        }
    }
    let own = own
        .iter()
        .map(|(layer, name)| (format!("model.layers.{layer}.{name}"), vec![16]));
    shapes.extend(own);
    let bench = Bench::new();
    let mut config = json!({"model_type": "unheard_of", "num_hidden_layers": layers, "hidden_size": 16, "vocab_size": 24});
    let fields = fields.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(fields);
    bench.model("m", &config, &specs(shapes));
    found(&bench)
}

#[test]
fn layers_at_the_ends_and_by_turns_may_be_built_otherwise() {
    let none: [[&str; 3]; 0] = [];
    assert_eq!(unknown(6, |_, _| false), none);
    assert_eq!(
        unknown(6, |layer, name| layer == 0 && name == "attn_norm.weight"),
        none,
        "the first"
    );
    assert_eq!(
        unknown(6, |layer, name| layer == 5 && name.starts_with("mlp.")),
        none,
        "a whole module"
    );
    assert_eq!(
        unknown(6, |layer, name| layer >= 4 && name.starts_with("attn.")),
        none,
        "two of them"
    );
    assert_eq!(
        unknown(6, |layer, name| layer % 2 == 1 && name == "attn.in.weight"),
        none,
        "by turns"
    );
    let uneven = |layer: usize| {
        let name = format!("model.layers.{layer}.attn.in.weight");
        [
            "structure.uneven-layers".to_owned(),
            "warning".to_owned(),
            name,
        ]
    };
    let lost = |layers: &[usize]| {
        unknown(6, |layer, name| {
            layers.contains(&layer) && name == "attn.in.weight"
        })
    };
    assert_eq!(lost(&[5]), [uneven(5)]);
    assert_eq!(lost(&[2, 5]), [uneven(2), uneven(5)]);
    assert_eq!(lost(&[3]), [uneven(3)]);
}

#[test]
fn a_layer_that_the_config_gives_a_kind_of_its_own_may_be_built_otherwise() {
    let lost = |fields: Value, own: &[(usize, &str)]| {
        let lacks = |layer, name: &str| layer == 3 && name.starts_with("attn.");
        unknown_with(6, fields, own, lacks)
    };
    assert_eq!(lost(json!({}), &[]).len(), 2, "nothing explains it");
    let (a, b) = ("wide", "narrow");
    for fields in [
        json!({"layer_types": [a, a, a, b, a, a]}),
        json!({"text_config": {"layer_types": [a, a, a, b, a, a]}}),
        json!({"block_types": [a, a, a, b]}),
        json!({"compress_ratios": [4, 4, 4, 0, 4, 4, 4]}),
        json!({"wide_idxs": [0, 1, 2, 4, 5]}),
    ] {
        assert_eq!(lost(fields.clone(), &[]), [[""; 3]; 0], "{fields}");
    }
    // Lists that say nothing of this layer, or call it like others, explain nothing.
    for fields in [
        json!({"layer_types": [a, a, b, a, a, a]}),
        json!({"layer_types": [a, b, a, b, a, b]}),
        json!({"layer_types": [a, a, a, a, a, a]}),
        json!({"eos_token_id": [1, 3]}),
        json!({"sparse_step": 3}),
    ] {
        assert_eq!(lost(fields.clone(), &[]).len(), 2, "{fields}");
    }
    // The last of six has no table of hashes, which the config gives the first five.
    let hashed = |first: usize| {
        unknown_with(6, json!({"num_hash_layers": first}), &[], |layer, name| {
            layer == 5 && name == "attn.in.weight"
        })
    };
    assert_eq!(hashed(5), [[""; 3]; 0]);
    assert_eq!(hashed(4).len(), 1);
    // One in so many layers has experts in place of what the others have.
    let own = [(3, "router.weight")];
    assert_eq!(lost(json!({"encoder_sparse_step": 4}), &own), [[""; 3]; 0]);
    assert_eq!(lost(json!({}), &own).len(), 2);
}

/// The stages of a neck have numbers like layers, and widths of their own.
#[test]
fn stages_of_different_widths_are_no_layers() {
    let stages = |width: usize| {
        let shapes = (0..4).flat_map(|stage| {
            let of = |name: &str| format!("neck.layers.{stage}.{name}.weight");
            let wide = 8 * (1 + stage * width);
            let resize = (stage != 2).then(|| (of("resize"), vec![8, 8]));
            resize
                .into_iter()
                .chain([(of("projection"), vec![wide, 16])])
        });
        let bench = Bench::new();
        let config = json!({"model_type": "unheard_of"});
        bench.model("m", &config, &specs(shapes.collect()));
        ids(&bench)
    };
    assert_eq!(stages(1), [""; 0]);
    assert_eq!(stages(0), ["structure.uneven-layers"]);
}

/// A draft has the type of the model that it drafts for, and few of its tensors.
#[test]
fn drafts_for_speculative_decoding_are_no_broken_models() {
    let bench = Bench::new();
    let shapes = vec![
        ("midlayer.self_attn.q_proj.weight".to_owned(), vec![16, 32]),
        ("midlayer.hidden_norm.weight".to_owned(), vec![16]),
        ("fc.weight".to_owned(), vec![16, 48]),
        ("norm.weight".to_owned(), vec![16]),
        ("lm_head.weight".to_owned(), vec![8, 16]),
    ];
    let config = |class: &str, more: Value| {
        let mut config = json!({
            "architectures": [class], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 16,
            "vocab_size": 24, "num_attention_heads": 2, "intermediate_size": 20,
        });
        let more = more.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(more);
        config
    };
    for config in [
        config("LlamaForCausalLMEagle3", json!({})),
        config("LlamaForCausalLM", json!({"draft_vocab_size": 8})),
        config("LlamaForCausalLM", json!({})),
    ] {
        bench.model("m", &config, &specs(shapes.clone()));
        assert_eq!(found(&bench), [[""; 3]; 0], "{config}");
    }
    let without_join: Vec<_> = shapes
        .into_iter()
        .filter(|(name, _)| name != "fc.weight")
        .collect();
    bench.model(
        "m",
        &config("LlamaForCausalLM", json!({})),
        &specs(without_join),
    );
    assert!(!found(&bench).is_empty());
}

/// What only a table can tell is said to be skipped where there is none; it leaves no verdict open.
#[test]
fn what_no_table_can_tell_is_said() {
    let bench = Bench::new();
    let shapes = vec![("model.embed_tokens.weight".to_owned(), vec![24, 16])];
    let skipped = |config: Value| {
        bench.model("m", &config, &specs(shapes.clone()));
        let outcome = bench.weld(&["check", "m", "--format", "json", "-q"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stdout);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        report["skipped"].clone()
    };
    let unheard_of = skipped(json!({"model_type": "unheard_of"}));
    let of = |check: &str| {
        let mut all = unheard_of.as_array().unwrap().iter();
        all.find(|skipped| skipped["check"] == check).cloned()
    };
    for check in [
        "missing-tensor",
        "shape",
        "expert-count",
        "unexpected-tensor",
        "missing-head",
    ] {
        let skipped = of(&format!("structure.{check}")).unwrap_or_else(|| panic!("{check}"));
        let why = skipped["why"].as_str().unwrap();
        assert!(
            why.contains("no table has the family `unheard_of`"),
            "{why}"
        );
        assert_eq!(skipped["needed"], false);
    }
    let unnamed = skipped(json!({"hidden_size": 16}));
    assert!(
        unnamed.to_string().contains("names no `model_type`"),
        "{unnamed}"
    );
}

//! `weld check --mutate`: every defect, planted in good checkpoints, is found by its own id and as nothing else.

use std::fs;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::architecture::Family;

use crate::check::good;
use crate::fixtures::{Bench, Spec, floats, noise};
use crate::tables::{golden, t5};

/// Layers of the mixture.
const LAYERS: usize = 6;

/// A Qwen3 with experts, in which every defect can be planted; all experts of a layer in two tensors if it is `fused`.
fn mixture(dtype: Dtype, fused: bool) -> Bench {
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![40, 32])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[32]);
        add("self_attn.q_proj.weight", &[32, 32]);
        add("self_attn.k_proj.weight", &[16, 32]);
        add("self_attn.v_proj.weight", &[16, 32]);
        add("self_attn.o_proj.weight", &[32, 32]);
        add("self_attn.q_norm.weight", &[8]);
        add("self_attn.k_norm.weight", &[8]);
        add("post_attention_layernorm.weight", &[32]);
        add("mlp.gate.weight", &[4, 32]);
        if fused {
            add("mlp.experts.gate_up_proj", &[4, 48, 32]);
            add("mlp.experts.down_proj", &[4, 32, 24]);
            continue;
        }
        for expert in 0..4 {
            add(&format!("mlp.experts.{expert}.gate_proj.weight"), &[24, 32]);
            add(&format!("mlp.experts.{expert}.up_proj.weight"), &[24, 32]);
            add(&format!("mlp.experts.{expert}.down_proj.weight"), &[32, 24]);
        }
    }
    shapes.push(("model.norm.weight".into(), vec![32]));
    shapes.push(("lm_head.weight".into(), vec![40, 32]));
    let tensor = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let values: Vec<f64> = match name.contains("norm") {
            true => vec![1.0; count],
            false => noise(seed, count).collect(),
        };
        floats(&name, dtype, &shape, values)
    };
    let specs: Vec<Spec> = (0..).zip(shapes).map(tensor).collect();
    let bench = Bench::new();
    let config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 32, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "vocab_size": 40, "tie_word_embeddings": false,
        "eos_token_id": 2
    });
    bench.model("m", &config, &specs);
    bench
}

/// Plants all defects in `m`: the exit code, and of each that was not found alone its title, outcome and place.
fn planted(bench: &Bench) -> (Option<i32>, Vec<[String; 3]>) {
    let outcome = bench.weld(&["check", "m", "--mutate", "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    let defects = report["details"]["defects"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let other = defects
        .iter()
        .filter(|defect| defect["outcome"] != "found")
        .map(|defect| {
            let found = match defect["outcome"].as_str() {
                Some("not planted") => text(&defect["where"]),
                _ => format!("{}: {}", text(&defect["where"]), defect["found"]),
            };
            [text(&defect["defect"]), text(&defect["outcome"]), found]
        });
    (outcome.code, other.collect())
}

#[test]
fn every_defect_is_found_by_its_own_id_and_as_nothing_else() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        for fused in [false, true] {
            let found = planted(&mixture(dtype, fused));
            assert_eq!(found, (Some(0), Vec::new()), "{dtype:?} {fused}");
        }
    }
}

/// Models of several bodies, and with latent attention: what is planted in them is found too.
#[test]
fn defects_are_found_in_every_kind_of_table() {
    for model in ["deepseek-v3-a-bf16", "gemma3-vision-a-bf16", "a-f32"] {
        let bench = Bench::new();
        golden(&bench, model);
        let (code, others) = planted(&bench);
        let wrong = others
            .iter()
            .any(|[_, outcome, _]| outcome != "not planted");
        assert!(!wrong && code == Some(3), "{model}: {others:?}");
    }
    let (code, others) = planted(&t5(true, true));
    let wrong = others
        .iter()
        .any(|[_, outcome, _]| outcome != "not planted");
    assert!(!wrong && code == Some(3), "{others:?}");
}

/// Each mixture that `weld moe` can write is known to `check`, in both layouts, with a shared expert and without.
#[test]
fn what_is_lost_is_found_in_every_target() {
    let lost = [
        "a tensor lost",
        "every router lost",
        "all experts of a layer lost",
        "all experts lost",
        "a tensor of experts lost",
        "an expert more in the config",
    ];
    for family in Family::all() {
        let Some(target) = family.written() else {
            continue;
        };
        let shared = family.mixture().unwrap().shared.is_some();
        for (fused, shared) in [(false, false), (true, shared)] {
            let bench = Bench::new();
            for (name, seed) in [("base", 1), ("one", 2), ("two", 3), ("three", 4)] {
                bench.dense(name, target.holds[0], seed, json!({}));
            }
            let shared = match shared {
                true => "shared_experts: [{source_model: base, alpha: 0.5}]\n",
                false => "",
            };
            let recipe = format!(
                "base_model: base\narchitecture: {}\ngate_mode: random\n{shared}\
                 experts: [{{source_model: base}}, {{source_model: one}}, {{source_model: two}}, {{source_model: three}}]\n",
                family.name()
            );
            bench.moe(&recipe, if fused { &["--fused"] } else { &[] });
            fs::rename(bench.path("out"), bench.path("m")).unwrap();
            let (_, others) = planted(&bench);
            let wrong = |[title, outcome, _]: &&[String; 3]| {
                outcome != "not planted" || lost.contains(&title.as_str())
            };
            let wrong: Vec<_> = others.iter().filter(wrong).collect();
            assert!(
                wrong.is_empty(),
                "{} {fused} {shared}: {wrong:?}",
                family.name()
            );
        }
    }
}

#[test]
fn what_cannot_be_planted_leaves_it_open() {
    let (code, others) = planted(&good());
    let not_planted: Vec<&str> = others.iter().map(|[title, ..]| title.as_str()).collect();
    assert_eq!(
        not_planted,
        [
            "a layer of another kind",
            "a tensor lost from two layers",
            "an expert more in the config",
            "every router lost",
            "all experts of a layer lost",
            "all experts lost",
            "a tensor of experts lost",
            "an expert copied over another",
            "an expert of zeros",
            "a router of zeros",
            "a row of zeros in a router",
            "a row of a router copied over another",
        ],
        "{others:?}"
    );
    assert!(
        others
            .iter()
            .all(|[_, outcome, _]| outcome == "not planted"),
        "{others:?}"
    );
    assert_eq!(code, Some(3));
    let outcome = good().weld(&["check", "m", "--mutate", "-q"]);
    assert!(
        outcome.stdout.contains("not planted: it has no experts"),
        "{}",
        outcome.stdout
    );
    let listed = outcome
        .stdout
        .lines()
        .filter(|line| line.contains("values.zero-router:"));
    assert_eq!(
        listed.count(),
        1,
        "as one that was skipped: {}",
        outcome.stdout
    );
}

#[test]
fn defects_are_planted_in_small_and_sound_models_only() {
    let bench = good();
    let refused = |hint: &str| {
        let outcome = bench.weld(&["check", "m", "--mutate", "-q"]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(hint), "{}", outcome.stderr);
    };
    let tokenizer = fs::read(bench.path("m/tokenizer.json")).unwrap();
    bench.file("m/tokenizer.json", "{");
    refused("wrong already (tokenizer.malformed)");
    let mut long = tokenizer;
    long.resize((64 << 20) + 1, b' ');
    bench.file("m/tokenizer.json", long);
    refused("larger than 64.0 MiB");
    let outcome = bench.weld(&[
        "check",
        "m/model-00001-of-00002.safetensors",
        "--mutate",
        "-q",
    ]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("name the folder"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_model_itself_is_not_touched() {
    let bench = good();
    let files = || -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(bench.path("m"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    planted(&bench);
    assert!(before == files());
}

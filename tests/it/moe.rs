//! Mixtures of experts: what is assembled, that it computes what its models do, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nalgebra::DMatrix;
use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::checkpoint::{Checkpoint, Locator, ModelRef};
use weldment::forward::Decoder;

use crate::fixtures::{
    Bench, Loaded, Spec, by_name, files, floats, load, noise, read_json, refusal_code,
};

pub(crate) const HIDDEN: usize = 16;
pub(crate) const WIDTH: usize = 24;
pub(crate) const LAYERS: usize = 3;
const ROWS: usize = 20;

/// A dense decoder of a family, small and complete.
pub(crate) fn dense(family: &str, seed: u64) -> (Value, Vec<Spec>) {
    let config = json!({
        "architectures": ["X"], "model_type": family, "hidden_size": HIDDEN, "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": ROWS,
        "rms_norm_eps": 1e-5, "rope_theta": 500.0, "tie_word_embeddings": false, "hidden_act": "silu",
        "head_dim": HIDDEN / 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
    });
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![ROWS, HIDDEN])];
    for layer in 0..LAYERS {
        let norms = match family {
            "olmo2" => ["post_attention_layernorm", "post_feedforward_layernorm"],
            _ => ["input_layernorm", "post_attention_layernorm"],
        };
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.into()));
        };
        for norm in norms {
            add(&format!("{norm}.weight"), &[HIDDEN]);
        }
        match family {
            "phi3" => {
                add("self_attn.qkv_proj.weight", &[2 * HIDDEN, HIDDEN]);
                add("mlp.gate_up_proj.weight", &[2 * WIDTH, HIDDEN]);
            }
            _ => {
                add("self_attn.q_proj.weight", &[HIDDEN, HIDDEN]);
                add("self_attn.k_proj.weight", &[HIDDEN / 2, HIDDEN]);
                add("self_attn.v_proj.weight", &[HIDDEN / 2, HIDDEN]);
                add("mlp.gate_proj.weight", &[WIDTH, HIDDEN]);
                add("mlp.up_proj.weight", &[WIDTH, HIDDEN]);
            }
        }
        add("self_attn.o_proj.weight", &[HIDDEN, HIDDEN]);
        add("mlp.down_proj.weight", &[HIDDEN, WIDTH]);
        match family {
            "qwen2" => {
                add("self_attn.q_proj.bias", &[HIDDEN]);
                add("self_attn.k_proj.bias", &[HIDDEN / 2]);
                add("self_attn.v_proj.bias", &[HIDDEN / 2]);
            }
            "qwen3" => {
                add("self_attn.q_norm.weight", &[HIDDEN / 2]);
                add("self_attn.k_norm.weight", &[HIDDEN / 2]);
            }
            "hunyuan_v1_dense" => {
                add("self_attn.query_layernorm.weight", &[HIDDEN / 2]);
                add("self_attn.key_layernorm.weight", &[HIDDEN / 2]);
            }
            "olmo2" => {
                add("self_attn.q_norm.weight", &[HIDDEN]);
                add("self_attn.k_norm.weight", &[HIDDEN / 2]);
            }
            _ => {}
        }
    }
    shapes.push(("model.norm.weight".into(), vec![HIDDEN]));
    shapes.push(("lm_head.weight".into(), vec![ROWS, HIDDEN]));
    let specs = shapes
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let count = shape.iter().product();
            let values = noise(seed * 1000 + index as u64, count);
            // Norms about one, matrices large enough to matter.
            match name.ends_with("norm.weight") {
                true => floats(&name, Dtype::F32, &shape, values.map(|x| 1.0 + 4.0 * x)),
                false => floats(&name, Dtype::F32, &shape, values.map(|x| 6.0 * x)),
            }
        });
    (config, specs.collect())
}

impl Bench {
    /// A dense model in a folder, of byte tokens that are letters.
    pub(crate) fn dense(&self, name: &str, family: &str, seed: u64, more: Value) {
        let (mut config, specs) = dense(family, seed);
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.model(name, &config, &specs);
        let words: serde_json::Map<String, Value> = (0..ROWS)
            .map(|id| (char::from(b'a' + id as u8).to_string(), json!(id)))
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": words,
                      "merges": []}
        });
        self.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
        self.file(&format!("{name}/tokenizer_config.json"), "{}");
    }

    pub(crate) fn moe(&self, recipe: &str, more: &[&str]) -> Vec<(String, Vec<u8>)> {
        self.recipe(recipe);
        let mut arguments = vec!["moe", "recipe.yml", "out", "--force", "-q"];
        arguments.extend(more);
        let outcome = self.weld(&arguments);
        assert_eq!(outcome.code, Some(0), "{}\n{recipe}", outcome.stderr);
        files(&self.path("out"))
    }

    /// Expects that an assembly is refused and writes nothing; gives the message.
    pub(crate) fn moe_refused(&self, recipe: &str) -> String {
        self.recipe(recipe);
        let outcome = self.weld(&["moe", "recipe.yml", "refused"]);
        let code = refusal_code(&outcome.stderr);
        assert_eq!(outcome.code, Some(code), "{}\n{recipe}", outcome.stderr);
        assert!(
            !self.path("refused").exists(),
            "a refused assembly left an output"
        );
        outcome.stderr
    }
}

/// The logits of a checkpoint for a few texts.
pub(crate) fn logits(path: &Path) -> Vec<f32> {
    let locator = Locator {
        working_dir: path.parent().unwrap().into(),
        ..Locator::default()
    };
    let model = ModelRef::parse(path.to_str().unwrap()).unwrap();
    let location = locator.locate(&model).unwrap();
    let checkpoint = Checkpoint::open("model", &location).unwrap();
    let decoder = Decoder::new(checkpoint.config().unwrap().value(), &checkpoint).unwrap();
    let prompts = [vec![1, 5, 9, 3, 17, 2], vec![4, 4, 8], vec![19]];
    decoder.logits(&prompts, 2).unwrap().concat()
}

#[track_caller]
pub(crate) fn assert_same_logits(a: &[f32], b: &[f32], what: &str) {
    let largest = a.iter().fold(0f32, |most, x| most.max(x.abs()));
    let off = a
        .iter()
        .zip(b)
        .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        largest > 0.1 && off <= 1e-5 * largest,
        "{what}: {off} of {largest}"
    );
}

#[track_caller]
pub(crate) fn assert_equal(a: &Loaded, b: &Loaded) {
    assert_eq!((a.dtype, &a.shape, &a.bytes), (b.dtype, &b.shape, &b.bytes));
}

pub(crate) const PAIRS: [(&str, &str, &str); 25] = [
    (
        "granite",
        "granitemoe",
        "# multipliers as its class has them",
    ),
    ("llama", "mixtral", ""),
    ("mistral", "mixtral", ""),
    ("llama", "mixtral", "upcycle: {granularity: 2}"),
    (
        "phi3",
        "mixtral",
        "upcycle: {granularity: 3, split: random}\nexperts_per_token: 6",
    ),
    (
        "qwen3",
        "glm4_moe",
        "upcycle: {granularity: 2, split: random}\nexperts_per_token: 4\nshared_experts: [{source_model: dense, alpha: 0.5}]",
    ),
    (
        "llama",
        "granitemoe",
        "upcycle: {granularity: 4}\nexperts_per_token: 4",
    ),
    (
        "llama",
        "mixtral",
        "upcycle: {granularity: 4, split: kmeans}\nexperts_per_token: 4",
    ),
    (
        "phi3",
        "mixtral",
        "upcycle: {granularity: 2, split: kmeans}\nexperts_per_token: 2",
    ),
    ("phi3", "mixtral", ""),
    ("llama", "qwen2_moe", ""),
    (
        "qwen2",
        "qwen2_moe",
        "shared_experts: [{source_model: dense, alpha: 0.3}]",
    ),
    ("qwen2", "qwen2_moe", "layers: \"1\""),
    ("qwen3", "qwen3_moe", "layers: \"0,2-\""),
    (
        "qwen3",
        "glm4_moe",
        "shared_experts: [{source_model: dense, alpha: 0.25}]",
    ),
    ("llama", "glm4_moe", "layers: \"1-\""),
    ("qwen3", "dots1", ""),
    ("llama", "granitemoe", ""),
    ("qwen2", "granitemoe", ""),
    (
        "qwen2",
        "granitemoeshared",
        "shared_experts: [{source_model: dense, alpha: 0.3}]",
    ),
    (
        "granite",
        "granitemoeshared",
        "shared_experts: [{source_model: dense, alpha: 0.5}]",
    ),
    ("llama", "granitemoeshared", ""),
    ("olmo2", "flex_olmo", ""),
    ("qwen3", "dots1", "upcycle: {granularity: 2}"),
    ("llama", "qwen2_moe", "upcycle: {granularity: 2}"),
];

#[test]
fn identical_experts_give_the_dense_models_logits() {
    for (family, target, extra) in PAIRS {
        let bench = Bench::new();
        let more = match family {
            "granite" if !extra.starts_with('#') => {
                json!({"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0,
                                "attention_multiplier": 0.2})
            }
            "mistral" => json!({"sliding_window": 3}),
            _ => json!({}),
        };
        bench.dense("dense", family, 3, more);
        let expected = logits(&bench.path("dense"));
        for mode in ["random", "zero", "orthogonal", "uniform_random"] {
            let recipe = format!(
                "base_model: dense\narchitecture: {target}\ngate_mode: {mode}\nrouter: {{seed: 4}}\n{extra}\n\
                 experts: [{{source_model: dense}}, {{source_model: dense}}, {{source_model: dense}}, {{source_model: \
                 dense}}]\n"
            );
            bench.moe(&recipe, &[]);
            let found = logits(&bench.path("out"));
            assert_same_logits(
                &expected,
                &found,
                &format!("{family} as {target} by {mode} {extra}"),
            );
        }
        assert_eq!(
            bench.weld(&["check", "out", "-q"]).code,
            Some(0),
            "{family} as {target}"
        );
    }
}

#[test]
fn experts_and_all_else_are_the_bytes_of_their_models() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    bench.moe(
        "base_model: base\ngate_mode: random\nexperts: [{source_model: one}, {source_model: two}]\n",
        &[],
    );
    let out = by_name(&bench.path("out"));
    let base = by_name(&bench.path("base"));
    let experts = ["one", "two"].map(|name| by_name(&bench.path(name)));
    let mut seen = 0;
    for (name, tensor) in &base {
        if name.contains(".mlp.") {
            assert!(!out.contains_key(name));
            continue;
        }
        assert_equal(&out[name], tensor);
        seen += 1;
    }
    for layer in 0..LAYERS {
        for (number, expert) in experts.iter().enumerate() {
            for (ours, theirs) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
                let ours =
                    format!("model.layers.{layer}.block_sparse_moe.experts.{number}.{ours}.weight");
                let theirs = format!("model.layers.{layer}.mlp.{theirs}.weight");
                assert_equal(&out[&ours], &expert[&theirs]);
                seen += 1;
            }
        }
        let gate = &out[&format!("model.layers.{layer}.block_sparse_moe.gate.weight")];
        assert_eq!(gate.shape, [2, HIDDEN]);
        seen += 1;
    }
    assert_eq!(seen, out.len());
    let config = read_json(&bench.path("out/config.json"));
    assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
    assert_eq!(config["num_local_experts"], 2);
    assert_eq!(config["rope_theta"], 500.0);
    assert_eq!(config["rope_parameters"]["rope_theta"], 500.0);
    assert_eq!(
        (&config["dtype"], &config["torch_dtype"]),
        (&json!("float32"), &json!("float32"))
    );
}

#[test]
fn what_a_config_leaves_to_its_class_is_written_down() {
    let bench = Bench::new();
    bench.dense("base", "mistral", 1, json!({}));
    let recipe = "base_model: base\ngate_mode: random\nexperts: [{source_model: base}, {source_model: base}]\n";
    bench.moe(recipe, &[]);
    let window = || read_json(&bench.path("out/config.json"))["sliding_window"].clone();
    assert_eq!(window(), 4096);
    bench.dense("base", "mistral", 1, json!({"sliding_window": null}));
    bench.moe(recipe, &[]);
    assert_eq!(window(), Value::Null);
}

#[test]
fn fused_experts_are_the_bytes_of_their_parts_one_after_the_other() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    bench.moe(
        "base_model: base\narchitecture: granitemoe\ngate_mode: random\nexperts: [{source_model: one}, \
         {source_model: two, residual_scale: 0.5}]\n",
        &[],
    );
    let out = by_name(&bench.path("out"));
    let experts = ["one", "two"].map(|name| by_name(&bench.path(name)));
    let tensor = |suffix: &str| &out[&format!("model.layers.1.block_sparse_moe.{suffix}.weight")];
    let of = |expert: usize, name: &str| {
        &experts[expert][&format!("model.layers.1.mlp.{name}_proj.weight")]
    };
    let expected: Vec<u8> = [(0, "gate"), (0, "up"), (1, "gate"), (1, "up")]
        .into_iter()
        .flat_map(|(expert, name)| of(expert, name).bytes.clone())
        .collect();
    assert_eq!(tensor("input_linear").shape, [2, 2 * WIDTH, HIDDEN]);
    assert_eq!(tensor("input_linear").bytes, expected);
    let down = tensor("output_linear").values();
    let expected: Vec<f64> = (of(0, "down").values().into_iter())
        .chain(of(1, "down").values().into_iter().map(|value| 0.5 * value))
        .collect();
    assert_eq!(down, expected);
}

#[test]
fn folded_norms_restore_the_expert() {
    let bench = Bench::new();
    bench.dense("base", "llama", 1, json!({}));
    bench.dense("tuned", "llama", 2, json!({}));
    // What is asked for: the base, with the expert's MLPs behind the expert's norms.
    let (config, base) = dense("llama", 1);
    let (_, tuned) = dense("llama", 2);
    let of_expert =
        |name: &str| name.contains(".mlp.") || name.contains("post_attention_layernorm");
    let mixed: Vec<Spec> = base
        .into_iter()
        .zip(tuned)
        .map(|(base, tuned)| if of_expert(&base.name) { tuned } else { base })
        .collect();
    bench.model("mixed", &config, &mixed);
    let recipe = "base_model: base\ngate_mode: random\nexperts: [{source_model: tuned}, {source_model: tuned}]\n";
    bench.moe(recipe, &[]);
    let (expected, unfolded) = (logits(&bench.path("mixed")), logits(&bench.path("out")));
    let off = expected
        .iter()
        .zip(&unfolded)
        .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        off > 0.01,
        "without folding there is a difference to make up for: {off}"
    );
    bench.moe(&format!("{recipe}fold_norms: true\n"), &[]);
    assert_same_logits(&expected, &logits(&bench.path("out")), "folded");
}

#[test]
fn rows_are_what_the_recipe_says() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    let recipe = |mode: &str, more: &str| {
        format!(
            "base_model: base\ngate_mode: {mode}\n{more}\nexperts:\n\
             - {{source_model: one, positive_prompts: [abc, bd], negative_prompts: [e]}}\n\
             - {{source_model: two, positive_prompts: [fgh, bc]}}\n"
        )
    };
    let rows = |mode: &str, more: &str| -> Vec<Vec<f64>> {
        bench.moe(&recipe(mode, more), &[]);
        let out = by_name(&bench.path("out"));
        (0..LAYERS)
            .map(|layer| {
                out[&format!("model.layers.{layer}.block_sparse_moe.gate.weight")].values()
            })
            .collect()
    };
    let embedding = by_name(&bench.path("base"))["model.embed_tokens.weight"].values();
    let unit = |mut row: Vec<f64>| {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= length);
        row
    };
    let sum = |tokens: &[usize]| -> Vec<f64> {
        let column = |column| {
            tokens
                .iter()
                .map(|token| embedding[token * HIDDEN + column])
                .sum()
        };
        (0..HIDDEN).map(column).collect()
    };
    let minus =
        |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| a - b).collect::<Vec<f64>>();
    #[track_caller]
    fn near(a: &[f64], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        assert!(
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6),
            "{a:?}\n{b:?}"
        );
    }
    // By hand: `abc` and `bd` less `e`, each polarity of length one; `fgh` and `bc`.
    let first = unit(minus(unit(sum(&[0, 1, 2, 1, 3])), unit(sum(&[4]))));
    let second = unit(sum(&[5, 6, 7, 1, 2]));
    for layer in rows("cheap_embed", "") {
        near(&layer, &[first.clone(), second.clone()].concat());
    }
    // What enters the first layer is the embedding of each prompt's last token.
    let first = unit(minus(
        sum(&[2, 3]).iter().map(|x| x / 2.0).collect(),
        sum(&[4]),
    ));
    let second = unit(sum(&[7, 2]));
    let expected = [first, second].concat();
    let hidden = rows("hidden", "");
    near(&hidden[0], &expected);
    assert!(
        hidden[1]
            .iter()
            .zip(&expected)
            .any(|(a, b)| (a - b).abs() > 1e-3)
    );
    near(&rows("hidden_last", "")[2], &hidden[2]);
    let sharp: Vec<f64> = expected.iter().map(|x| x * 4.0).collect();
    near(&rows("hidden", "router: {temperature: 0.25}")[0], &sharp);
    let centred = &rows("gate_input", "router: {center: true, normalize: false}")[1];
    let sums: Vec<f64> = (0..HIDDEN)
        .map(|at| centred[at] + centred[HIDDEN + at])
        .collect();
    near(&sums, &[0.0; HIDDEN]);
    assert!(rows("zero", "").concat().iter().all(|value| *value == 0.0));
    // Rows from a file: the router's name, or one table for all layers.
    let table: Vec<f64> = (0..2 * HIDDEN).map(|x| x as f64).collect();
    bench.tensors(
        "rows.safetensors",
        &[floats("rows", Dtype::F32, &[2, HIDDEN], table.clone())],
    );
    near(&rows("file", "router: {file: rows.safetensors}")[2], &table);
    bench.tensors(
        "rows.safetensors",
        &[floats("rows", Dtype::F32, &[3, HIDDEN], vec![0.0; 48])],
    );
    let message = bench.weld(&["moe", "recipe.yml", "none"]).stderr;
    assert!(
        message.contains("`rows` of `rows.safetensors` has shape [3, 16], expected [2, 16]"),
        "{message}"
    );
    assert!(!bench.path("none").exists());
}

/// The first right singular vector of an expert's gate and up matrices less the base's, in one layer, with the sign
/// along which its gates open further.
fn singular_vector(
    expert: &BTreeMap<String, Loaded>,
    base: &BTreeMap<String, Loaded>,
    layer: usize,
    fused: bool,
    fold: bool,
) -> Vec<f64> {
    let matrices = |model: &BTreeMap<String, Loaded>| -> Vec<f64> {
        let names: &[&str] = match fused {
            true => &["gate_up_proj"],
            false => &["gate_proj", "up_proj"],
        };
        names
            .iter()
            .flat_map(|name| model[&format!("model.layers.{layer}.mlp.{name}.weight")].values())
            .collect()
    };
    let norm = format!("model.layers.{layer}.post_attention_layernorm.weight");
    let (own, other) = (expert[&norm].values(), base[&norm].values());
    let (of_expert, of_base) = (matrices(expert), matrices(base));
    let difference = DMatrix::from_fn(2 * WIDTH, HIDDEN, |row, column| {
        let factor = if fold {
            own[column] / other[column]
        } else {
            1.0
        };
        of_expert[row * HIDDEN + column] * factor - of_base[row * HIDDEN + column]
    });
    let svd = difference.clone().svd(false, true);
    let right = svd.v_t.unwrap().row(0).transpose();
    let opened: f64 = (&difference * &right).rows(0, WIDTH).sum();
    right.iter().map(|value| value * opened.signum()).collect()
}

#[test]
fn rows_from_task_vectors_are_first_singular_vectors() {
    for family in ["llama", "phi3"] {
        let bench = Bench::new();
        for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
            bench.dense(name, family, seed, json!({}));
        }
        let recipe = |more: &str, prompts: [&str; 2]| {
            format!(
                "base_model: base\ngate_mode: task_vector\n{more}\nexperts:\n- {{source_model: one{}}}\n\
                 - {{source_model: two{}}}\n",
                prompts[0], prompts[1]
            )
        };
        let row = |layer: usize, expert: usize| -> Vec<f64> {
            let router = format!("model.layers.{layer}.block_sparse_moe.gate.weight");
            by_name(&bench.path("out"))[&router].values()[expert * HIDDEN..][..HIDDEN].to_vec()
        };
        let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let base = by_name(&bench.path("base"));
        for fold in [false, true] {
            let files = bench.moe(
                &recipe(&format!("fold_norms: {fold}"), ["", ""]),
                &["--threads", "1"],
            );
            for (expert, name) in ["one", "two"].into_iter().enumerate() {
                let model = by_name(&bench.path(name));
                for layer in 0..LAYERS {
                    let expected = singular_vector(&model, &base, layer, family == "phi3", fold);
                    let found = cosine(&row(layer, expert), &expected);
                    assert!(
                        (found - 1.0).abs() < 1e-4,
                        "{family} {fold} {name} {layer}: {found}"
                    );
                }
            }
            assert_eq!(
                files,
                bench.moe(
                    &recipe(&format!("fold_norms: {fold}"), ["", ""]),
                    &["--threads", "3"]
                )
            );
        }
        // With prompts a row points to the side of their states.
        let prompts = [", positive_prompts: [abc]", ", positive_prompts: [de]"];
        bench.moe(&recipe("", prompts), &[]);
        let rows: Vec<Vec<f64>> = (0..LAYERS)
            .flat_map(|layer| [row(layer, 0), row(layer, 1)])
            .collect();
        bench.moe(
            &recipe("", prompts).replace("task_vector", "gate_input"),
            &[],
        );
        for (at, found) in rows.iter().enumerate() {
            let states = row(at / 2, at % 2);
            assert!(cosine(found, &states) > 0.0, "{family} {at}");
        }
        bench.moe(&recipe("router: {temperature: 0.5}", ["", ""]), &[]);
        assert!((cosine(&row(0, 0), &row(0, 0)) - 4.0).abs() < 1e-5);
        let message = bench.moe_refused(&recipe("", [", positive_prompts: [abc]", ""]));
        assert!(
            message.contains("signs of all rows from prompts, or of none"),
            "{message}"
        );
        let message = bench.moe_refused(&recipe("", ["", ""]).replace("two", "base"));
        assert!(
            message.contains("the expert `base` is the base"),
            "{message}"
        );
        // A copy of the base under another name shows when its matrices are read.
        bench.dense("copy", family, 1, json!({}));
        let message = bench.moe_refused(&recipe("", ["", ""]).replace("two", "copy"));
        assert!(
            message.contains("expert 1 (`copy`) has the base's gate and up matrices in layer 0"),
            "{message}"
        );
    }
}

#[test]
fn dropped_neurons_are_drawn_anew_and_the_others_kept() {
    for (family, granularity) in [("llama", 1), ("llama", 2), ("granite", 1)] {
        let bench = Bench::new();
        bench.dense("base", family, 1, json!({}));
        let recipe = |more: &str| {
            format!(
                "base_model: base\ngate_mode: random\nexperts_per_token: 2\n\
                 experts: [{{source_model: base}}, {{source_model: base}}]\n\
                 upcycle: {{granularity: {granularity}{more}}}\n"
            )
        };
        let (parts, width) = (2 * granularity, WIDTH / granularity);
        // Gate and up rows and down columns of each expert, by neuron.
        let neurons = || -> Vec<Vec<Vec<f64>>> {
            let out = by_name(&bench.path("out"));
            let of = |name: &str| {
                out[&format!("model.layers.1.block_sparse_moe.{name}.weight")].values()
            };
            let expert = |expert: usize| -> [Vec<f64>; 3] {
                match family {
                    "granite" => {
                        let input = of("input_linear")[expert * 2 * width * HIDDEN..].to_vec();
                        let output = of("output_linear")[expert * width * HIDDEN..]
                            [..width * HIDDEN]
                            .to_vec();
                        let (gate, up) = input[..2 * width * HIDDEN].split_at(width * HIDDEN);
                        [gate.into(), up.into(), output]
                    }
                    _ => ["w1", "w3", "w2"].map(|name| of(&format!("experts.{expert}.{name}"))),
                }
            };
            let neuron = |[gate, up, down]: &[Vec<f64>; 3], at: usize| {
                let rows = [gate, up].map(|matrix| matrix[at * HIDDEN..][..HIDDEN].to_vec());
                let column = (0..HIDDEN).map(|row| down[row * width + at]);
                rows.concat()
                    .into_iter()
                    .chain(column)
                    .collect::<Vec<f64>>()
            };
            (0..parts)
                .map(|number| {
                    let expert = expert(number);
                    (0..width).map(|at| neuron(&expert, at)).collect()
                })
                .collect()
        };
        bench.moe(&recipe(""), &[]);
        let whole = neurons();
        bench.moe(&recipe(", drop: 0"), &[]);
        assert!(whole == neurons());
        let half = bench.moe(&recipe(", drop: 0.5"), &["--threads", "1", "--check"]);
        let dropped = neurons();
        let changed = |number: usize| -> Vec<usize> {
            let pairs = whole[number].iter().zip(&dropped[number]).enumerate();
            let changed = pairs.filter(|(_, (before, after))| before != after);
            changed.map(|(at, _)| at).collect()
        };
        for number in 0..parts {
            assert_eq!(changed(number).len(), width / 2, "{family} {number}");
            // All of a neuron is drawn, and what is drawn is about as large.
            for at in changed(number) {
                let (before, after) = (&whole[number][at], &dropped[number][at]);
                assert!(before.iter().zip(after).all(|(a, b)| a != b));
                let length = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
                let ratio = length(after) / length(before);
                assert!((0.3..3.0).contains(&ratio), "{ratio}");
            }
        }
        assert_ne!(changed(0), changed(granularity));
        assert!(half == bench.moe(&recipe(", drop: 0.5"), &["--threads", "3", "--check"]));
        assert_eq!(bench.weld(&["verify", "out", "-q"]).code, Some(0));
        let verified = bench.weld(&["verify", "out", "--full", "-q"]);
        assert_eq!(verified.code, Some(0), "{}", verified.stdout);
        bench.moe(&recipe(", drop: 1"), &[]);
        let all = neurons();
        let mut pairs = whole
            .concat()
            .concat()
            .into_iter()
            .zip(all.concat().concat());
        assert!(pairs.all(|(a, b)| a != b));
        let message = bench.moe_refused(&recipe(", drop: 1.5"));
        assert!(
            message.contains("drop") && message.contains("from 0 to 1"),
            "{message}"
        );
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes_and_verify_finds_a_flipped_bit() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "qwen2", seed, json!({}));
    }
    let recipe = "base_model: base\narchitecture: qwen2_moe\ngate_mode: hidden\nbackbone: {merge_method: ties, base_model: base, models: \
                  [{model: one, parameters: {weight: 1, density: 0.5}}, {model: two, parameters: {weight: 1, density: \
                  0.5}}]}\nexperts:\n- {source_model: one, positive_prompts: [abc], noise_scale: 0.01}\n\
                  - {source_model: two, positive_prompts: [de], residual_scale: 0.5}\n\
                  shared_experts: [{source_model: base, positive_prompts: [fg], residual_scale: 0.1}]\n";
    let one = bench.moe(recipe, &["--threads", "1"]);
    let four = bench.moe(recipe, &["--threads", "4", "--memory", "512MiB"]);
    assert_eq!(one, four);
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    assert_eq!(lock["command"], "moe");
    bench.passes(&["verify", "out", "--full", "-q"]);
    for name in [
        "model.layers.1.mlp.gate.weight",
        "model.layers.2.mlp.experts.1.up_proj.weight",
    ] {
        let path = bench.path("out/model.safetensors");
        let sound = std::fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let entries: BTreeMap<String, Value> =
            serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let start = entries[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + header + start] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = bench.weld(&["verify", "out", "--full", "-q"]);
        assert_eq!(refused.code, Some(1), "{name}: {}", refused.stdout);
        assert!(refused.stdout.contains(name), "{}", refused.stdout);
        std::fs::write(&path, sound).unwrap();
    }
}

#[test]
fn a_plan_shows_the_assembly_and_writes_nothing() {
    let bench = Bench::new();
    bench.dense("base", "llama", 1, json!({}));
    bench.dense("one", "llama", 2, json!({}));
    bench.recipe("base_model: base\ngate_mode: random\nexperts: [{source_model: one}, {source_model: base}]\n");
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    for part in [
        "method   moe: mixtral of 2 experts, 2 for each token, routers by random",
        "router",
        "the router",
        "not among what the assembly takes from it",
    ] {
        assert!(plan.stdout.contains(part), "{part}: {}", plan.stdout);
    }
    let json: Value = serde_json::from_str(
        &bench
            .weld(&["plan", "recipe.yml", "--format", "json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(json["method"], "moe");
    // Nine of each expert, three routers, and what is not MLP: embedding, norm, head, six in each layer.
    assert_eq!(
        json["tensors"].as_array().unwrap().len(),
        18 + 3 + 3 + 6 * LAYERS
    );
    let wrong = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(wrong.code, Some(1));
    assert!(
        wrong.stderr.contains("run it with `weld moe`"),
        "{}",
        wrong.stderr
    );
    bench.recipe("merge_method: linear\nmodels: [{model: base, parameters: {weight: 1}}]\n");
    let wrong = bench.weld(&["moe", "recipe.yml", "out"]);
    assert!(
        wrong.stderr.contains("run it with `weld merge`"),
        "{}",
        wrong.stderr
    );
    assert!(!bench.path("out").exists());
}

#[test]
fn the_default_target_holds_all_of_the_model() {
    let bench = Bench::new();
    let (mut config, mut specs) = dense("llama", 5);
    config["attention_bias"] = json!(true);
    for layer in 0..LAYERS {
        for (matrix, rows) in [
            ("q", HIDDEN),
            ("k", HIDDEN / 2),
            ("v", HIDDEN / 2),
            ("o", HIDDEN),
        ] {
            let name = format!("model.layers.{layer}.self_attn.{matrix}_proj.bias");
            specs.push(floats(&name, Dtype::F32, &[rows], noise(9, rows)));
        }
    }
    bench.model("bias", &config, &specs);
    bench.dense("plain", "llama", 1, json!({}));
    for (base, target) in [("bias", "granitemoe"), ("plain", "mixtral")] {
        bench.moe(
            &format!(
                "base_model: {base}\ngate_mode: random\nexperts: [{{source_model: {base}}}, {{source_model: {base}}}]\n"
            ),
            &[],
        );
        let config = read_json(&bench.path("out/config.json"));
        assert_eq!(config["model_type"], target);
        assert_same_logits(
            &logits(&bench.path(base)),
            &logits(&bench.path("out")),
            base,
        );
    }
}

#[test]
fn what_is_not_exact_is_refused_by_the_fields_name() {
    let bench = Bench::new();
    bench.dense("base", "llama", 1, json!({}));
    bench.dense("other", "llama", 2, json!({}));
    let two = "experts: [{source_model: base}, {source_model: EXPERT}]\n";
    let recipe = |base: &str, expert: &str, more: &str| {
        format!(
            "base_model: {base}\ngate_mode: random\n{more}\n{}",
            two.replace("EXPERT", expert)
                .replace("base}", &format!("{base}}}"))
        )
    };
    let (config, specs) = dense("llama", 5);
    let with = |name: &str, more: &[(&str, Vec<usize>)]| {
        let mut specs: Vec<Spec> = dense("llama", 5).1;
        for (name, shape) in more {
            let count = shape.iter().product();
            specs.push(floats(name, Dtype::F32, shape, noise(9, count)));
        }
        bench.model(name, &config, &specs);
    };
    with(
        "bias",
        &[("model.layers.0.self_attn.q_proj.bias", vec![HIDDEN])],
    );
    with(
        "o_bias",
        &[("model.layers.0.self_attn.o_proj.bias", vec![HIDDEN])],
    );
    with(
        "mlp_bias",
        &[("model.layers.0.mlp.up_proj.bias", vec![WIDTH])],
    );
    with(
        "stray",
        &[
            ("model.layers.0.mlp_extra.weight", vec![4]),
            ("visual.weight", vec![4]),
        ],
    );
    bench.model(
        "deep",
        &{
            let mut deep = config.clone();
            deep["num_hidden_layers"] = json!(4);
            deep
        },
        &specs,
    );
    bench.dense("window", "mistral", 5, json!({"sliding_window": 7}));
    bench.dense("narrow", "llama", 5, json!({"intermediate_size": 20}));
    bench.dense("theta", "llama", 5, json!({"rope_theta": 9.0}));
    bench.dense("gelu", "llama", 5, json!({"hidden_act": "gelu"}));
    bench.dense(
        "longrope",
        "phi3",
        5,
        json!({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}}),
    );
    bench.dense("partial", "phi3", 5, json!({"partial_rotary_factor": 0.5}));
    bench.dense("heads", "llama", 5, json!({"head_dim": 4}));
    bench.dense("qwen3", "qwen3", 5, json!({}));
    bench.dense(
        "sometimes",
        "qwen2",
        5,
        json!({"use_sliding_window": true, "sliding_window": 3}),
    );
    bench.dense("bert", "bert", 5, json!({}));
    bench.dense("hunyuan", "hunyuan_v1_dense", 5, json!({}));
    bench.dense("words", "llama", 5, json!({}));
    let swapped = std::fs::read_to_string(bench.path("base/tokenizer.json")).unwrap();
    let swapped = swapped
        .replace("\"a\":0", "\"a\":1")
        .replace("\"b\":1", "\"b\":0");
    bench.file("words/tokenizer.json", swapped);

    let cases: &[(&str, &str, &str, &str)] = &[
        (
            "bias",
            "bias",
            "architecture: mixtral",
            "has biases of q, k or v (`attention_bias`), and `mixtral` has none",
        ),
        (
            "o_bias",
            "o_bias",
            "architecture: glm4_moe",
            "has a bias of o (`attention_bias`), and `glm4_moe` has none",
        ),
        ("base", "mlp_bias", "", "biases in its MLP (`mlp_bias`)"),
        (
            "stray",
            "stray",
            "",
            "`visual.weight` of `stray` has no place in a `mixtral`",
        ),
        (
            "deep",
            "deep",
            "",
            "has no `model.layers.3.mlp.gate_proj.weight`",
        ),
        (
            "window",
            "window",
            "architecture: glm4_moe",
            "`glm4_moe` does not hold exactly",
        ),
        ("base", "narrow", "", "`intermediate_size` 20, expected 24"),
        (
            "base",
            "theta",
            "",
            "trained with other rotary positions (`rope_theta` 9 and 500",
        ),
        ("base", "gelu", "", "`hidden_act` `gelu`, expected `silu`"),
        (
            "longrope",
            "longrope",
            "",
            "rotary positions of the kind `longrope` (`rope_scaling`)",
        ),
        ("partial", "partial", "", "(`partial_rotary_factor`)"),
        (
            "heads",
            "heads",
            "architecture: qwen2_moe",
            "2 heads of 4 (`head_dim`)",
        ),
        (
            "base",
            "base",
            "architecture: qwen3_moe",
            "`llama`, which `qwen3_moe` does not hold exactly",
        ),
        (
            "qwen3",
            "qwen3",
            "architecture: mixtral",
            "`qwen3`, which `mixtral` does not hold exactly",
        ),
        (
            "sometimes",
            "sometimes",
            "",
            "a window (`sliding_window`) in some layers only",
        ),
        (
            "hunyuan",
            "hunyuan",
            "upcycle: {granularity: 2}\nshared_experts: [{source_model: hunyuan}]",
            "`hunyuan_v1_moe` is as wide as each of the others, and `granularity`",
        ),
        (
            "bert",
            "bert",
            "",
            "is of the family `bert`, expected one of llama",
        ),
        (
            "base",
            "words",
            "",
            "the vocabularies of `base` and `words` differ",
        ),
        (
            "base",
            "other",
            "architecture: mixtrel",
            "unknown architecture `mixtrel`",
        ),
        (
            "base",
            "other",
            "architecture: DeepSeek MoE",
            "`architecture: glm4_moe` holds a Llama",
        ),
        (
            "base",
            "other",
            "layers: \"1-\"",
            "`mixtral` has experts in every layer",
        ),
        (
            "base",
            "other",
            "layers: \"2-9\"",
            "the layers `2-9` are not all there: the base has 3",
        ),
        (
            "base",
            "other",
            "layers: \"5-2\"",
            "expected ranges of layers, found `5-2`",
        ),
        (
            "base",
            "other",
            "shared_experts: [{source_model: base}]\narchitecture: mixtral",
            "`mixtral` has no shared experts",
        ),
        (
            "base",
            "other",
            "experts_per_token: 3",
            "a token goes through 3 experts, and there are 2",
        ),
        (
            "base",
            "other",
            "experts_per_token: 0",
            "expected a whole number from 1 for `experts_per_token`, found `0`",
        ),
        (
            "base",
            "other",
            "expert_per_token: 1",
            "did you mean `experts_per_token`?",
        ),
        (
            "base",
            "other",
            "router: {temperature: 0}",
            "expected a number more than 0 for `temperature`",
        ),
        (
            "base",
            "other",
            "upcycle: {granularity: 3}",
            "each expert is cut into 3, and a token goes through 2",
        ),
        (
            "base",
            "other",
            "upcycle: {granularity: 5}\nexperts_per_token: 5",
            "cannot be cut into 5 equal parts",
        ),
        (
            "base",
            "other",
            "upcycle: {granularty: 2}",
            "did you mean `granularity`?",
        ),
        ("base", "missing", "", "missing"),
    ];
    for (base, expert, more, expected) in cases {
        let message = bench.moe_refused(&recipe(base, expert, more));
        let flat = message.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(expected), "{expected}\n{message}");
    }
    let prompts = |mode: &str, prompts: &str| {
        format!(
            "base_model: base\ngate_mode: {mode}\nexperts: [{{source_model: base{prompts}}}, {{source_model: other{prompts}}}]\n"
        )
    };
    for (recipe, expected) in [
        (prompts("hiden", ""), "did you mean `hidden`?"),
        (
            prompts("hidden", ""),
            "the expert `base` has no `positive_prompts`",
        ),
        (
            prompts("hidden", ", positive_prompts: [abc]"),
            "all experts have the same prompts",
        ),
        (prompts("file", ""), "`gate_mode: file` has no file"),
        (
            "gate_mode: random\nexperts: []\n".to_owned(),
            "missing `base_model`",
        ),
        (
            "base_model: base\ngate_mode: random\n".to_owned(),
            "missing `experts`",
        ),
    ] {
        let message = bench.moe_refused(&recipe);
        assert!(message.contains(expected), "{expected}\n{message}");
    }
    // What the user insists on is assembled, and said.
    bench.recipe(&recipe("base", "theta", ""));
    let outcome = bench.weld(&["moe", "recipe.yml", "out", "--inexact"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("note: not exact: the expert `theta`"),
        "{}",
        outcome.stderr
    );
    assert_eq!(bench.weld(&["verify", "out", "--full", "-q"]).code, Some(0));
}

#[test]
fn what_has_no_effect_in_a_recipe_of_a_mixture_is_said() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    let merge = "name: merged\nmerge_method: ties\nbase_model: base\nparameters: {density: 0.5}\n\
                 models:\n- {model: base, parameters: {weight: 0.5}}\n- {model: one, parameters: {weight: 1}}\n---\n";
    let assembly = "base_model: base\ngate_mode: random\nexperts: [{source_model: base}, {source_model: merged}]\n";
    let edit =
        "base_model: out\ngate_mode: random\nexperts: [{expert: \"0-\"}, {source_model: merged}]\n";
    for (document, out) in [(assembly, "out"), (edit, "edited")] {
        bench.recipe(&format!("{merge}{document}"));
        let done = bench.weld(&["moe", "recipe.yml", out]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let expected = "line 6: `weight` of the base `base` has no effect";
        assert!(done.stderr.contains(expected), "{}", done.stderr);
    }
}

#[test]
fn the_recipe_that_ships_assembles_the_family() {
    let bench = Bench::new();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let recipe = recipes.join("moe.yml");
    let done = bench.weld(&["moe", recipe.to_str().unwrap(), "out"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(!done.stderr.contains("note:"), "{}", done.stderr);
    assert_eq!(bench.weld(&["check", "out", "-q"]).code, Some(0));
    let inputs = recipes.to_str().unwrap();
    let verified = bench.weld(&["verify", "out", "--inputs", inputs, "--full", "-q"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
}

#[test]
fn check_proves_the_target_and_the_bytes() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "qwen3", seed, json!({}));
    }
    bench.recipe(
        "base_model: base\narchitecture: glm4_moe\nlayers: \"1-\"\nfold_norms: true\ngate_mode: random\nexperts: \
         [{source_model: one, noise_scale: 0.1}, {source_model: two, residual_scale: 0.5}]\n\
         shared_experts: [{source_model: base, alpha: 0.5}]\n",
    );
    let done = bench.weld(&["moe", "recipe.yml", "out", "--check"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for part in [
        "checked: with `base` as every expert, logits are its own within",
        "computed again, every byte as it should be",
    ] {
        assert!(done.stderr.contains(part), "{part}: {}", done.stderr);
    }
    // What is not exact is not called so: half of each head turned, where the target turns all of it.
    bench.dense("half", "phi3", 4, json!({"partial_rotary_factor": 0.5}));
    bench.recipe("base_model: half\ngate_mode: random\nexperts: [{source_model: half}, {source_model: half}]\n");
    let wrong = bench.weld(&["moe", "recipe.yml", "half-moe", "--check", "--inexact"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.stderr);
    assert!(
        wrong.stderr.contains("does not compute what `half` does"),
        "{}",
        wrong.stderr
    );
    assert!(!bench.path("half-moe").exists());
}

#[test]
fn mixtures_of_one_shape_merge_like_any_models() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    for (out, experts) in [("m1", ["one", "two"]), ("m2", ["base", "one"])] {
        bench.recipe(&format!(
            "base_model: base\ngate_mode: random\nexperts: [{{source_model: {}}}, {{source_model: {}}}]\n",
            experts[0], experts[1]
        ));
        let done = bench.weld(&["moe", "recipe.yml", out, "-q"]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    }
    bench.merge(
        "merge_method: linear\nmodels: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]\n",
        &[],
    );
    let [m1, m2, out] = ["m1", "m2", "out"].map(|name| by_name(&bench.path(name)));
    for (name, merged) in &out {
        let pairs = m1[name].values().into_iter().zip(m2[name].values());
        let expected: Vec<f64> = pairs
            .map(|(a, b)| f64::from(((a + b) / 2.0) as f32))
            .collect();
        assert_eq!(merged.values(), expected, "{name}");
    }
    assert_eq!(out.len(), m1.len());
    assert_eq!(bench.weld(&["check", "out", "-q"]).code, Some(0));
}

#[test]
fn adapters_become_experts() {
    let bench = Bench::new();
    bench.dense("base", "llama", 1, json!({}));
    let rank = 2;
    let name = |matrix: &str, side: &str| {
        format!("base_model.model.model.layers.1.mlp.{matrix}.lora_{side}.weight")
    };
    let specs = [
        floats(
            &name("up_proj", "A"),
            Dtype::F32,
            &[rank, HIDDEN],
            noise(1, rank * HIDDEN),
        ),
        floats(
            &name("up_proj", "B"),
            Dtype::F32,
            &[WIDTH, rank],
            noise(2, rank * WIDTH),
        ),
    ];
    bench.tensors("lora/adapter_model.safetensors", &specs);
    let config = json!({"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"], "bias": "none"});
    bench.file("lora/adapter_config.json", config.to_string());
    bench.moe(
        "base_model: base\ngate_mode: random\nexperts: [{source_model: base+lora}, {source_model: base}]\n",
        &[],
    );
    let out = by_name(&bench.path("out"));
    let merged = bench.merge(
        "merge_method: passthrough\nmodels: [{model: base+lora}]\ndtype: float32\n",
        &[],
    );
    let merged = by_name(&merged);
    // `merge` wrote over the assembly; what it had is in memory.
    let expert = |number: usize| {
        &out[&format!("model.layers.1.block_sparse_moe.experts.{number}.w3.weight")]
    };
    assert_equal(expert(0), &merged["model.layers.1.mlp.up_proj.weight"]);
    assert_ne!(expert(0).bytes, expert(1).bytes);
}

/// Neurons about two directions, mixed: each part gets those of one, whole, in all three matrices.
#[test]
fn neurons_that_open_together_go_together() {
    let bench = Bench::new();
    bench.dense("dense", "llama", 3, json!({}));
    let config = read_json(&bench.path("dense/config.json"));
    let tensors = by_name(&bench.path("dense"));
    let mut specs: Vec<Spec> = Vec::new();
    for (name, tensor) in &tensors {
        let mut bytes = tensor.bytes.clone();
        if name.ends_with("gate_proj.weight") {
            let rows = (0..WIDTH).flat_map(|row| {
                (0..HIDDEN).map(move |column| {
                    let other = usize::from(matches!(row % 4, 1 | 2));
                    let near = noise((row * HIDDEN + column) as u64, 1).next().unwrap();
                    let main = if column == 5 * other { 2.0 } else { 0.0 };
                    (main + near) as f32 * (1 + row) as f32
                })
            });
            bytes = rows.flat_map(f32::to_le_bytes).collect();
        }
        specs.push(Spec {
            name: name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes,
        });
    }
    bench.model("dense", &config, &specs);
    let recipe = "base_model: dense\ngate_mode: random\nupcycle: {granularity: 2, split: kmeans}\nexperts: [{source_model: dense}]\n";
    let bytes = bench.moe(recipe, &["--threads", "1"]);
    assert!(bytes == bench.moe(recipe, &["--threads", "3", "--memory", "64MiB"]));
    let (out, dense) = (by_name(&bench.path("out")), by_name(&bench.path("dense")));
    let row = |tensor: &Loaded, row: usize| tensor.bytes[row * 4 * HIDDEN..][..4 * HIDDEN].to_vec();
    for layer in 0..LAYERS {
        let gate = &dense[&format!("model.layers.{layer}.mlp.gate_proj.weight")];
        let up = &dense[&format!("model.layers.{layer}.mlp.up_proj.weight")];
        let mut seen = Vec::new();
        for part in 0..2 {
            let of = |matrix: &str| {
                &out[&format!(
                    "model.layers.{layer}.block_sparse_moe.experts.{part}.{matrix}.weight"
                )]
            };
            let found = (0..WIDTH / 2).map(|place| {
                let own = row(of("w1"), place);
                let neuron = (0..WIDTH).find(|neuron| row(gate, *neuron) == own).unwrap();
                assert!(
                    row(of("w3"), place) == row(up, neuron),
                    "up rows go with their gates"
                );
                neuron
            });
            let found: Vec<usize> = found.collect();
            let kind = |row: usize| matches!(row % 4, 1 | 2);
            assert!(
                found.iter().all(|row| kind(*row) == kind(found[0])),
                "{found:?}"
            );
            seen.extend(found);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..WIDTH).collect::<Vec<_>>());
    }
    bench.passes(&["verify", "out", "--full"]);
}

/// A file of rows is an input like any other: the lock has it, and verify finds it and sees that it changed.
#[test]
fn a_file_of_rows_is_an_input() {
    let bench = Bench::new();
    bench.dense("dense", "llama", 3, json!({}));
    let rows = |name: &str, seed: u64| {
        let values = noise(seed, 2 * HIDDEN);
        bench.model(
            name,
            &json!({}),
            &[floats("rows", Dtype::F32, &[2, HIDDEN], values)],
        );
    };
    rows("rows", 1);
    let file = bench.path("rows/model.safetensors");
    let recipe = format!(
        "base_model: dense\ngate_mode: file\nrouter: {{file: {}}}\nexperts: [{{source_model: dense}}, {{source_model: \
         dense}}]\n",
        file.display()
    );
    bench.moe(&recipe, &["--hash-inputs"]);
    let lock = std::fs::read_to_string(bench.path("out/weldment.lock.json")).unwrap();
    let folder = file.parent().unwrap().display().to_string();
    assert!(
        !lock.contains(&folder),
        "an absolute path stays in the lock"
    );
    let lock: Value = serde_json::from_str(&lock).unwrap();
    assert_eq!(lock["inputs"].as_array().unwrap().len(), 2, "{lock:#}");
    let named = format!("model.safetensors={}", file.display());
    let verify = || bench.weld(&["verify", "out", "--full", "--inputs", &named]);
    let verified = verify();
    assert_eq!(
        verified.code,
        Some(0),
        "{}{}",
        verified.stdout,
        verified.stderr
    );
    rows("rows", 2);
    let changed = verify();
    assert_eq!(
        changed.code,
        Some(1),
        "{}{}",
        changed.stdout,
        changed.stderr
    );
    assert!(
        changed.stdout.contains("model.safetensors"),
        "{}",
        changed.stdout
    );
}

/// All keys at once, and a backbone without a base of its own: it is merged on the mixture's.
#[test]
fn a_recipe_with_everything_runs() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        bench.dense(name, "llama", seed, json!({}));
    }
    let recipe = |scale: &str, base: &str| {
        format!(
            "base_model: base\narchitecture: glm4_moe\ngate_mode: gate_input\nrouter: {{tokens: mean, temperature: \
             0.5, seed: 7}}\nupcycle: {{granularity: 2, scale: {scale}, drop: 0.0}}\nlayers: \"1-\"\nfold_norms: \
             true\nbackbone: {{merge_method: ties, {base}models: [{{model: one}}, {{model: two}}], parameters: \
             {{weight: 1, density: 0.5}}}}\nexperts:\n  - {{source_model: one, positive_prompts: [\"ab\"]}}\n  - \
             {{source_model: two, positive_prompts: [\"cd\"]}}\nshared_experts:\n  - {{source_model: base, alpha: \
             0.5}}\n"
        )
    };
    let named = bench.moe(&recipe("exact", "base_model: base, "), &[]);
    let weights = |files: &[(String, Vec<u8>)]| {
        let file = files.iter().find(|(name, _)| name == "model.safetensors");
        file.unwrap().1.clone()
    };
    assert!(weights(&named) == weights(&bench.moe(&recipe("exact", ""), &[])));
    assert_eq!(bench.weld(&["check", "out", "-q"]).code, Some(0));
    bench.passes(&["verify", "out", "--full"]);
    let message = bench.moe_refused(&recipe("cube", ""));
    assert!(
        message.contains("expected `exact` for `scale`, found `cube`"),
        "{message}"
    );
}

/// A mixture of two layers with three experts, each by itself or all in two tensors; the same values in both.
fn mixture_in(bench: &Bench, name: &str, seed: u64, fused: bool) {
    let (hidden, width, experts) = (6, 4, 3);
    let values = |kind: u64, layer: u64, expert: u64, count: usize| -> Vec<f64> {
        noise(seed * 1000 + layer * 100 + kind * 10 + expert, count).collect()
    };
    let mut specs = vec![floats(
        "model.embed_tokens.weight",
        Dtype::BF16,
        &[8, hidden],
        noise(seed, 8 * hidden),
    )];
    for layer in 0..2 {
        let count = hidden * width;
        let prefix = format!("model.layers.{layer}.mlp");
        let router = noise(seed + layer, experts as usize * hidden);
        specs.push(floats(
            &format!("{prefix}.gate.weight"),
            Dtype::BF16,
            &[experts as usize, hidden],
            router,
        ));
        let all = |kinds: &[u64]| -> Vec<f64> {
            (0..experts)
                .flat_map(|expert| {
                    kinds
                        .iter()
                        .flat_map(move |&kind| values(kind, layer, expert, count))
                })
                .collect()
        };
        if fused {
            let shape = [experts as usize, 2 * width, hidden];
            specs.push(floats(
                &format!("{prefix}.experts.gate_up_proj"),
                Dtype::BF16,
                &shape,
                all(&[1, 2]),
            ));
            let shape = [experts as usize, hidden, width];
            specs.push(floats(
                &format!("{prefix}.experts.down_proj"),
                Dtype::BF16,
                &shape,
                all(&[3]),
            ));
            continue;
        }
        for expert in 0..experts {
            for (kind, part) in [(1, "gate_proj"), (2, "up_proj"), (3, "down_proj")] {
                let shape = if kind == 3 {
                    [hidden, width]
                } else {
                    [width, hidden]
                };
                let name = format!("{prefix}.experts.{expert}.{part}.weight");
                specs.push(floats(
                    &name,
                    Dtype::BF16,
                    &shape,
                    values(kind, layer, expert, count),
                ));
            }
        }
    }
    bench.tensors(&format!("{name}/model.safetensors"), &specs);
}

#[test]
fn mixtures_in_two_layouts_merge_in_that_of_the_base() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        mixture_in(&bench, &format!("{name}-each"), seed, false);
        mixture_in(&bench, &format!("{name}-fused"), seed, true);
    }
    for (first, method) in [
        ("{model: A, parameters: {weight: 0.25}}, ", "linear"),
        ("", "task_arithmetic\nbase_model: A"),
    ] {
        for (layout, other) in [("each", "fused"), ("fused", "each")] {
            let merged = |of_b: &str| {
                let recipe = format!(
                    "merge_method: {method}\nmodels: [{first}{{model: b-{of_b}, parameters: {{weight: 0.75}}}}]\n"
                );
                load(&bench.merge(&recipe.replace('A', &format!("a-{layout}")), &[]))
            };
            assert_eq!(merged(other), merged(layout), "{method} {layout}");
        }
    }
    // The merge is proven from the files as they are.
    bench.passes(&["verify", "out", "--full"]);
}

#[test]
fn the_layout_of_experts_may_be_chosen() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        mixture_in(&bench, &format!("{name}-each"), seed, false);
        mixture_in(&bench, &format!("{name}-fused"), seed, true);
    }
    let recipe = |first: &str, second: &str, key: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a-{first}}}, {{model: b-{second}}}]\nparameters: {{weight: 0.5}}\n{key}"
        )
    };
    let by = |option: &str| if option == "--fused" { "fused" } else { "each" };
    for option in ["--fused", "--per-expert"] {
        let layout = by(option);
        let expected = by_name(&bench.merge(&recipe(layout, layout, ""), &[]));
        let key = format!("expert_layout: {}\n", option[2..].replace('-', "_"));
        for first in ["each", "fused"] {
            for second in ["each", "fused"] {
                let found = by_name(&bench.merge(&recipe(first, second, ""), &[option]));
                assert!(found == expected, "{option} {first} {second}");
                bench.passes(&["verify", "out", "--full"]);
                bench.passes(&["verify", "out", "--samples", "2"]);
                let found = by_name(&bench.merge(&recipe(first, second, &key), &[]));
                assert!(found == expected, "{key} {first} {second}");
            }
        }
        // What is only copied is the bytes of the model; every byte of it is proven.
        let other = if layout == "fused" { "each" } else { "fused" };
        let copy = format!("merge_method: passthrough\nmodels: [{{model: a-{other}}}]\n");
        let found = by_name(&bench.merge(&copy, &[option]));
        assert!(
            found == by_name(&bench.path(&format!("a-{layout}"))),
            "{option}"
        );
        let file = bench.path("out/model.safetensors");
        let whole = fs::read(&file).unwrap();
        for (name, tensor) in found.iter().filter(|(name, _)| name.contains("experts")) {
            let len = tensor.bytes.len();
            let place = (0..=whole.len() - len).find(|&at| whole[at..].starts_with(&tensor.bytes));
            for at in [0, len - 2] {
                let mut bytes = whole.clone();
                bytes[place.unwrap() + at] ^= 1;
                fs::write(&file, bytes).unwrap();
                let verified = bench.weld(&["verify", "out", "--full", "-q"]);
                assert_eq!(verified.code, Some(1), "{name}: {}", verified.stdout);
                assert!(
                    verified.stdout.contains(name.as_str()),
                    "{}",
                    verified.stdout
                );
            }
        }
    }
    // Where it cannot be, the key is named.
    fs::remove_dir_all(bench.path("out")).unwrap();
    bench.llama("dense", 1, Dtype::BF16);
    let dense = "merge_method: passthrough\nmodels: [{model: dense}]\nexpert_layout: fused\n";
    let message = bench.refused(&dense.replace("dense", "./dense"), &[]);
    assert!(
        message.contains("recipe.yml:3") && message.contains("no experts"),
        "{message}"
    );
    let message = bench.refused(&dense.replace("fused", "fusde"), &[]);
    assert!(message.contains("did you mean `fused`?"), "{message}");
    let both = bench.weld(&["merge", "recipe.yml", "out", "--fused", "--per-expert"]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
    let two = format!(
        "name: mean\n{}---\nmerge_method: passthrough\nmodels: [{{model: mean}}]\n",
        recipe("each", "each", "expert_layout: fused\n")
    );
    let message = bench.refused(&two, &[]);
    assert!(
        message.contains("`expert_layout` has no place in a document"),
        "{message}"
    );
}

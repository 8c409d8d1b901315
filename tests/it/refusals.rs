//! Every refusal names its culprit, says what to do, exits with 1 and leaves nothing behind.

use std::fs;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{Bench, Spec, floats, integers, llama, llama_config, load};

const LINEAR: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n";

/// Models `base`, `a` and `b` of one shape.
fn bench() -> Bench {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        bench.llama(name, seed as u64 + 1, Dtype::BF16);
    }
    bench
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in:\n{message}");
    }
}

/// Recipes that are refused before anything is read from the weights: recipe, what is said.
const RECIPES: [(&str, &str, &[&str]); 17] = [
    (
        "unknown key",
        "merge_method: linear\nmodles: []\n",
        &["recipe.yml:2:1", "`modles`", "did you mean `models`?"],
    ),
    (
        "unknown parameter",
        "merge_method: linear\nmodels: [{model: a, parameters: {weigth: 1}}]\n",
        &["recipe.yml:2:34", "`weigth`", "did you mean `weight`?"],
    ),
    (
        "unknown method",
        "merge_method: tise\nmodels: [{model: a}]\n",
        &["recipe.yml:1:15", "`tise`", "did you mean `ties`?"],
    ),
    (
        "missing model",
        "merge_method: passthrough\nmodels: [{model: nowhere/at-all}]\n",
        &[
            "recipe.yml:2:18",
            "`nowhere/at-all` not found",
            "looked in",
            "hint: ",
        ],
    ),
    (
        "missing base",
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        &["`ties`", "base_model"],
    ),
    (
        "missing parameter",
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\n",
        &["`weight`", "`a`", "`b`"],
    ),
    (
        "parameter for some tensors only",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n",
        &[
            "no value for the required parameter `weight` of `a`",
            "lm_head.weight",
        ],
    ),
    (
        "too many models",
        "merge_method: passthrough\nmodels: [{model: a}, {model: b}]\n",
        &["`passthrough`", "2"],
    ),
    (
        "too few models",
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}]\nparameters: {t: 0.5}\n",
        &["`slerp`", "2"],
    ),
    (
        "weights that sum to zero",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\n",
        &[
            "sum to zero",
            "`normalize`",
            "lm_head.weight",
            "normalize: false",
        ],
    ),
    (
        "weights of task vectors that sum to zero",
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\nparameters: {normalize: true}\n",
        &["sum to zero", "`normalize`"],
    ),
    (
        "density out of range",
        "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1, density: 1.5}}]\n",
        &["recipe.yml:3:", "1.5", "density", "0", "1"],
    ),
    (
        "layers beyond the model",
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n- sources: [{model: b, layer_range: [1, 3]}]\n",
        &[
            "recipe.yml:4:",
            "[1, 3]",
            "`b`, which has 2 layers",
            "half-open",
        ],
    ),
    (
        "an empty range in the middle",
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n- sources: [{model: b, layer_range: [1, 1]}]\n- sources: [{model: a, layer_range: [1, 2]}]\n",
        &["recipe.yml:4:", "`[1, 1]` is empty"],
    ),
    (
        "bad YAML",
        "merge_method: [linear\nmodels: x\n",
        &["recipe.yml:2:"],
    ),
    (
        "an adapter",
        "merge_method: passthrough\nmodels: [{model: a+lora}]\n",
        &["LoRA", "`lora`", "merge_and_unload"],
    ),
    (
        "several problems at once",
        "merge_method: linear\nmodels: [{model: a, parameters: {weigth: 1}}]\ndtype: bf16\nout: x\n",
        &["`weigth`", "`bf16`", "`out`", "3 problems"],
    ),
];

#[test]
fn recipes_are_refused_with_place_and_remedy() {
    let bench = bench();
    let mut missing = Vec::new();
    for (name, recipe, parts) in RECIPES {
        let message = bench.refused(recipe, &[]);
        for part in parts.iter().filter(|part| !message.contains(**part)) {
            missing.push(format!("{name}: expected {part:?} in:\n{message}"));
        }
        assert!(message.contains("recipe.yml"), "{name}:\n{message}");
        // The plan refuses the same way.
        assert_eq!(bench.weld(&["plan", "recipe.yml"]).code, Some(1), "{name}");
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn all_models_that_cannot_be_opened_are_named_at_once() {
    let message = bench().refused(
        "merge_method: linear\nmodels: [{model: x}, {model: y}]\nparameters: {weight: 1}\n",
        &[],
    );
    says(&message, &["`x` not found", "`y` not found", "2 problems"]);
}

/// Replaces `b` by a model with other tensors or another config.
fn with_b(change: impl FnOnce(&mut Vec<Spec>, &mut serde_json::Value)) -> Bench {
    let bench = bench();
    let (mut specs, mut config) = (llama(3, 2, Dtype::BF16), llama_config(2));
    change(&mut specs, &mut config);
    fs::remove_dir_all(bench.path("b")).unwrap();
    bench.model("b", &config, &specs);
    bench
}

fn place(specs: &[Spec], name: &str) -> usize {
    specs.iter().position(|spec| spec.name == name).unwrap()
}

#[test]
fn shapes_that_differ_are_shown_with_both_models() {
    let bench = with_b(|specs, _| {
        let at = place(specs, "model.layers.1.mlp.up_proj.weight");
        specs[at] = floats(
            "model.layers.1.mlp.up_proj.weight",
            Dtype::BF16,
            &[13, 8],
            vec![0.5; 104],
        );
    });
    let message = bench.refused(LINEAR, &[]);
    says(
        &message,
        &[
            "model.layers.1.mlp.up_proj.weight",
            "[12, 8]",
            "[13, 8]",
            "`a`",
            "`b`",
        ],
    );
}

#[test]
fn vocabularies_that_differ_are_refused() {
    let bench = with_b(|specs, _| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let at = place(specs, name);
            specs[at] = floats(name, Dtype::BF16, &[17, 8], vec![0.5; 136]);
        }
    });
    let message = bench.refused(LINEAR, &[]);
    says(
        &message,
        &[
            "[16, 8]",
            "[17, 8]",
            "token ids may not mean the same",
            "resize_token_embeddings",
        ],
    );

    let bench = self::bench();
    let tokenizer = |last: &str| {
        json!({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, last: 2}}}).to_string()
    };
    bench.file("a/tokenizer.json", tokenizer("c"));
    bench.file("b/tokenizer.json", tokenizer("d"));
    let message = bench.refused(LINEAR, &[]);
    says(
        &message,
        &[
            "1 token ids do not mean",
            "2 is \"c\" in one and \"d\" in the other",
        ],
    );
}

#[test]
fn tensors_that_one_model_lacks_or_has_alone_are_named() {
    let bench = with_b(|specs, _| {
        let at = place(specs, "model.layers.1.self_attn.q_proj.weight");
        specs.remove(at);
        specs.push(floats("score.weight", Dtype::BF16, &[2, 8], vec![0.5; 16]));
    });
    let message = bench.refused(LINEAR, &[]);
    says(
        &message,
        &["`b` lacks 1 tensor that `a` has: `model.layers.1.self_attn.q_proj.weight`"],
    );
    says(
        &message,
        &["`b` has 1 tensor that `a` lacks: `score.weight`"],
    );
}

#[test]
fn depths_that_differ_point_to_slices() {
    let bench = bench();
    bench.model("deep", &llama_config(3), &llama(9, 3, Dtype::BF16));
    let message = bench.refused(
        "merge_method: linear\nmodels: [{model: a}, {model: deep}]\nparameters: {weight: 1}\n",
        &[],
    );
    says(
        &message,
        &[
            "`deep` has 3 layers in `model.layers.`, and `a` has 2",
            "slices",
        ],
    );
}

#[test]
fn heads_must_be_there_or_tied() {
    let headless = |specs: &mut Vec<Spec>| {
        let at = place(specs, "lm_head.weight");
        specs.remove(at);
    };
    // Untied, and the head is missing.
    let bench = with_b(|specs, _| headless(specs));
    says(
        &bench.refused(LINEAR, &[]),
        &["`b` has no output head", "tie_word_embeddings: false"],
    );

    // The first model ties its head, the other has one of its own.
    let bench = with_b(|specs, config| {
        headless(specs);
        config["tie_word_embeddings"] = json!(true);
    });
    let recipe = LINEAR
        .replace("model: a", "model: x")
        .replace("model: b", "model: a")
        .replace("model: x", "model: b");
    says(
        &bench.refused(&recipe, &[]),
        &["`a` has an output head of its own", "`b`", "would be lost"],
    );

    // Tied, stored all the same, and no copy: only the weights tell.
    let bench = with_b(|_, config| config["tie_word_embeddings"] = json!(true));
    let message = bench.refused("merge_method: passthrough\nmodels: [{model: b}]\n", &[]);
    says(
        &message,
        &[
            "`lm_head.weight` of `b` differs from `model.embed_tokens.weight`",
            "hint: ",
        ],
    );
}

#[test]
fn quantised_models_are_refused_by_name() {
    let bench = with_b(|_, config| config["quantization_config"] = json!({"quant_method": "gptq"}));
    says(&bench.refused(LINEAR, &[]), &["`b`", "gptq", "dequantise"]);
}

#[test]
fn nan_and_infinity_are_counted_unless_allowed() {
    for (method, recipe) in [
        ("linear", LINEAR),
        (
            "passthrough",
            "merge_method: passthrough\nmodels: [{model: b}]\n",
        ),
    ] {
        let bench = with_b(|specs, _| {
            let mut values = vec![0.5; 64];
            values[3] = f64::NAN;
            values[40] = f64::NAN;
            values[50] = f64::NEG_INFINITY;
            let at = place(specs, "model.layers.1.self_attn.q_proj.weight");
            specs[at] = floats(
                "model.layers.1.self_attn.q_proj.weight",
                Dtype::BF16,
                &[8, 8],
                values,
            );
        });
        let message = bench.refused(recipe, &[]);
        let expected = "tensor `model.layers.1.self_attn.q_proj.weight` of model `b` holds 2 NaN and 1 infinite values";
        says(&message, &[expected, "--allow-nonfinite"]);
        let merged = load(&bench.merge(recipe, &["--allow-nonfinite"]));
        let (_, tensor) = merged
            .iter()
            .find(|(name, _)| name.ends_with("layers.1.self_attn.q_proj.weight"))
            .unwrap();
        assert_eq!(
            tensor
                .values()
                .iter()
                .filter(|value| value.is_nan())
                .count(),
            2,
            "{method}"
        );
    }
}

#[test]
fn overflow_is_counted_unless_saturated() {
    for (dtype, name, largest) in [
        ("float16", "F16", 65_504.0),
        ("float8_e4m3fn", "F8_E4M3", 448.0),
    ] {
        let bench = Bench::new();
        bench.tensors(
            "x.safetensors",
            &[floats("w", Dtype::F32, &[4], [1.0, 7e4, -7e4, 2.0])],
        );
        let recipe = format!(
            "merge_method: passthrough\nmodels: [{{model: x.safetensors}}]\ndtype: {dtype}\n"
        );
        let message = bench.refused(&recipe, &[]);
        says(&message, &["2 values of tensor `w`", name, "--saturate"]);
        let merged = load(&bench.merge(&recipe, &["--saturate"]));
        assert_eq!(merged[0].1.values(), [1.0, largest, -largest, 2.0]);
    }
}

#[test]
fn integers_must_agree() {
    let bench = Bench::new();
    for (name, last) in [("a", 3), ("b", 3), ("c", 4)] {
        let specs = [
            floats("w", Dtype::F32, &[2], [1.0, 2.0]),
            integers("ids", &[1, 2, last]),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    let recipe = |other: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a.safetensors}}, {{model: {other}.safetensors}}]\nparameters: {{weight: 1}}\n"
        )
    };
    let merged = load(&bench.merge(&recipe("b"), &[]));
    assert_eq!(
        merged
            .iter()
            .find(|(name, _)| name == "ids")
            .unwrap()
            .1
            .bytes,
        integers("", &[1, 2, 3]).bytes
    );
    fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(&recipe("c"), &[]);
    says(
        &message,
        &[
            "`ids`",
            "differ between `a.safetensors` and `c.safetensors`",
        ],
    );
}

#[test]
fn malformed_files_are_refused() {
    let good = |bench: &Bench| fs::read(bench.path("b/model.safetensors")).unwrap();
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let cases: [(&str, Vec<u8>); 6] = [
        ("truncated", good(&bench())[..900].to_vec()),
        ("empty", Vec::new()),
        ("no JSON", header("nonsense", 8)),
        (
            "overlapping",
            header(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                12,
            ),
        ),
        (
            "holed",
            header(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
                12,
            ),
        ),
        ("a lying length", u64::MAX.to_le_bytes().to_vec()),
    ];
    for (name, bytes) in cases {
        let bench = bench();
        bench.file("b/model.safetensors", bytes);
        let message = bench.refused(LINEAR, &[]);
        assert!(
            message.contains("b/model.safetensors"),
            "{name}:\n{message}"
        );
        assert!(message.contains("recipe.yml:4:"), "{name}:\n{message}");
    }
}

#[test]
fn shards_must_match_their_index() {
    let sharded = |map: serde_json::Value, second: &str| {
        let bench = Bench::new();
        bench.tensors("m/one.safetensors", &[floats("x", Dtype::F32, &[1], [1.0])]);
        bench.tensors(
            "m/two.safetensors",
            &[floats(second, Dtype::F32, &[1], [2.0])],
        );
        bench.file(
            "m/model.safetensors.index.json",
            json!({"weight_map": map}).to_string(),
        );
        bench.refused("merge_method: passthrough\nmodels: [{model: m}]\n", &[])
    };
    let duplicate = sharded(json!({"x": "one.safetensors", "y": "two.safetensors"}), "x");
    says(&duplicate, &["`x`", "one.safetensors", "two.safetensors"]);
    let missing = sharded(
        json!({"x": "one.safetensors", "y": "three.safetensors"}),
        "y",
    );
    says(&missing, &["three.safetensors"]);
    let unindexed = sharded(json!({"x": "one.safetensors", "z": "two.safetensors"}), "y");
    says(&unindexed, &["`z`"]);
    let escaping = sharded(
        json!({"x": "one.safetensors", "y": "../two.safetensors"}),
        "y",
    );
    says(&escaping, &["../two.safetensors"]);
}

#[test]
fn the_output_place_must_be_free() {
    let bench = bench();
    bench.recipe(LINEAR);
    bench.file("full/keep.txt", "mine");
    let full = bench.weld(&["merge", "recipe.yml", "full"]);
    assert_eq!(full.code, Some(1));
    says(&full.stderr, &["full is not empty", "--force"]);
    let file = bench.weld(&["merge", "recipe.yml", "full/keep.txt", "--force"]);
    assert_eq!(file.code, Some(1));
    says(&file.stderr, &["is a file"]);
    for out in ["a", ".", "b/../b"] {
        let input = bench.weld(&["merge", "recipe.yml", out, "--force"]);
        assert_eq!(input.code, Some(1), "{out}");
        says(&input.stderr, &["which would be lost"]);
    }
    assert_eq!(fs::read(bench.path("full/keep.txt")).unwrap(), b"mine");
    assert!(!bench.path("a").join("README.md").exists());
    // An empty folder is free.
    fs::create_dir(bench.path("empty")).unwrap();
    assert_eq!(
        bench.weld(&["merge", "recipe.yml", "empty", "-q"]).code,
        Some(0)
    );
    // With --force, what was there goes.
    assert_eq!(
        bench
            .weld(&["merge", "recipe.yml", "full", "-q", "--force"])
            .code,
        Some(0)
    );
    assert!(!bench.path("full/keep.txt").exists());
}

#[test]
fn too_little_memory_is_said_beforehand() {
    let message = bench().refused(LINEAR, &["--memory", "1MiB"]);
    says(&message, &["1.0 MiB", "MiB of memory", "--memory"]);
}

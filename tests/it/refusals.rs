//! Every refusal names its culprit, says what to do, exits with 1 and leaves nothing behind.

use std::fs;

use safetensors::Dtype;
use serde_json::json;

use crate::fixtures::{
    Bench, Spec, bools, config_with, floats, integers, llama, llama_config, load, noise,
    refusal_code, with, without,
};

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
        "an adapter that is not there",
        "merge_method: passthrough\nmodels: [{model: a+lora}]\n",
        &[
            "recipe.yml:2:",
            "adapter of model `a+lora`",
            "`lora` not found",
        ],
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
        let plan = bench.weld(&["plan", "recipe.yml"]);
        assert_eq!(plan.code, Some(refusal_code(&plan.stderr)), "{name}");
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
            "add `tokenizer: {source: union}`",
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
    let duplicate = sharded(json!({"y": "one.safetensors", "z": "two.safetensors"}), "x");
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

/// A refusal that the plan makes already: what it says, whole, with `BENCH` for the folder.
#[track_caller]
fn planned(bench: &Bench, recipe: &str) -> String {
    let message = bench.refused(recipe, &[]);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(plan.code, Some(refusal_code(&message)));
    assert_eq!(plan.stderr, message, "plan and merge say the same");
    assert_eq!(plan.stdout, "");
    with_hint(&bench.clean(&message))
}

/// A refusal that only the weights can give.
#[track_caller]
fn run_into(bench: &Bench, recipe: &str) -> String {
    let message = bench.refused(recipe, &[]);
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    with_hint(&bench.clean(&message))
}

#[track_caller]
fn with_hint(message: &str) -> String {
    assert!(
        message.contains("hint: "),
        "no way out is shown:\n{message}"
    );
    message.to_owned()
}

#[test]
fn messages_about_recipes_read_well() {
    let bench = bench();
    let list = |entries: &str| format!("merge_method: linear\nmodels:\n{entries}");
    insta::assert_snapshot!(planned(&bench, "merge_method: linear\nmodles:\n- model: a\n"), @"
    error: missing `models` or `slices`
    --> recipe.yml
     = hint: list the models to merge under `models:`

    error: unknown key `modles` in a recipe
     --> recipe.yml:2:1
      |
    2 | modles:
      | ^^^^^^
      |
      = hint: did you mean `models`? the keys are `name`, `merge_method`, `models`, `slices`, `modules`, `base_model`, `statistics`, `parameters`, `dtype`, `out_dtype`, `output`, `quantization`, `expert_layout`, `rounding`, `keep_dtype`, `only`, `except`, `rename`, `allow_config_differences`, `tokenizer`, `tokenizer_source`, `chat_template`

    2 problems in recipe.yml
    ");
    insta::assert_snapshot!(planned(&bench, &list("- {model: a, parameters: {wieght: 1}}\n")), @r"
    error: `linear` has no parameter `wieght`
     --> recipe.yml:3:27
      |
    3 | - {model: a, parameters: {wieght: 1}}
      |                           ^^^^^^
      |
      = hint: did you mean `weight`? the parameters of `linear` are `weight`, `normalize`
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: tise\nmodels: [{model: a}]\n"), @r"
    error: unknown merge method `tise`
     --> recipe.yml:1:15
      |
    1 | merge_method: tise
      |               ^^^^
      |
      = hint: did you mean `ties`? the methods are `linear`, `slerp`, `nuslerp`, `multislerp`, `karcher`, `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `della`, `della_linear`, `breadcrumbs`, `breadcrumbs_ties`, `consensus_ta`, `consensus_ties`, `sce`, `arcee_fusion`, `model_stock`, `nearswap`, `ram`, `ramplus_tl`, `tsvm`, `iso_c`, `iso_cts`, `cart`, `star`, `subspace_boosting`, `wudi`, `swudi_a`, `actmat`, `resmerge`, `svc`, `regmean`, `fisher`, `lines`, `aim`, `magmax`, `localize_stitch`, `geometric_median`, `passthrough`
    ");
    insta::assert_snapshot!(planned(&bench, &list("- {model: nowhere, parameters: {weight: 1}}\n")), @r"
    error: model `nowhere` not found; looked in BENCH/nowhere, BENCH/no-hub/hub/models--nowhere
     --> recipe.yml:3:11
      |
    3 | - {model: nowhere, parameters: {weight: 1}}
      |           ^^^^^^^
      |
      = hint: check the path, or `hf download nowhere`, which the weld of `pip install weldment` does itself
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: 1}\n"), @r"
    error: `ties` needs a `base_model`
     --> recipe.yml:1:15
      |
    1 | merge_method: ties
      |               ^^^^
      |
      = hint: add `base_model:` and the model that the others are measured from
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: ties\nbase_model: gone\nmodels: [{model: a}]\nparameters: {weight: 1}\n"), @r"
    error: model `gone` not found; looked in BENCH/gone, BENCH/no-hub/hub/models--gone
     --> recipe.yml:2:13
      |
    2 | base_model: gone
      |             ^^^^
      |
      = hint: check the path, or `hf download gone`, which the weld of `pip install weldment` does itself
    ");
    insta::assert_snapshot!(planned(&bench, &list("- {model: a, parameters: {weight: 1}}\n- {model: b}\n")), @r"
    error: missing required parameter `weight` for the model `b`
     --> recipe.yml:4:11
      |
    4 | - {model: b}
      |           ^
      |
      = hint: add `weight` to its `parameters`, or to those of the recipe
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: base}]\nparameters: {t: 0.5}\n"), @r"
    error: `slerp` takes 2 models, found 3, the base included
     --> recipe.yml:3:1
      |
    3 | models: [{model: a}, {model: b}, {model: base}]
      | ^^^^^^
      |
      = hint: list fewer models, or choose a method that takes more: `weld methods` has them all
    ");
    insta::assert_snapshot!(planned(&bench, &list("- {model: a, parameters: {weight: 0.1}}\n- {model: b, parameters: {weight: -0.1}}\n")), @r"
    error: the weights [0.1, -0.1] sum to zero, and `normalize` divides by their sum, in 11 tensors (the first is `lm_head.weight`)
    --> recipe.yml
     = hint: choose weights with another sum, or set `normalize: false`
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: ties\nbase_model: base\nmodels: [{model: a}]\nparameters: {weight: 1, density: -0.1}\n"), @r"
    error: expected `density` between 0 and 1, found `-0.1`
     --> recipe.yml:4:34
      |
    4 | parameters: {weight: 1, density: -0.1}
      |                                  ^^^^
      |
      = hint: The fraction of the task vector's elements that is kept.
    ");
    insta::assert_snapshot!(planned(&bench, "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [1, 9]}]\n"), @r"
    error: layer_range [1, 9] goes beyond `a`, which has 2 layers
     --> recipe.yml:3:37
      |
    3 | - sources: [{model: a, layer_range: [1, 9]}]
      |                                     ^^^^^^
      |
      = hint: the range is half-open: [0, 2] is all of it
    ");
    insta::assert_snapshot!(bench.refused("merge_method: linear\nmodels: [{model: a}\n", &[]), @r"
    error: invalid YAML: unclosed bracket '['
     --> recipe.yml:2:9
      |
    2 | models: [{model: a}
      |         ^
    ");
}

#[test]
fn messages_about_models_that_do_not_fit_read_well() {
    let bench = with_b(|specs, _| {
        let odd = floats(
            "model.layers.1.mlp.up_proj.weight",
            Dtype::BF16,
            &[13, 8],
            vec![0.5; 104],
        );
        *specs = with(std::mem::take(specs), odd);
    });
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: `model.layers.1.mlp.up_proj.weight` has shape [12, 8] in `a` and [13, 8] in `b`
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: only tensors of one shape and kind can be merged: these are not fine-tunes of one model; `except: [{tensors: 'model.layers.1.mlp.up_proj.weight', action: copy}]` takes the first model's
    ");
    let bench = with_b(|specs, _| {
        let odd = floats(
            "model.embed_tokens.weight",
            Dtype::BF16,
            &[17, 8],
            vec![0.5; 136],
        );
        *specs = with(std::mem::take(specs), odd);
    });
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: `model.embed_tokens.weight` has shape [16, 8] in `a` and [17, 8] in `b`: their vocabularies differ, so token ids may not mean the same
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: rows of an embedding can be merged only where the same id means the same token: add `tokenizer: {source: union}` to the recipe, which aligns the rows by token (`source: base` keeps the base's tokens only), or leave this model out
    ");
    let bench = self::bench();
    for (model, token) in [("a", "cat"), ("b", "dog")] {
        let vocabulary = json!({"model": {"vocab": {"<s>": 0, token: 1}}});
        bench.file(&format!("{model}/tokenizer.json"), vocabulary.to_string());
    }
    insta::assert_snapshot!(planned(&bench, LINEAR), @r#"
    error: the vocabularies of `a` and `b` differ: 1 token ids do not mean the same token: 1 is "cat" in one and "dog" in the other
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: rows of an embedding can be merged only where the same id means the same token: add `tokenizer: {source: union}` to the recipe, which aligns the rows by token (`source: base` keeps the base's tokens only), or leave this model out
    "#);
    let bench = with_b(|specs, _| {
        *specs = without(std::mem::take(specs), "model.norm.weight");
        specs.push(floats("score.weight", Dtype::BF16, &[2, 8], vec![0.5; 16]));
    });
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: `b` has 1 tensor that `a` lacks: `score.weight`
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: `except: [{tensors: 'score.weight', action: drop}]` leaves them out, `action: copy` takes them from the first model that has them

    error: `b` lacks 1 tensor that `a` has: `model.norm.weight`
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: the nearest to `model.norm.weight` that it has is `score.weight`; `except: [{tensors: 'model.norm.weight', action: drop}]` leaves such tensors out of the merge

    2 problems in recipe.yml
    ");
    let bench = with_b(|specs, _| *specs = without(std::mem::take(specs), "lm_head.weight"));
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: `b` has no output head, and its config says `tie_word_embeddings: false`
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: the checkpoint is incomplete, or the config should say true
    ");
    let bench = with_b(|_, config| {
        config["quantization_config"] = json!({"quant_method": "awq", "bits": 4})
    });
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: model `b` is quantised (`quantization_config` with quant_method `awq`), in BENCH/b/config.json
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: dequantise it first, or name the model it was made from; if its weights are plain, drop the entry from config.json
    ");
    let bench = with_b(|specs, _| {
        specs.push(Spec {
            name: "model.layers.0.mlp.up_proj.qweight".into(),
            dtype: Dtype::I32,
            shape: vec![1, 2],
            bytes: vec![0; 8],
        });
    });
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: model `b` is quantised (tensor `model.layers.0.mlp.up_proj.qweight`), in BENCH/b/model.safetensors
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: dequantise it first, or name the model it was made from
    ");
}

#[test]
fn a_tied_first_model_and_one_with_a_head_of_its_own_read_well() {
    let bench = Bench::new();
    let tied = config_with(2, json!({"tie_word_embeddings": true}));
    bench.model(
        "a",
        &tied,
        &without(llama(1, 2, Dtype::BF16), "lm_head.weight"),
    );
    bench.llama("b", 2, Dtype::BF16);
    insta::assert_snapshot!(planned(&bench, LINEAR), @r"
    error: `b` has an output head of its own (`tie_word_embeddings: false`), which would be lost: `a`, whose config the output gets, ties it to the embedding
     --> recipe.yml:4:11
      |
    4 | - {model: b, parameters: {weight: 1}}
      |           ^
      |
      = hint: make `b` the base model or the first one, or leave it out
    ");
}

#[test]
fn messages_about_weights_read_well() {
    let bench = with_b(|specs, _| {
        let mut values: Vec<f64> = noise(1, 8).collect();
        values[2] = f64::NAN;
        values[7] = f64::INFINITY;
        *specs = with(
            std::mem::take(specs),
            floats("model.norm.weight", Dtype::BF16, &[8], values),
        );
    });
    insta::assert_snapshot!(run_into(&bench, LINEAR), @r"
    error: tensor `model.norm.weight` of model `b` holds 1 NaN and 1 infinite values, in model.safetensors

    hint: the checkpoint is damaged: leave the model out, or carry them through with --allow-nonfinite
    ");

    let bench = with_b(|specs, _| {
        let large = floats("model.norm.weight", Dtype::BF16, &[8], vec![1e30; 8]);
        *specs = with(std::mem::take(specs), large);
    });
    insta::assert_snapshot!(run_into(&bench, &format!("{LINEAR}dtype: float16\n")), @r"
    error: 8 values of tensor `model.norm.weight` are too large for F16

    hint: write another dtype (`dtype: bfloat16` has the range of float32), or clamp them to the largest value with --saturate
    ");

    // More than the plan compares.
    let bench = bench_with_each(|name| {
        let mut ids = vec![1; 200_000];
        ids[199_999] = i64::from(name == "b");
        integers("ids", &ids)
    });
    insta::assert_snapshot!(run_into(&bench, LINEAR), @r"
    error: `ids` holds integers or bools that differ between `a` and `b`

    hint: such tensors are carried through only when all models agree
    ");

    let bench = with_b(|_, config| config["tie_word_embeddings"] = json!(true));
    let recipe = "merge_method: passthrough\nmodels: [{model: b}]\n";
    insta::assert_snapshot!(run_into(&bench, recipe), @r"
    error: `lm_head.weight` of `b` differs from `model.embed_tokens.weight`, though the output ties them

    hint: the model was trained with a head of its own: set `tie_word_embeddings` to false in the configs of all models, or remove the head
    ");
}

/// Models `a` and `b` with one more tensor each.
fn bench_with_each(more: impl Fn(&str) -> Spec) -> Bench {
    let bench = Bench::new();
    for (seed, name) in ["a", "b"].into_iter().enumerate() {
        let specs = with(llama(seed as u64, 2, Dtype::BF16), more(name));
        bench.model(name, &llama_config(2), &specs);
    }
    bench
}

#[test]
fn truth_values_and_dtypes_without_arithmetic_must_agree() {
    let bench = bench_with_each(|name| bools("mask", &[true, name == "a"]));
    let message = planned(&bench, LINEAR);
    says(&message, &["`mask`", "differ between `a` and `b`"]);

    let bench = bench_with_each(|name| match name {
        "a" => integers("ids", &[1]),
        _ => floats("ids", Dtype::F32, &[1], [1.0]),
    });
    let message = planned(&bench, LINEAR);
    says(&message, &["`ids` is I64 in `a` and F32 in `b`"]);
}

#[test]
fn nan_is_found_in_every_role_and_dtype() {
    let task = "merge_method: task_arithmetic\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 0.5}\n";
    let slerp = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n";
    let ties = "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {weight: 1, density: 0.5}\n";
    let convert = "merge_method: passthrough\nmodels: [{model: b}]\ndtype: float64\n";
    // The last of many elements, so that no block is left out.
    let count = 40_000;
    for dtype in [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::F8_E4M3,
        Dtype::F8_E5M2,
    ] {
        let bench = Bench::new();
        for name in ["a", "b"] {
            let mut values: Vec<f64> = noise(3, count).collect();
            if name == "b" {
                values[count - 1] = f64::NAN;
            }
            bench.model(
                name,
                &llama_config(2),
                &[floats("w", dtype, &[count], values)],
            );
        }
        for recipe in [LINEAR, task, slerp, ties, convert] {
            let message = bench.refused(recipe, &[]);
            let expected = "tensor `w` of model `b` holds 1 NaN and 0 infinite values";
            assert!(message.contains(expected), "{dtype:?}: {message}\n{recipe}");
        }
    }
}

#[test]
fn overflow_of_a_merge_is_counted_and_clamped_at_the_edge_of_each_dtype() {
    // Just below the edge a value rounds down to the largest; at the edge it is too large.
    for (key, largest, below, edge) in [
        ("float16", 65_504.0, 65_519.0, 65_520.0),
        ("bfloat16", 3.389_531_389_251_535_5e38, 3.39e38, 3.4e38),
        ("float8_e4m3fn", 448.0, 464.0, 465.0),
        ("float8_e5m2", 57_344.0, 61_439.0, 61_440.0),
    ] {
        let bench = Bench::new();
        for name in ["a", "b"] {
            let spec = floats("w", Dtype::F64, &[4], [below, -below, edge, -edge]);
            bench.tensors(&format!("{name}.safetensors"), &[spec]);
        }
        let recipe = format!(
            "merge_method: linear\nmodels: [{{model: a.safetensors}}, {{model: b.safetensors}}]\n\
             parameters: {{weight: 1}}\ndtype: {key}\n"
        );
        let message = bench.refused(&recipe, &[]);
        says(&message, &["2 values of tensor `w`", "--saturate"]);
        let merged = load(&bench.merge(&recipe, &["--saturate"]));
        assert_eq!(
            merged[0].1.values(),
            [largest, -largest, largest, -largest],
            "{key}"
        );
    }
}

/// A safetensors file with that header.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn every_broken_file_says_what_was_expected_and_what_was_found() {
    let one = r#""x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let header = |more: &str| format!("{{{one}{more}}}");
    let whole = raw(&header(""), 8);
    let cases: Vec<Vec<u8>> = vec![
        whole[..whole.len() - 3].to_vec(),
        [&whole[..], &[0, 0]].concat(),
        whole[..20].to_vec(),
        Vec::new(),
        raw(
            &header(r#","y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#),
            12,
        ),
        raw(
            &header(r#","y":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}"#),
            16,
        ),
        raw(
            &header(r#","x":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#),
            16,
        ),
        raw(
            &header(r#","y":{"dtype":"F32","shape":[3],"data_offsets":[8,16]}"#),
            16,
        ),
        raw(
            &header(r#","y":{"dtype":"F32","shape":[1],"data_offsets":[12,8]}"#),
            16,
        ),
        raw(
            &header(r#","y":{"dtype":"Q9","shape":[1],"data_offsets":[8,12]}"#),
            12,
        ),
        raw("[]", 0),
        u64::MAX.to_le_bytes().to_vec(),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
        b"<!DOCTYPE html><html>".to_vec(),
        raw("{}", 0),
    ];
    let bench = Bench::new();
    let mut said = String::new();
    for bytes in cases {
        bench.file("x.safetensors", bytes);
        let message = planned(
            &bench,
            "merge_method: passthrough\nmodels: [{model: x.safetensors}]\n",
        );
        for line in message.lines() {
            if let Some(what) = line.strip_prefix("error: ") {
                said.push_str(&format!("{what}\n"));
            } else if let Some((_, hint)) = line.split_once("hint: ") {
                said.push_str(&format!("  {hint}\n"));
            }
        }
    }
    insta::assert_snapshot!(said, @r"
    BENCH/x.safetensors is truncated: expected 70 bytes, found 67
      copy or download it again
    BENCH/x.safetensors has bytes that belong to no tensor at its end: expected 70 bytes, found 72
      the file is damaged: copy or download it again
    BENCH/x.safetensors is truncated: expected 62 bytes, found 20
      copy or download it again
    BENCH/x.safetensors is truncated: expected 8 bytes, found 0
      copy or download it again
    BENCH/x.safetensors: tensor `y` overlaps the one before it: expected to begin at byte 8 of the data, found 4
      the file is damaged: copy or download it again
    BENCH/x.safetensors: a hole before tensor `y`: expected to begin at byte 8 of the data, found 12
      the file is damaged: copy or download it again
    BENCH/x.safetensors names tensor `x` twice
      the file is damaged: copy or download it again
    BENCH/x.safetensors: tensor `y` of dtype F32 and shape [3]: expected 12 bytes, found 8 between its offsets
      the file is damaged: copy or download it again
    BENCH/x.safetensors: tensor `y` ends before it begins: data offsets 12 to 8
      the file is damaged: copy or download it again
    BENCH/x.safetensors has a malformed safetensors header: entry `y`: unknown variant `Q9`, expected one of `BOOL`, `F4`, `F6_E2M3`, `F6_E3M2`, `U8`, `I8`, `F8_E5M2`, `F8_E4M3`, `F8_E8M0`, `F8_E4M3FNUZ`, `F8_E5M2FNUZ`, `I16`, `U16`, `F16`, `BF16`, `I32`, `U32`, `F32`, `C64`, `F64`, `I64`, `U64` at line 1 column 71
      the file is damaged: copy or download it again
    BENCH/x.safetensors has a malformed safetensors header: invalid type: sequence, expected an object of tensors by name at line 1 column 0
      the file is damaged: copy or download it again
    BENCH/x.safetensors is not a safetensors file: its first 8 bytes give a header of 18446744073709551615 bytes, expected at most 100000000
      the file is damaged: copy or download it again
    BENCH/x.safetensors is a Git LFS pointer, not the weights, expected safetensors or a file of torch.save
      run `git lfs pull`
    BENCH/x.safetensors is a web page, expected safetensors or a file of torch.save
      download the file itself; a gated model needs `hf auth login` first
    BENCH/x.safetensors holds no tensors
      name another file or folder
    ");
}

#[test]
fn an_index_and_its_shards_must_be_of_one_download() {
    let mut said = String::new();
    let mut case = |change: &dyn Fn(&Bench)| {
        let bench = Bench::new();
        let specs = ["x", "y", "z", "w"].map(|name| floats(name, Dtype::F32, &[1], [1.0]));
        bench.sharded("m", &llama_config(2), &specs);
        change(&bench);
        let message = planned(&bench, "merge_method: passthrough\nmodels: [{model: m}]\n");
        for line in message.lines() {
            if let Some(what) = line.strip_prefix("error: ") {
                said.push_str(&format!("{what}\n"));
            } else if let Some((_, hint)) = line.split_once("hint: ") {
                said.push_str(&format!("  {hint}\n"));
            }
        }
    };
    let (one, two) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    let index = |map: serde_json::Value| {
        move |bench: &Bench| {
            let text = json!({"weight_map": map}).to_string();
            bench.file("m/model.safetensors.index.json", text);
        }
    };
    // In the other shard; in none; in no shard's entry; in a shard that is not there; outside of the folder.
    case(&index(json!({"x": one, "y": two, "z": two, "w": two})));
    case(&index(
        json!({"x": one, "y": one, "z": two, "w": two, "v": two}),
    ));
    case(&index(json!({"x": one, "y": one, "z": two})));
    case(&index(
        json!({"x": one, "y": one, "z": two, "w": "model-00003-of-00002.safetensors"}),
    ));
    case(&index(
        json!({"x": one, "y": one, "z": two, "w": "../w.safetensors"}),
    ));
    case(&index(json!([])));
    case(&|bench| {
        bench.file("m/model.safetensors.index.json", "{");
    });
    // A tensor in both shards, without an index that says which is meant.
    let twice = |bench: &Bench| {
        let specs = ["x", "y", "z"].map(|name| floats(name, Dtype::F32, &[1], [1.0]));
        bench.tensors(&format!("m/{one}"), &specs);
    };
    case(&|bench| {
        twice(bench);
        fs::remove_file(bench.path("m/model.safetensors.index.json")).unwrap();
    });
    // A number of the set is missing.
    case(&|bench| {
        fs::remove_file(bench.path("m/model.safetensors.index.json")).unwrap();
        fs::remove_file(bench.path(&format!("m/{one}"))).unwrap();
    });
    insta::assert_snapshot!(said, @r"
    BENCH/m/model.safetensors.index.json: tensor `y` expected in model-00002-of-00002.safetensors, found in model-00001-of-00002.safetensors
      index and shards are not of one download, fetch both again
    BENCH/m/model.safetensors.index.json: tensor `v` expected in model-00002-of-00002.safetensors, found in no shard
      index and shards are not of one download, fetch both again
    BENCH/m/model.safetensors.index.json does not name tensor `w` of model-00002-of-00002.safetensors (1 such in all)
      index and shards are not of one download, fetch both again
    BENCH/m: shard model-00003-of-00002.safetensors is missing, expected by model.safetensors.index.json
      copy or download it again
    BENCH/m/model.safetensors.index.json: tensor `w` is said to be in `../w.safetensors`, expected the plain name of a file in the same folder that ends in .safetensors
      index and shards are not of one download, fetch both again
    BENCH/m/model.safetensors.index.json is a malformed index: invalid type: sequence, expected a `weight_map` of file names by tensor at line 1 column 14
      download it again
    BENCH/m/model.safetensors.index.json is a malformed index: EOF while parsing an object at line 1 column 1
      download it again
    BENCH/m: tensor `z` is in both model-00001-of-00002.safetensors and model-00002-of-00002.safetensors
      the files are not of one checkpoint: fetch it again into an empty folder
    BENCH/m: shard model-00001-of-00002.safetensors is missing, expected by the names of the others
      copy or download it again
    ");
}

#[test]
fn other_formats_are_named_with_a_way_out() {
    for (file, says_it) in [
        ("model.ggml", "take a GGUF file of the model"),
        ("model.onnx", "use the safetensors it was exported from"),
        ("adapter_model.safetensors", "write `model+adapter`"),
    ] {
        let bench = Bench::new();
        bench.file(&format!("m/{file}"), "x");
        let message = planned(&bench, "merge_method: passthrough\nmodels: [{model: m}]\n");
        says(
            &message,
            &["no safetensors weights in BENCH/m", file, says_it],
        );
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_on_each_level() {
    // In the recipe.
    let bench = bench();
    let recipe = "merge_method: ties\nbase_model: base\nmodls: 3\nmodels:\n- model: a\n  parameters: {weight: 1, density: 2}\n\
                  - model: b\n  parameters: {wieght: 1}\ndtype: bf16\n";
    insta::assert_snapshot!(planned(&bench, recipe), @"
    error: unknown key `modls` in a recipe
     --> recipe.yml:3:1
      |
    3 | modls: 3
      | ^^^^^
      |
      = hint: did you mean `models`? the keys are `name`, `merge_method`, `models`, `slices`, `modules`, `base_model`, `statistics`, `parameters`, `dtype`, `out_dtype`, `output`, `quantization`, `expert_layout`, `rounding`, `keep_dtype`, `only`, `except`, `rename`, `allow_config_differences`, `tokenizer`, `tokenizer_source`, `chat_template`

    error: expected `density` between 0 and 1, found `2`
     --> recipe.yml:6:36
      |
    6 |   parameters: {weight: 1, density: 2}
      |                                    ^
      |
      = hint: The fraction of the task vector's elements that is kept.

    error: `ties` has no parameter `wieght`
     --> recipe.yml:8:16
      |
    8 |   parameters: {wieght: 1}
      |                ^^^^^^
      |
      = hint: did you mean `weight`? the parameters of `ties` are `weight`, `density`, `normalize`, `lambda`, `rescale`, `int8_mask`

    error: unknown dtype `bf16` for `dtype`
     --> recipe.yml:9:8
      |
    9 | dtype: bf16
      |        ^^^^
      |
      = hint: did you mean `bfloat16`?

    4 problems in recipe.yml
    ");
    // Among the models.
    let bench = with_b(|specs, _| {
        let odd = floats("model.norm.weight", Dtype::BF16, &[4], vec![0.5; 4]);
        *specs = with(without(std::mem::take(specs), "lm_head.weight"), odd);
        specs.push(floats("extra", Dtype::BF16, &[1], [1.0]));
    });
    let message = planned(&bench, LINEAR);
    says(
        &message,
        &[
            "`b` has no output head",
            "`b` has 1 tensor that `a` lacks: `extra`",
            "`model.norm.weight` has shape [8] in `a` and [4] in `b`",
            "3 problems in recipe.yml",
        ],
    );
}

#[test]
fn an_input_cannot_be_the_output_under_any_name() {
    let bench = Bench::new();
    bench.llama("models/a", 1, Dtype::BF16);
    bench.llama("models/b", 2, Dtype::BF16);
    bench.tensors("files/x.safetensors", &llama(3, 2, Dtype::BF16));
    std::os::unix::fs::symlink("models/a", bench.path("link")).unwrap();
    std::os::unix::fs::symlink("../models", bench.path("files/up")).unwrap();
    let folders = "merge_method: linear\nmodels: [{model: link}, {model: models/b}]\nparameters: {weight: 1}\n";
    let file = "merge_method: passthrough\nmodels: [{model: files/x.safetensors}]\n";
    let before = || (load(&bench.path("models/a")), load(&bench.path("files")));
    let inputs = before();
    for (recipe, out) in [
        (folders, "models/a"),
        (folders, "link"),
        (folders, "models"),
        (folders, "files/up"),
        (folders, "models/../models/b/"),
        (file, "files"),
    ] {
        bench.recipe(recipe);
        for force in [&["--force"] as &[&str], &[]] {
            let arguments = [&["merge", "recipe.yml", out], force].concat();
            let outcome = bench.weld(&arguments);
            assert_eq!(outcome.code, Some(1), "{out}: {}", outcome.stderr);
            says(&with_hint(&outcome.stderr), &["which would be lost"]);
        }
    }
    assert!(before() == inputs);
    for out in ["/", "models/..", ".."] {
        let outcome = bench.weld(&["merge", "recipe.yml", out, "--force"]);
        assert_eq!(outcome.code, Some(1), "{out}: {}", outcome.stderr);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_is_too_small_is_said_before_anything_is_written() {
    // A sparse file: 12 TB that take no room.
    const ELEMENTS: u64 = 12_000_000_000_000;
    let bench = Bench::new();
    let header = format!(
        r#"{{"w":{{"dtype":"F8_E5M2","shape":[{ELEMENTS}],"data_offsets":[0,{ELEMENTS}]}}}}"#
    );
    let path = bench.file("huge.safetensors", raw(&header, 0));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    if file.set_len(8 + header.len() as u64 + ELEMENTS).is_err() {
        // The file system takes no sparse file of that size: nothing can be tested.
        return;
    }
    bench.recipe("merge_method: passthrough\nmodels: [{model: huge.safetensors}]\n");
    let outcome = bench.weld(&["merge", "recipe.yml", "out", "-q"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    says(
        &with_hint(&outcome.stderr),
        &["the output needs 12000000004096 bytes", "bytes free"],
    );
    assert!(!bench.path("out").exists());
    assert!(!bench.staging().exists());
}

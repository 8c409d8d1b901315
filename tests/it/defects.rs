//! What merge tools get silently wrong, as their users found out: one test for each, named after the defect.

use std::fmt::Write;

use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::methods::{self, BaseRule, MethodInfo, NeedOf, ParamScope};

use crate::fixtures::{
    Bench, Loaded, Spec, bools, by_name, config_with, floats, integers, llama, llama_config, load,
    noise, read_json, with,
};

/// Random values by name, so that no two tensors are alike.
fn weights(seed: u64, dtype: Dtype, names: &[String]) -> Vec<Spec> {
    names
        .iter()
        .zip(0u64..)
        .map(|(name, index)| floats(name, dtype, &[4, 6], noise(seed * 10_000 + index, 24)))
        .collect()
}

const MEAN: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n";

/// Merges two models of these names half and half, and sees that each tensor is the mean.
fn is_merged_whole(config: &Value, names: &[String]) {
    let bench = Bench::new();
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.model(model, config, &weights(seed, Dtype::F32, names));
    }
    let out = by_name(&bench.merge(MEAN, &[]));
    let (a, b) = (by_name(&bench.path("a")), by_name(&bench.path("b")));
    assert!(out.keys().eq(a.keys()), "names differ");
    for (name, merged) in &out {
        let (a, b) = (a[name].values(), b[name].values());
        for ((merged, a), b) in merged.values().into_iter().zip(a).zip(b) {
            let mean = f64::from(((a + b) / 2.0) as f32);
            assert_eq!(merged, mean, "{name}");
        }
    }
}

fn layered(prefix: &str, layers: usize, suffixes: &[&str]) -> Vec<String> {
    (0..layers)
        .flat_map(|layer| {
            suffixes
                .iter()
                .map(move |suffix| format!("{prefix}{layer}.{suffix}"))
        })
        .collect()
}

/// The norms that mergekit's table of OLMo 2 lacked, the `v_proj` that Qwen3's lacked, layers of another kind.
#[test]
fn weights_that_a_table_of_architectures_forgot_are_missing_and_then_random() {
    let mut names = vec!["model.embed_tokens.weight".to_owned()];
    names.extend(layered(
        "model.layers.",
        4,
        &[
            "self_attn.q_proj.weight",
            "self_attn.v_proj.weight",
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
        ],
    ));
    for layer in [1, 3] {
        names.push(format!("model.layers.{layer}.linear_attn.in_proj.weight"));
        names.push(format!("model.layers.{layer}.linear_attn.A_log"));
    }
    names.push("lm_head.weight".into());
    is_merged_whole(&llama_config(4), &names);
}

/// DeepSeek: the first layer is dense, the others have experts, and one more predicts the next token but one.
#[test]
fn an_architecture_that_is_guessed_from_its_names_is_written_in_part() {
    let mut names = vec!["model.embed_tokens.weight".to_owned()];
    names.extend(layered("model.layers.", 4, &["input_layernorm.weight"]));
    names.push("model.layers.0.mlp.up_proj.weight".into());
    for layer in 1..4 {
        names.push(format!("model.layers.{layer}.mlp.gate.weight"));
        names.push(format!(
            "model.layers.{layer}.mlp.gate.e_score_correction_bias"
        ));
        names.extend(layered(
            &format!("model.layers.{layer}.mlp.experts."),
            8,
            &["up_proj.weight", "down_proj.weight"],
        ));
    }
    names.push("model.layers.3.eh_proj.weight".into());
    names.push("lm_head.weight".into());
    is_merged_whole(&config_with(3, json!({"model_type": "unheard_of"})), &names);
}

/// A vision tower whose names the tables do not have.
#[test]
fn the_vision_tower_is_dropped() {
    let mut names = vec!["language_model.model.embed_tokens.weight".to_owned()];
    names.extend(layered(
        "language_model.model.layers.",
        3,
        &["mlp.up_proj.weight"],
    ));
    names.push("multi_modal_projector.linear_1.weight".into());
    names.push("vision_tower.head.probe".into());
    names.extend(layered(
        "vision_tower.encoder.layers.",
        2,
        &["mlp.fc1.weight"],
    ));
    names.extend(layered(
        "vision_tower.deepstack_merger_list.",
        2,
        &["norm.weight"],
    ));
    is_merged_whole(&json!({"text_config": {"num_hidden_layers": 3}}), &names);
}

/// Slices of different models: half of the tower from one and half from another would see nothing.
#[test]
fn a_stack_of_two_models_has_a_vision_tower_of_both() {
    let mut names = vec!["language_model.model.embed_tokens.weight".to_owned()];
    names.extend(layered(
        "language_model.model.layers.",
        3,
        &["mlp.up_proj.weight"],
    ));
    names.push("language_model.model.norm.weight".into());
    names.push("multi_modal_projector.linear_1.weight".into());
    names.push("vision_tower.embeddings.patch_embedding.weight".into());
    names.extend(layered(
        "vision_tower.encoder.layers.",
        2,
        &["mlp.fc1.weight"],
    ));
    names.push("vision_tower.post_layernorm.weight".into());
    let bench = Bench::new();
    let config = json!({
        "text_config": {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"]},
        "vision_config": {"num_hidden_layers": 2},
    });
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.model(model, &config, &weights(seed, Dtype::BF16, &names));
    }
    let out = bench.merge(
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [1, 3]}]\n",
        &[],
    );
    let config = read_json(&out.join("config.json"));
    assert_eq!(
        config["text_config"],
        json!({"num_hidden_layers": 4, "layer_types": ["x", "y", "y", "z"], })
    );
    assert_eq!(config["vision_config"], json!({"num_hidden_layers": 2}));
    let (out, a, b) = (
        by_name(&out),
        by_name(&bench.path("a")),
        by_name(&bench.path("b")),
    );
    for (name, tensor) in &out {
        if name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.") {
            assert_eq!(*tensor, a[name], "{name}");
        }
    }
    let norm = "language_model.model.norm.weight";
    assert_eq!(out[norm], b[norm]);
}

/// The head of a composite model is tied by a field inside of `text_config`.
#[test]
fn a_tied_model_gains_a_head() {
    let names = [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.1.mlp.up_proj.weight",
    ]
    .map(String::from);
    let bench = Bench::new();
    let config = json!({"text_config": {"num_hidden_layers": 2, "tie_word_embeddings": true}});
    let a = weights(1, Dtype::F32, &names);
    let mut b = weights(2, Dtype::F32, &names);
    bench.model("a", &config, &a);
    // Saved by another version, with both copies.
    b.push(Spec {
        name: "lm_head.weight".into(),
        bytes: b[0].bytes.clone(),
        dtype: Dtype::F32,
        shape: vec![4, 6],
    });
    bench.model("b", &config, &b);
    for recipe in [
        MEAN,
        &MEAN.replace("{model: a}, {model: b}", "{model: b}, {model: a}"),
    ] {
        let out = by_name(&bench.merge(recipe, &[]));
        assert!(out.keys().eq(by_name(&bench.path("a")).keys()), "{recipe}");
    }
}

/// A recipe that any model of that kind can be merged by.
fn recipe_of(info: &MethodInfo) -> String {
    let needs = |name: &str, each: bool| {
        info.params
            .iter()
            .any(|param| param.name == name && (param.scope != ParamScope::Tensor) == each)
    };
    let base = info.base == BaseRule::Required;
    let count = info.models.min.max(1 + usize::from(base));
    let mut recipe = format!("merge_method: {}\n", info.name);
    if base {
        recipe += "base_model: base\n";
    }
    let reads = |of| info.statistics.is_some_and(|need| need.of == of);
    if reads(NeedOf::Base) {
        recipe += "statistics: base.stats\n";
    }
    recipe += "models:\n";
    let weight = if needs("weight", true) {
        ", parameters: {weight: 1}"
    } else {
        ""
    };
    for model in ["a", "b", "c"].iter().take(count - usize::from(base)) {
        // The model that svc calibrates.
        let merged = match info.params.iter().any(|param| param.name == "merged") {
            true if *model == "a" => ", parameters: {merged: true}",
            _ => "",
        };
        let statistics = match reads(NeedOf::EachModel) {
            true => format!(", statistics: {model}.stats"),
            false => String::new(),
        };
        let _ = writeln!(recipe, "- {{model: {model}{weight}{merged}{statistics}}}");
    }
    if needs("t", false) {
        recipe += "parameters: {t: 0.5}\n";
    }
    if needs("beta", false) && needs("alpha", false) {
        recipe += "parameters: {alpha: 0.5, beta: 0.3}\n";
    }
    recipe
}

/// `dtype: bfloat16` and a file of F32.
#[test]
fn the_dtype_of_the_recipe_is_ignored_by_some_methods() {
    let bench = Bench::new();
    for (name, seed) in [("base", 9), ("a", 1), ("b", 2), ("c", 3)] {
        bench.llama(name, seed, Dtype::F32);
        bench.statistics(name, seed);
    }
    for method in methods::all() {
        let recipe = recipe_of(method.info());
        for (line, dtype, said) in [
            ("dtype: bfloat16\n", Dtype::BF16, "bfloat16"),
            ("dtype: float16\n", Dtype::F16, "float16"),
            ("out_dtype: float16\n", Dtype::F16, "float16"),
            (
                "dtype: float32\nout_dtype: bfloat16\n",
                Dtype::BF16,
                "bfloat16",
            ),
            ("", Dtype::F32, "float32"),
        ] {
            let out = bench.merge(&format!("{recipe}{line}"), &[]);
            assert_eq!(read_json(&out.join("config.json"))["dtype"], said);
            for (name, tensor) in load(&out) {
                assert_eq!(tensor.dtype, dtype, "{recipe}{line}: {name}");
            }
        }
    }
}

/// 4096 deltas of 32 in F16: their sum is twice the largest F16.
#[test]
fn norms_of_f16_task_vectors_overflow() {
    let bench = Bench::new();
    let config = json!({"model_type": "llama"});
    let filled = |value: f64| [floats("w", Dtype::F16, &[64, 64], vec![value; 4096])];
    bench.model("base", &config, &filled(1.0));
    bench.model("a", &config, &filled(33.0));
    let out = bench.merge(
        "merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1, density: 0.5}}]\nparameters: {rescale: true}\n",
        &[],
    );
    let values = by_name(&out)["w"].values();
    assert_eq!(values.iter().filter(|&&value| value == 65.0).count(), 2048);
    assert_eq!(values.iter().filter(|&&value| value == 1.0).count(), 2048);
}

/// One model, nothing left out: its signs are the majority everywhere.
#[test]
fn a_lone_model_loses_its_own_vote_on_signs_in_low_precision() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let bench = Bench::new();
        bench.llama("base", 1, dtype);
        // Its deltas are small: many of them a single step.
        let tuned: Vec<Spec> = llama(1, 2, dtype)
            .into_iter()
            .zip(llama(2, 2, dtype))
            .map(|(base, other)| {
                let (base_values, other) = (values(&base), values(&other));
                let moved = base_values.iter().zip(other).map(|(x, y)| x + 0.02 * y);
                floats(&base.name, dtype, &base.shape, moved.collect::<Vec<_>>())
            })
            .collect();
        bench.model("a", &llama_config(2), &tuned);
        for weight in ["0.1", "0.7", "1", "3.3"] {
            let out = bench.merge(
                &format!("merge_method: ties\nbase_model: base\nmodels: [{{model: a, parameters: {{weight: {weight}}}}}]\n"),
                &[],
            );
            assert!(
                by_name(&out) == by_name(&bench.path("a")),
                "{dtype:?} {weight}"
            );
        }
    }
}

fn values(spec: &Spec) -> Vec<f64> {
    let loaded = Loaded {
        dtype: spec.dtype,
        shape: spec.shape.clone(),
        bytes: spec.bytes.clone(),
    };
    loaded.values()
}

/// 0.1 and 1.0 of one model are that model, unless the recipe says that weights are to be taken as they are.
#[test]
fn weights_are_normalised_though_the_recipe_says_no() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F64);
    let recipe = |normalize: &str| {
        format!(
            "merge_method: linear\nmodels:\n- {{model: a, parameters: {{weight: 0.1}}}}\n- {{model: ./a, parameters: {{weight: 1.0}}}}\n{normalize}"
        )
    };
    let a = by_name(&bench.path("a"));
    assert!(by_name(&bench.merge(&recipe(""), &[])) == a);
    let out = by_name(&bench.merge(&recipe("parameters: {normalize: false}\n"), &[]));
    for (name, tensor) in &out {
        for (x, a) in tensor.values().into_iter().zip(a[name].values()) {
            assert!(
                (x - 1.1 * a).abs() <= 1e-15,
                "{name}: {x}, not 1.1 times {a}"
            );
        }
    }
}

/// A filter gives values to some tensors; the others are not merged only if the recipe says so.
#[test]
fn tensors_outside_of_a_filter_are_merged_all_the_same() {
    let bench = Bench::new();
    let control = |value: f64| floats("scan_direction", Dtype::F32, &[2], [value, -value]);
    for (model, seed, value) in [("a", 1, 3.0), ("b", 2, 5.0)] {
        let specs = with(llama(seed, 2, Dtype::F32), control(value));
        let specs = with(specs, integers("step", &[7]));
        bench.model(model, &llama_config(2), &with(specs, bools("on", &[true])));
    }
    let filtered = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters:\n  weight: [{filter: mlp, value: 0.5}]\n";
    let message = bench.refused(filtered, &[]);
    assert!(
        message.contains("no value for the required parameter `weight`"),
        "{message}"
    );
    let out = bench.merge(
        &format!("{MEAN}only: {{tensors: '*.mlp.*', otherwise: copy}}\n"),
        &[],
    );
    let (out, a) = (by_name(&out), by_name(&bench.path("a")));
    for (name, tensor) in &out {
        assert_eq!(*tensor != a[name], name.contains(".mlp."), "{name}");
    }
}

/// A published recipe has `normalize: true` beside `parameters:`, where nobody looks.
#[test]
fn a_key_in_the_wrong_place_is_ignored() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bench.llama(name, seed, Dtype::BF16);
    }
    let message = bench.refused(&format!("{MEAN}normalize: false\n"), &[]);
    assert!(message.contains("recipe.yml:4:1"), "{message}");
    assert!(message.contains("`normalize`"), "{message}");
    assert!(message.contains("put it under `parameters:`"), "{message}");
    let message = bench.refused(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, normalize: false}}, {model: b, parameters: {weight: 1}}]\n",
        &[],
    );
    assert!(message.contains("recipe.yml:2:45"), "{message}");
    assert!(
        message.contains("move it to the `parameters` of the recipe"),
        "{message}"
    );
}

/// A chat model without it speaks past its end.
#[test]
fn the_generation_config_is_lost_with_another_tokenizer() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bench.llama(name, seed, Dtype::BF16);
        let config = json!({"eos_token_id": [2, seed]});
        bench.file(
            &format!("{name}/generation_config.json"),
            config.to_string(),
        );
        let tokenizer = json!({"model": {"vocab": {"x": 0}}, "added_tokens": []});
        bench.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    }
    for more in [&[][..], &["--tokenizer-from", "b"]] {
        let out = bench.merge(MEAN, more);
        let config = read_json(&out.join("generation_config.json"));
        assert_eq!(config, json!({"eos_token_id": [2, 1]}), "{more:?}");
    }
}

/// Models without a tokenizer may be merged; that the result has none is said.
#[test]
fn a_merge_without_a_tokenizer_is_called_a_success() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        bench.llama(name, seed, Dtype::BF16);
    }
    bench.recipe(MEAN);
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(outcome.code, Some(0));
    assert!(
        outcome.stdout.contains("no tokenizer"),
        "{}",
        outcome.stdout
    );
    let tokenizer = json!({"model": {"vocab": {"x": 0}}});
    bench.file("a/tokenizer.json", tokenizer.to_string());
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        !outcome.stdout.contains("no tokenizer"),
        "{}",
        outcome.stdout
    );
}

/// Scales without the 8-bit numbers that they belong to are not weights.
#[test]
fn scales_of_nothing_are_not_merged() {
    let bench = Bench::new();
    let quantised =
        json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}});
    for (name, seed) in [("a", 1), ("b", 2)] {
        let scale = floats("lm_head.weight_scale_inv", Dtype::F32, &[1], [0.25]);
        let specs = with(llama(seed, 2, Dtype::BF16), scale);
        bench.model(name, &config_with(2, quantised.clone()), &specs);
    }
    let message = bench.refused(MEAN, &[]);
    assert!(message.contains("`lm_head.weight_scale_inv`"), "{message}");
    assert!(message.contains("expected codes"), "{message}");
    assert!(message.contains("hint: "), "{message}");
}

/// `gamma: 0` drops no outlier: what is left is what TIES leaves, not nothing.
#[test]
fn breadcrumbs_without_outliers_drop_the_whole_task_vector() {
    let bench = Bench::new();
    for (name, seed) in [("base", 1), ("a", 2)] {
        bench.llama(name, seed, Dtype::F32);
    }
    let recipe = |method: &str, more: &str| {
        format!(
            "merge_method: {method}\nbase_model: base\nmodels: [{{model: a, parameters: {{weight: 1, density: 0.4{more}}}}}]\nparameters: {{normalize: false}}\n"
        )
    };
    let ties = by_name(&bench.merge(&recipe("ties", ""), &[]));
    for method in ["breadcrumbs", "breadcrumbs_ties"] {
        let out = by_name(&bench.merge(&recipe(method, ", gamma: 0"), &[]));
        assert!(out == ties, "{method}");
        // A norm of eight elements: a hundredth of them is none.
        let out = by_name(&bench.merge(&recipe(method, ", gamma: 0.01"), &[]));
        assert_eq!(
            out["model.norm.weight"], ties["model.norm.weight"],
            "{method}"
        );
    }
    assert!(ties != by_name(&bench.path("base")));
}

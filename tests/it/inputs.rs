//! Every kind of checkpoint that goes in: layouts, dtypes, places, names.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{
    Bench, Loaded, Spec, bools, by_name, config_with, files, floats, integers, llama, llama_config,
    load, noise, of_plan, read_json, with, without,
};

const FLOATS: [Dtype; 6] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
];

/// The mean of two models.
fn mean(a: &str, b: &str) -> String {
    format!(
        "merge_method: linear\nmodels:\n- model: {a}\n- model: {b}\nparameters: {{weight: 0.5}}\n"
    )
}

fn names(path: &Path) -> Vec<String> {
    load(path).into_iter().map(|(name, _)| name).collect()
}

/// The values of stored floats, read without the crate's own tables.
fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let small = |byte: u8, exponent_bits: i32, mantissa_bits: i32| {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let mantissa = f64::from(byte & ((1 << mantissa_bits) - 1));
        let exponent = i32::from((byte & 0x7f) >> mantissa_bits);
        let magnitude = match exponent {
            0 => mantissa * 2f64.powi(1 - bias - mantissa_bits),
            _ => (1.0 + mantissa * 2f64.powi(-mantissa_bits)) * 2f64.powi(exponent - bias),
        };
        if byte >> 7 == 1 {
            -magnitude
        } else {
            magnitude
        }
    };
    match dtype {
        Dtype::F64 => {
            let (values, _) = bytes.as_chunks::<8>();
            values.iter().map(|raw| f64::from_le_bytes(*raw)).collect()
        }
        Dtype::F32 => {
            let (values, _) = bytes.as_chunks::<4>();
            let value = |raw: &[u8; 4]| f64::from(f32::from_le_bytes(*raw));
            values.iter().map(value).collect()
        }
        Dtype::F16 | Dtype::BF16 => {
            let (values, _) = bytes.as_chunks::<2>();
            let value = |raw: &[u8; 2]| match dtype {
                Dtype::F16 => f16::from_le_bytes(*raw).to_f64(),
                _ => bf16::from_le_bytes(*raw).to_f64(),
            };
            values.iter().map(value).collect()
        }
        Dtype::F8_E4M3 => bytes.iter().map(|&byte| small(byte, 4, 3)).collect(),
        Dtype::F8_E5M2 => bytes.iter().map(|&byte| small(byte, 5, 2)).collect(),
        other => panic!("{other:?} is no float"),
    }
}

/// How far a value of that dtype may lie from the exact one: half a step, and a hair for the arithmetic.
fn half_step(dtype: Dtype, exact: f64) -> f64 {
    let (mantissa_bits, least_exponent) = match dtype {
        Dtype::F64 => (52, -1022),
        Dtype::F32 => (23, -126),
        Dtype::F16 => (10, -14),
        Dtype::BF16 => (7, -126),
        Dtype::F8_E4M3 => (3, -6),
        _ => (2, -14),
    };
    let exponent = (exact.abs().log2().floor() as i32).max(least_exponent);
    // F64 is rounded in each step.
    let slack = if dtype == Dtype::F64 { 4.0 } else { 1.0001 };
    2f64.powi(exponent - mantissa_bits - 1) * slack
}

#[test]
fn every_pair_of_float_dtypes_is_merged_as_an_f64_reference_does() {
    use Dtype::*;
    let wide = |a: Dtype, b: Dtype| match (a, b) {
        _ if a == b => a,
        (F64, _) | (_, F64) => F64,
        (F32, _) | (_, F32) | (F16, BF16) | (BF16, F16) => F32,
        (BF16, _) | (_, BF16) => BF16,
        _ => F16,
    };
    let bench = Bench::new();
    for dtype in FLOATS {
        for (model, seed) in [("a", 1), ("b", 2)] {
            // Zeros, powers of two, values of many sizes.
            let values = [0.0, -0.0, 0.25, -8.0].into_iter().chain(
                noise(seed, 196)
                    .enumerate()
                    .map(|(index, value)| value * 2f64.powi(index as i32 % 10)),
            );
            let spec = floats("w", dtype, &[2, 100], values);
            bench.tensors(&format!("{model}-{dtype:?}.safetensors"), &[spec]);
        }
    }
    for a in FLOATS {
        for b in FLOATS {
            let (a_file, b_file) = (
                format!("a-{a:?}.safetensors"),
                format!("b-{b:?}.safetensors"),
            );
            let recipe = format!(
                "merge_method: linear\nmodels:\n- {{model: {a_file}, parameters: {{weight: 0.75}}}}\n\
                 - {{model: {b_file}, parameters: {{weight: 0.5}}}}\nparameters: {{normalize: false}}\n"
            );
            let merged = load(&bench.merge(&recipe, &[]));
            let (name, merged) = &merged[0];
            assert_eq!((name.as_str(), &merged.shape[..]), ("w", &[2, 100][..]));
            assert_eq!(merged.dtype, wide(a, b), "{a:?} and {b:?}");
            let x = decoded(a, &load(&bench.path(&a_file))[0].1.bytes);
            let y = decoded(b, &load(&bench.path(&b_file))[0].1.bytes);
            for ((x, y), found) in x.iter().zip(&y).zip(decoded(merged.dtype, &merged.bytes)) {
                let exact = 0.75 * x + 0.5 * y;
                assert!(
                    (found - exact).abs() <= half_step(merged.dtype, exact),
                    "{a:?} and {b:?}: 0.75 * {x} + 0.5 * {y} is {exact}, found {found}"
                );
            }
        }
    }
}

#[test]
fn a_dtype_of_the_recipe_is_written_whatever_the_inputs_have() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    bench.llama("b", 2, Dtype::F32);
    for (key, dtype) in [
        ("float64", Dtype::F64),
        ("float32", Dtype::F32),
        ("float16", Dtype::F16),
        ("bfloat16", Dtype::BF16),
        ("float8_e4m3fn", Dtype::F8_E4M3),
        ("float8_e5m2", Dtype::F8_E5M2),
    ] {
        let out = bench.merge(&format!("{}dtype: {key}\n", mean("a", "b")), &[]);
        for (name, tensor) in load(&out) {
            assert_eq!(tensor.dtype, dtype, "{name}");
        }
        let config = read_json(&out.join("config.json"));
        assert_eq!(config["dtype"], key);
        assert_eq!(config["torch_dtype"], key);
    }
}

#[test]
fn parts_of_a_config_get_the_dtype_of_their_weights() {
    let bench = Bench::new();
    let config = config_with(
        2,
        json!({
            "vision_config": {"torch_dtype": "float32", "depth": 1, "inner_config": {"dtype": "float16"}},
            "text_config": {"dtype": "float32"},
            "audio_config": {"d_model": 8},
            "vision_feature": "x",
        }),
    );
    let tower = |dtype| floats("visual.patch.weight", dtype, &[2, 2], [1.0, 2.0, 3.0, 4.0]);
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.model(
            model,
            &config,
            &with(llama(seed, 2, Dtype::F32), tower(Dtype::F32)),
        );
    }
    let out = bench.merge(&format!("{}dtype: bfloat16\n", mean("a", "b")), &[]);
    let written = read_json(&out.join("config.json"));
    assert_eq!(written["vision_config"]["torch_dtype"], "bfloat16");
    assert_eq!(
        written["vision_config"]["inner_config"]["dtype"],
        "bfloat16"
    );
    assert_eq!(written["text_config"]["dtype"], "bfloat16");
    assert_eq!(written["audio_config"], json!({"d_model": 8}));
    // A tower that stays wider than the rest says so.
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.model(
            model,
            &config,
            &with(llama(seed, 2, Dtype::BF16), tower(Dtype::F32)),
        );
    }
    let written = read_json(&bench.merge(&mean("a", "b"), &[]).join("config.json"));
    assert_eq!(written["vision_config"]["torch_dtype"], "float32");
    assert_eq!(
        (&written["dtype"], &written["text_config"]["dtype"]),
        (&json!("bfloat16"), &json!("bfloat16"))
    );
}

#[test]
fn shards_and_a_single_file_give_the_same_merge() {
    let bench = Bench::new();
    let (a, b) = (llama(1, 2, Dtype::BF16), llama(2, 2, Dtype::BF16));
    bench.model("a", &llama_config(2), &a);
    bench.model("b", &llama_config(2), &b);
    bench.sharded("a-sharded", &llama_config(2), &a);
    bench.sharded("b-sharded", &llama_config(2), &b);
    bench.tensors("a.safetensors", &a);
    // Shards without an index are known by their names.
    let loose = bench.sharded("b-loose", &llama_config(2), &b);
    fs::remove_file(loose.join("model.safetensors.index.json")).unwrap();

    let whole = by_name(&bench.merge(&mean("a", "b"), &[]));
    assert_eq!(whole.len(), 11);
    for (x, y) in [
        ("a-sharded", "b-sharded"),
        ("a-sharded", "b"),
        ("a", "b-loose"),
        ("a.safetensors", "b-sharded"),
        ("a/model.safetensors", "b"),
    ] {
        assert!(
            by_name(&bench.merge(&mean(x, y), &[])) == whole,
            "{x} and {y}"
        );
    }
}

#[test]
fn a_raw_state_dict_needs_no_config_and_gets_none() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let specs = [
            floats("cond.0.proj", Dtype::F16, &[4, 4], noise(seed, 16)),
            floats("unet.in.0.0.bias", Dtype::F16, &[4], noise(seed + 7, 4)),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    let out = bench.merge(&mean("a.safetensors", "b.safetensors"), &[]);
    assert_eq!(names(&out), ["cond.0.proj", "unet.in.0.0.bias"]);
    let found: Vec<String> = files(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        found,
        ["README.md", "model.safetensors", "weldment.lock.json"]
    );
}

#[test]
fn a_file_first_and_a_folder_after_it_lose_no_config_silently() {
    let bench = Bench::new();
    bench.tensors("a.safetensors", &llama(1, 2, Dtype::BF16));
    bench.llama("b", 2, Dtype::BF16);
    bench.recipe(&mean("a.safetensors", "b"));
    let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!bench.path("out/config.json").exists());
    assert!(
        outcome
            .stderr
            .contains("note: `a.safetensors` has no config.json, so the output will have none"),
        "{}",
        outcome.stderr
    );
    bench.merge(&mean("b", "a.safetensors"), &[]);
    assert!(bench.path("out/config.json").exists());
}

#[test]
fn scalars_are_merged_too() {
    let bench = Bench::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        let specs = [
            floats("scale", Dtype::F32, &[], [value]),
            floats("w", Dtype::F32, &[2], [value, -value]),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    for recipe in [
        mean("a.safetensors", "b.safetensors"),
        "merge_method: ties\nbase_model: a.safetensors\nmodels: [{model: b.safetensors}]\n\
         parameters: {weight: 1, density: 0.5, lambda: 0.5}\n"
            .to_owned(),
        "merge_method: slerp\nbase_model: a.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n\
         parameters: {t: 0.5}\n"
            .to_owned(),
        "merge_method: task_arithmetic\nbase_model: a.safetensors\nmodels: [{model: b.safetensors}]\n\
         parameters: {weight: 0.5}\n"
            .to_owned(),
        "merge_method: dare_ties\nbase_model: a.safetensors\nmodels: [{model: b.safetensors}]\n\
         parameters: {weight: 0.5, normalize: false}\n"
            .to_owned(),
    ] {
        let merged = by_name(&bench.merge(&recipe, &[]));
        assert_eq!(merged.len(), 2, "{recipe}");
        assert_eq!(merged["scale"].shape, [0usize; 0]);
        assert_eq!(merged["scale"].values(), [1.5], "{recipe}");
    }
}

/// ZeRO-3 leaves empty tensors where weights were never gathered.
#[test]
fn tensors_without_elements_are_refused() {
    let bench = Bench::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        let specs = [
            floats("hollow", Dtype::F32, &[3, 0, 2], []),
            floats("nothing", Dtype::BF16, &[0], []),
            floats("nowhere", Dtype::F32, &[0], []),
            floats("w", Dtype::F32, &[2], [value, -value]),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    let recipe = mean("a.safetensors", "b.safetensors");
    let alone = "merge_method: passthrough\nmodels: [{model: a.safetensors}]\n";
    for recipe in [&recipe, alone] {
        let message = bench.refused(recipe, &[]);
        for part in [
            " of `a.safetensors` in a.safetensors has the shape [0], so no elements; so is 1 more tensor",
            "zero_to_fp32.py",
        ] {
            assert!(message.contains(part), "{part}\n{message}");
        }
    }
    // Where they are meant, the recipe says so. A matrix without rows or columns is meant: ZeRO-3 leaves vectors.
    let recipe = format!("{recipe}except: [{{tensors: [nothing, nowhere], action: copy}}]\n");
    let merged = by_name(&bench.merge(&recipe, &[]));
    assert_eq!(merged["nothing"].shape, [0]);
    assert_eq!(merged["hollow"].shape, [3, 0, 2]);
}

/// The Trainer's folder: the whole weights are in a pickle beside safetensors that were saved of empty tensors.
#[test]
fn weights_of_another_format_that_are_not_read_are_noted() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    bench.file("a/pytorch_model-00001-of-00002.bin", "never read");
    bench.file("a/pytorch_model-00002-of-00002.bin", "never read");
    bench.file("a/training_args.bin", "no weights");
    bench.recipe(&mean("a", "b"));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    let note =
        "pytorch_model-00001-of-00002.bin and 1 more not read: the safetensors files beside it are";
    assert!(plan.contains(note), "{plan}");
}

/// ZeRO-3 leaves an empty file where the Trainer saves, and the weights in another format beside it.
#[test]
fn an_empty_file_beside_weights_of_another_format_is_an_error_that_names_them() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    bench.tensors("b/model.safetensors", &[]);
    bench.file("b/pytorch_model.bin", "never read");
    let message = bench.refused(&mean("a", "b"), &[]);
    assert!(message.contains("b holds no tensors"), "{message}");
    assert!(
        message.contains("pytorch_model.bin lies beside it and is not read"),
        "{message}"
    );
}

#[test]
fn factors_of_updates_are_no_weights() {
    let peft = [
        "base_model.model.q.lora_A.weight",
        "base_model.model.q.lora_B.weight",
    ];
    let kohya = [
        "unet_q.lora_down.weight",
        "unet_q.lora_up.weight",
        "unet_q.alpha",
    ];
    let wrapped = [
        "q.base_layer.weight",
        "q.lora_A.default.weight",
        "norm.weight",
    ];
    let lycoris = ["unet_q.hada_w1_a", "unet_q.hada_w1_b"];
    let mlx = ["q.lora_a", "q.lora_b"];
    let diffusers = [
        "attn1.processor.to_q_lora.down.weight",
        "attn1.processor.to_q_lora.up.weight",
    ];
    for names in [&peft[..], &kohya, &wrapped, &lycoris, &mlx, &diffusers] {
        let bench = Bench::new();
        for (model, seed) in [("a", 1), ("b", 2)] {
            let specs = names
                .iter()
                .map(|name| floats(name, Dtype::F32, &[2, 2], noise(seed, 4)));
            let specs: Vec<Spec> = specs.collect();
            bench.tensors(&format!("{model}.safetensors"), &specs);
        }
        let message = bench.refused(&mean("a.safetensors", "b.safetensors"), &[]);
        for part in [
            "is a part of a low-rank update, not a weight",
            "`model+adapter`",
        ] {
            assert!(message.contains(part), "{part}\n{message}");
        }
        // Alone it is a copy of a file, and says nothing wrong.
        bench.merge(
            "merge_method: passthrough\nmodels: [{model: a.safetensors}]\n",
            &[],
        );
    }
}

#[test]
fn integers_and_truth_values_that_agree_are_carried_through_as_they_are() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let specs = [
            bools("mask", &[true, false, true]),
            floats("w", Dtype::F32, &[4], noise(seed, 4)),
            integers("ids", &[i64::MIN, -1, 0, i64::MAX]),
        ];
        bench.tensors(&format!("{name}.safetensors"), &specs);
    }
    let recipe = format!("{}dtype: float16\n", mean("a.safetensors", "b.safetensors"));
    let (input, merged) = (
        by_name(&bench.path("a.safetensors")),
        by_name(&bench.merge(&recipe, &[])),
    );
    assert_eq!(merged["mask"], input["mask"]);
    assert_eq!(merged["ids"], input["ids"]);
    assert_eq!(merged["w"].dtype, Dtype::F16);
}

fn tied(layers: usize) -> Value {
    config_with(layers, json!({"tie_word_embeddings": true}))
}

/// A head that is a copy of the embedding.
fn tied_head(specs: Vec<Spec>) -> Vec<Spec> {
    let embedding = specs
        .iter()
        .find(|spec| spec.name == "model.embed_tokens.weight")
        .unwrap();
    let head = Spec {
        name: "lm_head.weight".into(),
        dtype: embedding.dtype,
        shape: embedding.shape.clone(),
        bytes: embedding.bytes.clone(),
    };
    with(specs, head)
}

#[test]
fn tied_models_are_merged_whether_or_not_they_store_their_head() {
    let bench = Bench::new();
    let headless = |seed| without(llama(seed, 2, Dtype::BF16), "lm_head.weight");
    bench.model("bare", &tied(2), &headless(1));
    bench.model("stored", &tied(2), &tied_head(llama(2, 2, Dtype::BF16)));
    for (a, b) in [("bare", "stored"), ("stored", "bare")] {
        let merged = by_name(&bench.merge(&mean(a, b), &[]));
        assert_eq!(merged.len(), 10, "{a} and {b}");
        assert!(!merged.contains_key("lm_head.weight"), "{a} and {b}");
        let plan = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        assert_eq!(
            plan["checked_equal"],
            json!([{"model": "stored", "left_out": "lm_head.weight", "kept": "model.embed_tokens.weight"}])
        );
        let place = usize::from(b == "stored");
        assert_eq!(
            plan["models"][place]["tensors"]["lm_head.weight"],
            "tied copy"
        );
    }
}

#[test]
fn a_head_is_left_out_only_against_an_embedding_that_was_compared() {
    let bench = Bench::new();
    // CPM-Ant's embedding has a name of its own; ALBERT's is narrower than its head.
    for (name, width) in [
        ("input_embedding.weight", 8),
        ("model.embed_tokens.weight", 4),
    ] {
        for (model, seed) in [("a", 1), ("b", 2)] {
            let specs = without(llama(seed, 2, Dtype::F32), "model.embed_tokens.weight");
            let embedding = floats(name, Dtype::F32, &[16, width], noise(seed, 16 * width));
            bench.model(model, &tied(2), &with(specs, embedding));
        }
        let merged = by_name(&bench.merge(&mean("a", "b"), &[]));
        let (a, b) = (by_name(&bench.path("a")), by_name(&bench.path("b")));
        let head = |of: &BTreeMap<String, Loaded>| of["lm_head.weight"].values();
        let means = std::iter::zip(head(&a), head(&b)).map(|(x, y)| (0.5 * x + 0.5 * y) as f32);
        let means: Vec<f64> = means.map(f64::from).collect();
        assert_eq!(head(&merged), means, "{name}");
        let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
        let note = "`lm_head.weight` is written though the config ties it to the embedding: `a` has no embedding of";
        assert!(plan.contains(note), "{plan}");
    }
    // The donor has no head to compare, and the other's is a trained one.
    bench.model(
        "bare",
        &tied(2),
        &without(llama(1, 2, Dtype::F32), "lm_head.weight"),
    );
    let specs = without(llama(2, 2, Dtype::F32), "lm_head.weight");
    let head = floats("lm_head.weight", Dtype::F32, &[16, 4], noise(3, 64));
    bench.model("narrow", &tied(2), &with(specs, head));
    std::fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(&mean("bare", "narrow"), &[]);
    assert!(
        message.contains("`narrow` has 1 tensor that `bare` lacks: `lm_head.weight`"),
        "{message}"
    );
}

#[test]
fn a_tied_model_among_untied_ones_gives_its_embedding_for_its_head() {
    let bench = Bench::new();
    bench.llama("untied", 1, Dtype::F32);
    bench.model(
        "tied",
        &tied(2),
        &without(llama(2, 2, Dtype::F32), "lm_head.weight"),
    );
    let merged = by_name(&bench.merge(&mean("untied", "tied"), &[]));
    let (untied, tied) = (by_name(&bench.path("untied")), by_name(&bench.path("tied")));
    let head = untied["lm_head.weight"].values();
    let embedding = tied["model.embed_tokens.weight"].values();
    for ((x, y), found) in head
        .iter()
        .zip(&embedding)
        .zip(merged["lm_head.weight"].values())
    {
        assert_eq!(found as f32, (0.5 * x + 0.5 * y) as f32);
    }
    let config = read_json(&bench.path("out/config.json"));
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn a_prefix_that_one_model_lacks_is_found_and_noted() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    let whole = load(&bench.merge(&mean("a", "b"), &[]));
    let renamed = |new: &str| -> Vec<Spec> {
        let mut specs = llama(2, 2, Dtype::F32);
        for spec in &mut specs {
            if let Some(rest) = spec.name.strip_prefix("model.") {
                spec.name = format!("{new}{rest}");
            }
        }
        specs
    };
    for (new, note) in [
        ("", "lack the prefix `model.` that `a` has"),
        (
            "model.language_model.",
            "start with `model.language_model.` where `a` has `model.`",
        ),
        (
            "transformer.",
            "start with `transformer.` where `a` has `model.`",
        ),
    ] {
        bench.model("other", &llama_config(2), &renamed(new));
        assert!(
            load(&bench.merge(&mean("a", "other"), &[])) == whole,
            "{new}"
        );
        let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
        let note = format!("names of `other` {note}; they are taken for the same");
        assert!(plan.contains(&note), "{note}\n{plan}");
    }
}

#[test]
fn the_hub_cache_is_read_by_branch_and_by_commit() {
    const OLD: &str = "0123456789abcdef0123456789abcdef01234567";
    const NEW: &str = "89abcdef0123456789abcdef0123456789abcdef";
    let bench = Bench::new();
    bench.hub_model("org/name", "v1", OLD, &llama(1, 2, Dtype::F32));
    bench.hub_model("org/name", "main", NEW, &llama(2, 2, Dtype::F32));
    let weights = |commit: &str| {
        let root = "no-hub/hub/models--org--name";
        load(&bench.path(&format!("{root}/snapshots/{commit}")))
    };
    let recipe = |model: &str| format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
    for (model, commit) in [
        ("org/name".to_owned(), NEW),
        ("org/name@main".to_owned(), NEW),
        ("org/name@v1".to_owned(), OLD),
        (format!("org/name@{OLD}"), OLD),
    ] {
        assert!(
            load(&bench.merge(&recipe(&model), &[])) == weights(commit),
            "{model}"
        );
        let plan = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
        let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
        assert_eq!(plan["models"][0]["commit"], commit, "{model}");
    }

    // HF_HUB_CACHE is the cache itself, and comes before HF_HOME.
    fs::rename(bench.path("no-hub/hub"), bench.path("cache")).unwrap();
    bench.recipe(&recipe("org/name"));
    let run = |home: &str, cache: Option<&str>| {
        let mut command = bench.command();
        command.args(["merge", "recipe.yml", "out", "-q", "--force", "--no-check"]);
        command.env("HF_HOME", bench.path(home));
        if let Some(cache) = cache {
            command.env("HF_HUB_CACHE", bench.path(cache));
        }
        command.output().unwrap().status.code()
    };
    assert_eq!(run("no-hub", None), Some(2));
    assert_eq!(run("no-hub", Some("cache")), Some(0));
    fs::create_dir(bench.path("home")).unwrap();
    fs::rename(bench.path("cache"), bench.path("home/hub")).unwrap();
    assert_eq!(run("home", None), Some(0));
    assert_eq!(run("home", Some("no-hub")), Some(2));

    // huggingface_hub expands `~` and variables in both.
    for (name, value) in [
        ("HF_HOME", "~/home"),
        ("HF_HOME", "$PLACE/home"),
        ("HF_HUB_CACHE", "${PLACE}/home/hub"),
        ("HF_HUB_CACHE", "~/home/hub"),
    ] {
        let mut command = bench.command();
        command.args(["merge", "recipe.yml", "out", "-q", "--force", "--no-check"]);
        command
            .env("HOME", bench.path(""))
            .env("PLACE", bench.path(""));
        assert!(
            command.env(name, value).output().unwrap().status.success(),
            "{value}"
        );
    }
}

#[test]
fn relative_paths_start_at_the_working_folder_then_at_the_recipe() {
    let bench = Bench::new();
    let model = |name: &str, seed: u64| {
        let spec = floats("w", Dtype::F32, &[3], noise(seed, 3));
        bench.tensors(name, &[spec])
    };
    let here = load(&model("both.safetensors", 1));
    let there = load(&model("recipes/models/there.safetensors", 2));
    model("recipes/both.safetensors", 3);
    for (text, expected) in [
        ("both.safetensors", &here),
        ("./both.safetensors", &here),
        ("models/there.safetensors", &there),
        ("recipes/models/there.safetensors", &there),
        ("../recipes/models/there.safetensors", &there),
    ] {
        let recipe = format!("merge_method: passthrough\nmodels: [{{model: {text}}}]\n");
        bench.file("recipes/r.yml", recipe);
        let outcome = bench.weld(&["merge", "recipes/r.yml", "out", "-q", "--force"]);
        assert_eq!(outcome.code, Some(0), "{text}: {}", outcome.stderr);
        assert!(&load(&bench.path("out")) == expected, "{text}");
    }
}

#[test]
fn buffers_that_are_computed_at_load_follow_the_model_that_gives_the_names() {
    let bench = Bench::new();
    let buffer = "model.layers.1.self_attn.rotary_emb.inv_freq";
    let old = |seed: u64| {
        let frequencies = floats(buffer, Dtype::F32, &[4], [1.0, 0.1, 0.01, seed as f64]);
        with(llama(seed, 2, Dtype::BF16), frequencies)
    };
    bench.model("old", &llama_config(2), &old(1));
    bench.model("older", &llama_config(2), &old(2));
    bench.llama("new", 3, Dtype::BF16);
    let input = by_name(&bench.path("old"));

    let merged = by_name(&bench.merge(&mean("old", "new"), &[]));
    assert_eq!(merged[buffer], input[buffer]);
    let merged = by_name(&bench.merge(&mean("old", "older"), &[]));
    assert_eq!(merged[buffer], input[buffer], "buffers are not averaged");
    let merged = by_name(&bench.merge(&mean("new", "old"), &[]));
    assert!(!merged.contains_key(buffer));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("1  of old left out: computed from the config when the model is loaded"),
        "{plan}"
    );
    assert!(plan.contains(buffer), "{plan}");
}

/// Layers are found in the names of any architecture, so that a gradient runs over them.
#[test]
fn gradients_run_over_the_layers_of_any_architecture() {
    let stacks: [(&str, &[&str], &[&str]); 4] = [
        (
            "bert.encoder.layer.",
            &[
                "attention.self.query.weight",
                "attention.output.LayerNorm.bias",
            ],
            &[
                "bert.embeddings.word_embeddings.weight",
                "bert.pooler.dense.bias",
            ],
        ),
        (
            "gpt_neox.layers.",
            &["attention.query_key_value.weight", "input_layernorm.bias"],
            &["gpt_neox.embed_in.weight", "embed_out.weight"],
        ),
        (
            "transformer.h.",
            &["attn.c_attn.weight", "ln_1.bias"],
            &["transformer.wte.weight", "transformer.wpe.weight"],
        ),
        (
            "model.language_model.layers.",
            &["mlp.experts.0.w1.weight", "mlp.experts.1.w1.weight"],
            &["model.language_model.embed_tokens.weight"],
        ),
    ];
    for (prefix, suffixes, others) in stacks {
        let bench = Bench::new();
        for (model, value) in [("a", 0.0), ("b", 1.0)] {
            let specs: Vec<Spec> = (0..5)
                .flat_map(|layer| {
                    suffixes
                        .iter()
                        .map(move |suffix| format!("{prefix}{layer}.{suffix}"))
                })
                .chain(others.iter().map(|name| (*name).to_owned()))
                .map(|name| floats(&name, Dtype::F32, &[2, 2], [value; 4]))
                .collect();
            bench.tensors(&format!("{model}.safetensors"), &specs);
        }
        // The output's value is b's weight.
        let merged = load(&bench.merge(
            "merge_method: linear\nmodels:\n- {model: a.safetensors, parameters: {weight: [1, 0]}}\n\
             - {model: b.safetensors, parameters: {weight: [0, 1]}}\n",
            &[],
        ));
        assert_eq!(merged.len(), 5 * suffixes.len() + others.len());
        for (name, tensor) in merged {
            let layer = name
                .strip_prefix(prefix)
                .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
            let expected = layer.map_or(0.0, |layer| f64::from(layer) / 4.0);
            assert_eq!(tensor.values(), [expected; 4], "{name}");
        }
    }
}

#[test]
fn two_towers_have_a_depth_each_and_the_plan_says_so() {
    let bench = Bench::new();
    for (model, value) in [("a", 0.0), ("b", 1.0)] {
        let tower = |prefix: &'static str, layers: usize| {
            (0..layers).map(move |layer| {
                let name = format!("{prefix}.layers.{layer}.self_attn.q_proj.weight");
                floats(&name, Dtype::F32, &[1], [value])
            })
        };
        let specs: Vec<Spec> = tower("model", 3).chain(tower("visual", 5)).collect();
        bench.tensors(&format!("{model}.safetensors"), &specs);
    }
    let merged = by_name(&bench.merge(
        "merge_method: linear\nmodels:\n- {model: a.safetensors, parameters: {weight: [1, 0]}}\n\
         - {model: b.safetensors, parameters: {weight: [0, 1]}}\n",
        &[],
    ));
    let value = |name: &str| merged[&format!("{name}.self_attn.q_proj.weight")].values()[0];
    assert_eq!(value("model.layers.1"), 0.5);
    assert_eq!(value("visual.layers.1"), 0.25);
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    assert!(
        plan.contains("2 stacks of layers: `visual.layers.0..5`, `model.layers.0..3`"),
        "{plan}"
    );
}

#[test]
fn gradients_run_over_the_layers_of_any_naming() {
    for prefix in [
        "model.layers",
        "bert.encoder.layer",
        "gpt_neox.layers",
        "transformer.h",
        "backbone.blocks",
    ] {
        let bench = Bench::new();
        for (name, value) in [("a", 0.0), ("b", 1.0)] {
            let mut specs: Vec<Spec> = (0..5)
                .map(|layer| {
                    floats(
                        &format!("{prefix}.{layer}.mlp.w"),
                        Dtype::F32,
                        &[2],
                        [value; 2],
                    )
                })
                .collect();
            specs.push(floats("final.norm", Dtype::F32, &[1], [value]));
            bench.tensors(&format!("{name}.safetensors"), &specs);
        }
        let recipe = "merge_method: slerp\nbase_model: a.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n\
                      parameters: {t: [0.2, 0.4, 1.0]}\n";
        bench.recipe(recipe);
        let plan = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
        let t: Vec<f64> = (0..5)
            .map(|layer| {
                let tensor = of_plan(&plan, &format!("{prefix}.{layer}.mlp.w"));
                tensor["parameters"]["t"].as_f64().unwrap()
            })
            .collect();
        // By hand: depths 0, 1/4, 2/4, 3/4, 1 on the line through 0.2, 0.4, 1.0.
        for (found, expected) in t.iter().zip([0.2, 0.3, 0.4, 0.7, 1.0]) {
            assert!((found - expected).abs() < 1e-12, "{prefix}: {t:?}");
        }
        // Outside the layers a gradient has its first value.
        assert_eq!(of_plan(&plan, "final.norm")["parameters"]["t"], 0.2);
    }
}

/// The values of `b`'s weight, as a merge of zeros and ones by a gradient gives them.
fn shares(names: &[&str], weight: &str) -> (BTreeMap<String, f64>, String) {
    let bench = Bench::new();
    for (model, value) in [("a", 0.0), ("b", 1.0)] {
        let specs = names
            .iter()
            .map(|name| floats(name, Dtype::F32, &[1], [value]));
        bench.tensors(
            &format!("{model}.safetensors"),
            &specs.collect::<Vec<Spec>>(),
        );
    }
    let merged = by_name(&bench.merge(
        &format!(
            "merge_method: task_arithmetic\nbase_model: a.safetensors\nmodels:\n\
             - {{model: b.safetensors, parameters: {{weight: {weight}}}}}\n"
        ),
        &[],
    ));
    let plan = bench.weld(&["plan", "recipe.yml"]).stdout;
    let value = |(name, tensor): (String, Loaded)| (name, tensor.values()[0]);
    (merged.into_iter().map(value).collect(), plan)
}

#[test]
fn gradients_run_over_any_numbered_blocks() {
    // Stable Diffusion's blocks have hardly a name in common; nor have Zamba2's layers.
    let (values, plan) = shares(
        &[
            "unet.input_blocks.0.0.weight",
            "unet.input_blocks.1.0.emb_layers.1.weight",
            "unet.input_blocks.2.1.norm.weight",
            "unet.middle_block.weight",
            "unet.output_blocks.0.0.weight",
            "unet.output_blocks.1.0.skip.weight",
            "model.layers.0.mamba.weight",
            "model.layers.1.shared.linear.weight",
            "model.layers.2.mamba_decoder.weight",
        ],
        "[0, 1]",
    );
    for (name, expected) in [
        ("unet.input_blocks.0.0.weight", 0.0),
        ("unet.input_blocks.1.0.emb_layers.1.weight", 0.5),
        ("unet.input_blocks.2.1.norm.weight", 1.0),
        ("unet.middle_block.weight", 0.0),
        ("unet.output_blocks.1.0.skip.weight", 1.0),
        ("model.layers.1.shared.linear.weight", 0.5),
        ("model.layers.2.mamba_decoder.weight", 1.0),
    ] {
        assert_eq!(values[name], expected, "{name}");
    }
    assert!(plan.contains("3 stacks of layers"), "{plan}");
    assert!(!plan.contains("over depth only"), "{plan}");
}

#[test]
fn a_gradient_that_is_used_at_one_depth_is_noted() {
    let note = "line 4: of the values of `weight` over depth only the first is used";
    let (_, plan) = shares(&["encoder.weight", "decoder.weight"], "[0, 1]");
    assert!(plan.contains(note), "{plan}");
    let names = ["model.layers.0.w.w", "model.layers.1.w.w", "embed.weight"];
    let (_, plan) = shares(
        &names,
        "[{filter: embed, value: [0.25, 1]}, {value: [0, 1]}]",
    );
    assert!(plan.contains(note), "{plan}");
    let (_, plan) = shares(&names, "[0.5, 0.5]");
    assert!(!plan.contains("over depth only"), "{plan}");
}

#[test]
fn layers_that_share_no_name_are_cut_by_slices() {
    let bench = Bench::new();
    let specs: Vec<Spec> = (0..4)
        .map(|layer| {
            let kind = ["mamba.in_proj", "shared.linear"][layer % 2];
            let name = format!("model.layers.{layer}.{kind}.weight");
            floats(&name, Dtype::F32, &[1], [layer as f64])
        })
        .collect();
    bench.model("a", &json!({"num_hidden_layers": 4}), &specs);
    let merged = by_name(&bench.merge(
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n\
         - sources: [{model: a, layer_range: [1, 4]}]\n",
        &[],
    ));
    let values: Vec<f64> = merged.values().map(|tensor| tensor.values()[0]).collect();
    assert_eq!(values, [0.0, 1.0, 1.0, 2.0, 3.0]);
    assert!(merged.contains_key("model.layers.4.shared.linear.weight"));
}

#[test]
fn models_are_found_in_the_hub_cache() {
    let bench = Bench::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = "hub/models--org--tuned";
    // As huggingface_hub lays it out: blobs, and snapshots of links to them.
    bench.llama("made", 3, Dtype::BF16);
    fs::create_dir_all(bench.path(&format!("{repo}/blobs"))).unwrap();
    let snapshot = bench.path(&format!("{repo}/snapshots/{commit}"));
    fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::rename(
            bench.path(&format!("made/{file}")),
            bench.path(&format!("{repo}/blobs/{file}-hash")),
        )
        .unwrap();
        symlink(format!("../../blobs/{file}-hash"), snapshot.join(file)).unwrap();
    }
    bench.file(&format!("{repo}/refs/main"), commit);
    bench.file(&format!("{repo}/refs/refs/pr/1"), commit);
    for model in [
        "org/tuned".to_owned(),
        "org/tuned@main".into(),
        "org/tuned@refs/pr/1".into(),
        format!("org/tuned@{commit}"),
    ] {
        bench.recipe(&format!(
            "merge_method: passthrough\nmodels: [{{model: {model}}}]\n"
        ));
        for (variable, value) in [("HF_HUB_CACHE", "hub"), ("HF_HOME", ".")] {
            let mut command = bench.command();
            let done = command
                .env(variable, bench.path(value))
                .args(["merge", "-q", "--force", "--no-check", "recipe.yml", "out"])
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{model}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
            assert!(load(&bench.path("out")) == load(&snapshot));
        }
        let card = fs::read_to_string(bench.path("out/README.md")).unwrap();
        assert!(
            card.starts_with("---\nbase_model:\n- \"org/tuned\"\nbase_model_relation: merge\n"),
            "{card}"
        );
    }
    let unknown = bench.refused_with_cache(
        "merge_method: passthrough\nmodels: [{model: org/tuned@v2}]\n",
        "hub",
    );
    assert!(unknown.contains("org/tuned@v2"), "{unknown}");
    let escaping = bench.refused_with_cache(
        "merge_method: passthrough\nmodels: [{model: org/tuned@../../x}]\n",
        "hub",
    );
    assert!(escaping.contains("is not a revision"), "{escaping}");
}

#[test]
fn unaligned_and_padded_headers_are_read() {
    // A header of any length is sound: data then starts at an odd byte.
    let bench = Bench::new();
    let values: Vec<f64> = noise(5, 40_000).collect();
    let spec = floats("w", Dtype::F16, &[40_000], values);
    let header = format!(
        "{{\"w\":{{\"dtype\":\"F16\",\"shape\":[40000],\"data_offsets\":[0,{}]}}}}",
        spec.bytes.len()
    );
    for padding in 0..3 {
        let header = format!("{header}{}", " ".repeat(padding));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&spec.bytes);
        bench.file("odd.safetensors", bytes);
        let merged = load(&bench.merge("merge_method: passthrough\nmodels: [{model: odd.safetensors, parameters: {scale: 2}}]\n", &[]));
        let expected: Vec<f64> = Loaded {
            dtype: Dtype::F16,
            shape: vec![],
            bytes: spec.bytes.clone(),
        }
        .values()
        .iter()
        .map(|v| v * 2.0)
        .collect();
        assert!(merged[0].1.values() == expected);
    }
}

/// Files that torch.save wrote are inputs; strided views among them are written in order.
#[test]
fn pickles_are_models() {
    let bench = Bench::new();
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/pickled");
    let put = |from: &str, to: &str| {
        bench.file(to, "");
        fs::copy(made.join(from), bench.path(to)).unwrap();
    };
    put("legacy.bin", "a/pytorch_model.bin");
    put("zip.pt", "b.pt");
    let expected: BTreeMap<_, _> = load(&made.join("values.safetensors")).into_iter().collect();
    for (model, count) in [("a", 18), ("b.pt", 13)] {
        let listed = bench.weld(&["inspect", model]);
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        assert!(
            listed.stdout.contains("nothing in them is executed"),
            "{}",
            listed.stdout
        );
        let out = format!("out-{count}");
        bench.file(
            "recipe.yml",
            format!(
                "merge_method: passthrough\nmodels: [{{model: {model}}}]\n\
                 except: [{{tensors: empty, action: copy}}]\n"
            ),
        );
        let merged = bench.weld(&["merge", "recipe.yml", &out]);
        assert_eq!(merged.code, Some(0), "{}", merged.stderr);
        let found = load(&bench.path(&out));
        assert_eq!(found.len(), count);
        for (name, tensor) in &found {
            let expected = &expected[name];
            assert_eq!(
                (tensor.dtype, &tensor.shape),
                (expected.dtype, &expected.shape),
                "{name}"
            );
            assert_eq!(tensor.bytes, expected.bytes, "{name}");
        }
    }
}

//! `model+adapter`: LoRA adapters applied while a model is read.

use std::collections::BTreeMap;
use std::fs;

use ndarray::{Array2, Axis};
use safetensors::Dtype;
use serde_json::{Value, json};
use weldment::numeric::FloatType;

use crate::fixtures::{
    Bench, Loaded, Spec, by_name, config_with, files, floats, llama, llama_config, load, noise,
    of_plan, quick_bf16, read_json,
};

const UP: &str = "model.layers.0.mlp.up_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// What a module's adapter is made of.
struct Module {
    name: &'static str,
    out: usize,
    inputs: usize,
    rank: usize,
}

const MODULES: [Module; 2] = [
    Module {
        name: UP,
        out: 12,
        inputs: 8,
        rank: 3,
    },
    Module {
        name: DOWN,
        out: 8,
        inputs: 12,
        rank: 3,
    },
];

fn key(module: &str, part: &str) -> String {
    format!("base_model.model.{module}.{part}")
}

/// Writes an adapter of [`MODULES`]; `b` is what `lora_B` is multiplied by.
fn adapter(bench: &Bench, name: &str, seed: u64, b: f64, more: Value, extra: Vec<Spec>) {
    let mut specs = extra;
    for (index, module) in MODULES.iter().enumerate() {
        let seed = seed * 100 + index as u64;
        let Module {
            name,
            out,
            inputs,
            rank,
        } = *module;
        let values = noise(seed, rank * inputs);
        let part = key(name, "lora_A.weight");
        specs.push(floats(&part, Dtype::F32, &[rank, inputs], values));
        let values = noise(seed + 50, out * rank).map(|value| value * b);
        let part = key(name, "lora_B.weight");
        specs.push(floats(&part, Dtype::F32, &[out, rank], values));
        if more["use_dora"] == true {
            let values = noise(seed + 70, out).map(|value| value.abs() + 0.1);
            let part = key(name, "lora_magnitude_vector");
            specs.push(floats(&part, Dtype::F32, &[out], values));
        }
    }
    write(bench, name, more, &specs);
}

fn write(bench: &Bench, name: &str, more: Value, specs: &[Spec]) {
    let mut options = json!({
        "peft_type": "LORA", "r": 3, "lora_alpha": 6, "base_model_name_or_path": "org/a",
        "target_modules": ["up_proj", "down_proj"], "lora_dropout": 0.05, "task_type": "CAUSAL_LM",
    });
    for (option, value) in more.as_object().unwrap() {
        options[option] = value.clone();
    }
    bench.file(&format!("{name}/adapter_config.json"), options.to_string());
    bench.tensors(&format!("{name}/adapter_model.safetensors"), specs);
}

fn matrix(tensor: &Loaded) -> Array2<f64> {
    let shape = (tensor.shape[0], tensor.shape[1]);
    Array2::from_shape_vec(shape, tensor.values()).unwrap()
}

/// `W + scale B A` of a module, in f64; with DoRA, its rows at their new lengths.
fn adapted(bench: &Bench, model: &str, adapter: &str, module: &str, scale: f64) -> Array2<f64> {
    let model = by_name(&bench.path(model));
    let adapter = by_name(&bench.path(adapter));
    let part = |part: &str| matrix(&adapter[&key(module, part)]);
    let base = matrix(&model[&format!("{module}.weight")]);
    let mut sum = base + part("lora_B.weight").dot(&part("lora_A.weight")) * scale;
    if let Some(lengths) = adapter.get(&key(module, "lora_magnitude_vector")) {
        for (mut row, length) in sum.axis_iter_mut(Axis(0)).zip(lengths.values()) {
            let found = row.dot(&row).sqrt();
            row.mapv_inplace(|value| value * length / found);
        }
    }
    sum
}

/// The values rounded once to a dtype.
fn rounded(values: &Array2<f64>, dtype: Dtype) -> Vec<u8> {
    let format = FloatType::from_dtype(dtype).unwrap();
    let mut values: Vec<f64> = values.iter().copied().collect();
    let mut bytes = vec![0; values.len() * format.size()];
    format.encode(&mut values, false, &mut bytes);
    bytes
}

const PASSTHROUGH: &str = "merge_method: passthrough\nmodels: [{model: a+lora}]\n";

#[test]
fn an_adapter_without_effect_gives_the_model() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let bench = Bench::new();
        bench.llama("a", 1, dtype);
        adapter(&bench, "lora", 1, 0.0, json!({}), vec![]);
        for recipe in [
            PASSTHROUGH.to_owned(),
            "merge_method: linear\nmodels: [{model: a+lora, parameters: {weight: 1}}]\n".to_owned(),
            "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: a+lora}]\nparameters: {t: 0.4}\n"
                .to_owned(),
        ] {
            let out = bench.merge(&recipe, &[]);
            assert_eq!(load(&out), load(&bench.path("a")), "{dtype:?}\n{recipe}");
        }
    }
}

#[test]
fn passthrough_gives_the_product_in_f64_rounded_once() {
    for dora in [false, true] {
        for dtype in [Dtype::F32, Dtype::BF16] {
            let bench = Bench::new();
            bench.llama("a", 1, dtype);
            let options = json!({"use_dora": dora, "alpha_pattern": {"down_proj": 1.5}});
            adapter(&bench, "lora", 1, 1.0, options, vec![]);
            let base = by_name(&bench.path("a"));
            let out = by_name(&bench.merge(PASSTHROUGH, &[]));
            assert_eq!(base.len(), out.len());
            for (module, scale) in [(UP, 2.0), (DOWN, 0.5)] {
                let name = format!("{module}.weight");
                let twin = rounded(&adapted(&bench, "a", "lora", module, scale), dtype);
                assert_eq!(out[&name].bytes, twin, "{name} {dtype:?} {dora}");
                assert_ne!(out[&name].bytes, base[&name].bytes);
            }
            let same = base.keys().filter(|name| out[*name] == base[*name]).count();
            assert_eq!(same, base.len() - 2);
        }
    }
}

#[test]
fn adapted_models_merge_like_any_others() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({"use_rslora": true}), vec![]);
    adapter(&bench, "other", 2, 1.0, json!({}), vec![]);
    let recipe = "merge_method: linear\nmodels:\n- {model: a+lora, parameters: {weight: 0.25}}\n\
                  - {model: a+other, parameters: {weight: 0.25}}\n- {model: b, parameters: {weight: 0.5}}\n";
    let out = by_name(&bench.merge(recipe, &[]));
    let name = format!("{UP}.weight");
    let twin = adapted(&bench, "a", "lora", UP, 6.0 / 3f64.sqrt()) * 0.25
        + adapted(&bench, "a", "other", UP, 2.0) * 0.25
        + matrix(&by_name(&bench.path("b"))[&name]) * 0.5;
    for (found, twin) in out[&name].values().iter().zip(&twin) {
        assert!((found - twin).abs() <= 1e-8, "{found} for {twin}");
    }
    // A base that is the adapter's own model: the task vector is the product alone.
    let recipe = "merge_method: task_arithmetic\nbase_model: a\nmodels: [{model: a+lora, parameters: {weight: 1}}]\n";
    let out = by_name(&bench.merge(recipe, &[]));
    let twin = adapted(&bench, "a", "lora", UP, 6.0 / 3f64.sqrt());
    for (found, twin) in out[&name].values().iter().zip(&twin) {
        assert!((found - twin).abs() <= 1e-8, "{found} for {twin}");
    }
}

#[test]
fn several_adapters_lie_on_one_model_each_with_its_weight() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({}), vec![]);
    adapter(&bench, "other", 2, 1.0, json!({}), vec![]);
    let name = format!("{UP}.weight");
    let base = matrix(&by_name(&bench.path("a"))[&name]);
    let update = |adapter: &str| adapted(&bench, "a", adapter, UP, 2.0) - &base;
    let twin = &base + update("lora") * 0.7 - update("other") * 0.25;
    let in_short = "merge_method: passthrough\nmodels: [{model: a+lora@0.7+other@-0.25}]\n";
    let in_full = "merge_method: passthrough\nmodels:\n- model:\n    model: a\n    \
                   lora: [{path: lora, weight: 0.7}, {path: other, weight: -0.25}]\n";
    let mut outputs = Vec::new();
    for recipe in [in_short, in_full] {
        let out = bench.merge(recipe, &[]);
        for (found, twin) in by_name(&out)[&name].values().iter().zip(&twin) {
            assert!((found - twin).abs() <= 1e-7, "{found} for {twin}");
        }
        outputs.push(load(&out));
        // The lock tells the two apart, and the merge is proven from it.
        let lock = read_json(&out.join("weldment.lock.json"));
        let files = lock["inputs"][0]["files"].as_object().unwrap();
        assert!(files.contains_key("adapter_model.safetensors"), "{files:?}");
        assert!(
            files.contains_key("+2/adapter_model.safetensors"),
            "{files:?}"
        );
        bench.passes(&["verify", "out", "--full"]);
    }
    assert_eq!(outputs[0], outputs[1]);
    let shown = bench.weld(&["inspect", "a+lora@0.7+other"]).stdout;
    assert!(shown.contains("lora times 0.7"), "{shown}");
    // One of the two has changed since.
    adapter(&bench, "other", 3, 1.0, json!({}), vec![]);
    let outcome = bench.weld(&["verify", "out", "--full"]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.stdout);
}

#[test]
fn a_weight_with_an_exponent_is_refused_with_the_digits_to_write() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({}), vec![]);
    for (written, remedy) in [("1e-3", "lora@0.001"), ("-2.5E1", "lora@-25")] {
        let recipe =
            |model: &str| format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
        let message = bench.refused(&recipe(&format!("a+lora@{written}")), &[]);
        let hint = format!("write the weight in plain digits: `{remedy}`");
        assert!(
            message.contains(&hint) && message.contains("recipe.yml:2:"),
            "{message}"
        );
        bench.merge(&recipe(&format!("a+{remedy}")), &[]);
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
}

#[test]
fn models_are_the_same_by_the_weights_of_their_adapters_too() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({}), vec![]);
    for (models, same) in [
        (["a+lora@0.5", "a+lora@0.25"], false),
        (["a+lora", "a+lora@0.25"], false),
        (["a+lora@0.5", "./a+lora@0.50"], true),
        (["a+lora", "a+lora@1.0"], true),
        (["a", "./a"], true),
        (["a", "a+lora"], false),
    ] {
        let [one, other] = models;
        bench.recipe(&format!(
            "merge_method: linear\nmodels: [{{model: {one}}}, {{model: {other}}}]\nparameters: {{weight: 0.5}}\n"
        ));
        let plan = bench.weld(&["plan", "recipe.yml"]);
        assert_eq!(plan.code, Some(0), "{}", plan.stderr);
        let said = plan.stdout + &plan.stderr;
        let note = format!("`{one}` and `{other}` are the same model");
        assert_eq!(said.contains(&note), same, "{models:?}: {said}");
        assert_eq!(
            said.contains("are the same model"),
            same,
            "{models:?}: {said}"
        );
    }
}

/// Models with tensors of several blocks, and adapters whose rows do not end where blocks do.
fn large(dtype: Dtype) -> Bench {
    let bench = Bench::new();
    let (out, inputs, rank) = (700, 331, 5);
    for (seed, name) in [(1, "base"), (2, "a")] {
        let specs = [
            floats(
                "lm_head.weight",
                dtype,
                &[out, inputs],
                noise(seed, out * inputs),
            ),
            floats(
                "model.embed_tokens.weight",
                dtype,
                &[out, inputs],
                noise(seed + 10, out * inputs),
            ),
            floats(
                "model.layers.0.up.weight",
                dtype,
                &[inputs, out],
                noise(seed + 20, out * inputs),
            ),
        ];
        bench.model(name, &llama_config(1), &specs);
    }
    for (name, dora) in [("lora", false), ("dora", true)] {
        let f32s = |part: &str, shape: &[usize], seed| {
            let count = shape.iter().product();
            floats(
                &format!("base_model.model.{part}"),
                Dtype::F32,
                shape,
                noise(seed, count),
            )
        };
        let mut specs = vec![
            f32s("lm_head.lora_A.weight", &[rank, inputs], 31),
            f32s("lm_head.lora_B.weight", &[out, rank], 32),
            f32s("model.embed_tokens.lora_embedding_A", &[rank, out], 33),
            f32s("model.embed_tokens.lora_embedding_B", &[inputs, rank], 34),
            f32s("model.layers.0.up.lora_A.weight", &[rank, out], 35),
            f32s("model.layers.0.up.lora_B.weight", &[inputs, rank], 36),
        ];
        if dora {
            for (module, length) in [
                ("lm_head", out),
                ("model.embed_tokens", inputs),
                ("model.layers.0.up", inputs),
            ] {
                specs.push(f32s(
                    &format!("{module}.lora_magnitude_vector"),
                    &[length],
                    37,
                ));
            }
        }
        write(&bench, name, json!({"r": rank, "use_dora": dora}), &specs);
    }
    bench
}

#[test]
fn the_bytes_depend_on_neither_threads_nor_memory_nor_shards() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let bench = large(dtype);
        for recipe in [
            "merge_method: passthrough\nmodels: [{model: a+dora}]\n",
            "merge_method: ties\nbase_model: base\nmodels: [{model: base+lora}, {model: base+dora}, {model: a}]\n\
             parameters: {weight: 0.5, density: 0.37}\n",
        ] {
            let first = files(&bench.merge(recipe, &["--threads", "1"]));
            for more in [
                vec!["--threads", "3"],
                vec!["--threads", "2", "--memory", "48MiB"],
                vec!["--threads", "7", "--memory", "1GiB"],
            ] {
                let again = files(&bench.merge(recipe, &more));
                assert!(first == again, "{dtype:?} {more:?}\n{recipe}");
            }
            let whole: BTreeMap<String, Loaded> = by_name(&bench.path("out"));
            let sharded = by_name(&bench.merge(recipe, &["--shard-size", "600kB"]));
            assert!(whole == sharded, "{dtype:?}\n{recipe}");
        }
    }
}

#[test]
fn the_plan_and_the_card_show_the_adapter() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({"use_dora": true}), vec![]);
    adapter(&bench, "plain", 1, 1.0, json!({}), vec![]);
    bench.recipe(PASSTHROUGH);
    let text = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    for part in ["a+lora", "DoRA of rank 3, 2 tensors adapted while read"] {
        assert!(text.stdout.contains(part), "{}", text.stdout);
    }
    let plan = |recipe: &str| -> Value {
        bench.recipe(recipe);
        let outcome = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    let dora = plan(PASSTHROUGH);
    let shown = &dora["models"][0]["adapter"];
    assert_eq!(shown["largest_rank"], 3);
    assert_eq!(shown["dora"], true);
    assert_eq!(
        shown["tensors"],
        json!([format!("{UP}.weight"), format!("{DOWN}.weight")])
    );
    assert!(shown["path"].as_str().unwrap().ends_with("lora"));
    let operation = |plan: &Value, name: &str| {
        let operation = &of_plan(plan, name)["operation"];
        operation.as_str().unwrap().to_owned()
    };
    assert_eq!(operation(&dora, &format!("{UP}.weight")), "convert");
    assert_eq!(operation(&dora, "model.norm.weight"), "copy");
    // A number for each row of the two tensors is held, and counted.
    let plain = plan("merge_method: passthrough\nmodels: [{model: a+plain}]\n");
    let peak = |plan: &Value| plan["peak_memory"].as_u64().unwrap();
    assert_eq!(peak(&dora) - peak(&plain), 8 * (12 + 8));
    assert_eq!(
        plan("merge_method: passthrough\nmodels: [{model: a}]\n")["models"][0]["adapter"],
        Value::Null
    );

    let out = bench.merge(PASSTHROUGH, &[]);
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("`a+lora`"), "{card}");
    let summary = bench.weld(&["merge", "recipe.yml", "out", "--force", "--format", "json"]);
    let summary: Value = serde_json::from_str(&summary.stdout).unwrap();
    assert_eq!(summary["bytes_read"], dora["bytes_read"]);
}

#[test]
fn inspect_takes_a_model_with_its_adapter() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({}), vec![]);
    let text = bench.weld(&["inspect", "a+lora"]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let line = text
        .stdout
        .lines()
        .find(|line| line.contains("down_proj"))
        .unwrap();
    assert!(
        !line.contains("adapted") || line.contains("{1}"),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.contains("F32   [8, 12] (adapted)"),
        "{}",
        text.stdout
    );
    let outcome = bench.weld(&["inspect", "a+lora", "--format", "json"]);
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let adapted: Vec<&Value> = json["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|tensor| tensor["adapted"] == true)
        .map(|tensor| &tensor["name"])
        .collect();
    assert_eq!(
        adapted,
        [
            &json!(format!("{UP}.weight")),
            &json!(format!("{DOWN}.weight"))
        ]
    );
}

#[test]
fn tensors_that_the_adapter_replaces_are_carried_over() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    let head = floats(
        &key("lm_head", "weight"),
        Dtype::F32,
        &[16, 8],
        noise(9, 128),
    );
    let norm = floats(
        &key("model.norm", "modules_to_save.default.weight"),
        Dtype::BF16,
        &[8],
        noise(8, 8),
    );
    let f32s = FloatType::F32;
    let mut values = vec![0.0; 128];
    f32s.decode(&head.bytes, &mut values);
    let values = Array2::from_shape_vec((16, 8), values).unwrap();
    let expected = [rounded(&values, Dtype::BF16), norm.bytes.clone()];
    adapter(
        &bench,
        "lora",
        1,
        1.0,
        json!({"modules_to_save": ["lm_head", "norm"]}),
        vec![head, norm],
    );
    let out = by_name(&bench.merge(PASSTHROUGH, &[]));
    for (name, bytes) in ["lm_head.weight", "model.norm.weight"].iter().zip(expected) {
        assert_eq!(out[*name].dtype, Dtype::BF16);
        assert_eq!(out[*name].bytes, bytes, "{name}");
    }
}

#[test]
fn a_tied_model_whose_head_is_adapted_is_written_untied() {
    let bench = Bench::new();
    let mut specs = llama(1, 2, Dtype::F32);
    specs.retain(|spec| spec.name != "lm_head.weight");
    let config = config_with(2, json!({"tie_word_embeddings": true}));
    bench.model("a", &config, &specs);
    bench.model("b", &config, &specs);
    let parts = [
        floats(
            &key("lm_head", "lora_A.weight"),
            Dtype::F32,
            &[3, 8],
            noise(5, 24),
        ),
        floats(
            &key("lm_head", "lora_B.weight"),
            Dtype::F32,
            &[16, 3],
            noise(6, 48),
        ),
    ];
    write(&bench, "lora", json!({}), &parts);
    let out = bench.merge(PASSTHROUGH, &[]);
    assert_eq!(
        read_json(&out.join("config.json"))["tie_word_embeddings"],
        false
    );
    let tensors = by_name(&out);
    let embedding = by_name(&bench.path("a"))["model.embed_tokens.weight"].clone();
    assert_eq!(tensors["model.embed_tokens.weight"], embedding);
    let parts = by_name(&bench.path("lora"));
    let part = |end: &str| matrix(&parts[&key("lm_head", end)]);
    let twin = matrix(&embedding) + part("lora_B.weight").dot(&part("lora_A.weight")) * 2.0;
    assert_eq!(tensors["lm_head.weight"].bytes, rounded(&twin, Dtype::F32));

    // With a tied model: its embedding stands in for the head that it does not store.
    let recipe =
        "merge_method: linear\nmodels: [{model: a+lora}, {model: b}]\nparameters: {weight: 0.5}\n";
    let merged = by_name(&bench.merge(recipe, &[]));
    let twin = (twin + matrix(&embedding)) * 0.5;
    for (found, twin) in merged["lm_head.weight"].values().iter().zip(&twin) {
        assert!((found - twin).abs() <= 1e-8);
    }
    // Under a tied model's config the head would be lost.
    fs::remove_dir_all(bench.path("out")).unwrap();
    let recipe =
        "merge_method: linear\nmodels: [{model: b}, {model: a+lora}]\nparameters: {weight: 0.5}\n";
    let message = bench.refused(recipe, &[]);
    for part in [
        "`a+lora` has an output head of its own",
        "would be lost",
        "ensure_weight_tying",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_stored_copy_of_an_adapted_embedding_is_compared_as_it_is_stored() {
    let bench = Bench::new();
    let specs = || {
        let mut specs = llama(1, 2, Dtype::F32);
        let embedding = specs[0].bytes.clone();
        specs.last_mut().unwrap().bytes = embedding;
        specs
    };
    let parts = [
        floats(
            &key("model.embed_tokens", "lora_embedding_A"),
            Dtype::F32,
            &[3, 16],
            noise(5, 48),
        ),
        floats(
            &key("model.embed_tokens", "lora_embedding_B"),
            Dtype::F32,
            &[8, 3],
            noise(6, 24),
        ),
    ];
    write(&bench, "lora", json!({"ensure_weight_tying": true}), &parts);
    bench.model(
        "a",
        &config_with(2, json!({"tie_word_embeddings": true})),
        &specs(),
    );
    let out = by_name(&bench.merge(PASSTHROUGH, &[]));
    assert!(!out.contains_key("lm_head.weight"));
    let mut other = specs();
    other.last_mut().unwrap().bytes[0] ^= 1;
    bench.model(
        "a",
        &config_with(2, json!({"tie_word_embeddings": true})),
        &other,
    );
    fs::remove_dir_all(bench.path("out")).unwrap();
    let message = bench.refused(PASSTHROUGH, &[]);
    assert!(message.contains("lm_head.weight"), "{message}");
}

#[test]
fn what_is_wrong_with_an_adapter_is_refused_at_its_line() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(
        &bench,
        "lora",
        1,
        1.0,
        json!({"init_lora_weights": "pissa"}),
        vec![],
    );
    let message = bench.refused(PASSTHROUGH, &[]);
    for part in [
        "recipe.yml:2:",
        "`a+lora`",
        "lora/adapter_config.json",
        "`init_lora_weights: pissa`",
    ] {
        assert!(message.contains(part), "{message}");
    }
    // A NaN in a factor is one in the adapted tensor.
    adapter(&bench, "lora", 1, f64::NAN, json!({}), vec![]);
    let message = bench.refused(PASSTHROUGH, &[]);
    for part in ["NaN", "`a+lora`", "proj.weight"] {
        assert!(message.contains(part), "{message}");
    }
    // An adapter by itself is no model.
    let message = bench.refused("merge_method: passthrough\nmodels: [{model: lora}]\n", &[]);
    assert!(message.contains("write `model+adapter`"), "{message}");
}

#[test]
fn an_adapters_folder_is_never_written_over() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    adapter(&bench, "lora", 1, 1.0, json!({}), vec![]);
    bench.recipe(PASSTHROUGH);
    let before = files(&bench.path("lora"));
    let outcome = bench.weld(&["merge", "recipe.yml", "lora", "--force", "-q"]);
    assert_ne!(outcome.code, Some(0));
    assert_eq!(files(&bench.path("lora")), before);
}

#[test]
fn adapted_models_are_sources_of_other_documents() {
    let bench = large(Dtype::BF16);
    let inner = "merge_method: linear\nmodels: [{model: a+dora}, {model: base+lora}]\nparameters: {weight: 0.5}\n";
    let outer = "merge_method: slerp\nbase_model: base\nmodels: [{model: base}, {model: first}]\nparameters: {t: 0.3}\n";
    let out = bench.merge(inner, &[]);
    fs::rename(out, bench.path("first")).unwrap();
    let apart = load(&bench.merge(outer, &[]));
    fs::remove_dir_all(bench.path("first")).unwrap();
    let together = bench.merge(
        &format!("{outer}---\nname: first\n{inner}"),
        &["--threads", "3"],
    );
    assert!(load(&together) == apart);
}

#[test]
#[cfg(target_os = "linux")]
fn own_memory_does_not_grow_with_adapted_tensors() {
    let bench = Bench::new();
    let (out, inputs, rank) = (2048, 4096, 16);
    // 16 MiB in bf16, 64 MiB as the f64 that it is computed in.
    let name = "model.layers.0.up.weight";
    bench.model(
        "a",
        &llama_config(1),
        &[quick_bf16(name, 1, &[out, inputs])],
    );
    let module = "model.layers.0.up";
    let part = |part: &str, shape: &[usize]| quick_bf16(&key(module, part), 2, shape);
    let parts = [
        part("lora_A.weight", &[rank, inputs]),
        part("lora_B.weight", &[out, rank]),
        part("lora_magnitude_vector", &[out]),
    ];
    write(&bench, "lora", json!({"r": rank, "use_dora": true}), &parts);
    bench.recipe(PASSTHROUGH);
    let arguments = [
        "merge",
        "recipe.yml",
        "out",
        "-q",
        "--threads",
        "2",
        "--memory",
        "40MiB",
        "--format",
        "json",
    ];
    let outcome = bench.weld(&arguments);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let summary: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let peak = summary["peak_memory"].as_u64().expect("Linux tells");
    assert!(peak <= 40 << 20, "{peak} bytes");
}

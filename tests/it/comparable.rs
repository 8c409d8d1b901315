//! Models whose tensors have the same shapes and do not mean the same.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, by_name, config_with, floats, llama, load, noise, read_json, with};

const LINEAR: &str =
    "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 0.5}\n";

/// Two models of one shape with these fields in their configs.
fn bench(a: Value, b: Value) -> Bench {
    let bench = Bench::new();
    bench.model("a", &config_with(2, a), &llama(1, 2, Dtype::F32));
    bench.model("b", &config_with(2, b), &llama(2, 2, Dtype::F32));
    bench
}

/// The findings of `weld check`, as JSON.
fn findings(bench: &Bench, model: &str) -> String {
    let outcome = bench.weld(&["check", model, "--format", "json", "-q"]);
    let report: Value = serde_json::from_str(&outcome.stdout).expect(&outcome.stderr);
    report["findings"].to_string()
}

/// What `weld plan` says of a recipe that it refuses.
fn refused_plan(bench: &Bench, recipe: &str) -> String {
    bench.recipe(recipe);
    let outcome = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    outcome.stderr
}

/// What the plan notes.
fn notes(bench: &Bench, recipe: &str) -> Vec<String> {
    bench.recipe(recipe);
    let outcome = bench.weld(&["plan", "recipe.yml", "--format", "json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let plan: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let notes = plan["notes"].as_array().unwrap().iter();
    notes
        .map(|note| note.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn fields_that_change_the_arithmetic_are_refused_and_may_be_allowed() {
    for (field, a, b) in [
        ("num_attention_heads", json!(1), json!(2)),
        ("rope_theta", json!(10_000.0), json!(1e6)),
        ("rms_norm_eps", json!(1e-6), json!(1e-5)),
        ("hidden_act", json!("silu"), json!("relu")),
        ("embedding_multiplier", json!(12), json!(1)),
        ("attn_logit_softcapping", json!(30), json!(50)),
    ] {
        let bench = bench(json!({field: a}), json!({field: b}));
        let message = bench.refused(LINEAR, &[]);
        let shown = |value: &Value| value.to_string().replace('"', "");
        let expected = format!("`{field}` is {} and {}", shown(&a), shown(&b));
        assert!(message.contains(&expected), "{message}");
        let allow = format!("allow_config_differences: [{field}]");
        assert!(message.contains(&allow), "{message}");
        let recipe = format!("{LINEAR}{allow}\n");
        bench.merge(&recipe, &[]);
        assert_eq!(read_json(&bench.path("out/config.json"))[field], a);
        let said = notes(&bench, &recipe)
            .into_iter()
            .filter(|note| note.contains(field));
        assert_eq!(said.count(), 1);
        let verified = bench.weld(&["verify", "out", "--full"]);
        assert_eq!(verified.code, Some(0), "{}", verified.stdout);
    }
}

#[test]
fn models_of_different_architectures_are_told_by_their_configs() {
    let bench = bench(
        json!({}),
        json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
    );
    let message = bench.refused(LINEAR, &[]);
    assert!(
        message.contains("`a` is a llama and `b` a qwen2, as their configs say"),
        "{message}"
    );
    assert!(
        message.contains("models of different architectures cannot be merged"),
        "{message}"
    );
    assert!(
        message.contains("allow_config_differences: [model_type]"),
        "{message}"
    );
}

#[test]
fn honest_differences_of_one_family_are_no_errors() {
    let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "use_cache": true,
        "transformers_version": "4.40.0", "attention_dropout": 0.1, "eos_token_id": 2});
    let new = json!({"rope_parameters": {"rope_theta": 500_000, "rope_type": "linear", "factor": 2}, "use_cache": false,
        "transformers_version": "5.2.0", "dtype": "bfloat16", "head_dim": 8, "num_key_value_heads": 1,
        "hidden_act": "silu", "eos_token_id": [2, 3], "attention_bias": false, "pad_token_id": 0});
    let none = notes(&bench(old.clone(), new), LINEAR);
    assert!(!none.iter().any(|note| note.contains("config")), "{none:?}");
    let mut longer = old.clone();
    longer["max_position_embeddings"] = json!(8192);
    longer["sliding_window"] = json!(512);
    let said = notes(&bench(old, longer), LINEAR);
    let expected = "the output gets the config of `a`; that of `b` says `max_position_embeddings: 8192, not none`, \
                    `sliding_window: 512, not none`";
    assert!(said.iter().any(|note| note == expected), "{said:?}");
    let bench = bench(json!({}), json!({}));
    let said = notes(
        &bench,
        &format!("{LINEAR}allow_config_differences: [rope_theta]\n"),
    );
    assert!(
        said.iter()
            .any(|note| note.contains("no model's config differs in `rope_theta`")),
        "{said:?}"
    );
}

/// Two classifiers with these labels.
fn classifiers(a: Value, b: Value) -> Bench {
    let bench = Bench::new();
    classifier(&bench, "a", 1, a);
    classifier(&bench, "b", 2, b);
    bench
}

fn classifier(bench: &Bench, name: &str, seed: u64, labels: Value) {
    let head = floats("score.weight", Dtype::F32, &[2, 8], noise(seed, 16));
    let mut specs = with(llama(seed, 2, Dtype::F32), head);
    // BERT has two types of tokens, and they are no labels.
    let types = floats(
        "bert.embeddings.token_type_embeddings.weight",
        Dtype::F32,
        &[2, 8],
        noise(seed, 16),
    );
    specs.insert(0, types);
    bench.model(name, &config_with(2, labels), &specs);
}

#[test]
fn rows_of_classifiers_must_stand_for_the_same_labels() {
    let labels = |names: [&str; 2]| json!({"id2label": {"0": names[0], "1": names[1]}});
    let reversed = || classifiers(labels(["neg", "pos"]), labels(["pos", "neg"]));
    // In another order, rows are merged by label.
    let bench = reversed();
    let out = bench.merge(LINEAR, &[]);
    let rows = |model: &str| by_name(&bench.path(model))["score.weight"].values();
    let (ours, theirs) = (rows("a"), rows("b"));
    let width = ours.len() / 2;
    let theirs = [&theirs[width..], &theirs[..width]].concat();
    let mean: Vec<f64> = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| 0.5 * a + 0.5 * b)
        .collect();
    for (found, mean) in rows("out").iter().zip(mean) {
        assert!((found - mean).abs() < 1e-7, "{found} {mean}");
    }
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["id2label"], json!({"0": "neg", "1": "pos"}));
    let said = notes(&bench, LINEAR);
    assert!(
        said.iter()
            .any(|note| note.contains("its rows of `score.weight` are merged by label")),
        "{said:?}"
    );
    bench.passes(&["verify", "out", "--full"]);
    let copied = format!("{LINEAR}except: [{{tensors: score.weight, action: copy}}]\n");
    let bench = reversed();
    bench.merge(&copied, &[]);
    let score = |model: &str| {
        load(&bench.path(model))
            .into_iter()
            .find(|(name, _)| name == "score.weight")
    };
    assert_eq!(score("out"), score("a"));
    let allowed = format!("{LINEAR}allow_config_differences: [id2label]\n");
    let as_they_are = reversed();
    let out = as_they_are.merge(&allowed, &[]);
    assert!(by_name(&out)["score.weight"].values() != rows("out"));
    let others = classifiers(
        json!({"label2id": {"cat": 0, "dog": 1}}),
        labels(["cat", "cow"]),
    );
    let message = others.refused(LINEAR, &[]);
    assert!(
        message.contains("row 1 of `score.weight` stands for `dog` in `a` and for `cow` in `b`"),
        "{message}"
    );
    // Where the first model has no labels of its own, those of the others are compared with each other.
    let three = classifiers(labels(["LABEL_0", "LABEL_1"]), labels(["neg", "pos"]));
    classifier(&three, "c", 3, labels(["pos", "neg"]));
    let recipe = "merge_method: linear\nmodels: [{model: a}, {model: b}, {model: c}]\nparameters: {weight: 1}\n";
    let out = three.merge(recipe, &[]);
    let rows = |model: &str| by_name(&three.path(model))["score.weight"].values();
    let (a, b, c) = (rows("a"), rows("b"), rows("c"));
    for (at, found) in by_name(&out)["score.weight"]
        .values()
        .into_iter()
        .enumerate()
    {
        let mean = (a[at] + b[at] + c[(at + width) % (2 * width)]) / 3.0;
        assert!((found - mean).abs() < 1e-7, "{found} {mean}");
    }
    classifiers(labels(["NEG", "POS"]), labels(["neg", "pos"])).merge(LINEAR, &[]);
}

#[test]
fn labels_may_be_listed_or_numbered_or_not_named() {
    let mapped = |names: [&str; 2]| json!({"id2label": {"0": names[0], "1": names[1]}});
    let list = |names: [&str; 2]| json!({ "id2label": names });
    let timm = |names: [&str; 2]| json!({ "label_names": names });
    let by_label = "its rows of `score.weight` are merged by label";
    let in_order = "rows of `score.weight` are merged in their order";
    let numbered = mapped(["LABEL_0", "LABEL_1"]);
    for (ours, theirs, expected) in [
        (list(["neg", "pos"]), list(["pos", "neg"]), Some(by_label)),
        (timm(["neg", "pos"]), mapped(["pos", "neg"]), Some(by_label)),
        (
            numbered.clone(),
            mapped(["LABEL_1", "LABEL_0"]),
            Some(by_label),
        ),
        (
            mapped(["label_1", "label_0"]),
            list(["LABEL_0", "LABEL_1"]),
            Some(by_label),
        ),
        (numbered.clone(), mapped(["neg", "pos"]), Some(in_order)),
        (list(["neg", "pos"]), json!({}), Some(in_order)),
        (numbered.clone(), numbered.clone(), None),
        (numbered, json!({}), None),
        (list(["neg", "pos"]), timm(["NEG", "POS"]), None),
    ] {
        let bench = classifiers(ours.clone(), theirs.clone());
        let said = notes(&bench, LINEAR);
        let found: Vec<_> = [by_label, in_order]
            .into_iter()
            .filter(|part| said.iter().any(|note| note.contains(part)))
            .collect();
        assert_eq!(
            found,
            expected.into_iter().collect::<Vec<_>>(),
            "{ours} {theirs} {said:?}"
        );
    }
    let other = classifiers(list(["cat", "dog"]), list(["cat", "cow"]));
    let message = other.refused(LINEAR, &[]);
    assert!(
        message.contains("row 1 of `score.weight` stands for `dog`"),
        "{message}"
    );
}

#[test]
fn names_that_training_or_old_versions_left_are_translated() {
    for prefix in ["_orig_mod.", "module.", "module._orig_mod."] {
        let bench = bench(json!({}), json!({}));
        let plain = bench.merge(LINEAR, &[]);
        let expected = load(&plain);
        for (models, seed) in [(["a"].as_slice(), 1), (&["a", "b"], 1)] {
            for (at, model) in models.iter().enumerate() {
                let mut specs = llama(seed + at as u64, 2, Dtype::F32);
                for spec in &mut specs {
                    spec.name = format!("{prefix}{}", spec.name);
                }
                bench.model(model, &config_with(2, json!({})), &specs);
            }
            let out = bench.merge(LINEAR, &[]);
            assert_eq!(load(&out), expected, "{prefix} {models:?}");
            let said = notes(&bench, LINEAR);
            assert!(
                said.iter()
                    .any(|note| note.contains("parts that only its training put there")),
                "{said:?}"
            );
        }
    }
    let bench = Bench::new();
    for (model, seed, norm, conv) in [
        (
            "a",
            1,
            ["LayerNorm.weight", "LayerNorm.bias"],
            [
                "parametrizations.weight.original0",
                "parametrizations.weight.original1",
            ],
        ),
        (
            "b",
            2,
            ["LayerNorm.gamma", "LayerNorm.beta"],
            ["weight_g", "weight_v"],
        ),
    ] {
        let mut specs = llama(seed, 1, Dtype::F32);
        for (at, name) in norm.iter().chain(&conv).enumerate() {
            let name = format!("model.extra.{name}");
            specs.push(floats(
                &name,
                Dtype::F32,
                &[2],
                [f64::from(seed as u32), at as f64],
            ));
        }
        bench.model(model, &config_with(1, json!({})), &specs);
    }
    let out = load(&bench.merge(LINEAR, &[]));
    for (at, name) in [
        "LayerNorm.weight",
        "LayerNorm.bias",
        "parametrizations.weight.original0",
    ]
    .iter()
    .enumerate()
    {
        let found = out
            .iter()
            .find(|(own, _)| *own == format!("model.extra.{name}"));
        assert_eq!(found.expect(name).1.values(), [1.5, at as f64]);
    }
}

#[test]
fn a_component_of_diffusers_keeps_its_file_names_and_its_config() {
    let bench = Bench::new();
    let config = json!({"_class_name": "UNet2DConditionModel", "sample_size": 8});
    for (model, seed) in [("a", 1), ("b", 2)] {
        bench.file(&format!("{model}/config.json"), config.to_string());
        let specs = [
            floats("conv_in.weight", Dtype::F32, &[4, 4], noise(seed, 16)),
            floats("conv_out.weight", Dtype::F32, &[4, 4], noise(seed + 9, 16)),
        ];
        bench.tensors(
            &format!("{model}/diffusion_pytorch_model.safetensors"),
            &specs,
        );
    }
    let out = bench.merge(LINEAR, &[]);
    assert!(out.join("diffusion_pytorch_model.safetensors").is_file());
    assert_eq!(read_json(&out.join("config.json")), config);
    let out = bench.merge(LINEAR, &["--shard-size", "64"]);
    assert!(
        out.join("diffusion_pytorch_model-00002-of-00002.safetensors")
            .is_file()
    );
    let index = read_json(&out.join("diffusion_pytorch_model.safetensors.index.json"));
    assert_eq!(
        index["weight_map"]["conv_in.weight"],
        "diffusion_pytorch_model-00001-of-00002.safetensors"
    );
    assert_eq!(bench.weld(&["verify", "out", "--full"]).code, Some(0));
}

/// The recipe that gives an inpainting model what a custom one learned.
const INPAINT: &str = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: inpaint, parameters: {weight: 1}}\n\
                       - {model: custom, parameters: {weight: 1}}\n";

#[test]
fn a_unet_for_inpainting_takes_what_a_plain_one_learned() {
    const KERNEL: usize = 2;
    let first = |inputs: usize, seed: u64| {
        let shape = [2, inputs, 1, KERNEL];
        floats(
            "conv_in.weight",
            Dtype::F32,
            &shape,
            noise(seed, 2 * inputs * KERNEL),
        )
    };
    let unet = |bench: &Bench, name: &str, inputs: usize, seed: u64| {
        let config = json!({"_class_name": "UNet2DConditionModel", "in_channels": inputs});
        bench.file(&format!("{name}/config.json"), config.to_string());
        let rest = floats("conv_out.weight", Dtype::F32, &[2], noise(seed + 20, 2));
        let file = format!("{name}/diffusion_pytorch_model.safetensors");
        bench.tensors(&file, &[first(inputs, seed), rest]);
    };
    let bench = Bench::new();
    for (name, inputs, seed) in [("base", 4, 1), ("inpaint", 9, 2), ("custom", 4, 3)] {
        unet(&bench, name, inputs, seed);
    }
    let values = |model: &str, tensor: &str| {
        let tensors = by_name(&bench.path(model));
        tensors[tensor].values()
    };
    let out = bench.merge(INPAINT, &[]);
    let (base, inpaint) = (
        values("base", "conv_in.weight"),
        values("inpaint", "conv_in.weight"),
    );
    let custom = values("custom", "conv_in.weight");
    for (at, found) in values("out", "conv_in.weight").iter().enumerate() {
        let (row, channel, place) = (at / (9 * KERNEL), at / KERNEL % 9, at % KERNEL);
        let plain = (row * 4 + channel) * KERNEL + place;
        let expected = match channel < 4 {
            true => inpaint[at] + custom[plain] - base[plain],
            false => inpaint[at],
        };
        assert!((found - expected).abs() < 1e-6, "{at}: {found} {expected}");
    }
    assert_eq!(read_json(&out.join("config.json"))["in_channels"], 9);
    let notes = notes(&bench, INPAINT).join("\n");
    assert!(notes.contains("`base` has 4 input channels"), "{notes}");
    assert_eq!(bench.weld(&["verify", "out", "--full"]).code, Some(0));
    // A mean would halve the weights of the mask; and where the base has them, others would take from them.
    let linear = "merge_method: linear\nmodels:\n- {model: inpaint, parameters: {weight: 1}}\n\
                  - {model: custom, parameters: {weight: 1}}\n";
    let of_inpaint = INPAINT.replace("base_model: base", "base_model: inpaint");
    let of_inpaint = of_inpaint.replace("- {model: inpaint", "- {model: base");
    unet(&bench, "other", 6, 5);
    let unknown = INPAINT.replace("model: inpaint", "model: other");
    for recipe in [linear, &of_inpaint, &unknown] {
        bench.file(
            "inpaint/config.json",
            r#"{"_class_name": "UNet2DConditionModel"}"#,
        );
        for plain in ["base", "custom", "other"] {
            bench.file(
                &format!("{plain}/config.json"),
                r#"{"_class_name": "UNet2DConditionModel"}"#,
            );
        }
        let message = refused_plan(&bench, recipe);
        assert!(message.contains("has further input channels"), "{message}");
    }
}

/// A tokenizer of three tokens, the last of which ends turns.
fn tokenizer(end: &str) -> String {
    let added = json!([{"id": 2, "content": end, "special": true}]);
    json!({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": added}).to_string()
}

#[test]
fn generation_stops_where_the_template_ends_a_turn() {
    let chat = |bench: &Bench, template: &str| {
        bench.file("b/chat_template.jinja", template);
        bench.file("a/tokenizer.json", tokenizer("<|im_end|>"));
        bench.file("b/tokenizer.json", tokenizer("<|im_end|>"));
        bench.file(
            "a/generation_config.json",
            r#"{"eos_token_id": 1, "top_p": 0.5}"#,
        );
    };
    let auto = format!("{LINEAR}chat_template: auto\n");
    let bench = bench(json!({"eos_token_id": 1}), json!({"eos_token_id": 2}));
    chat(&bench, "{{ messages }}<|im_end|>");
    let out = bench.merge(&auto, &[]);
    let generation = read_json(&out.join("generation_config.json"));
    assert_eq!(generation, json!({"eos_token_id": [2, 1], "top_p": 0.5}));
    assert!(
        notes(&bench, &auto)
            .iter()
            .any(|note| note.contains("ends turns with `<|im_end|>`"))
    );
    let found = findings(&bench, "out");
    assert!(!found.contains("tokenizer.turn-end"), "{found}");
    // The same template in a model that stops elsewhere.
    bench.file("a/chat_template.jinja", "{{ messages }}<|im_end|>");
    let found = findings(&bench, "a");
    assert!(found.contains("tokenizer.turn-end"), "{found}");
    // And one that ends turns with what is no token there.
    bench.file("a/chat_template.jinja", "{{ messages }}<|eot_id|>");
    let found = findings(&bench, "a");
    assert!(
        found.contains("tokenizer.turn-end") && found.contains("`<|eot_id|>`"),
        "{found}"
    );
    // Not where the end of a text is written out, and the other token only cut off.
    bench.file("a/special_tokens_map.json", r#"{"eos_token": "b"}"#);
    let cut = "{{ messages | replace('<|eot_id|>', '') }}b";
    bench.file("a/chat_template.jinja", cut);
    let found = findings(&bench, "a");
    assert!(!found.contains("tokenizer.turn-end"), "{found}");
    std::fs::remove_file(bench.path("a/special_tokens_map.json")).unwrap();
    bench.file("a/chat_template.jinja", "{{ messages }}<|im_end|>");
    // With the template of a model, and no generation config: the config's token stays one.
    std::fs::remove_file(bench.path("a/generation_config.json")).unwrap();
    let out = bench.merge(&auto, &[]);
    assert_eq!(
        read_json(&out.join("generation_config.json")),
        json!({"eos_token_id": [2, 1]})
    );
    // A template whose tokens nobody has.
    let message = refused_plan(&bench, &format!("{LINEAR}chat_template: llama3\n"));
    assert!(
        message.contains("marks turns with `<|eot_id|>`, `<|start_header_id|>`"),
        "{message}"
    );
    // Where the tokenizer's own end ends turns, nothing is to do.
    let own = bench_of_eos();
    let out = own.merge(&auto, &[]);
    assert_eq!(
        read_json(&out.join("generation_config.json")),
        json!({"eos_token_id": 1})
    );
}

#[test]
fn numbers_that_json_has_not_are_shown_as_python_writes_them() {
    let bench = bench(json!({}), json!({}));
    for (model, number) in [("a", "NaN"), ("b", "[0.0, -Infinity]")] {
        let path = bench.path(&format!("{model}/config.json"));
        let config = std::fs::read_to_string(&path).unwrap();
        let config = config.trim_end().strip_suffix('}').unwrap();
        std::fs::write(&path, format!("{config}, \"unheard_of\": {number}}}")).unwrap();
    }
    let said = notes(&bench, LINEAR);
    let expected = "that of `b` says `unheard_of: [0.0,-Infinity], not NaN`";
    assert!(said.iter().any(|note| note.contains(expected)), "{said:?}");
}

#[test]
fn files_beside_the_weights_are_what_their_names_say() {
    let bench = bench(json!({}), json!({}));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for file in ["vocab.txt", "code/helper.py", "preprocessor_config.json"] {
        bench.file(&format!("a/{file}"), pointer);
        let found = findings(&bench, "a");
        let expected = ["container.stand-in", file, "git lfs pull"];
        assert!(expected.iter().all(|part| found.contains(part)), "{found}");
        std::fs::remove_file(bench.path(&format!("a/{file}"))).unwrap();
    }
    for (file, id) in [
        ("processor_config.json", "config.malformed"),
        ("modules.json", "config.malformed"),
        ("vocab.json", "tokenizer.malformed"),
    ] {
        bench.file(&format!("a/{file}"), "{\"a\": 1,");
        let found = findings(&bench, "a");
        assert!(found.contains(id) && found.contains(file), "{found}");
        // The folder is where the user said.
        let folder = bench.path("a").display().to_string();
        assert!(!found.contains(&folder), "{found}");
        bench.file(&format!("a/{file}"), "{\"a\": [Infinity]}");
        assert!(!findings(&bench, "a").contains("malformed"));
        std::fs::remove_file(bench.path(&format!("a/{file}"))).unwrap();
    }
}

/// Two models whose template ends turns with the tokenizer's own end.
fn bench_of_eos() -> Bench {
    let bench = bench(json!({}), json!({}));
    bench.file("b/chat_template.jinja", "{{ messages }}{{ eos_token }}");
    for model in ["a", "b"] {
        bench.file(&format!("{model}/tokenizer.json"), tokenizer("<|im_end|>"));
    }
    bench.file("a/generation_config.json", r#"{"eos_token_id": 1}"#);
    bench
}

#[test]
fn files_that_configs_name_must_be_there() {
    let bench = bench(json!({}), json!({}));
    let found = |bench: &Bench| findings(bench, "a");
    bench.file(
        "a/processor_config.json",
        r#"{"auto_map": {"AutoProcessor": "org/code--processing_x.X"}}"#,
    );
    let modules = json!([{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]);
    bench.file("a/modules.json", modules.to_string());
    bench.file("a/1_Pooling/config.json", "{}");
    assert!(!found(&bench).contains("config.named-file-missing"));
    let dense = json!([{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]);
    bench.file("a/modules.json", dense.to_string());
    bench.file("a/2_Dense/config.json", "{}");
    let text = found(&bench);
    assert!(
        text.contains("config.named-file-missing") && text.contains("2_Dense/model.safetensors"),
        "{text}"
    );
    bench.tensors(
        "a/2_Dense/model.safetensors",
        &[floats("w", Dtype::F32, &[1], [1.0])],
    );
    assert!(!found(&bench).contains("config.named-file-missing"));
    bench.file(
        "a/tokenizer_config.json",
        r#"{"auto_map": {"AutoTokenizer": ["parts.tokenization_x.T", null]}}"#,
    );
    let text = found(&bench);
    assert!(text.contains("parts/tokenization_x.py"), "{text}");
    // What would be run is named, in lists too.
    assert!(text.contains("parts.tokenization_x.T"), "{text}");
    bench.file("a/parts/tokenization_x.py", "pass");
    assert!(!found(&bench).contains("config.named-file-missing"));
}

#[test]
fn pooling_prompts_and_processors_that_differ_are_noted() {
    let bench = bench(json!({}), json!({}));
    for (model, cls) in [("a", true), ("b", false)] {
        let pooling = json!({"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": !cls});
        bench.file(
            &format!("{model}/1_Pooling/config.json"),
            pooling.to_string(),
        );
        let size = json!({"size": if cls { 224 } else { 336 }, "image_processor_type": model});
        bench.file(
            &format!("{model}/preprocessor_config.json"),
            size.to_string(),
        );
    }
    let said = notes(&bench, LINEAR);
    for expected in [
        "`1_Pooling/config.json` of `b` differs from that of `a` in `pooling_mode_cls_token`, `pooling_mode_mean_tokens`: \
         the output has the latter",
        "`preprocessor_config.json` of `b` differs from that of `a` in `size`: the output has the latter",
    ] {
        assert!(said.iter().any(|note| note == expected), "{said:?}");
    }
}

#[test]
fn what_lies_beside_the_weights_is_carried_unless_a_rule_says_why_not() {
    let bench = bench(json!({}), json!({}));
    let carried = [
        "settings.yaml",
        "media_io.py",
        "voices/one/a.json",
        "NOTICE",
    ];
    let left = [
        "trainer_state.json",
        "model.gguf",
        "onnx/config.json",
        "x.exe",
        "weldment.lock.json.sig",
    ];
    for name in carried.iter().chain(&left) {
        bench.file(&format!("a/{name}"), "{}");
    }
    bench.file("a/renamed", std::str::from_utf8(b"\x7fELF").unwrap());
    let said = notes(&bench, LINEAR);
    let note = said.iter().find(|note| note.starts_with("not carried"));
    let note = note.expect("a note");
    for name in [
        "trainer_state.json",
        "model.gguf",
        "onnx/",
        "x.exe",
        "renamed",
    ] {
        assert!(note.contains(&format!("`{name}`")), "{name}: {note}");
    }
    let out = bench.merge(LINEAR, &[]);
    for name in carried {
        assert!(out.join(name).exists(), "{name}");
    }
    for name in left.iter().chain(&["renamed"]) {
        assert!(!out.join(name).exists(), "{name}");
    }
    std::fs::write(out.join("voices/one/a.json"), "[]").unwrap();
    assert_eq!(bench.weld(&["verify", "out"]).code, Some(1));
}

#[test]
fn a_piece_model_with_more_pieces_than_rows_is_told() {
    let bench = bench(json!({}), json!({}));
    let rows = by_name(&bench.path("a"))["model.embed_tokens.weight"].shape[0];
    let piece = |number: usize| {
        let text = format!("t{number:04}");
        [&[0x0a, 7, 0x0a, 5][..], text.as_bytes()].concat()
    };
    let pieces = |count: usize| (0..count).flat_map(piece).collect::<Vec<u8>>();
    for (count, severity) in [
        (rows, None),
        (rows + 1, Some("note")),
        (rows + 9, Some("warning")),
    ] {
        for model in ["a", "b"] {
            bench.file(&format!("{model}/tokenizer.model"), pieces(count));
        }
        let said = notes(&bench, LINEAR);
        let told = format!("`tokenizer.model` of `a` has ids up to {}", count - 1);
        let is_told = said.iter().any(|note| note.contains(&told));
        assert_eq!(is_told, severity.is_some(), "{said:?}");
        let found: Value = serde_json::from_str(&findings(&bench, "a")).unwrap();
        let mut found = found.as_array().unwrap().iter();
        let found = found.find(|finding| finding["check"] == "tokenizer.id-without-row");
        assert_eq!(
            found.map(|finding| finding["severity"].as_str().unwrap()),
            severity
        );
    }
}

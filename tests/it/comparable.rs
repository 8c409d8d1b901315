//! Models whose tensors have the same shapes and do not mean the same.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Bench, config_with, floats, llama, load, noise, read_json, with};

const LINEAR: &str =
    "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 0.5}\n";

/// Two models of one shape with these fields in their configs.
fn bench(a: Value, b: Value) -> Bench {
    let bench = Bench::new();
    bench.model("a", &config_with(2, a), &llama(1, 2, Dtype::F32));
    bench.model("b", &config_with(2, b), &llama(2, 2, Dtype::F32));
    bench
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
    let expected = "the output gets the config of `a`; that of `b` says `max_position_embeddings 8192, not nothing`, \
                    `sliding_window 512, not nothing`";
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
    for (name, seed, labels) in [("a", 1, a), ("b", 2, b)] {
        let head = floats("score.weight", Dtype::F32, &[2, 8], noise(seed, 16));
        let specs = with(llama(seed, 2, Dtype::F32), head);
        bench.model(name, &config_with(2, labels), &specs);
    }
    bench
}

#[test]
fn rows_of_classifiers_must_stand_for_the_same_labels() {
    let labels = |names: [&str; 2]| json!({"id2label": {"0": names[0], "1": names[1]}});
    let reversed = || classifiers(labels(["neg", "pos"]), labels(["pos", "neg"]));
    let message = reversed().refused(LINEAR, &[]);
    assert!(
        message.contains("row 0 of `score.weight` stands for `neg` in `a` and for `pos` in `b`"),
        "{message}"
    );
    assert!(message.contains("in another order"), "{message}");
    let copied = format!("{LINEAR}except: [{{tensors: score.weight, action: copy}}]\n");
    let bench = reversed();
    bench.merge(&copied, &[]);
    let score = |model: &str| {
        load(&bench.path(model))
            .into_iter()
            .find(|(name, _)| name == "score.weight")
    };
    assert_eq!(score("out"), score("a"));
    reversed().merge(
        &format!("{LINEAR}allow_config_differences: [id2label]\n"),
        &[],
    );
    let others = classifiers(
        json!({"label2id": {"cat": 0, "dog": 1}}),
        labels(["cat", "cow"]),
    );
    let message = others.refused(LINEAR, &[]);
    assert!(
        message.contains("row 1 of `score.weight` stands for `dog` in `a` and for `cow` in `b`"),
        "{message}"
    );
    classifiers(labels(["NEG", "POS"]), labels(["neg", "pos"])).merge(LINEAR, &[]);
    classifiers(labels(["LABEL_0", "LABEL_1"]), labels(["neg", "pos"])).merge(LINEAR, &[]);
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

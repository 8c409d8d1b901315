//! Vocabularies that differ, aligned by token: rows, files, ids in configs, refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::fixtures::{
    Bench, Loaded, Spec, config_with, floats, llama, load, noise, read_json, with,
};

const HIDDEN: usize = 8;

/// A tokenizer of ordinary and added tokens, ids counting up.
fn tokenizer(ordinary: &[&str], added: &[&str]) -> Value {
    let vocab: Map<String, Value> = ordinary
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    let added: Vec<Value> = added
        .iter()
        .enumerate()
        .map(|(place, token)| {
            let id = ordinary.iter().position(|other| other == token);
            json!({
                "id": id.unwrap_or(ordinary.len() + place), "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

/// The row of a token: the model's number, the row's, and the column.
fn row(model: usize, id: usize) -> Vec<f64> {
    (0..HIDDEN)
        .map(|column| model as f64 * 64.0 + id as f64 + column as f64 / 8.0)
        .collect()
}

fn matrix(name: &str, model: usize, rows: usize) -> Spec {
    let values = (0..rows).flat_map(|id| row(model, id));
    floats(name, Dtype::F32, &[rows, HIDDEN], values)
}

/// A Llama with such rows in its embedding; its head has the rows of model `number + 4`.
fn model(bench: &Bench, name: &str, number: usize, rows: usize, config: Value, tokenizer: &Value) {
    let specs = llama(1, 2, Dtype::F32);
    let specs = with(specs, matrix("model.embed_tokens.weight", number, rows));
    let specs = with(specs, matrix("lm_head.weight", number + 4, rows));
    let mut fields = json!({"vocab_size": rows, "bos_token_id": 1, "eos_token_id": [2]});
    let more = config.as_object().expect("an object").clone();
    fields.as_object_mut().expect("an object").extend(more);
    bench.model(name, &config_with(2, fields), &specs);
    bench.file(&format!("{name}/tokenizer.json"), tokenizer.to_string());
}

const COMMON: [&str; 6] = ["<unk>", "<s>", "</s>", "x", "y", "z"];

/// `a` has `<a>` and `<both>` added, `b` `<b>` and `<both>`, `base` nothing.
fn bench() -> Bench {
    let bench = Bench::new();
    model(
        &bench,
        "base",
        0,
        6,
        json!({}),
        &tokenizer(&COMMON, &["<s>"]),
    );
    model(
        &bench,
        "a",
        1,
        8,
        json!({}),
        &tokenizer(&COMMON, &["<s>", "<a>", "<both>"][1..]),
    );
    let other_order = ["<unk>", "<s>", "</s>", "z", "y", "x", "w"];
    model(
        &bench,
        "b",
        2,
        9,
        json!({}),
        &tokenizer(&other_order, &["<both>", "<b>"]),
    );
    bench
}

fn ids(folder: &Path) -> BTreeMap<String, usize> {
    let json = read_json(&folder.join("tokenizer.json"));
    let number = |value: &Value| value.as_u64().expect("an id") as usize;
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let mut ids: BTreeMap<String, usize> = vocab
        .iter()
        .map(|(token, id)| (token.clone(), number(id)))
        .collect();
    for token in json["added_tokens"].as_array().expect("a list") {
        let content = token["content"].as_str().expect("text").to_owned();
        ids.insert(content, number(&token["id"]));
    }
    ids
}

fn tensors(folder: &Path) -> BTreeMap<String, Loaded> {
    load(folder).into_iter().collect()
}

fn row_of(folder: &Path, name: &str, id: usize) -> Vec<f64> {
    let values = tensors(folder)[name].values();
    values[id * HIDDEN..(id + 1) * HIDDEN].to_vec()
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    (0..HIDDEN)
        .map(|column| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64)
        .collect()
}

/// Each model with all the weight in turn, so that its aligned rows can be read off.
fn aligned(
    bench: &Bench,
    models: &[&str],
    base: Option<&str>,
    key: &str,
    of: &str,
) -> std::path::PathBuf {
    let entries: String = models
        .iter()
        .map(|model| {
            let weight = u8::from(*model == of);
            format!("- {{model: {model}, parameters: {{weight: {weight}}}}}\n")
        })
        .collect();
    let base = base.map_or(String::new(), |base| format!("base_model: {base}\n"));
    let recipe = format!("merge_method: linear\n{base}models:\n{entries}{key}\n");
    bench.merge(&recipe, &[])
}

#[test]
fn a_union_has_the_bases_tokens_first_and_fills_what_a_model_lacks() {
    let bench = bench();
    let models = ["base", "a", "b"];
    let key = "tokenizer: {source: union}";
    for (number, of) in models.iter().enumerate() {
        let out = aligned(&bench, &models, None, key, of);
        let ids = ids(&out);
        let expected = [
            ("<unk>", 0),
            ("<s>", 1),
            ("</s>", 2),
            ("x", 3),
            ("y", 4),
            ("z", 5),
            ("<a>", 6),
            ("<both>", 7),
            ("w", 8),
            ("<b>", 9),
        ];
        assert_eq!(
            ids,
            expected.map(|(token, id)| (token.to_owned(), id)).into()
        );
        for (name, more) in [("model.embed_tokens.weight", 0), ("lm_head.weight", 4)] {
            assert_eq!(tensors(&out)[name].shape, [10, HIDDEN]);
            let (a, b) = (1 + more, 2 + more);
            for (token, id) in &ids {
                let own = match number {
                    0 => COMMON.iter().position(|common| common == token),
                    1 => ["<unk>", "<s>", "</s>", "x", "y", "z", "<a>", "<both>"]
                        .iter()
                        .position(|own| own == token),
                    _ => ["<unk>", "<s>", "</s>", "z", "y", "x", "w", "<both>", "<b>"]
                        .iter()
                        .position(|own| own == token),
                };
                let expected = match (own, token.as_str()) {
                    (Some(own), _) => row(number + more, own),
                    (None, "<a>") => row(a, 6),
                    (None, "w") => row(b, 6),
                    (None, "<b>") => row(b, 8),
                    (None, "<both>") => mean(&[row(a, 7), row(b, 7)]),
                    other => panic!("{other:?}"),
                };
                assert_eq!(
                    row_of(&out, name, *id),
                    expected,
                    "{token} of {of} in {name}"
                );
            }
        }
        assert_eq!(read_json(&out.join("config.json"))["vocab_size"], 10);
    }
}

#[test]
fn what_the_base_has_is_taken_from_the_base() {
    let bench = Bench::new();
    model(
        &bench,
        "base",
        0,
        7,
        json!({}),
        &tokenizer(&COMMON, &["<t>"]),
    );
    model(&bench, "a", 1, 6, json!({}), &tokenizer(&COMMON, &[]));
    model(&bench, "b", 2, 7, json!({}), &tokenizer(&COMMON, &["<t>"]));
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 1}}\n\
                  - {model: b, parameters: {weight: 1}}\ntokenizer_source: union\n";
    let out = bench.merge(recipe, &[]);
    // base + (base - base) + (b - base): without the base's row there, `a` would take its own part away.
    assert_eq!(row_of(&out, "model.embed_tokens.weight", 6), row(2, 6));
    assert_eq!(
        row_of(&out, "model.embed_tokens.weight", 3),
        [row(1, 3), row(2, 3)].iter().fold(
            row(0, 3).iter().map(|value| -value).collect::<Vec<f64>>(),
            |sum, row| sum.iter().zip(row).map(|(a, b)| a + b).collect(),
        )
    );
}

#[test]
fn base_and_model_keep_one_vocabulary() {
    let bench = bench();
    let models = ["base", "a", "b"];
    for key in ["tokenizer_source: base", "tokenizer: {source: base}"] {
        let out = aligned(&bench, &models, None, key, "b");
        assert_eq!(ids(&out).len(), 6);
        let written = fs::read(out.join("tokenizer.json")).expect("file");
        assert_eq!(
            written,
            fs::read(bench.path("base/tokenizer.json")).expect("file")
        );
        assert_eq!(tensors(&out)["lm_head.weight"].shape, [6, HIDDEN]);
        for (id, own) in [(0, 0), (3, 5), (4, 4), (5, 3)] {
            assert_eq!(row_of(&out, "lm_head.weight", id), row(6, own));
        }
    }
    for key in [
        "tokenizer_source: b",
        "tokenizer_source: model:b",
        "tokenizer: {source: {model: b}}",
    ] {
        let out = aligned(&bench, &models, None, key, "a");
        let written = fs::read(out.join("tokenizer.json")).expect("file");
        assert_eq!(
            written,
            fs::read(bench.path("b/tokenizer.json")).expect("file")
        );
        let expected = [
            row(1, 0),
            row(1, 1),
            row(1, 2),
            row(1, 5),
            row(1, 4),
            row(1, 3),
            row(2, 6),
            row(1, 7),
            row(2, 8),
        ];
        for (id, expected) in expected.into_iter().enumerate() {
            assert_eq!(
                row_of(&out, "model.embed_tokens.weight", id),
                expected,
                "{id}"
            );
        }
        assert_eq!(read_json(&out.join("config.json"))["vocab_size"], 9);
    }
}

#[test]
fn rules_say_where_rows_come_from() {
    let bench = bench();
    model(
        &bench,
        "other",
        3,
        7,
        json!({}),
        &tokenizer(&["<unk>", "<s>", "</s>", "q", "r", "s"], &["<o>"]),
    );
    let key = "tokenizer:\n  source: base\n  tokens:\n    <zero>: {source: {kind: zero}}\n    <a>: {source: a}\n    \
               <b>: {source: {kind: model_token, model: other, token: q}}\n    \
               <both>: {source: {kind: model_token, model: other, token_id: 6}, force: true}\n    \
               z: {source: base, force: true}\n    x: {source: b}\n    <new>:\n      force: false\n    \
               <o>: {source: other}\n";
    let models = ["base", "a", "b"];
    for (number, of) in models.iter().enumerate() {
        let out = aligned(&bench, &models, None, key, of);
        let ids = ids(&out);
        assert_eq!(ids.len(), 12);
        let found = |token: &str| row_of(&out, "model.embed_tokens.weight", ids[token]);
        assert_eq!(found("<zero>"), vec![0.0; HIDDEN]);
        assert_eq!(found("<a>"), row(1, 6));
        assert_eq!(
            found("<b>"),
            if number == 2 { row(2, 8) } else { row(3, 3) }
        );
        assert_eq!(found("<both>"), row(3, 6), "force overrides what {of} has");
        assert_eq!(found("z"), row(0, 5));
        assert_eq!(
            found("x"),
            row(number, [3, 3, 5][number]),
            "without force, a model keeps its own"
        );
        assert_eq!(found("<o>"), row(3, 6));
        assert_eq!(found("<new>"), vec![0.0; HIDDEN]);
        assert_eq!(row_of(&out, "lm_head.weight", ids["<o>"]), row(7, 6));
    }
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("tokens   base: 12 tokens (6 of them added), 12 rows"),
        "{}",
        plan.stdout
    );
    assert!(
        plan.stdout.contains("from where the recipe says"),
        "{}",
        plan.stdout
    );
    assert!(
        plan.stdout
            .contains("no merged model has 1 token of the vocabulary"),
        "{}",
        plan.stdout
    );
}

/// Qwen2.5 has 152,064 rows and 151,665 tokens; the peer writes 151,665 rows (mergekit#425).
#[test]
fn padded_rows_are_kept_not_shrunk() {
    let bench = Bench::new();
    model(&bench, "a", 0, 12, json!({}), &tokenizer(&COMMON, &["<a>"]));
    model(
        &bench,
        "b",
        1,
        16,
        json!({}),
        &tokenizer(&COMMON, &["<a>", "<b>"]),
    );
    let out = aligned(&bench, &["a", "b"], None, "tokenizer: {source: union}", "b");
    assert_eq!(
        tensors(&out)["model.embed_tokens.weight"].shape,
        [12, HIDDEN]
    );
    for id in 0..12 {
        assert_eq!(row_of(&out, "model.embed_tokens.weight", id), row(1, id));
    }
    let out = aligned(&bench, &["a", "b"], None, "tokenizer: {source: union}", "a");
    for id in (0..7).chain(8..12) {
        assert_eq!(
            row_of(&out, "model.embed_tokens.weight", id),
            row(0, id),
            "{id}"
        );
    }
    assert_eq!(row_of(&out, "model.embed_tokens.weight", 7), row(1, 7));
    // The longer one's padding is kept too, if its vocabulary is.
    let out = aligned(&bench, &["a", "b"], None, "tokenizer: {source: b}", "a");
    assert_eq!(tensors(&out)["lm_head.weight"].shape, [16, HIDDEN]);
    assert_eq!(row_of(&out, "lm_head.weight", 9), row(4, 9));
    assert_eq!(row_of(&out, "lm_head.weight", 15), row(5, 15));
    assert_eq!(read_json(&out.join("config.json"))["vocab_size"], 16);
}

#[test]
fn rows_are_padded_to_a_multiple_with_the_mean() {
    let bench = bench();
    let key = "tokenizer: {source: union, pad_to_multiple_of: 8}";
    let out = aligned(&bench, &["base", "a", "b"], None, key, "base");
    let embedding = "model.embed_tokens.weight";
    assert_eq!(tensors(&out)[embedding].shape, [16, HIDDEN]);
    let rows: Vec<Vec<f64>> = (0..10).map(|id| row_of(&out, embedding, id)).collect();
    for id in 10..16 {
        for (found, expected) in row_of(&out, embedding, id).iter().zip(mean(&rows)) {
            assert!((found - expected).abs() < 1e-5);
        }
    }
    assert_eq!(read_json(&out.join("config.json"))["vocab_size"], 16);
}

/// Tokens that no model has rows for were left uninitialised: NaN in the embedding (the peer's pull request 73).
#[test]
fn tokens_without_a_row_are_named_not_made_up() {
    let bench = Bench::new();
    model(&bench, "a", 0, 6, json!({}), &tokenizer(&COMMON, &[]));
    model(
        &bench,
        "b",
        1,
        6,
        json!({}),
        &tokenizer(&COMMON, &["<pad>"]),
    );
    let recipe = |more: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{weight: 1}}\ntokenizer: {{source: union{more}}}\n"
        )
    };
    insta::assert_snapshot!(bench.clean(&bench.refused(&recipe(""), &[])), @r#"
    error: the embedding of `b` has 6 rows, and its tokenizer 1 token beyond: `<pad>`
     --> recipe.yml:2:30
      |
    2 | models: [{model: a}, {model: b}]
      |                              ^
      |
      = hint: say where their rows come from, such as `tokens: {"<pad>": {source: {kind: zero}}}` under `tokenizer:`, or drop them by `beyond_embedding: drop` there
    "#);
    let out = bench.merge(&recipe(", tokens: {<pad>: {source: {kind: zero}}}"), &[]);
    let id = ids(&out)["<pad>"];
    assert_eq!(row_of(&out, "lm_head.weight", id), vec![0.0; HIDDEN]);
    assert!(
        tensors(&out)
            .values()
            .all(|tensor| tensor.values().iter().all(|value| value.is_finite()))
    );
}

#[test]
fn tokens_beyond_an_embedding_are_dropped_where_the_recipe_says_so() {
    let bench = Bench::new();
    let plain = tokenizer(&COMMON, &["<one>"]);
    model(&bench, "a", 0, 7, json!({}), &plain);
    model(
        &bench,
        "b",
        1,
        6,
        json!({}),
        &tokenizer(&COMMON, &["<pad>", "<one>"]),
    );
    let merge = |models: &str| {
        let recipe = format!(
            "merge_method: linear\nmodels: {models}\nparameters: {{weight: 1}}\n\
             tokenizer: {{source: union, beyond_embedding: drop}}\n"
        );
        let out = bench.merge(&recipe, &[]);
        (out, bench.weld(&["plan", "recipe.yml"]).stdout)
    };
    // Both added tokens of `b` lie beyond its rows; `<one>` has a row in `a` alone.
    let (out, plan) = merge("[{model: a}, {model: b}]");
    assert_eq!(ids(&out), ids(&bench.path("a")));
    let one = ids(&out)["<one>"];
    assert_eq!(
        row_of(&out, "lm_head.weight", one),
        row_of(&bench.path("a"), "lm_head.weight", one)
    );
    assert!(
        plan.contains("2 tokens of `b` dropped, as its embedding has 6 rows: `<pad>`, `<one>`"),
        "{plan}"
    );
    // The first model's own file loses them, and says the same in its other files.
    let (out, _) = merge("[{model: b}, {model: a}]");
    let found = ids(&out);
    assert_eq!((found.get("<pad>"), found["<one>"]), (None, 6));
    let outcome = bench.weld(&["check", "out"]);
    assert!(!outcome.stdout.contains("tokenizer."), "{}", outcome.stdout);
    fs::remove_dir_all(&out).unwrap();
    let message = bench.refused(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n\
         tokenizer: {beyond_embedding: cut}\n",
        &[],
    );
    assert!(
        message.contains("unknown word `cut`")
            && message.contains("`error` (the default) and `drop`"),
        "{message}"
    );
}

/// Yi has ids 64000 and 64001 in a tokenizer of 64000 rows (mergekit#428).
#[test]
fn a_base_with_ids_beyond_its_rows_is_refused_not_cut() {
    let bench = Bench::new();
    model(
        &bench,
        "a",
        0,
        6,
        json!({}),
        &tokenizer(&COMMON, &["<one>", "<two>"]),
    );
    let message = bench.refused(
        "merge_method: passthrough\nmodels: [{model: a}]\ntokenizer_source: base\n",
        &[],
    );
    assert!(
        message.contains("has 6 rows, and its tokenizer 2 tokens beyond: `<one>`, `<two>`"),
        "{message}"
    );
}

#[test]
fn a_union_of_a_model_with_itself_is_that_model() {
    let bench = bench();
    for key in [
        "tokenizer: {source: union}",
        "tokenizer_source: base",
        "tokenizer_source: a",
    ] {
        let recipe = format!(
            "merge_method: linear\nmodels: [{{model: a}}, {{model: a/}}]\nparameters: {{weight: 0.5}}\n{key}\n"
        );
        let out = bench.merge(&recipe, &[]);
        assert_eq!(tensors(&out), tensors(&bench.path("a")), "{key}");
        let (found, expected) = (
            fs::read(out.join("tokenizer.json")),
            fs::read(bench.path("a/tokenizer.json")),
        );
        assert_eq!(found.expect("file"), expected.expect("file"));
    }
    let recipe = "merge_method: passthrough\nmodels: [{model: b}]\ntokenizer: {source: union}\n";
    assert_eq!(
        tensors(&bench.merge(recipe, &[])),
        tensors(&bench.path("b"))
    );
}

#[test]
fn passthrough_and_exceptions_are_aligned_too() {
    let bench = bench();
    let recipe = "merge_method: passthrough\nmodels: [{model: b}]\ntokenizer: {source: a}\n";
    let out = bench.merge(recipe, &[]);
    let embedding = "model.embed_tokens.weight";
    assert_eq!(tensors(&out)[embedding].shape, [8, HIDDEN]);
    assert_eq!(row_of(&out, embedding, 3), row(2, 5));
    let recipe = "merge_method: linear\nmodels: [{model: base}, {model: b}]\nparameters: {weight: 0.5}\n\
                  tokenizer_source: b\nexcept: [{tensors: lm_head.*, action: copy}]\n";
    let out = bench.merge(recipe, &[]);
    assert_eq!(row_of(&out, "lm_head.weight", 3), row(4, 5));
    assert_eq!(row_of(&out, "lm_head.weight", 6), row(6, 6));
}

#[test]
fn a_tied_head_follows_its_embedding() {
    let bench = Bench::new();
    for (name, number, tokens) in [("a", 0, &["<a>"][..]), ("b", 1, &["<b>", "<c>"])] {
        let rows = 6 + tokens.len();
        let specs = crate::fixtures::without(llama(1, 2, Dtype::BF16), "lm_head.weight");
        let specs = with(specs, matrix("model.embed_tokens.weight", number, rows));
        let config = config_with(2, json!({"tie_word_embeddings": true, "vocab_size": rows}));
        bench.model(name, &config, &specs);
        bench.file(
            &format!("{name}/tokenizer.json"),
            tokenizer(&COMMON, tokens).to_string(),
        );
    }
    let out = aligned(&bench, &["a", "b"], None, "tokenizer: {source: union}", "a");
    let tensors = tensors(&out);
    assert!(!tensors.contains_key("lm_head.weight"));
    assert_eq!(tensors["model.embed_tokens.weight"].shape, [9, HIDDEN]);
    assert_eq!(row_of(&out, "model.embed_tokens.weight", 8), row(1, 7));
}

#[test]
fn biases_of_tokens_are_aligned_in_models_like_bert() {
    let bench = Bench::new();
    for (name, number, tokens) in [("a", 0, &["<a>"][..]), ("b", 1, &["<b>", "<c>"])] {
        let rows = 6 + tokens.len();
        let specs = [
            matrix("bert.embeddings.word_embeddings.weight", number, rows),
            floats(
                "bert.encoder.layer.0.output.dense.weight",
                Dtype::F32,
                &[8, 8],
                noise(3, 64),
            ),
            floats(
                "cls.predictions.bias",
                Dtype::F32,
                &[rows],
                (0..rows).map(|id| (100 * number + id) as f64),
            ),
            matrix("cls.predictions.decoder.weight", number, rows),
            floats(
                "final_logits_bias",
                Dtype::F32,
                &[1, rows],
                (0..rows).map(|id| (100 * number + id) as f64),
            ),
        ];
        let config = json!({"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 48,
                            "tie_word_embeddings": false, "num_hidden_layers": 1, "vocab_size": rows});
        bench.model(name, &config, &specs);
        bench.file(
            &format!("{name}/tokenizer.json"),
            tokenizer(&COMMON, tokens).to_string(),
        );
    }
    let out = aligned(&bench, &["a", "b"], None, "tokenizer: {source: union}", "b");
    let found = tensors(&out);
    for (name, shape) in [
        ("cls.predictions.bias", vec![9]),
        ("final_logits_bias", vec![1, 9]),
    ] {
        assert_eq!(found[name].shape, shape);
        assert_eq!(
            found[name].values(),
            [100.0, 101.0, 102.0, 103.0, 104.0, 105.0, 6.0, 106.0, 107.0],
            "{name}"
        );
    }
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("`cls.predictions.bias`, `final_logits_bias` are aligned by token too"),
        "{}",
        plan.stdout
    );
}

#[test]
fn ids_and_settings_follow_their_tokens() {
    let bench = Bench::new();
    let ours = tokenizer(&COMMON, &["<end>"]);
    let theirs = tokenizer(&["<unk>", "x", "</s>", "<s>", "y"], &["<end>"]);
    let more = json!({"eos_token_id": [2, 6], "pad_token_id": -1, "decoder_start_token_id": 5});
    model(&bench, "a", 0, 7, more, &ours);
    model(&bench, "b", 1, 6, json!({}), &theirs);
    bench.file(
        "a/generation_config.json",
        r#"{"bos_token_id": 1, "eos_token_id": [2, 6], "top_p": 0.5}"#,
    );
    let settings =
        json!({"added_tokens_decoder": {"6": {"content": "<end>"}}, "eos_token": "<end>"});
    bench.file("a/tokenizer_config.json", settings.to_string());
    bench.file("a/added_tokens.json", r#"{"<end>": 6}"#);
    bench.file("a/special_tokens_map.json", r#"{"eos_token": "<end>"}"#);
    bench.file("b/tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let out = aligned(&bench, &["a", "b"], None, "tokenizer_source: b", "a");
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["bos_token_id"], 3);
    assert_eq!(config["eos_token_id"], json!([2, 5]));
    assert_eq!(config["pad_token_id"], -1);
    assert_eq!(config["decoder_start_token_id"], Value::Null);
    let generation = read_json(&out.join("generation_config.json"));
    assert_eq!(
        generation,
        json!({"bos_token_id": 3, "eos_token_id": [2, 5], "top_p": 0.5})
    );
    assert_eq!(
        read_json(&out.join("tokenizer_config.json")),
        json!({"eos_token": "</s>"})
    );
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("`decoder_start_token_id` named tokens of `a`"),
        "{}",
        plan.stdout
    );

    let key = "tokenizer: {source: union, tokens: {<more>: {source: {kind: zero}}}}";
    let out = aligned(&bench, &["a", "b"], None, key, "a");
    let settings = read_json(&out.join("tokenizer_config.json"));
    assert_eq!(settings["eos_token"], "<end>");
    assert_eq!(
        settings["added_tokens_decoder"]["7"],
        json!({
            "content": "<more>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false,
        })
    );
    assert_eq!(
        read_json(&out.join("added_tokens.json")),
        json!({"<end>": 6, "<more>": 7})
    );
    assert_eq!(
        read_json(&out.join("special_tokens_map.json")),
        json!({"eos_token": "<end>"})
    );
    assert_eq!(
        read_json(&out.join("config.json"))["eos_token_id"],
        json!([2, 6])
    );
}

#[test]
fn nested_configs_have_the_size_too() {
    let bench = bench();
    let specs = with(
        llama(1, 2, Dtype::F32),
        matrix("model.embed_tokens.weight", 0, 6),
    );
    let specs = with(specs, matrix("lm_head.weight", 4, 6));
    let text = json!({"vocab_size": 6, "num_hidden_layers": 2, "tie_word_embeddings": false});
    bench.model(
        "base",
        &json!({"text_config": text, "audio_config": {"vocab_size": 128}}),
        &specs,
    );
    let out = aligned(&bench, &["base", "a"], None, "tokenizer_source: union", "a");
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["text_config"]["vocab_size"], 8);
    assert_eq!(config["audio_config"]["vocab_size"], 128);
    assert_eq!(config.get("vocab_size"), None);
}

#[test]
fn a_chat_template_is_written_where_every_version_looks() {
    let bench = bench();
    let template = |name: &str, text: &str| {
        bench.file(
            &format!("{name}/tokenizer_config.json"),
            json!({"chat_template": text}).to_string(),
        );
    };
    let recipe = |more: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: base}}, {{model: base/}}, {{model: ./base}}]\nparameters: {{weight: 1}}\n{more}\n"
        )
    };
    let check = |out: &Path, expected: &str| {
        let text = fs::read_to_string(out.join("chat_template.jinja")).expect("file");
        assert_eq!(text, expected);
        assert_eq!(
            read_json(&out.join("tokenizer_config.json"))["chat_template"],
            expected
        );
    };
    template("base", "{{ one }}");
    check(
        &bench.merge(&recipe("chat_template: auto"), &[]),
        "{{ one }}",
    );
    check(
        &bench.merge(&recipe("chat_template: '{{ messages }}'"), &[]),
        "{{ messages }}",
    );
    let out = bench.merge(&recipe("chat_template: alpaca"), &[]);
    assert!(
        fs::read_to_string(out.join("chat_template.jinja"))
            .expect("file")
            .contains("### Instruction:")
    );
    fs::remove_dir_all(out).unwrap();
    let refused = bench.refused(&recipe("chat_template: chatml"), &[]);
    assert!(
        refused.contains("`<|im_start|>`, and the output's vocabulary has no such token"),
        "{refused}"
    );

    template("a", "{{ two }}");
    template("b", " {{ two }}\n");
    let all = "merge_method: linear\nmodels: [{model: base}, {model: a}, {model: b}]\nparameters: {weight: 1}\n\
               tokenizer_source: union\nchat_template: auto\n";
    check(&bench.merge(all, &[]), "{{ two }}");
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("the models have 2; taken is that of `a`, which 2 of 3 have"),
        "{}",
        plan.stdout
    );
}

#[test]
fn what_cannot_be_aligned_is_refused() {
    let bench = bench();
    let recipe = |more: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: base}}, {{model: a}}]\nparameters: {{weight: 1}}\n{more}\n"
        )
    };
    let refused = |more: &str| bench.clean(&bench.refused(&recipe(more), &[]));
    insta::assert_snapshot!(refused("tokenizer: {source: union, tokens: {<q>: {source: a}}}"), @r#"
    error: `a` has no row for the token "<q>"
     --> recipe.yml:4:51
      |
    4 | tokenizer: {source: union, tokens: {<q>: {source: a}}}
      |                                                   ^
      |
      = hint: name a model that has it, or another of its tokens: `{kind: model_token, model: ..., token: ...}`
    "#);
    insta::assert_snapshot!(refused("tokenizer: {tokens: {<a>: {source: {kind: model_token, model: a, token: nix}}}}"), @r#"
    error: `a` has no token "nix"
     --> recipe.yml:4:63
      |
    4 | tokenizer: {tokens: {<a>: {source: {kind: model_token, model: a, token: nix}}}}
      |                                                               ^
    "#);
    insta::assert_snapshot!(refused("tokenizer: {tokens: {<a>: {source: {kind: model_token, model: a, token_id: 8}}}}"), @r"
    error: `a` has no row 8: its embedding has 8 rows
     --> recipe.yml:4:63
      |
    4 | tokenizer: {tokens: {<a>: {source: {kind: model_token, model: a, token_id: 8}}}}
      |                                                               ^
    ");
    insta::assert_snapshot!(refused("tokenizer_source: base\nchat_template: chatlm"), @r#"
    error: unknown chat template "chatlm"
     --> recipe.yml:5:16
      |
    5 | chat_template: chatlm
      |                ^^^^^^
      |
      = hint: did you mean `chatml`? the names are `auto`, `alpaca`, `chatml`, `exaone`, `llama3`, `mistral`
    "#);
    insta::assert_snapshot!(refused("tokenizer_source: base\nchat_template: '{{ a'"), @r"
    error: the chat template is not sound Jinja: unexpected end of input, expected end of variable block, in its line 1
     --> recipe.yml:5:16
      |
    5 | chat_template: '{{ a'
      |                ^^^^^^
    ");
    insta::assert_snapshot!(bench.clean(&bench.refused(&recipe("tokenizer_source: union"), &["--tokenizer-from", "a"])), @r"
    error: the recipe says which vocabulary the output has, and `--tokenizer-from a` names another
     --> recipe.yml:4:19
      |
    4 | tokenizer_source: union
      |                   ^^^^^
      |
      = hint: leave one of the two out
    ");
    // Without the key, ids that mean other tokens are refused, and the key is named.
    insta::assert_snapshot!(bench.clean(&bench.refused(&recipe("").replace("{model: a}", "{model: b}"), &[])), @r#"
    error: the vocabularies of `base` and `b` differ: 2 token ids do not mean the same token: 3 is "x" in one and "z" in the other, 5 is "z" in one and "x" in the other
     --> recipe.yml:2:33
      |
    2 | models: [{model: base}, {model: b}]
      |                                 ^
      |
      = hint: rows of an embedding can be merged only where the same id means the same token: add `tokenizer: {source: union}` to the recipe, which aligns the rows by token (`source: base` keeps the base's tokens only), or leave this model out
    "#);
    fs::rename(
        bench.path("a/tokenizer.json"),
        bench.path("a/tokenizer.model"),
    )
    .expect("moved");
    insta::assert_snapshot!(refused("tokenizer_source: union"), @r#"
    error: `a` has no tokenizer.json, only `tokenizer.model`
     --> recipe.yml:2:33
      |
    2 | models: [{model: base}, {model: a}]
      |                                 ^
      |
      = hint: write one: `AutoTokenizer.from_pretrained("a").save_pretrained("a")` in transformers
    "#);
    fs::remove_file(bench.path("a/tokenizer.model")).expect("removed");
    insta::assert_snapshot!(refused("tokenizer_source: union"), @r"
    error: `a` has no tokenizer, so nothing tells what its rows stand for
     --> recipe.yml:2:33
      |
    2 | models: [{model: base}, {model: a}]
      |                                 ^
      |
      = hint: put its tokenizer.json into its folder
    ");
    bench.file(
        "a/tokenizer.json",
        r#"{"model": {"vocab": {"a": 0, "b": 0}}}"#,
    );
    insta::assert_snapshot!(refused("tokenizer_source: union"), @r#"
    error: BENCH/a/tokenizer.json is malformed: id 0 is "a" and "b" at once
     --> recipe.yml:2:33
      |
    2 | models: [{model: base}, {model: a}]
      |                                 ^
      |
      = hint: correct it, or download it again
    "#);
    let huge = fs::File::create(bench.path("a/tokenizer.json")).expect("created");
    huge.set_len(1 << 30).expect("sparse");
    insta::assert_snapshot!(refused("tokenizer_source: union"), @r"
    error: BENCH/a/tokenizer.json: tokenizer, in bytes is too large: expected at most 536870912, found 1073741824
     --> recipe.yml:2:33
      |
    2 | models: [{model: base}, {model: a}]
      |                                 ^
      |
      = hint: no real model has so much: find out what wrote the file, or download it again
    ");
}

#[test]
fn a_model_without_a_tokenizer_is_taken_to_have_the_bases_if_it_has_as_many_rows() {
    let bench = Bench::new();
    model(
        &bench,
        "base",
        0,
        7,
        json!({}),
        &tokenizer(&COMMON, &["<t>"]),
    );
    model(&bench, "a", 1, 7, json!({}), &tokenizer(&COMMON, &["<t>"]));
    model(
        &bench,
        "b",
        2,
        8,
        json!({}),
        &tokenizer(&COMMON, &["<t>", "<b>"]),
    );
    fs::remove_file(bench.path("a/tokenizer.json")).expect("removed");
    let out = aligned(
        &bench,
        &["base", "a", "b"],
        None,
        "tokenizer_source: union",
        "a",
    );
    assert_eq!(row_of(&out, "lm_head.weight", 6), row(5, 6));
    assert_eq!(row_of(&out, "lm_head.weight", 7), row(6, 7));
    let plan = bench.weld(&["plan", "recipe.yml"]);
    assert!(
        plan.stdout
            .contains("`a` has no tokenizer; its tokens are taken to be those of `base`"),
        "{}",
        plan.stdout
    );
}

#[test]
fn results_of_documents_are_aligned_and_have_no_vocabulary_of_their_own() {
    let bench = bench();
    let documents = |first: &str, last: &str| {
        format!(
            "name: mixed\nmerge_method: linear\nmodels: [{{model: a}}, {{model: a/}}]\nparameters: {{weight: 0.5}}\n{first}\
             ---\nmerge_method: linear\nmodels:\n- {{model: base, parameters: {{weight: 0}}}}\n\
             - {{model: mixed, parameters: {{weight: 1}}}}\n{last}"
        )
    };
    let out = bench.merge(&documents("", "tokenizer_source: union\n"), &[]);
    assert_eq!(ids(&out).len(), 8);
    for id in 0..8 {
        assert_eq!(row_of(&out, "model.embed_tokens.weight", id), row(1, id));
    }
    bench.recipe(&documents("tokenizer_source: base\n", ""));
    let message = bench.weld(&["plan", "recipe.yml"]).stderr;
    assert!(
        message.contains("`tokenizer` has no place in a document that others are made from"),
        "{message}"
    );
}

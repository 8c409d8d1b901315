//! `weld transplant`: a model with the vocabulary of another.

use std::fs;

use ndarray::Array2;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::fixtures::{
    Bench, Loaded, Spec, by_name, config_with, floats, llama, noise, read_json, with,
};
use crate::verify::verify;

const HIDDEN: usize = 8;

/// A tokenizer that cuts text into the longest tokens it has, ids counting up.
fn tokenizer(tokens: &[&str]) -> Value {
    let vocab: Map<String, Value> = (0..)
        .zip(tokens)
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 0, "content": tokens[0], "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": tokens[0], "continuing_subword_prefix": "",
                  "max_input_chars_per_word": 100},
    })
}

/// A Llama of that vocabulary, whose rows are as given.
fn model(
    bench: &Bench,
    name: &str,
    tokens: &[&str],
    rows: usize,
    hidden: usize,
    seed: u64,
    more: Value,
) {
    let table = |name: &str, seed: u64| -> Spec {
        floats(
            name,
            Dtype::F32,
            &[rows, hidden],
            noise(seed, rows * hidden),
        )
    };
    let specs = with(
        llama(seed, 2, Dtype::F32),
        table("model.embed_tokens.weight", seed * 10),
    );
    let specs = match more["tie_word_embeddings"] == true {
        true => specs
            .into_iter()
            .filter(|spec| spec.name != "lm_head.weight")
            .collect(),
        false => with(specs, table("lm_head.weight", seed * 10 + 1)),
    };
    let mut fields = json!({"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 0});
    fields
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    bench.model(name, &config_with(2, fields), &specs);
    bench.file(
        &format!("{name}/tokenizer.json"),
        tokenizer(tokens).to_string(),
    );
    let settings = json!({"unk_token": tokens[0], "tokenizer_class": "PreTrainedTokenizerFast"});
    bench.file(
        &format!("{name}/tokenizer_config.json"),
        settings.to_string(),
    );
}

const OLD: [&str; 7] = ["<unk>", "a", "b", "c", "d", "ab", "old"];
const NEW: [&str; 8] = ["[UNK]", "d", "c", "abc", "b", "cd", "a", "q"];

fn bench(more: Value) -> Bench {
    let bench = Bench::new();
    model(&bench, "model", &OLD, 7, HIDDEN, 1, more);
    model(
        &bench,
        "donor",
        &NEW,
        10,
        6,
        2,
        json!({"eos_token_id": 5, "pad_token_id": 1}),
    );
    bench.file(
        "model/generation_config.json",
        json!({"eos_token_id": 0, "temperature": 0.5}).to_string(),
    );
    bench
}

fn transplanted(bench: &Bench, more: &[&str]) -> Value {
    let words = [
        "transplant",
        "model",
        "donor",
        "out",
        "--force",
        "--no-check",
        "--format",
        "json",
    ];
    let outcome = bench.checked(&[&words, more].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn table(tensor: &Loaded) -> Array2<f64> {
    Array2::from_shape_vec((tensor.shape[0], tensor.shape[1]), tensor.values()).unwrap()
}

/// The rows of the model's tokens that the donor has at these ids.
const SHARED: [(usize, usize); 5] = [(0, 0), (1, 4), (2, 3), (4, 2), (6, 1)];

#[test]
fn shared_tokens_are_copied_and_everything_else_of_the_model_stays() {
    let bench = bench(json!({}));
    let before = by_name(&bench.path("model"));
    for method in ["omp", "subword", "mean", "zero"] {
        let report = transplanted(&bench, &["--method", method, "-k", "2"]);
        let after = by_name(&bench.path("out"));
        assert_eq!(
            after.keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
        for (name, tensor) in &before {
            if !["model.embed_tokens.weight", "lm_head.weight"].contains(&name.as_str()) {
                assert!(after[name] == *tensor, "{name}");
                continue;
            }
            assert_eq!(after[name].shape, [10, HIDDEN]);
            for (new, old) in SHARED {
                assert_eq!(
                    table(&after[name]).row(new),
                    table(tensor).row(old),
                    "{method}: {name}"
                );
            }
            // Rows without a token.
            assert!(
                table(&after[name])
                    .rows()
                    .into_iter()
                    .skip(8)
                    .all(|row| row.iter().all(|value| *value == 0.0))
            );
        }
        let tables = report["vocabulary"]["tables"].as_array().unwrap();
        assert_eq!(tables.len(), 2);
        assert!(tables.iter().all(|table| table["copied"] == 5), "{report}");
        let config = read_json(&bench.path("out/config.json"));
        assert_eq!(
            (
                &config["vocab_size"],
                &config["eos_token_id"],
                &config["pad_token_id"]
            ),
            (&json!(10), &json!(5), &json!(1))
        );
        let generation = read_json(&bench.path("out/generation_config.json"));
        assert_eq!(
            (&generation["eos_token_id"], &generation["temperature"]),
            (&json!(5), &json!(0.5))
        );
        let own = std::fs::read(bench.path("out/tokenizer.json")).unwrap();
        assert!(own == std::fs::read(bench.path("donor/tokenizer.json")).unwrap());
    }
}

#[test]
fn what_is_missing_is_a_sum_of_pieces_a_mean_or_zeros() {
    let bench = bench(json!({}));
    let old = table(&by_name(&bench.path("model"))["model.embed_tokens.weight"]);
    let new = |method: &str| {
        transplanted(&bench, &["--method", method]);
        table(&by_name(&bench.path("out"))["model.embed_tokens.weight"])
    };
    let near = |found: ndarray::ArrayView1<'_, f64>, expected: ndarray::Array1<f64>| {
        found
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-7)
    };
    let mean = old.mean_axis(ndarray::Axis(0)).unwrap();
    let subword = new("subword");
    // `abc` is `ab` and `c`, `cd` is `c` and `d`; `q` is no text of the model but `<unk>`.
    assert!(near(subword.row(3), (&old.row(5) + &old.row(3)) / 2.0));
    assert!(near(subword.row(5), (&old.row(3) + &old.row(4)) / 2.0));
    assert!(near(subword.row(7), old.row(0).to_owned()));
    let means = new("mean");
    assert!(
        [3, 5, 7]
            .iter()
            .all(|&row| near(means.row(row), mean.clone()))
    );
    assert!(
        [3, 5, 7]
            .iter()
            .all(|&row| new("zero").row(row).iter().all(|value| *value == 0.0))
    );
}

#[test]
fn a_pursuit_makes_the_same_sum_of_the_models_rows() {
    let bench = bench(json!({}));
    // The donor's `abc` is 2 a - 3 c, and its `q` is b.
    let donor = by_name(&bench.path("donor"));
    let mut rows = table(&donor["model.embed_tokens.weight"]);
    let sum = &rows.row(6) * 2.0 - &rows.row(2) * 3.0;
    rows.row_mut(3).assign(&sum);
    let same = rows.row(4).to_owned();
    rows.row_mut(7).assign(&same);
    let specs: Vec<Spec> = donor
        .iter()
        .map(|(name, tensor)| {
            let values = match name.as_str() {
                "model.embed_tokens.weight" => rows.iter().copied().collect(),
                _ => tensor.values(),
            };
            floats(name, tensor.dtype, &tensor.shape, values)
        })
        .collect();
    bench.tensors("donor/model.safetensors", &specs);
    let report = transplanted(&bench, &["-k", "5"]);
    let old = table(&by_name(&bench.path("model"))["model.embed_tokens.weight"]);
    let new = table(&by_name(&bench.path("out"))["model.embed_tokens.weight"]);
    let expected = &old.row(1) * 2.0 - &old.row(3) * 3.0;
    assert!(
        new.row(3)
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-6)
    );
    assert!(
        new.row(7)
            .iter()
            .zip(old.row(2))
            .all(|(a, b)| (a - b).abs() < 1e-6)
    );
    let worst = report["vocabulary"]["tables"][0]["worst"]
        .as_array()
        .unwrap();
    assert_eq!(worst.len(), 3);
    // Five rows of six numbers leave a sixth out; the two others leave nothing.
    assert_eq!(worst[0]["token"], "cd");
    assert!(worst[0]["left_out"].as_f64().unwrap() > 0.01);
    assert!(worst[1]["left_out"].as_f64().unwrap() < 1e-6);
}

#[test]
fn generation_stops_where_the_donors_chat_template_ends_a_turn() {
    let bench = bench(json!({}));
    let mut tokenizer = tokenizer(&NEW);
    let end = json!({"id": 8, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false,
                     "rstrip": false, "normalized": false});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(end);
    bench.file("donor/tokenizer.json", tokenizer.to_string());
    let template =
        "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}";
    bench.file("donor/chat_template.jinja", template);
    for (of_donor, expected) in [(json!(5), json!([8, 5])), (json!([5, 8]), json!([5, 8]))] {
        bench.file(
            "donor/generation_config.json",
            json!({"eos_token_id": of_donor}).to_string(),
        );
        transplanted(&bench, &["--method", "mean"]);
        let settings = read_json(&bench.path("out/generation_config.json"));
        assert_eq!(settings["eos_token_id"], expected);
        assert!(bench.path("out/chat_template.jinja").exists());
    }
}

#[test]
fn tokens_are_the_same_if_they_stand_for_the_same() {
    let bench = Bench::new();
    let pieces = ["<unk>", "<0x0A>", "<0x61>", "a", "▁the", "<0xE5>", "▁", "x"];
    let letters = ["[UNK]", "å", "Ġthe", "a", "Ċ", "Ġ", "Ġx", "Ġa"];
    model(&bench, "pieces", &pieces, 8, HIDDEN, 1, json!({}));
    model(&bench, "letters", &letters, 8, HIDDEN, 2, json!({}));
    let words = [
        "--no-check",
        "--format",
        "json",
        "--method",
        "zero",
        "--force",
    ];
    for (of, donor, same) in [
        (
            "pieces",
            "letters",
            vec![(0, 0), (1, 5), (2, 4), (3, 3), (4, 1), (5, 6)],
        ),
        (
            "letters",
            "pieces",
            vec![(0, 0), (1, 4), (2, 3), (3, 3), (4, 2), (5, 1), (6, 5)],
        ),
    ] {
        let outcome = bench.checked(&[&["transplant", of, donor, "out"], &words[..]].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let name = "model.embed_tokens.weight";
        let (old, new) = (
            table(&by_name(&bench.path(of))[name]),
            table(&by_name(&bench.path("out"))[name]),
        );
        for row in 0..8 {
            match same.iter().find(|(place, _)| *place == row) {
                Some((_, from)) => assert_eq!(new.row(row), old.row(*from), "{of}: {row}"),
                None => assert!(
                    new.row(row).iter().all(|value| *value == 0.0),
                    "{of}: {row}"
                ),
            }
        }
    }
}

#[test]
fn a_tied_head_follows_its_embedding() {
    let bench = bench(json!({"tie_word_embeddings": true}));
    let report = transplanted(&bench, &[]);
    assert_eq!(report["vocabulary"]["tables"].as_array().unwrap().len(), 1);
    let out = by_name(&bench.path("out"));
    assert!(!out.contains_key("lm_head.weight"));
    assert_eq!(out["model.embed_tokens.weight"].shape, [10, HIDDEN]);
    assert_eq!(
        read_json(&bench.path("out/config.json"))["tie_word_embeddings"],
        true
    );
    // A copy of the embedding under the head's name stays a copy.
    let mut specs: Vec<Spec> = by_name(&bench.path("model"))
        .iter()
        .map(|(name, tensor)| floats(name, tensor.dtype, &tensor.shape, tensor.values()))
        .collect();
    let copy = &by_name(&bench.path("model"))["model.embed_tokens.weight"];
    specs.push(floats(
        "lm_head.weight",
        copy.dtype,
        &copy.shape,
        copy.values(),
    ));
    bench.tensors("model/model.safetensors", &specs);
    transplanted(&bench, &[]);
    let out = by_name(&bench.path("out"));
    let head = out.get("lm_head.weight");
    assert!(head.is_none_or(|head| *head == out["model.embed_tokens.weight"]));
}

#[test]
fn what_else_depends_on_the_vocabulary_is_refused_or_told() {
    let bench = bench(json!({"image_token_id": 6}));
    let outcome = bench.checked(&["transplant", "model", "donor", "out", "--no-check"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("keeps ids of the old vocabulary: image_token_id"),
        "{}",
        outcome.stderr
    );
    let whole = std::fs::read(bench.path("model/model.safetensors")).unwrap();
    for (name, shape, said) in [
        (
            "lm_head.bias",
            vec![7],
            "`lm_head.bias` of `model` has a row for each token too",
        ),
        (
            "model.embed_tokens_per_layer.weight",
            vec![7, 4],
            "expected one input embedding in `model`, found model.embed_tokens.weight, model.embed_tokens_per_layer.weight",
        ),
    ] {
        let mut specs: Vec<Spec> = by_name(&bench.path("model"))
            .iter()
            .map(|(name, tensor)| floats(name, tensor.dtype, &tensor.shape, tensor.values()))
            .collect();
        let values = noise(3, shape.iter().product());
        specs.push(floats(name, Dtype::F32, &shape, values));
        bench.tensors("model/model.safetensors", &specs);
        let refused = bench.checked(&["transplant", "model", "donor", "refused"]);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        let told = refused.stderr.split_whitespace().collect::<Vec<&str>>();
        assert!(told.join(" ").contains(said), "{}", refused.stderr);
        std::fs::write(bench.path("model/model.safetensors"), &whole).unwrap();
    }
    // An id of billions is no size.
    let mut far = tokenizer(&NEW);
    far["added_tokens"][0]["id"] = json!(4_000_000_000_u32);
    bench.file("donor/tokenizer.json", far.to_string());
    let refused = bench.checked(&["transplant", "model", "donor", "refused"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(!bench.path("refused").exists());
}

#[test]
fn a_model_with_its_own_vocabulary_is_itself() {
    let bench = bench(json!({}));
    let outcome = bench.checked(&["transplant", "model", "model", "out", "--no-check"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("7 rows copied, 0 approximated"),
        "{}",
        outcome.stderr
    );
    assert!(by_name(&bench.path("out")) == by_name(&bench.path("model")));
    let verified = bench.checked(&["verify", "out"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
}

#[test]
fn what_has_no_vocabulary_is_refused() {
    let bench = bench(json!({}));
    std::fs::remove_file(bench.path("donor/tokenizer.json")).unwrap();
    let refused = bench.checked(&["transplant", "model", "donor", "out"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("`donor` has no tokenizer.json"),
        "{}",
        refused.stderr
    );
    assert!(!bench.path("out").exists());
    model(&bench, "strange", &["<none>", "k", "l"], 3, 6, 5, json!({}));
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    bench.file("strange/tokenizer_config.json", settings.to_string());
    let refused = bench.checked(&["transplant", "model", "strange", "out"]);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("no token in common"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_transplant_is_made_again_and_is_equal() {
    let bench = bench(json!({}));
    for more in [
        &["--method", "omp", "-k", "2"][..],
        &["--method", "subword"],
        &["--method", "mean"],
        &["--method", "zero"],
    ] {
        transplanted(&bench, more);
        let (code, report) = verify(&bench, &["--full"]);
        assert_eq!(code, Some(0), "{more:?} {report:#}");
        assert_eq!(report["findings"], json!([]), "{more:?}");
    }
    let lock = bench.path("out/weldment.lock.json");
    let mut json = read_json(&lock);
    let recipe = json["recipe"].as_str().unwrap().replace("zero", "mean");
    json["recipe"] = recipe.into();
    fs::write(&lock, json.to_string()).unwrap();
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(1), "{report:#}");
    let text = report.to_string();
    assert!(text.contains("model.embed_tokens.weight"), "{text}");
    // A lock from before told only what was copied.
    json["recipe"] = "merge_method: passthrough\n".into();
    fs::write(&lock, json.to_string()).unwrap();
    let outcome = bench.weld(&["verify", "out"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("weld transplant"),
        "{}",
        outcome.stderr
    );
}

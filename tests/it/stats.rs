//! `weld stats`: what enters linear layers, held to what a few loops make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::fixtures::{Bench, Loaded, by_name, read_json};

/// A folder with the family and some texts, as tokens.
fn bench() -> Bench {
    let bench = Bench::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    symlink(root.join("recipes/family"), bench.path("family")).unwrap();
    symlink(root.join("tests/peer/states"), bench.path("states")).unwrap();
    let texts = (0..40u32).map(|at| {
        let tokens: Vec<u32> = (0..9)
            .map(|place| 3 + (at * 7 + place * place) % 40)
            .collect();
        format!("{{\"text\": {tokens:?}}}\n")
    });
    bench.file("texts.jsonl", texts.collect::<String>());
    bench
}

fn stats(bench: &Bench, model: &str, out: &str, more: &[&str]) -> BTreeMap<String, Loaded> {
    let words = ["stats", model, "--data", "texts.jsonl", "--out", out];
    bench.passes(&[&words, more].concat());
    by_name(&bench.path(out))
}

/// The metadata of a file of statistics.
fn info(bench: &Bench, file: &str) -> Value {
    let bytes = fs::read(bench.path(file)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["weldment"].as_str().unwrap()).unwrap()
}

fn tokens_of(tensor: &Loaded) -> i32 {
    i32::from_le_bytes(tensor.bytes[..].try_into().unwrap())
}

/// The inputs of the first layer are rows of the embedding after a norm: the sums over them are worked out here.
#[test]
fn the_first_inputs_are_summed_up_as_a_hand_does_it() {
    let bench = bench();
    let found = stats(&bench, "family/base", "base.safetensors", &[]);
    let weights = by_name(&bench.path("family/base"));
    let embedding = weights["model.embed_tokens.weight"].values();
    let norm = weights["model.layers.0.input_layernorm.weight"].values();
    let (mut gram, mut mean) = (vec![0.0; 96 * 96], vec![0.0; 96]);
    let mut count = 0;
    for line in fs::read_to_string(bench.path("texts.jsonl"))
        .unwrap()
        .lines()
    {
        let text: Value = serde_json::from_str(line).unwrap();
        let tokens = text["text"].as_array().unwrap();
        // The last is only predicted.
        for token in &tokens[..tokens.len() - 1] {
            let row = &embedding[token.as_u64().unwrap() as usize * 96..][..96];
            let square = row.iter().map(|x| x * x).sum::<f64>() / 96.0;
            let scale = (square + 1e-6).sqrt().recip();
            let x: Vec<f64> = row.iter().zip(&norm).map(|(x, w)| x * scale * w).collect();
            for (a, x_a) in x.iter().enumerate() {
                mean[a] += x_a.abs();
                x.iter()
                    .enumerate()
                    .for_each(|(b, x_b)| gram[a * 96 + b] += x_a * x_b);
            }
            count += 1;
        }
    }
    mean.iter_mut().for_each(|sum| *sum /= f64::from(count));
    let near = |name: &str, expected: &[f64]| {
        let found = found[name].values();
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-6 * largest,
                "{name}: {found}, {expected}"
            );
        }
    };
    let input = "model.layers.0.self_attn.q_proj.weight";
    near(&format!("gram/{input}"), &gram);
    near(&format!("magnitude/{input}"), &mean);
    assert_eq!(tokens_of(&found[&format!("tokens/{input}")]), 320);
    // Four inputs in each of four layers, of which each has three tensors; symmetric to the bit.
    assert_eq!(found.len(), 4 * 4 * 3);
    let down = &found["gram/model.layers.3.mlp.down_proj.weight"];
    assert_eq!(down.shape, [144, 144]);
    let values = down.values();
    for a in 0..144 {
        assert!(values[a * 144 + a] > 0.0);
        (0..a).for_each(|b| assert_eq!(values[a * 144 + b], values[b * 144 + a]));
    }
    let info = info(&bench, "base.safetensors");
    assert_eq!(info["format"], "weldment-statistics/1");
    assert_eq!(
        (&info["model"], &info["tokens"]),
        (&"family/base".into(), &320.into())
    );
    let inputs = &info["inputs"];
    for weight in ["q", "k", "v"] {
        let weight = format!("model.layers.0.self_attn.{weight}_proj.weight");
        assert_eq!(inputs[weight], serde_json::json!([input]));
    }
    assert_eq!(inputs.as_object().unwrap().len(), 4 * 7);
}

#[test]
fn the_same_bytes_at_any_number_of_threads() {
    let bench = bench();
    for (threads, memory) in [("1", "1GB"), ("2", "256MB"), ("5", "1GB")] {
        let out = format!("{threads}.safetensors");
        stats(
            &bench,
            "family/sort",
            &out,
            &["--threads", threads, "--memory", memory],
        );
        let once = fs::read(bench.path("1.safetensors")).unwrap();
        assert!(fs::read(bench.path(&out)).unwrap() == once, "{threads}");
    }
    let of = |model: &str| {
        stats(
            &bench,
            model,
            "other.safetensors",
            &["--force", "--keep", "magnitude"],
        );
        info(&bench, "other.safetensors")
    };
    let (base, sort) = (of("family/base"), of("family/sort"));
    assert_ne!(base["fingerprint"], sort["fingerprint"]);
    assert_eq!(base["data"], sort["data"]);
    assert_eq!(
        sort["fingerprint"],
        info(&bench, "1.safetensors")["fingerprint"]
    );
}

/// Each expert has its own tokens; matrices that lie in one tensor share what they share.
#[test]
fn experts_have_tokens_of_their_own() {
    let bench = bench();
    for model in ["glm4-moe", "granitemoeshared", "phi3-partial"] {
        let out = format!("{model}.safetensors");
        let found = stats(&bench, &format!("states/{model}"), &out, &[]);
        let config = read_json(&bench.path(&format!("states/{model}/config.json")));
        let info = info(&bench, &out);
        let number = |field: &str| config[field].as_i64();
        let experts = number("n_routed_experts").or_else(|| number("num_local_experts"));
        for (weight, inputs) in info["inputs"].as_object().unwrap() {
            for input in inputs.as_array().unwrap() {
                let input = input.as_str().unwrap();
                let (gram, mean) = (
                    &found[&format!("gram/{input}")],
                    &found[&format!("magnitude/{input}")],
                );
                assert_eq!(gram.shape, [mean.shape[0]; 2], "{weight}");
                assert!(gram.values().iter().all(|value| value.is_finite()));
            }
        }
        let Some(experts) = experts else { continue };
        let per_token = number("num_experts_per_tok").unwrap();
        let is_expert = |name: &&String| {
            let input = name.contains("gate_proj") || name.contains("input_linear");
            let expert =
                name.contains("experts.") || name.contains("block_sparse_moe.input_linear");
            name.starts_with("tokens/") && input && expert && !name.contains("shared")
        };
        let names: Vec<&String> = found.keys().filter(is_expert).collect();
        assert!(
            !names.is_empty() && names.len().is_multiple_of(experts as usize),
            "{names:?}"
        );
        let layers = (names.len() / experts as usize) as i64;
        let all: i64 = names
            .iter()
            .map(|name| i64::from(tokens_of(&found[*name])))
            .sum();
        assert_eq!(all, 320 * per_token * layers, "{model}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_work() {
    let bench = bench();
    bench.file("taken", "text");
    bench.file("broken.jsonl", "{\"text\": 5}\n");
    let refused = |words: &[&str], expected: &str| {
        let outcome = bench.weld(&[&["stats"], words].concat());
        assert!(
            outcome.code.is_some_and(|code| code == 1 || code == 2),
            "{words:?}"
        );
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
        assert!(!bench.path("out").exists());
    };
    let base = ["family/base", "--data", "texts.jsonl", "--out"];
    refused(
        &[&base[..], &["out", "--memory", "100kB"]].concat(),
        "and 97.7 KiB may be used",
    );
    refused(&[&base[..], &["taken"]].concat(), "taken is there already");
    refused(
        &[&base[..], &["taken", "--force"]].concat(),
        "taken is no file of statistics",
    );
    refused(&[&base[..], &["family"]].concat(), "family is a folder");
    refused(
        &[&base[..], &["family/base/model.safetensors", "--force"]].concat(),
        "a file of the model itself",
    );
    refused(
        &["family/base", "--data", "broken.jsonl", "--out", "out"],
        "broken.jsonl:1",
    );
    refused(
        &[&base[..], &["family/base/stats.safetensors"]].concat(),
        "is in the folder of the model",
    );
    refused(
        &["family", "--data", "texts.jsonl", "--out", "out"],
        "family",
    );
    let config = read_json(&bench.path("family/base/config.json"));
    let mut config = config;
    config["model_type"] = "strange".into();
    fs::create_dir(bench.path("strange")).unwrap();
    bench.file("strange/config.json", config.to_string());
    let weights = "model.safetensors";
    symlink(
        bench.path("family/base").join(weights),
        bench.path("strange").join(weights),
    )
    .unwrap();
    refused(
        &["strange", "--data", "texts.jsonl", "--out", "out"],
        "can't run model_type `strange`",
    );
    assert_eq!(fs::read(bench.path("taken")).unwrap(), b"text");
}

/// What is stated before the work is what is held, and what is printed in the end.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_held_within_what_is_stated() {
    let bench = bench();
    let words = [
        "stats",
        "family/sort",
        "--data",
        "texts.jsonl",
        "--out",
        "out.safetensors",
    ];
    let outcome = bench.weld(&[&words[..], &["--format", "json", "--threads", "2"]].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let made: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let number = |key: &str| made[key].as_u64().unwrap();
    assert!(number("peak_memory") <= number("memory"), "{made}");
    assert_eq!(
        (number("tokens"), number("inputs"), number("unreached")),
        (320, 16, 0)
    );
    let length = fs::metadata(bench.path("out.safetensors")).unwrap().len();
    assert_eq!(number("bytes"), length);
    // The limit is kept to, to the byte.
    let stated = number("memory");
    for (memory, code) in [(stated, 0), (stated - 1, 1)] {
        let memory = format!("{memory}");
        let more = ["--threads", "2", "--force", "--memory", &memory];
        assert_eq!(bench.weld(&[&words[..], &more].concat()).code, Some(code));
    }
}

/// The files of `recipes/statistics` are what its README says.
#[test]
fn the_committed_statistics_are_made_of_problems_that_no_task_has() {
    let bench = bench();
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    symlink(recipes.join("statistics"), bench.path("statistics")).unwrap();
    let prompts = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        let prompt = |line: &str| {
            let item: Value = serde_json::from_str(line).unwrap();
            item["prompt"].as_str().unwrap().to_owned()
        };
        text.lines().map(prompt).collect::<BTreeSet<String>>()
    };
    let skills = ["sort", "reverse", "add", "cipher"];
    for skill in skills {
        let file = format!("{skill}.jsonl");
        let trained = prompts(&recipes.join("statistics").join(&file));
        let tasks = prompts(&recipes.join("studies/tasks").join(&file));
        assert_eq!(trained.len(), 400);
        assert!(trained.is_disjoint(&tasks), "{skill}");
    }
    let made = |model: &str, kind: &str, skills: &[&str]| {
        let texts = skills
            .iter()
            .map(|skill| format!("statistics/{skill}.jsonl"));
        let texts: Vec<String> = texts.collect();
        let mut words = vec![
            "stats",
            model,
            "--keep",
            kind,
            "--out",
            "made.safetensors",
            "--force",
        ];
        words.push("--data");
        words.extend(texts.iter().map(String::as_str));
        bench.passes(&words);
        by_name(&bench.path("made.safetensors"))
    };
    let add = made("family/add", "gram", &["add"]);
    let base = made("family/base", "magnitude", &skills);
    for (made, file) in [(add, "add-gram"), (base, "base-magnitude")] {
        let committed = by_name(&recipes.join(format!("statistics/{file}.safetensors")));
        assert!(made.keys().eq(committed.keys()));
        for (name, made) in &made {
            if name.starts_with("tokens/") {
                assert_eq!(made.bytes, committed[name].bytes);
                continue;
            }
            let committed = committed[name].values();
            let largest = committed.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            for (a, b) in made.values().iter().zip(committed) {
                assert!((a - b).abs() <= 1e-5 * largest, "{file} {name}: {a} {b}");
            }
        }
    }
}

//! `weld verify`: merges pass, faults are named, and what cannot be told is not called right.

use std::fs;

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{
    Bench, Spec, floats, llama_config, load, noise, read_json, recipes, rewrite,
};

pub(crate) const LINEAR: &str = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 0.6}}\n- {model: b, parameters: \
                      {weight: 0.4}}\n";

const TASKS: &str = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 0.6}}\n\
                     - {model: b, parameters: {weight: 0.4}}\nparameters: {lambda: 1.0}\n";

/// A model of one layer whose task vectors are a twentieth of its weights, as those of fine-tunes are.
pub(crate) fn fine_tune(seed: u64, dtype: Dtype) -> Vec<Spec> {
    let shapes: [(&str, [usize; 2]); 4] = [
        ("model.embed_tokens.weight", [512, 64]),
        ("model.layers.0.mlp.up_proj.weight", [600, 64]),
        ("model.layers.0.self_attn.q_proj.weight", [64, 64]),
        ("lm_head.weight", [512, 64]),
    ];
    (0..)
        .zip(shapes)
        .map(|(at, (name, shape))| {
            let count = shape.iter().product();
            let base = noise(100 + at, count);
            let task = noise(1000 * seed + at, count).map(|value| value * 0.05);
            floats(
                name,
                dtype,
                &shape,
                base.zip(task).map(|(base, task)| base + task),
            )
        })
        .collect()
}

pub(crate) fn config() -> Value {
    let mut config = llama_config(1);
    config["vocab_size"] = 512.into();
    config["hidden_size"] = 64.into();
    config
}

/// A folder with `base`, `a`, `b` and `c`, and a merge of them as `out`.
pub(crate) fn merged(recipe: &str, dtype: Dtype, more: &[&str]) -> Bench {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b", "c"].into_iter().enumerate() {
        bench.model(name, &config(), &fine_tune(seed as u64, dtype));
    }
    bench.merge(recipe, more);
    bench
}

/// The report of a verification, and its exit code.
pub(crate) fn verify(bench: &Bench, more: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["verify", "out", "--format", "json", "-q"];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    let report = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    assert!(
        !report.is_null() || outcome.code == Some(2),
        "{}",
        outcome.stderr
    );
    (outcome.code, report)
}

/// The ids of a report's findings that fail it, each once.
pub(crate) fn errors(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap();
    let mut ids: Vec<String> = findings
        .iter()
        .filter(|finding| finding["severity"] == "error")
        .map(|finding| finding["check"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

pub(crate) fn finding<'r>(report: &'r Value, id: &str) -> &'r Value {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["check"] == id)
        .unwrap_or_else(|| panic!("no {id} in {report:#}"))
}

/// Expects exit code 1 and these errors, and no others, by all forms of verification.
pub(crate) fn refused(bench: &Bench, more: &[&str], expected: &[&str]) -> Value {
    let mut last = Value::Null;
    for coverage in [&["--full"][..], &["--samples", "3"]] {
        let arguments: Vec<&str> = more.iter().chain(coverage).copied().collect();
        let (code, report) = verify(bench, &arguments);
        assert_eq!(errors(&report), expected, "{arguments:?} {report:#}");
        assert_eq!(code, Some(1), "{arguments:?}");
        last = report;
    }
    last
}

pub(crate) fn without_lock(bench: &Bench) {
    fs::remove_file(bench.path("out/weldment.lock.json")).unwrap();
}

#[test]
fn every_recipe_s_merge_passes_and_one_flipped_bit_does_not() {
    for (number, recipe) in recipes().into_iter().enumerate() {
        let bench = Bench::of_shipped();
        let inputs = bench.path(".");
        let inputs = inputs.to_str().unwrap();
        let outcome = bench.weld(&["merge", recipe.to_str().unwrap(), "out", "-q"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        // Whole matrices are computed whatever the sample.
        let plan = bench.weld(&["plan", recipe.to_str().unwrap(), "--format", "json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
        let ways: &[&[&str]] = match plan["matrix_memory"].as_u64() {
            Some(0) => &[&["--full"], &["--samples", "1"]],
            _ => &[&["--full"]],
        };
        for more in ways {
            let arguments = [&["--inputs", inputs], *more].concat();
            let (code, report) = verify(&bench, &arguments);
            assert_eq!(errors(&report), [""; 0], "{}", recipe.display());
            assert_eq!(code, Some(0), "{}", recipe.display());
        }
        // Any bit of any tensor, without the help of a lock.
        without_lock(&bench);
        let path = bench.path("out/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let place = header + (number * 7_368_787 + 12_345) % (bytes.len() - header);
        bytes[place] ^= 1 << (number % 8);
        fs::write(&path, bytes).unwrap();
        let recipe = recipe.to_str().unwrap();
        let (code, report) = verify(&bench, &["--recipe", recipe, "--full"]);
        assert_eq!(code, Some(1), "{recipe}");
        let found = finding(&report, errors(&report).first().unwrap());
        let text = found["found"].as_str().unwrap();
        assert!(text.starts_with("1 of "), "{recipe}: {text}");
    }
}

/// Other tools carry fewer files along than we do; that is their way, and no fault of the weights.
#[test]
fn a_file_that_another_tool_does_not_carry_is_a_note() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    without_lock(&bench);
    for model in ["base", "a", "b"] {
        bench.file(&format!("{model}/notes.txt"), "of the model");
    }
    let (code, report) = verify(&bench, &["--recipe", "recipe.yml", "--full"]);
    assert_eq!(code, Some(0), "{report:#}");
    let missing = finding(&report, "verify.file");
    assert_eq!(missing["severity"], "note");
    assert_eq!(missing["file"], "notes.txt");
}

#[test]
fn another_weight_is_found_and_named() {
    for dtype in [Dtype::BF16, Dtype::F32] {
        let bench = merged(
            &LINEAR.replace("0.6", "0.61").replace("0.4", "0.39"),
            dtype,
            &[],
        );
        without_lock(&bench);
        bench.recipe(LINEAR);
        let report = refused(
            &bench,
            &["--recipe", "recipe.yml"],
            &["verify.other-weights"],
        );
        let found = finding(&report, "verify.other-weights");
        let expected = found["expected"].as_str().unwrap();
        let text = found["found"].as_str().unwrap();
        let weight = |text: &str| text[..5].parse::<f64>().unwrap();
        assert!(
            (weight(text) - 0.61).abs() < 2e-3 && text.contains(" of `a`"),
            "{text}"
        );
        assert!((weight(expected) - 0.6).abs() < 2e-3, "{expected}");
    }
}

#[test]
fn swapped_models_are_named() {
    for (recipe, dtype) in [
        (LINEAR, Dtype::BF16),
        (TASKS, Dtype::F32),
        (TASKS, Dtype::F16),
    ] {
        let swapped = recipe
            .replace("0.6", "x")
            .replace("0.4", "0.6")
            .replace('x', "0.4");
        let bench = merged(&swapped, dtype, &[]);
        without_lock(&bench);
        bench.recipe(recipe);
        refused(&bench, &["--recipe", "recipe.yml"], &["verify.swapped"]);
    }
}

#[test]
fn a_copy_of_an_input_is_named() {
    let bench = merged(TASKS, Dtype::BF16, &[]);
    without_lock(&bench);
    for input in ["base", "b"] {
        fs::copy(
            bench.path(input).join("model.safetensors"),
            bench.path("out/model.safetensors"),
        )
        .unwrap();
        let report = refused(
            &bench,
            &["--recipe", "recipe.yml"],
            &["verify.copy-of-input"],
        );
        let found = finding(&report, "verify.copy-of-input");
        let text = found["found"].as_str().unwrap();
        assert!(
            text.starts_with(&format!("the values of `{input}`")),
            "{text}"
        );
    }
}

#[test]
fn scales_and_models_that_were_left_out_are_named() {
    let other = [
        (TASKS.replace("lambda: 1.0", "lambda: 0.5"), "verify.scaled"),
        (TASKS.replace("0.4", "0.0"), "verify.not-applied"),
    ];
    for (recipe, id) in other {
        let bench = merged(&recipe, Dtype::BF16, &[]);
        without_lock(&bench);
        bench.recipe(TASKS);
        refused(&bench, &["--recipe", "recipe.yml"], &[id]);
    }
}

#[test]
fn a_narrower_dtype_on_the_way_is_named() {
    let bench = merged(LINEAR, Dtype::F32, &[]);
    without_lock(&bench);
    rewrite(&bench, |spec| {
        for value in spec.bytes.chunks_exact_mut(4) {
            let number = f32::from_le_bytes(value.try_into().unwrap());
            value.copy_from_slice(&half::bf16::from_f32(number).to_f32().to_le_bytes());
        }
    });
    let report = refused(
        &bench,
        &["--recipe", "recipe.yml"],
        &["verify.other-precision"],
    );
    let found = finding(&report, "verify.other-precision");
    assert!(found["found"].as_str().unwrap().contains("BF16"), "{found}");
}

#[test]
fn single_roundings_are_told_from_faults() {
    let bench = merged(LINEAR, Dtype::F32, &[]);
    without_lock(&bench);
    rewrite(&bench, |spec| {
        for (at, value) in spec.bytes.chunks_exact_mut(4).enumerate() {
            if at % 10 == 0 {
                let bits = u32::from_le_bytes((*value).try_into().unwrap());
                value.copy_from_slice(&(bits + 1).to_le_bytes());
            }
        }
    });
    refused(&bench, &["--recipe", "recipe.yml"], &["verify.rounding"]);
    let (code, report) = verify(&bench, &["--recipe", "recipe.yml", "--allow", "step"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(finding(&report, "verify.rounding")["severity"], "note");
}

#[test]
fn tampering_is_found_by_the_lock_and_by_the_values() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    rewrite(&bench, |spec| {
        if spec.name == "lm_head.weight" {
            spec.bytes[70] ^= 0x40;
        }
    });
    let expected = ["verify.lock-output", "verify.tampered"];
    let report = refused(&bench, &[], &expected);
    let found = finding(&report, "verify.tampered");
    assert_eq!(found["tensor"], "lm_head.weight");
    assert!(
        found["found"].as_str().unwrap().contains("at 35"),
        "{found}"
    );
    // Without the inputs the digest still tells.
    fs::remove_dir_all(bench.path("b")).unwrap();
    refused(&bench, &[], &["verify.lock-output"]);
    // With a forged lock only recomputing does.
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    without_lock(&bench);
    rewrite(&bench, |spec| spec.bytes[3] ^= 0x40);
    refused(&bench, &["--recipe", "recipe.yml"], &["verify.tampered"]);
}

/// What another processor may make of whole matrices: the next value, and next to zero many ULPs but next to nothing.
#[test]
fn last_bits_of_whole_matrices_are_judged_by_a_bound_and_the_lock_says_what_made_them() {
    let recipe = TASKS.replace("task_arithmetic", "tsvm");
    let of_layer = "model.layers.0.mlp.up_proj.weight";
    let change = |bench: &Bench, name: &str, beyond: f32| {
        rewrite(bench, |spec| {
            if spec.name == name {
                let places = spec.bytes.as_chunks_mut::<4>().0;
                let least = places.iter_mut().min_by(|a, b| {
                    let [a, b] = [a, b].map(|bytes| f32::from_le_bytes(**bytes).abs());
                    a.total_cmp(&b)
                });
                let bytes = least.unwrap();
                *bytes = (f32::from_le_bytes(*bytes) + beyond).to_le_bytes();
            }
        });
    };
    for (beyond, name, expected) in [
        (2e-8, of_layer, "verify.rounding"),
        (1e-5, of_layer, "verify.tampered"),
        // The mean is the same on every processor.
        (2e-8, "lm_head.weight", "verify.tampered"),
    ] {
        let bench = merged(&recipe, Dtype::F32, &[]);
        let (code, report) = verify(&bench, &["--full"]);
        assert_eq!(code, Some(0), "{report:#}");
        let lock = bench.path("out/weldment.lock.json");
        let mut made = read_json(&lock);
        assert!(made["tool"]["instructions"].is_string());
        without_lock(&bench);
        change(&bench, name, beyond);
        refused(&bench, &["--recipe", "recipe.yml"], &[expected]);
        if expected == "verify.rounding" {
            made["tool"]["instructions"] = "another".into();
            fs::write(&lock, made.to_string()).unwrap();
            let (_, report) = verify(&bench, &[]);
            let found = finding(&report, "verify.numerics");
            assert_eq!(found["found"], "another");
        }
    }
    // Where no matrix is held whole, the lock says nothing of it.
    let bench = merged(TASKS, Dtype::F32, &[]);
    assert!(read_json(&bench.path("out/weldment.lock.json"))["tool"]["instructions"].is_null());
}

#[test]
fn without_inputs_nothing_is_called_right() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    fs::rename(bench.path("b"), bench.path("elsewhere")).unwrap();
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(3), "{report:#}");
    assert_eq!(report["verdict"], "inconclusive");
    let why = report["skipped"][0]["why"].as_str().unwrap();
    assert!(why.contains("model `b` not found"), "{why}");
    let (code, report) = verify(&bench, &["--inputs", "b=elsewhere"]);
    assert_eq!(code, Some(0), "{report:#}");
    // Nothing says what it is to be.
    without_lock(&bench);
    let outcome = bench.weld(&["verify", "out"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.contains("give the recipe with --recipe"),
        "{}",
        outcome.stderr
    );
    let outcome = bench.weld(&["verify", "nowhere"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
}

#[test]
fn an_input_that_changed_is_found_and_named_where_the_lock_can() {
    for (more, ids) in [
        (&[][..], &["verify.differs"][..]),
        (
            &["--hash-inputs"],
            &["verify.differs", "verify.input-changed"],
        ),
    ] {
        let bench = merged(LINEAR, Dtype::BF16, more);
        let (code, report) = verify(&bench, &["--full"]);
        assert_eq!(code, Some(0), "{report:#}");
        let mut specs = fine_tune(1, Dtype::BF16);
        specs[2] = fine_tune(9, Dtype::BF16).swap_remove(2);
        bench.tensors("a/model.safetensors", &specs);
        let report = refused(&bench, &[], ids);
        assert_eq!(
            finding(&report, "verify.differs")["tensor"],
            specs[2].name.as_str()
        );
        if let [_, changed] = ids {
            let found = finding(&report, changed);
            assert_eq!(found["tensor"], specs[2].name.as_str());
            assert_eq!(found["file"], "a: model.safetensors");
        }
        // Another shape is seen in the header.
        specs.pop();
        bench.tensors("a/model.safetensors", &specs);
        let (code, _) = verify(&bench, &[]);
        assert_eq!(code, Some(3), "the recipe no longer fits the inputs");
    }
}

#[test]
fn files_and_fields_are_compared() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    bench.file("a/generation_config.json", "{\"max_length\": 20}");
    bench.merge(LINEAR, &[]);
    let path = bench.path("out/config.json");
    let mut config = read_json(&path);
    let sound = config.clone();
    config["intermediate_size"] = 13.into();
    fs::write(&path, config.to_string()).unwrap();
    let report = refused(&bench, &[], &["verify.config"]);
    let found = finding(&report, "verify.config");
    assert_eq!(found["field"], "intermediate_size");
    assert_eq!(
        (&found["expected"], &found["found"]),
        (&"12".into(), &"13".into())
    );
    fs::write(&path, sound.to_string()).unwrap();
    fs::write(
        bench.path("out/generation_config.json"),
        "{\"max_length\": 21}",
    )
    .unwrap();
    refused(&bench, &[], &["verify.file"]);
    fs::remove_file(bench.path("out/generation_config.json")).unwrap();
    refused(&bench, &[], &["verify.file"]);
}

#[test]
fn every_tensor_is_accounted_for() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    without_lock(&bench);
    let by = |change: &dyn Fn(&mut Vec<Spec>)| {
        bench.merge(LINEAR, &[]);
        without_lock(&bench);
        let mut specs: Vec<Spec> = Vec::new();
        for (name, loaded) in load(&bench.path("out")) {
            let (dtype, shape, bytes) = (loaded.dtype, loaded.shape, loaded.bytes);
            specs.push(Spec {
                name,
                dtype,
                shape,
                bytes,
            });
        }
        change(&mut specs);
        bench.tensors("out/model.safetensors", &specs);
    };
    let recipe = ["--recipe", "recipe.yml"];
    by(&|specs| drop(specs.pop()));
    refused(&bench, &recipe, &["verify.missing-tensor"]);
    by(&|specs| specs.push(floats("extra", Dtype::BF16, &[2], [1.0, 2.0])));
    refused(&bench, &recipe, &["verify.unaccounted-tensor"]);
    by(&|specs| specs[0].dtype = Dtype::F16);
    refused(&bench, &recipe, &["verify.dtype"]);
    by(&|specs| specs[0].shape.reverse());
    refused(&bench, &recipe, &["verify.shape"]);
}

#[test]
fn locks_say_what_was_run() {
    let random = "merge_method: dare_linear\nbase_model: base\nmodels:\n- {model: a, parameters: {weight: 1, density: \
                  0.5}}\n";
    let bench = merged(
        random,
        Dtype::BF16,
        &["--seed", "7", "--shard-size", "40kB"],
    );
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    assert_eq!(lock["options"]["seed"], 7);
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!(code, Some(0), "{report:#}");
    let (code, report) = verify(&bench, &["--full", "--seed", "8"]);
    assert_eq!(code, Some(1), "{report:#}");
    // The same run gives the same lock; a lock names no absolute path.
    let before = fs::read(bench.path("out/weldment.lock.json")).unwrap();
    bench.merge(
        random,
        &["--seed", "7", "--shard-size", "40kB", "--threads", "1"],
    );
    assert_eq!(
        before,
        fs::read(bench.path("out/weldment.lock.json")).unwrap()
    );
    let path = bench.path("a");
    let absolute = random.replace("model: a,", &format!("model: {},", path.display()));
    bench.merge(&absolute, &["--seed", "7"]);
    let text = fs::read_to_string(bench.path("out/weldment.lock.json")).unwrap();
    assert!(
        !text.contains(path.parent().unwrap().to_str().unwrap()),
        "{text}"
    );
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(0), "{report:#}");
    // Another recipe than the lock's is said to be one.
    bench.recipe(&random.replace("0.5", "0.6"));
    let (code, report) = verify(&bench, &["--recipe", "recipe.yml"]);
    assert_eq!(code, Some(1));
    finding(&report, "verify.lock-recipe");
}

#[test]
fn hostile_locks_are_errors() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    let path = bench.path("out/weldment.lock.json");
    let lock = read_json(&path);
    let deep = "[".repeat(100_000);
    let mut other = lock.clone();
    other["format"] = "weldment-lock/2".into();
    let mut recipe = lock.clone();
    recipe["recipe"] = "merge_method: [".into();
    let mut more = lock.clone();
    more["surprise"] = 1.into();
    for text in [
        "",
        "{}",
        "[]",
        &deep,
        &other.to_string(),
        &recipe.to_string(),
        &more.to_string(),
    ] {
        fs::write(&path, text).unwrap();
        let outcome = bench.weld(&["verify", "out"]);
        assert!(
            matches!(outcome.code, Some(1 | 2)),
            "{:?} {}",
            outcome.code,
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains("weldment.lock.json"),
            "{}",
            outcome.stderr
        );
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

/// Puts a repository of one file into the Hub's cache, its blob named by a SHA-256 as the Hub names it.
pub(crate) fn cached(bench: &Bench, commit: &str, sha256: &str, specs: &[Spec]) {
    let root = bench.path("no-hub/hub/models--org--x");
    // What was there by the same commit is put in its place.
    let _ = fs::remove_dir_all(root.join("snapshots").join(commit));
    bench.hub_model("org/x", "main", commit, specs);
    let link = root.join(format!("snapshots/{commit}/model.safetensors"));
    fs::rename(
        root.join(format!("blobs/weights-{commit}")),
        root.join("blobs").join(sha256),
    )
    .unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{sha256}"), link).unwrap();
}

/// A lock names commits and digests of what came from the Hub; both are held against the cache.
#[test]
fn inputs_of_the_hub_are_those_of_the_lock() {
    let [first, second] = ["1", "2"].map(|digit| digit.repeat(40));
    let [one, other] = ["a", "b"].map(|digit| digit.repeat(64));
    let bench = Bench::new();
    cached(&bench, &first, &one, &fine_tune(1, Dtype::BF16));
    bench.merge(
        "merge_method: linear\nmodels: [{model: org/x, parameters: {weight: 1}}]\n",
        &[],
    );
    assert_eq!(verify(&bench, &["--full"]).0, Some(0));
    // The branch moved on: the commit of the lock is read, if it is there.
    cached(&bench, &second, &other, &fine_tune(2, Dtype::BF16));
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!((code, errors(&report)), (Some(0), vec![]), "{report:#}");
    let read = &report["details"]["inputs"][0]["hub"];
    assert_eq!(read["commit"], first.as_str(), "{report:#}");
    // It is not there, and the weights are the same.
    let snapshot = format!("no-hub/hub/models--org--x/snapshots/{first}");
    fs::remove_dir_all(bench.path(&snapshot)).unwrap();
    cached(&bench, &second, &one, &fine_tune(1, Dtype::BF16));
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!((code, errors(&report)), (Some(0), vec![]), "{report:#}");
    let found = finding(&report, "verify.input-commit");
    assert_eq!(found["severity"], "warning");
    assert_eq!(found["expected"], format!("org/x@{first}"));
    assert_eq!(found["found"], format!("org/x@{second}"));
    // Its weights are others too.
    cached(&bench, &second, &other, &fine_tune(2, Dtype::BF16));
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!(code, Some(1), "{report:#}");
    let found = finding(&report, "verify.input-sha256");
    assert_eq!(found["file"], "org/x: model.safetensors");
    assert_eq!(found["expected"], format!("SHA-256 {one}"));
    assert_eq!(found["found"], other);
    finding(&report, "verify.input-commit");
}

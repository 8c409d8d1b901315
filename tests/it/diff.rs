//! `weld diff`: what differs, by how much, and against what both come from.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{
    Bench, Spec, config_with, floats, integers, llama, llama_config, noise, with, without,
};

/// The report on `a` and `b`, and the exit code.
fn diff(bench: &Bench, more: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["diff", "a", "b", "--format", "json", "-q"];
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    let report = serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null);
    assert!(!report.is_null(), "{}", outcome.stderr);
    (outcome.code, report)
}

fn ids(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect()
}

/// Models `a` and `b` of one tensor `w`, and `base` if it is given.
fn one_tensor(dtype: Dtype, a: &[f64], b: &[f64], base: Option<&[f64]>) -> Bench {
    let bench = Bench::new();
    for (name, values) in [("a", Some(a)), ("b", Some(b)), ("base", base)] {
        if let Some(values) = values {
            let specs = [floats("w", dtype, &[values.len()], values.iter().copied())];
            bench.model(name, &llama_config(1), &specs);
        }
    }
    bench
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn equal_checkpoints_pass_however_they_are_cut() {
    let bench = Bench::new();
    bench.model("a", &llama_config(2), &llama(1, 2, Dtype::BF16));
    bench.sharded("b", &llama_config(2), &llama(1, 2, Dtype::BF16));
    let (code, report) = diff(&bench, &[]);
    assert_eq!((code, ids(&report)), (Some(0), vec![]), "{report:#}");
    assert_eq!(report["details"]["total"]["cosine"], 1.0);
}

#[test]
fn measures_by_hand() {
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
        // The difference is (0, 0, 4) of a length of 5: an angle of a cosine of 3/5.
        let bench = one_tensor(dtype, &[3.0, 0.0, 4.0], &[3.0, 0.0, 0.0], None);
        let (code, report) = diff(&bench, &[]);
        assert_eq!((code, ids(&report)), (Some(1), vec!["diff.values"]));
        let found = &report["details"]["tensors"][0];
        assert_eq!((number(&found["max"]), number(&found["l2"])), (4.0, 4.0));
        assert!((number(&found["mean"]) - 4.0 / 3.0).abs() < 1e-12);
        assert!((number(&found["relative_l2"]) - 0.8).abs() < 1e-12);
        assert!((number(&found["cosine"]) - 0.6).abs() < 1e-12);
        assert_eq!(found["differing"], 1);
    }
}

#[test]
fn sizes_far_from_one_are_measured_too() {
    for scale in [1e-30, 1e-22, 1e22, 1e30] {
        let bench = one_tensor(
            Dtype::BF16,
            &[3.0 * scale, 0.0, 4.0 * scale],
            &[3.0 * scale, 0.0, 0.0],
            None,
        );
        let (_, report) = diff(&bench, &[]);
        let found = &report["details"]["tensors"][0];
        assert!(
            (number(&found["relative_l2"]) - 0.8).abs() < 0.01,
            "{scale}"
        );
        assert!((number(&found["cosine"]) - 0.6).abs() < 0.01, "{scale}");
    }
}

#[test]
fn steps_are_those_of_the_dtype() {
    // In BF16 the step above 1 is 1/128, and below it half of that.
    let step = 1.0 / 128.0;
    let bench = one_tensor(
        Dtype::BF16,
        &[1.0, 1.0, -0.0],
        &[1.0 + 3.0 * step, 1.0 - step, 0.0],
        None,
    );
    let (_, report) = diff(&bench, &[]);
    let found = &report["details"]["tensors"][0];
    assert_eq!(found["steps"], 3);
    assert_eq!(
        (&found["differing"], &found["within_one_step"]),
        (&json!(2), &json!(1))
    );
    // Only the sign of a zero.
    let bench = one_tensor(Dtype::F32, &[-0.0, 1.0], &[0.0, 1.0], None);
    let (code, report) = diff(&bench, &[]);
    assert_eq!(code, Some(1));
    let text = report["findings"][0]["found"].as_str().unwrap();
    assert!(text.starts_with("only signs of zeros"), "{text}");
}

#[test]
fn task_vectors_by_hand() {
    // (1, 0, -1) and (1, 1, 1) about the base: a cosine of 0, and one conflict of two.
    let bench = one_tensor(
        Dtype::F32,
        &[2.0, 2.0, 1.0],
        &[2.0, 3.0, 3.0],
        Some(&[1.0, 2.0, 2.0]),
    );
    let (_, report) = diff(&bench, &["--base", "base"]);
    let tasks = &report["details"]["total"]["tasks"];
    assert_eq!(number(&tasks["cosine"]), 0.0);
    assert_eq!(
        (number(&tasks["sign_conflicts"]), number(&tasks["both"])),
        (1.0, 2.0)
    );
    assert!((number(&tasks["l2"][0]) - 2f64.sqrt()).abs() < 1e-12);
    assert!((number(&tasks["l2"][1]) - 3f64.sqrt()).abs() < 1e-12);
    // A fine-tune that is none.
    let bench = one_tensor(Dtype::F32, &[1.0, 2.0], &[2.0, 3.0], Some(&[1.0, 2.0]));
    let (_, report) = diff(&bench, &["--base", "base"]);
    assert_eq!(ids(&report), ["diff.values", "diff.same-as-base"]);
    assert_eq!(report["findings"][1]["file"], "a");
}

#[test]
fn tensors_that_do_not_match_are_named() {
    let specs = || llama(1, 2, Dtype::BF16);
    let name = "model.layers.1.mlp.up_proj.weight";
    let renamed = || -> Vec<Spec> {
        let mut specs = specs();
        specs
            .iter_mut()
            .filter(|spec| spec.name == name)
            .for_each(|spec| spec.name = "up".into());
        specs
    };
    let cases: Vec<(Vec<Spec>, &[&str])> = vec![
        (without(specs(), name), &["diff.missing-tensor"]),
        (
            with(specs(), integers("more", &[1])),
            &["diff.added-tensor"],
        ),
        (
            with(specs(), floats(name, Dtype::BF16, &[8, 12], noise(1, 96))),
            &["diff.shape"],
        ),
        (renamed(), &["diff.renamed-tensor"]),
    ];
    for (b, expected) in cases {
        let bench = Bench::new();
        bench.model("a", &llama_config(2), &specs());
        bench.model("b", &llama_config(2), &b);
        let (_, report) = diff(&bench, &[]);
        assert_eq!(ids(&report), expected, "{report:#}");
    }
    // Another dtype with equal values is worth a warning, and no more.
    let bench = one_tensor(Dtype::F32, &[1.0, 0.5], &[1.0, 0.5], None);
    bench.tensors(
        "b/model.safetensors",
        &[floats("w", Dtype::BF16, &[2], [1.0, 0.5])],
    );
    let (code, report) = diff(&bench, &[]);
    assert_eq!((code, ids(&report)), (Some(0), vec!["diff.dtype"]));
    // Values that are no numbers are left out, and counted.
    let bench = one_tensor(Dtype::F32, &[f64::NAN, 2.0], &[1.0, 1.0], None);
    let (_, report) = diff(&bench, &[]);
    assert_eq!(ids(&report), ["diff.values", "diff.non-finite"]);
    assert_eq!(number(&report["details"]["tensors"][0]["max"]), 1.0);
}

#[test]
fn configs_tokenizers_and_files_are_compared() {
    let bench = Bench::new();
    let specs = llama(1, 2, Dtype::BF16);
    bench.model("a", &llama_config(2), &specs);
    bench.model(
        "b",
        &config_with(2, json!({"rope_theta": 5.0, "transformers_version": "5"})),
        &specs,
    );
    let tokens = |of: &str, vocabulary: Value| {
        let json = json!({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "x"}});
        bench.file(&format!("{of}/tokenizer.json"), json.to_string());
    };
    tokens("a", json!({"x": 0, "y": 1, "z": 2}));
    tokens("b", json!({"x": 0, "w": 1, "z": 3, "v": 2}));
    let (code, report) = diff(&bench, &[]);
    assert_eq!(code, Some(1));
    let found: Vec<(&str, &str)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let at = finding["field"]
                .as_str()
                .or(finding["file"].as_str())
                .unwrap();
            (finding["check"].as_str().unwrap(), at)
        })
        .collect();
    let expected = [
        ("diff.config", "rope_theta"),
        ("diff.tokenizer", "tokenizer.json"),
        ("diff.tokenizer", "tokenizer.json"),
        ("diff.tokenizer", "tokenizer.json"),
        ("diff.config", "transformers_version"),
        ("diff.file", "tokenizer.json"),
    ];
    assert_eq!(found, expected, "{report:#}");
}

#[test]
fn a_policy_says_how_far_is_too_far() {
    let bench = one_tensor(Dtype::F32, &[1.0, 1.0], &[1.0, 1.01], None);
    let policy = |text: &str| bench.file("policy.toml", text);
    policy("[diff]\nmax_relative_l2 = 0.1\nmin_cosine = 0.9\n");
    let (code, report) = diff(&bench, &["--policy", "policy.toml"]);
    assert_eq!(code, Some(0), "{report:#}");
    policy(
        "[diff]\nmax_relative_l2 = 0.1\n[[diff.roles]]\nmatch = \"w\"\nmax_relative_l2 = 0.001\n",
    );
    let (code, report) = diff(&bench, &["--policy", "policy.toml"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        report["findings"][0]["expected"],
        "a relative L2 of at most 0.001"
    );
}

#[test]
fn numbers_do_not_depend_on_threads() {
    let bench = Bench::new();
    let specs = |seed| {
        vec![
            floats("w", Dtype::F32, &[300, 7000], noise(seed, 2_100_000)),
            floats("v", Dtype::BF16, &[70_001], noise(seed + 10, 70_001)),
        ]
    };
    for (seed, name) in [(1, "a"), (2, "b"), (3, "base")] {
        bench.model(name, &llama_config(1), &specs(seed));
    }
    let reports: Vec<Value> = ["1", "2", "3"]
        .into_iter()
        .map(|threads| diff(&bench, &["--base", "base", "--threads", threads]).1)
        .collect();
    assert!(reports.iter().all(|report| *report == reports[0]));
}

#[test]
fn what_cannot_be_opened_cannot_be_compared() {
    let bench = one_tensor(Dtype::F32, &[1.0], &[1.0], None);
    assert_eq!(bench.weld(&["diff", "a", "nowhere"]).code, Some(2));
    bench.file("b/model.safetensors", "broken");
    let outcome = bench.weld(&["diff", "a", "b"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
}

/// Where the changes of a fine-tune are: in which roles, in which layers.
#[test]
fn energy_is_shared_out_by_role_and_layer() {
    let bench = Bench::new();
    let specs = |changes: &[(&str, f64)]| -> Vec<Spec> {
        let names = [
            "model.layers.0.up.weight",
            "model.layers.0.down.weight",
            "model.layers.1.up.weight",
            "model.layers.1.down.weight",
            "norm",
        ];
        let change = |name: &str| {
            changes
                .iter()
                .find(|(of, _)| *of == name)
                .map_or(0.0, |(_, by)| *by)
        };
        let spec = |name: &&str| floats(name, Dtype::F32, &[2, 1], [1.0 + change(name), 2.0]);
        names.iter().map(spec).collect()
    };
    bench.model("base", &llama_config(2), &specs(&[]));
    // Energies of 1, 4 and 4 of the first; all of the second in one tensor.
    let a = [
        ("model.layers.0.up.weight", 1.0),
        ("model.layers.1.down.weight", 2.0),
        ("norm", -2.0),
    ];
    bench.model("a", &llama_config(2), &specs(&a));
    bench.model(
        "b",
        &llama_config(2),
        &specs(&[("model.layers.1.down.weight", 3.0)]),
    );
    let (_, report) = diff(&bench, &["--base", "base"]);
    let shares = |of: &str| -> Vec<(String, f64, f64)> {
        let groups = report["details"][of].as_array().unwrap().iter();
        let share = |group: &Value| {
            let energy = &group["tasks"]["energy"];
            let name = group["name"].as_str().unwrap().to_owned();
            let of = |at: usize| energy[at].as_f64().unwrap_or(0.0);
            (name, of(0), of(1))
        };
        groups.map(share).collect()
    };
    let ninth = 1.0 / 9.0;
    let expected = [
        ("down.weight", 4.0 * ninth, 1.0),
        ("norm", 4.0 * ninth, 0.0),
        ("up.weight", ninth, 0.0),
    ];
    let near = |found: Vec<(String, f64, f64)>, expected: &[(&str, f64, f64)]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for ((name, first, second), expected) in found.iter().zip(expected) {
            assert_eq!(name, expected.0);
            assert!(
                (first - expected.1).abs() < 1e-6 && (second - expected.2).abs() < 1e-6,
                "{name}: {first} {second}"
            );
        }
    };
    near(shares("roles"), &expected);
    near(
        shares("layers"),
        &[
            ("model.layers.0", ninth, 0.0),
            ("model.layers.1", 4.0 * ninth, 1.0),
        ],
    );
    let text = bench
        .weld(&["diff", "a", "b", "--base", "base", "-q"])
        .stdout;
    let by_role = text.split("by role").nth(1).unwrap();
    let down = by_role
        .lines()
        .find(|line| line.trim().starts_with("down.weight"))
        .unwrap();
    let cells: Vec<&str> = down.split_whitespace().collect();
    assert!(cells.join(" ").ends_with("44.44 % 100.00 %"), "{text}");
}

#[test]
fn a_base_has_no_task_vector() {
    let bench = one_tensor(Dtype::F32, &[1.0, 2.0], &[2.0, 3.0], None);
    for (base, expected) in [("a", "first"), ("b", "second")] {
        let (_, report) = diff(&bench, &["--base", base]);
        let said = &report["summary"]["tasks"];
        assert_eq!(
            *said,
            format!("one: the {expected} has the values of the base")
        );
        assert!(!report.to_string().contains("inf"), "{report:#}");
    }
    let outcome = bench.weld(&["diff", "a", "a", "--base", "a", "-q"]);
    assert!(
        outcome.stdout.contains("both have the values of the base"),
        "{}",
        outcome.stdout
    );
}

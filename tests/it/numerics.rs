//! `weld verify` on merges that mergekit 0.1.5 made: told exact in its own arithmetic, and refused where they are not.
//!
//! `tests/peer/profiles.py` makes them, with one layer each, of the models of `golden/`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fixtures::{Bench, rewrite};

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/profiles")
}

/// A copy of a merge as `out`, that may be changed.
fn copied(case: &str) -> Bench {
    let bench = Bench::new();
    fs::create_dir(bench.path("out")).unwrap();
    for entry in fs::read_dir(committed().join(case)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        fs::copy(&path, bench.path(&format!("out/{name}"))).unwrap();
    }
    bench
}

/// The exit code, the report, and the checks that failed.
fn verify(bench: &Bench, case: &str, more: &[&str]) -> (Option<i32>, Value, Vec<String>) {
    let inputs = committed().join(case);
    let mut arguments = vec!["verify", "out", "--format", "json", "-q", "--inputs"];
    arguments.push(inputs.to_str().unwrap());
    arguments.extend(more);
    let outcome = bench.weld(&arguments);
    let report: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|_| panic!("{case} {more:?}: {}", outcome.stderr));
    let findings = report["findings"].as_array().unwrap().iter();
    let failed = findings.filter(|finding| finding["severity"] == "error");
    let mut checks: Vec<String> = failed
        .map(|finding| finding["check"].as_str().unwrap().to_owned())
        .collect();
    checks.dedup();
    (outcome.code, report, checks)
}

/// The tensors of each outcome and arithmetic.
fn tensors<'r>(report: &'r Value, outcome: &str) -> Vec<&'r str> {
    let tensors = report["details"]["tensors"].as_array().unwrap().iter();
    let of = tensors.filter(|tensor| tensor["outcome"] == outcome);
    of.map(|tensor| tensor["numerics"].as_str().unwrap())
        .collect()
}

/// Merges that can be told, and in which arithmetic.
const EXACT: [(&str, &str); 6] = [
    ("task-arithmetic-bf16", "mergekit-bfloat16"),
    ("ties-bf16", "mergekit-bfloat16"),
    ("ties-f32", "mergekit-float32"),
    ("slerp-f32", "mergekit-float32"),
    ("nuslerp-bf16", "mergekit-bfloat16"),
    ("model-stock-f32", "mergekit-float32"),
];

#[test]
fn every_tensor_is_exact_in_the_arithmetic_of_the_recipe() {
    for (case, profile) in EXACT {
        let bench = copied(case);
        for more in [
            &["--full"][..],
            &["--samples", "3"],
            &["--full", "--allow", "exact"],
        ] {
            let (code, report, failed) = verify(&bench, case, more);
            assert_eq!((code, failed), (Some(0), vec![]), "{case} {report:#}");
            let exact = tensors(&report, "exact");
            assert_eq!(exact.len(), 12, "{case} {report:#}");
            assert!(exact.contains(&profile), "{case} {report:#}");
            assert!(
                exact
                    .iter()
                    .all(|name| *name == profile || *name == "weldment")
            );
            let summary = report["summary"]["numerics"].as_str().unwrap();
            assert!(summary.contains(profile), "{case} {summary}");
            let note = &report["findings"];
            assert!(note.to_string().contains("verify.peer-numerics"), "{case}");
        }
        // In weldment's alone it is not.
        let weldment = ["--full", "--numerics", "weldment", "--allow", "exact"];
        let (code, report, _) = verify(&bench, case, &weldment);
        assert_eq!(code, Some(1), "{case} {report:#}");
        assert!(!report.to_string().contains(profile), "{case}");
        // By name it is, and not by another.
        let named = ["--full", "--allow", "exact", "--numerics", profile];
        let (code, report, _) = verify(&bench, case, &named);
        assert_eq!(code, Some(0), "{case} {report:#}");
        let other = [
            "--full",
            "--allow",
            "exact",
            "--numerics",
            "mergekit-float16",
        ];
        assert_eq!(verify(&bench, case, &other).0, Some(1), "{case}");
    }
}

#[test]
fn one_element_that_was_moved_is_named() {
    for (case, profile) in EXACT {
        let bench = copied(case);
        rewrite(&bench, |spec| {
            if spec.name.contains("up_proj") {
                let size = spec.bytes.len() / spec.shape.iter().product::<usize>();
                spec.bytes[123 * size] ^= 0b1000;
            }
        });
        let (code, report, failed) = verify(&bench, case, &["--full"]);
        assert_eq!((code, failed.len()), (Some(1), 1), "{case} {report:#}");
        let findings = report["findings"].as_array().unwrap();
        let finding = findings
            .iter()
            .find(|finding| finding["severity"] == "error")
            .unwrap();
        let found = finding["found"].as_str().unwrap();
        let one = format!("1 of 512 elements differ by up to 8 ULPs, at 123, by {profile}");
        assert!(found.contains(&one), "{case}: {found}");
    }
}

#[test]
fn another_weight_and_exchanged_models_are_refused() {
    for (case, _) in EXACT {
        let text = fs::read_to_string(committed().join(case).join("mergekit_config.yml")).unwrap();
        for (from, to) in [
            ("weight: 0.6", "weight: 0.61"),
            ("t: 0.3", "t: 0.31"),
            ("a-bf16", "c-bf16"),
        ] {
            let changed = match from {
                "a-bf16" => text.replace(from, "?").replace(to, from).replace('?', to),
                _ => text.replace(from, to),
            };
            if changed == text || case.starts_with("model-stock") {
                continue;
            }
            let bench = copied(case);
            fs::write(bench.path("out/mergekit_config.yml"), changed).unwrap();
            let (code, report, _) = verify(&bench, case, &["--full"]);
            assert_eq!(code, Some(1), "{case} {to} {report:#}");
        }
    }
}

#[test]
fn random_masks_are_not_told_and_what_they_cannot_give_is_wrong() {
    let case = "dare-ties-bf16";
    let bench = copied(case);
    let (code, report, failed) = verify(&bench, case, &["--full"]);
    assert_eq!((code, failed), (Some(3), vec![]), "{report:#}");
    assert!(!tensors(&report, "not told").is_empty());
    assert!(
        report["skipped"].to_string().contains("random masks"),
        "{report:#}"
    );
    rewrite(&bench, |spec| {
        if spec.name.contains("up_proj") {
            spec.bytes[2..4].copy_from_slice(&half::bf16::from_f32(3.0).to_le_bytes());
        }
    });
    let (code, report, _) = verify(&bench, case, &["--full"]);
    assert_eq!(code, Some(1), "{report:#}");
    // In weldment's arithmetic alone, it is another merge.
    let bench = copied(case);
    let (code, ..) = verify(&bench, case, &["--full", "--numerics", "weldment"]);
    assert_eq!(code, Some(1));
}

#[test]
fn what_mergekit_s_arithmetic_is_not_known_of_is_not_told() {
    let case = "slerp-f32";
    let bench = copied(case);
    let recipe = fs::read_to_string(bench.path("out/mergekit_config.yml")).unwrap();
    let recipe = recipe.replace("merge_method: slerp", "merge_method: nearswap");
    fs::write(bench.path("out/mergekit_config.yml"), recipe).unwrap();
    let named = ["--full", "--numerics", "mergekit-float32"];
    let (code, report, _) = verify(&bench, case, &named);
    assert_eq!(code, Some(3), "{report:#}");
    assert!(
        report["skipped"]
            .to_string()
            .contains("nearswap in mergekit-float32 is not known"),
        "{report:#}"
    );
}

/// mergekit ignores keys that it does not know; a recipe that was merged with one is still the recipe.
#[test]
fn what_mergekit_ignored_in_a_recorded_recipe_is_ignored_again() {
    let bench = copied("ties-f32");
    let path = bench.path("out/mergekit_config.yml");
    let recipe = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        format!("{recipe}\nrandom_seed: 3\nnormalise: false\n")
            .replace("weight: 0.6", "weight: 0.6\n      densty: 0.4"),
    )
    .unwrap();
    let (code, _, failed) = verify(&bench, "ties-f32", &[]);
    assert_eq!((code, failed), (Some(0), Vec::new()));
    // As the recipe of a merge to come it is refused.
    fs::copy(&path, bench.path("recipe.yml")).unwrap();
    let planned = bench.weld(&["plan", "recipe.yml"]);
    assert_eq!(planned.code, Some(1));
    assert!(
        planned.stderr.contains("say `--seed`"),
        "{}",
        planned.stderr
    );
}

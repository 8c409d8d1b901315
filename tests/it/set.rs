//! Values that are set on the command line, and recipes from standard input.

use std::io::Write;
use std::process::{Command, Stdio};

use safetensors::Dtype;

use crate::fixtures::{Bench, Outcome, load};

const RECIPE: &str = "\
merge_method: ties
base_model: base
models: # in this order
- model: a
  parameters: {weight: 0.5, density: 0.9}
- model: b
  parameters: {weight: 0.5, density: 0.9}
";

fn bench() -> Bench {
    let bench = Bench::new();
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        bench.llama(name, seed, Dtype::BF16);
    }
    bench.recipe(RECIPE);
    bench
}

fn piped(bench: &Bench, arguments: &[&str], input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(arguments)
        .current_dir(bench.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A recipe with values set gives what the recipe with these values gives, and its lock says which these were.
#[test]
fn a_merge_with_values_set_is_that_of_the_changed_recipe() {
    let bench = bench();
    let set = [
        "--set",
        "models[1].parameters.weight=0.25",
        "--set",
        "models[*].parameters.density=0.3",
    ];
    let merged = bench.weld(&[&["merge", "recipe.yml", "set"][..], &set].concat());
    assert_eq!(merged.code, Some(0), "{}", merged.stderr);
    let changed = RECIPE
        .replace("0.9", "0.3")
        .replacen("weight: 0.5", "weight: 0.25", 2)
        .replacen("0.25", "0.5", 1);
    let piped = piped(&bench, &["merge", "-", "piped", "--no-check"], &changed);
    assert_eq!(piped.code, Some(0), "{}", piped.stderr);
    assert_eq!(load(&bench.path("set")), load(&bench.path("piped")));
    let plain = bench.weld(&["merge", "recipe.yml", "plain"]);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    assert_ne!(load(&bench.path("set")), load(&bench.path("plain")));
    let lock =
        |name: &str| std::fs::read_to_string(bench.path(name).join("weldment.lock.json")).unwrap();
    assert_eq!(lock("set"), lock("piped"));
    let locked: serde_json::Value = serde_json::from_str(&lock("set")).unwrap();
    assert_eq!(locked["recipe"].as_str(), Some(changed.as_str()));
    // The lock is enough to verify both.
    for name in ["set", "piped"] {
        let verified = bench.weld(&["verify", name, "--full"]);
        assert_eq!(verified.code, Some(0), "{}", verified.stdout);
    }
    let given = bench.weld(
        &[
            &["verify", "set", "--full", "--recipe", "recipe.yml"][..],
            &set,
        ]
        .concat(),
    );
    assert_eq!(given.code, Some(0), "{}", given.stdout);
    let other = bench.weld(&["verify", "set", "--full", "--recipe", "recipe.yml"]);
    assert_eq!(other.code, Some(1), "{}", other.stdout);
}

#[test]
fn a_plan_shows_values_that_were_set() {
    let bench = bench();
    let plan = bench.weld(&[
        "plan",
        "recipe.yml",
        "--all",
        "--set",
        "merge_method=dare_ties",
        "--set",
        "models[0].parameters.weight=0.125",
    ]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.contains("0.125"), "{}", plan.stdout);
}

#[test]
fn a_value_without_a_place_is_refused() {
    let bench = bench();
    for (arguments, code, expected) in [
        (
            &[
                "plan",
                "recipe.yml",
                "--set",
                "models[2].parameters.weight=1",
            ][..],
            1,
            "`models` has 2 entries, [0] to [1], and no [2]",
        ),
        (
            &["merge", "recipe.yml", "out", "--set", "parameters.densty=1"],
            1,
            "did you mean `density`?",
        ),
        (
            &[
                "merge",
                "recipe.yml",
                "out",
                "--set",
                "parameters.density=many",
            ],
            1,
            "expected a number for `density`, found `many`",
        ),
        (
            &["merge", "recipe.yml", "out", "--set", "density"],
            2,
            "expected KEY=VALUE",
        ),
        (
            &["merge", "nowhere.yml", "out", "--set", "a=1"],
            2,
            "cannot read the recipe",
        ),
        (&["verify", "a", "--set", "a=1"], 2, "--recipe FILE"),
    ] {
        let outcome = bench.weld(arguments);
        assert_eq!(
            outcome.code,
            Some(code),
            "{arguments:?}: {}{}",
            outcome.stdout,
            outcome.stderr
        );
        let said = outcome.stdout.clone() + &outcome.stderr;
        let said: Vec<&str> = said
            .split_whitespace()
            .filter(|word| *word != "\u{2502}")
            .collect();
        assert!(
            said.join(" ").contains(expected),
            "{arguments:?}: {}",
            outcome.stderr
        );
        assert!(!bench.path("out").exists());
    }
    let outcome = piped(&bench, &["plan", "-"], "merge_method: [");
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("standard input"),
        "{}",
        outcome.stderr
    );
}

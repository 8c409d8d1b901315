//! A merge that is stopped at any moment leaves the output absent, old or whole; the next one succeeds.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::Dtype;

use crate::fixtures::{Bench, files, floats, llama_config, noise};

/// How many moments are tried, spread over a run.
const MOMENTS: u32 = 24;

const RECIPE: &str = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n\
                      parameters: {weight: 0.5, density: 0.5}\n";

/// Models of some megabytes in several tensors.
fn bench() -> Bench {
    let bench = Bench::new();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        let count = 256 * 1024;
        let specs: Vec<_> = (0..6)
            .map(|layer| {
                let values = noise((seed * 10 + layer) as u64 + 1, count);
                floats(
                    &format!("model.layers.{layer}.w"),
                    Dtype::BF16,
                    &[count],
                    values,
                )
            })
            .collect();
        bench.model(name, &llama_config(6), &specs);
    }
    bench.recipe(RECIPE);
    bench
}

fn start(bench: &Bench, out: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_weld"))
        .current_dir(bench.path(""))
        .args(["merge", "recipe.yml", out, "-q", "--shard-size", "1MB"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How long a run takes, and the whole output.
fn reference(bench: &Bench) -> (Duration, Vec<(String, Vec<u8>)>) {
    let started = Instant::now();
    assert!(start(bench, "whole", &[]).wait().unwrap().success());
    (started.elapsed(), files(&bench.path("whole")))
}

/// Names beside the models that a run has left.
fn left_over(bench: &Bench) -> Vec<String> {
    let known = ["base", "a", "b", "recipe.yml", "whole", "out"];
    fs::read_dir(bench.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(&name.as_str()))
        .collect()
}

#[test]
fn a_killed_merge_leaves_nothing_or_all() {
    let bench = bench();
    let (length, whole) = reference(&bench);
    // The card names its folder.
    let same = |out: &str| {
        let found = files(&bench.path(out));
        found.len() == whole.len()
            && found
                .iter()
                .zip(&whole)
                .all(|(a, b)| a.0 == b.0 && (a.0 == "README.md" || a.1 == b.1))
    };
    let mut absent = 0;
    for moment in 0..MOMENTS {
        let mut child = start(&bench, "out", &[]);
        sleep(length * moment / MOMENTS);
        child.kill().unwrap();
        child.wait().unwrap();
        if bench.path("out").exists() {
            assert!(
                same("out"),
                "killed at moment {moment}: a part of a checkpoint is at OUT"
            );
            fs::remove_dir_all(bench.path("out")).unwrap();
        } else {
            absent += 1;
        }
    }
    assert!(
        absent >= MOMENTS / 4,
        "only {absent} kills came before the end"
    );
    assert!(start(&bench, "out", &[]).wait().unwrap().success());
    assert!(same("out"));
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

#[test]
fn a_killed_replacement_leaves_the_old_or_the_new() {
    let bench = bench();
    let (length, _) = reference(&bench);
    let weights = |out: &str| {
        let mut files = files(&bench.path(out));
        files.retain(|(name, _)| name.ends_with(".safetensors") || name == "old");
        files
    };
    let new = weights("whole");
    let old = vec![("old".to_owned(), b"old".to_vec())];
    for moment in 0..MOMENTS {
        if !bench.path("out/old").exists() {
            let _ = fs::remove_dir_all(bench.path("out"));
            bench.file("out/old", "old");
        }
        let mut child = start(&bench, "out", &["--force"]);
        sleep(length * moment / MOMENTS);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = weights("out");
        assert!(
            found == old || found == new,
            "killed at moment {moment}: a mixture is at OUT"
        );
    }
    assert!(start(&bench, "out", &["--force"]).wait().unwrap().success());
    assert!(weights("out") == new);
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

#[test]
fn stopping_cleans_up_and_says_so() {
    let bench = bench();
    let (length, _) = reference(&bench);
    let mut stopped = 0;
    for moment in 1..8 {
        for signal in ["-INT", "-TERM"] {
            let child = start(&bench, "out", &[]);
            sleep(length * moment / 10);
            let _ = Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap();
            let output = child.wait_with_output().unwrap();
            if output.status.code() == Some(130) {
                stopped += 1;
                assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was written"));
                assert!(!bench.path("out").exists());
                assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
            } else {
                // It was done, or had not yet begun to listen.
                assert!(
                    output.status.success() || output.status.signal().is_some(),
                    "{output:?}"
                );
                let _ = fs::remove_dir_all(bench.path("out"));
            }
        }
    }
    assert!(stopped > 0, "no run was stopped in time");
}

#[test]
fn two_merges_to_one_place_do_not_mix() {
    let bench = bench();
    let (_, whole) = reference(&bench);
    let children: Vec<Child> = (0..4).map(|_| start(&bench, "out", &[])).collect();
    let mut succeeded = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => succeeded += 1,
            Some(1) => assert!(
                message.contains("another weld is writing") || message.contains("is not empty"),
                "{message}"
            ),
            other => panic!("{other:?}: {message}"),
        }
    }
    assert_eq!(succeeded, 1);
    let found = files(&bench.path("out"));
    assert!(
        found
            .iter()
            .zip(&whole)
            .all(|(a, b)| a.0 == b.0 && (a.0 == "README.md" || a.1 == b.1))
    );
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

#[test]
fn an_input_cut_short_under_its_map_is_an_error() {
    let bench = bench();
    let (length, _) = reference(&bench);
    for moment in 2..8 {
        let weights = bench.path("b/model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        let child = start(&bench, "out", &[]);
        sleep(length * moment / 10);
        fs::OpenOptions::new()
            .write(true)
            .open(&weights)
            .unwrap()
            .set_len(4096)
            .unwrap();
        let output = child.wait_with_output().unwrap();
        fs::write(&weights, bytes).unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            // It had read all it needed, or found the file short at the start or in the end.
            Some(0) => fs::remove_dir_all(bench.path("out")).unwrap(),
            Some(1 | 2) => {
                assert!(message.contains("error"), "{message}");
                assert!(!bench.path("out").exists());
            }
            other => panic!("{other:?}, {:?}: {message}", output.status.signal()),
        }
    }
}

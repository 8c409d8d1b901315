//! A merge that is stopped at any moment leaves the output absent, old or whole; the next one succeeds.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixtures::{Bench, files, llama_config, quick_bf16};

/// The last shard of a merge of [`bench`]: when it is there, the weights are about to be read.
const LAST: &str = "model-00006-of-00006.safetensors";

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
                let name = format!("model.layers.{layer}.w");
                quick_bf16(&name, (seed * 10 + layer) as u64, &[count])
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

/// Whether a run has come to that step.
type Step<'a> = Box<dyn Fn() -> bool + 'a>;

/// Waits until the child has come to that point; false if it ended before.
fn until(child: &mut Child, reached: impl Fn() -> bool) -> bool {
    while !reached() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_micros(100));
    }
    true
}

#[test]
fn a_merge_killed_at_any_of_its_steps_leaves_nothing_or_all() {
    let bench = bench();
    assert!(start(&bench, "out", &[]).wait().unwrap().success());
    let whole = files(&bench.path("out"));
    fs::remove_dir_all(bench.path("out")).unwrap();
    let staged = |name: &'static str| {
        let path = bench.staging().join(name);
        move || path.exists()
    };
    assert!(whole.iter().any(|(name, _)| name == LAST), "six shards");
    let steps: [(&str, Step<'_>); 5] = [
        ("the folder is staged", Box::new(staged(""))),
        ("weights are there", Box::new(staged(LAST))),
        (
            "the index is there",
            Box::new(staged("model.safetensors.index.json")),
        ),
        ("the card is there", Box::new(staged("README.md"))),
        ("OUT is there", Box::new(|| bench.path("out").exists())),
    ];
    let mut staged_left = 0;
    for (step, reached) in &steps {
        for _ in 0..2 {
            let mut child = start(&bench, "out", &[]);
            until(&mut child, reached);
            child.kill().unwrap();
            child.wait().unwrap();
            staged_left += usize::from(bench.staging().exists());
            if bench.path("out").exists() {
                assert!(files(&bench.path("out")) == whole, "killed when {step}");
                fs::remove_dir_all(bench.path("out")).unwrap();
            }
            // Whatever it left, the next run succeeds and leaves no trace of it.
            let next = start(&bench, "out", &[]).wait_with_output().unwrap();
            assert!(next.status.success(), "after a kill when {step}: {next:?}");
            assert!(
                files(&bench.path("out")) == whole,
                "after a kill when {step}"
            );
            assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
            fs::remove_dir_all(bench.path("out")).unwrap();
        }
    }
    assert!(
        staged_left >= 4,
        "only {staged_left} kills came while it was staged"
    );
}

#[test]
fn a_replacement_killed_about_its_last_step_is_the_old_or_the_new() {
    let bench = bench();
    let recipes = [
        RECIPE.to_owned(),
        RECIPE.replace("density: 0.5", "density: 0.9"),
    ];
    let outputs = recipes.clone().map(|recipe| {
        bench.recipe(&recipe);
        assert!(start(&bench, "out", &["--force"]).wait().unwrap().success());
        files(&bench.path("out"))
    });
    assert!(outputs[0] != outputs[1]);
    let inode = || {
        fs::metadata(bench.path("out"))
            .map(|meta| meta.ino())
            .unwrap()
    };
    let mut replaced = 0;
    for round in 0..6 {
        // What is there and what is to come change places.
        let new = round % 2;
        bench.recipe(&recipes[new]);
        let before = inode();
        let mut child = start(&bench, "out", &["--force"]);
        match round {
            0 | 1 => until(&mut child, || bench.staging().join("README.md").exists()),
            _ => until(&mut child, || inode() != before),
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let found = files(&bench.path("out"));
        assert!(
            outputs.contains(&found),
            "round {round}: a mixture is at OUT"
        );
        replaced += usize::from(found == outputs[new]);
        assert!(start(&bench, "out", &["--force"]).wait().unwrap().success());
        assert!(files(&bench.path("out")) == outputs[new], "round {round}");
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
    }
    assert!(
        replaced >= 2,
        "only {replaced} kills came after the exchange"
    );
}

#[test]
fn a_stopped_replacement_leaves_the_old() {
    let bench = bench();
    bench.file("out/old", "old");
    let mut stopped = 0;
    for _ in 0..5 {
        let mut child = start(&bench, "out", &["--force"]);
        until(&mut child, || bench.staging().join(LAST).exists());
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().is_ok());
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(130) {
            stopped += 1;
            assert_eq!(output.stderr, b"stopped; nothing was written\n");
            assert_eq!(
                files(&bench.path("out")),
                [("old".to_owned(), b"old".to_vec())]
            );
        } else {
            assert!(output.status.success(), "{output:?}");
            fs::remove_dir_all(bench.path("out")).unwrap();
            bench.file("out/old", "old");
        }
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
    }
    assert!(stopped > 0, "no run was stopped in time");
}

#[test]
fn two_replacements_of_one_place_do_not_mix() {
    let bench = bench();
    let recipes = [
        RECIPE.to_owned(),
        RECIPE.replace("density: 0.5", "density: 0.9"),
    ];
    let names = ["one.yml", "two.yml"];
    let run = |name: &str| {
        bench
            .process(&["merge", name, "out", "-q", "--force", "--shard-size", "1MB"])
            .spawn()
            .unwrap()
    };
    let outputs = [0, 1].map(|at| {
        bench.file(names[at], &recipes[at]);
        let started = Instant::now();
        assert!(run(names[at]).wait().unwrap().success());
        (files(&bench.path("out")), started.elapsed())
    });
    let length = outputs[1].1;
    for round in 0..8 {
        // From side by side to one after the other, about the moment of the exchange.
        let first = run(names[0]);
        sleep(length * round / 7);
        let second = run(names[1]);
        let done = [first, second].map(|child| child.wait_with_output().unwrap());
        for output in &done {
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success()
                    || (output.status.code() == Some(1)
                        && message.contains("another weld is writing")),
                "round {round}: {message}"
            );
        }
        assert!(done.iter().any(|output| output.status.success()));
        let found = files(&bench.path("out"));
        let winner = outputs.iter().position(|(whole, _)| *whole == found);
        let winner = winner.unwrap_or_else(|| panic!("round {round}: a mixture is at OUT"));
        assert!(done[winner].status.success(), "round {round}");
        assert!(!bench.staging().exists());
    }
}

#[test]
fn an_input_that_is_written_to_during_the_run_is_an_error() {
    let bench = bench();
    let mut found = 0;
    for _ in 0..3 {
        let weights = bench.path("a/model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        let mut child = start(&bench, "out", &[]);
        until(&mut child, || bench.staging().join(LAST).exists());
        // The same bytes again: only the time of modification tells.
        let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
        file.write_all_at(&bytes[..1], 0).unwrap();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            fs::remove_dir_all(bench.path("out")).unwrap();
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{message}");
        for part in [
            "model `a`: ",
            "model.safetensors changed while it was read",
            "hint: run again when nothing else writes to it",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(message.matches("hint: ").count(), 1, "{message}");
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
        assert!(!bench.path("out").exists());
        found += 1;
    }
    assert!(found > 0, "no run was met in time");
    assert!(start(&bench, "out", &[]).wait().unwrap().success());
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

#[test]
fn an_input_cut_short_under_many_threads_is_an_error_once() {
    let bench = bench();
    let weights = bench.path("a/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut met = 0;
    for _ in 0..8 {
        let _ = fs::remove_dir_all(bench.staging());
        fs::write(&weights, &bytes).unwrap();
        let mut child = start(&bench, "out", &["--threads", "8"]);
        until(&mut child, || bench.staging().join(LAST).exists());
        let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
        file.set_len(4096).unwrap();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            fs::remove_dir_all(bench.path("out")).unwrap();
            continue;
        }
        // All threads fault at once: none may fall through to the signal's default.
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        assert!(!bench.path("out").exists());
        met += usize::from(message.contains("cut short while it was read"));
    }
    assert!(met > 0, "no run was met in time");
    fs::write(&weights, &bytes).unwrap();
    assert!(start(&bench, "out", &[]).wait().unwrap().success());
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

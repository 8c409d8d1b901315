//! Where `weld verify` finds the inputs of a merge: as it is told, as the merge recorded, or as the recipe says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, Outcome, read_json};
use crate::verify::{LINEAR, cached, config, errors, finding, fine_tune, merged, verify};

const FAMILY: &str = "merge_method: linear\nmodels:\n- {model: family/x, parameters: {weight: 0.6}}\n- {model: family/y, \
                      parameters: {weight: 0.4}}\n";

/// Runs `weld` in a folder of the bench.
fn weld_in(bench: &Bench, folder: &str, arguments: &[&str]) -> Outcome {
    let mut command = bench.command();
    let output = command
        .current_dir(bench.path(folder))
        .args(arguments)
        .output()
        .unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder `right` with the inputs of its `merged`, and a folder `wrong` with other models by their names.
fn two_families() -> Bench {
    let bench = Bench::new();
    for (folder, seeds) in [("right", [1, 2]), ("wrong", [3, 3])] {
        for (name, seed) in ["x", "y"].into_iter().zip(seeds) {
            let model = format!("{folder}/family/{name}");
            bench.model(&model, &config(), &fine_tune(seed, Dtype::BF16));
        }
    }
    bench.file("right/recipe.yml", FAMILY);
    let outcome = weld_in(
        &bench,
        "right",
        &["merge", "recipe.yml", "merged", "-q", "--no-check"],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    bench
}

fn forget(bench: &Bench) {
    fs::remove_dir_all(bench.path("no-cache")).unwrap();
}

#[test]
fn inputs_that_are_named_win_over_all_other_places() {
    let bench = two_families();
    for record in [true, false] {
        if !record {
            forget(&bench);
        }
        let code = |folder: &str, arguments: &[&str]| {
            weld_in(&bench, folder, &[&["verify"], arguments].concat()).code
        };
        assert_eq!(code("right", &["merged", "--inputs", "../wrong"]), Some(1));
        assert_eq!(
            code("wrong", &["../right/merged", "--inputs", "../right"]),
            Some(0)
        );
        // One value for each --inputs, so the model may come after it.
        assert_eq!(
            code("wrong", &["--inputs", "../right", "../right/merged"]),
            Some(0)
        );
        let one = "family/y=../wrong/family/y";
        assert_eq!(code("right", &["merged", "--inputs", one]), Some(1));
        let both = ["merged", "--inputs", "../wrong", "--inputs"];
        let named = ["family/x=family/x", "family/y=family/y"];
        assert_eq!(code("right", &[&both[..], &named[..1]].concat()), Some(1));
        let all = ["merged", "--inputs", named[0], "--inputs", named[1]];
        assert_eq!(code("right", &all), Some(0));
    }
}

#[test]
fn inputs_that_name_nothing_are_an_error() {
    let bench = two_families();
    for (given, parts) in [
        (
            &["family/srot=../wrong/family/x"][..],
            &[
                "family/srot: the recipe names no such model",
                "`family/x`, `family/y`",
            ][..],
        ),
        (&["family/z=../wrong/family/x"], &["no such model"]),
        (
            &["./family/x=../wrong/family/x"],
            &["no such model", "`family/x`"],
        ),
        (
            &["/no/such/folder"],
            &["/no/such/folder: there is no such folder", "NAME=PATH"],
        ),
        (&["merged/config.json"], &["there is no such folder"]),
        (
            &["family/x=nowhere"],
            &["nowhere: there is nothing at this path"],
        ),
        (&[".", "../wrong"], &["more than one folder"]),
        (
            &["family/x=family/x", "family/x=family/y"],
            &["`family/x` twice"],
        ),
        (&[""], &["no such folder"]),
        (&["="], &["no such model"]),
    ] {
        let mut arguments = vec!["verify", "merged"];
        arguments.extend(given.iter().flat_map(|given| ["--inputs", given]));
        for command in ["verify", "attest"] {
            arguments[0] = command;
            let outcome = weld_in(&bench, "right", &arguments);
            assert_eq!(outcome.code, Some(2), "{given:?} {}", outcome.stderr);
            for part in parts {
                assert!(
                    outcome.stderr.contains(part),
                    "{given:?} {}",
                    outcome.stderr
                );
            }
        }
    }
    // A folder that no input is in, as all are in the Hub's cache.
    let commit = "1".repeat(40);
    cached(&bench, &commit, &"a".repeat(64), &fine_tune(1, Dtype::BF16));
    bench.merge(
        "merge_method: linear\nmodels: [{model: org/x, parameters: {weight: 1}}]\n",
        &[],
    );
    let outcome = bench.weld(&["verify", "out", "--inputs", "right"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome
            .stderr
            .contains("none of the inputs is in this folder"),
        "{}",
        outcome.stderr
    );
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(0));
    let found = &report["details"]["inputs"][0];
    assert_eq!(found["found_by"], "the Hub's cache");
    assert_eq!(found["hub"]["commit"], commit);
    assert_eq!(found["hub"]["revision"], "main");
    // A copy elsewhere is the same model.
    let snapshot = bench.path(&format!("no-hub/hub/models--org--x/snapshots/{commit}"));
    for name in ["config.json", "model.safetensors"] {
        bench.file(
            &format!("copy/{name}"),
            fs::read(snapshot.join(name)).unwrap(),
        );
    }
    let outcome = bench.weld(&["verify", "out", "--inputs", "org/x=copy"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stdout);
}

#[test]
fn the_report_says_where_each_input_was_found() {
    let bench = two_families();
    bench.file("far/nothing", "");
    let report = |folder: &str, more: &[&str]| -> (Option<i32>, Value) {
        let arguments = [
            &["verify", "../right/merged", "--format", "json", "-q"],
            more,
        ]
        .concat();
        let outcome = weld_in(&bench, folder, &arguments);
        (outcome.code, serde_json::from_str(&outcome.stdout).unwrap())
    };
    let path = |name: &str| bench.path(name).display().to_string();
    let found = |report: &Value, by: &str, beside: bool| {
        let inputs = report["details"]["inputs"].as_array().unwrap();
        assert_eq!(inputs.len(), 2);
        for (input, name) in inputs.iter().zip(["x", "y"]) {
            assert_eq!(input["model"], format!("family/{name}"));
            assert_eq!(input["found_by"], by, "{input}");
            assert_eq!(input["beside"], beside, "{input}");
            let real = fs::canonicalize(input["path"].as_str().unwrap()).unwrap();
            assert_eq!(
                real,
                fs::canonicalize(path(&format!("right/family/{name}"))).unwrap()
            );
        }
    };
    let notes = |report: &Value| {
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .filter(|finding| finding["check"] == "verify.input-beside")
            .count()
    };
    // As the merge recorded, from any folder.
    let (code, recorded) = report("far", &[]);
    assert_eq!(code, Some(0), "{recorded:#}");
    found(&recorded, "the merge's own record", true);
    assert_eq!(notes(&recorded), 0);
    let (_, named) = report("far", &["--inputs", "../right"]);
    found(&named, "--inputs", true);
    assert_eq!(notes(&named), 0);
    // What came with the checkpoint is taken, and said to be so.
    forget(&bench);
    let (code, came) = report("far", &[]);
    assert_eq!(code, Some(0));
    found(&came, "the recipe", true);
    assert_eq!(notes(&came), 2);
    fs::rename(bench.path("right/merged"), bench.path("far/merged")).unwrap();
    let outcome = weld_in(
        &bench,
        "right",
        &["verify", "../far/merged", "--format", "json", "-q"],
    );
    let elsewhere: Value = serde_json::from_str(&outcome.stdout).unwrap();
    found(&elsewhere, "the recipe", false);
    assert_eq!(notes(&elsewhere), 0);
}

#[test]
fn a_merge_verifies_from_anywhere_and_publishes_no_absolute_path() {
    let bench = two_families();
    let root = bench.path("").display().to_string();
    let recipe = FAMILY
        .replace("family/x", &format!("{root}right/family/x"))
        .replace("family/y", &format!("{root}right/family/y"));
    bench.recipe(&recipe);
    let outcome = bench.weld(&["merge", "recipe.yml", "out"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let last = outcome.stderr.lines().last().unwrap();
    assert_eq!(last, "check it with: weld verify out");
    for name in ["README.md", "weldment.lock.json"] {
        let text = fs::read_to_string(bench.path("out").join(name)).unwrap();
        assert!(!text.contains(root.as_str()), "{name}: {text}");
    }
    bench.file("far/nothing", "");
    let away = || weld_in(&bench, "far", &["verify", "../out", "-q"]);
    assert_eq!(away().code, Some(0));
    // It says where to look, and nothing else: another model there is found out.
    let model = bench.path("right/family/x/model.safetensors");
    let sound = fs::read(&model).unwrap();
    bench.tensors(
        "right/family/x/model.safetensors",
        &fine_tune(7, Dtype::BF16),
    );
    assert_eq!(away().code, Some(1));
    fs::write(&model, sound).unwrap();
    // A record that others could have written, or that is of another lock, is not read.
    let records = bench.path("no-cache/weldment/inputs");
    let mine = blake3::hash(&fs::read(bench.path("out/weldment.lock.json")).unwrap());
    let record = records.join(format!("{mine}.json"));
    let mode = |mode| fs::set_permissions(&record, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(
        record.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    mode(0o666);
    assert_eq!(away().code, Some(3));
    mode(0o600);
    assert_eq!(away().code, Some(0));
    let other = fs::read_dir(&records)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let other = other.into_iter().find(|path| *path != record).unwrap();
    fs::copy(other, &record).unwrap();
    assert_eq!(away().code, Some(3));
}

#[test]
fn a_record_that_cannot_be_written_is_a_note_and_no_failure() {
    let bench = two_families();
    forget(&bench);
    let merge = |cache: &Path| {
        let mut command = bench.command();
        command.current_dir(bench.path("right"));
        command.env("XDG_CACHE_HOME", cache);
        let output = command
            .args(["merge", "recipe.yml", "merged", "--force", "--no-check"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "note: where the inputs are could not be recorded for `weld verify`";
    assert!(merge(Path::new("/dev/null/cache")).contains(note));
    // A folder that others can write to.
    let shared = bench.path("shared/weldment/inputs");
    fs::create_dir_all(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let said = merge(&bench.path("shared"));
    assert!(
        said.contains(note) && said.contains("others can write to"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    assert!(!merge(&bench.path("fresh")).contains("note: where"));
    assert_eq!(
        fs::read_dir(bench.path("fresh/weldment/inputs"))
            .unwrap()
            .count(),
        1
    );
}

/// Of an absolute path the lock keeps the last part, unless another model is called so.
#[test]
fn two_models_never_have_one_name_in_a_lock() {
    let bench = Bench::new();
    for (name, seed) in [("x", 1), ("deep/x", 2)] {
        bench.model(name, &config(), &fine_tune(seed, Dtype::BF16));
    }
    let absolute = bench.path("deep/x").display().to_string();
    let recipe = LINEAR.replace("model: a", "model: x");
    bench.merge(
        &recipe.replace("model: b", &format!("model: {absolute}")),
        &[],
    );
    let lock = read_json(&bench.path("out/weldment.lock.json"));
    assert_eq!(lock["inputs"][0]["model"], "x");
    assert_eq!(lock["inputs"][1]["model"], "input-1");
    assert_eq!(verify(&bench, &["--full"]).0, Some(0));
    forget(&bench);
    assert_eq!(verify(&bench, &["--full"]).0, Some(3));
    assert_eq!(
        verify(&bench, &["--full", "--inputs", "input-1=deep/x"]).0,
        Some(0)
    );
    assert_eq!(
        verify(&bench, &["--full", "--inputs", "input-1=x"]).0,
        Some(1)
    );
}

#[test]
fn a_checkpoint_is_never_its_own_input() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    let path = bench.path("out/weldment.lock.json");
    let mut lock = read_json(&path);
    let itself = |model: &str| format!("merge_method: passthrough\nmodels: [{{model: {model}}}]\n");
    lock["inputs"] = Value::Array(Vec::new());
    std::os::unix::fs::symlink("out", bench.path("other")).unwrap();
    fs::create_dir(bench.path("linked")).unwrap();
    fs::copy(
        bench.path("out/config.json"),
        bench.path("linked/config.json"),
    )
    .unwrap();
    let linked = bench.path("linked/model.safetensors");
    fs::hard_link(bench.path("out/model.safetensors"), linked).unwrap();
    for model in ["out", "other", "linked", "./out/../out"] {
        lock["recipe"] = itself(model).into();
        fs::write(&path, lock.to_string()).unwrap();
        let (code, report) = verify(&bench, &["--full"]);
        assert_eq!(code, Some(1), "{model} {report:#}");
        assert!(
            errors(&report).contains(&"verify.own-input".to_owned()),
            "{report:#}"
        );
        assert_eq!(finding(&report, "verify.own-input")["file"], model);
        assert_eq!(bench.weld(&["attest", "out"]).code, Some(1));
    }
    // A copy of it elsewhere is another model.
    fs::create_dir(bench.path("copy")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(bench.path("out").join(name), bench.path("copy").join(name)).unwrap();
    }
    bench.merge(&itself("copy"), &[]);
    assert_eq!(verify(&bench, &["--full"]).0, Some(0));
    assert!(Path::new(&bench.path("copy")).exists());
}

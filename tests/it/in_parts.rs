//! A merge in parts: the same bytes as one run, whatever part is done where and when, and what is wrong is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use safetensors::Dtype;
use weldment::plan::Plan;
use weldment::run::destination::{Disk, Folder, Watch, parts_folder};
use weldment::run::{
    Joined, Part, PartRun, RunError, RunOptions, join, run_part, run_resumed, shares,
};

use crate::destination::{Door, bench as bench_on_disk, planned, tree};
use crate::determinism::RECIPES;
use crate::fixtures::{Bench, Outcome, files, floats, noise, read_json};
use crate::quantised_outputs;
use crate::sources::Silent;

/// Bytes of a weight file: several for a merge of tiny models.
const SHARD: u64 = 300;

const TIES: &str = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, \
                    density: 0.4}\n";

fn bench() -> Bench {
    let bench = Bench::new();
    for (seed, name) in [(1, "base"), (2, "a"), (3, "b")] {
        bench.llama(name, seed, Dtype::BF16);
        bench.statistics(name, seed + 60);
    }
    bench.recipe(TIES);
    bench
}

fn make(plan: &Plan, number: usize, count: usize, out: &Path) -> Result<PartRun, RunError> {
    let part = Part { number, count };
    let place = Folder::new(out, false);
    run_part(plan, part, &place, false, RunOptions::default(), &Silent)
}

/// Makes all parts, from the last to the first, and joins them.
fn in_parts(plan: &Plan, count: usize, out: &Path) -> Joined {
    for number in (1..=count).rev() {
        make(plan, number, count, out).unwrap();
    }
    join(&Folder::new(out, false), None, &Silent).unwrap()
}

#[test]
fn every_method_gives_the_bytes_of_one_run() {
    let bench = bench();
    for (name, recipe) in RECIPES {
        bench.recipe(recipe);
        let plan = planned(&bench, SHARD);
        let all = plan.shards.len();
        assert!(all > 4, "{name}: {all} files");
        let whole = bench.path("whole");
        let one = weldment::run::run(
            &plan,
            &Folder::new(&whole, true),
            RunOptions::default(),
            &Silent,
        );
        let one = one.unwrap();
        let out = bench.path("merged");
        for count in [1, 3, all] {
            let joined = in_parts(&planned(&bench, SHARD), count, &out);
            // The card has the folder's name.
            let cards = |text: &[u8]| String::from_utf8_lossy(text).replace("merged", "whole");
            for ((file, found), (_, expected)) in files(&out).iter().zip(&files(&whole)) {
                let same =
                    found == expected || file == "README.md" && cards(found) == cards(expected);
                assert!(same, "{name} in {count} parts: {file}");
            }
            assert_eq!(files(&out).len(), files(&whole).len(), "{name}");
            assert_eq!(joined.lock, one.lock, "{name}");
            assert_eq!(joined.update, one.update, "{name}");
            assert_eq!(joined.notes, one.notes, "{name}");
            assert!(!parts_folder(&out).exists());
            fs::remove_dir_all(&out).unwrap();
        }
    }
}

/// By the command line; `weld verify` computes all of it again.
fn cut_by_command(bench: &Bench, command: &str, recipe: &str, shard_size: &str) {
    let more = ["--shard-size", shard_size, "-q"];
    let run = |more_still: &[&str]| {
        bench.passes(&[&[command, recipe, "merged"][..], &more, more_still].concat());
    };
    run(&[]);
    fs::rename(bench.path("merged"), bench.path("whole")).unwrap();
    for part in ["2/3", "3/3", "1/3"] {
        run(&["--part", part]);
    }
    bench.passes(&["join", "merged", "--no-check"]);
    assert_eq!(
        fs::read(bench.path("merged/weldment.lock.json")).unwrap(),
        fs::read(bench.path("whole/weldment.lock.json")).unwrap()
    );
    bench.passes(&["verify", "merged", "--full"]);
}

#[test]
fn a_part_of_a_checkpoint_is_verified_by_itself() {
    let bench = bench();
    bench.passes(&["merge", "recipe.yml", "merged", "--shard-size", "300", "-q"]);
    let parts = ["1/3", "2/3", "3/3"];
    let verified = |part: &str, how: &[&str]| {
        let words = ["verify", "merged", "--part", part, "--format", "json"];
        bench.weld(&[&words[..], how].concat())
    };
    let elements = |report: &Outcome, field: &str| -> u64 {
        assert_eq!(report.code, Some(0), "{}", report.stderr);
        let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
        report["details"][field].as_u64().unwrap()
    };
    let mut compared = 0;
    for part in parts {
        assert_eq!(verified(part, &["--samples", "3"]).code, Some(0), "{part}");
        let report = verified(part, &["--full"]);
        let own = elements(&report, "compared");
        assert!(own > 0 && own == elements(&report, "elements"), "{part}");
        compared += own;
    }
    let whole = bench.weld(&["verify", "merged", "--full", "--format", "json"]);
    assert_eq!(compared, elements(&whole, "elements"));

    // One changed value is found by the part that has it, and by no other; a changed config by all.
    let plan = planned(&bench, SHARD);
    let second = &plan.shards[shares(&plan, 3).unwrap()[1].shards.start];
    let file = bench.path("merged").join(&second.file_name);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    for (part, code) in parts.into_iter().zip([0, 1, 0]) {
        assert_eq!(verified(part, &["--full"]).code, Some(code), "{part}");
    }
    fs::write(bench.path("merged/config.json"), "{}").unwrap();
    for part in parts {
        assert_eq!(verified(part, &[]).code, Some(1), "{part}");
    }
    let wrong = verified("1/1000", &[]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("weight files"), "{}", wrong.stderr);
}

#[test]
fn a_mixture_is_cut_too() {
    let bench = Bench::of_shipped();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/moe.yml");
    fs::copy(recipe, bench.path("recipe.yml")).unwrap();
    cut_by_command(&bench, "moe", "recipe.yml", "200kB");
}

#[test]
fn results_that_are_made_once_are_cut_too() {
    let bench = bench();
    bench.recipe(
        "merge_method: tsvm\nname: first\nbase_model: base\nmodels: [{model: a}, {model: b}]\n---\nmerge_method: \
         linear\nmodels: [{model: first}, {model: a}]\nparameters: {weight: 0.5}\n",
    );
    cut_by_command(&bench, "merge", "recipe.yml", "300");
}

/// Every tensor has a file of its own here, so codes and their scales lie in two.
#[test]
fn codes_and_their_scales_are_one_workers() {
    let bench = quantised_outputs::bench(quantised_outputs::WHOLE);
    let recipe = quantised_outputs::with(quantised_outputs::LINEAR, "quantization: fp8_block");
    bench.recipe(&recipe);
    cut_by_command(&bench, "merge", "recipe.yml", "1");
    bench.passes(&[
        "merge",
        "recipe.yml",
        "again",
        "--shard-size",
        "1",
        "--resume",
    ]);
    let lock = |folder: &str| fs::read(bench.path(folder).join("weldment.lock.json")).unwrap();
    assert!(lock("again") == lock("merged"));
}

#[test]
fn a_part_is_made_once_and_what_is_missing_or_foreign_is_told() {
    let bench = bench();
    let merge = |more: &[&str]| {
        let words = ["merge", "recipe.yml", "merged", "--shard-size", "300"];
        bench.weld(&[&words[..], more].concat())
    };
    let empty = bench.weld(&["join", "merged"]);
    assert_eq!(empty.code, Some(1), "{empty:?}");
    assert!(empty.stderr.contains("there are no parts in"), "{empty:?}");
    let made = merge(&["--part", "2/3", "--format", "json"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(made["done_before"], false);
    let again = merge(&["--part", "2/3"]);
    assert!(
        again.stderr.contains("part 2/3 of merged was done before"),
        "{again:?}"
    );
    let missing = bench.weld(&["join", "merged"]);
    assert_eq!(missing.code, Some(1));
    assert!(
        missing.stderr.contains("2 of 3 parts are missing"),
        "{missing:?}"
    );
    assert!(missing.stderr.contains("1/3, 3/3"), "{missing:?}");

    // Another density is another plan.
    let other = merge(&["--part", "2/3", "--set", "parameters.density=0.7"]);
    assert_eq!(other.code, Some(1));
    assert!(
        other.stderr.contains("something else than this part"),
        "{other:?}"
    );
    let other = merge(&["--part", "1/3", "--set", "parameters.density=0.7"]);
    assert_eq!(other.code, Some(0), "{other:?}");
    assert_eq!(merge(&["--part", "3/3"]).code, Some(0));
    let mixed = bench.weld(&["join", "merged"]);
    assert_eq!(mixed.code, Some(1));
    assert!(
        mixed.stderr.contains("they differ in the recipe"),
        "{mixed:?}"
    );
    assert!(!bench.path("merged").exists());
    assert_eq!(merge(&["--part", "1/3", "--force"]).code, Some(0));

    // A second cut.
    assert_eq!(merge(&["--part", "1/2"]).code, Some(0));
    let cuts = bench.weld(&["join", "merged"]);
    assert!(cuts.stderr.contains("parts of several cuts"), "{cuts:?}");
    fs::remove_dir_all(bench.path("merged.weld-parts/1-of-2")).unwrap();

    // What is there is not lost.
    bench.file("merged/mine", "mine");
    let taken = bench.weld(&["join", "merged"]);
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("is not empty"), "{taken:?}");
    // The tiny models lack tensors that their config asks for.
    let unsound = bench.weld(&["join", "merged", "--force"]);
    assert!(
        unsound.stderr.contains("would not pass `weld check`"),
        "{unsound:?}"
    );
    assert_eq!(fs::read(bench.path("merged/mine")).unwrap(), b"mine");
    bench.passes(&["join", "merged", "--force", "--no-check"]);
    bench.passes(&["verify", "merged", "--full"]);
    for (more, expected) in [
        (&["--part", "4/3"][..], "such as 3/16"),
        (&["--part", "1/99"], "too few weight files for 99 parts"),
        (&["--part", "1/2", "--resume"], "cannot be used with"),
        (&["--part", "1/2", "--hash-inputs"], "cannot be used with"),
    ] {
        let refused = merge(more);
        assert!(refused.stderr.contains(expected), "{more:?}: {refused:?}");
        assert_ne!(refused.code, Some(0));
    }
}

#[test]
fn damaged_and_hostile_parts_are_refused_and_stay() {
    let bench = bench();
    let plan = planned(&bench, SHARD);
    let out = bench.path("merged");
    for number in 1..=2 {
        make(&plan, number, 2, &out).unwrap();
    }
    let folder = parts_folder(&out).join("2-of-2");
    let manifest = folder.join("weldment.part.json");
    let sound = fs::read(&manifest).unwrap();
    let name = {
        let weights = read_json(&manifest)["weights"].as_object().unwrap().clone();
        weights.keys().next().unwrap().clone()
    };
    let weights = fs::read(folder.join(&name)).unwrap();
    fs::write(bench.path("secret"), &weights).unwrap();
    type Harm<'h> = &'h dyn Fn();
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = read_json(&manifest);
        change(&mut changed);
        fs::write(&manifest, changed.to_string()).unwrap();
    };
    let rename = |to: &str| {
        edit(&|changed| {
            let all = changed["weights"].as_object_mut().unwrap();
            let file = all.remove(&name).unwrap();
            all.insert(to.to_owned(), file);
        });
    };
    let link = || {
        fs::remove_file(folder.join(&name)).unwrap();
        std::os::unix::fs::symlink(bench.path("secret"), folder.join(&name)).unwrap();
    };
    let cases: &[(Harm<'_>, &str)] = &[
        (
            &|| fs::write(folder.join(&name), &weights[..weights.len() - 1]).unwrap(),
            "expected",
        ),
        (
            &|| fs::remove_file(folder.join(&name)).unwrap(),
            "cannot look at",
        ),
        (&link, "found no file"),
        (&|| fs::write(&manifest, "{").unwrap(), "weldment.part.json"),
        (
            &|| fs::remove_file(&manifest).unwrap(),
            "has no weldment.part.json",
        ),
        (
            &|| edit(&|changed| changed["format"] = "weldment-part/9".into()),
            "weldment-part/9",
        ),
        (
            &|| edit(&|changed| changed["part"] = serde_json::json!([1, 2])),
            "expected part 2/2",
        ),
        (
            &|| rename("../../secret"),
            "does not lie in the part's folder",
        ),
        (
            &|| rename(bench.path("secret").to_str().unwrap()),
            "does not lie in the part's folder",
        ),
        (&|| rename(""), "does not lie in the part's folder"),
        (
            &|| rename("model.safetensors.index.json"),
            "is in another part too",
        ),
        (
            &|| {
                let mut other = weights.clone();
                other[20] ^= 1;
                fs::write(folder.join(&name), other).unwrap();
            },
            "the header that was planned",
        ),
    ];
    for (number, (harm, expected)) in cases.iter().enumerate() {
        harm();
        let error = join(&Folder::new(&out, false), None, &Silent)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "case {number}: {error}");
        assert!(!out.exists(), "case {number}");
        let _ = fs::remove_file(folder.join(&name));
        fs::write(folder.join(&name), &weights).unwrap();
        fs::write(&manifest, &sound).unwrap();
    }
    join(&Folder::new(&out, false), None, &Silent).unwrap();
}

#[test]
fn a_run_goes_on_where_it_was_stopped() {
    let bench = bench();
    let plan = planned(&bench, SHARD);
    let out = bench.path("merged");
    let all = plan.shards.len();
    for number in [1, 2, all] {
        make(&plan, number, all, &out).unwrap();
    }
    let done = run_resumed(
        &plan,
        &Folder::new(&out, false),
        false,
        RunOptions::default(),
        &Silent,
    )
    .unwrap();
    let said = format!("3 of {all} weight files had been finished before");
    assert!(done.notes.contains(&said), "{:?}", done.notes);
    let of = |shard: usize| plan.shards[shard].tensors.len();
    let read: u64 = (shares(&plan, all).unwrap().iter().enumerate())
        .filter(|(number, _)| ![0, 1, all - 1].contains(number))
        .map(|(_, share)| share.read)
        .sum();
    assert!(
        of(0) > 0 && done.totals.read <= read,
        "{} of {read}",
        done.totals.read
    );
    bench.passes(&["verify", "merged", "--full"]);

    // From the command line; the second run finds nothing to go on with.
    let words = [
        "merge",
        "recipe.yml",
        "again",
        "--shard-size",
        "300",
        "--resume",
    ];
    bench.passes(&words);
    assert!(!bench.path("again.weld-parts").exists());
    bench.passes(&["verify", "again"]);
    let taken = bench.weld(&words);
    assert!(taken.stderr.contains("is not empty"), "{taken:?}");
    assert!(!bench.path("again.weld-parts").exists());
}

#[test]
fn a_damaged_part_is_made_again_and_a_foreign_one_only_by_force() {
    let bench = bench();
    let plan = planned(&bench, SHARD);
    let out = bench.path("merged");
    let all = plan.shards.len();
    for number in 1..=all {
        make(&plan, number, all, &out).unwrap();
    }
    let parts = parts_folder(&out);
    let first = parts.join(format!("1-of-{all}"));
    let cut = |path: &Path| {
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(3)
            .unwrap()
    };
    cut(&first.join(&plan.shards[0].file_name));
    let again = make(&plan, 1, all, &out).unwrap();
    assert!(matches!(again, PartRun::Made { .. }), "{again:?}");

    // Another recipe is refused before anything is computed, and by force it replaces what is there.
    bench.recipe(&TIES.replace("0.4", "0.7"));
    let other = planned(&bench, SHARD);
    let before = tree(&parts);
    let resumed = |force| {
        let place = Folder::new(&out, force);
        run_resumed(&other, &place, force, RunOptions::default(), &Silent)
    };
    let error = resumed(false).unwrap_err().to_string();
    assert!(error.contains("something else than this part"), "{error}");
    assert!(tree(&parts) == before);
    // What is not ours stays, and is told.
    fs::create_dir(parts.join("mine")).unwrap();
    fs::write(parts.join("mine/notes"), "mine").unwrap();
    let done = resumed(true).unwrap();
    assert!(
        done.notes.concat().contains("cannot remove"),
        "{:?}",
        done.notes
    );
    assert_eq!(
        tree(&parts).unwrap(),
        [("mine/notes".to_owned(), b"mine".to_vec())]
    );
    bench.passes(&["verify", "merged", "--full"]);

    // A part's folder that leads elsewhere is not followed.
    let far = bench.path("far");
    fs::create_dir(&far).unwrap();
    std::os::unix::fs::symlink(&far, parts.join("1-of-2")).unwrap();
    let part = Part {
        number: 1,
        count: 2,
    };
    let error = run_part(
        &other,
        part,
        &Folder::new(&out, false),
        true,
        RunOptions::default(),
        &Silent,
    )
    .unwrap_err();
    assert!(error.to_string().contains("is no folder"), "{error}");
    assert!(tree(&far).unwrap().is_empty());
}

#[test]
fn files_beside_the_weights_and_settings_of_adapters_are_of_the_plan() {
    let bench = bench();
    let out = bench.path("merged");
    let plan = planned(&bench, SHARD);
    make(&plan, 1, 2, &out).unwrap();
    bench.file("base/notes.json", "{}");
    make(&planned(&bench, SHARD), 2, 2, &out).unwrap();
    let error = join(&Folder::new(&out, false), None, &Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("they differ in the files beside the weights"),
        "{error}"
    );

    bench.recipe(
        "merge_method: linear\nmodels: [{model: a+lora}, {model: b}]\nparameters: {weight: 0.5}\n",
    );
    let settings = |alpha: u32| {
        let config = format!(r#"{{"peft_type": "LORA", "r": 1, "lora_alpha": {alpha}}}"#);
        bench.file("lora/adapter_config.json", config);
    };
    settings(1);
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora";
    let factor = |letter: &str, shape: &[usize]| {
        floats(
            &format!("{name}_{letter}.weight"),
            Dtype::F32,
            shape,
            noise(7, 8),
        )
    };
    bench.tensors(
        "lora/adapter_model.safetensors",
        &[factor("A", &[1, 8]), factor("B", &[8, 1])],
    );
    let out = bench.path("adapted");
    make(&planned(&bench, SHARD), 1, 2, &out).unwrap();
    settings(2);
    make(&planned(&bench, SHARD), 2, 2, &out).unwrap();
    let error = join(&Folder::new(&out, false), None, &Silent)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the settings of an adapter"), "{error}");
}

#[test]
fn parts_are_planned_evenly_and_their_sum_is_the_whole() {
    let bench = bench();
    let words = ["plan", "recipe.yml", "--shard-size", "300", "--parts", "3"];
    let shown = bench.weld(&words);
    assert!(shown.stdout.contains("part     1/3: "), "{shown:?}");
    let json = bench.weld(&[&words[..], &["--format", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let shares = json["shares"].as_array().unwrap();
    let sum = |key: &str| {
        shares
            .iter()
            .map(|share| share[key].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(shares.len(), 3);
    assert_eq!(json["bytes_read"], sum("bytes_read"));
    assert_eq!(json["bytes_written"], sum("bytes_written"));
    assert_eq!(
        json["tensors"].as_array().unwrap().len() as u64,
        sum("tensors")
    );
}

#[test]
fn an_input_is_never_replaced_by_what_is_made_of_it() {
    let bench = bench();
    let plan = planned(&bench, SHARD);
    let error = make(&plan, 1, 2, &bench.path("a")).unwrap_err();
    assert!(matches!(error, RunError::OutputIsInput { .. }), "{error}");
}

/// Every step of a join fails once: the parts are as they were, nothing is at OUT, and the next join works.
#[test]
fn every_step_of_a_join_fails_once() {
    let bench = bench_on_disk();
    let plan = planned(&bench, 2000);
    let out = bench.path("out");
    let mut links = 0;
    for number in 0..200 {
        for part in 1..=2 {
            make(&plan, part, 2, &out).unwrap();
        }
        let before = tree(&parts_folder(&out));
        let door = Door::new(move |seen, _, _| (seen == number).then_some(Errno::IO));
        let disk = Disk::watched(Arc::clone(&door) as Arc<dyn Watch>);
        let done = join(&Folder::on(disk, &out, false), None, &Silent);
        let Some((step, path)) = door.seen().get(number).cloned() else {
            done.unwrap();
            assert!(links > 2, "{links} links failed");
            return;
        };
        match done {
            // A file that cannot be linked is copied.
            Ok(_) if step.to_string() == "link" => links += 1,
            Ok(_) => panic!("{step} {} did not fail the join", path.display()),
            Err(error) => {
                assert!(!out.exists(), "{error}");
                assert!(tree(&parts_folder(&out)) == before, "{error}");
                join(&Folder::new(&out, false), None, &Silent).unwrap();
            }
        }
        let whole = tree(&out);
        assert!(whole.is_some_and(|files| files.len() > 4));
        fs::remove_dir_all(&out).unwrap();
    }
    panic!("there is no end to the steps");
}

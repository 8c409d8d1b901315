//! What `weld verify` and `weld attest` make of a checkpoint's folder: its files, its lock, and changes meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use weldment::audit::verify::{Coverage, FolderListing, Numerics, Request, verify as verify_again};
use weldment::checkpoint::{Checkpoint, Location};
use weldment::engine::Observer;
use weldment::errors::Refusal;
use weldment::run::Lock;

use crate::check::good;
use crate::fixtures::{Bench, floats, llama_config, quick_bf16, read_json, rewrite};
use crate::verify::{
    LINEAR, cached, errors, finding, fine_tune, merged, refused, verify, without_lock,
};

const LOCK: &str = "out/weldment.lock.json";

fn edit_lock(bench: &Bench, edit: impl FnOnce(&mut Value)) {
    let path = bench.path(LOCK);
    let mut lock = read_json(&path);
    edit(&mut lock);
    fs::write(path, lock.to_string()).unwrap();
}

fn names(value: &Value) -> Vec<&str> {
    let names = value.as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn a_file_that_loaders_read_and_the_merge_did_not_write_is_found() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "modeling_x.py",
        "custom_generate/generate.py",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "params.json",
        "model.gguf",
        "original/consolidated.00.pth",
        "unet/diffusion_pytorch_model.safetensors",
        "1_Pooling/config.json",
        "hf_quant_config.json",
        "model.safetensors.index.json",
    ] {
        let text = match name.ends_with(".index.json") {
            true => {
                let tensors = fine_tune(1, Dtype::BF16).into_iter();
                let map: BTreeMap<String, &str> = tensors
                    .map(|spec| (spec.name, "model.safetensors"))
                    .collect();
                json!({"metadata": {}, "weight_map": map}).to_string()
            }
            false => "{}".to_owned(),
        };
        bench.file(&format!("out/{name}"), text);
        let report = refused(&bench, &[], &["verify.foreign-file"]);
        assert_eq!(finding(&report, "verify.foreign-file")["file"], name);
        assert_eq!(bench.weld(&["attest", "out"]).code, Some(1), "{name}");
        // The user may know better, and the report says so.
        let (code, report) = verify(&bench, &["--ignore", name]);
        assert_eq!(code, Some(0), "{name} {report:#}");
        assert_eq!(names(&report["details"]["files"]["ignored"]), [name]);
        fs::remove_file(bench.path("out").join(name)).unwrap();
    }
    // What is behind a link to a folder may be anything.
    let elsewhere = bench.file("elsewhere/generate.py", "x");
    let link = bench.path("out/processing");
    std::os::unix::fs::symlink(elsewhere.parent().unwrap(), &link).unwrap();
    let report = refused(&bench, &[], &["verify.foreign-file"]);
    assert_eq!(
        finding(&report, "verify.foreign-file")["file"],
        "processing"
    );
    fs::remove_file(link).unwrap();
    // transformers takes a single file before shards with an index.
    let bench = merged(LINEAR, Dtype::BF16, &["--shard-size", "40kB"]);
    assert_eq!(verify(&bench, &["--full"]).0, Some(0));
    bench.tensors("out/model.safetensors", &fine_tune(9, Dtype::BF16));
    for command in [
        &["verify", "out", "--full"][..],
        &["verify", "out"],
        &["attest", "out"],
        &["check", "out"],
    ] {
        assert_eq!(bench.weld(command).code, Some(1), "{command:?}");
    }
}

#[test]
fn what_is_not_covered_is_named() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    for name in [
        "notes.txt",
        "images/loss.png",
        ".git/x.bin",
        ".cache/huggingface/x.json",
    ] {
        bench.file(&format!("out/{name}"), "x");
    }
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!(code, Some(0), "{report:#}");
    let files = &report["details"]["files"];
    assert_eq!(
        names(&files["not_covered"]),
        ["README.md", "images/loss.png", "notes.txt"]
    );
    assert_eq!(files["of_merge"], 3);
    let line = report["summary"]["files"].as_str().unwrap();
    assert_eq!(
        line,
        "3 are of the merge; not covered: README.md, images/loss.png, notes.txt"
    );
    // What is ignored is judged as far as it is of the merge.
    let (code, _) = verify(&bench, &["--ignore", "model.safetensors"]);
    assert_eq!(code, Some(0));
    rewrite(&bench, |spec| spec.bytes[3] ^= 0x40);
    let (code, _) = verify(&bench, &["--ignore", "model.safetensors"]);
    assert_eq!(code, Some(1));
}

#[test]
fn without_a_lock_another_tool_may_have_written_the_tokenizer_but_no_weights() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    without_lock(&bench);
    let recipe = ["--recipe", "recipe.yml"];
    bench.file("out/special_tokens_map.json", "{}");
    let (code, report) = verify(&bench, &recipe);
    assert_eq!(code, Some(0), "{report:#}");
    let others = &report["details"]["files"]["not_covered"];
    assert!(
        names(others).contains(&"special_tokens_map.json"),
        "{others}"
    );
    for name in [
        "adapter_model.safetensors",
        "modeling_x.py",
        "pytorch_model.bin",
    ] {
        bench.file(&format!("out/{name}"), "x");
        let report = refused(&bench, &recipe, &["verify.foreign-file"]);
        assert_eq!(finding(&report, "verify.foreign-file")["file"], name);
        fs::remove_file(bench.path("out").join(name)).unwrap();
    }
}

/// Changes the `__metadata__` of a file of weights.
fn edit_metadata(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let (header, data) = rest.split_at(length);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    edit(&mut header["__metadata__"]);
    let header = header.to_string();
    let parts = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ];
    fs::write(path, parts.concat()).unwrap();
}

#[test]
fn metadata_of_shards_and_index_is_that_of_the_merge() {
    let bench = merged(LINEAR, Dtype::BF16, &["--shard-size", "40kB"]);
    let out = bench.path("out");
    let shard = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shard = shard
        .into_iter()
        .find(|path| path.ends_with("model-00001-of-00004.safetensors"));
    let shard = shard.expect("four shards");
    let index = out.join("model.safetensors.index.json");
    let (sound_shard, sound_index) = (fs::read(&shard).unwrap(), fs::read(&index).unwrap());
    edit_metadata(&shard, |metadata| metadata["format"] = json!("mlx"));
    let report = refused(&bench, &[], &["verify.metadata"]);
    assert_eq!(finding(&report, "verify.metadata")["found"], "`mlx`");
    fs::write(&shard, &sound_shard).unwrap();
    edit_metadata(&shard, |metadata| metadata["license"] = json!("mit"));
    refused(&bench, &[], &["verify.metadata"]);
    fs::write(&shard, &sound_shard).unwrap();
    let edit_index = |edit: &dyn Fn(&mut Value)| {
        let mut changed: Value = serde_json::from_slice(&sound_index).unwrap();
        edit(&mut changed);
        fs::write(&index, changed.to_string()).unwrap();
    };
    edit_index(&|index| index["metadata"]["author"] = json!("x"));
    refused(&bench, &[], &["verify.metadata"]);
    edit_index(&|index| index["metadata"]["total_size"] = json!(7));
    refused(&bench, &[], &["verify.metadata"]);
    edit_index(&|index| index["auto_map"] = json!({}));
    refused(&bench, &[], &["verify.metadata"]);
    // Another layout of the same text is the same index.
    edit_index(&|_| {});
    assert_eq!(verify(&bench, &["--full"]).0, Some(0));
    fs::remove_file(&index).unwrap();
    let report = refused(&bench, &[], &["verify.file"]);
    assert_eq!(
        finding(&report, "verify.file")["file"],
        "model.safetensors.index.json"
    );
    let checked = bench.weld(&["check", "out"]);
    assert_eq!(checked.code, Some(1));
    assert!(
        checked.stdout.contains("error[index.missing]"),
        "{}",
        checked.stdout
    );

    let bench = merged(LINEAR, Dtype::BF16, &[]);
    let weights = bench.path("out/model.safetensors");
    fs::rename(&weights, bench.path("out/weights.safetensors")).unwrap();
    refused(&bench, &[], &["verify.file"]);
}

#[test]
fn a_lock_that_lacks_entries_is_no_lock() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    bench.file("a/generation_config.json", "{\"max_length\": 20}");
    bench.merge(LINEAR, &[]);
    let sound = fs::read(bench.path(LOCK)).unwrap();
    let incomplete = |what: &str, edit: &dyn Fn(&mut Value)| {
        edit_lock(&bench, edit);
        let report = refused(&bench, &[], &["verify.lock-incomplete"]);
        let summary = &report["summary"];
        let missed = summary["missed"].as_str().unwrap();
        assert!(
            what != "tensors" || !missed.contains("digests cover"),
            "{missed}"
        );
        assert_eq!(bench.weld(&["attest", "out"]).code, Some(1), "{what}");
        fs::write(bench.path(LOCK), &sound).unwrap();
    };
    incomplete("tensors", &|lock| lock["outputs"]["tensors"] = json!({}));
    incomplete("tensors", &|lock| {
        let tensors = lock["outputs"]["tensors"].as_object_mut().unwrap();
        tensors.remove("lm_head.weight").unwrap();
    });
    for file in ["config.json", "generation_config.json"] {
        incomplete("files", &|lock| {
            lock["outputs"]["files"]
                .as_object_mut()
                .unwrap()
                .remove(file)
                .unwrap();
        });
    }
    incomplete("inputs", &|lock| {
        lock["inputs"].as_array_mut().unwrap().pop();
    });
    incomplete("headers", &|lock| {
        lock["inputs"][0]["files"]["model.safetensors"]["header"] = Value::Null;
    });
    edit_lock(&bench, |lock| lock["inputs"][0]["files"] = json!({}));
    refused(&bench, &[], &["verify.input-changed"]);
    // Without inputs the lock alone tells what is there.
    fs::write(bench.path(LOCK), &sound).unwrap();
    fs::rename(bench.path("b"), bench.path("away")).unwrap();
    fs::remove_dir_all(bench.path("no-cache")).unwrap();
    assert_eq!(verify(&bench, &[]).0, Some(3));
    edit_lock(&bench, |lock| lock["outputs"]["tensors"] = json!({}));
    refused(&bench, &[], &["verify.lock-incomplete"]);
    fs::write(bench.path(LOCK), &sound).unwrap();
    bench.file("out/chat_template.jinja", "x");
    refused(&bench, &[], &["verify.foreign-file"]);
}

/// An element that no sample looks at is found by its digest, and nobody claims that where there is none.
#[test]
fn what_a_sample_leaves_out_is_covered_by_digests_only_if_there_are_any() {
    let bench = Bench::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let tensor = quick_bf16("model.layers.0.w", seed, &[1024, 1024]);
        bench.model(name, &llama_config(1), &[tensor]);
    }
    bench.merge(LINEAR, &[]);
    let said = |report: &Value| {
        let text = report["summary"].to_string();
        text.contains("digests cover every byte")
    };
    let sample = ["--samples", "3", "--sample-seed", "1"];
    let (code, report) = verify(&bench, &sample);
    assert_eq!((code, said(&report)), (Some(0), true), "{report:#}");
    rewrite(&bench, |spec| spec.bytes[70_000] ^= 0x40);
    let (code, report) = verify(&bench, &sample);
    assert_eq!(errors(&report), ["verify.lock-output"]);
    assert_eq!(code, Some(1));
    edit_lock(&bench, |lock| lock["outputs"]["tensors"] = json!({}));
    let (code, report) = verify(&bench, &sample);
    assert_eq!((code, said(&report)), (Some(1), false), "{report:#}");
}

#[test]
fn files_beside_the_weights_are_held_to_their_digests() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    let name = "generation_config.json";
    bench.file(&format!("a/{name}"), "{\"max_length\": 20}");
    bench.merge(LINEAR, &[]);
    let attested = bench.weld(&["attest", "out"]);
    assert_eq!(attested.code, Some(0), "{}", attested.stderr);
    let statement: Value = serde_json::from_str(&attested.stdout).unwrap();
    let subjects = statement["subject"].as_array().unwrap();
    assert!(subjects.iter().any(|subject| subject["name"] == name));
    // The input no longer has the file: the lock tells whether it changed, but nothing whether it is right.
    fs::remove_file(bench.path("a").join(name)).unwrap();
    let (code, report) = verify(&bench, &["--full"]);
    assert_eq!(code, Some(3), "{report:#}");
    assert!(report["skipped"][0]["why"].as_str().unwrap().contains(name));
    assert_eq!(bench.weld(&["attest", "out"]).code, Some(3));
    bench.file(&format!("out/{name}"), "{\"max_length\": 21}");
    let report = refused(&bench, &[], &["verify.lock-output"]);
    assert_eq!(finding(&report, "verify.lock-output")["file"], name);
    fs::remove_file(bench.path("out").join(name)).unwrap();
    refused(&bench, &[], &["verify.file"]);
    // A lock cannot vouch for a file that no input gives.
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    bench.file("out/chat_template.jinja", "evil");
    edit_lock(&bench, |lock| {
        lock["outputs"]["files"]["chat_template.jinja"] = blake3::hash(b"evil").to_string().into();
        lock["outputs"]["files"]["../../secret"] = "x".into();
    });
    assert_eq!(verify(&bench, &[]).0, Some(1));
    edit_lock(&bench, |lock| {
        lock["outputs"]["files"]
            .as_object_mut()
            .unwrap()
            .remove("../../secret");
    });
    assert_eq!(verify(&bench, &["--full"]).0, Some(3));
    assert_eq!(bench.weld(&["attest", "out"]).code, Some(3));
}

/// Does something the first time that bytes were read.
struct Meanwhile<F: Fn() + Sync> {
    done: AtomicBool,
    act: F,
}

impl<F: Fn() + Sync> Observer for Meanwhile<F> {
    fn advance(&self, _bytes: u64) {
        if !self.done.swap(true, SeqCst) {
            (self.act)();
        }
    }

    fn cancelled(&self) -> bool {
        false
    }
}

#[test]
fn a_checkpoint_that_changes_meanwhile_has_no_verdict() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    let out = bench.path("out");
    let report = |act: &(dyn Fn() + Sync)| {
        let location = Location::local(&out);
        let folder = FolderListing::look(&location, Vec::new()).unwrap();
        let model = Checkpoint::open("out", &location).unwrap();
        let lock = Lock::read(&out).unwrap();
        let scratch = std::env::temp_dir();
        let request = Request {
            model: &model,
            folder: &folder,
            plan: Err(Refusal::new("not planned")),
            inputs: None,
            lock: lock.as_ref(),
            recipe_of_lock: true,
            coverage: Coverage::Full,
            allow_step: false,
            numerics: Numerics::Weldment,
            part: None,
            threads: 1,
            scratch: &scratch,
        };
        let observer = Meanwhile {
            done: AtomicBool::new(false),
            act,
        };
        let report = verify_again(&request, &observer).unwrap().report;
        let ids = report.findings.iter();
        let ids = ids.map(|found| (found.check.id, found.place.file.clone().unwrap_or_default()));
        ids.collect::<Vec<_>>()
    };
    assert_eq!(report(&|| {}), []);
    let changed = |name: &str| [("verify.changed-meanwhile", name.to_owned())];
    let weights = out.join("model.safetensors");
    let other = bench.tensors("other", &fine_tune(9, Dtype::BF16));
    let sound = fs::read(&weights).unwrap();
    let replace = || fs::rename(&other, &weights).unwrap();
    assert_eq!(report(&replace), changed("model.safetensors"));
    fs::write(&weights, &sound).unwrap();
    // A file of the same length and time, and one that is added.
    let time = fs::metadata(out.join("config.json"))
        .unwrap()
        .modified()
        .unwrap();
    let config = fs::read(out.join("config.json")).unwrap();
    let same_time = || {
        let path = out.join("config.json");
        fs::write(&path, vec![b' '; config.len()]).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    // Its digest tells too, as it was read after that.
    assert!(report(&same_time).contains(&changed("config.json")[0]));
    fs::write(out.join("config.json"), &config).unwrap();
    let add = || fs::write(out.join("chat_template.jinja"), "x").unwrap();
    assert_eq!(report(&add), changed("chat_template.jinja"));
}

#[test]
fn what_the_hubs_cache_claims_is_compared_where_bytes_are_hashed() {
    let bench = Bench::new();
    let commit = "1".repeat(40);
    let recipe = "merge_method: linear\nmodels: [{model: org/x, parameters: {weight: 1}}]\n";
    let specs = fine_tune(1, Dtype::BF16);
    let file = fs::read(bench.tensors("plain", &specs)).unwrap();
    let right: String = Sha256::digest(&file)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let wrong = "a".repeat(64);
    cached(&bench, &commit, &wrong, &specs);
    let message = bench.refused(recipe, &["--hash-inputs"]);
    for part in [
        "model.safetensors of model `org/x`",
        &wrong,
        &right,
        "download it again",
    ] {
        assert!(message.contains(part), "{message}");
    }
    bench.merge(recipe, &[]);
    let claimed = |bench: &Bench| {
        let lock = read_json(&bench.path(LOCK));
        lock["inputs"][0]["files"]["model.safetensors"]["claimed_sha256"].clone()
    };
    assert_eq!(claimed(&bench), wrong.as_str());
    let outcome = bench.weld(&["attest", "out"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&right), "{}", outcome.stderr);
    cached(&bench, &commit, &right, &specs);
    bench.merge(recipe, &["--hash-inputs"]);
    assert_eq!(claimed(&bench), right.as_str());
    assert_eq!(bench.weld(&["attest", "out"]).code, Some(0));
}

#[test]
fn another_arithmetic_is_told_only_where_it_matters() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    edit_lock(&bench, |lock| lock["tool"]["numerics"] = 2.into());
    let ids = |report: &Value| {
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .any(|finding| finding["check"] == "verify.numerics")
    };
    let (code, report) = verify(&bench, &["--full", "--strict"]);
    assert_eq!((code, ids(&report)), (Some(0), false), "{report:#}");
    rewrite(&bench, |spec| spec.bytes[2] ^= 1);
    let (_, report) = verify(&bench, &["--full"]);
    assert!(ids(&report), "{report:#}");
}

#[test]
fn seeds_of_samples_are_kept_exactly_by_every_reader_of_json() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    for _ in 0..3 {
        let (_, report) = verify(&bench, &["--samples", "1"]);
        let seed = report["details"]["sample"]["seed"].as_u64().unwrap();
        assert_eq!(seed as f64 as u64, seed);
    }
}

/// mergekit's arithmetic reads the checkpoint's own tensor too, which takes memory that the plan did not count.
#[test]
fn verification_stays_within_its_memory_or_says_so() {
    let bench = merged(LINEAR, Dtype::BF16, &[]);
    without_lock(&bench);
    rewrite(&bench, |spec| spec.bytes[2] ^= 1);
    let code = |kib: u64| {
        let memory = format!("{kib}KiB");
        let recipe = [
            "verify",
            "out",
            "-q",
            "--recipe",
            "recipe.yml",
            "--threads",
            "8",
        ];
        let numerics = ["--numerics", "mergekit-float32", "--memory", &memory];
        bench.weld(&[&recipe[..], &numerics].concat())
    };
    // The least memory that the plan accepts.
    let (mut low, mut high) = (64, 256 << 10);
    while high - low > 16 {
        let middle = (low + high) / 2;
        match code(middle).code {
            Some(3) => low = middle,
            _ => high = middle,
        }
    }
    let outcome = code(high);
    assert_eq!(outcome.code, Some(2), "{} KiB: {}", high, outcome.stderr);
    assert!(outcome.stderr.contains("--memory"), "{}", outcome.stderr);
    assert_eq!(code(256 << 10).code, Some(1));
}

/// A merge as `out` in which `weld check` finds nothing.
fn sound() -> Bench {
    let bench = good();
    bench.merge(
        "merge_method: linear\nmodels: [{model: m, parameters: {weight: 1}}]\n",
        &[],
    );
    bench
}

#[test]
fn check_looks_at_the_lock() {
    let bench = sound();
    let check = || {
        let outcome = bench.weld(&["check", "out", "--format", "json", "-q"]);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let ids: Vec<Value> = findings.map(|found| found["check"].clone()).collect();
        (outcome.code, ids)
    };
    assert_eq!(check(), (Some(0), vec![]));
    let weights = fs::read(bench.path("out/model.safetensors")).unwrap();
    let mut flipped = weights.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(bench.path("out/model.safetensors"), flipped).unwrap();
    assert_eq!(check(), (Some(1), vec!["lock.changed-tensor".into()]));
    fs::write(bench.path("out/model.safetensors"), &weights).unwrap();
    let config = fs::read(bench.path("out/config.json")).unwrap();
    bench.file("out/config.json", [&config[..], b"\n"].concat());
    assert_eq!(check(), (Some(0), vec!["lock.changed-file".into()]));
    bench.file("out/config.json", &config);
    edit_lock(&bench, |lock| {
        let tensors = lock["outputs"]["tensors"].as_object_mut().unwrap();
        let first = tensors.keys().next().unwrap().clone();
        tensors.remove(&first);
    });
    assert_eq!(check(), (Some(1), vec!["lock.incomplete".into()]));
    bench.file(LOCK, "[");
    assert_eq!(check(), (Some(1), vec!["lock.malformed".into()]));
}

#[test]
fn an_adapter_beside_the_weights_is_not_passed_over() {
    let bench = sound();
    bench.file("out/adapter_config.json", "{}");
    bench.tensors(
        "out/adapter_model.safetensors",
        &[floats("x.lora_A.weight", Dtype::F32, &[1], [1.0])],
    );
    let found = |id: &str| bench.weld(&["check", "out"]).stdout.contains(id);
    assert!(found("warning[container.adapter]"));
    assert_eq!(bench.weld(&["check", "out"]).code, Some(0));
    assert_eq!(bench.weld(&["check", "out", "--strict"]).code, Some(1));
    assert!(errors(&verify(&bench, &[]).1).contains(&"verify.foreign-file".to_owned()));
    // Some models bring an adapter of their own.
    fs::remove_file(bench.path(LOCK)).unwrap();
    let mut config = read_json(&bench.path("out/config.json"));
    config["has_lora_adapter"] = true.into();
    bench.file("out/config.json", config.to_string());
    assert!(found("note[container.adapter]"));
}

#[test]
fn two_chat_templates_that_differ_are_found() {
    let bench = good();
    let found = || {
        bench
            .weld(&["check", "m"])
            .stdout
            .contains("warning[tokenizer.chat-templates-differ]")
    };
    let mut settings = read_json(&bench.path("m/tokenizer_config.json"));
    settings["chat_template"] = "{{ messages }}".into();
    bench.file("m/tokenizer_config.json", settings.to_string());
    assert!(!found());
    bench.file("m/chat_template.jinja", "{{ messages }}\n");
    assert!(!found());
    bench.file("m/chat_template.jinja", "{{ messages }}{{ secret }}");
    assert!(found());
}

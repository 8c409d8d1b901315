//! Merges of models larger than the room for them: weights are fetched while they are used, and dropped.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Bench;

/// Bytes of tensors in a weight file of the models here.
const SHARD: &str = "120KB";

/// Three models, merged with random masks: copies of tensors must get the same ones.
const DARE: &str = "merge_method: dare_ties\nbase_model: acme/base\nmodels:\n- {model: acme/sort, parameters: {weight: \
                    0.6, density: 0.5}}\n- {model: acme/add, parameters: {weight: 0.4, density: 0.5}}\n";

/// A result that two other documents read, so that it is made before them.
const DOCUMENTS: &str = "name: mean\nmerge_method: linear\nmodels:\n- {model: acme/sort, parameters: {weight: 1}}\n- \
                         {model: acme/add, parameters: {weight: 1}}\n---\nname: other\nmerge_method: slerp\nbase_model: \
                         mean\nmodels: [{model: mean}, {model: acme/base}]\nparameters: {t: 0.3}\n---\nmerge_method: linear\nmodels:\n- \
                         {model: mean, parameters: {weight: 1}}\n- {model: other, parameters: {weight: 1}}\n";

/// A threshold over the whole model.
const STITCH: &str = "merge_method: localize_stitch\nbase_model: acme/base\nmodels:\n- {model: acme/sort, parameters: \
                      {weight: 1}}\n- {model: acme/add, parameters: {weight: 1}}\nparameters: {sparsity: 0.2}\n";

/// The first layer comes back at the end.
const BACK: &str = "merge_method: passthrough\nslices:\n- sources: [{model: acme/sort, layer_range: [0, 4]}]\n- sources: \
                    [{model: acme/sort, layer_range: [0, 1]}]\n- sources: [{model: acme/sort, layer_range: [3, 4]}]\n- \
                    sources: [{model: acme/sort, layer_range: [0, 1]}]\n";

impl Bench {
    /// A server whose models have several weight files each.
    fn sharded() -> Bench {
        let bench = Bench::new();
        for model in ["base", "sort", "add"] {
            let folder = bench.path(model);
            let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/family");
            let recipe = format!(
                "merge_method: passthrough\nmodels: [{{model: '{}'}}]\n",
                family.join(model).display()
            );
            fs::write(bench.path("shard.yml"), recipe).unwrap();
            let out = folder.to_str().unwrap();
            let words = ["merge", "shard.yml", out, "--shard-size", SHARD, "-q"];
            bench.weld("none", &words).ok();
            bench.upload_folder(&format!("acme/{model}"), &folder);
            fs::remove_dir_all(folder).unwrap();
        }
        for (name, text) in [
            ("dare.yml", DARE),
            ("documents.yml", DOCUMENTS),
            ("back.yml", BACK),
            ("stitch.yml", STITCH),
        ] {
            fs::write(bench.path(name), text).unwrap();
        }
        bench
    }

    /// How often each weight file was fetched whole since the log was empty, by its digest.
    fn fetched(&self) -> BTreeMap<String, usize> {
        let state = self.server.state();
        let mut times = BTreeMap::new();
        for asked in state.log.iter().filter(|asked| asked.range.is_none()) {
            if let Some(digest) = asked.path.strip_prefix("/cdn/") {
                *times.entry(digest.to_owned()).or_insert(0) += 1;
            }
        }
        times
    }

    /// The number of weight files of all models.
    fn shards(&self) -> usize {
        let state = self.server.state();
        let files = state
            .repos
            .values()
            .flat_map(|repo| &repo.commits.last().unwrap().1);
        files
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .count()
    }
}

/// The files of a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    entries.map(file).collect()
}

/// The bytes that a folder takes on the disk, and the paths in it.
fn room(folder: &Path) -> (u64, Vec<PathBuf>) {
    let mut sum = (0, Vec::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let metadata = entry.path().symlink_metadata().unwrap();
        sum.0 += metadata.blocks() * 512;
        sum.1.push(entry.path());
        if metadata.is_dir() {
            let (bytes, paths) = room(&entry.path());
            sum.0 += bytes;
            sum.1.extend(paths);
        }
    }
    sum
}

/// Whether no weight and no folder of a run is left in a cache.
#[track_caller]
fn assert_clean(cache: &Path) {
    let (_, paths) = room(cache);
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(!name.starts_with(".weldment"), "{}", path.display());
        // Large files are named by their SHA-256, small ones by git's shorter hash.
        let is_weights = path.parent().unwrap().ends_with("blobs") && name.len() >= 64;
        assert!(!is_weights, "{}", path.display());
    }
}

#[test]
fn a_merge_under_a_limit_writes_the_same_and_keeps_nothing() {
    let bench = Bench::sharded();
    for recipe in ["recipe.yml", "dare.yml", "documents.yml", "back.yml"] {
        // Under one name, which the card tells.
        bench.weld("full", &["merge", recipe, "merged", "-q"]).ok();
        let plain = files(&bench.path("merged"));
        fs::remove_dir_all(bench.path("merged")).unwrap();
        bench.server.state().log.clear();
        // What breaks off goes on.
        bench.server.state().faults.cuts = vec![1000, 100_000, 1];
        let words = ["merge", recipe, "merged", "--scratch-limit", "700KB"];
        let ran = bench.weld("scratch", &words);
        assert!(ran.ok().err.contains("to fetch; at least"), "{}", ran.err);
        let limited = files(&bench.path("merged"));
        fs::remove_dir_all(bench.path("merged")).unwrap();
        assert_eq!(
            plain.keys().collect::<Vec<_>>(),
            limited.keys().collect::<Vec<_>>()
        );
        for (name, bytes) in &plain {
            assert!(*bytes == limited[name], "{recipe}: {name}");
        }
        assert_clean(&bench.path("scratch"));
        let times = bench.fetched();
        assert!(times.len() > 4, "{times:?}");
    }
}

#[test]
fn each_file_is_fetched_once_or_it_is_said() {
    let bench = Bench::sharded();
    let words = ["merge", "dare.yml", "once", "--scratch-limit", "700KB"];
    let ran = bench.weld("a", &words);
    let times = bench.fetched();
    assert_eq!(times.len(), bench.shards());
    assert!(times.values().all(|&times| times == 1), "{times:?}");
    assert!(!ran.ok().err.contains("more than once"), "{}", ran.err);
    bench.server.state().log.clear();
    // One file at a time: the first is needed again at the end.
    let plan = bench.weld("a", &["plan", "back.yml", "--scratch-limit", "130KB"]);
    assert!(
        plan.ok().out.contains("come more than once: model-0000"),
        "{}",
        plan.out
    );
    assert_eq!(bench.fetched(), BTreeMap::new());
    let words = ["merge", "back.yml", "twice", "--scratch-limit", "130KB"];
    let ran = bench.weld("a", &words);
    assert!(ran.ok().err.contains("come more than once"), "{}", ran.err);
    assert!(bench.fetched().values().any(|&times| times > 1));
}

#[test]
fn a_limit_that_is_too_small_is_refused_before_anything_comes() {
    let bench = Bench::sharded();
    for command in [&["plan", "dare.yml"][..], &["merge", "dare.yml", "merged"]] {
        let words = [command, &["--scratch-limit", "200KB"]].concat();
        let ran = bench.weld("a", &words);
        ran.fails(1, &["at once (model-0", "more than the limit of 200.0 kB"]);
        assert_eq!(bench.fetched(), BTreeMap::new());
        assert!(!bench.path("merged").exists());
    }
    // What the hint says is enough.
    let words = ["merge", "dare.yml", "merged", "--scratch-limit", "200KB"];
    let ran = bench.weld("a", &words);
    let (_, hint) = ran
        .err
        .split_once("give at least --scratch-limit ")
        .unwrap();
    let size = hint.split_whitespace().next().unwrap();
    let words = ["merge", "dare.yml", "merged", "--scratch-limit", size];
    bench.weld("a", &words).ok();
    let words = [
        "merge",
        "dare.yml",
        "b",
        "--scratch-limit",
        "9MB",
        "--hash-inputs",
    ];
    bench
        .weld("a", &words)
        .fails(1, &["digests of inputs", "--hash-inputs"]);
    assert!(!bench.path("b").exists());
}

#[test]
fn a_look_at_the_whole_model_needs_all_of_it_at_once_and_says_so() {
    let bench = Bench::sharded();
    bench
        .weld("full", &["merge", "stitch.yml", "merged", "-q"])
        .ok();
    let plain = files(&bench.path("merged"));
    fs::remove_dir_all(bench.path("merged")).unwrap();
    bench.server.state().log.clear();
    let words = ["merge", "stitch.yml", "merged", "--scratch-limit", "700KB"];
    let ran = bench.weld("scratch", &words);
    ran.fails(1, &["looks at the whole model", "limit of 700.0 kB"]);
    assert!(!ran.err.contains("`model."), "{}", ran.err);
    assert_eq!(bench.fetched(), BTreeMap::new());
    let hint = ran.err.split_once("give at least --scratch-limit ");
    let size = hint.unwrap().1.split_whitespace().next().unwrap();
    let words = ["merge", "stitch.yml", "merged", "--scratch-limit", size];
    bench.weld("scratch", &words).ok();
    assert!(plain == files(&bench.path("merged")));
    let times = bench.fetched();
    assert_eq!(times.len(), bench.shards());
    assert!(times.values().all(|&times| times == 1), "{times:?}");
    assert_clean(&bench.path("scratch"));
}

#[test]
fn what_the_cache_has_is_used_and_stays() {
    let bench = Bench::sharded();
    bench.weld("cache", &["check", "acme/sort"]).ok();
    let blobs = bench.path("cache/models--acme--sort/blobs");
    let cached = files(&blobs);
    bench.server.state().log.clear();
    let words = ["merge", "recipe.yml", "merged", "--scratch-limit", "400KB"];
    bench.weld("cache", &words).ok();
    let merged = files(&bench.path("merged"));
    fs::remove_dir_all(bench.path("merged")).unwrap();
    let times = bench.fetched();
    assert!(!times.is_empty() && times.keys().all(|digest| !cached.contains_key(digest)));
    assert!(files(&blobs) == cached);
    // Of a model of which some files are there, the others come.
    let one = cached.keys().find(|name| name.len() == 64).unwrap();
    fs::remove_file(blobs.join(one)).unwrap();
    bench.server.state().log.clear();
    let words = ["merge", "recipe.yml", "merged", "--scratch-limit", "400KB"];
    bench.weld("cache", &words).ok();
    assert_eq!(bench.fetched()[one], 1);
    assert!(!blobs.join(one).exists());
    assert!(merged == files(&bench.path("merged")));
}

#[test]
fn a_kill_leaves_nothing_that_grows() {
    let bench = Bench::sharded();
    bench.server.state().faults.slow = Duration::from_millis(300);
    let mut child = Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(["merge", "dare.yml", "merged", "--scratch-limit", "700KB"])
        .current_dir(bench.folder.path())
        .env_clear()
        .env("HF_ENDPOINT", &bench.server.endpoint)
        .env("HF_HUB_CACHE", bench.path("cache"))
        .env("HF_HOME", bench.path("home"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while bench.fetched().len() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (bytes, _) = room(&bench.path("cache"));
    assert!(bytes < 500_000, "{bytes} bytes are left");
    assert!(!bench.path("merged").exists());
    bench.server.state().faults.slow = Duration::ZERO;
    let words = ["merge", "dare.yml", "merged", "--scratch-limit", "700KB"];
    bench.weld("cache", &words).ok();
    assert_clean(&bench.path("cache"));
}

#[test]
fn what_is_wrong_with_a_file_ends_the_merge() {
    let bench = Bench::sharded();
    bench.server.state().faults.corrupts = true;
    let words = ["merge", "recipe.yml", "merged", "--scratch-limit", "400KB"];
    let ran = bench.weld("a", &words);
    ran.fails(2, &["as the Hub lists it", "never uploaded"]);
    assert!(!bench.path("merged").exists());
    assert_clean(&bench.path("a"));
    let plan = bench.weld("b", &["plan", "recipe.yml", "--format", "json"]);
    let plan: Value = serde_json::from_str(&plan.ok().out).unwrap();
    let notes = plan["notes"].to_string();
    assert!(notes.contains("a merge fetches"), "{notes}");
}

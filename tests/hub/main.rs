//! `weld` and a server of the Hub's protocol: models come by their ids, the result goes back, and is verified from there.
//!
//! `cargo test --features hub --test hub` runs these; weld is built with the feature.

#[path = "../../src/hub/tests/server.rs"]
mod server;

mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;
use server::{Server, TOKEN};
use tempfile::TempDir;

const RECIPE: &str = "merge_method: linear\nmodels:\n- {model: acme/sort, parameters: {weight: 0.6}}\n- {model: \
                      acme/add, parameters: {weight: 0.4}}\n";

/// A server with two models, and a folder to work in.
struct Bench {
    server: Server,
    folder: TempDir,
}

/// What a command printed, and its exit code.
struct Ran {
    out: String,
    err: String,
    code: i32,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            server: Server::start(0),
            folder: tempfile::tempdir().unwrap(),
        };
        bench.upload("acme/sort", "sort");
        bench.upload("acme/add", "add");
        fs::write(bench.path("recipe.yml"), RECIPE).unwrap();
        bench
    }

    /// Puts a model of the family on the server.
    fn upload(&self, repo: &str, model: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("recipes/family")
            .join(model);
        self.upload_folder(repo, &folder)
    }

    /// Puts the files of a folder on the server. Returns the commit.
    fn upload_folder(&self, repo: &str, folder: &Path) -> String {
        let files: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    fs::read(entry.path()).unwrap(),
                )
            })
            .collect();
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        self.server.state().commit(repo, &files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn weld(&self, cache: &str, words: &[&str]) -> Ran {
        self.weld_with(cache, words, &[])
    }

    fn weld_with(&self, cache: &str, words: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = Command::cargo_bin("weld").unwrap();
        command
            .args(words)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HF_ENDPOINT", &self.server.endpoint)
            .env("HF_HOME", self.path("home"))
            .env("HF_HUB_CACHE", self.path(cache))
            .env("XDG_CACHE_HOME", self.path("records"))
            .envs(variables.iter().copied());
        let output = command.output().unwrap();
        Ran {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().unwrap(),
        }
    }

    fn asked(&self, part: &str) -> usize {
        let state = self.server.state();
        state
            .log
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

impl Ran {
    fn ok(&self) -> &Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "{part:?} in {}", self.err);
        }
    }
}

#[test]
fn models_come_by_their_ids_and_the_result_is_verified_from_the_hub() {
    let bench = Bench::new();
    bench.server.state().faults.cuts = vec![100, 70_000, 1, 30_000];
    bench.weld("cache", &["merge", "recipe.yml", "merged"]).ok();
    let lock: Value =
        serde_json::from_slice(&fs::read(bench.path("merged/weldment.lock.json")).unwrap())
            .unwrap();
    let commit = bench.server.state().repos["acme/sort"].commits[0].0.clone();
    assert_eq!(lock["inputs"][0]["hub"]["repo"], "acme/sort");
    assert_eq!(lock["inputs"][0]["hub"]["commit"], commit.as_str());
    // What is there is not fetched again, and needs no network.
    let before = bench.server.state().log.len();
    bench.weld("cache", &["merge", "recipe.yml", "again"]).ok();
    assert_eq!(bench.server.state().log.len(), before);
    let [one, two] =
        ["merged", "again"].map(|out| fs::read(bench.path(out).join("model.safetensors")).unwrap());
    assert!(one == two);

    let token = [("HF_TOKEN", TOKEN)];
    let pushed = bench.weld_with("cache", &["push", "merged", "acme/merged"], &token);
    let commit = bench.server.state().repos["acme/merged"].commits[0]
        .0
        .clone();
    let expected = format!("{}/acme/merged at {commit}", bench.server.endpoint);
    assert_eq!(pushed.ok().out.trim(), expected);
    assert!(bench.server.state().repos["acme/merged"].private);
    let files = bench.server.state().repos["acme/merged"].commits[0]
        .1
        .clone();
    for name in [
        "README.md",
        "weldment.lock.json",
        "model.safetensors",
        "config.json",
    ] {
        assert!(files.contains_key(name), "{name}");
    }

    // The inputs go on, and the lock's commits are what counts. Nothing but the Hub is there.
    bench.upload("acme/sort", "add");
    fs::remove_dir_all(bench.path("merged")).unwrap();
    fs::remove_dir_all(bench.path("records")).unwrap();
    fs::remove_file(bench.path("recipe.yml")).unwrap();
    let verified = bench.weld_with("elsewhere", &["verify", "acme/merged", "--full"], &token);
    assert!(
        verified.ok().out.contains("the Hub's cache"),
        "{}",
        verified.out
    );
    // A changed weight there is found.
    let mut files = files;
    files
        .get_mut("model.safetensors")
        .unwrap()
        .last_mut()
        .map(|byte| *byte ^= 1)
        .unwrap();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    bench.server.state().commit("acme/merged", &files);
    let verified = bench.weld_with("third", &["verify", "acme/merged"], &token);
    assert_eq!(verified.code, 1, "{}{}", verified.out, verified.err);
}

#[test]
fn a_plan_downloads_no_weight() {
    let bench = Bench::new();
    let plan = bench.weld("cache", &["plan", "recipe.yml", "--format", "json"]);
    let by_headers: Value = serde_json::from_str(&plan.ok().out).unwrap();
    let weights: Vec<PathBuf> = ["sort", "add"]
        .map(|model| bench.path(&format!("cache/models--acme--{model}/blobs")))
        .iter()
        .flat_map(|blobs| fs::read_dir(blobs).unwrap())
        .map(|blob| blob.unwrap().path())
        .filter(|blob| fs::metadata(blob).unwrap().len() > 60_000)
        .collect();
    let large = |path: &PathBuf| path.file_name().unwrap().len() == 64;
    assert!(!weights.iter().any(large), "{weights:?}");
    bench.weld("cache", &["merge", "recipe.yml", "merged"]).ok();
    let plan = bench.weld(
        "cache",
        &["plan", "recipe.yml", "--format", "json", "--offline"],
    );
    let by_files: Value = serde_json::from_str(&plan.ok().out).unwrap();
    assert_eq!(by_headers["tensors"], by_files["tensors"]);
    let listed = bench.weld("other", &["inspect", "acme/add"]);
    assert!(listed.ok().out.contains("tensors"), "{}", listed.out);
}

#[test]
fn every_command_fetches_what_it_reads() {
    let bench = Bench::new();
    fs::write(
        bench.path("tasks.jsonl"),
        "{\"prompt\": \"ab\", \"answer\": \"c\"}\n",
    )
    .unwrap();
    let mixture = "base_model: acme/sort\ngate_mode: random\nexperts: [{source_model: acme/sort}, {source_model: acme/add}]\n";
    fs::write(bench.path("moe.yml"), mixture).unwrap();
    let commands: [&[&str]; 10] = [
        &["check", "acme/sort"],
        &["eval", "acme/sort", "--tasks", "tasks.jsonl"],
        &["eval", "recipe.yml", "--tasks", "tasks.jsonl"],
        &[
            "stats",
            "acme/sort",
            "--data",
            "tasks.jsonl",
            "--out",
            "stats.safetensors",
        ],
        &["analyse", "acme/add", "--base", "acme/sort"],
        &[
            "extract-lora",
            "acme/sort",
            "acme/add",
            "adapter",
            "--rank",
            "2",
        ],
        &["transplant", "acme/sort", "acme/add", "transplanted"],
        &[
            "export",
            "gguf",
            "acme/sort",
            "sort.gguf",
            "--pre-tokenizer",
            "llama-bpe",
        ],
        &["moe", "moe.yml", "mixture"],
        &["verify", "adapter"],
    ];
    for (place, words) in commands.iter().enumerate() {
        bench.weld(&format!("cache-{place}"), words).ok();
    }
    let diff = bench.weld("b", &["diff", "acme/sort", "acme/add"]);
    assert_eq!(diff.code, 1, "{}", diff.err);
    let unknown = "acme/sort@0000000000000000000000000000000000000000";
    let inspect = bench.weld("c", &["inspect", unknown]);
    inspect.fails(2, &["no revision", "/acme/sort/commits"]);
}

#[test]
fn what_is_not_there_is_told_in_terms_of_the_hub() {
    let bench = Bench::new();
    bench.weld("cache", &["check", "acme/sort"]).ok();
    let missing = bench.weld("cache", &["check", "acme/sotr"]);
    missing.fails(2, &["`acme/sotr`", "did you mean `acme/sort`"]);
    bench
        .server
        .state()
        .repos
        .get_mut("acme/add")
        .unwrap()
        .gated = true;
    let gated = bench.weld("cache", &["merge", "recipe.yml", "merged"]);
    gated.fails(2, &["recipe.yml", "acme/add", "accept its terms at http"]);
    assert!(!bench.path("merged").exists());
    for (words, variables) in [
        (&["check", "acme/add", "--offline"][..], &[][..]),
        (&["check", "acme/add"], &[("HF_HUB_OFFLINE", "1")]),
    ] {
        let offline = bench.weld_with("cache", words, variables);
        offline.fails(
            2,
            &["the network is not to be used", "hf download acme/add"],
        );
    }
    assert_eq!(bench.asked("acme/add"), 1);
    let nowhere = bench.weld_with(
        "cache",
        &["check", "acme/add"],
        &[("HF_ENDPOINT", "nonsense")],
    );
    nowhere.fails(2, &["not an address of a Hub", "HF_ENDPOINT"]);
    bench.server.state().faults.lists_names = vec!["\u{1b}[2J/../x".into()];
    bench
        .server
        .state()
        .repos
        .get_mut("acme/add")
        .unwrap()
        .gated = false;
    let evil = bench.weld("cache", &["check", "acme/add"]);
    evil.fails(2, &["would lead out of its folder"]);
    assert!(!evil.err.contains('\u{1b}'), "{}", evil.err);
}

#[test]
fn a_cache_that_lacks_something_is_completed_and_serves_without_a_network() {
    let bench = Bench::new();
    bench.weld("cache", &["check", "acme/sort"]).ok();
    let snapshots = bench.path("cache/models--acme--sort/snapshots");
    let snapshot = fs::read_dir(snapshots)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let weights = fs::canonicalize(snapshot.join("model.safetensors")).unwrap();
    fs::remove_file(&weights).unwrap();
    bench.weld("cache", &["check", "acme/sort"]).ok();
    assert!(weights.exists());
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    bench.weld("cache", &["check", "acme/sort"]).ok();
    assert!(snapshot.join("tokenizer.json").exists());
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let unreachable = [
        ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ("HF_HUB_OFFLINE", "TRUE"),
    ];
    bench
        .weld_with("cache", &["diff", "acme/sort", "acme/sort"], &unreachable)
        .ok();
}

#[test]
fn a_push_says_what_it_does_and_refuses_what_is_broken() {
    let bench = Bench::new();
    bench.weld("cache", &["merge", "recipe.yml", "merged"]).ok();
    let token = [("HF_TOKEN", TOKEN)];
    let dry = bench.weld_with("cache", &["push", "merged", "acme/m", "--dry-run"], &token);
    for part in [
        "acme/m: a new repository that is private",
        "weldment.lock.json",
        "model.safetensors",
    ] {
        assert!(dry.ok().out.contains(part), "{}", dry.out);
    }
    assert!(!bench.server.state().repos.contains_key("acme/m"));
    let nobody = bench.weld("cache", &["push", "merged", "acme/m"]);
    nobody.fails(2, &["hf auth login"]);
    let wrong = bench.weld_with("cache", &["push", "merged", "m"], &token);
    wrong.fails(2, &["expected a repository as `org/name`"]);
    let config = bench.path("merged/config.json");
    let broken = fs::read_to_string(&config)
        .unwrap()
        .replace("\"num_hidden_layers\": ", "\"num_hidden_layers\": 9");
    fs::write(&config, broken).unwrap();
    let refused = bench.weld_with("cache", &["push", "merged", "acme/m"], &token);
    refused.fails(1, &["has defects, so it was not pushed", "--no-check"]);
    assert!(!bench.server.state().repos.contains_key("acme/m"));
    bench
        .weld_with(
            "cache",
            &["push", "merged", "acme/m", "--no-check", "--public", "-q"],
            &token,
        )
        .ok();
    assert!(!bench.server.state().repos["acme/m"].private);
    let exists = bench.weld_with("cache", &["push", "merged", "acme/m", "--no-check"], &token);
    exists.fails(1, &["everyone can see it", "--public"]);
}

//! What people see: help, lists, references, errors of the command line.

use std::path::Path;
use std::process::{Command, Stdio};

use safetensors::Dtype;
use serde_json::Value;

use crate::fixtures::{Bench, Spec, integers, recipes};

#[test]
fn the_reference_of_methods_is_up_to_date() {
    let page = Bench::new()
        .weld(&["methods", "--format", "markdown"])
        .stdout;
    let committed =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md"))
            .unwrap();
    assert!(
        page == committed,
        "run `cargo run -- methods --format markdown > docs/methods.md`"
    );
}

#[test]
fn methods_are_listed_and_explained() {
    let bench = Bench::new();
    let list = bench.weld(&["methods"]).stdout;
    assert_eq!(list.lines().count(), weldment::methods::all().len());
    for method in weldment::methods::all() {
        let info = method.info();
        let page = bench.weld(&["methods", info.name]);
        assert_eq!(page.code, Some(0));
        for param in info.params {
            assert!(
                page.stdout.contains(param.name) && page.stdout.contains(param.doc),
                "{}",
                info.name
            );
        }
    }
    let all: Value =
        serde_json::from_str(&bench.weld(&["methods", "--format", "json"]).stdout).unwrap();
    assert_eq!(
        all.as_array().unwrap().len(),
        weldment::methods::all().len()
    );
    let unknown = bench.weld(&["methods", "tise"]);
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("did you mean `ties`?"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn help_and_completions_name_every_command() {
    let bench = Bench::new();
    let help = bench.weld(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    let completions = bench.weld(&["completions", "bash"]).stdout;
    for command in ["merge", "plan", "inspect", "methods", "completions"] {
        assert!(help.stdout.contains(command));
        assert!(completions.contains(command));
        assert_eq!(bench.weld(&[command, "--help"]).code, Some(0));
    }
}

#[test]
fn help_has_groups_examples_and_a_page_and_fits() {
    let bench = Bench::new();
    for width in ["60", "80", "120"] {
        let help = |words: &[&str]| {
            let output = bench.process(words).env("COLUMNS", width).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let all = help(&["--help"]);
        for part in [
            "Make a model:",
            "Find out more:",
            "Examples:",
            "Exit codes: 0",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        let merge = help(&["merge", "-h"]);
        for part in [
            "\nOutput:\n",
            "\nResources:\n",
            "\nGGUF file:\n",
            "Docs: docs/recipes.md",
        ] {
            assert!(merge.contains(part), "{part}: {merge}");
        }
        let commands = [
            "new", "plan", "merge", "moe", "export", "inspect", "check", "diff", "verify",
            "attest", "sign", "methods", "explain",
        ];
        let pages = commands.map(|command| help(&[command, "-h"]));
        let most: usize = width.parse::<usize>().unwrap().min(100);
        for page in pages.iter().chain([&all]) {
            // What is to be copied is not broken.
            let text = page.lines().filter(|line| !line.starts_with("  weld "));
            for line in text.filter(|line| !line.starts_with("Usage:")) {
                assert!(line.chars().count() <= most, "{width}: {line}");
            }
        }
    }
}

#[test]
fn findings_methods_and_runtimes_are_explained() {
    let bench = Bench::new();
    for check in weldment::audit::all_checks() {
        let page = bench.weld(&["explain", check.id]);
        assert_eq!(page.code, Some(0), "{}", check.id);
        for part in [check.title, check.why, check.remedy, "found by weld "] {
            assert!(page.stdout.contains(part), "{}: {}", check.id, page.stdout);
        }
    }
    let page = bench
        .weld(&["explain", "error[container.truncated]: A file ends"])
        .stdout;
    assert!(page.contains("example  bytes cut off the end\n"), "{page}");
    assert!(page.contains("found by weld check MODEL\n"), "{page}");
    assert_eq!(
        bench.weld(&["explain", "ties"]).stdout,
        bench.weld(&["methods", "ties"]).stdout
    );
    let runtime = bench.weld(&["explain", "llama.cpp"]).stdout;
    assert!(runtime.contains("--for llama.cpp"), "{runtime}");
    let group = bench.weld(&["explain", "tokenizer"]).stdout;
    assert!(group.contains("tokenizer.malformed  "), "{group}");
    assert!(!group.contains("config."), "{group}");
    let all = bench.weld(&["explain", "--format", "json"]).stdout;
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(
        all.as_array().unwrap().len(),
        weldment::audit::all_checks().count()
    );
    for (wrong, near) in [
        ("container.trunkated", "container.truncated"),
        ("tise", "ties"),
    ] {
        let unknown = bench.weld(&["explain", wrong]);
        assert_eq!(unknown.code, Some(1));
        let hint = format!("did you mean `{near}`?");
        assert!(unknown.stderr.contains(&hint), "{}", unknown.stderr);
    }
}

#[test]
fn a_plan_is_a_page_without_scripts() {
    for recipe in recipes() {
        let bench = Bench::of_shipped();
        let name = recipe.display().to_string();
        let page = bench.weld(&["plan", &name, "--format", "html"]);
        assert_eq!(page.code, Some(0), "{name}: {}", page.stderr);
        let json = bench.weld(&["plan", &name, "--format", "json"]).stdout;
        let json: Value = serde_json::from_str(&json).unwrap();
        // A name may be broken after each dot.
        let text = page.stdout.replace("<wbr>", "");
        for model in json["models"].as_array().unwrap() {
            let model = model["model"].as_str().unwrap().replace('/', "&#x2f;");
            assert!(text.contains(&model), "{name}: {model}");
        }
        for bad in ["<script", "src=", "href=", "@import", "url("] {
            assert!(!text.contains(bad), "{name}: {bad}");
        }
        let tensors: u64 = text
            .split("<td><b>")
            .skip(1)
            .map(|row| row.split('<').next().unwrap().parse::<u64>().unwrap())
            .sum();
        let of_results = json["results"].as_array().unwrap().len();
        if of_results == 0 {
            assert_eq!(
                tensors,
                json["tensors"].as_array().unwrap().len() as u64,
                "{name}"
            );
        }
    }
}

#[test]
fn wrong_arguments_exit_with_2() {
    let bench = Bench::new();
    for arguments in [
        &["merge"] as &[&str],
        &["merge", "r.yml", "out", "--frce"],
        &["merge", "r.yml", "out", "--memory", "lots"],
        &["merge", "r.yml", "out", "--threads", "0"],
        &["frobnicate"],
    ] {
        let outcome = bench.weld(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments:?}");
        assert!(outcome.stderr.contains("error"), "{arguments:?}");
        assert!(outcome.stdout.is_empty());
    }
}

#[test]
fn what_is_not_there_is_exit_code_2_in_all_commands() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.recipe("merge_method: linear\nmodels:\n- {model: gone, parameters: {weight: 1}}\n");
    bench.file(
        "lora.yml",
        "merge_method: passthrough\nmodels:\n- model: a+gone\n",
    );
    bench.file(
        "moe.yml",
        "base_model: a\ngate_mode: random\nexperts:\n- source_model: gone\n- source_model: a\n",
    );
    bench.file("wrong.yml", "merge_method: linear\nmodels: 1\n");
    for words in [
        &["plan", "gone.yml"] as &[&str],
        &["plan", "recipe.yml"],
        &["plan", "moe.yml"],
        &["merge", "gone.yml", "out"],
        &["merge", "recipe.yml", "out"],
        &["merge", "lora.yml", "out"],
        &["moe", "gone.yml", "out"],
        &["moe", "moe.yml", "out"],
        &["inspect", "gone"],
        &["inspect", "a+gone"],
        &["check", "gone"],
        &["diff", "a", "gone"],
        &["verify", "gone"],
        &["attest", "gone"],
        &["sign", "gone", "--key", "gone.pem"],
    ] {
        let outcome = bench.weld(words);
        assert_eq!(outcome.code, Some(2), "{words:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("gone"),
            "{words:?}: {}",
            outcome.stderr
        );
    }
    // What is there and wrong is another thing.
    for words in [
        &["plan", "wrong.yml"] as &[&str],
        &["merge", "wrong.yml", "out"],
        &["moe", "wrong.yml", "out"],
    ] {
        assert_eq!(bench.weld(words).code, Some(1), "{words:?}");
    }
    bench.file("broken/model.safetensors", "");
    assert_eq!(bench.weld(&["inspect", "broken"]).code, Some(1));
}

#[test]
fn a_misspelt_model_is_answered_with_the_nearest() {
    let bench = Bench::new();
    bench.llama("models/llama-base", 1, Dtype::F32);
    bench.llama("recipes/family/cipher", 2, Dtype::F32);
    bench.hub_model(
        "org/some-model",
        "main",
        &"0".repeat(40),
        &[integers("x", &[1])],
    );
    bench.file(
        "recipes/r.yml",
        "merge_method: passthrough\nmodels:\n- model: family/cihper\n",
    );
    for (words, near) in [
        (
            &["check", "models/lama-base"] as &[&str],
            "`models/llama-base`?",
        ),
        (&["inspect", "model/llama-base"], "`models/llama-base`?"),
        (
            &["diff", "models/llama-base", "./models/lamma-base"],
            "`./models/llama-base`?",
        ),
        (
            &["inspect", "org/some-modle"],
            "`org/some-model`, which is in the Hub's cache?",
        ),
        (&["plan", "recipes/r.yml"], "`family/cipher`?"),
        (&["plan", "recipe/r.yaml"], "`recipes/r.yml`?"),
    ] {
        let outcome = bench.weld(words);
        assert_eq!(outcome.code, Some(2), "{words:?}");
        let hint = format!("did you mean {near}");
        assert!(
            outcome.stderr.contains(&hint),
            "{words:?}: {}",
            outcome.stderr
        );
    }
    let far = bench.weld(&["inspect", "something/else"]).stderr;
    assert!(!far.contains("did you mean"), "{far}");
}

#[test]
fn numbers_that_are_none_are_refused_with_what_is_expected() {
    let bench = Bench::new();
    for (words, expected) in [
        (
            &["plan", "r.yml", "--seed", "random"] as &[&str],
            "from 0 to 18446744073709551615",
        ),
        (
            &["plan", "r.yml", "--seed", "-1"],
            "from 0 to 18446744073709551615",
        ),
        (
            &["plan", "r.yml", "--random-seed", "-1"],
            "from 0 to 18446744073709551615",
        ),
        (
            &["verify", "m", "--sample-seed", "x"],
            "from 0 to 18446744073709551615",
        ),
        (&["check", "m", "--threads", "many"], "from 1 to 1024"),
        (&["merge", "r.yml", "out", "-j", "0"], "from 1 to 1024"),
    ] {
        let outcome = bench.weld(words);
        assert_eq!(outcome.code, Some(2), "{words:?}");
        let expected = format!("expected a whole number {expected}");
        assert!(
            outcome.stderr.contains(&expected),
            "{words:?}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn files_of_checkpoints_are_told_from_recipes() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.merge("merge_method: passthrough\nmodels:\n- model: a\n", &[]);
    bench.file(
        "index.json",
        r#"{"metadata": {"total_size": 1}, "weight_map": {"x": "y"}}"#,
    );
    bench.file("adapter.json", r#"{"peft_type": "LORA", "r": 8}"#);
    for (file, what) in [
        ("a/config.json", "a model's config.json, not a recipe"),
        ("index.json", "the index of a model's weights, not a recipe"),
        ("adapter.json", "an adapter's config, not a recipe"),
        (
            "out/weldment.lock.json",
            "the lock of a merge, not a recipe",
        ),
    ] {
        let outcome = bench.weld(&["plan", file]);
        assert_eq!(outcome.code, Some(1), "{file}");
        assert!(outcome.stderr.contains(what), "{file}: {}", outcome.stderr);
        assert_eq!(
            outcome.stderr.matches("error").count(),
            1,
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.lines().count() < 6, "{}", outcome.stderr);
    }
}

#[test]
fn completions_know_methods_and_formats() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = bench.weld(&["completions", shell]).stdout;
        for word in [
            "task_arithmetic",
            "breadcrumbs_ties",
            "junit",
            "sarif",
            "llama.cpp",
            "container.truncated",
            "bfloat16",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

/// Every option of mergekit-yaml and mergekit-moe (0.1.5), with a value where it takes one.
const MERGEKIT: &[&[&str]] = &[
    &["--allow-crimes"],
    &["--no-allow-crimes"],
    &["--transformers-cache", "cache"],
    &["--lora-merge-cache", "cache"],
    &["--lora-merge-dtype", "float16"],
    &["--cuda"],
    &["--no-cuda"],
    &["--device", "cuda:0"],
    &["--low-cpu-memory"],
    &["--no-low-cpu-memory"],
    &["--out-shard-size", "5B"],
    &["--copy-tokenizer"],
    &["--no-copy-tokenizer"],
    &["--clone-tensors"],
    &["--no-clone-tensors"],
    &["--trust-remote-code"],
    &["--no-trust-remote-code"],
    &["--random-seed", "7"],
    &["--lazy-unpickle"],
    &["--no-lazy-unpickle"],
    &["--write-model-card"],
    &["--no-write-model-card"],
    &["--safe-serialization"],
    &["--no-safe-serialization"],
    &["-v"],
    &["-vv"],
    &["--verbose"],
    &["--no-quiet"],
    &["--read-to-gpu"],
    &["--no-read-to-gpu"],
    &["--multi-gpu"],
    &["--no-multi-gpu"],
    &["--num-threads", "2"],
    &["-j", "2"],
    &["--gpu-rich"],
    &["--async-write"],
    &["--no-async-write"],
    &["--write-threads", "2"],
    &["--intermediate-dir", "between"],
    &["-I", "between"],
    &["--lazy"],
    &["--no-lazy"],
    &["--load-in-4bit"],
    &["--load-in-8bit"],
    &["--i-understand-this-is-not-useful-without-training"],
];

/// Those that ask for what weld does not do.
const REFUSED: [&str; 4] = [
    "--transformers-cache",
    "--no-copy-tokenizer",
    "--no-write-model-card",
    "--no-safe-serialization",
];

#[test]
fn the_options_of_mergekit_are_known_and_explained() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.recipe("merge_method: passthrough\nmodels:\n- model: a\n");
    bench.weld(&["merge", "recipe.yml", "plain", "-q"]);
    let plain = std::fs::read(bench.path("plain/model.safetensors")).unwrap();
    for option in MERGEKIT {
        let words = [&["merge", "recipe.yml", "out", "--force"], *option].concat();
        let outcome = bench.weld(&words);
        let told: Vec<&str> = (outcome.stderr.lines())
            .filter(|line| line.contains("mergekit"))
            .collect();
        assert_eq!(told.len(), 1, "{option:?}: {}", outcome.stderr);
        if REFUSED.contains(&option[0]) {
            assert_eq!(outcome.code, Some(2), "{option:?}");
            assert!(told[0].starts_with("error: --"), "{}", outcome.stderr);
            assert!(!bench.path("out").exists());
            continue;
        }
        assert_eq!(outcome.code, Some(0), "{option:?}: {}", outcome.stderr);
        assert!(told[0].starts_with("note: --"), "{}", outcome.stderr);
        let out = std::fs::read(bench.path("out/model.safetensors")).unwrap();
        assert!(out == plain, "{option:?}");
        std::fs::remove_dir_all(bench.path("out")).unwrap();
        // `plan` and `moe` know them too. This recipe is none of `moe`'s.
        let plan = bench.weld(&[&["plan", "recipe.yml"], *option].concat());
        assert_eq!(plan.code, Some(0), "{option:?}: {}", plan.stderr);
        let moe = bench.weld(&[&["moe", "recipe.yml", "moe"], *option].concat());
        assert_eq!(moe.code, Some(1), "{option:?}: {}", moe.stderr);
    }
    for command in ["merge", "moe", "plan"] {
        let help = bench.weld(&[command, "--help"]).stdout;
        for option in MERGEKIT.iter().filter(|option| option[0].len() > 3) {
            assert!(
                !help.contains(option[0]),
                "{command} --help shows {option:?}"
            );
        }
    }
}

#[test]
fn what_mergekit_calls_otherwise_does_the_same() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::F32);
    bench.llama("b", 2, Dtype::F32);
    bench.recipe("merge_method: dare_linear\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 1, density: 0.5}}\n");
    let merged = |more: &[&str]| {
        let outcome =
            bench.weld(&[&["merge", "recipe.yml", "out", "--force", "-q"], more].concat());
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(0), ""),
            "{more:?}"
        );
        let files = std::fs::read_dir(bench.path("out")).unwrap();
        let mut files: Vec<_> = (files.map(|entry| entry.unwrap().path()))
            .filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"))
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        files.sort();
        files
    };
    assert!(merged(&["--random-seed", "7"]) == merged(&["--seed", "7"]));
    assert!(merged(&["--random-seed", "7"]) != merged(&["--seed", "8"]));
    assert_eq!(merged(&["--shard-size", "5B"]).len(), 1);
    assert!(merged(&["--out-shard-size", "1K"]).len() > 1);
    for both in [
        ["--seed", "1", "--random-seed", "1"],
        ["--shard-size", "1GB", "--out-shard-size", "1B"],
        ["--threads", "1", "-j", "1"],
    ] {
        let words = [&["plan", "recipe.yml"], &both[..]].concat();
        assert_eq!(bench.weld(&words).code, Some(2), "{both:?}");
    }
}

#[test]
fn inspect_lists_layers_together_or_each() {
    let bench = Bench::new();
    bench.llama("a", 1, Dtype::BF16);
    let text = bench.weld(&["inspect", "a"]).stdout;
    assert!(text.contains("llama (LlamaForCausalLM)"), "{text}");
    assert!(text.contains("11 tensors, 792 parameters"), "{text}");
    assert!(
        text.contains("model.layers.{0..1}.mlp.up_proj.weight"),
        "{text}"
    );
    let all = bench.weld(&["inspect", "a", "--all"]).stdout;
    assert!(all.contains("model.layers.1.mlp.up_proj.weight"), "{all}");
    let json: Value = serde_json::from_str(
        &bench
            .weld(&["inspect", "a/model.safetensors", "--format", "json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 11);
    assert_eq!(json["parameters"], 792);
    let missing = bench.weld(&["inspect", "nowhere"]);
    assert_eq!(missing.code, Some(2));
    assert!(
        missing.stderr.contains("`nowhere` not found"),
        "{}",
        missing.stderr
    );
}

#[test]
fn inspect_lists_what_no_merge_can_read() {
    let bench = Bench::new();
    for (dtype, bits) in [
        (Dtype::F4, 4),
        (Dtype::F6_E2M3, 6),
        (Dtype::F6_E3M2, 6),
        (Dtype::F8_E8M0, 8),
        (Dtype::F8_E4M3FNUZ, 8),
        (Dtype::F8_E5M2FNUZ, 8),
    ] {
        let spec = Spec {
            name: "layer.weight".into(),
            dtype,
            shape: vec![8, 8],
            bytes: vec![0; 8 * bits],
        };
        bench.tensors("m.safetensors", &[spec]);
        let listed = bench.weld(&["inspect", "m.safetensors"]);
        assert_eq!(listed.code, Some(0), "{dtype:?}: {}", listed.stderr);
        let row = format!("layer.weight  {dtype:?}");
        assert!(listed.stdout.contains(&row), "{}", listed.stdout);
        assert!(listed.stdout.contains("quantised"), "{}", listed.stdout);
        assert!(
            listed.stdout.contains("1 tensors, 64 parameters"),
            "{}",
            listed.stdout
        );
    }
    // The same for what only its names or its config tell.
    bench.tensors(
        "gptq/model.safetensors",
        &[integers("layer.qweight", &[1, 2])],
    );
    let json = bench.weld(&["inspect", "gptq", "--format", "json"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["tensors"][0]["name"], "layer.qweight");
    assert!(
        json["notes"][0].as_str().unwrap().contains("quantised"),
        "{json}"
    );
    assert_eq!(bench.weld(&["diff", "gptq", "gptq"]).code, Some(2));
}

#[test]
fn a_text_is_not_taken_for_weights() {
    let bench = Bench::new();
    bench.recipe("merge_method: linear\nmodels: []\n");
    bench.file("config.json", "{\n  \"model_type\": \"llama\"}");
    for file in ["recipe.yml", "config.json"] {
        for command in ["check", "inspect"] {
            let outcome = bench.weld(&[command, file]);
            let told = outcome.stdout + &outcome.stderr;
            assert!(told.contains("a text file"), "{command} {file}: {told}");
            // Not the text's first bytes as a length.
            assert!(
                !told.contains("header of at most"),
                "{command} {file}: {told}"
            );
            assert!(told.lines().count() < 12, "{command} {file}: {told}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(["methods", "--format", "markdown"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), b"" as &[u8])
    );
}

/// A folder called `s3:` would be made otherwise. Builds with object stores have tests of their own.
#[test]
fn nothing_is_written_to_an_address() {
    let bench = Bench::new();
    let out = "s3://bucket/out";
    for words in [
        &["merge", "recipe.yml", out][..],
        &["moe", "recipe.yml", out],
        &["join", out],
        &["transplant", "a", "b", out],
        &["extract-lora", "a", "b", out],
        &["export", "gguf", "a", out],
        &["stats", "a", "--data", "x", "--out", out],
        &["study", "study.yml", out],
        &["study", "best", "dir", out],
    ] {
        let done = bench.weld(words);
        assert_eq!(done.code, Some(2), "{words:?}");
        assert!(
            done.stderr.contains("built without object stores")
                || done.stderr.contains("not written to a store"),
            "{words:?}: {}",
            done.stderr
        );
    }
    assert!(!bench.path("s3:").exists());
}

//! Every command and every recipe on the pages runs, but those that say why not.
//!
//! A page is a session in a folder of its own, in which its blocks run from top to bottom:
//!
//! - `sh`: a script. `console`: commands after `$`, and what they print, where a line `...` stands for any lines.
//! - `yaml`: a recipe, which is planned. With `title="NAME"`, a block of any language is a file of the session.
//!
//! A comment above a block says what is not so: `<!-- not run: WHY -->`, `<!-- not a recipe: WHY -->`,
//! `<!-- made-up models -->` (all that is wrong with the recipe is that they are not found), `<!-- exits with 1 -->`.
//! `<!-- before: COMMAND -->` is run first, out of the reader's sight.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

use rayon::prelude::*;

use crate::fixtures::Bench;

/// Where recipes find their models: as a reader of the page has them, and the tiny ones of the tests.
const FOLDERS: [&str; 3] = [".", "recipes", "tests/peer/golden/models"];

/// How code begins that is in no fence of backticks, and would not be run.
const OTHER_CODE: [&str; 3] = ["    ", "~~~", "<pre"];

/// A page, by its path in this repository.
struct Page {
    path: String,
    blocks: Vec<Block>,
}

/// A fenced block, with the comments right above it.
#[derive(Default)]
struct Block {
    line: usize,
    language: String,
    title: Option<String>,
    comments: Vec<String>,
    text: String,
}

impl Block {
    /// What follows a word in a comment above the block.
    fn comment(&self, word: &str) -> Option<&str> {
        let mut comments = self.comments.iter();
        comments.find_map(|comment| comment.strip_prefix(word).map(str::trim))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages: those in `docs`, and what a reader meets first.
fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let names = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let docs = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"));
    let others = [
        "README.md",
        "CHANGELOG.md",
        "recipes/family/README.md",
        "recipes/family-qwen2/README.md",
    ]
    .map(str::to_owned);
    docs.chain(others)
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).unwrap();
            let blocks = blocks(&text);
            Page { path, blocks }
        })
        .collect()
}

/// The fenced blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut comments = Vec::new();
    let mut after_blank = true;
    let mut lines = page.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
            let title = rest
                .strip_prefix("title=\"")
                .and_then(|rest| rest.strip_suffix('"'));
            let body = lines.by_ref().map(|(line, _)| line);
            let text: Vec<&str> = body.take_while(|line| line.trim() != "```").collect();
            blocks.push(Block {
                line: number,
                language: language.into(),
                title: title.map(str::to_owned),
                comments: std::mem::take(&mut comments),
                text: text.join("\n") + "\n",
            });
        } else if let Some(comment) = line.strip_prefix("<!-- ") {
            comments.push(comment.trim_end_matches("-->").trim().to_owned());
        } else if after_blank && OTHER_CODE.iter().any(|start| line.starts_with(start)) {
            blocks.push(Block {
                line: number,
                language: "no fence of backticks".into(),
                ..Block::default()
            });
        } else if !line.is_empty() {
            comments.clear();
        }
        after_blank = line.is_empty();
    }
    blocks
}

/// A folder with this repository's recipes and tests, in which the blocks of one page run.
struct Session {
    bench: Bench,
}

impl Session {
    fn new() -> Self {
        let bench = Bench::new();
        let copied = std::process::Command::new("cp")
            .args(["-r", "recipes"])
            .arg(bench.path("recipes"))
            .current_dir(root())
            .status();
        assert!(copied.unwrap().success());
        symlink(root().join("tests"), bench.path("tests")).unwrap();
        // `cargo run` is the binary that cargo has built for the tests.
        let weld = env!("CARGO_BIN_EXE_weld");
        let script = format!("#!/bin/sh\nshift 3\nexec '{weld}' \"$@\"\n");
        let cargo = bench.file("bin/cargo", script);
        fs::set_permissions(cargo, fs::Permissions::from_mode(0o755)).unwrap();
        symlink(weld, bench.path("bin/weld")).unwrap();
        Self { bench }
    }

    /// Runs a script; what it prints to both streams is in `stdout`.
    fn run(&self, script: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        std::process::Command::new("sh")
            .args(["-ec", &format!("exec 2>&1\n{script}")])
            .current_dir(self.bench.path("."))
            .env_remove("HF_HUB_CACHE")
            .env_remove("HUGGINGFACE_HUB_CACHE")
            .env("HOME", self.bench.path("home"))
            .env("HF_HOME", self.bench.path("no-hub"))
            .env("XDG_CACHE_HOME", self.bench.path("no-cache"))
            .env(
                "PATH",
                format!("{}:{path}", self.bench.path("bin").display()),
            )
            .output()
            .unwrap()
    }

    /// Runs a block of commands. Returns what went wrong.
    fn commands(&self, block: &Block) -> Option<String> {
        let console = block.language == "console";
        let script = match console {
            true => typed(&block.text),
            false => block.text.clone(),
        };
        let output = self.run(&script);
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = block
            .comment("exits with")
            .map_or(0, |code| code.parse().unwrap());
        if output.status.code() != Some(expected) {
            return Some(format!("it ended with {}:\n{printed}", output.status));
        }
        let shown = shown(&block.text);
        let differs = console && !shown.is_empty() && !prints(&printed, &shown);
        differs.then(|| format!("it prints\n{printed}"))
    }

    /// Plans a recipe. Returns what went wrong.
    fn recipe(&self, block: &Block) -> Option<String> {
        let made_up = block.comment("made-up models").is_some();
        let recipe = self.bench.file("page.yml", &block.text);
        let mut missing = String::new();
        for folder in FOLDERS {
            let script = format!("cd {folder}\nweld plan '{}'", recipe.display());
            let output = self.run(&script);
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            match output.status.success() {
                true if made_up => return Some("its models are there".into()),
                true => return None,
                false if only_models_are_missing(&printed) => missing = printed,
                false => return Some(printed),
            }
        }
        (!made_up).then_some(missing)
    }

    /// Runs a block, or not, as its language and its comments say. Returns what went wrong.
    fn block(&self, block: &Block) -> Option<String> {
        if let Some(command) = block.comment("before:") {
            let output = self.run(command);
            if !output.status.success() {
                return Some(String::from_utf8_lossy(&output.stdout).into_owned());
            }
        }
        if let Some(title) = &block.title {
            self.bench.file(title, &block.text);
        }
        let language = block.language.as_str();
        let left_out = match language {
            "yaml" => block.comment("not a recipe:"),
            _ => block.comment("not run:"),
        };
        match (language, left_out) {
            (_, Some(reason)) => reason.is_empty().then(|| "it does not say why".into()),
            ("sh" | "console", None) => self.commands(block),
            ("yaml", None) => self.recipe(block),
            ("text" | "toml" | "python" | "json" | "bibtex", None) => None,
            _ => Some(format!("nobody knows what to do with `{language}`")),
        }
    }
}

/// Whether all errors are about models that are not there.
fn only_models_are_missing(printed: &str) -> bool {
    let mut errors = printed.lines().filter(|line| line.starts_with("error:"));
    printed.contains("error:") && errors.all(|error| error.contains("not found"))
}

/// The commands of a console.
fn typed(console: &str) -> String {
    let commands = console.lines().filter_map(|line| line.strip_prefix("$ "));
    commands.map(|command| format!("{command}\n")).collect()
}

/// What a console shows beside its commands.
fn shown(console: &str) -> Vec<&str> {
    let lines = console.lines();
    lines.filter(|line| !line.starts_with("$ ")).collect()
}

/// Whether something was printed as it is shown, but for how long it took, what it held, and how many checks there are.
fn prints(printed: &str, shown: &[&str]) -> bool {
    let mut lines = printed.lines();
    let mut any = false;
    for shown in shown {
        if *shown == "..." {
            any = true;
            continue;
        }
        let shown = without_times(shown);
        let found = match any {
            true => lines.any(|line| without_times(line) == shown),
            false => lines
                .next()
                .is_some_and(|line| without_times(line) == shown),
        };
        if !found {
            return false;
        }
        any = false;
    }
    any || lines.next().is_none()
}

/// A line without the numbers before units of time, speed and memory, and before `checks`.
fn without_times(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kept = words.iter().enumerate().filter(|(index, _)| {
        let unit = words
            .get(index + 1)
            .map(|word| word.trim_end_matches([',', ')']));
        !matches!(
            unit,
            Some("s" | "ms" | "kB/s" | "MB/s" | "GB/s" | "KiB" | "MiB" | "checks")
        )
    });
    kept.map(|(_, word)| format!("{word} ")).collect()
}

#[test]
fn every_command_and_recipe_of_every_page_runs() {
    let failures: Vec<String> = pages()
        .par_iter()
        .flat_map_iter(|page| {
            let session = Session::new();
            let run = page.blocks.iter().filter_map(|block| {
                let failure = session.block(block)?;
                Some(format!("{}:{}: {failure}", page.path, block.line))
            });
            run.collect::<Vec<_>>()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn what_recipes_shows_of_a_plan_is_what_a_plan_prints() {
    let page = blocks(&fs::read_to_string(root().join("docs/recipes.md")).unwrap());
    let session = Session::new();
    let recipes = page.iter().filter(|block| block.language == "yaml");
    let plans: Vec<String> = recipes
        .map(|block| {
            let recipe = session.bench.file("page.yml", &block.text);
            let script = format!(
                "cd tests/peer/golden/models\nweld plan --all '{}' || true",
                recipe.display()
            );
            String::from_utf8(session.run(&script).stdout).unwrap()
        })
        .collect();
    let mut shown = page.iter().filter(|block| block.language == "text");
    let lines = shown.next().expect("a plan").text.lines();
    let lines: Vec<&str> = lines.collect();
    assert!(
        plans
            .iter()
            .any(|plan| lines.iter().all(|line| plan.contains(line))),
        "no plan prints\n{lines:?}"
    );
    assert!(shown.next().is_none());
}

#[test]
fn a_block_that_is_wrong_is_told() {
    let session = Session::new();
    let told = |text: &str| {
        let blocks = blocks(text);
        let failures = blocks.iter().filter_map(|block| session.block(block));
        failures.collect::<Vec<_>>().join("\n")
    };
    let merge = "recipes/ties.yml";
    assert_eq!(told(&format!("```sh\nweld plan {merge}\n```\n")), "");
    assert!(told("```sh\nweld plan nothing.yml\n```\n").contains("it ended with"));
    assert!(told("<!-- not run: -->\n```sh\nfalse\n```\n").contains("does not say why"));
    assert_eq!(
        told("<!-- not run: it needs the network -->\n\n```sh\nfalse\n```\n"),
        ""
    );
    // The comment of another block is none of this one.
    assert!(told("<!-- not run: so -->\n\nText.\n\n```sh\nfalse\n```\n").contains("it ended with"));
    let console = "```console\n$ echo one; echo two; echo took 3.5 s\n";
    assert_eq!(told(&format!("{console}one\ntwo\ntook 1 s\n```\n")), "");
    assert_eq!(told(&format!("{console}...\ntook 1 s\n```\n")), "");
    assert!(told(&format!("{console}one\ntwo\n```\n")).contains("it prints"));
    let recipe = "```yaml\nmerge_method: linear\nmodels: [{model: x}, {model: y}]\nparameters: {weight: 1}\n";
    assert!(told(&format!("{recipe}```\n")).contains("not found"));
    assert_eq!(told(&format!("<!-- made-up models -->\n{recipe}```\n")), "");
    assert!(
        told(&format!(
            "<!-- made-up models -->\n{recipe}densty: 1\n```\n"
        ))
        .contains("densty")
    );
    assert!(told("Text:\n\n    false\n").contains("nobody knows"));
    assert!(told("Text:\n\n~~~sh\nfalse\n~~~\n").contains("nobody knows"));
    assert!(told("```rust\nlet x = 1;\n```\n").contains("nobody knows"));
    assert!(told("```yaml\non: push\n```\n").contains("error"));
}

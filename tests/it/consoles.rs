//! The console blocks of the pages: every command of weld runs on the models of this repository, succeeds, and prints
//! what the page shows.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixtures::Bench;

/// A command of a page, and the lines that it is shown to print.
struct Shown {
    command: String,
    output: Vec<String>,
}

/// The commands in the console blocks of a page, in order.
fn commands(page: &str) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for line in block.lines() {
            match (line.strip_prefix("$ "), shown.last_mut()) {
                (Some(command), _) => shown.push(Shown {
                    command: command.to_owned(),
                    output: Vec::new(),
                }),
                (None, Some(last)) => last.output.push(line.to_owned()),
                (None, None) => panic!("output before a command: {line}"),
            }
        }
    }
    shown
}

/// Every page: the README files and `docs`.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = docs
        .filter(|path| path.extension().is_some_and(|kind| kind == "md"))
        .chain(["README.md", "recipes/family/README.md"].map(|page| root.join(page)))
        .collect();
    pages.sort();
    pages
}

/// A line without the numbers that differ from run to run: times, rates, memory.
fn steady(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let varies = |at: usize| {
        let next = words.get(at + 1).copied().unwrap_or_default();
        let number = words[at].trim_start_matches('(').parse::<f64>().is_ok();
        let is_memory = next == "MiB" && words.get(at + 2) == Some(&"of");
        number && (next == "s" || next.contains("B/s") || is_memory)
    };
    let words = (0..words.len()).map(|at| if varies(at) { "N" } else { words[at] });
    let line = words.collect::<Vec<_>>().join(" ");
    ["kB/s", "MB/s", "GB/s"]
        .iter()
        .fold(line, |line, unit| line.replace(unit, "B/s"))
}

#[test]
fn the_console_blocks_of_the_pages_run_and_print_what_they_show() {
    let weld = Path::new(env!("CARGO_BIN_EXE_weld"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = format!(
        "{}:{}",
        weld.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut run = 0;
    for page in pages() {
        let bench = Bench::new();
        symlink(root.join("recipes"), bench.path("recipes")).unwrap();
        for Shown { command, output } in commands(&fs::read_to_string(&page).unwrap()) {
            let command = command.replace("cargo run --release --", "weld");
            let program = command.split(' ').next().unwrap();
            if program == "cargo" {
                continue;
            }
            // What a page shows of another program is its preparation.
            run += usize::from(program == "weld");
            let ran = Command::new("bash")
                .args(["-c", &format!("exec 2>&1; {command}")])
                .current_dir(bench.path("."))
                .env("PATH", &path)
                .env("HF_HOME", bench.path("no-hub"))
                .env("XDG_CACHE_HOME", bench.path("cache"))
                .output()
                .unwrap();
            let printed = String::from_utf8(ran.stdout).unwrap();
            let place = format!("{}: {command}\n{printed}", page.display());
            assert!(ran.status.success(), "{place}");
            if !output.is_empty() {
                let printed: Vec<String> = printed.lines().map(steady).collect();
                let shown: Vec<String> = output.iter().map(|line| steady(line)).collect();
                assert_eq!(printed, shown, "{place}");
            }
        }
    }
    assert!(run >= 13, "only {run} commands were found");
}

#[test]
fn numbers_that_vary_are_masked_and_no_others() {
    let line = "merged: 38 tensors, 10.8 MB read in 0.05 s (208.1 MB/s), 14.0 MiB of own memory";
    let steady_line = "merged: 38 tensors, 10.8 MB read in N s N B/s), N MiB of own memory";
    assert_eq!(steady(line), steady_line);
}

//! Real processes that are killed, stopped and set against each other: the output is absent, old or whole, and the next
//! run succeeds. Every single step of a run fails in `destination.rs`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::fixtures::{Bench, files, llama_config, quick_bf16};

/// The last shard of a merge of [`bench`]: when it is there, the weights are about to be read.
const LAST: &str = "model-00006-of-00006.safetensors";

/// How often a process is tried to be met on its way: on a busy machine, most are through before the signal.
const TRIES: usize = 200;

const RECIPE: &str = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n\
                      parameters: {weight: 0.5, density: 0.5}\n";

/// Models of some megabytes in several tensors.
fn bench() -> Bench {
    let bench = Bench::on_disk();
    for (seed, name) in ["base", "a", "b"].into_iter().enumerate() {
        let count = 512 * 1024;
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

const MERGE: [&str; 7] = [
    "merge",
    "recipe.yml",
    "out",
    "-q",
    "--no-check",
    "--shard-size",
    "2MB",
];

fn start(bench: &Bench, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_weld"))
        .current_dir(bench.path(""))
        .env("XDG_CACHE_HOME", bench.path("no-cache"))
        .args(MERGE)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A merge in a shell, after a command that changes what the process may do.
fn in_shell(bench: &Bench, command: &str) -> Child {
    let weld = env!("CARGO_BIN_EXE_weld");
    Command::new("sh")
        .current_dir(bench.path(""))
        .env("XDG_CACHE_HOME", bench.path("no-cache"))
        .args(["-c", &format!("{command}; exec \"$@\""), "sh", weld])
        .args(MERGE)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Names beside the models that a run has left.
fn left_over(bench: &Bench) -> Vec<String> {
    let known = [
        "base",
        "a",
        "b",
        "recipe.yml",
        "one.yml",
        "two.yml",
        "out",
        "no-cache",
    ];
    fs::read_dir(bench.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(&name.as_str()))
        .collect()
}

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

/// Sends the signal at once: starting `kill` takes longer than the merge.
fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_merge_killed_on_its_way_leaves_nothing_or_all() {
    let bench = bench();
    assert!(start(&bench, &[]).wait().unwrap().success());
    let whole = files(&bench.path("out"));
    assert!(whole.iter().any(|(name, _)| name == LAST), "six shards");
    fs::remove_dir_all(bench.path("out")).unwrap();
    let mut staged_left = 0;
    for last in ["", LAST, "README.md"] {
        let mut child = start(&bench, &[]);
        until(&mut child, || bench.staging().join(last).exists());
        child.kill().unwrap();
        child.wait().unwrap();
        staged_left += usize::from(bench.staging().exists());
        if bench.path("out").exists() {
            assert!(files(&bench.path("out")) == whole, "killed after `{last}`");
            fs::remove_dir_all(bench.path("out")).unwrap();
        }
        // Whatever it left, the next run succeeds and leaves no trace of it.
        let next = start(&bench, &[]).wait_with_output().unwrap();
        assert!(next.status.success(), "after `{last}`: {next:?}");
        assert!(files(&bench.path("out")) == whole, "after `{last}`");
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
        fs::remove_dir_all(bench.path("out")).unwrap();
    }
    assert!(staged_left > 0, "no kill came while it was staged");
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
        assert!(start(&bench, &["--force"]).wait().unwrap().success());
        files(&bench.path("out"))
    });
    assert!(outputs[0] != outputs[1]);
    let inode = || {
        fs::metadata(bench.path("out"))
            .map(|meta| meta.ino())
            .unwrap()
    };
    for round in 0..4 {
        // What is there and what is to come change places.
        let new = round % 2;
        bench.recipe(&recipes[new]);
        let before = inode();
        let mut child = start(&bench, &["--force"]);
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
        assert!(start(&bench, &["--force"]).wait().unwrap().success());
        assert!(files(&bench.path("out")) == outputs[new], "round {round}");
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
    }
}

#[test]
fn a_stopped_replacement_leaves_the_old_and_says_so() {
    let bench = bench();
    let old = [("old".to_owned(), b"old".to_vec())];
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let stopped = (0..TRIES).any(|_| {
            let _ = fs::remove_dir_all(bench.path("out"));
            bench.file("out/old", "old");
            let mut child = start(&bench, &["--force"]);
            until(&mut child, || bench.staging().join(LAST).exists());
            send(&child, signal);
            let output = child.wait_with_output().unwrap();
            assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
            if output.status.success() {
                return false;
            }
            assert_eq!(output.status.code(), Some(130), "{signal:?}: {output:?}");
            assert_eq!(output.stderr, b"stopped; nothing was written\n");
            assert_eq!(files(&bench.path("out")), old);
            true
        });
        assert!(stopped, "no run met {signal:?} in time");
    }
}

#[test]
fn a_merge_that_aborts_leaves_nothing() {
    let bench = bench();
    let aborted = (0..TRIES).any(|_| {
        let _ = fs::remove_dir_all(bench.path("out"));
        let mut child = start(&bench, &[]);
        until(&mut child, || bench.staging().join(LAST).exists());
        send(&child, Signal::ABORT);
        let output = child.wait_with_output().unwrap();
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
        // The signal is still what ends the process.
        output.status.signal() == Some(6) && !bench.path("out").exists()
    });
    assert!(aborted, "no run was met in time");
}

#[test]
fn nohup_goes_on_when_the_terminal_is_closed() {
    let bench = bench();
    let mut child = in_shell(&bench, "trap '' HUP");
    until(&mut child, || bench.staging().join(LAST).exists());
    send(&child, Signal::HUP);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_limit_of_files_is_an_error_and_leaves_nothing() {
    let bench = bench();
    // In blocks of 512 or of 1024 bytes: less than a shard either way.
    let output = in_shell(&bench, "ulimit -f 300")
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = stderr(&output);
    assert!(said.contains("cannot make room for"), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert!(!bench.path("out").exists());
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

#[test]
#[cfg(target_os = "linux")]
fn a_limit_of_memory_is_an_error_with_a_remedy_and_leaves_nothing() {
    let bench = bench();
    let mut refused = 0;
    // From too little to start threads to enough for all.
    for mib in (40..100).step_by(2) {
        let _ = fs::remove_dir_all(bench.path("out"));
        let output = in_shell(&bench, &format!("ulimit -c 0; ulimit -v {}", mib * 1024))
            .wait_with_output()
            .unwrap();
        let said = stderr(&output);
        assert!(
            left_over(&bench).is_empty(),
            "{mib} MiB leave {:?}: {said}",
            left_over(&bench)
        );
        assert_eq!(
            output.status.success(),
            bench.path("out").exists(),
            "{said}"
        );
        assert!(!said.contains("cannot write tensor"), "{said}");
        if said.contains("not enough memory: the system refused") {
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains("--memory"), "{said}");
            refused += 1;
        }
    }
    assert!(refused > 0, "no limit met a buffer of the engine");
}

/// That what is at OUT is of one of two merges, which succeeded, and that the other says why it did not, if it did not.
fn assert_no_mixture(done: [Output; 2], whole: &[Vec<(String, Vec<u8>)>; 2], out: &Path) {
    for output in &done {
        let message = stderr(output);
        assert!(
            output.status.success()
                || (output.status.code() == Some(1)
                    && (message.contains("another weld is writing")
                        || message.contains("is not empty"))),
            "{message}"
        );
    }
    let found = files(out);
    let winner = whole.iter().position(|whole| *whole == found);
    let winner = winner.expect("a mixture is at OUT");
    assert!(done[winner].status.success());
}

#[test]
fn two_merges_to_one_place_do_not_mix() {
    let bench = bench();
    let names = ["one.yml", "two.yml"];
    bench.file(names[0], RECIPE);
    bench.file(names[1], RECIPE.replace("density: 0.5", "density: 0.9"));
    let run = |name: &str, more: &[&str]| {
        let mut arguments = vec!["merge", name, "out", "-q", "--no-check"];
        arguments.extend(["--shard-size", "1MB"]);
        arguments.extend(more);
        bench.process(&arguments).spawn().unwrap()
    };
    let whole = names.map(|name| {
        assert!(run(name, &["--force"]).wait().unwrap().success());
        files(&bench.path("out"))
    });
    for round in 0..6 {
        // Every second time there is something to be replaced.
        let more: &[&str] = match round % 2 {
            0 => &["--force"],
            _ => &[],
        };
        if more.is_empty() {
            fs::remove_dir_all(bench.path("out")).unwrap();
        }
        let both = names.map(|name| run(name, more));
        let done = both.map(|child| child.wait_with_output().unwrap());
        assert_no_mixture(done, &whole, &bench.path("out"));
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
    }
}

#[test]
fn an_input_cut_short_under_many_threads_is_an_error_once() {
    let bench = bench();
    let weights = bench.path("a/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let met = (0..TRIES).any(|_| {
        let _ = fs::remove_dir_all(bench.path("out"));
        fs::write(&weights, &bytes).unwrap();
        let mut child = start(&bench, &["--threads", "8"]);
        until(&mut child, || bench.staging().join(LAST).exists());
        let file = fs::OpenOptions::new().write(true).open(&weights).unwrap();
        file.set_len(4096).unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            return false;
        }
        let message = stderr(&output);
        // All threads fault at once: none may fall through to the signal's default.
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
        assert!(!bench.path("out").exists());
        assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
        message.contains("cut short while it was read")
    });
    assert!(met, "no run was met in time");
    fs::write(&weights, &bytes).unwrap();
    assert!(start(&bench, &[]).wait().unwrap().success());
    assert!(left_over(&bench).is_empty(), "{:?}", left_over(&bench));
}

//! `weld check`, `diff` and `verify`, timed beside what they cannot be faster than.
//!
//! ```sh
//! cargo bench --bench audit -- --shape 1.1b --rounds 5 --folder target/bench
//! ```
//!
//! In each round every command runs once, with its floor before it, so that a slow minute of the machine hits both.
//! The floors: reading a checkpoint and hashing it with BLAKE3, reading two checkpoints, the merge itself.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark shows its table"
)]

#[path = "merges/models.rs"]
mod models;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use models::Shape;
use rayon::prelude::*;
use weldment::checkpoint::{Checkpoint, Location};
use weldment::engine::Observer;
use weldment::run::all_digests;

#[derive(Parser)]
struct Arguments {
    /// tiny, 0.25b, 1.1b, 4b or 7b
    #[arg(long, default_value = "1.1b")]
    shape: String,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where models are made, and stay
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Make the models anew, and leave them in the page cache as writing does: in smaller pages
    #[arg(long)]
    written: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A command, its exit code, and the most that it may take of its floor.
struct Row {
    name: &'static str,
    floor: &'static str,
    bound: f64,
    times: Vec<(f64, f64)>,
    memory: u64,
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let shape = Shape::find(&arguments.shape).ok_or_else(|| io::Error::other("no such shape"))?;
    fs::create_dir_all(&arguments.folder)?;
    let folder = fs::canonicalize(&arguments.folder)?;
    let made = if arguments.written {
        models::written
    } else {
        models::model
    };
    let [base, a, b] = [0, 1, 2].map(|seed| made(&folder, shape, seed));
    let (base, a, b) = (base?, a?, b?);
    let recipes = ["linear", "ties"].map(|method| recipe(&folder, method, &base, &a, &b));
    let threads = arguments.threads.to_string();
    let row = |name, floor, bound| Row {
        name,
        floor,
        bound,
        times: Vec::new(),
        memory: 0,
    };
    let mut rows = [
        row("check", "reading it with BLAKE3", 1.3),
        row("diff", "reading both", 1.5),
        row("diff --base", "reading all three", f64::NAN),
        row("verify --full, linear", "the merge", 1.3),
        row("verify --full, ties", "the merge", 1.3),
        row("verify, linear", "the merge", f64::NAN),
        row("verify, ties", "the merge", f64::NAN),
    ];
    for round in 0..arguments.rounds {
        let mut add = |at: usize, floor: f64, (seconds, memory): (f64, u64)| {
            let row: &mut Row = &mut rows[at];
            eprintln!(
                "round {}: {} {seconds:.2} s, floor {floor:.2} s",
                round + 1,
                row.name
            );
            row.times.push((floor, seconds));
            row.memory = row.memory.max(memory);
        };
        let common = ["-q", "--threads", &threads, "--format", "json"];
        let hashed = seconds(|| hash(&a, arguments.threads))?;
        add(
            0,
            hashed,
            weld(&[&["check", text(&a)], &common[..]].concat(), 0)?,
        );
        let both = seconds(|| read(&[&a, &b], arguments.threads))?;
        add(
            1,
            both,
            weld(&[&["diff", text(&a), text(&b)], &common[..]].concat(), 1)?,
        );
        let all = seconds(|| read(&[&a, &b, &base], arguments.threads))?;
        let three = ["diff", text(&a), text(&b), "--base", text(&base)];
        add(2, all, weld(&[&three, &common[..]].concat(), 1)?);
        for (at, recipe) in recipes.iter().enumerate() {
            let out = folder.join(format!("out-{at}"));
            let _ = fs::remove_dir_all(&out);
            let merge = [
                "merge",
                text(recipe),
                text(&out),
                "-q",
                "--threads",
                &threads,
            ];
            let (merged, _) = weld(&merge, 0)?;
            let verify = ["verify", text(&out), "--recipe", text(recipe)];
            // What was written past the page cache is read into it by the first look.
            weld(&[&verify, &common[..]].concat(), 0)?;
            add(
                3 + at,
                merged,
                weld(&[&verify[..], &["--full"], &common].concat(), 0)?,
            );
            add(5 + at, merged, weld(&[&verify, &common[..]].concat(), 0)?);
        }
    }
    println!(
        "{} threads, shape {}, in the page cache as {} left it, medians of {} rounds\n\n\
         | command | floor | floor takes | takes | of the floor | at most | own memory |\n\
         |---|---|---:|---:|---:|---:|---:|",
        arguments.threads,
        arguments.shape,
        if arguments.written {
            "writing"
        } else {
            "reading"
        },
        arguments.rounds
    );
    for row in rows {
        let floor = median(row.times.iter().map(|(floor, _)| *floor));
        let time = median(row.times.iter().map(|(_, time)| *time));
        let bound = if row.bound.is_nan() {
            String::new()
        } else {
            row.bound.to_string()
        };
        println!(
            "| {} | {} | {floor:.2} s | {time:.2} s | {:.2} | {bound} | {:.0} MiB |",
            row.name,
            row.floor,
            time / floor,
            row.memory as f64 / 1048576.0
        );
    }
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn recipe(folder: &Path, method: &str, base: &Path, a: &Path, b: &Path) -> PathBuf {
    let (base_line, density) = match method {
        "ties" => (
            format!("base_model: {}\n", base.display()),
            ", density: 0.5",
        ),
        _ => (String::new(), ""),
    };
    let model = |path: &Path, weight: &str| {
        format!(
            "- {{model: {}, parameters: {{weight: {weight}{density}}}}}\n",
            path.display()
        )
    };
    let recipe = format!(
        "merge_method: {method}\n{base_line}models:\n{}{}",
        model(a, "0.6"),
        model(b, "0.4")
    );
    let path = folder.join(format!("audit-{method}.yml"));
    // A folder that cannot be written to shows at the first merge.
    let _ = fs::write(&path, recipe);
    path
}

/// Runs `weld`; gives the seconds, and the most own memory that it was seen with.
fn weld(arguments: &[&str], expected: i32) -> io::Result<(f64, u64)> {
    let started = Instant::now();
    let mut process = Command::new(env!("CARGO_BIN_EXE_weld"))
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", process.id());
    let mut memory = 0;
    let done = loop {
        if let Some(done) = process.try_wait()? {
            break done;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        memory = memory.max(kib.unwrap_or(0) * 1024);
        thread::sleep(Duration::from_millis(2));
    };
    if done.code() != Some(expected) {
        return Err(io::Error::other(format!("weld {arguments:?}: {done}")));
    }
    Ok((started.elapsed().as_secs_f64(), memory))
}

fn seconds(work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

fn open(model: &Path) -> io::Result<Checkpoint> {
    Checkpoint::open(text(model), &Location::local(model)).map_err(io::Error::other)
}

struct Quiet;

impl Observer for Quiet {
    fn advance(&self, _: u64) {}

    fn cancelled(&self) -> bool {
        false
    }
}

fn hash(model: &Path, threads: usize) -> io::Result<()> {
    let digests = all_digests(&open(model)?, threads, &Quiet).map_err(io::Error::other)?;
    std::hint::black_box(digests);
    Ok(())
}

/// Adds all bytes up, by eights: nothing that looks at them is faster.
fn read(models: &[&Path], threads: usize) -> io::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(io::Error::other)?;
    for model in models {
        let model = open(model)?;
        let tensors = (0..model.tensors().len()).filter_map(|tensor| model.stored(tensor));
        let pieces: Vec<&[u8]> = tensors.flat_map(|bytes| bytes.chunks(1 << 20)).collect();
        let sum = |piece: &&[u8]| -> u64 {
            let words = piece.as_chunks::<8>().0.iter();
            words.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
        };
        std::hint::black_box(
            pool.install(|| pieces.par_iter().map(sum).reduce(|| 0, u64::wrapping_add)),
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

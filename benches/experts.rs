//! Mixtures of experts, assembled beside the copy floor.
//!
//! ```sh
//! cargo bench --bench experts -- --shape 1.1b --rounds 3 --folder target/bench
//! ```
//!
//! Eight experts of two models on a third as base. The floor writes as many bytes as the mixture has, read from the
//! same models, directly or through the cache, whichever is faster. Each round runs the floor, an assembly with drawn
//! routers, one with routers from hidden states of 64 prompts, and one pass over the base.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark shows its table"
)]

#[path = "merges/floor.rs"]
mod floor;
#[path = "merges/models.rs"]
mod models;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use floor::Writing;
use memmap2::Mmap;
use models::Shape;
use serde_json::{Value, json};

const EXPERTS: usize = 8;

/// Time mixtures of experts beside the copy floor
#[derive(Parser)]
struct Arguments {
    /// Size of the models: tiny, 0.25b, 1.1b or 4b parameters
    #[arg(long, default_value = "0.25b")]
    shape: String,
    /// Where models and outputs are put
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// How often each is timed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Worker threads of weld and of the floor
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Given by cargo; no effect
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let shape = Shape::find(&arguments.shape).ok_or_else(|| io::Error::other("no such shape"))?;
    fs::create_dir_all(&arguments.folder)?;
    let folder = fs::canonicalize(&arguments.folder)?;
    let made = (0..3).map(|number| models::model(&folder, shape, number));
    let models: Vec<PathBuf> = made.collect::<io::Result<_>>()?;
    write_tokenizer(&models[0])?;
    let weights: Vec<PathBuf> = models
        .iter()
        .map(|model| model.join("model.safetensors"))
        .collect();
    let (recipe, out) = (folder.join("moe.yml"), folder.join("moe"));
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut memory = [0; 2];
    let mut written = 0;
    for round in 0..=arguments.rounds {
        let mut of_round = [0.0; 4];
        for (index, mode) in ["random", "hidden"].into_iter().enumerate() {
            fs::write(&recipe, recipe_of(&models, mode))?;
            let _ = fs::remove_dir_all(&out);
            let report = weld(&recipe, &out, arguments.threads)?;
            of_round[index] = report["seconds"].as_f64().unwrap_or(f64::NAN);
            memory[index] = memory[index].max(report["peak_memory"].as_u64().unwrap_or(0));
            written = report["bytes_written"].as_u64().unwrap_or(0);
        }
        fs::remove_dir_all(&out)?;
        let floor_file = folder.join("floor.safetensors");
        let copy = |writing| {
            floor::copy_length(
                &weights,
                &floor_file,
                writing,
                arguments.threads + 2,
                written,
            )
        };
        of_round[2] = match copy(Writing::Direct) {
            Ok(direct) => direct,
            Err(_) => copy(Writing::Buffered)?,
        }
        .as_secs_f64();
        of_round[3] = read(&weights[0])?;
        eprintln!("round {round}: {of_round:.2?} s");
        // The first round fills the page cache.
        if round > 0 {
            times
                .iter_mut()
                .zip(of_round)
                .for_each(|(times, time)| times.push(time));
        }
    }
    let [random, hidden, floor, base] = times.map(median);
    println!(
        "shape {}, {EXPERTS} experts, {:.1} GB written, {} threads, warm, medians of {} rounds\n\n\
         | routers | floor | weld | of the floor | own memory |\n|---|---:|---:|---:|---:|\n\
         | random | {floor:.2} s | {random:.2} s | {:.2} | {} MiB |\n\
         | hidden, 64 prompts | {floor:.2} s | {hidden:.2} s | {:.2} | {} MiB |\n\n\
         the states take {:.2} s; reading the base once from the cache takes {base:.2} s",
        arguments.shape,
        written as f64 / 1e9,
        arguments.threads,
        arguments.rounds,
        random / floor,
        memory[0] >> 20,
        hidden / floor,
        memory[1] >> 20,
        hidden - random,
    );
    Ok(())
}

fn recipe_of(models: &[PathBuf], mode: &str) -> String {
    let prompts = |expert: usize| -> Vec<String> {
        let letter = |place: usize| char::from(b'a' + (place % 26) as u8);
        let prompt = |number: usize| {
            (0..20)
                .map(|at| letter(expert * 7 + number * 3 + at * (expert + 1)))
                .collect()
        };
        (0..8).map(prompt).collect()
    };
    let expert = |number: usize| json!({"source_model": models[1 + number % 2], "positive_prompts": prompts(number)});
    let experts: Vec<Value> = (0..EXPERTS).map(expert).collect();
    // JSON is YAML.
    json!({"base_model": models[0], "gate_mode": mode, "experts": experts}).to_string()
}

/// A token for each letter.
fn write_tokenizer(model: &Path) -> io::Result<()> {
    let letters = (b'a'..=b'z').map(|letter| (char::from(letter).to_string(), json!(letter)));
    let vocabulary: serde_json::Map<String, Value> = letters.collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                  "merges": []}
    });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string())
}

fn weld(recipe: &Path, out: &Path, threads: usize) -> io::Result<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weld"));
    command
        .arg("moe")
        .args([recipe, out])
        .args(["-q", "--format", "json", "--threads"]);
    let output = command.arg(threads.to_string()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Seconds that one pass over a file takes.
fn read(path: &Path) -> io::Result<f64> {
    // SAFETY: the benchmark's own file, which nobody writes to.
    let map = unsafe { Mmap::map(&File::open(path)?) }?;
    let started = Instant::now();
    let (words, _) = map.as_chunks::<8>();
    std::hint::black_box(
        words
            .iter()
            .fold(0, |sum, word| sum ^ u64::from_le_bytes(*word)),
    );
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

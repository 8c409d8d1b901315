//! Scoring choices beside the matrix products that it takes.
//!
//! ```sh
//! cargo bench --bench eval -- --shape 1.1b --rounds 3 --folder target/bench
//! ```
//!
//! Fifty items of a prompt and four choices, as tokens. The products are those of every matrix with as many tokens as
//! are run, and of the head with as many as are asked, in f32 and from memory: no weight is read, and nothing else is
//! computed.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark shows its table"
)]

#[path = "merges/models.rs"]
mod models;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use models::Shape;
use rayon::prelude::*;
use weldment::checkpoint::{Checkpoint, Location};
use weldment::eval::{Options, Prepared, Surroundings, Tasks};
use weldment::forward;
use weldment::numeric::{View, multiply};

const ITEMS: usize = 50;
const PROMPT: usize = 24;
const CHOICES: usize = 4;
const CHOICE: usize = 5;
/// Rows of a matrix that a thread multiplies at a time.
const ROWS: usize = 512;

/// Time the scoring of choices beside its matrix products
#[derive(Parser)]
struct Arguments {
    /// Size of the model: tiny, 0.25b, 1.1b or 4b parameters
    #[arg(long, default_value = "0.25b")]
    shape: String,
    /// Where the model is put
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// How often each is timed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Worker threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Given by cargo; no effect
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = Arguments::parse();
    let shape = Shape::find(&arguments.shape).ok_or("no such shape")?;
    fs::create_dir_all(&arguments.folder)?;
    let folder = fs::canonicalize(&arguments.folder)?;
    let model = models::model(&folder, shape, 0)?;
    let model = Checkpoint::open("model", &Location::local(&model))?;
    let tasks = folder.join("choices.jsonl");
    fs::write(&tasks, items())?;
    let options = Options {
        threads: arguments.threads,
        ..Options::default()
    };
    let surroundings = Surroundings::of_checkpoint(&model)?;
    let prepared = Prepared::new(&surroundings, &Tasks::read(&[tasks])?, &options, &())?;
    let pool = rayon::ThreadPoolBuilder::new();
    let pool = pool.num_threads(arguments.threads).build()?;
    let (mut scoring, mut products) = (Vec::new(), Vec::new());
    for round in 0..=arguments.rounds {
        let started = Instant::now();
        prepared.score(&model, &())?;
        let scored = started.elapsed().as_secs_f64();
        let multiplied = pool.install(|| multiplied(&model))?;
        eprintln!("round {round}: {scored:.2} s, products {multiplied:.2} s");
        // The first round fills the page cache.
        if round > 0 {
            scoring.push(scored);
            products.push(multiplied);
        }
    }
    let (scored, multiplied) = (median(scoring), median(products));
    println!(
        "shape {}, {ITEMS} items of {CHOICES} choices, {} threads, warm, medians of {} rounds\n\n\
         | scoring | products alone | ratio |\n|---:|---:|---:|\n| {scored:.2} s | {multiplied:.2} s | {:.2} |",
        arguments.shape,
        arguments.threads,
        arguments.rounds,
        scored / multiplied,
    );
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The items, as JSON lines.
fn items() -> String {
    let tokens = |seed: usize, count: usize| -> Vec<usize> {
        (0..count).map(|at| (seed * 131 + at * 17) % 4000).collect()
    };
    let lines = (0..ITEMS).map(|item| {
        let choices: Vec<Vec<usize>> = (0..CHOICES)
            .map(|choice| tokens(1000 + item * CHOICES + choice, CHOICE))
            .collect();
        let prompt = tokens(item, PROMPT);
        serde_json::json!({"prompt": prompt, "choices": choices, "answer": 0}).to_string() + "\n"
    });
    lines.collect()
}

/// The seconds of the products alone.
fn multiplied(model: &Checkpoint) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let seen = CHOICES * (CHOICE - 1);
    let mut seconds = 0.0;
    for tensor in model.tensors() {
        let &[rows, columns] = &tensor.shape[..] else {
            continue;
        };
        let tokens = match &*tensor.name {
            "model.embed_tokens.weight" => continue,
            "lm_head.weight" => ITEMS * (1 + seen),
            _ => ITEMS * (PROMPT + seen),
        };
        let mut matrix = vec![0.0; rows * columns];
        forward::read(model, &tensor.name, 0, &mut matrix)?;
        let states = vec![0.5f32; columns * tokens];
        let mut out = vec![0.0f32; rows * tokens];
        let started = Instant::now();
        let tiles = out.par_chunks_mut(ROWS * tokens);
        tiles
            .zip(matrix.par_chunks(ROWS * columns))
            .for_each(|(out, tile)| {
                let rows = tile.len() / columns;
                multiply(
                    out,
                    View::rows(tile, rows, columns),
                    View::rows(&states, columns, tokens),
                );
            });
        seconds += started.elapsed().as_secs_f64();
        std::hint::black_box(&out);
    }
    Ok(seconds)
}

//! Whole merges, timed beside the copy floor and, if it is there, mergekit.
//!
//! ```sh
//! cargo bench --bench merges -- --shape 1.1b --rounds 5 --folder target/bench
//! cargo bench --bench merges -- --shape 1.1b --peer path/to/python   # with mergekit 0.1.5 in it
//! cargo bench --bench merges -- --scale --methods linear,ties        # 0.5, 2 and 8 GB an input
//! cargo bench --bench merges -- --shape 1.1b --limit 1GiB --methods linear,ties
//! ```
//!
//! In each round every method runs once, with its floor before it, so that a slow minute of the machine hits
//! all alike. Each answer is checked before it is timed: on a small model, the bytes must not depend on threads
//! or memory, and must be no input's. The table has medians; `--store` keeps it under `benches/results/`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark shows its table"
)]

mod cgroup;
mod check;
mod floor;
mod inputs;
mod methods;
mod models;
mod process;
mod results;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use bytesize::ByteSize;
use cgroup::Cgroup;
use clap::Parser;
use floor::{Reading, Writing};
use inputs::Inputs;
use methods::{METHODS, Method};
use models::Shape;
use process::Usage;
use results::{Row, Timing};

/// The shapes of `--scale`: 0.5, 2.2 and 7.9 GB an input.
const SCALE: [&str; 3] = ["0.25b", "1.1b", "4b"];

/// Time whole merges beside the copy floor
#[derive(Parser)]
struct Arguments {
    /// Size of the models: tiny, 0.25b, 1.1b, 4b or 7b parameters
    #[arg(long, default_value = "0.25b")]
    shape: String,
    /// At 0.5, 2 and 8 GB an input, one table: shapes 0.25b, 1.1b and 4b
    #[arg(long, conflicts_with_all = ["shape", "limit", "peer"])]
    scale: bool,
    /// Run each merge, cold, in a cgroup that allows so much memory, page cache included: 1GiB
    #[arg(long, conflicts_with = "peer")]
    limit: Option<ByteSize>,
    /// Where models and outputs are put
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// How often each is timed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Worker threads of weld and of the floor
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only these methods, comma-separated
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// A Python with mergekit 0.1.5, to be timed once for each method
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Drop the inputs from the page cache before each run
    #[arg(long)]
    cold: bool,
    /// Keep the table under benches/results, named by processor and date
    #[arg(long)]
    store: bool,
    /// Only take the floors of these files, for the process that runs under a limit
    #[arg(long, hide = true, num_args = 1..)]
    floors: Vec<PathBuf>,
    /// Given by cargo; no effect
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Whether nothing is in the page cache before a run.
    fn is_cold(&self) -> bool {
        self.cold || self.limit.is_some()
    }
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

fn run(arguments: &Arguments) -> io::Result<()> {
    if !arguments.floors.is_empty() {
        return tell_floors(arguments);
    }
    let shapes = shapes(arguments)?;
    if let Some(limit) = arguments.limit {
        // Told before an hour is spent on models.
        Cgroup::new(limit.as_u64())?;
    }
    fs::create_dir_all(&arguments.folder)?;
    let folder = fs::canonicalize(&arguments.folder)?;
    inputs::check_room(&folder, &shapes)?;
    let weld = PathBuf::from(env!("CARGO_BIN_EXE_weld"));
    let methods = chosen(arguments, &weld)?;

    let tiny = Inputs::make(&folder, SMALL)?;
    for method in &methods {
        check::answer(&weld, &folder, &tiny, method.recipe)
            .map_err(|error| io::Error::other(format!("{}: {error}", method.name)))?;
    }
    eprintln!("{} answers checked", methods.len());

    let mut rows = Vec::new();
    for shape in shapes {
        let inputs = Inputs::make(&folder, shape)?;
        let bench = Bench {
            weld: &weld,
            folder: &folder,
            inputs: &inputs,
            arguments,
        };
        rows.extend(bench.rows(shape, &methods)?);
    }
    let (kind, table) = match arguments.limit {
        Some(limit) => ("limit", results::under_limit(arguments, limit, &rows)),
        None if arguments.scale => ("scale", results::at_scale(arguments, &rows)),
        None => ("merges", results::by_method(arguments, &rows)),
    };
    print!("{table}");
    if arguments.store {
        eprintln!(
            "kept as {}",
            results::store(kind, arguments, &table)?.display()
        );
    }
    Ok(())
}

/// What is measured, smallest first.
fn shapes(arguments: &Arguments) -> io::Result<Vec<Shape>> {
    let names: Vec<&str> = match arguments.scale {
        true => SCALE.into(),
        false => vec![&arguments.shape],
    };
    let find = |name| {
        Shape::find(name).ok_or_else(|| {
            let known: Vec<&str> = models::SHAPES.iter().map(|shape| shape.name).collect();
            io::Error::other(format!("no shape `{name}`; there are {}", known.join(", ")))
        })
    };
    names.into_iter().map(find).collect()
}

/// The methods that were asked for and that this build has.
fn chosen(arguments: &Arguments, weld: &Path) -> io::Result<Vec<Method>> {
    let known = |name: &String| METHODS.iter().any(|method| method.name == name);
    if let Some(name) = arguments.methods.iter().find(|name| !known(name)) {
        let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        let known = known.join(", ");
        return Err(io::Error::other(format!(
            "no recipe for `{name}`; there are {known}"
        )));
    }
    let asked = |name: &str| {
        arguments.methods.is_empty() || arguments.methods.iter().any(|method| method == name)
    };
    let methods = METHODS.into_iter();
    Ok(methods
        .filter(|method| asked(method.name) && knows(weld, method.name))
        .collect())
}

/// The shape that answers are checked on.
const SMALL: Shape = models::SHAPES[0];

/// All that the runs of one shape share.
struct Bench<'a> {
    weld: &'a Path,
    folder: &'a Path,
    inputs: &'a Inputs,
    arguments: &'a Arguments,
}

impl Bench<'_> {
    /// Times the methods in rounds; a row for each.
    fn rows(&self, shape: Shape, methods: &[Method]) -> io::Result<Vec<Row>> {
        // A floor depends on the number of inputs, not on the method.
        let mut floors: BTreeMap<usize, Vec<Floors>> = BTreeMap::new();
        let mut timings: Vec<Vec<Timing>> = vec![Vec::new(); methods.len()];
        for round in 0..self.arguments.rounds {
            for (method, timings) in methods.iter().zip(&mut timings) {
                let models = self.inputs.used_by(method.recipe);
                let floor = self.floors(&models, round == 0)?;
                floors.entry(models.len()).or_default().push(floor);
                let timing = self.merge(method.recipe)?;
                eprintln!(
                    "{}, round {}: {} {:.2} s, floor of {} {:.2} s",
                    shape.name,
                    round + 1,
                    method.name,
                    timing.usage.wall.as_secs_f64(),
                    models.len(),
                    floor.copy
                );
                timings.push(timing);
            }
        }
        let rows = methods.iter().zip(timings).map(|(method, timings)| {
            let inputs = self.inputs.used_by(method.recipe).len();
            let floors = floors.get(&inputs).map_or(&[][..], Vec::as_slice);
            let peer = match &self.arguments.peer {
                Some(python) => Some(self.peer_merge(python, method.recipe)?),
                None => None,
            };
            Ok(Row {
                method: *method,
                shape,
                inputs,
                copy_floor: results::median(floors.iter().map(|floors| floors.copy)),
                read_floor: results::median(floors.iter().map(|floors| floors.read)),
                timings,
                peer,
            })
        });
        rows.collect()
    }

    /// The floors of these inputs, under the limit if there is one.
    fn floors(&self, models: &[PathBuf], both: bool) -> io::Result<Floors> {
        let Some(limit) = self.arguments.limit else {
            return Ok(Floors {
                copy: floor_of(models, self.folder, both, self.arguments)?,
                read: f64::NAN,
            });
        };
        let cgroup = Cgroup::new(limit.as_u64())?;
        let output = cgroup
            .command(&std::env::current_exe()?)
            .args(["--limit", &limit.to_string(), "--threads"])
            .arg(self.arguments.threads.to_string())
            .arg("--folder")
            .arg(self.folder)
            .arg("--floors")
            .args(models)
            .stderr(Stdio::inherit())
            .output()?;
        let told: Option<Vec<f64>> = String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .map(|seconds| seconds.parse().ok())
            .collect();
        match told.as_deref() {
            Some(&[copy, read]) if output.status.success() => Ok(Floors { copy, read }),
            _ => Err(io::Error::other("the floors under the limit failed")),
        }
    }

    /// One merge by weld.
    fn merge(&self, recipe: &str) -> io::Result<Timing> {
        let (path, out) = (self.folder.join("recipe.yml"), self.folder.join("out"));
        fs::write(&path, self.inputs.fill(recipe))?;
        let _ = fs::remove_dir_all(&out);
        prepare(&self.inputs.used_by(recipe), self.arguments)?;
        let report = self.folder.join("report.json");
        let limit = self.arguments.limit;
        let cgroup = limit.map(|limit| Cgroup::new(limit.as_u64())).transpose()?;
        let mut command = match &cgroup {
            Some(cgroup) => cgroup.command(self.weld),
            None => Command::new(self.weld),
        };
        command
            .arg("merge")
            .args([&path, &out])
            .args(["-q", "--format", "json", "--threads"])
            .arg(self.arguments.threads.to_string())
            .stdout(fs::File::create(&report)?);
        let usage = process::measure(&mut command)?;
        let report: serde_json::Value = serde_json::from_slice(&fs::read(report)?)?;
        fs::remove_dir_all(&out)?;
        Ok(Timing {
            usage,
            own_memory: report["peak_memory"].as_u64().unwrap_or(0),
            read: report["bytes_read"].as_u64().unwrap_or(0),
            limited_peak: cgroup.map(|cgroup| cgroup.peak()).transpose()?,
        })
    }

    /// One merge by mergekit.
    fn peer_merge(&self, python: &Path, recipe: &str) -> io::Result<Usage> {
        let (path, out) = (self.folder.join("recipe.yml"), self.folder.join("peer"));
        // It needs to be told the dtype to keep bf16 throughout.
        fs::write(&path, self.inputs.fill(recipe) + "dtype: bfloat16\n")?;
        let _ = fs::remove_dir_all(&out);
        let mut command = Command::new(python);
        command
            .args(["-m", "mergekit.scripts.run_yaml"])
            .args([&path, &out])
            .args(["--no-write-model-card", "--quiet"])
            .env("HF_HUB_OFFLINE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let usage = process::measure(&mut command)?;
        fs::remove_dir_all(&out)?;
        Ok(usage)
    }
}

/// What nothing can be faster than, in seconds.
#[derive(Debug, Clone, Copy)]
struct Floors {
    /// Reading the inputs and writing the output.
    copy: f64,
    /// Reading the inputs; only taken under a limit.
    read: f64,
}

/// Prints both floors of the files that were named.
fn tell_floors(arguments: &Arguments) -> io::Result<()> {
    let models = &arguments.floors;
    let copy = floor_of(models, &arguments.folder, false, arguments)?;
    let mut read = f64::INFINITY;
    for reading in [Reading::Buffered, Reading::Direct] {
        prepare(models, arguments)?;
        match floor::read(models, reading, arguments.threads) {
            Ok(elapsed) => read = read.min(elapsed.as_secs_f64()),
            // Not every file system reads directly.
            Err(_) if reading == Reading::Direct => {}
            Err(error) => return Err(error),
        }
    }
    println!("{copy} {read}");
    Ok(())
}

/// Whether this build has the method.
fn knows(weld: &Path, method: &str) -> bool {
    let status = Command::new(weld)
        .args(["methods", method])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let known = status.is_ok_and(|status| status.success());
    if !known {
        eprintln!("{method}: not in this build, left out");
    }
    known
}

/// The faster way of writing, in seconds. Through the cache, which is the slower one by far where direct writes
/// are taken, only if asked to.
fn floor_of(
    models: &[PathBuf],
    folder: &Path,
    both: bool,
    arguments: &Arguments,
) -> io::Result<f64> {
    let out = folder.join("floor.safetensors");
    let copy = |writing| -> io::Result<f64> {
        prepare(models, arguments)?;
        // More threads than weld computes with, as it writes from another one: so some read while others write.
        let elapsed = floor::copy(models, &out, writing, arguments.threads + 2)?;
        Ok(elapsed.as_secs_f64())
    };
    let direct = copy(Writing::Direct);
    match direct {
        Ok(direct) if !both => Ok(direct),
        // Not every file system writes directly.
        direct => Ok(copy(Writing::Buffered)?.min(direct.unwrap_or(f64::INFINITY))),
    }
}

/// Warms or drops the inputs in the page cache.
fn prepare(models: &[PathBuf], arguments: &Arguments) -> io::Result<()> {
    for model in models {
        let mut file = fs::File::open(model)?;
        if arguments.is_cold() {
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        } else {
            io::copy(&mut file, &mut io::sink())?;
        }
    }
    Ok(())
}

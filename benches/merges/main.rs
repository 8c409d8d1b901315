//! Whole merges, timed beside the copy floor and, if it is there, mergekit.
//!
//! ```sh
//! cargo bench --bench merges -- --shape 1.1b --rounds 5 --folder target/bench
//! cargo bench --bench merges -- --shape 1.1b --peer path/to/python   # with mergekit 0.1.5 in it
//! ```
//!
//! In each round every method runs once, with the copy floor between them, so that a slow minute of the
//! machine hits all alike. Each answer is checked before it is timed: on a small model, the bytes must not
//! depend on threads or memory, and must be no input's. The table has medians.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark shows its table"
)]

mod floor;
mod models;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use floor::Writing;
use models::Shape;

/// Methods with their recipes over `base`, `a` and `b`; `{x}` stands for the paths.
const METHODS: [(&str, &str); 14] = [
    (
        "passthrough",
        "merge_method: passthrough\nmodels: [{model: {a}}]\n",
    ),
    (
        "linear",
        "merge_method: linear\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    (
        "task_arithmetic",
        "merge_method: task_arithmetic\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5}\n",
    ),
    (
        "slerp",
        "merge_method: slerp\nbase_model: {a}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {t: 0.4}\n",
    ),
    (
        "nuslerp",
        "merge_method: nuslerp\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    (
        "multislerp",
        "merge_method: multislerp\nmodels: [{model: {a}, parameters: {weight: 0.6}}, {model: {b}, parameters: {weight: 0.4}}]\n",
    ),
    (
        "karcher",
        "merge_method: karcher\nmodels: [{model: {a}}, {model: {b}}]\n",
    ),
    (
        "model_stock",
        "merge_method: model_stock\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\n",
    ),
    (
        "dare_linear",
        "merge_method: dare_linear\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    (
        "dare_ties",
        "merge_method: dare_ties\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    (
        "ties",
        "merge_method: ties\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5}\n",
    ),
    (
        "breadcrumbs",
        "merge_method: breadcrumbs\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5, gamma: 0.01}\n",
    ),
    (
        "sce",
        "merge_method: sce\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {select_topk: 0.5}\n",
    ),
    (
        "della",
        "merge_method: della\nbase_model: {base}\nmodels: [{model: {a}}, {model: {b}}]\nparameters: {weight: 0.5, density: 0.5, epsilon: 0.15}\n",
    ),
];

/// Time whole merges beside the copy floor
#[derive(Parser)]
struct Arguments {
    /// Size of the models: tiny, 0.25b, 1.1b, 4b or 7b parameters
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
    /// Only these methods, comma-separated
    #[arg(long, value_delimiter = ',')]
    methods: Vec<String>,
    /// A Python with mergekit 0.1.5, to be timed once for each method
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Drop the inputs from the page cache before each run
    #[arg(long)]
    cold: bool,
    /// Write the table to this file too
    #[arg(long)]
    results: Option<PathBuf>,
    /// Given by cargo; no effect
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a process took.
#[derive(Debug, Clone, Copy)]
struct Usage {
    wall: Duration,
    processor: Duration,
    /// Its largest resident set in bytes, mapped files included.
    resident: u64,
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
    let Some(shape) = Shape::find(&arguments.shape) else {
        let names: Vec<&str> = models::SHAPES.iter().map(|shape| shape.name).collect();
        return Err(io::Error::other(format!(
            "no shape `{}`; there are {}",
            arguments.shape,
            names.join(", ")
        )));
    };
    let chosen = |name: &str| {
        arguments.methods.is_empty() || arguments.methods.iter().any(|method| method == name)
    };
    fs::create_dir_all(&arguments.folder)?;
    let folder = fs::canonicalize(&arguments.folder)?;
    let weld = PathBuf::from(env!("CARGO_BIN_EXE_weld"));
    let methods: Vec<(&str, &str)> = METHODS
        .into_iter()
        .filter(|(name, _)| chosen(name) && knows(&weld, name))
        .collect();

    let tiny = Inputs::make(&folder, SMALL)?;
    for (name, recipe) in &methods {
        check(&weld, &folder, &tiny, recipe)
            .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
    }
    eprintln!("{} answers checked", methods.len());

    let inputs = Inputs::make(&folder, shape)?;
    let mut floors: [Vec<f64>; 3] = Default::default();
    let mut runs: Vec<Vec<(Usage, u64)>> = vec![Vec::new(); methods.len()];
    for round in 0..arguments.rounds {
        for (index, (name, recipe)) in methods.iter().enumerate() {
            let models = inputs.used_by(recipe);
            let floor = floor_of(&models, &folder, round == 0, arguments)?;
            floors[models.len() - 1].push(floor);
            let usage = merge(&weld, &folder, &inputs, recipe, arguments)?;
            eprintln!(
                "round {}: {name} {:.2} s, floor of {} {floor:.2} s",
                round + 1,
                usage.0.wall.as_secs_f64(),
                models.len()
            );
            runs[index].push(usage);
        }
    }
    let peer: Vec<Option<Usage>> = methods
        .iter()
        .map(|(_, recipe)| match &arguments.peer {
            Some(python) => peer_merge(python, &folder, &inputs, recipe).map(Some),
            None => Ok(None),
        })
        .collect::<io::Result<_>>()?;

    let mut table = heading(arguments);
    for (((name, recipe), runs), peer) in methods.iter().zip(&runs).zip(&peer) {
        let count = inputs.used_by(recipe).len();
        let floor = median(floors[count - 1].iter().copied());
        let wall = median(runs.iter().map(|(usage, _)| usage.wall.as_secs_f64()));
        let processor = median(runs.iter().map(|(usage, _)| usage.processor.as_secs_f64()));
        let memory = runs.iter().map(|(_, memory)| *memory).max().unwrap_or(0);
        let (theirs, faster) = match peer {
            Some(usage) => (
                format!(
                    "{:.1} s, {:.1} GB",
                    usage.wall.as_secs_f64(),
                    usage.resident as f64 / 1e9
                ),
                format!("{:.1}", usage.wall.as_secs_f64() / wall),
            ),
            None => ("".to_owned(), "".to_owned()),
        };
        table += &format!(
            "| {name} | {count} | {floor:.2} s | {wall:.2} s | {:.2} | {processor:.2} s | {:.0} MiB | {theirs} | {faster} |\n",
            wall / floor,
            memory as f64 / 1048576.0
        );
    }
    print!("{table}");
    if let Some(path) = &arguments.results {
        fs::write(path, table)?;
    }
    Ok(())
}

/// What was measured, and the first rows of the table.
fn heading(arguments: &Arguments) -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    format!(
        "{processor}, {} threads, shape {}, {} cache, medians of {} rounds\n\n\
         | method | inputs | copy floor | weld | of the floor | processor time | own memory | mergekit | times faster |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        arguments.threads,
        arguments.shape,
        if arguments.cold { "cold" } else { "warm" },
        arguments.rounds,
    )
}

/// The shape that answers are checked on.
const SMALL: Shape = models::SHAPES[0];

/// The three models of a shape.
struct Inputs {
    base: PathBuf,
    a: PathBuf,
    b: PathBuf,
}

impl Inputs {
    fn make(folder: &Path, shape: Shape) -> io::Result<Self> {
        Ok(Self {
            base: models::model(folder, shape, 0)?,
            a: models::model(folder, shape, 1)?,
            b: models::model(folder, shape, 2)?,
        })
    }

    /// The recipe with these models.
    fn fill(&self, recipe: &str) -> String {
        recipe
            .replace("{base}", &self.base.to_string_lossy())
            .replace("{a}", &self.a.to_string_lossy())
            .replace("{b}", &self.b.to_string_lossy())
    }

    /// The weight files that a recipe reads.
    fn used_by(&self, recipe: &str) -> Vec<PathBuf> {
        [("{a}", &self.a), ("{b}", &self.b), ("{base}", &self.base)]
            .into_iter()
            .filter(|(mark, _)| recipe.contains(mark))
            .map(|(_, path)| path.join("model.safetensors"))
            .collect()
    }
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

/// Whether the bytes are the same at one thread and little memory, and no input's (but for a copy).
fn check(weld: &Path, folder: &Path, inputs: &Inputs, recipe: &str) -> Result<(), String> {
    let path = folder.join("recipe.yml");
    fs::write(&path, inputs.fill(recipe)).map_err(|error| error.to_string())?;
    let mut outputs = Vec::new();
    for (threads, memory) in [("1", "64MiB"), ("3", "256MiB")] {
        let out = folder.join("out");
        let output = Command::new(weld)
            .arg("merge")
            .args([&path, &out])
            .args(["--force", "-q", "--threads", threads, "--memory", memory])
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let weights = fs::read(out.join("model.safetensors")).map_err(|error| error.to_string())?;
        outputs.push(weights);
    }
    if outputs[0] != outputs[1] {
        return Err("the bytes depend on threads or memory".into());
    }
    let copies = recipe.contains("passthrough");
    for model in inputs.used_by(recipe) {
        let input = fs::read(model).map_err(|error| error.to_string())?;
        let same = payload(&input) == payload(&outputs[0]);
        if same != copies {
            return Err(format!(
                "the output is {}an input",
                if same { "" } else { "not " }
            ));
        }
    }
    Ok(())
}

/// A safetensors file without its header.
fn payload(file: &[u8]) -> &[u8] {
    let header = file
        .first_chunk::<8>()
        .map_or(0, |length| u64::from_le_bytes(*length));
    file.get(8 + header as usize..).unwrap_or_default()
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

/// One merge by weld: what the process took, and its own memory.
fn merge(
    weld: &Path,
    folder: &Path,
    inputs: &Inputs,
    recipe: &str,
    arguments: &Arguments,
) -> io::Result<(Usage, u64)> {
    let (path, out) = (folder.join("recipe.yml"), folder.join("out"));
    fs::write(&path, inputs.fill(recipe))?;
    let _ = fs::remove_dir_all(&out);
    prepare(&inputs.used_by(recipe), arguments)?;
    let report = folder.join("report.json");
    let mut command = Command::new(weld);
    command
        .arg("merge")
        .args([&path, &out])
        .args(["-q", "--format", "json", "--threads"])
        .arg(arguments.threads.to_string())
        .stdout(fs::File::create(&report)?);
    let usage = measure(&mut command)?;
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report)?)?;
    fs::remove_dir_all(&out)?;
    Ok((usage, report["peak_memory"].as_u64().unwrap_or(0)))
}

/// One merge by mergekit.
fn peer_merge(python: &Path, folder: &Path, inputs: &Inputs, recipe: &str) -> io::Result<Usage> {
    let (path, out) = (folder.join("recipe.yml"), folder.join("peer"));
    // It needs to be told the dtype to keep bf16 throughout.
    fs::write(&path, inputs.fill(recipe) + "dtype: bfloat16\n")?;
    let _ = fs::remove_dir_all(&out);
    let mut command = Command::new(python);
    command
        .args(["-m", "mergekit.scripts.run_yaml"])
        .args([&path, &out])
        .args(["--no-write-model-card", "--quiet"])
        .env("HF_HUB_OFFLINE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let usage = measure(&mut command)?;
    fs::remove_dir_all(&out)?;
    Ok(usage)
}

/// Warms or drops the inputs in the page cache.
fn prepare(models: &[PathBuf], arguments: &Arguments) -> io::Result<()> {
    for model in models {
        let mut file = fs::File::open(model)?;
        if arguments.cold {
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        } else {
            io::copy(&mut file, &mut io::sink())?;
        }
    }
    Ok(())
}

/// Runs a process to its end.
fn measure(command: &mut Command) -> io::Result<Usage> {
    let started = Instant::now();
    let child = command.spawn()?;
    let mut status = 0;
    // SAFETY: plain integers, for which zeros are valid, to be filled by the call.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: the child is ours and is waited for only here; both pointers are to live values.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let wall = started.elapsed();
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        return Err(io::Error::other(format!("{command:?} failed")));
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(Usage {
        wall,
        processor: time(usage.ru_utime) + time(usage.ru_stime),
        resident: usage.ru_maxrss as u64 * 1024,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

//! Executes a plan: a folder beside the output is filled, synced, and renamed into its place.
//!
//! A run leaves either the whole checkpoint or nothing at the output's place, whenever it is stopped. What a
//! killed run leaves beside it is cleaned away by the next.
//!
//! This layer decides nothing: what is computed stands in the plan.

mod behind;
mod card;
mod digests;
mod error;
mod lock;
mod output;
mod stage;
mod work;
mod writer;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

pub use digests::{Digest, Seen, all_digests, digests, each_piece};
pub use error::RunError;
pub use lock::{
    LOCK_FILE, Lock, LockedFile, LockedHub, LockedInput, LockedOptions, LockedOutputs, Tool,
    files_of, locked_hub, locked_recipe,
};

use behind::DropBehind;
use checkpoint::{Checkpoint, Leave, index_json};
use engine::{self, Observer, Settings, Sink, Tile, Totals};
use errors::Refusal;
use output::{OutputFiles, write_file};
use plan::Plan;
use stage::Stage;
use work::Work;
pub use work::{Other, Sample};

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of tensors read and written.
    pub totals: Totals,
    /// How long it took.
    pub elapsed: Duration,
    /// What the user should know, and only the weights could tell.
    pub notes: Vec<String>,
}

/// How a run leaves its output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Replace what is at the output's place.
    pub force: bool,
    /// Put the digests of the inputs' tensors into the lock too, which reads them once more.
    pub hash_inputs: bool,
    /// Let inputs leave the page cache as soon as they are read, as they do not fit into memory.
    pub drop_behind: bool,
}

/// Runs a plan and puts the checkpoint at `out`.
///
/// # Errors
/// Before anything is written: `out` is in use, or the disk is too small. Later: what only the weights can
/// tell (NaN, overflow, copies that differ), and failures of the disk. In each case `out` is as it was.
pub fn run(
    plan: &Plan,
    out: &Path,
    options: RunOptions,
    observer: &dyn Observer,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    let side: u64 = plan
        .sidecars
        .iter()
        .filter_map(|(_, file)| file.path.metadata().ok())
        .map(|meta| meta.len())
        .chain(plan.made.iter().map(|(_, bytes)| bytes.len() as u64))
        .sum();
    let models = plan.stored_models();
    let inputs = models.iter().flat_map(|model| model.location().paths());
    let stage = Stage::open(out, options.force, inputs, plan.bytes_written() + side)?;

    let files = OutputFiles::create(stage.path(), &plan.shards, &plan.lens())?;
    prepare(plan, observer)?;
    let Work { jobs, purposes, .. } = Work::of(plan, None)?;
    read_ahead(plan);
    let leave = match options.drop_behind {
        true => Leave::Cache,
        false => Leave::Map,
    };
    let sink = DropBehind {
        plan,
        sink: &files,
        leave,
    };
    let totals = engine::execute(&jobs, &plan.settings, &plan.limits, &sink, observer)
        .map_err(|error| RunError::from_engine(error, &purposes, out))?;
    check_complete(plan, totals)?;
    let digests = files.finish()?;
    let inputs = match options.hash_inputs {
        true => Some(input_digests(plan, observer)?),
        false => None,
    };
    check_unchanged(plan)?;
    let files = write_side_files(plan, stage.path())?;
    let lock = Lock::new(plan, &digests, files, inputs);
    write_file(stage.path(), LOCK_FILE, lock.text().as_bytes())?;
    write_file(stage.path(), "README.md", card::text(plan, out).as_bytes())?;
    if observer.cancelled() {
        return Err(RunError::Cancelled);
    }
    stage.commit()?;
    Ok(Summary {
        tensors: plan.tensors.len(),
        totals,
        elapsed: started.elapsed(),
        notes: plan.models.iter().flat_map(Checkpoint::said).collect(),
    })
}

/// Computes what a plan would write and gives it to a sink: the output's tensors by number.
///
/// With `sample`, only those blocks of each tensor are computed; it gives them, ascending, for a tensor's number and how many blocks it has.
///
/// # Errors
/// What only the weights can tell (NaN, overflow, copies that differ), and failures of the sink.
pub fn replay(
    plan: &Plan,
    sample: Option<&Sample<'_>>,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    prepare(plan, observer)?;
    let Work { jobs, purposes, .. } = Work::of(plan, sample)?;
    if sample.is_none() {
        read_ahead(plan);
    }
    let totals = engine::execute(&jobs, &plan.settings, &plan.limits, sink, observer)
        .map_err(|error| RunError::from_engine(error, &purposes, Path::new("the result")))?;
    check_unchanged(plan)?;
    Ok(totals)
}

/// Computes some tensors of a plan by other programs than the plan's, which get what is there as one source more.
///
/// Whatever numbers are there are let through, as it is their comparison that judges them. The memory of the plan's own
/// programs may be too little for these: then the budget is what they need.
///
/// # Errors
/// Failures of the sink, and what only the weights can tell.
pub fn replay_others(
    plan: &Plan,
    others: &[Other<'_>],
    sample: Option<&Sample<'_>>,
    sink: &dyn Sink,
    observer: &dyn Observer,
) -> Result<Totals, RunError> {
    let of_plan = |other: &Other<'_>| plan.tensors.get(other.tensor);
    let widest = others
        .iter()
        .filter_map(of_plan)
        .map(|tensor| tensor.sources.len() + 1);
    let cost = others
        .iter()
        .fold(plan.cost, |cost, other| cost.max(other.program.cost()));
    let mut settings = Settings {
        allow_non_finite: true,
        saturate: true,
        ..plan.settings
    };
    let widest = widest.max().unwrap_or(0);
    let limits = settings.limits(widest, cost).or_else(|error| {
        settings.memory = error.needed;
        settings.limits(widest, cost)
    });
    let limits = limits.map_err(|error| RunError::NotPrepared(Refusal::from(&error)))?;
    let Work { jobs, purposes, .. } = Work::of_others(plan, others, sample)?;
    engine::execute(&jobs, &settings, &limits, sink, observer)
        .map_err(|error| RunError::from_engine(error, &purposes, Path::new("the result")))
}

/// Tells the system that all of the models is going to be read.
fn read_ahead(plan: &Plan) {
    plan.stored_models()
        .iter()
        .for_each(|model| model.read_ahead());
}

/// Makes the values that no file holds and that are not computed block by block: the rows of routers.
fn prepare(plan: &Plan, observer: &dyn Observer) -> Result<(), RunError> {
    let cancelled = || observer.cancelled();
    if plan.models.iter().any(Checkpoint::reads_results) {
        let Work { jobs, purposes, .. } = Work::of_results(plan)?;
        engine::execute(&jobs, &plan.settings, &plan.limits, &NoOutput, observer)
            .map_err(|error| RunError::from_engine(error, &purposes, Path::new("the result")))?;
    }
    for model in &plan.models {
        let prepared = model.prepare(plan.settings.threads, &cancelled);
        prepared.map_err(|source| match observer.cancelled() {
            true => RunError::Cancelled,
            false => RunError::NotPrepared(source),
        })?;
    }
    Ok(())
}

/// Takes nothing: for work that only decides.
struct NoOutput;

impl Sink for NoOutput {
    fn write(&self, _output: usize, _offset: u64, _bytes: Tile) -> std::io::Result<()> {
        Ok(())
    }
}

/// That no input was written to meanwhile.
fn check_unchanged(plan: &Plan) -> Result<(), RunError> {
    for model in &plan.models {
        model
            .check_unchanged()
            .map_err(|source| RunError::InputChanged {
                model: model.label().to_owned(),
                source: Box::new(source),
            })?;
    }
    Ok(())
}

/// Writes what is beside the weights; gives the digest of each file that `weld verify` makes again.
fn write_side_files(plan: &Plan, folder: &Path) -> Result<BTreeMap<String, String>, RunError> {
    let mut digests = BTreeMap::new();
    let mut made: Vec<(&str, Cow<'_, [u8]>)> = Vec::new();
    if plan.shards.len() > 1 {
        let index = index_json(&plan.shards, &plan.signatures());
        made.push(("model.safetensors.index.json", index.into_bytes().into()));
    }
    if let Some(config) = plan.config_text() {
        made.push(("config.json", config.into_bytes().into()));
    }
    let files = plan.made.iter();
    made.extend(files.map(|(name, bytes)| (name.as_str(), bytes.as_slice().into())));
    for (name, bytes) in made {
        let digest = write_file(folder, name, &bytes)?;
        digests.insert(name.to_owned(), digest.to_string());
    }
    for (_, file) in &plan.sidecars {
        let digest = output::copy_file(&file.path, folder, &file.name)?;
        digests.insert(file.name.clone(), digest.to_string());
    }
    Ok(digests)
}

/// The digests of the tensors of every model that was read, by name.
fn input_digests(
    plan: &Plan,
    observer: &dyn Observer,
) -> Result<Vec<BTreeMap<String, String>>, RunError> {
    let models = plan.stored_models();
    let of = |model: &&Checkpoint| {
        let digests = all_digests(model, plan.settings.threads, observer)?;
        let tensors = model.tensors().iter().zip(digests);
        let named =
            tensors.filter_map(|(tensor, digest)| Some((tensor.name.clone(), digest?.to_string())));
        Ok(named.collect())
    };
    models.iter().map(of).collect()
}

/// That every byte of every tensor was computed: a last look before a folder is put in its place.
fn check_complete(plan: &Plan, totals: Totals) -> Result<(), RunError> {
    let headers: u64 = plan
        .shards
        .iter()
        .map(|shard| shard.header.len() as u64)
        .sum();
    let expected = plan.bytes_written() - headers;
    if totals.written == expected {
        return Ok(());
    }
    Err(RunError::Incomplete {
        expected,
        found: totals.written,
    })
}

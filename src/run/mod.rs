//! Executes a plan: a folder beside the output is filled, synced, and renamed into its place.
//!
//! A run leaves either the whole checkpoint or nothing at the output's place, whenever it is stopped. What a
//! killed run leaves beside it is cleaned away by the next.
//!
//! This layer decides nothing: what is computed stands in the plan.

mod card;
mod error;
mod output;
mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

pub use error::RunError;

use crate::checkpoint::index_json;
use crate::engine::{self, Job, Observer, Totals, Work};
use crate::numeric::FloatType;
use crate::plan::{Operation, Plan};
use output::{OutputFiles, write_file};
use stage::Stage;

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of tensors read and written.
    pub totals: Totals,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs a plan and puts the checkpoint at `out`.
///
/// # Errors
/// Before anything is written: `out` is in use, or the disk is too small. Later: what only the weights can
/// tell (NaN, overflow, copies that differ), and failures of the disk. In each case `out` is as it was.
pub fn run(
    plan: &Plan,
    out: &Path,
    force: bool,
    observer: &dyn Observer,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    let side: u64 = plan
        .sidecars
        .iter()
        .filter_map(|(_, file)| file.path.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    let inputs = plan
        .models
        .iter()
        .map(|model| model.location().path.as_path());
    let stage = Stage::open(out, force, inputs, plan.bytes_written() + side)?;

    let files = OutputFiles::create(stage.path(), &plan.shards, plan.equal.len())?;
    let jobs = jobs(plan);
    let totals = engine::execute(&jobs, &plan.settings, &plan.limits, &files, observer)
        .map_err(|error| RunError::from_engine(error, plan, out))?;
    check_complete(plan, totals)?;
    files.sync()?;
    for model in &plan.models {
        model
            .check_unchanged()
            .map_err(|source| RunError::InputChanged {
                model: model.label().to_owned(),
                source: Box::new(source),
            })?;
    }

    if plan.shards.len() > 1 {
        let index = index_json(&plan.shards, &plan.signatures());
        write_file(
            stage.path(),
            "model.safetensors.index.json",
            index.as_bytes(),
        )?;
    }
    if let Some(config) = &plan.config {
        // `Value` prints without fail; the alternate form is indented.
        write_file(
            stage.path(),
            "config.json",
            format!("{config:#}\n").as_bytes(),
        )?;
    }
    for (_, file) in &plan.sidecars {
        output::copy_file(&file.path, stage.path(), &file.name)?;
    }
    write_file(stage.path(), "README.md", card::text(plan, out).as_bytes())?;
    if observer.cancelled() {
        return Err(RunError::Cancelled);
    }
    stage.commit()?;
    Ok(Summary {
        tensors: plan.tensors.len(),
        totals,
        elapsed: started.elapsed(),
    })
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

/// The engine's work: first the pairs that must be equal, then the output's tensors.
fn jobs(plan: &Plan) -> Vec<Job<'_>> {
    let equal = plan.equal.iter().map(|&(model, left_out, kept)| {
        let model = &plan.models[model];
        Job {
            work: Work::Copy {
                sources: [left_out, kept]
                    .into_iter()
                    .filter_map(|tensor| model.bytes(tensor))
                    .collect(),
                format: None,
            },
            output: false,
        }
    });
    let tensors = plan.tensors.iter().map(|tensor| {
        let work = match &tensor.operation {
            Operation::Copy => Work::Copy {
                sources: tensor
                    .sources
                    .iter()
                    .filter_map(|source| plan.models[source.model].bytes(source.tensor))
                    .collect(),
                format: FloatType::of(tensor.dtype),
            },
            Operation::Compute(program) => Work::Compute {
                sources: tensor
                    .sources
                    .iter()
                    .filter_map(|source| plan.models[source.model].elements(source.tensor))
                    .collect(),
                elements: tensor.elements(),
                program: program.as_ref(),
                // The plan computes only what is written as a float.
                output: FloatType::of(tensor.dtype).unwrap_or(FloatType::F32),
            },
        };
        Job { work, output: true }
    });
    equal.chain(tensors).collect()
}

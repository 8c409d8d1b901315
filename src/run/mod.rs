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
mod writer;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

pub use error::RunError;

use crate::checkpoint::index_json;
use crate::engine::{self, Job, Observer, Target, Totals};
use crate::numeric::FloatType;
use crate::plan::{Operation, Plan, PlannedTensor};
use output::{OutputFiles, write_file};
use stage::Stage;
use writer::Room;

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
        .chain(plan.made.iter().map(|(_, bytes)| bytes.len() as u64))
        .sum();
    let models = plan.stored_models();
    let inputs = models.iter().flat_map(|model| model.location().paths());
    let stage = Stage::open(out, force, inputs, plan.bytes_written() + side)?;

    let room = Room {
        chunk: plan.limits.chunk,
        chunks: plan.limits.chunks,
    };
    let files = OutputFiles::create(stage.path(), &plan.shards, room)?;
    let Work { jobs, purposes, .. } = Work::of(plan);
    let totals = engine::execute(&jobs, &plan.settings, &plan.limits, &files, observer)
        .map_err(|error| RunError::from_engine(error, &purposes, out))?;
    check_complete(plan, totals)?;
    files.finish()?;
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
    for (name, bytes) in &plan.made {
        write_file(stage.path(), name, bytes)?;
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

/// What a job of the engine is for, so that its errors can be told.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// A pair of tensors that must be equal, of a plan.
    Equal(&'a Plan, usize),
    /// A tensor of a plan: written, or decided for those made from it.
    Tensor(&'a Plan, usize),
}

/// The engine's work, in order, and what each job is for.
#[derive(Default)]
struct Work<'a> {
    jobs: Vec<Job<'a>>,
    purposes: Vec<Purpose<'a>>,
    /// The results that are checked and decided already, by address.
    prepared: HashSet<*const PlannedTensor>,
}

impl<'a> Work<'a> {
    /// First the pairs that must be equal, then the output's tensors, each after what it is made from.
    fn of(plan: &'a Plan) -> Self {
        let mut work = Self::default();
        for result in plan.all_results() {
            work.check_equal(&result.plan);
        }
        work.check_equal(plan);
        for (index, tensor) in plan.tensors.iter().enumerate() {
            let derived = work.prepare(plan, tensor);
            let format = FloatType::of(tensor.dtype).unwrap_or(FloatType::F32);
            work.push(
                Purpose::Tensor(plan, index),
                Job {
                    work: computation(plan, tensor, Target::Values(format)),
                    output: Some(index),
                    after_all: derived,
                },
            );
        }
        work
    }

    fn push(&mut self, purpose: Purpose<'a>, job: Job<'a>) {
        self.purposes.push(purpose);
        self.jobs.push(job);
    }

    fn check_equal(&mut self, plan: &'a Plan) {
        for (index, &(model, left_out, kept)) in plan.equal.iter().enumerate() {
            let model = &plan.models[model];
            let pair = [left_out, kept].into_iter();
            let work = engine::Work::Copy {
                // As they are stored: an adapter of the one that is kept changes the other with it.
                sources: pair.filter_map(|tensor| model.stored(tensor)).collect(),
                format: None,
            };
            let job = Job {
                work,
                output: None,
                after_all: false,
            };
            self.push(Purpose::Equal(plan, index), job);
        }
    }

    /// Adds the jobs that a tensor's sources need, if they are results; tells whether any is.
    fn prepare(&mut self, plan: &'a Plan, tensor: &'a PlannedTensor) -> bool {
        let mut any = false;
        for source in tensor.inputs() {
            let Some((result, index)) = plan.result_of(source) else {
                continue;
            };
            any = true;
            let Some((made, decided)) = result
                .plan
                .tensors
                .get(index)
                .zip(result.decided.get(index))
            else {
                continue;
            };
            if !self.prepared.insert(made) {
                continue;
            }
            let derived = self.prepare(&result.plan, made);
            let needed = made.cost().measures > 0
                || matches!(made.operation, Operation::Copy) && made.sources.len() > 1;
            if needed {
                let job = Job {
                    work: computation(&result.plan, made, Target::Decide(decided)),
                    output: None,
                    after_all: derived,
                };
                self.push(Purpose::Tensor(&result.plan, index), job);
            }
        }
        any
    }
}

/// What the engine does for a tensor.
fn computation<'a>(
    plan: &'a Plan,
    tensor: &'a PlannedTensor,
    target: Target<'a>,
) -> engine::Work<'a> {
    match &tensor.operation {
        Operation::Copy => {
            let sources = tensor.sources.iter();
            engine::Work::Copy {
                sources: sources.filter_map(|source| plan.bytes(source)).collect(),
                format: FloatType::of(tensor.dtype),
            }
        }
        Operation::Compute(program) => {
            let sources = 0..tensor.sources.len();
            engine::Work::Compute {
                sources: sources
                    .filter_map(|source| plan.source_values(tensor, source))
                    .collect(),
                elements: tensor.elements(),
                program: program.as_ref(),
                target,
            }
        }
    }
}

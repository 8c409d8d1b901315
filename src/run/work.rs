//! The engine's jobs for a plan, in order.

use std::collections::HashSet;
use std::mem;
use std::ops::Range;

use super::error::RunError;
use architecture::may_be_infinite;
use engine::{self, AnyProgram, Encoded, Job, Names, Output, ResultUse, SourceName};
use numeric::{Elements, FloatType, Stored};
use plan::{MergeResult, Operation, Plan, PlannedTensor, View};

/// Chooses the blocks of a tensor, ascending, from its number in the output and its number of blocks.
pub type Sample<'s> = dyn Fn(usize, usize) -> Vec<usize> + 's;

/// A tensor of a plan that a program other than the plan's computes.
pub struct Other<'a> {
    /// Its number in the output.
    pub tensor: usize,
    /// The program.
    pub program: &'a dyn AnyProgram,
    /// An additional source after those of the plan: the checkpoint's own tensor.
    pub found: Stored<'a>,
}

/// The names of a planned tensor and its sources, for messages.
struct Named<'a>(&'a Plan, &'a PlannedTensor);

impl Names for Named<'_> {
    fn result(&self) -> String {
        self.1.name.clone()
    }

    fn source(&self, index: usize) -> SourceName {
        let Named(plan, tensor) = self;
        let Some(source) = tensor.sources.get(index) else {
            return SourceName {
                tensor: tensor.name.clone(),
                model: "the output".to_owned(),
                file: None,
            };
        };
        let model = &plan.models[source.model];
        let mut labels = vec![model.label()];
        // What is read in place of the source may come from other tensors too.
        let view = tensor.views.get(index).and_then(Option::as_ref);
        for part in view.into_iter().flat_map(View::inputs) {
            let label = plan.models[part.model].label();
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let place = model.place(source.tensor).filter(|_| labels.len() == 1);
        SourceName {
            tensor: model.tensors()[source.tensor].name.clone(),
            model: labels.join("` or `"),
            file: place.map(|(shard, _)| shard.file_name()),
        }
    }
}

/// The engine's jobs, in order. A part of them may be taken at a time: what was decided for one is not decided again.
#[derive(Default)]
pub(super) struct Work<'a> {
    pub(super) jobs: Vec<Job<'a>>,
    /// The results that have been checked and decided, by address.
    prepared: HashSet<*const PlannedTensor>,
}

impl<'a> Work<'a> {
    /// The jobs of some of the output's tensors, each after those it is computed from.
    ///
    /// With `sample`, only some blocks of the output's tensors: `sample` takes a tensor's number and its number of
    /// blocks, and returns the wanted ones.
    pub(super) fn outputs(
        &mut self,
        plan: &'a Plan,
        tensors: impl IntoIterator<Item = usize>,
        sample: Option<&Sample<'_>>,
    ) -> Result<Vec<Job<'a>>, RunError> {
        for index in tensors {
            // Scales are an output of the job before.
            if matches!(plan.tensors[index].operation, Operation::Scales) {
                continue;
            }
            let mut job = self.output(plan, index, &plan.tensors[index])?;
            job.sample = sample.map(|sample| sample(index, job.pieces()));
            self.jobs.push(job);
        }
        Ok(mem::take(&mut self.jobs))
    }

    /// The job that computes a tensor, after those that its sources need.
    fn output(
        &mut self,
        plan: &'a Plan,
        index: usize,
        tensor: &'a PlannedTensor,
    ) -> Result<Job<'a>, RunError> {
        let format = FloatType::from_dtype(tensor.dtype).unwrap_or(FloatType::F32);
        let output = Output {
            rounding: tensor.rounding,
            base: tensor.base,
            encoded: tensor.encoding.map(|encoding| Encoded {
                encoding,
                scales: index + 1,
            }),
            ..Output::new(index, format)
        };
        Ok(Job {
            names: Box::new(Named(plan, tensor)),
            after_all: self.prepare(plan, tensor)?,
            work: computation(plan, tensor, ResultUse::Outputs(vec![output]))?,
            sample: None,
        })
    }

    /// The jobs that compute some of the plan's tensors with other programs.
    pub(super) fn of_others(
        plan: &'a Plan,
        others: &'a [Other<'a>],
        sample: Option<&Sample<'_>>,
    ) -> Result<Self, RunError> {
        let mut work = Self::default();
        for other in others {
            let Some(tensor) = plan.tensors.get(other.tensor) else {
                continue;
            };
            let derived = work.prepare(plan, tensor)?;
            let mut sources = sources(plan, tensor)?;
            sources.push(Box::new(other.found));
            let mut job = Job {
                names: Box::new(Named(plan, tensor)),
                work: engine::Work::Compute {
                    sources,
                    elements: tensor.elements(),
                    program: other.program,
                    target: ResultUse::values(other.tensor, other.found.format),
                },
                after_all: derived,
                sample: None,
            };
            job.sample = sample.map(|sample| sample(other.tensor, job.pieces()));
            work.jobs.push(job);
        }
        Ok(work)
    }

    /// The jobs that compute some tensors of a result; tensors that are copies are only checked.
    pub(super) fn of_result(
        &mut self,
        result: &'a MergeResult,
        tensors: Range<usize>,
    ) -> Result<Vec<Job<'a>>, RunError> {
        let plan = &result.plan;
        for index in tensors {
            let tensor = &plan.tensors[index];
            match tensor.operation {
                Operation::Copy => self.decide(plan, tensor, &result.decided[index])?,
                Operation::Compute { .. } => {
                    let job = self.output(plan, index, tensor)?;
                    self.jobs.push(job);
                }
                Operation::Scales | Operation::Constant(_) => {}
            }
        }
        Ok(mem::take(&mut self.jobs))
    }

    /// The jobs that all results need before their values can be read; they write no output.
    pub(super) fn of_results(plan: &'a Plan) -> Result<Self, RunError> {
        let mut work = Self::default();
        for result in plan.computed_results() {
            work.decide_all(result)?;
        }
        Ok(work)
    }

    /// The jobs that a result needs before its values can be read; they write no output.
    pub(super) fn before(result: &'a MergeResult) -> Result<Self, RunError> {
        let mut work = Self::default();
        work.decide_all(result)?;
        Ok(work)
    }

    /// Treats each tensor of a result like a source of one of a plan's tensors.
    fn decide_all(&mut self, result: &'a MergeResult) -> Result<(), RunError> {
        let made = result.plan.tensors.iter().zip(&result.decided);
        for (tensor, decided) in made {
            self.decide(&result.plan, tensor, decided)?;
        }
        Ok(())
    }

    /// Adds the jobs that a tensor's sources need if they are results; returns whether any source is one.
    fn prepare(&mut self, plan: &'a Plan, tensor: &'a PlannedTensor) -> Result<bool, RunError> {
        let mut any = false;
        for source in tensor.inputs() {
            let found = plan.result_of(source);
            let Some((result, index)) = found.filter(|(result, _)| !result.is_made()) else {
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
            self.decide(&result.plan, made, decided)?;
        }
        Ok(any)
    }

    /// Adds the job that decides a tensor of a result, once, after the jobs that its own sources need.
    fn decide(
        &mut self,
        plan: &'a Plan,
        made: &'a PlannedTensor,
        decided: &'a engine::Decided,
    ) -> Result<(), RunError> {
        if !self.prepared.insert(made) {
            return Ok(());
        }
        let derived = self.prepare(plan, made)?;
        let needed = made.cost().measures > 0 && !decided.is_made()
            || matches!(made.operation, Operation::Copy) && made.sources.len() > 1;
        if needed {
            let job = Job {
                names: Box::new(Named(plan, made)),
                work: computation(plan, made, ResultUse::Decide(decided))?,
                after_all: derived,
                sample: None,
            };
            self.jobs.push(job);
        }
        Ok(())
    }
}

/// The engine's computation for a tensor.
fn computation<'a>(
    plan: &'a Plan,
    tensor: &'a PlannedTensor,
    target: ResultUse<'a>,
) -> Result<engine::Work<'a>, RunError> {
    Ok(match &tensor.operation {
        Operation::Copy => {
            let sources = (0..tensor.sources.len()).map(|source| plan.copied(tensor, source));
            let sources: Vec<&[u8]> =
                (sources.collect::<Option<_>>()).ok_or_else(|| unreadable(tensor))?;
            engine::Work::Copy {
                format: FloatType::from_dtype(tensor.dtype)
                    .filter(|&format| !is_bound(tensor, &sources, format)),
                sources,
                output: copied_to(&target),
            }
        }
        Operation::Constant(bytes) => engine::Work::Copy {
            format: None,
            sources: vec![bytes],
            output: copied_to(&target),
        },
        Operation::Compute { program, .. } => engine::Work::Compute {
            sources: sources(plan, tensor)?,
            elements: tensor.values(),
            program: program.as_ref(),
            target,
        },
        Operation::Scales => return Err(unreadable(tensor)),
    })
}

/// The output that bytes are copied to, if there is one.
fn copied_to(target: &ResultUse<'_>) -> Option<usize> {
    match target {
        ResultUse::Outputs(outputs) => outputs.first().map(|output| output.number),
        ResultUse::Decide(_) => None,
    }
}

/// Whether a copy bounds or masks values, so that infinity in it is meant. NaN never is.
fn is_bound(tensor: &PlannedTensor, sources: &[&[u8]], format: FloatType) -> bool {
    let mut sources = sources.iter();
    may_be_infinite(&tensor.name) && sources.all(|bytes| format.non_finite(bytes).nan == 0)
}

/// The values that a tensor is computed from.
fn sources<'a>(
    plan: &'a Plan,
    tensor: &'a PlannedTensor,
) -> Result<Vec<Box<dyn Elements + 'a>>, RunError> {
    let sources = 0..tensor.sources.len();
    sources
        .map(|source| plan.source_values(tensor, source))
        .collect::<Option<_>>()
        .ok_or_else(|| unreadable(tensor))
}

fn unreadable(tensor: &PlannedTensor) -> RunError {
    let why = format!(
        "the values that `{}` is made of cannot be read",
        tensor.name
    );
    RunError::NotPrepared(why.into())
}

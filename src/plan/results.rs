//! Results of merges as models of other merges: the documents of one file that use each other by name.
//!
//! A result that one other merge reads is computed where it is read. If several merges read it, each would compute it
//! again, together with everything it is made from. Such a result is made once, into a file that only the run knows.
//! The same holds for a result that takes whole matrices.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};

use super::Plan;
use super::output_part::OutputPart;
use super::planned::{Operation, PlannedTensor, SourceTensor};
use checkpoint::{
    Bytes, Checkpoint, CheckpointError, InMemory, InMemoryError, ModelConfig, Part, RemotePlace,
    SidecarsFrom, TensorEntry, TensorSource, stem_of,
};
use engine::{Decided, Derived};
use numeric::{Elements, FloatType};

/// A merge whose result other merges read tensor by tensor; it is never written to a folder.
pub struct MergeResult {
    /// The merge.
    pub plan: Plan,
    /// What the measuring passes of each tensor's program decided.
    pub decided: Vec<Decided>,
    /// Whether it is made once, before it is read.
    once: bool,
    /// Its computed tensors, once they are made.
    made: OnceLock<Made>,
}

/// The computed tensors of a result.
struct Made {
    values: InMemory,
    /// For each tensor of the result, its number among the values if it is computed.
    numbers: Vec<Option<usize>>,
}

/// The results that have been planned, by name.
pub type Results = BTreeMap<String, Arc<MergeResult>>;

impl MergeResult {
    /// The result of a plan; `several` says whether more than one merge reads it.
    pub fn new(plan: Plan, several: bool) -> Self {
        Self {
            decided: plan.tensors.iter().map(|_| Decided::default()).collect(),
            // Computing a whole matrix again for every block read from it would take too long; and what is to be
            // known of the whole model is found out before it is made.
            once: several || plan.cost.matrix > 0 || plan.is_surveyed(),
            plan,
            made: OnceLock::new(),
        }
    }

    /// Whether it is made once, before it is read: several merges read it, or it takes whole matrices.
    pub fn is_made_once(&self) -> bool {
        self.once
    }

    /// Whether it has been made, so that reading it computes nothing any more.
    pub fn is_made(&self) -> bool {
        self.made.get().is_some()
    }

    /// The tensors that are computed and not copied, by number: those that making the result makes.
    pub fn computed(&self) -> impl Iterator<Item = (usize, &PlannedTensor)> {
        let tensors = self.plan.tensors.iter().enumerate();
        tensors.filter(|(_, tensor)| matches!(tensor.operation, Operation::Compute { .. }))
    }

    /// Stores the values of its computed tensors, in their order.
    ///
    /// # Errors
    /// The number of bytes is not what the tensors need.
    pub fn keep(&self, bytes: impl IntoIterator<Item = Bytes>) -> Result<(), InMemoryError> {
        let mut numbers = vec![None; self.plan.tensors.len()];
        let mut tensors = Vec::new();
        for (number, ((index, tensor), bytes)) in self.computed().zip(bytes).enumerate() {
            numbers[index] = Some(number);
            let PlannedTensor {
                name, dtype, shape, ..
            } = tensor;
            tensors.push((name.clone(), *dtype, shape.clone(), bytes));
        }
        let values = InMemory::new(tensors)?;
        // Another thread may have made it too, with the same values.
        let _ = self.made.set(Made { values, numbers });
        Ok(())
    }

    /// The values of a tensor that has been made, and its number among them.
    fn made(&self, index: usize) -> Option<(&InMemory, usize)> {
        let Made { values, numbers } = self.made.get()?;
        Some((values, (*numbers.get(index)?)?))
    }

    /// The result as a model; messages call it `label`.
    pub fn checkpoint(self: &Arc<Self>, label: &str) -> Checkpoint {
        let plan = &self.plan;
        let location = plan.models[plan.tokenizer_donor].location().clone();
        let sidecars = plan.sidecars.iter().map(|(_, file)| file.clone());
        let sidecars = SidecarsFrom::Files(sidecars.collect());
        if let [whole] = plan.parts.as_slice()
            && whole.prefix.is_empty()
        {
            return self.part(label, whole, sidecars);
        }
        let parts = plan.parts.iter().map(|part| {
            let label = format!("{label}/{}", part.prefix.trim_end_matches('/'));
            let beside = match part.prefix.is_empty() {
                true => sidecars.clone(),
                false => SidecarsFrom::Nothing,
            };
            let model = self.part(label.trim_end_matches('/'), part, beside);
            Part {
                prefix: part.prefix.clone(),
                first: 0,
                stem: part.stem.clone(),
                format: part.format,
                model: Arc::new(model),
            }
        });
        let parts = parts.collect();
        Checkpoint::joined(label, location, sidecars, parts)
    }

    /// A part of the result as a model of its own.
    fn part(self: &Arc<Self>, label: &str, part: &OutputPart, beside: SidecarsFrom) -> Checkpoint {
        let plan = &self.plan;
        let folder = &plan.models[plan.donor].location().path;
        let config = plan.config_of(part).map(|(value, text)| {
            let path = folder.join(part.folder()).join("config.json");
            ModelConfig::made(path, value.clone()).with_text(Some(text))
        });
        let signatures = part.signatures(&plan.tensors).into_iter();
        let entries = signatures.map(|(name, dtype, shape)| TensorEntry {
            name,
            dtype,
            stored: dtype,
            len: shape.iter().product::<usize>() as u64 * (dtype.bitsize() / 8) as u64,
            shape,
        });
        let source = Arc::new(ResultValues {
            entries: entries.collect(),
            result: Arc::clone(self),
            first: part.tensors.start,
        });
        let location = plan.models[plan.tokenizer_donor].location().clone();
        Checkpoint::new(label, location, config, beside, source).with_stem(stem_of(&part.stem))
    }
}

/// The tensors of a part of a result.
struct ResultValues {
    entries: Vec<TensorEntry>,
    result: Arc<MergeResult>,
    /// The number of the first in the result.
    first: usize,
}

impl fmt::Debug for ResultValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultValues").finish_non_exhaustive()
    }
}

impl TensorSource for ResultValues {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn bytes(&self, index: usize) -> Option<&[u8]> {
        let index = self.first + index;
        if let Some((values, number)) = self.result.made(index) {
            return values.bytes(number);
        }
        let tensor = self.result.plan.tensors.get(index)?;
        match &tensor.operation {
            Operation::Copy => self.result.plan.bytes(tensor.sources.first()?),
            Operation::Constant(bytes) => Some(bytes),
            Operation::Compute { .. } | Operation::Scales => None,
        }
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let index = self.first + index;
        if let Some((values, number)) = self.result.made(index) {
            return values.elements(number);
        }
        let plan = &self.result.plan;
        let tensor = plan.tensors.get(index)?;
        let output = FloatType::from_dtype(tensor.dtype)?;
        let Operation::Compute { program, .. } = &tensor.operation else {
            return plan.elements(tensor.sources.first()?);
        };
        let sources = (0..tensor.sources.len()).map(|source| plan.source_values(tensor, source));
        Some(Box::new(Derived {
            sources: sources.collect::<Option<_>>()?,
            elements: tensor.elements(),
            program: program.as_ref(),
            output,
            rounding: tensor.rounding,
            decided: self.result.decided.get(index)?,
            allow_non_finite: plan.settings.allow_non_finite,
            saturate: plan.settings.saturate,
        }))
    }

    /// Those of what it is computed from, unless it is made before.
    fn remote(&self, index: usize) -> Vec<RemotePlace> {
        let plan = &self.result.plan;
        let tensor = plan.tensors.get(self.first + index);
        let tensor = tensor
            .filter(|tensor| !self.result.once || matches!(tensor.operation, Operation::Copy));
        tensor.map_or(Vec::new(), |tensor| plan.remote(tensor))
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let plan = &self.result.plan;
        let results = plan.all_results().into_iter();
        let models = results
            .map(|result| &result.plan)
            .chain([plan])
            .flat_map(|plan| &plan.models);
        let mut stored = models.filter(|model| model.is_stored());
        stored.try_for_each(|model| model.check_unchanged())
    }
}

impl Plan {
    /// Every result that it is made from, directly or indirectly; each once.
    pub fn all_results(&self) -> Vec<&MergeResult> {
        all_of(&self.results)
    }

    /// The results that are computed where they are read, each once: those that are not made before and are reached
    /// without passing through one that is.
    pub fn computed_results(&self) -> Vec<&MergeResult> {
        let mut found = Vec::new();
        collect(&self.results, &|result| !result.once, &mut found);
        found
    }

    /// The results that are made once, each after those that it is made from.
    pub fn results_made_once(&self) -> Vec<&MergeResult> {
        made_once(&self.results)
    }

    /// Whether programs must know of the whole model before they compute its first tensor.
    pub fn is_surveyed(&self) -> bool {
        self.tensors.iter().any(|tensor| match &tensor.operation {
            Operation::Copy | Operation::Scales | Operation::Constant(_) => false,
            Operation::Compute { program, .. } => program.survey().is_some(),
        })
    }

    /// Bytes of the results that are made once; a run keeps them in files of its own.
    pub fn scratch_bytes(&self) -> u64 {
        let results = self.results_made_once().into_iter();
        let tensors = results.flat_map(MergeResult::computed);
        tensors.map(|(_, tensor)| tensor.bytes()).sum()
    }

    /// The models stored in files: its own and those of its results; each once.
    pub fn stored_models(&self) -> Vec<&Checkpoint> {
        let mut models: Vec<&Checkpoint> = Vec::new();
        let results = self.all_results();
        let inner = results.iter().flat_map(|result| &result.plan.models);
        for model in self.models.iter().chain(inner) {
            let known = |other: &&Checkpoint| other.label() == model.label();
            if model.is_stored() && !models.iter().any(known) {
                models.push(model);
            }
        }
        models
    }

    /// The files that must be fetched before a tensor is computed.
    pub fn remote(&self, tensor: &PlannedTensor) -> Vec<RemotePlace> {
        let models = tensor.inputs().filter_map(|input| {
            let model = self.models.get(input.model)?;
            Some(model.remote(input.tensor))
        });
        models.flatten().collect()
    }

    /// The bytes of a source, if a file holds them unchanged.
    pub fn bytes(&self, source: &SourceTensor) -> Option<&[u8]> {
        self.models.get(source.model)?.bytes(source.tensor)
    }

    /// The values of a source; `None` for integers and bools.
    pub fn elements(&self, source: &SourceTensor) -> Option<Box<dyn Elements + '_>> {
        self.models.get(source.model)?.elements(source.tensor)
    }

    /// The merge whose result the source is, and the number of the tensor there.
    pub fn result_of(&self, source: &SourceTensor) -> Option<(&MergeResult, usize)> {
        let result = self.results.get(&source.model)?;
        Some((result, source.tensor))
    }
}

/// Results, the results that they are made from, and so on: each once.
pub(super) fn all_of(results: &BTreeMap<usize, Arc<MergeResult>>) -> Vec<&MergeResult> {
    let mut found = Vec::new();
    collect(results, &|_| true, &mut found);
    found
}

/// Documents can share results at every level: without remembering what it has seen, the walk would be exponential.
fn collect<'r>(
    results: &'r BTreeMap<usize, Arc<MergeResult>>,
    wanted: &dyn Fn(&MergeResult) -> bool,
    found: &mut Vec<&'r MergeResult>,
) {
    for result in results.values().map(Arc::as_ref) {
        if wanted(result) && !found.iter().any(|known| ptr::eq(*known, result)) {
            found.push(result);
            collect(&result.plan.results, wanted, found);
        }
    }
}

/// The results that are made once, each after those that it is made from.
pub(super) fn made_once(results: &BTreeMap<usize, Arc<MergeResult>>) -> Vec<&MergeResult> {
    fn after<'r>(
        results: &'r BTreeMap<usize, Arc<MergeResult>>,
        seen: &mut Vec<&'r MergeResult>,
        found: &mut Vec<&'r MergeResult>,
    ) {
        for result in results.values().map(Arc::as_ref) {
            if !seen.iter().any(|known| ptr::eq(*known, result)) {
                seen.push(result);
                after(&result.plan.results, seen, found);
                if result.once {
                    found.push(result);
                }
            }
        }
    }
    let (mut seen, mut found) = (Vec::new(), Vec::new());
    after(results, &mut seen, &mut found);
    found
}

/// The most bytes that models hold besides their files by the end of a run: adapters and routers.
pub(super) fn held_by(models: &[Arc<Checkpoint>]) -> u64 {
    models.iter().map(|model| model.held()).sum()
}

/// The cost of reading the sources of a tensor, results included.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// Bytes read in one pass.
    pub(super) once: u64,
    /// Bytes read before that pass, to decide how the sources are computed.
    pub(super) before: u64,
    /// Blocks held at the same time.
    pub(super) held: usize,
}

impl Reading {
    /// Bytes read over all passes over a tensor.
    pub(super) fn bytes(&self, tensor: &PlannedTensor) -> u64 {
        self.before + self.once * (tensor.cost().measures as u64 + 1)
    }
}

/// The cost of one pass over a tensor.
pub(super) fn reading(
    tensor: &PlannedTensor,
    models: &[Arc<Checkpoint>],
    results: &BTreeMap<usize, Arc<MergeResult>>,
) -> Reading {
    let mut sum = Reading::default();
    for (index, source) in tensor.sources.iter().enumerate() {
        if let Some(Some(view)) = tensor.views.get(index) {
            sum.once += view.bytes_read(*source, models);
            sum.held += 1;
            for part in view.inputs() {
                if let Some(result) = results.get(&part.model).filter(|result| !result.once) {
                    let made = &result.plan.tensors[part.tensor];
                    let inner = reading(made, &result.plan.models, &result.plan.results);
                    sum.before += inner.before + inner.once * made.cost().measures as u64;
                    sum.held += inner.held + 3;
                }
            }
            continue;
        }
        let part = match results.get(&source.model) {
            Some(result) if !result.once => {
                let made = &result.plan.tensors[source.tensor];
                let inner = reading(made, &result.plan.models, &result.plan.results);
                Reading {
                    once: inner.once,
                    before: inner.before + inner.once * made.cost().measures as u64,
                    // Its own sources, and its values in three forms.
                    held: inner.held + 3,
                }
            }
            _ => Reading {
                once: models[source.model].bytes_read(source.tensor),
                before: 0,
                held: 1,
            },
        };
        sum.once += part.once;
        sum.before += part.before;
        sum.held += part.held;
    }
    sum
}

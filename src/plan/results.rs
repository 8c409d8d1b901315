//! Results of merges as models of other merges: the documents of one file that use each other by name.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::outputs::{Operation, PlannedTensor};
use super::{Plan, SourceTensor};
use checkpoint::{Beside, Checkpoint, CheckpointError, ModelConfig, TensorEntry, TensorSource};
use engine::{Decided, Derived};
use numeric::{Elements, FloatType};

/// A merge whose result other merges read, tensor by tensor, without it being written.
pub struct MergeResult {
    /// The merge.
    pub plan: Plan,
    /// What the program of each tensor decided.
    pub decided: Vec<Decided>,
}

/// The results that have been planned, by name.
pub type Results = BTreeMap<String, Arc<MergeResult>>;

impl MergeResult {
    /// The result of a plan.
    pub fn new(plan: Plan) -> Self {
        let decided = plan.tensors.iter().map(|_| Decided::default()).collect();
        Self { plan, decided }
    }

    /// The result as a model, which messages will call `label`.
    pub fn checkpoint(self: &Arc<Self>, label: &str) -> Checkpoint {
        let plan = &self.plan;
        let donor = &plan.models[plan.donor];
        let config = plan
            .config
            .clone()
            .map(|value| ModelConfig::made(donor.location().path.join("config.json"), value));
        let entries = plan.tensors.iter().map(|tensor| TensorEntry {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            len: tensor.elements() * (tensor.dtype.bitsize() / 8) as u64,
        });
        let sidecars = plan.sidecars.iter().map(|(_, file)| file.clone());
        Checkpoint::new(
            label,
            plan.models[plan.tokenizer_donor].location().clone(),
            config,
            Beside::Files(sidecars.collect()),
            Arc::new(ResultValues {
                entries: entries.collect(),
                result: Arc::clone(self),
            }),
        )
    }
}

/// The tensors of a result.
struct ResultValues {
    entries: Vec<TensorEntry>,
    result: Arc<MergeResult>,
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
        let tensor = self.result.plan.tensors.get(index)?;
        match tensor.operation {
            Operation::Copy => self.result.plan.bytes(tensor.sources.first()?),
            Operation::Compute { .. } => None,
        }
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let plan = &self.result.plan;
        let tensor = plan.tensors.get(index)?;
        let output = FloatType::of(tensor.dtype)?;
        let Operation::Compute { program, .. } = &tensor.operation else {
            return plan.elements(tensor.sources.first()?);
        };
        let sources = (0..tensor.sources.len()).map(|source| plan.source_values(tensor, source));
        Some(Box::new(Derived {
            sources: sources.collect::<Option<_>>()?,
            elements: tensor.elements(),
            program: program.as_ref(),
            output,
            decided: self.result.decided.get(index)?,
            allow_non_finite: plan.settings.allow_non_finite,
            saturate: plan.settings.saturate,
        }))
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let mut models = self.result.plan.models.iter();
        models.try_for_each(|model| model.check_unchanged())
    }
}

impl Plan {
    /// Every result that it is made from, and what those are made from; each once.
    pub fn all_results(&self) -> Vec<&MergeResult> {
        let mut results = Vec::new();
        self.collect_results(&mut results);
        results
    }

    /// Documents may share results, and those again: a walk without memory would take for ever.
    fn collect_results<'p>(&'p self, results: &mut Vec<&'p MergeResult>) {
        for result in self.results.values().map(Arc::as_ref) {
            if !results.iter().any(|known| ptr::eq(*known, result)) {
                results.push(result);
                result.plan.collect_results(results);
            }
        }
    }

    /// The models that files hold: its own, and those of the results among them; each once.
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

    /// Bytes that models hold at the end of a run at the most, those of results included.
    pub(super) fn held(&self) -> u64 {
        let inner = self.results.values().map(|result| result.plan.held());
        held_by(&self.models) + inner.sum::<u64>()
    }

    /// The bytes of a source, if a file has them as they are.
    pub fn bytes(&self, source: &SourceTensor) -> Option<&[u8]> {
        self.models.get(source.model)?.bytes(source.tensor)
    }

    /// The values of a source; `None` for integers and bools.
    pub fn elements(&self, source: &SourceTensor) -> Option<Box<dyn Elements + '_>> {
        self.models.get(source.model)?.elements(source.tensor)
    }

    /// The merge that a source is the result of, and the number of its tensor there.
    pub fn result_of(&self, source: &SourceTensor) -> Option<(&MergeResult, usize)> {
        let result = self.results.get(&source.model)?;
        Some((result, source.tensor))
    }
}

/// Bytes that models hold beside their files at the end of a run at the most: adapters, routers.
pub(super) fn held_by(models: &[Arc<Checkpoint>]) -> u64 {
    models.iter().map(|model| model.held()).sum()
}

/// What reading the sources of a tensor takes, results included.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reading {
    /// Bytes read in one pass.
    pub(super) once: u64,
    /// Bytes read before it, to decide what the sources are derived by.
    pub(super) before: u64,
    /// Blocks that are held at a time.
    pub(super) held: usize,
}

/// What one pass over a tensor takes.
pub(super) fn reading(
    tensor: &PlannedTensor,
    models: &[Arc<Checkpoint>],
    results: &BTreeMap<usize, Arc<MergeResult>>,
) -> Reading {
    let mut sum = Reading::default();
    for (index, source) in tensor.sources.iter().enumerate() {
        if let Some(Some(view)) = tensor.views.get(index) {
            sum.once += view.bytes_read(models);
            sum.held += 1;
            for part in view.inputs() {
                if let Some(result) = results.get(&part.model) {
                    let made = &result.plan.tensors[part.tensor];
                    let inner = reading(made, &result.plan.models, &result.plan.results);
                    sum.before += inner.before + inner.once * made.cost().measures as u64;
                    sum.held += inner.held + 3;
                }
            }
            continue;
        }
        let part = match results.get(&source.model) {
            None => Reading {
                once: models[source.model].bytes_read(source.tensor),
                before: 0,
                held: 1,
            },
            Some(result) => {
                let made = &result.plan.tensors[source.tensor];
                let inner = reading(made, &result.plan.models, &result.plan.results);
                Reading {
                    once: inner.once,
                    before: inner.before + inner.once * made.cost().measures as u64,
                    // Its own sources, and its values in three forms.
                    held: inner.held + 3,
                }
            }
        };
        sum.once += part.once;
        sum.before += part.before;
        sum.held += part.held;
    }
    sum
}

//! Routers: tensors of an assembly that no model has. They are made before the other tensors are written.

mod directions;
mod drawn;
mod modes;
mod report;
mod rows;
mod states;

use std::fmt;
use std::sync::{Arc, OnceLock};

use checkpoint::{Checkpoint, CheckpointError, TensorEntry, TensorSource};
use errors::Refusal;
use numeric::{Constant, Elements, FloatType, Stored};
use recipe::{GateMode, PromptTokens};

use super::split::Splits;
pub(super) use directions::{Changed, Changes};
use rows::Rows;

/// The content of a tensor that no model has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Synthesized {
    /// The router rows of a layer, by its number among those with experts.
    Rows(usize),
    /// The row of that layer's gate of the shared expert.
    SharedGate(usize),
    /// The biases that are added to that layer's scores when experts are chosen.
    Correction(usize),
    /// One value everywhere.
    Constant(f64),
}

/// How rows are made.
pub(super) struct Recipe {
    pub(super) mode: GateMode,
    /// The names of the router tensors, one per layer; they key the draws.
    pub(super) names: Vec<String>,
    /// Elements per row.
    pub(super) hidden: usize,
    /// Number of experts, before they are cut into parts.
    pub(super) experts: usize,
    /// Number of parts that each expert is cut into; all parts have the same row.
    pub(super) parts: usize,
    /// Whether the shared expert has a row of its own, after those of the experts.
    pub(super) shared_gate: bool,
    pub(super) seed: u64,
    pub(super) center: bool,
    pub(super) normalize: bool,
    pub(super) temperature: f64,
    /// The file to read rows from.
    pub(super) file: Option<Arc<Checkpoint>>,
    /// The numbers of the layers with routers, ascending.
    pub(super) layers: Vec<usize>,
    /// The prompts as tokens.
    pub(super) prompts: Vec<Prompt>,
    /// Which tokens of a prompt count.
    pub(super) tokens: PromptTokens,
    /// The dense model that supplies states or embeddings.
    pub(super) model: Option<Arc<Checkpoint>>,
    /// The number of tokens whose states may be in memory at once.
    pub(super) most_tokens: usize,
    /// The models whose differences from the base become rows.
    pub(super) changes: Option<Changes>,
    /// If rows are added to the routers of `model`: the tensors that they are matched to.
    pub(super) beside: Option<ExtendedMixture>,
    /// Cuts of experts, which are decided in the same step.
    pub(super) splits: Option<Splits>,
}

/// A mixture that gets more rows. They are scaled to the mean length of its own rows, and get the mean of its own
/// corrections.
pub(super) struct ExtendedMixture {
    /// The names of its routers, one per layer.
    pub(super) routers: Vec<String>,
    /// The names of its correction tensors, one per layer.
    pub(super) corrections: Option<Vec<String>>,
}

/// A prompt as tokens.
pub(super) struct Prompt {
    /// The row that it counts for; the shared expert's is the last.
    pub(super) row: usize,
    /// One over the number of the expert's positive or negative prompts; negative for a negative prompt.
    pub(super) weight: f64,
    /// Whether the first token only marks the beginning of a text.
    pub(super) begins: bool,
    pub(super) tokens: Vec<u32>,
}

impl Recipe {
    /// The models that rows are made from.
    fn models(&self) -> impl Iterator<Item = &Arc<Checkpoint>> {
        let changes = self.changes.iter().flat_map(Changes::models);
        let splits = self.splits.iter().flat_map(|splits| splits.models.values());
        self.model.iter().chain(changes).chain(splits)
    }

    /// Rows per layer.
    fn rows(&self) -> usize {
        self.experts + usize::from(self.shared_gate)
    }

    /// Bytes of all rows and cuts while they are made.
    fn bytes(&self) -> u64 {
        let rows = self.rows() * size_of::<f64>() + self.rows() * self.parts * size_of::<f32>();
        let splits = self.splits.as_ref().map_or(0, Splits::bytes);
        (self.names.len() * self.hidden * rows) as u64 + splits
    }
}

/// The tensors that no model has.
pub(super) struct Routers {
    recipe: Recipe,
    entries: Vec<TensorEntry>,
    /// The content of each tensor.
    tensors: Vec<Synthesized>,
    made: OnceLock<Finished>,
}

/// The finished routers.
#[derive(Debug)]
struct Finished {
    /// The rows of each layer, as bytes of f32.
    rows: Vec<Vec<u8>>,
    /// The corrections of each layer, as bytes of f32.
    corrections: Vec<Vec<u8>>,
    /// Notes on the rows, for the user.
    notes: Vec<String>,
}

impl fmt::Debug for Routers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routers").finish_non_exhaustive()
    }
}

impl Routers {
    pub(super) fn new(recipe: Recipe, made: Vec<(TensorEntry, Synthesized)>) -> Self {
        let (entries, tensors) = made.into_iter().unzip();
        Routers {
            recipe,
            entries,
            tensors,
            made: OnceLock::new(),
        }
    }

    /// The bytes of a range of rows.
    fn rows(&self, layer: usize, rows: std::ops::Range<usize>) -> Option<Box<dyn Elements + '_>> {
        let row = self.recipe.hidden * size_of::<f32>();
        let bytes = self.made.get()?.rows.get(layer)?;
        Some(Box::new(Stored {
            bytes: bytes.get(rows.start * row..rows.end * row)?,
            format: FloatType::F32,
        }))
    }
}

impl TensorSource for Routers {
    fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn bytes(&self, _index: usize) -> Option<&[u8]> {
        None
    }

    fn elements(&self, index: usize) -> Option<Box<dyn Elements + '_>> {
        let experts = self.recipe.experts * self.recipe.parts;
        match *self.tensors.get(index)? {
            Synthesized::Constant(value) => Some(Box::new(Constant(value))),
            Synthesized::Correction(layer) => Some(Box::new(Stored {
                bytes: self.made.get()?.corrections.get(layer)?,
                format: FloatType::F32,
            })),
            Synthesized::Rows(layer) => self.rows(layer, 0..experts),
            Synthesized::SharedGate(layer) => self.rows(layer, experts..experts + 1),
        }
    }

    fn prepare(
        &self,
        threads: usize,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Refusal> {
        if self.made.get().is_some() {
            return Ok(());
        }
        if let Some(splits) = &self.recipe.splits {
            splits.decide(threads, cancelled)?;
        }
        let layers = modes::make(&self.recipe, threads, cancelled)?;
        let notes = match self.recipe.mode {
            // Rows of zeros are equal on purpose, so there is nothing to report.
            GateMode::Zero => Vec::new(),
            _ => report::notes(&layers, &self.recipe).map_err(|error| error.to_string())?,
        };
        let Recipe { experts, parts, .. } = self.recipe;
        let bytes = |rows: Rows| {
            let mut bytes = Vec::with_capacity(rows.values.len() * parts * size_of::<f32>());
            for (number, row) in rows.values.chunks_exact(rows.hidden).enumerate() {
                let times = if number < experts { parts } else { 1 };
                for value in std::iter::repeat_n(row, times).flatten() {
                    bytes.extend((*value as f32).to_le_bytes());
                }
            }
            bytes
        };
        let corrections = modes::corrections(&self.recipe)?;
        let repeated = |mean: f64| (mean as f32).to_le_bytes().repeat(experts);
        // If another call finished first, it made the same values.
        let _ = self.made.set(Finished {
            rows: layers.into_iter().map(bytes).collect(),
            corrections: corrections.into_iter().map(repeated).collect(),
            notes,
        });
        Ok(())
    }

    fn reads_results(&self) -> bool {
        self.recipe.models().any(|model| !model.is_stored())
    }

    fn said(&self) -> Vec<String> {
        self.made
            .get()
            .map_or(Vec::new(), |made| made.notes.clone())
    }

    fn held(&self) -> u64 {
        self.recipe.bytes()
    }

    fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let mut files = self.recipe.file.iter().chain(self.recipe.models());
        files.try_for_each(|model| model.check_unchanged())
    }
}

/// The entry of a tensor that no model has.
pub(super) fn entry(name: String, shape: Vec<usize>) -> TensorEntry {
    let elements: usize = shape.iter().product();
    TensorEntry {
        name,
        dtype: checkpoint::Dtype::F32,
        stored: checkpoint::Dtype::F32,
        shape,
        len: (elements * size_of::<f32>()) as u64,
    }
}

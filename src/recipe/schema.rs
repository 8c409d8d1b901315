//! What a recipe says, once every word of it is known to be right.

use std::collections::HashSet;
use std::ops::Range;

use safetensors::Dtype;

use super::problem::{Located, Position, Problem, RecipeError};
use super::setting::Parameters;
use crate::checkpoint::ModelRef;
use crate::methods::MethodInfo;

/// A merge recipe, typed and checked against its method's contract.
#[derive(Debug)]
pub struct Recipe {
    /// The method that merges.
    pub method: &'static MethodInfo,
    /// What is merged.
    pub inputs: Inputs,
    /// The base, for every slice that names none of its own.
    pub base_model: Option<Located<ModelRef>>,
    /// `dtype:`.
    pub dtype: Option<Dtype>,
    /// `out_dtype:`.
    pub out_dtype: Option<Dtype>,
    /// The settings for all models and slices.
    pub parameters: Parameters,
    /// What is well formed and has no effect; never an error.
    pub warnings: Vec<Problem>,
    /// The recipe's path, as the user gave it.
    pub path: String,
    /// The text as read (without a byte order mark), which the positions point into.
    pub text: String,
}

/// What is merged: whole models, or slices of them stacked up.
#[derive(Debug)]
pub enum Inputs {
    /// `models:`; never empty.
    Models(Vec<Source>),
    /// `slices:`, from the first layers of the output to the last; never empty.
    Slices(Vec<Slice>),
}

/// A model of `models:`.
#[derive(Debug)]
pub struct Source {
    /// The model.
    pub model: Located<ModelRef>,
    /// Its own settings.
    pub parameters: Parameters,
}

/// One of `slices:`: layers of the output, and the models they are merged from.
#[derive(Debug)]
pub struct Slice {
    /// Never empty; the layer ranges of all have the same length.
    pub sources: Vec<SliceSource>,
    /// The slice's own base.
    pub base_model: Option<Located<ModelRef>>,
    /// The settings for all its sources.
    pub parameters: Parameters,
    /// Where the slice stands.
    pub at: Position,
}

/// Layers of one model in a slice.
#[derive(Debug)]
pub struct SliceSource {
    /// The model.
    pub model: Located<ModelRef>,
    /// Its layers, half-open; empty only in the first or the last of several slices. Whether the model has as many is for the plan to see.
    pub layer_range: Range<usize>,
    /// Where the range stands.
    pub layer_range_at: Position,
    /// The settings for this model in this slice.
    pub parameters: Parameters,
}

impl Recipe {
    /// The base of a slice: its own, or the recipe's.
    pub fn base_of<'a>(&'a self, slice: &'a Slice) -> Option<&'a Located<ModelRef>> {
        slice.base_model.as_ref().or(self.base_model.as_ref())
    }

    /// Every model once, in order of appearance in the inputs; then the bases that are none of them.
    pub fn referenced_models(&self) -> Vec<&ModelRef> {
        let mut models = Vec::new();
        let mut seen = HashSet::new();
        let (sources, bases): (Vec<_>, Vec<_>) = match &self.inputs {
            Inputs::Models(sources) => (sources.iter().map(|s| &s.model).collect(), Vec::new()),
            Inputs::Slices(slices) => (
                slices
                    .iter()
                    .flat_map(|s| &s.sources)
                    .map(|s| &s.model)
                    .collect(),
                slices
                    .iter()
                    .filter_map(|s| s.base_model.as_ref())
                    .collect(),
            ),
        };
        for model in sources.into_iter().chain(&self.base_model).chain(bases) {
            if seen.insert(&model.value) {
                models.push(&model.value);
            }
        }
        models
    }

    /// The error of problems that were found later, by those who know the models.
    pub fn error(&self, problems: Vec<Problem>) -> RecipeError {
        RecipeError::new(self.path.clone(), self.text.clone(), problems)
    }
}

//! The types of a recipe that has been checked.

use std::ops::Range;

use safetensors::Dtype;

use super::exceptions::Exception;
use super::expert_layout::ExpertLayout;
use super::output::AdapterOutput;
use super::problem::{Located, Position, Problem, RecipeError};
use super::quantization::Quantization;
use super::renames::Rename;
use super::setting::Parameters;
use super::tokenizer::Tokenizer;
use checkpoint::ModelRef;
use methods::MethodInfo;

/// A merge recipe, typed and checked against its method's requirements.
#[derive(Debug)]
pub struct Recipe {
    /// `name:`, which other documents of the same file use to refer to the result as a model.
    pub name: Option<Located<String>>,
    /// The merge method.
    pub method: &'static MethodInfo,
    /// The position of the method's name.
    pub method_at: Position,
    /// What is merged; never empty.
    pub modules: Vec<Module>,
    /// The base of every slice that names none of its own.
    pub base_model: Option<Located<ModelRef>>,
    /// `statistics:`: the file of statistics of the base.
    pub statistics: Option<Located<ModelRef>>,
    /// `dtype:`.
    pub dtype: Option<Dtype>,
    /// `out_dtype:`.
    pub out_dtype: Option<Dtype>,
    /// `output:`: the adapter that the merge becomes; none for a model.
    pub output: Option<Located<AdapterOutput>>,
    /// `quantization:`: how weights are stored; none for plain floats.
    pub quantization: Option<Located<Quantization>>,
    /// `expert_layout:`: how experts are stored; none for the layout of the model that gives the names.
    pub expert_layout: Option<Located<ExpertLayout>>,
    /// `keep_dtype:`: whether tensors that their model needs in the dtype they are stored in keep it.
    pub keep_dtype: bool,
    /// `rounding:`.
    pub rounding: Rounding,
    /// `tokenizer:` or `tokenizer_source:`.
    pub tokenizer: Option<Tokenizer>,
    /// `chat_template:`: `auto`, a name, or the template itself.
    pub chat_template: Option<Located<String>>,
    /// The settings for all models and slices.
    pub parameters: Parameters,
    /// `only:` and `except:`: the tensors that are not merged. The first exception that applies wins.
    pub exceptions: Vec<Exception>,
    /// `rename:`: tensors that get other names before anything else looks at them. The first rule that fits wins.
    pub renames: Vec<Rename>,
    /// `allow_config_differences:`: fields that may mean something else in the configs of the models.
    pub allowed: Vec<Located<String>>,
    /// Whether the merge was already made and is only computed again: what a new merge would be refused for is noted.
    pub recorded: bool,
    /// Whether rows of classifiers go by their labels where models have the same in another order; mergekit's do not.
    pub rows_by_label: bool,
    /// `override_architecture:` of models, which the config of their merge will name.
    pub architectures: Vec<(ModelRef, String)>,
    /// The named documents that this one uses, each after those it uses itself.
    pub results: Vec<Recipe>,
    /// Parts that are well formed but have no effect; never an error.
    pub warnings: Vec<Problem>,
    /// The recipe's path, as the user gave it.
    pub path: String,
    /// The text.
    pub text: RecipeText,
}

/// The text of a recipe.
#[derive(Debug, Clone, Default)]
pub struct RecipeText {
    /// As read, without a byte order mark; positions refer to it.
    pub read: String,
    /// With the models that a `glob` found in its place, so that it means the same later: the text for records.
    pub resolved: String,
}

/// How computed values become values of the output's dtype.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest; ties to even.
    #[default]
    Nearest,
    /// Up or down by a draw, so that the expected result is the value.
    Stochastic,
}

/// A part of the output with its own inputs: one of a model's towers, or the whole model.
#[derive(Debug)]
pub struct Module {
    /// The key under `modules:`; `None` for the whole model.
    pub name: Option<Located<String>>,
    /// What is merged.
    pub inputs: Inputs,
    /// The settings for all its models and slices.
    pub parameters: Parameters,
    /// The position of its `models` or `slices`.
    pub at: Position,
}

/// What is merged: whole models, or slices of them, stacked.
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
    /// The file of its statistics.
    pub statistics: Option<Located<ModelRef>>,
}

/// One of `slices:`: layers of the output, and the models that they are merged from.
#[derive(Debug)]
pub struct Slice {
    /// Never empty; all layer ranges have the same length.
    pub sources: Vec<SliceSource>,
    /// The slice's own base.
    pub base_model: Option<Located<ModelRef>>,
    /// The settings for all its sources.
    pub parameters: Parameters,
    /// The position of the slice.
    pub at: Position,
}

/// Layers of one model in a slice.
#[derive(Debug)]
pub struct SliceSource {
    /// The model.
    pub model: Located<ModelRef>,
    /// Its layers, half-open; empty only in the first or the last of several slices. The plan checks whether the model
    /// has that many.
    pub layer_range: Range<usize>,
    /// The position of the range.
    pub layer_range_at: Position,
    /// The settings for this model in this slice.
    pub parameters: Parameters,
    /// The file of the model's statistics.
    pub statistics: Option<Located<ModelRef>>,
}

impl Recipe {
    /// The base of a slice: its own, or the recipe's.
    pub fn base_of<'a>(&'a self, slice: &'a Slice) -> Option<&'a Located<ModelRef>> {
        slice.base_model.as_ref().or(self.base_model.as_ref())
    }

    /// Marks it, and the documents that it uses, as of a merge that was already made, by mergekit or by weld.
    pub fn mark_recorded(&mut self, by_mergekit: bool) {
        self.recorded = true;
        self.rows_by_label &= !by_mergekit;
        let results = self.results.iter_mut();
        results.for_each(|result| result.mark_recorded(by_mergekit));
    }

    /// Whether a field of the config may mean something else in each model.
    pub fn allows(&self, field: &str) -> bool {
        self.recorded || self.is_allowed(field)
    }

    /// Whether the recipe itself says that a field of the config may mean something else in each model.
    pub fn is_allowed(&self, field: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed.value == field)
    }

    /// Every reference to a model in the inputs, then the base; in the order of the recipe.
    pub fn mentions(&self) -> impl Iterator<Item = &Located<ModelRef>> {
        self.modules
            .iter()
            .flat_map(|module| module.inputs.mentions())
            .chain(&self.base_model)
    }

    /// Every model with the file of its statistics, in the order of the recipe; the base last. A model is named as often
    /// as its file is.
    pub fn statistics(&self) -> impl Iterator<Item = (&Located<ModelRef>, &Located<ModelRef>)> {
        let base = self.base_model.as_ref().zip(self.statistics.as_ref());
        let inputs = self.modules.iter().map(|module| &module.inputs);
        inputs.flat_map(Inputs::statistics).chain(base)
    }

    /// The settings at every level.
    pub fn levels(&self) -> impl Iterator<Item = &Parameters> {
        self.modules
            .iter()
            .flat_map(|module| {
                [&module.parameters]
                    .into_iter()
                    .chain(module.inputs.levels())
            })
            .chain([&self.parameters])
    }

    /// Whether only some layers are named, so that others may be left out.
    pub fn is_sliced(&self) -> bool {
        self.modules
            .iter()
            .any(|module| matches!(module.inputs, Inputs::Slices(_)))
    }

    /// The exception that applies to the tensor of that name.
    pub fn exception(&self, tensor: &str) -> Option<&Exception> {
        self.exceptions
            .iter()
            .find(|exception| exception.applies(tensor))
    }

    /// The `except` entry whose pattern matches the tensor; an `only` entry does not count.
    pub fn named_exception(&self, tensor: &str) -> Option<&Exception> {
        self.exceptions
            .iter()
            .find(|exception| exception.names(tensor))
    }

    /// The error for problems that later layers found, which know the models.
    pub fn error(&self, problems: Vec<Problem>) -> RecipeError {
        RecipeError::new(self.path.clone(), self.text.read.clone(), problems)
    }
}

impl Inputs {
    /// Every model with the file of its statistics.
    fn statistics(&self) -> Vec<(&Located<ModelRef>, &Located<ModelRef>)> {
        match self {
            Inputs::Models(sources) => {
                let sources = sources.iter();
                sources
                    .filter_map(|source| Some((&source.model, source.statistics.as_ref()?)))
                    .collect()
            }
            Inputs::Slices(slices) => {
                let sources = slices.iter().flat_map(|slice| &slice.sources);
                sources
                    .filter_map(|source| Some((&source.model, source.statistics.as_ref()?)))
                    .collect()
            }
        }
    }

    /// Every reference to a model, in the order of the recipe.
    pub fn mentions(&self) -> Box<dyn Iterator<Item = &Located<ModelRef>> + '_> {
        match self {
            Self::Models(sources) => Box::new(sources.iter().map(|source| &source.model)),
            Self::Slices(slices) => Box::new(slices.iter().flat_map(|slice| {
                let models = slice.sources.iter().map(|source| &source.model);
                models.chain(&slice.base_model)
            })),
        }
    }

    fn levels(&self) -> Box<dyn Iterator<Item = &Parameters> + '_> {
        match self {
            Self::Models(sources) => Box::new(sources.iter().map(|source| &source.parameters)),
            Self::Slices(slices) => Box::new(slices.iter().flat_map(|slice| {
                let sources = slice.sources.iter().map(|source| &source.parameters);
                [&slice.parameters].into_iter().chain(sources)
            })),
        }
    }
}

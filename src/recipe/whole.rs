//! Types a whole recipe: its keys, models, slices and modules.

use super::contract;
use super::exceptions::Exception;
use super::expert_layout::ExpertLayout;
use super::keys::{MODEL, MODULE, RECIPE, SLICE, SOURCE};
use super::nearest::nearest;
use super::output::AdapterOutput;
use super::parameters::Level;
use super::problem::{Located, Position, Problem, ProblemKind, listed, quoted};
use super::quantization::Quantization;
use super::renames::Rename;
use super::schema::{Inputs, Module, Recipe, RecipeText, Rounding, Slice, SliceSource, Source};
use super::setting::Parameters;
use super::tokenizer::Tokenizer;
use super::walk::Walk;
use super::yaml::{Entry, Node, Value};
use checkpoint::ModelRef;
use methods::{BaseRule, MethodInfo};
use safetensors::Dtype;
use std::ops::Range;

/// The hint for layer ranges.
const HALF_OPEN: &str = "a range is half-open: `[0, 32]` is 32 layers, 0 to 31";

impl Walk<'_> {
    /// Types the whole recipe; the result is complete only if no problem was recorded.
    pub(super) fn recipe(&mut self, root: &Node) -> Option<Recipe> {
        let Value::Map(entries) = &root.value else {
            let message = match &root.value {
                Value::Null => "the recipe is empty".to_owned(),
                other => format!("expected a recipe, found {}", other.found()),
            };
            let hint = "a recipe has at least `merge_method:` and `models:` or `slices:`";
            self.refuse(ProblemKind::Invalid, root.at, message, Some(hint));
            return None;
        };
        let method = entries.iter().find(|entry| entry.key == "merge_method");
        // The method first: it determines what `parameters:` may contain, wherever they are in the file.
        self.method = self.merge_method(method);
        let mut parts = Parts::default();
        let ends = entries.iter().skip(1).map(|next| next.key_at.start);
        for (entry, end) in entries.iter().zip(ends.chain([self.text.len()])) {
            match RECIPE.keys.contains(&entry.key.as_str()) {
                false if self.is_home_of_anchors(entry, end) => {}
                _ => self.top_level(&mut parts, entry),
            }
        }
        if !self.one_kind_of_inputs(&parts.inputs_at) {
            return None;
        }
        let method_at = method.map_or(root.at, |entry| entry.node.at);
        let recipe = Recipe {
            name: parts.name,
            method: self.method?,
            method_at,
            modules: parts.modules?,
            statistics: parts.statistics,
            base_model: match self.method?.base {
                BaseRule::Required => parts.base_model.or_else(|| self.outer_base.take()),
                BaseRule::OneOfModels | BaseRule::Optional => parts.base_model,
            },
            dtype: parts.dtype,
            out_dtype: parts.out_dtype,
            output: parts.output,
            quantization: parts.quantization,
            expert_layout: parts.expert_layout,
            // mergekit rounds every tensor.
            keep_dtype: parts.keep_dtype.unwrap_or(!self.recorded),
            rounding: parts.rounding,
            tokenizer: parts.tokenizer,
            chat_template: parts.chat_template,
            parameters: parts.parameters,
            exceptions: parts.exceptions,
            renames: parts.renames,
            allowed: parts.allowed,
            recorded: false,
            rows_by_label: true,
            architectures: std::mem::take(&mut self.architectures),
            results: Vec::new(),
            warnings: Vec::new(),
            path: String::new(),
            text: RecipeText::default(),
        };
        contract::check(self, &recipe);
        Some(recipe)
    }

    fn top_level(&mut self, parts: &mut Parts, entry: &Entry) {
        let node = &entry.node;
        match entry.key.as_str() {
            "merge_method" => {}
            // mergekit's fields are optional: null is the same as no key.
            "name"
            | "models"
            | "slices"
            | "modules"
            | "base_model"
            | "statistics"
            | "dtype"
            | "out_dtype"
            | "output"
            | "quantization"
            | "expert_layout"
            | "rounding"
            | "keep_dtype"
            | "only"
            | "except"
            | "rename"
            | "allow_config_differences"
            | "tokenizer"
            | "tokenizer_source"
            | "chat_template"
                if node.is_null() => {}
            "name" => parts.name = self.name(entry),
            "models" => {
                let inputs = self.models(entry).map(Inputs::Models);
                parts.whole(entry.key_at, inputs);
            }
            "slices" => {
                let inputs = self.slices(entry).map(Inputs::Slices);
                parts.whole(entry.key_at, inputs);
            }
            "modules" => {
                parts.inputs_at.push(entry.key_at);
                parts.modules = self.modules(entry);
            }
            "base_model" => parts.base_model = self.base_model(node),
            "statistics" => parts.statistics = self.statistics(entry),
            "dtype" => parts.dtype = self.dtype(entry),
            "out_dtype" => parts.out_dtype = self.dtype(entry),
            "output" => parts.output = self.output(entry),
            "quantization" => parts.quantization = self.quantization(entry),
            "expert_layout" => parts.expert_layout = self.expert_layout(entry),
            "rounding" => parts.rounding = self.rounding(entry),
            "keep_dtype" => parts.keep_dtype = self.flag(entry),
            "parameters" => parts.parameters = self.parameters(node, Level::Recipe),
            "only" => parts.exceptions.extend(self.only(entry)),
            "except" => {
                // `except` names fewer tensors than `only`, so it takes precedence wherever it is written.
                let except = self.except(entry);
                parts.exceptions.splice(..0, except);
            }
            "rename" => parts.renames = self.renames(entry),
            "allow_config_differences" => parts.allowed = self.field_names(entry),
            "tokenizer" | "tokenizer_source" => {
                if let Some(first) = parts.tokenizer_key.replace(entry.key.clone()) {
                    return self.second_tokenizer(&quoted(&first), entry);
                }
                parts.tokenizer = match entry.key.as_str() {
                    "tokenizer" => self.tokenizer(entry),
                    _ => self.tokenizer_source(entry),
                };
            }
            "chat_template" => parts.chat_template = self.chat_template(entry),
            _ => self.other_key(&RECIPE, entry),
        }
    }

    /// A list of fields of configs.
    fn field_names(&mut self, entry: &Entry) -> Vec<Located<String>> {
        let mut names = Vec::new();
        for item in self.items(entry, &entry.key).unwrap_or_default() {
            match &item.value {
                Value::Text(text) => names.push(Located {
                    value: text.clone(),
                    at: item.at,
                }),
                other => {
                    let message =
                        format!("expected a field of config.json, found {}", other.found());
                    self.problem(ProblemKind::Invalid, item.at, message);
                }
            }
        }
        names
    }

    /// Refuses all but one of `models`, `slices` and `modules`.
    fn one_kind_of_inputs(&mut self, at: &[Position]) -> bool {
        match at {
            [_] => true,
            [] => {
                let hint = "list the models to merge under `models:`";
                let message = "missing `models` or `slices`";
                self.refuse(ProblemKind::Missing, None, message, Some(hint));
                false
            }
            [_, second, ..] => {
                let message = "expected one of `models`, `slices` and `modules`, found more";
                self.problem(ProblemKind::Invalid, *second, message);
                false
            }
        }
    }

    /// The name by which other documents use the result.
    fn name(&mut self, entry: &Entry) -> Option<Located<String>> {
        let value = self.text(entry)?;
        let at = entry.node.at;
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ' ');
        if value.trim().is_empty() || !value.chars().all(fits) {
            let message = format!("{} can't name a result", quoted(&value));
            let hint = "a name has letters, digits, `-`, `_`, `.` and `/`";
            self.refuse(ProblemKind::Invalid, at, message, Some(hint));
            return None;
        }
        Some(Located { value, at })
    }

    /// `modules:`, a mapping from module names to their inputs.
    fn modules(&mut self, entry: &Entry) -> Option<Vec<Module>> {
        let entries = match &entry.node.value {
            Value::Map(entries) if !entries.is_empty() => entries,
            other => {
                let found = match other {
                    Value::Map(_) => "none".to_owned(),
                    other => other.found(),
                };
                let message = format!("expected the modules of the model, found {found}");
                let hint = "write a module's name, such as `text_decoder:`, and under it `models:` or `slices:`";
                self.refuse(ProblemKind::Invalid, entry.node.at, message, Some(hint));
                self.incomplete = true;
                return None;
            }
        };
        let read: Vec<Option<Module>> = entries.iter().map(|entry| self.module(entry)).collect();
        self.incomplete |= read.iter().any(Option::is_none);
        read.into_iter().collect()
    }

    fn module(&mut self, entry: &Entry) -> Option<Module> {
        let name = Located {
            value: entry.key.clone(),
            at: entry.key_at,
        };
        let entries = self.entries(&entry.node, &MODULE)?;
        let mut inputs: Vec<(Position, Option<Inputs>)> = Vec::new();
        let mut parameters = Parameters::default();
        for entry in entries {
            match entry.key.as_str() {
                "models" | "slices" if entry.node.is_null() => {}
                "models" => {
                    inputs.push((entry.key_at, self.models(entry).map(Inputs::Models)));
                }
                "slices" => {
                    inputs.push((entry.key_at, self.slices(entry).map(Inputs::Slices)));
                }
                "parameters" => parameters = self.parameters(&entry.node, Level::Module),
                _ => self.other_key(&MODULE, entry),
            }
        }
        let mut inputs = inputs.into_iter();
        let Some((at, first)) = inputs.next() else {
            let message = format!(
                "missing `models` or `slices` in the module {}",
                quoted(&name.value)
            );
            self.problem(ProblemKind::Missing, entry.key_at, message);
            return None;
        };
        if let Some((second, _)) = inputs.next() {
            let message = "expected one of `models` and `slices`, found both";
            self.problem(ProblemKind::Invalid, second, message);
            return None;
        }
        Some(Module {
            name: Some(name),
            inputs: first?,
            parameters,
            at,
        })
    }

    fn merge_method(&mut self, entry: Option<&Entry>) -> Option<&'static MethodInfo> {
        let known: Vec<&str> = self.methods.iter().map(|method| method.name).collect();
        let Some(entry) = entry.filter(|entry| !entry.node.is_null()) else {
            let hint = format!("the methods are {}", listed(known));
            let message = "missing `merge_method`";
            self.refuse(ProblemKind::Missing, None, message, Some(&hint));
            return None;
        };
        let name = self.text(entry)?;
        if let Some(method) = self.methods.iter().find(|method| method.name == name) {
            return Some(method);
        }
        let near = nearest(&name, known.iter().copied());
        let all = format!("the methods are {}", listed(known));
        let hint = match near {
            Some(near) => format!("did you mean `{near}`? {all}"),
            None => all,
        };
        let message = format!("unknown merge method {}", quoted(&name));
        self.refuse(ProblemKind::Unknown, entry.node.at, message, Some(&hint));
        None
    }

    fn rounding(&mut self, entry: &Entry) -> Rounding {
        let Some(name) = self.text(entry) else {
            return Rounding::default();
        };
        match name.as_str() {
            "nearest" => Rounding::Nearest,
            "stochastic" => Rounding::Stochastic,
            _ => {
                let message = format!("unknown rounding {}", quoted(&name));
                let hint = "the choices are `nearest` and `stochastic`";
                self.refuse(ProblemKind::Unknown, entry.node.at, message, Some(hint));
                Rounding::default()
            }
        }
    }

    fn base_model(&mut self, node: &Node) -> Option<Located<ModelRef>> {
        let base = self.model(node);
        self.base_unread |= base.is_none();
        self.incomplete |= base.is_none();
        base
    }

    fn models(&mut self, entry: &Entry) -> Option<Vec<Source>> {
        if let Some(found) = self.checkpoints(entry) {
            return found;
        }
        let items = self.items(entry, "models")?;
        let mut sources = Vec::with_capacity(items.len());
        for item in items {
            match self.source(item) {
                Some(source) => sources.push(source),
                None => self.incomplete = true,
            }
        }
        Some(sources)
    }

    fn source(&mut self, node: &Node) -> Option<Source> {
        let entries = self.entries(node, &MODEL)?;
        let mut model = None;
        let mut parameters = Parameters::default();
        let mut statistics = None;
        for entry in entries {
            match entry.key.as_str() {
                "model" => model = Some(self.model(&entry.node)),
                "parameters" => parameters = self.parameters(&entry.node, Level::Model),
                "statistics" if entry.node.is_null() => {}
                "statistics" => statistics = self.statistics(entry),
                _ => self.other_key(&MODEL, entry),
            }
        }
        if model.is_none() {
            self.missing("model", node, &MODEL);
        }
        Some(Source {
            model: model??,
            parameters,
            statistics,
        })
    }

    /// The file of a model's statistics.
    fn statistics(&mut self, entry: &Entry) -> Option<Located<ModelRef>> {
        let file = self.model(&entry.node);
        self.incomplete |= file.is_none();
        file
    }

    fn slices(&mut self, entry: &Entry) -> Option<Vec<Slice>> {
        let items = self.items(entry, "slices")?;
        let mut slices = Vec::with_capacity(items.len());
        for item in items {
            match self.slice(item) {
                Some(slice) => slices.push(slice),
                None => self.incomplete = true,
            }
        }
        self.refuse_empty_slices(&slices);
        Some(slices)
    }

    fn slice(&mut self, node: &Node) -> Option<Slice> {
        let entries = self.entries(node, &SLICE)?;
        let mut sources = None;
        let mut base_model = None;
        let mut parameters = Parameters::default();
        for entry in entries {
            match entry.key.as_str() {
                "sources" => sources = Some(self.slice_sources(entry)),
                "base_model" if entry.node.is_null() => {}
                "base_model" => base_model = self.base_model(&entry.node),
                "parameters" => parameters = self.parameters(&entry.node, Level::Slice),
                "residual_weight" if entry.node.is_null() => {}
                "residual_weight" => self.warn(
                    Problem::new(
                        ProblemKind::Invalid,
                        entry.key_at,
                        "`residual_weight` has no effect",
                    )
                    .with_hint("mergekit reads it and never uses it: remove it"),
                ),
                _ => self.other_key(&SLICE, entry),
            }
        }
        if sources.is_none() {
            self.missing("sources", node, &SLICE);
        }
        Some(Slice {
            sources: sources??,
            base_model,
            parameters,
            at: node.at,
        })
    }

    fn slice_sources(&mut self, entry: &Entry) -> Option<Vec<SliceSource>> {
        let items = self.items(entry, "sources")?;
        let mut sources: Vec<SliceSource> = Vec::with_capacity(items.len());
        for item in items {
            match self.slice_source(item) {
                Some(source) => sources.push(source),
                None => self.incomplete = true,
            }
        }
        let (first, rest) = sources.split_first()?;
        for source in rest {
            let (expected, found) = (first.layer_range.len(), source.layer_range.len());
            if expected != found {
                let message = format!(
                    "expected as many layers as in the other sources: {found} of {}, but {expected} of {}",
                    quoted(&source.model.value.to_string()),
                    quoted(&first.model.value.to_string()),
                );
                let at = source.layer_range_at;
                self.problem(ProblemKind::Invalid, at, message);
            }
        }
        Some(sources)
    }

    fn slice_source(&mut self, node: &Node) -> Option<SliceSource> {
        let entries = self.entries(node, &SOURCE)?;
        let mut model = None;
        let mut layer_range = None;
        let mut parameters = Parameters::default();
        let mut statistics = None;
        for entry in entries {
            match entry.key.as_str() {
                "model" => model = Some(self.model(&entry.node)),
                "layer_range" => {
                    layer_range = Some((self.layer_range(&entry.node), entry.node.at));
                }
                "parameters" => parameters = self.parameters(&entry.node, Level::Source),
                "statistics" if entry.node.is_null() => {}
                "statistics" => statistics = self.statistics(entry),
                _ => self.other_key(&SOURCE, entry),
            }
        }
        if model.is_none() {
            self.missing("model", node, &SOURCE);
        }
        if layer_range.is_none() {
            self.missing("layer_range", node, &SOURCE);
        }
        let (layer_range, layer_range_at) = layer_range?;
        Some(SliceSource {
            model: model??,
            layer_range: layer_range?,
            layer_range_at,
            parameters,
            statistics,
        })
    }

    fn layer_range(&mut self, node: &Node) -> Option<Range<usize>> {
        let message = match &node.value {
            Value::List(items) => match items.as_slice() {
                [first, end] => match (&first.value, &end.value) {
                    (Value::Int(first), Value::Int(end)) => {
                        match (usize::try_from(*first), usize::try_from(*end)) {
                            // Whether a slice may be empty depends on its position among the slices.
                            (Ok(first), Ok(end)) if first <= end => return Some(first..end),
                            (Ok(first), Ok(end)) => {
                                format!("the layer range `[{first}, {end}]` runs backwards")
                            }
                            _ => format!("negative layer in the range `[{first}, {end}]`"),
                        }
                    }
                    (Value::Int(_), other) | (other, _) => {
                        format!("expected a layer number, found {}", other.found())
                    }
                },
                items => format!(
                    "expected a range of two layers, found {} items",
                    items.len()
                ),
            },
            other => format!("expected a range of layers, found {}", other.found()),
        };
        self.refuse(ProblemKind::Invalid, node.at, message, Some(HALF_OPEN));
        None
    }

    /// Refuses empty slices, except for the first and the last of several.
    ///
    /// Those name the models for the embeddings, or for the last norm and the head: a common idiom.
    fn refuse_empty_slices(&mut self, slices: &[Slice]) {
        let last = slices.len().saturating_sub(1);
        for (index, slice) in slices.iter().enumerate() {
            if last > 0 && (index == 0 || index == last) {
                continue;
            }
            for source in slice
                .sources
                .iter()
                .filter(|source| source.layer_range.is_empty())
            {
                let Range { start, end } = source.layer_range;
                let message = format!("the layer range `[{start}, {end}]` is empty");
                self.refuse(
                    ProblemKind::Invalid,
                    source.layer_range_at,
                    message,
                    Some(HALF_OPEN),
                );
            }
        }
    }
}

/// The parts of the recipe read so far.
#[derive(Default)]
struct Parts {
    name: Option<Located<String>>,
    /// The positions of `models`, `slices` or `modules`.
    inputs_at: Vec<Position>,
    modules: Option<Vec<Module>>,
    base_model: Option<Located<ModelRef>>,
    statistics: Option<Located<ModelRef>>,
    dtype: Option<Dtype>,
    out_dtype: Option<Dtype>,
    output: Option<Located<AdapterOutput>>,
    quantization: Option<Located<Quantization>>,
    expert_layout: Option<Located<ExpertLayout>>,
    rounding: Rounding,
    keep_dtype: Option<bool>,
    /// Which of `tokenizer` and `tokenizer_source` came first.
    tokenizer_key: Option<String>,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<Located<String>>,
    parameters: Parameters,
    exceptions: Vec<Exception>,
    renames: Vec<Rename>,
    allowed: Vec<Located<String>>,
}

impl Parts {
    /// Inputs of the whole model.
    fn whole(&mut self, at: Position, inputs: Option<Inputs>) {
        self.inputs_at.push(at);
        self.modules = inputs.map(|inputs| {
            vec![Module {
                name: None,
                inputs,
                parameters: Parameters::default(),
                at,
            }]
        });
    }
}

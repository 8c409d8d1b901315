//! Which tensors the output has, and which tensor of each source goes into each: whole models, slices, restacking.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::around::{Around, is_sibling};
use super::counterparts::{Counterparts, is_head};
use super::models::{Models, Modules};
use super::modules::{assign, feeds_embeddings};
use super::problems::{Problems, count, some_of};
use architecture::{
    LayerStack, decoder_layers, has_part_for_each_layer, is_derived_buffer, is_input_embedding,
    numbered_runs, without_mtp,
};
use checkpoint::{ModelConfig, ModelRef};
use numeric::FloatType;
use recipe::{Fallback, Inputs, Located, Module, Parameters, Position, Recipe, Slice, Source};

/// Sources that are merged with each other: all of `models:`, or those of one slice.
pub(super) struct SourceGroup<'r> {
    pub(super) sources: Vec<GroupSource<'r>>,
    /// Which source is the base.
    pub(super) base: Option<usize>,
    /// Whether the models are merged whole, and not only some of their layers.
    pub(super) whole: bool,
    /// The parameters of its slice and its module, the nearest first.
    pub(super) levels: Vec<&'r Parameters>,
}

impl SourceGroup<'_> {
    /// Whether the model is one of its sources.
    pub(super) fn has(&self, model: usize) -> bool {
        self.sources.iter().any(|source| source.model == model)
    }
}

/// One source of a group.
pub(super) struct GroupSource<'r> {
    pub(super) model: usize,
    /// None for a base that the recipe does not list as a source.
    pub(super) parameters: Option<&'r Parameters>,
    /// The file of its statistics.
    pub(super) statistics: Option<&'r Located<ModelRef>>,
    pub(super) at: Position,
}

/// An output tensor that the recipe asks for.
pub(super) struct OutputTensor {
    pub(super) name: String,
    /// Its depth: 0 in the first layer of its slice, 1 in the last; 0 outside the layers.
    pub(super) depth: f64,
    pub(super) group: usize,
    /// For each source of the group, the tensor's name there (in the donor's spelling).
    pub(super) picks: Vec<String>,
}

impl OutputTensor {
    /// The same by the names that its part's tensors have in the whole model.
    pub(super) fn qualified(mut self, models: &Models) -> OutputTensor {
        self.name = models.qualified(&self.name).into_owned();
        for name in &mut self.picks {
            *name = models.qualified(name).into_owned();
        }
        self
    }
}

/// How the layers of a stack were restacked.
pub(super) struct LayerMap {
    /// The stack's prefix, such as `model.layers.`.
    pub(super) prefix: String,
    /// For each output layer, the layer of the donor's stack (or of the first source's) that it comes from.
    pub(super) from: Vec<usize>,
    /// Number of layers in the donor.
    pub(super) before: usize,
    /// Number of layers behind them that predict further tokens.
    pub(super) behind: usize,
    /// Whether tensors of one name have other shapes in other layers of the donor.
    pub(super) uneven: bool,
}

impl LayerMap {
    /// Whether the layers are others than the donor's, or stand in another order.
    pub(super) fn is_changed(&self) -> bool {
        !self.from.iter().copied().eq(0..self.before)
    }
}

/// Everything that a recipe asks for.
pub(super) struct Layout<'r> {
    pub(super) groups: Vec<SourceGroup<'r>>,
    pub(super) wanted: Vec<OutputTensor>,
    /// The stacks that slices cut.
    pub(super) layer_maps: Vec<LayerMap>,
}

/// A module of the recipe, and what is needed to list its tensors.
struct ModuleSources<'a, 'r> {
    recipe: &'r Recipe,
    module: &'r Module,
    /// The donor's names in the module, in order.
    names: Vec<&'a String>,
    models: &'a Models,
    counterparts: &'a [Counterparts],
    /// The stacks of layers in the module.
    stacks: Vec<&'a LayerStack>,
    /// The numbered runs that a gradient spans: the stacks, and others.
    runs: Vec<&'a LayerStack>,
}

/// Lists what the recipe asks for.
pub(super) fn layout<'r>(
    recipe: &'r Recipe,
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Layout<'r> {
    let of_donor = || counterparts[models.donor].names.iter().map(String::as_str);
    let config = models.donor().config().map(ModelConfig::value);
    let runs = without_mtp(numbered_runs(of_donor()), config, of_donor);
    let mut layout = Layout {
        groups: Vec::new(),
        wanted: Vec::new(),
        layer_maps: Vec::new(),
    };
    let names = &counterparts[models.donor].names;
    let modules = match &models.modules {
        Modules::Of(module) => vec![*module; names.len()],
        Modules::ByName { elsewhere } => assign(
            (&recipe.modules, elsewhere),
            names,
            models.label(models.donor),
            notes,
            problems,
        ),
    };
    if !problems.is_empty() {
        return layout;
    }
    for (index, module) in recipe.modules.iter().enumerate() {
        if !models.modules.has(index) {
            continue;
        }
        let names: Vec<&String> = names
            .iter()
            .zip(&modules)
            .filter(|(_, of)| **of == index)
            .map(|(name, _)| name)
            .collect();
        let holds = |stack: &&LayerStack| names.iter().any(|name| stack.split(name).is_some());
        let part = ModuleSources {
            recipe,
            module,
            models,
            counterparts,
            stacks: stacks.iter().filter(holds).collect(),
            runs: runs.iter().filter(holds).collect(),
            names,
        };
        match &module.inputs {
            Inputs::Models(listed) => part.whole_models(listed, notes, &mut layout),
            Inputs::Slices(listed) => part.slices(listed, notes, problems, &mut layout),
        }
    }
    let tensors = names.iter().zip(models.donor().tensors());
    let around = Around {
        label: models.label(models.donor),
        config: config.and_then(serde_json::Value::as_object),
        runs: &runs,
        // Lists of numbers, such as positions, have no entry for a layer.
        tensors: tensors
            .filter(|(_, tensor)| FloatType::from_dtype(tensor.dtype).is_some())
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
            .collect(),
    };
    for map in &mut layout.layer_maps {
        map.uneven = around.is_uneven(&map.prefix);
    }
    around.check(&layout.layer_maps, problems);
    layout
}

/// The depth of a name in its own run of layers: 0 for the first, 1 for the last.
fn depth(runs: &[&LayerStack], name: &str) -> f64 {
    let layer = runs
        .iter()
        .find_map(|stack| stack.split(name).map(|(layer, _)| (layer, stack.layers)));
    layer.map_or(0.0, |(layer, layers)| depth_of(layer, layers))
}

/// mergekit's rule: a stack of one layer counts as the last layer.
fn depth_of(layer: usize, layers: usize) -> f64 {
    if layers > 1 {
        layer as f64 / (layers - 1) as f64
    } else {
        1.0
    }
}

/// A source of the recipe together with its model.
fn placed<'r>(
    models: &Models,
    named: &'r Located<ModelRef>,
    parameters: &'r Parameters,
    statistics: &'r Option<Located<ModelRef>>,
) -> Option<GroupSource<'r>> {
    Some(GroupSource {
        model: models.index(&named.value)?,
        parameters: Some(parameters),
        statistics: statistics.as_ref(),
        at: named.at,
    })
}

impl<'r> ModuleSources<'_, 'r> {
    fn whole_models(&self, listed: &'r [Source], notes: &mut Vec<String>, layout: &mut Layout<'r>) {
        let mut sources: Vec<GroupSource<'r>> = listed
            .iter()
            .filter_map(|source| {
                placed(
                    self.models,
                    &source.model,
                    &source.parameters,
                    &source.statistics,
                )
            })
            .collect();
        let mut base = None;
        if let (Some(model), Some(named)) = (self.models.base, &self.recipe.base_model) {
            base = sources
                .iter()
                .position(|source| source.model == model)
                .or(Some(sources.len()));
            if base == Some(sources.len()) {
                sources.push(GroupSource {
                    model,
                    parameters: None,
                    statistics: None,
                    at: named.at,
                });
            }
        }
        if self.runs.len() > 1 {
            let runs = shown(&self.runs).into_iter();
            let runs: Vec<String> = runs
                .map(|run| self.models.qualified(&run).into_owned())
                .collect();
            notes.push(format!(
                "{} stacks of layers: {}; a gradient runs over each by itself",
                runs.len(),
                some_of(&runs)
            ));
        }
        let group = layout.groups.len();
        let added = self.added(&sources, notes);
        let wanted = self
            .names
            .iter()
            .copied()
            .chain(added)
            .map(|name| OutputTensor {
                name: name.clone(),
                depth: depth(&self.runs, name),
                group,
                picks: vec![name.clone(); sources.len()],
            });
        layout.wanted.extend(wanted);
        layout.groups.push(SourceGroup {
            sources,
            base,
            whole: true,
            levels: vec![&self.module.parameters],
        });
    }

    /// Names that the donor lacks, which the recipe copies from the first model that has them.
    fn added(&self, sources: &[GroupSource<'_>], notes: &mut Vec<String>) -> Vec<&String> {
        let donor = &self.counterparts[self.models.donor];
        // Nothing says which module a tensor belongs to if the donor does not have it.
        if self.module.name.is_some() {
            return Vec::new();
        }
        let mut added = BTreeSet::new();
        for source in sources {
            let new: Vec<&String> = self.counterparts[source.model]
                .names
                .iter()
                .filter(|name| donor.find(name).is_none() && !added.contains(name))
                .filter(|name| !(is_derived_buffer(name) || donor.tied && is_head(name)))
                .filter(|name| {
                    let exception = self.recipe.exception(&self.models.qualified(name));
                    exception.is_some_and(|exception| exception.fallback == Fallback::Copy)
                })
                .collect();
            if !new.is_empty() {
                let (label, of_config) = (
                    self.models.label(source.model),
                    self.models.label(self.models.donor),
                );
                notes.push(format!(
                    "{} of `{label}` that `{of_config}` lacks: copied ({}); the config stays that of `{of_config}`: \
                     if its class has no place for them, say the class as `override_architecture` of `{of_config}`",
                    count(new.len(), "tensor"),
                    some_of(&new)
                ));
            }
            added.extend(new);
        }
        added.into_iter().collect()
    }

    fn slices(
        &self,
        slices: &'r [Slice],
        notes: &mut Vec<String>,
        problems: &mut Problems,
        layout: &mut Layout<'r>,
    ) {
        let at = slices.first().map(|slice| slice.at);
        let Some(stack) = self.main_stack(at, notes, problems) else {
            return;
        };
        let first = layout.groups.len();
        for slice in slices {
            layout.groups.push(self.group(slice));
        }
        if !self.slices_fit_around(stack, slices, problems) {
            return;
        }
        let own: Vec<usize> = (0..self.counterparts.len())
            .map(|model| self.own_layers(model, stack))
            .collect();
        let layers: Vec<BTreeMap<usize, Vec<&str>>> = self
            .counterparts
            .iter()
            .zip(&own)
            .map(|(names, &own)| layers_of(names, stack, own))
            .collect();
        let before = problems.count();
        for (slice, group) in slices.iter().zip(&layout.groups[first..]) {
            for (source, placed) in slice.sources.iter().zip(&group.sources) {
                let have = layers[placed.model]
                    .keys()
                    .next_back()
                    .map_or(0, |last| last + 1);
                if source.layer_range.end > have {
                    problems.add(
                        Some(source.layer_range_at),
                        format!(
                            "layer_range [{}, {}] goes beyond `{}`, which has {have} layers",
                            source.layer_range.start,
                            source.layer_range.end,
                            self.models.label(placed.model)
                        ),
                        Some(format!("the range is half-open: [0, {have}] is all of it")),
                    );
                }
            }
        }
        if problems.count() > before {
            return;
        }

        let last = layout.groups.len() - 1;
        let ranges = slices.iter().filter_map(|slice| slice.sources.first());
        let length: usize = ranges.map(|source| source.layer_range.len()).sum();
        let mut placed = false;
        let mut tails = BTreeSet::new();
        let is_tower = |name: &str| feeds_embeddings(name) && !feeds_embeddings(&stack.prefix);
        for &name in &self.names {
            if stack.split(name).is_none() {
                let leads = comes_first(name) || is_tower(name);
                let group = if leads { first } else { last };
                if !leads && !is_head(name) && !name.contains("norm") {
                    tails.insert(name.clone());
                }
                let sources = &layout.groups[group].sources;
                let (name, picks) = match behind(stack, name) {
                    None => (name.clone(), vec![name.clone(); sources.len()]),
                    // It follows the layers, however many there are.
                    Some((number, suffix)) => {
                        let behind =
                            |layers: usize| format!("{}{}.{suffix}", stack.prefix, layers + number);
                        let picks = sources.iter().map(|source| behind(own[source.model]));
                        (behind(length), picks.collect())
                    }
                };
                layout.wanted.push(OutputTensor {
                    name,
                    depth: 0.0,
                    group,
                    picks,
                });
            } else if !placed {
                placed = true;
                let map = self.restack(slices, first, stack, &layers, layout, problems);
                self.note_moved(&map, &layers[self.models.donor], notes);
                layout.layer_maps.push(map);
            }
        }
        if slices.len() > 1 && !tails.is_empty() {
            let tails: Vec<String> = tails.into_iter().collect();
            notes.push(format!(
                "tensors outside the layers come from the last slice's models: {}",
                some_of(&tails)
            ));
        }
    }

    /// How many layers of the stack a model has, without those that predict further tokens.
    fn own_layers(&self, model: usize, stack: &LayerStack) -> usize {
        let config = self.models.checkpoints[model].config();
        let names = self.counterparts[model].names.iter().map(String::as_str);
        decoder_layers(config.map(ModelConfig::value), &stack.prefix, names)
    }

    /// Whether nothing outside of the stack has a part for each of its layers, which slices would leave as it is.
    fn slices_fit_around(
        &self,
        stack: &LayerStack,
        slices: &[Slice],
        problems: &mut Problems,
    ) -> bool {
        let whole = |slice: &Slice| {
            let ranges = slice.sources.iter().map(|source| &source.layer_range);
            ranges.into_iter().all(|range| *range == (0..stack.layers))
        };
        if let [slice] = slices
            && whole(slice)
        {
            return true;
        }
        let at = slices.first().map(|slice| slice.at);
        let label = self.models.label(self.models.donor);
        let by_layer = self.names.iter().find(|name| has_part_for_each_layer(name));
        let beside = self.runs.iter().find(|run| {
            let by_name = run.prefix.contains("layer");
            is_sibling(run, &stack.prefix) && (run.layers == stack.layers || by_name)
        });
        let message = match (by_layer, beside) {
            (Some(name), _) => format!(
                "`{name}` of `{label}` has a part for each of the {} layers in one dimension, which slices do not cut",
                stack.layers
            ),
            (None, Some(run)) => format!(
                "`{label}` keeps parts of its {} layers of `{}` in `{}` too, which slices do not cut",
                stack.layers, stack.prefix, run.prefix
            ),
            (None, None) => return true,
        };
        let hint = "merge such models whole, with `models:`";
        problems.add(at, message, Some(hint.to_owned()));
        false
    }

    /// Notes layers that stand where the donor has layers of other tensors: its config must say so of the new place.
    fn note_moved(
        &self,
        map: &LayerMap,
        layers: &BTreeMap<usize, Vec<&str>>,
        notes: &mut Vec<String>,
    ) {
        let donor = self.models.donor();
        let names = self.counterparts[self.models.donor].names.iter();
        let shapes: HashMap<&str, &[usize]> = names
            .zip(donor.tensors())
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
            .collect();
        let kind = |layer: usize| -> Option<BTreeMap<&str, &[usize]>> {
            let shape =
                |suffix: &&str| shapes.get(format!("{}{layer}.{suffix}", map.prefix).as_str());
            let suffixes = layers.get(&layer)?.iter();
            Some(
                suffixes
                    .map(|suffix| (*suffix, shape(suffix).copied().unwrap_or_default()))
                    .collect(),
            )
        };
        let mut moved = (0..map.before).zip(&map.from).filter(|(place, from)| {
            let kinds = (kind(*place), kind(**from));
            kinds.0.is_some() && kinds.1.is_some() && kinds.0 != kinds.1
        });
        if let Some((place, from)) = moved.next() {
            let others = match moved.count() {
                0 => String::new(),
                more => format!(", and so {}", count(more, "more layer")),
            };
            notes.push(format!(
                "layer {place} of the output is layer {from} of `{}`, which has other tensors than its layer \
                 {place}{others}: check that the output's config says which layers are of which kind",
                self.models.label(self.models.donor)
            ));
        }
    }

    /// The sources of one slice.
    fn group(&self, slice: &'r Slice) -> SourceGroup<'r> {
        let base = self
            .recipe
            .base_of(slice)
            .and_then(|base| self.models.index(&base.value));
        let sources: Vec<GroupSource<'r>> = slice
            .sources
            .iter()
            .filter_map(|source| {
                placed(
                    self.models,
                    &source.model,
                    &source.parameters,
                    &source.statistics,
                )
            })
            .collect();
        SourceGroup {
            base: sources.iter().position(|source| Some(source.model) == base),
            sources,
            whole: false,
            levels: vec![&slice.parameters, &self.module.parameters],
        }
    }

    /// Lists the output's layers in order. `first` is the group of the first slice.
    fn restack(
        &self,
        slices: &[Slice],
        first: usize,
        stack: &LayerStack,
        layers: &[BTreeMap<usize, Vec<&str>>],
        layout: &mut Layout<'r>,
        problems: &mut Problems,
    ) -> LayerMap {
        let mut map = LayerMap {
            prefix: stack.prefix.clone(),
            from: Vec::new(),
            before: stack.layers,
            uneven: false,
            behind: self
                .names
                .iter()
                .filter_map(|name| behind(stack, name))
                .map(|(number, _)| number + 1)
                .max()
                .unwrap_or(0),
        };
        for (slice, group) in slices.iter().zip(first..) {
            let count = slice
                .sources
                .first()
                .map_or(0, |source| source.layer_range.len());
            for offset in 0..count {
                let here: Vec<usize> = slice
                    .sources
                    .iter()
                    .map(|source| source.layer_range.start + offset)
                    .collect();
                let placed = &layout.groups[group].sources;
                let suffixes = &layers[placed[0].model][&here[0]];
                for (source, &layer) in placed.iter().zip(&here).skip(1) {
                    let theirs: BTreeSet<&&str> = layers[source.model][&layer].iter().collect();
                    let extra: Vec<&str> = theirs
                        .into_iter()
                        .filter(|suffix| !suffixes.contains(suffix))
                        .copied()
                        .collect();
                    if !extra.is_empty() {
                        problems.add(
                            Some(source.at),
                            format!(
                                "layer {layer} of `{}` has tensors that layer {} of `{}` lacks: {}",
                                self.models.label(source.model),
                                here[0],
                                self.models.label(placed[0].model),
                                some_of(&extra)
                            ),
                            None,
                        );
                    }
                }
                let out = map.from.len();
                for suffix in suffixes {
                    layout.wanted.push(OutputTensor {
                        name: format!("{}{out}.{suffix}", stack.prefix),
                        depth: depth_of(offset, count),
                        group,
                        picks: here
                            .iter()
                            .map(|layer| format!("{}{layer}.{suffix}", stack.prefix))
                            .collect(),
                    });
                }
                // The per-layer lists of the config describe the donor's layers: count in those if the donor is a
                // source.
                let donor = placed
                    .iter()
                    .position(|source| source.model == self.models.donor)
                    .unwrap_or(0);
                map.from.push(here[donor]);
            }
        }
        map
    }

    /// The stack of layers that `slices:` cuts.
    fn main_stack(
        &self,
        at: Option<Position>,
        notes: &mut Vec<String>,
        problems: &mut Problems,
    ) -> Option<&LayerStack> {
        let shown = shown(&self.stacks);
        let label = self.models.label(self.models.donor);
        let whole = self.module.name.is_none();
        let here = match &self.module.name {
            Some(name) => format!("the module `{}` of `{label}`", name.value),
            None => format!("`{label}`"),
        };
        let counted = self
            .models
            .donor()
            .config()
            .and_then(|config| config.num_hidden_layers());
        let fitting: Vec<&LayerStack> = match counted {
            Some(layers) if self.stacks.len() > 1 => self
                .stacks
                .iter()
                .filter(|stack| stack.layers == layers)
                .copied()
                .collect(),
            _ => self.stacks.clone(),
        };
        match fitting[..] {
            [stack] => {
                if self.stacks.len() > 1 {
                    notes.push(format!(
                        "{here} has {} stacks of layers ({}); slices cut `{}`, whose length is the config's number of layers",
                        self.stacks.len(),
                        some_of(&shown),
                        stack.prefix
                    ));
                }
                Some(stack)
            }
            [] => {
                let message = match self.stacks.len() {
                    0 => format!(
                        "{here} has no stack of layers in its tensor names, so there is nothing to slice"
                    ),
                    _ => format!(
                        "{here} has several stacks of layers, and none has the config's number: {}",
                        some_of(&shown)
                    ),
                };
                let hint = "merge such models with `models:`";
                problems.add(at, message, Some(hint.to_owned()));
                None
            }
            _ => {
                let message = format!(
                    "{here} has several stacks of layers that slices could cut: {}",
                    some_of(&shown)
                );
                let hint = match whole {
                    true => "put the slices under `modules:`, by the module that they cut",
                    false => {
                        "name a smaller module, a part of tensor names such as `visual.blocks`"
                    }
                };
                problems.add(at, message, Some(hint.to_owned()));
                None
            }
        }
    }
}

/// Stacks as they are shown: `model.layers.0..32`.
fn shown(stacks: &[&LayerStack]) -> Vec<String> {
    stacks
        .iter()
        .map(|stack| format!("{}0..{}", stack.prefix, stack.layers))
        .collect()
}

/// The number behind the layers of the stack, and what follows it in the name, of a tensor of a layer that predicts
/// further tokens.
fn behind<'n>(stack: &LayerStack, name: &'n str) -> Option<(usize, &'n str)> {
    let any = LayerStack {
        prefix: stack.prefix.clone(),
        layers: usize::MAX,
    };
    let (layer, suffix) = any.split(name)?;
    Some((layer.checked_sub(stack.layers)?, suffix))
}

/// The suffixes of each layer of a model that has so many, in file order.
fn layers_of<'a>(
    counterparts: &'a Counterparts,
    stack: &LayerStack,
    layers: usize,
) -> BTreeMap<usize, Vec<&'a str>> {
    // A model may have more layers than the donor.
    let stack = LayerStack {
        prefix: stack.prefix.clone(),
        layers,
    };
    let mut layers: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for name in &counterparts.names {
        if let Some((layer, suffix)) = stack.split(name) {
            layers.entry(layer).or_default().push(suffix);
        }
    }
    layers
}

/// Whether a tensor comes before the layers: embeddings do; norms and heads come after.
fn comes_first(name: &str) -> bool {
    let positions = name
        .split('.')
        .any(|part| part == "wpe" || part.contains("embed"));
    !is_head(name) && !name.starts_with("embed_out") && (is_input_embedding(name) || positions)
}

//! Which tensors the output has, and which tensor of each source goes into each: depth, slices, restacking.

use std::collections::{BTreeMap, BTreeSet};

use super::counterparts::{Counterparts, is_head};
use super::models::Models;
use super::problems::{Problems, some_of};
use crate::checkpoint::{LayerStack, ModelRef, is_input_embedding};
use crate::recipe::{Inputs, Located, Parameters, Position, Recipe, Slice, Source};

/// Sources that are merged with each other: those of `models:`, or of one slice.
pub(super) struct Group<'r> {
    pub(super) sources: Vec<GroupSource<'r>>,
    /// Which source is the base.
    pub(super) base: Option<usize>,
    /// The slice's own parameters.
    pub(super) parameters: Option<&'r Parameters>,
}

/// One source of a group.
pub(super) struct GroupSource<'r> {
    pub(super) model: usize,
    /// None for a base that joined by itself.
    pub(super) parameters: Option<&'r Parameters>,
    pub(super) at: Position,
}

/// An output tensor that the recipe asks for.
pub(super) struct Wanted {
    pub(super) name: String,
    /// Where it lies between the first layer (0) and the last (1) of its slice; 0 outside the layers.
    pub(super) depth: f64,
    pub(super) group: usize,
    /// For each source of the group, the name there (as the donor writes names).
    pub(super) picks: Vec<String>,
}

/// How the output's layers were restacked.
pub(super) struct LayerMap {
    /// For each output layer, the layer of the donor's stack (or of the first source) it comes from.
    pub(super) from: Vec<usize>,
    /// Layers of the donor.
    pub(super) before: usize,
}

/// All that a recipe asks for.
pub(super) struct Wish<'r> {
    pub(super) groups: Vec<Group<'r>>,
    pub(super) wanted: Vec<Wanted>,
    pub(super) layer_map: Option<LayerMap>,
}

/// Lists what the recipe asks for.
pub(super) fn wish<'r>(
    recipe: &'r Recipe,
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Wish<'r> {
    match &recipe.inputs {
        Inputs::Models(listed) => whole_models(recipe, listed, models, counterparts, stacks, notes),
        Inputs::Slices(listed) => slices(
            recipe,
            listed,
            models,
            counterparts,
            stacks,
            notes,
            problems,
        ),
    }
}

/// Where a name lies in its own stack: 0 for the first layer, 1 for the last.
fn depth(stacks: &[LayerStack], name: &str) -> f64 {
    let layer = stacks
        .iter()
        .find_map(|stack| stack.split(name).map(|(layer, _)| (layer, stack.layers)));
    layer.map_or(0.0, |(layer, layers)| depth_of(layer, layers))
}

/// mergekit's rule: a stack of one layer is at its end.
fn depth_of(layer: usize, layers: usize) -> f64 {
    if layers > 1 {
        layer as f64 / (layers - 1) as f64
    } else {
        1.0
    }
}

/// A source of the recipe with its model, which has been opened.
fn placed<'r>(
    models: &Models,
    named: &'r Located<ModelRef>,
    parameters: &'r Parameters,
) -> Option<GroupSource<'r>> {
    Some(GroupSource {
        model: models.index(&named.value)?,
        parameters: Some(parameters),
        at: named.at,
    })
}

fn whole_models<'r>(
    recipe: &'r Recipe,
    listed: &'r [Source],
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    notes: &mut Vec<String>,
) -> Wish<'r> {
    let mut sources: Vec<GroupSource<'r>> = listed
        .iter()
        .filter_map(|source| placed(models, &source.model, &source.parameters))
        .collect();
    let mut base = None;
    if let (Some(model), Some(named)) = (models.base, &recipe.base_model) {
        base = sources
            .iter()
            .position(|source| source.model == model)
            .or(Some(sources.len()));
        if base == Some(sources.len()) {
            sources.push(GroupSource {
                model,
                parameters: None,
                at: named.at,
            });
        }
    }
    if stacks.len() > 1 {
        let names: Vec<String> = stacks
            .iter()
            .map(|stack| format!("{}0..{}", stack.prefix, stack.layers))
            .collect();
        notes.push(format!(
            "{} stacks of layers: {}; a gradient runs over each by itself",
            stacks.len(),
            some_of(&names)
        ));
    }
    let wanted = counterparts[models.donor]
        .names
        .iter()
        .map(|name| Wanted {
            name: name.clone(),
            depth: depth(stacks, name),
            group: 0,
            picks: vec![name.clone(); sources.len()],
        })
        .collect();
    Wish {
        groups: vec![Group {
            sources,
            base,
            parameters: None,
        }],
        wanted,
        layer_map: None,
    }
}

fn slices<'r>(
    recipe: &'r Recipe,
    slices: &'r [Slice],
    models: &Models,
    counterparts: &[Counterparts],
    stacks: &[LayerStack],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Wish<'r> {
    let mut wish = Wish {
        groups: vec![],
        wanted: vec![],
        layer_map: None,
    };
    let Some(stack) = main_stack(
        models,
        stacks,
        slices.first().map(|slice| slice.at),
        notes,
        problems,
    ) else {
        return wish;
    };
    for slice in slices {
        let base = slice
            .base_model
            .as_ref()
            .or(recipe.base_model.as_ref())
            .and_then(|base| models.index(&base.value));
        let sources: Vec<GroupSource<'r>> = slice
            .sources
            .iter()
            .filter_map(|source| placed(models, &source.model, &source.parameters))
            .collect();
        let base = sources.iter().position(|source| Some(source.model) == base);
        wish.groups.push(Group {
            sources,
            base,
            parameters: Some(&slice.parameters),
        });
    }
    let layers: Vec<BTreeMap<usize, Vec<&str>>> = counterparts
        .iter()
        .map(|names| layers_of(names, stack))
        .collect();
    for (slice, group) in slices.iter().zip(&wish.groups) {
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
                        models.label(placed.model)
                    ),
                    Some(format!("the range is half-open: [0, {have}] is all of it")),
                );
            }
        }
    }
    if !problems.is_empty() {
        return wish;
    }

    let last = slices.len() - 1;
    let mut placed = false;
    let mut tails = BTreeSet::new();
    for name in &counterparts[models.donor].names {
        if stack.split(name).is_none() {
            let group = if comes_first(name) { 0 } else { last };
            if group == last && !is_head(name) && !name.contains("norm") && !comes_first(name) {
                tails.insert(name.clone());
            }
            let picks = vec![name.clone(); wish.groups[group].sources.len()];
            wish.wanted.push(Wanted {
                name: name.clone(),
                depth: 0.0,
                group,
                picks,
            });
        } else if !placed {
            placed = true;
            wish.layer_map = Some(restack(slices, models, stack, &layers, &mut wish, problems));
        }
    }
    if slices.len() > 1 && !tails.is_empty() {
        let tails: Vec<String> = tails.into_iter().collect();
        notes.push(format!(
            "tensors outside the layers come from the last slice's models: {}",
            some_of(&tails)
        ));
    }
    wish
}

/// Emits the output's layers in order.
fn restack(
    slices: &[Slice],
    models: &Models,
    stack: &LayerStack,
    layers: &[BTreeMap<usize, Vec<&str>>],
    wish: &mut Wish<'_>,
    problems: &mut Problems,
) -> LayerMap {
    let mut map = LayerMap {
        from: Vec::new(),
        before: stack.layers,
    };
    for (group, slice) in slices.iter().enumerate() {
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
            let placed = &wish.groups[group].sources;
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
                            models.label(source.model),
                            here[0],
                            models.label(placed[0].model),
                            some_of(&extra)
                        ),
                        None,
                    );
                }
            }
            let out = map.from.len();
            for suffix in suffixes {
                wish.wanted.push(Wanted {
                    name: format!("{}{out}.{suffix}", stack.prefix),
                    depth: depth_of(offset, count),
                    group,
                    picks: here
                        .iter()
                        .map(|layer| format!("{}{layer}.{suffix}", stack.prefix))
                        .collect(),
                });
            }
            // The per-layer lists of the config describe the donor's layers: count in those, if it is a source.
            let donor = placed
                .iter()
                .position(|source| source.model == models.donor)
                .unwrap_or(0);
            map.from.push(here[donor]);
        }
    }
    map
}

/// The suffixes of each layer, in file order.
fn layers_of<'a>(
    counterparts: &'a Counterparts,
    stack: &LayerStack,
) -> BTreeMap<usize, Vec<&'a str>> {
    // A model may have more layers than the donor.
    let stack = LayerStack {
        prefix: stack.prefix.clone(),
        layers: usize::MAX,
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

/// The stack of layers that `slices:` cuts.
fn main_stack<'s>(
    models: &Models,
    stacks: &'s [LayerStack],
    at: Option<Position>,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<&'s LayerStack> {
    let shown: Vec<String> = stacks
        .iter()
        .map(|stack| format!("{}0..{}", stack.prefix, stack.layers))
        .collect();
    let label = models.label(models.donor);
    let counted = models
        .donor()
        .config()
        .and_then(|config| config.num_hidden_layers());
    let fitting: Vec<&LayerStack> = match counted {
        Some(layers) if stacks.len() > 1 => stacks
            .iter()
            .filter(|stack| stack.layers == layers)
            .collect(),
        _ => stacks.iter().collect(),
    };
    match fitting[..] {
        [stack] => {
            if stacks.len() > 1 {
                notes.push(format!(
                    "`{label}` has {} stacks of layers ({}); slices cut `{}`, whose length is the config's number of layers",
                    stacks.len(),
                    some_of(&shown),
                    stack.prefix
                ));
            }
            Some(stack)
        }
        [] => {
            let message = match stacks.len() {
                0 => format!(
                    "`{label}` has no stack of layers in its tensor names, so there is nothing to slice"
                ),
                _ => format!(
                    "`{label}` has several stacks of layers, and none has the config's number: {}",
                    some_of(&shown)
                ),
            };
            problems.add(
                at,
                message,
                Some("merge such models with `models:`".to_owned()),
            );
            None
        }
        _ => {
            let message = format!(
                "`{label}` has several stacks of layers that slices could cut: {}",
                some_of(&shown)
            );
            problems.add(
                at,
                message,
                Some(
                    "`modules:`, which names one, is not supported yet; merge with `models:`"
                        .to_owned(),
                ),
            );
            None
        }
    }
}

//! Models of several parts: each part is merged like a model of its own, and then all are put together.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::TensorUsage;
use super::models::{Models, Modules};
use super::modules::rest;
use super::output_part::OutputPart;
use super::outputs::Merge;
use super::planned::{Operation, PlannedTensor, SourceTensor};
use super::problems::{Problems, count, some_of};
use checkpoint::{Checkpoint, InMemory, ModelConfig, Part, SidecarsFrom, WrittenAs};
use numeric::FloatType;
use recipe::{Fallback, Inputs, Module, Recipe, nearest};

/// A part of the donor, and what becomes of it.
pub(super) struct PartOf {
    /// The part of each model. One that has no such part has no tensors here.
    pub(super) models: Models,
    /// See [`OutputPart::stem`].
    stem: String,
    /// See [`OutputPart::format`].
    format: WrittenAs,
    /// For each model, the number of the part's first tensor in the whole model.
    first: Vec<usize>,
    /// Whether it is merged; else it is copied from the donor.
    pub(super) is_merged: bool,
}

/// The parts of the donor, in order, and whether each is merged. Notes those that are copied, and those that only others
/// have.
pub(super) fn parts(
    recipe: &Recipe,
    models: &Models,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Vec<PartOf> {
    let donor = models.donor();
    let places: Vec<Place<'_>> = match donor.parts() {
        [] => vec![Place {
            prefix: "",
            stem: donor.stem(),
            format: WrittenAs::Safetensors,
        }],
        parts => parts.iter().map(Place::entry).collect(),
    };
    let mut copied: Vec<(String, &str)> = Vec::new();
    let mut found = Vec::new();
    for place in &places {
        let (part, has) = part_of(models, place);
        let why = why_copied(recipe, models, place.prefix, &has);
        copied.extend(why.clone().map(|why| (why, place.name())));
        let modules = modules_of(recipe, place.prefix, &places);
        found.push(PartOf {
            is_merged: why.is_none(),
            models: part.models.with_modules(modules),
            ..part
        });
    }
    note_others(models, &places, notes);
    unknown_modules(recipe, donor, &places, problems);
    if !problems.is_empty() {
        return Vec::new();
    }
    if !found.iter().any(|part| part.is_merged) {
        let (why, _) = copied.swap_remove(0);
        let names: Vec<&str> = places.iter().map(Place::name).collect();
        let message = match donor.is_pipeline() {
            true => format!(
                "none of the components of `{}` can be merged ({}): {why}",
                donor.label(),
                some_of(&names)
            ),
            false => format!(
                "`{}` cannot be merged with the others: {why}",
                donor.label()
            ),
        };
        let hint = "merge models of one kind: pipelines with pipelines, or the same component's folder of each";
        problems.add(models.at[models.donor], message, Some(hint.to_owned()));
        return Vec::new();
    }
    let reasons: BTreeSet<&String> = copied.iter().map(|(why, _)| why).collect();
    for why in reasons {
        let names = copied.iter().filter(|(other, _)| other == why);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        let label = donor.label();
        notes.push(format!(
            "copied from `{label}`, not merged, as {why}: {}",
            some_of(&names)
        ));
    }
    found
}

/// Where a part of the donor lies: see [`Part`].
struct Place<'d> {
    prefix: &'d str,
    stem: &'d str,
    format: WrittenAs,
}

impl<'d> Place<'d> {
    fn entry(part: &'d Part) -> Place<'d> {
        Place {
            prefix: &part.prefix,
            stem: &part.stem,
            format: part.format,
        }
    }

    fn name(&self) -> &'d str {
        self.prefix.trim_end_matches('/')
    }
}

/// A part of each model, and which models have it.
fn part_of(models: &Models, place: &Place<'_>) -> (PartOf, Vec<bool>) {
    let prefix = place.prefix;
    let mut first = Vec::new();
    let mut has = Vec::new();
    let mut checkpoints = Vec::new();
    for model in &models.checkpoints {
        let whole = model.parts().is_empty() && prefix.is_empty();
        let part = model.parts().iter().find(|part| part.prefix == prefix);
        first.push(part.map_or(0, |part| part.first));
        has.push(whole || part.is_some());
        checkpoints.push(match part {
            Some(part) => Arc::clone(&part.model),
            None if whole => Arc::clone(model),
            None => Arc::new(Checkpoint::new(
                model.label(),
                model.location().clone(),
                None,
                SidecarsFrom::Nothing,
                Arc::new(InMemory::default()),
            )),
        });
    }
    let part = PartOf {
        models: models.with_parts(prefix, checkpoints),
        stem: place.stem.to_owned(),
        format: place.format,
        first,
        is_merged: true,
    };
    (part, has)
}

/// The module of the recipe for a part: the one by its name, else the one that takes what no other does.
fn module_of<'r>(recipe: &'r Recipe, prefix: &str) -> Option<(usize, &'r Module)> {
    let named = |module: &Module| is_named(module, prefix);
    let module = match recipe.modules.as_slice() {
        [module] if module.name.is_none() => Some(0),
        modules => modules.iter().position(named).or_else(|| rest(modules)),
    };
    module.map(|module| (module, &recipe.modules[module]))
}

/// Whether a module of the recipe has the name of a part.
fn is_named(module: &Module, prefix: &str) -> bool {
    let own = prefix.trim_end_matches('/');
    module.name.as_ref().is_some_and(|name| name.value == own)
}

/// Refuses modules of the recipe that are no part of the donor, where all of its weights lie in parts.
fn unknown_modules(
    recipe: &Recipe,
    donor: &Checkpoint,
    places: &[Place<'_>],
    problems: &mut Problems,
) {
    if places.iter().any(|place| place.prefix.is_empty()) {
        // Modules of tensors are known by their names, which are compared later.
        return;
    }
    let rest = rest(&recipe.modules);
    for (index, module) in recipe.modules.iter().enumerate() {
        let Some(name) = &module.name else {
            continue;
        };
        if places.iter().any(|place| place.name() == name.value) || rest == Some(index) {
            continue;
        }
        let nearest = nearest(&name.value, places.iter().map(Place::name));
        let nearest = nearest.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        let names: Vec<&str> = places.iter().map(Place::name).collect();
        problems.add(
            Some(name.at),
            format!(
                "`{}` has no part `{}`",
                donor.label(),
                name.value.escape_debug()
            ),
            Some(format!(
                "{nearest}its parts are {}, and `default` stands for those that are not named",
                some_of(&names)
            )),
        );
    }
}

/// Which modules the tensors of a part belong to.
fn modules_of(recipe: &Recipe, prefix: &str, places: &[Place<'_>]) -> Modules {
    if !prefix.is_empty() {
        return module_of(recipe, prefix)
            .map_or(Modules::default(), |(index, _)| Modules::Of(index));
    }
    let is_part = |module: &Module| {
        let name = module.name.as_ref().map(|name| name.value.as_str());
        name.is_some_and(|name| places.iter().any(|place| place.name() == name))
    };
    let modules = recipe.modules.iter().enumerate();
    Modules::ByName {
        elsewhere: modules
            .filter(|(_, module)| is_part(module))
            .map(|(at, _)| at)
            .collect(),
    }
}

/// Why a part is not merged, as part of a sentence. `has` says which models have it.
fn why_copied(recipe: &Recipe, models: &Models, prefix: &str, has: &[bool]) -> Option<String> {
    let lacking = |mut needed: Box<dyn Iterator<Item = usize> + '_>| {
        let model = needed.find(|&model| !has[model])?;
        Some(format!("`{}` has no such part", models.label(model)))
    };
    if prefix.is_empty() {
        return lacking(Box::new(0..models.merged));
    }
    let Some((_, module)) = module_of(recipe, prefix) else {
        return Some("no module of the recipe has its name".to_owned());
    };
    if matches!(module.inputs, Inputs::Slices(_)) && !is_named(module, prefix) {
        return Some("slices cut the layers of the model itself".to_owned());
    }
    let asked = module.inputs.mentions().chain(&recipe.base_model);
    lacking(Box::new(
        asked.filter_map(|model| models.index(&model.value)),
    ))
}

/// Notes the parts of other models that the donor lacks.
fn note_others(models: &Models, places: &[Place<'_>], notes: &mut Vec<String>) {
    let (donor, label) = (models.donor(), models.label(models.donor));
    for model in models.checkpoints[..models.merged].iter() {
        let lacks = |part: &&Part| !places.iter().any(|place| place.prefix == part.prefix);
        let names: Vec<&str> = model.parts().iter().filter(lacks).map(Part::name).collect();
        // That one is a pipeline and the other is not is an error of its own.
        if !names.is_empty() && model.is_pipeline() == donor.is_pipeline() {
            notes.push(format!(
                "`{}` has {} that `{label}` lacks, which the output does not get: {}",
                model.label(),
                count(names.len(), "part"),
                some_of(&names)
            ));
        }
    }
}

impl PartOf {
    /// The donor's config, if it is that of a model: a module's settings may only look like one.
    pub(super) fn config(&self) -> Option<&ModelConfig> {
        let of_model = |config: &&ModelConfig| {
            let keys = ["_class_name", "model_type", "architectures"];
            self.models.prefix.is_empty() || keys.iter().any(|key| config.get(key).is_some())
        };
        self.models.donor().config().filter(of_model)
    }

    /// The part as it is in the donor, but for what the recipe drops.
    pub(super) fn copied(&self, recipe: &Recipe) -> Merge {
        let models = &self.models;
        let donor = models.donor();
        let mut usages: Vec<Vec<TensorUsage>> = models.checkpoints[..models.merged]
            .iter()
            .map(|model| vec![TensorUsage::NotTaken; model.tensors().len()])
            .collect();
        let mut tensors = Vec::new();
        for (tensor, entry) in donor.tensors().iter().enumerate() {
            let exception = recipe.exception(&models.qualified(&entry.name));
            if exception.is_some_and(|exception| exception.fallback == Fallback::Drop) {
                usages[models.donor][tensor] = TensorUsage::Excepted;
                continue;
            }
            usages[models.donor][tensor] = TensorUsage::Used(1);
            let as_it_is =
                donor.bytes(tensor).is_some() || FloatType::from_dtype(entry.dtype).is_none();
            let source = SourceTensor {
                model: models.donor,
                tensor,
            };
            tensors.push(PlannedTensor::plain(
                entry.name.clone(),
                entry.dtype,
                entry.shape.clone(),
                vec![source],
                match as_it_is {
                    true => Operation::Copy,
                    false => Operation::convert(),
                },
            ));
        }
        Merge {
            tensors,
            equal: Vec::new(),
            usages,
            layer_maps: Vec::new(),
            wanted: Vec::new(),
            alike: (0..models.merged).collect(),
        }
    }
}

/// The merge of all parts.
#[derive(Default)]
pub(super) struct Whole {
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) equal: Vec<(usize, usize, usize)>,
    pub(super) usages: Vec<Vec<TensorUsage>>,
    pub(super) parts: Vec<OutputPart>,
}

impl Whole {
    /// Nothing yet, of these models.
    pub(super) fn new(models: &Models) -> Whole {
        let merged = models.checkpoints[..models.merged].iter();
        let not_taken =
            |model: &Arc<Checkpoint>| vec![TensorUsage::NotTaken; model.tensors().len()];
        Whole {
            usages: merged.map(not_taken).collect(),
            ..Whole::default()
        }
    }

    /// Adds a part: from here on its tensors have the names and numbers that they have in the whole models.
    pub(super) fn add(&mut self, part: &PartOf, merge: Merge, config: Option<Value>) {
        let begin = self.tensors.len();
        for mut tensor in merge.tensors {
            for source in &mut tensor.sources {
                source.tensor += part.first[source.model];
            }
            tensor.name = part.models.qualified(&tensor.name).into_owned();
            self.tensors.push(tensor);
        }
        let equal = merge.equal.into_iter();
        self.equal.extend(equal.map(|(model, one, other)| {
            let first = part.first[model];
            (model, first + one, first + other)
        }));
        for (model, usages) in merge.usages.into_iter().enumerate() {
            let first = part.first[model];
            self.usages[model].splice(first..first + usages.len(), usages);
        }
        self.parts.push(OutputPart {
            prefix: part.models.prefix.clone(),
            stem: part.stem.clone(),
            format: part.format,
            tensors: begin..self.tensors.len(),
            shards: 0..0,
            config,
        });
    }
}

//! Opens the models that a recipe names, through a resolver or from another document.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::problems::{Problems, some_of};
use super::results::{MergeResult, Results};
use super::statistics;
use checkpoint::{Checkpoint, ModelRef, Resolver, Sidecar, SidecarKind, Statistics};
use recipe::{ExpertLayout, Located, Position, Quantization, Recipe, Tokenizer, VocabularySource};

/// The models of a recipe, opened.
#[derive(Default, Clone)]
pub struct Models {
    /// In order of first appearance; the tokenizer's donor comes last if the recipe does not merge it.
    pub checkpoints: Vec<Arc<Checkpoint>>,
    /// Where the recipe first names each.
    pub at: Vec<Option<Position>>,
    /// How many of the checkpoints are merged; one that only donates its tokenizer is not.
    pub merged: usize,
    /// The model that gives names, order, config and files.
    pub donor: usize,
    /// The base, if there is one.
    pub base: Option<usize>,
    /// The model that gives the tokenizer's files.
    pub tokenizer_donor: usize,
    /// The files of statistics among the checkpoints, by their number.
    pub statistics: BTreeMap<usize, Arc<Statistics>>,
    /// The names that tensors have in their own files, by model, if the recipe renames some and there are statistics.
    pub(super) own_names: BTreeMap<usize, Vec<String>>,
    /// The models that are results of other merges.
    pub results: BTreeMap<usize, Arc<MergeResult>>,
    /// What the names of their tensors begin with in the whole model, if these are a part of each: `unet/`.
    pub prefix: String,
    /// Which modules of the recipe the tensors belong to.
    pub(super) modules: Modules,
    by_text: HashMap<String, usize>,
}

/// Which modules of a recipe the tensors of a part belong to.
#[derive(Clone)]
pub(super) enum Modules {
    /// Their names say it; the modules `elsewhere` are those of other parts.
    ByName { elsewhere: Vec<usize> },
    /// All belong to this one.
    Of(usize),
}

impl Default for Modules {
    fn default() -> Self {
        Modules::ByName {
            elsewhere: Vec::new(),
        }
    }
}

/// The methods that add differences from the base to it element by element, so that weights which only one model has
/// changed are added as they are. Not those that drop or weigh down what few models have (`consensus_ta`, `sce`).
const ADD_TASK_VECTORS: [&str; 9] = [
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "magmax",
];

impl Modules {
    /// Whether a module may have some of the tensors.
    pub(super) fn has(&self, module: usize) -> bool {
        match self {
            Modules::ByName { elsewhere } => !elsewhere.contains(&module),
            Modules::Of(own) => *own == module,
        }
    }
}

/// Opens all models through the resolver, and reports each that cannot be opened.
pub(super) fn open(
    recipe: &Recipe,
    resolver: &dyn Resolver,
    tokenizer_from: Option<&ModelRef>,
    results: &Results,
    problems: &mut Problems,
) -> Option<Models> {
    let mut models = Models::default();
    let mut complete = true;
    for Located { value, at } in recipe.mentions() {
        complete &= models.add(value, Some(*at), resolver, results, problems);
    }
    models.merged = models.checkpoints.len();
    complete &= statistics::open(recipe, &mut models, resolver, problems);
    for Located { value, at } in recipe.tokenizer.iter().flat_map(Tokenizer::mentions) {
        complete &= models.add(value, Some(*at), resolver, results, problems);
    }
    if let (Some(model), Some(key)) = (tokenizer_from, &recipe.tokenizer) {
        let message = format!(
            "the recipe says which vocabulary the output has, and `--tokenizer-from {model}` names another"
        );
        let hint = "leave one of the two out".to_owned();
        problems.add(Some(key.at), message, Some(hint));
        return None;
    }
    if let Some(model) = tokenizer_from {
        complete &= models.add(model, None, resolver, &Results::new(), problems);
    }
    if !complete || models.merged == 0 {
        return None;
    }
    models.base = recipe
        .base_model
        .as_ref()
        .and_then(|base| models.index(&base.value));
    models.donor = models.base.unwrap_or(0);
    let of_key = recipe.tokenizer.as_ref().and_then(|key| match &key.source {
        VocabularySource::Model(model) => Some(&model.value),
        VocabularySource::Union | VocabularySource::Base => None,
    });
    models.tokenizer_donor = tokenizer_from
        .or(of_key)
        .and_then(|model| models.index(model))
        .unwrap_or(models.donor);
    if let Some(asked) = &recipe.expert_layout {
        models.lay_experts(recipe, asked, problems)?;
    }
    models.lay_experts_alike();
    if ADD_TASK_VECTORS.contains(&recipe.method.name) {
        models.widen_unets();
    }
    Some(models)
}

impl Models {
    /// Adds a model unless it is there already; returns whether it is there now.
    pub fn add(
        &mut self,
        model: &ModelRef,
        at: Option<Position>,
        resolver: &dyn Resolver,
        results: &Results,
        problems: &mut Problems,
    ) -> bool {
        let text = model.to_string();
        if self.by_text.contains_key(&text) {
            return true;
        }
        if let Some(result) = results.get(&model.path) {
            return self.add_result(model, at, result, problems);
        }
        match resolver.resolve(model) {
            Ok(checkpoint) => {
                self.by_text.insert(text, self.checkpoints.len());
                self.checkpoints.push(checkpoint);
                self.at.push(at);
                true
            }
            Err(error) => {
                // One message per model, however often the recipe names it.
                self.by_text.insert(text, usize::MAX);
                problems.add_unopened(at, &error);
                false
            }
        }
    }

    /// Adds the result of another document.
    fn add_result(
        &mut self,
        model: &ModelRef,
        at: Option<Position>,
        result: &Arc<MergeResult>,
        problems: &mut Problems,
    ) -> bool {
        let text = model.to_string();
        if text != model.path {
            let message = format!(
                "`{}` is the result of another document, which has neither revisions nor adapters: `{text}`",
                model.path
            );
            let hint =
                "name it alone, or apply the adapter to one of the models that it is merged from";
            problems.add(at, message, Some(hint.to_owned()));
            self.by_text.insert(text, usize::MAX);
            return false;
        }
        let index = self.checkpoints.len();
        self.checkpoints.push(Arc::new(result.checkpoint(&text)));
        self.by_text.insert(text, index);
        self.results.insert(index, Arc::clone(result));
        self.at.push(at);
        true
    }

    /// Gives plain UNets the further input channels that others of the models have, if the base is plain: the weights of
    /// these are zero, as they were when the training of the others began.
    fn widen_unets(&mut self) {
        let inputs: Vec<Option<usize>> = (self.checkpoints.iter())
            .map(|model| model.unet_inputs())
            .collect();
        let of_base = self.base.and_then(|base| inputs[base]);
        let most = inputs[..self.merged].iter().flatten().max().copied();
        let (Some(plain), Some(most)) = (of_base, most) else {
            return;
        };
        let are_known = inputs
            .iter()
            .flatten()
            .all(|&count| count == plain || count == most);
        if plain >= most || !are_known {
            return;
        }
        for (index, model) in self.checkpoints.iter_mut().enumerate() {
            if self.results.contains_key(&index) {
                continue;
            }
            if let Some(wider) = model.with_unet_inputs(most) {
                *model = Arc::new(wider);
            }
        }
    }

    /// Gives the donor the layout of experts that the recipe asks for. `None` if it cannot have it.
    fn lay_experts(
        &mut self,
        recipe: &Recipe,
        asked: &Located<ExpertLayout>,
        problems: &mut Problems,
    ) -> Option<()> {
        let donor = &self.checkpoints[self.donor];
        let (label, name) = (donor.label(), asked.value.name());
        let fused = asked.value == ExpertLayout::Fused;
        let mut refuse = |why: String, hint: &str| -> Option<()> {
            let message = format!("`expert_layout: {name}`: {why}");
            problems.add(Some(asked.at), message, Some(hint.to_owned()));
            None
        };
        if self.results.contains_key(&self.donor) {
            let why = format!("`{label}` is the result of another document");
            return refuse(
                why,
                "merge in two runs: the second may name the folder of the first",
            );
        }
        if !donor.adapters().is_empty() || !donor.parts().is_empty() {
            let why = format!("`{label}` is a model with an adapter, or one of several parts");
            return refuse(
                why,
                "merge it alone first, without `expert_layout`, and name the output here",
            );
        }
        match donor.has_fused_experts() {
            None => {
                let why = format!("`{label}` has no experts in a layout that is known");
                return refuse(why, "leave it out");
            }
            Some(is_fused) if is_fused == fused => return Some(()),
            Some(_) => {}
        }
        if recipe
            .quantization
            .as_ref()
            .is_some_and(|asked| asked.value == Quantization::Keep)
        {
            let why = format!("`quantization: keep` keeps the layout of `{label}` too");
            return refuse(why, "name a scheme, such as `quantization: fp8_block`");
        }
        match donor.with_experts(fused) {
            Some(laid) => self.checkpoints[self.donor] = Arc::new(laid),
            None => {
                let why = format!(
                    "the experts of `{label}` are not complete and alike, or lie by inputs"
                );
                return refuse(why, "leave it out");
            }
        }
        Some(())
    }

    /// Gives every mixture the layout of the donor's experts.
    fn lay_experts_alike(&mut self) {
        let donor = Arc::clone(&self.checkpoints[self.donor]);
        for (index, model) in self.checkpoints.iter_mut().enumerate() {
            let is_whole = model.parts().is_empty() && model.adapters().is_empty();
            if index == self.donor || self.results.contains_key(&index) || !is_whole {
                continue;
            }
            if let Some(relaid) = model.laid_as(&donor) {
                *model = Arc::new(relaid);
            }
        }
    }

    /// The model's index among the checkpoints.
    pub fn index(&self, model: &ModelRef) -> Option<usize> {
        self.by_text
            .get(&model.to_string())
            .copied()
            .filter(|&index| index < self.checkpoints.len())
    }

    /// The model that gives names, order, config and files.
    pub fn donor(&self) -> &Checkpoint {
        &self.checkpoints[self.donor]
    }

    /// A part of each of the models, whose tensors' names begin with `prefix` there.
    pub(super) fn with_parts(&self, prefix: &str, checkpoints: Vec<Arc<Checkpoint>>) -> Models {
        Models {
            checkpoints,
            prefix: prefix.to_owned(),
            ..self.clone()
        }
    }

    /// The same models, all of whose tensors belong to these modules.
    pub(super) fn with_modules(self, modules: Modules) -> Models {
        Models { modules, ..self }
    }

    /// Leaves of each model the weights of its own folder, for plans that know no parts; what lies apart is carried
    /// along with the donor's files. Reports pipelines, which have no other weights.
    pub fn leave_parts(&mut self, problems: &mut Problems) {
        for (model, at) in self.checkpoints.iter_mut().zip(&self.at) {
            match model.alone() {
                Some(alone) if !model.parts().is_empty() => *model = Arc::new(alone.clone()),
                Some(_) => {}
                None => {
                    let message = format!("`{}` is a pipeline, not one model", model.label());
                    let hint = "name the folder of one of its components".to_owned();
                    problems.add(*at, message, Some(hint));
                }
            }
        }
    }

    /// The name of a tensor in the whole model, as recipes see it.
    pub fn qualified<'n>(&self, name: &'n str) -> Cow<'n, str> {
        match self.prefix.is_empty() {
            true => name.into(),
            false => format!("{}{name}", self.prefix).into(),
        }
    }

    /// The model's name in messages.
    pub fn label(&self, model: usize) -> &str {
        self.checkpoints[model].label()
    }

    /// Notes from opening the models.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes_of_each();
        for (index, model) in self.checkpoints.iter().enumerate() {
            if !model.is_stored() {
                continue;
            }
            let paths_of = |model: &Checkpoint| -> Vec<Option<PathBuf>> {
                let real = |path: &Path| fs::canonicalize(path).ok();
                model.location().paths().map(real).collect()
            };
            let weights_of = |model: &Checkpoint| -> Vec<f64> {
                let adapters = model.location().adapters.iter();
                adapters.map(|adapter| adapter.weight).collect()
            };
            let (paths, weights) = (paths_of(model), weights_of(model));
            let same = |other: &&Arc<Checkpoint>| {
                other.is_stored() && paths_of(other) == paths && weights_of(other) == weights
            };
            if let Some(other) = self.checkpoints[..index].iter().find(same) {
                notes.push(format!(
                    "`{}` and `{}` are the same model: {}",
                    other.label(),
                    model.label(),
                    model.location().path.display()
                ));
            }
        }
        let others = &self.checkpoints[..self.merged];
        if self.donor().config().is_none() && others.iter().any(|model| model.config().is_some()) {
            notes.push(format!(
                "`{}` has no config.json, so the output will have none; name a model that has one first, or as \
                 `base_model`",
                self.donor().label()
            ));
        }
        notes
    }

    fn notes_of_each(&self) -> Vec<String> {
        self.checkpoints
            .iter()
            .flat_map(|model| {
                model
                    .notes()
                    .iter()
                    .map(|note| format!("`{}`: {note}", model.label()))
            })
            .collect()
    }

    /// The files that are copied: the tokenizer's from its donor, the others from the config's donor.
    pub fn sidecars(
        &self,
        notes: &mut Vec<String>,
        problems: &mut Problems,
    ) -> Option<Vec<(usize, Sidecar)>> {
        let speaks =
            |kind: &SidecarKind| matches!(kind, SidecarKind::Tokenizer | SidecarKind::ChatTemplate);
        let mut files = Vec::new();
        for model in [self.donor, self.tokenizer_donor] {
            match self.checkpoints[model].sidecars() {
                Ok(found) => files.extend(
                    found
                        .into_iter()
                        .filter(|file| {
                            speaks(&file.kind) == (model == self.tokenizer_donor)
                                || self.one_donor()
                        })
                        .map(|file| (model, file)),
                ),
                Err(error) => {
                    problems.add_error(self.at[model], &error);
                    return None;
                }
            }
            if self.one_donor() {
                break;
            }
        }
        self.refuse_unreadable(problems);
        files.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        for (model, file) in files.iter().filter(|(_, file)| file.is_lfs_pointer()) {
            let message = format!(
                "`{}` of `{}` is a Git LFS pointer, not the file",
                file.name,
                self.label(*model)
            );
            let hint = "run `git lfs pull` in the model's folder".to_owned();
            problems.add(self.at[*model], message, Some(hint));
        }
        let weights: Vec<&str> = files
            .iter()
            .filter(|(_, file)| file.is_weights())
            .map(|(_, file)| file.name.as_str())
            .collect();
        if !weights.is_empty() {
            notes.push(format!(
                "weights beside the model are copied from `{}`, not merged: {}",
                self.label(self.donor),
                some_of(&weights)
            ));
        }
        let config = self.donor().config();
        // Components of diffusers have none.
        let config = config.filter(|config| config.get("_class_name").is_none());
        if config.is_some()
            && !files
                .iter()
                .any(|(_, file)| file.kind == SidecarKind::Tokenizer)
        {
            let label = self.label(self.tokenizer_donor);
            notes.push(format!("`{label}` has no tokenizer files: the output will have none (--tokenizer-from names another model)"));
        }
        if files.iter().any(|(_, file)| file.kind == SidecarKind::Code) {
            notes.push(format!(
                "Python files of `{}` are carried over, as an auto_map of its configs needs them",
                self.label(self.donor)
            ));
        }
        notes.extend(self.left_out());
        Some(files)
    }

    /// The note on what lies beside the donor's weights and the output does not get, by reason.
    fn left_out(&self) -> Option<String> {
        let left = self.donor().left_out().unwrap_or_default();
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for file in &left {
            by_reason.entry(file.why).or_default().push(&file.name);
        }
        let reason = |(why, names): (&str, Vec<&str>)| format!("{why} ({})", some_of(&names));
        let reasons: Vec<String> = by_reason.into_iter().map(reason).collect();
        (!reasons.is_empty()).then(|| {
            let label = self.label(self.donor);
            format!(
                "not carried from the folder of `{label}`: {}",
                reasons.join("; ")
            )
        })
    }

    /// Refuses what would be copied and is no file of its model's folder: it would be missing, or another's file.
    fn refuse_unreadable(&self, problems: &mut Problems) {
        for model in BTreeSet::from([self.donor, self.tokenizer_donor]) {
            let speaks = |kind| matches!(kind, SidecarKind::Tokenizer | SidecarKind::ChatTemplate);
            let copied = |kind| self.one_donor() || speaks(kind) == (model == self.tokenizer_donor);
            match self.checkpoints[model].unreadable_sidecars() {
                Ok(found) => {
                    let found = found.iter().filter(|(kind, _)| copied(*kind));
                    found.for_each(|(_, error)| problems.add_error(self.at[model], error));
                }
                Err(error) => problems.add_error(self.at[model], &error),
            }
        }
    }

    fn one_donor(&self) -> bool {
        self.donor == self.tokenizer_donor
    }
}

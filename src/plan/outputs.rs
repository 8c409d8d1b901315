//! Resolves every output tensor (its sources, dtype, parameter values and operation), and what happens to every input.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::TensorUsage;
use super::comparisons::{different_depths, missing_hint, pattern_of};
use super::copies::{copies, models_look_equal};
use super::counterparts::{Counterparts, is_head, unwrapped_names};
use super::layers::{GroupSource, LayerMap, Layout, OutputTensor, SourceGroup, layout};
use super::models::Models;
use super::planned::{Operation, PlannedTensor, SourceTensor};
use super::problems::{Problems, count, some_of};
use super::renames;
use super::statistics::{self, Missing};
use super::tokenizer::{Aligned, Alignment};
use super::views::View;
use super::vocabularies::different_vocabularies;
use architecture::{
    LayerStack, WeightOrder, is_derived_buffer, is_input_embedding, is_output_head,
    is_update_factor, keeps_dtype, layer_stacks, linear_weight, may_be_infinite, without_mtp,
};
use checkpoint::{ModelConfig, TensorEntry, VocabularyComparison, compare_vocabularies};
use errors::Refusal;
use methods::{
    self, Action, BaseRule, Context, Linear, Method, NeedOf, ParamInfo, ParamScope, ParamValue,
    Shared, Statistic, Tensor, TensorParams, TensorStatistics, Usual,
};
use numeric::{FloatType, RoundingKey};
use recipe::{self, Exception, Fallback, Parameters, Position, Recipe, Rounding};

/// How many mismatched tensors are spelled out; the rest are counted.
const MISMATCHES: usize = 5;

/// The merge, resolved.
pub(super) struct Merge {
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) equal: Vec<(usize, usize, usize)>,
    pub(super) usages: Vec<Vec<TensorUsage>>,
    pub(super) layer_maps: Vec<LayerMap>,
    /// What the recipe asked for.
    pub(super) wanted: Vec<OutputTensor>,
    /// The models whose tensors look like the donor's.
    pub(super) alike: Vec<usize>,
}

/// Resolves what the recipe asks for.
pub(super) fn resolve(
    recipe: &Recipe,
    method: &'static dyn Method,
    models: &Models,
    alignment: Option<&Alignment<'_>>,
    seed: u64,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Merge {
    let donor = models.donor();
    let of_donor = unwrapped_names(donor);
    let names = || of_donor.iter().map(String::as_str);
    let config = donor.config().map(ModelConfig::value);
    let stacks: Vec<LayerStack> = without_mtp(layer_stacks(names()), config, names);
    let counterparts: Vec<Counterparts> = models.checkpoints[..models.merged]
        .iter()
        .map(|model| Counterparts::new(recipe, models, &stacks, model))
        .collect();
    for (model, names) in counterparts.iter().enumerate() {
        let own = models.checkpoints[model]
            .tensors()
            .iter()
            .zip(unwrapped_names(&models.checkpoints[model]));
        if let Some((tensor, name)) = own.into_iter().find(|(tensor, name)| tensor.name != *name) {
            notes.push(format!(
                "names of `{}` have parts that only its training put there, which are left out: `{}` is `{name}`",
                models.label(model),
                tensor.name
            ));
        }
        for alias in &names.aliases {
            let (ours, theirs) = (&alias.reference_prefix, &alias.model_prefix);
            let (label, donor) = (models.label(model), donor.label());
            notes.push(match (ours.as_str(), theirs.as_str()) {
                (ours, "") => format!("names of `{label}` lack the prefix `{ours}` that `{donor}` has; they are taken for the same"),
                ("", theirs) => format!("names of `{label}` have the prefix `{theirs}`, which `{donor}` lacks; they are taken for the same"),
                (ours, theirs) => format!("names of `{label}` start with `{theirs}` where `{donor}` has `{ours}`; they are taken for the same"),
            });
        }
    }
    if !recipe.is_sliced() {
        different_depths(models, &counterparts, &stacks, problems);
    }
    let Layout {
        groups,
        wanted,
        layer_maps,
    } = layout(recipe, models, &counterparts, &stacks, notes, problems);
    // A list that could not be completed says nothing about the other tensors.
    if !problems.is_empty() {
        return Merge {
            tensors: Vec::new(),
            equal: Vec::new(),
            usages: Vec::new(),
            layer_maps,
            wanted,
            alike: Vec::new(),
        };
    }
    let others = (0..models.merged).filter(|&model| model != models.donor);
    let alike = others
        .filter(|&model| models_look_equal(models, &counterparts, model, models.donor))
        .collect();
    let stochastic = recipe.rounding == Rounding::Stochastic;
    let copies = match method.info().random || stochastic {
        true => copies(models, &counterparts, &groups, &wanted),
        false => HashMap::new(),
    };
    if !copies.is_empty() {
        let mut names: Vec<&String> = copies.keys().collect();
        names.sort();
        notes.push(format!(
            "tensors that are copies of another in every model get its random draws, and stay copies: {}",
            some_of(&names)
        ));
    }
    let mut resolver = Resolver {
        recipe,
        method,
        models,
        counterparts: &counterparts,
        groups: &groups,
        wanted: wanted.iter().map(|wanted| wanted.name.as_str()).collect(),
        copies,
        alignment,
        seed,
        shared: Shared::default(),
        problems,
        notes,
        missing: BTreeMap::new(),
        headless: BTreeSet::new(),
        unset: BTreeSet::new(),
        rejected: BTreeMap::new(),
        heaviest: None,
        unusual: BTreeMap::new(),
        mismatched: Vec::new(),
        reshaped: Vec::new(),
        counters: Vec::new(),
        unmergeable: BTreeMap::new(),
        equal: BTreeSet::new(),
        used: models
            .checkpoints
            .iter()
            .map(|model| vec![0; model.tensors().len()])
            .collect(),
        sensitive: Vec::new(),
        without_statistics: Missing::default(),
    };
    resolver.check_heads();
    let mut tensors: Vec<PlannedTensor> = wanted
        .iter()
        .filter_map(|wanted| resolver.tensor(wanted))
        .collect();
    for tensor in tensors.iter_mut().filter(|_| stochastic) {
        let name = resolver.copies.get(&tensor.name).unwrap_or(&tensor.name);
        tensor.rounding = Some(RoundingKey::new(seed, &models.qualified(name)));
    }
    let usages = resolver.usages(&layer_maps);
    resolver.note_sensitive();
    resolver.note_values();
    let missing = std::mem::take(&mut resolver.without_statistics);
    missing.report(method.info(), resolver.notes, resolver.problems);
    resolver.report();
    let equal = resolver.equal.into_iter().collect();
    Merge {
        tensors,
        equal,
        usages,
        layer_maps,
        wanted,
        alike,
    }
}

/// Why a method cannot merge a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unmergeable {
    /// It is an empty vector: ZeRO-3 leaves such in place of weights that lie in other files. A matrix of no rows or
    /// columns is one that the config asks for.
    Empty,
    /// It is a factor of a low-rank update, or a weight that such an update applies to.
    Factor,
}

impl Unmergeable {
    fn hint(self) -> &'static str {
        match self {
            Unmergeable::Empty => {
                "DeepSpeed's ZeRO-3 leaves such tensors in place of weights that were not gathered: make the weights \
                 with its `zero_to_fp32.py`; where they are meant, `except` can copy or drop them"
            }
            Unmergeable::Factor => {
                "a mean of factors is no mean of the updates: name each adapter with its model as `model+adapter`, or \
                 fold it into the weights (PEFT's `merge_and_unload`); `except` can copy or drop such tensors"
            }
        }
    }
}

/// The hint for a tensor that differs in shape or kind.
fn not_alike(name: &str) -> String {
    format!(
        "only tensors of one shape and kind can be merged: these are not fine-tunes of one model; `except: [{{tensors: \
         '{name}', action: copy}}]` takes the first model's"
    )
}

/// The hint for UNets with other input channels.
const OTHER_INPUTS: &str = "one of them has further input channels, as models for inpainting have, and a mean would \
     weaken what these do: add what the other learned instead, by `merge_method: task_arithmetic` with the plain model \
     that both were trained from as `base_model`; of pipelines, name the components (`PIPELINE/unet`)";

/// Whether shapes differ in the input channels of a UNet alone.
fn is_first_convolution(name: &str, one: &[usize], other: &[usize]) -> bool {
    let is_named = name.ends_with("conv_in.weight") || name.ends_with("input_blocks.0.0.weight");
    let alike = |at: usize| one.get(at) == other.get(at);
    is_named && one.len() == 4 && other.len() == 4 && alike(0) && alike(2) && alike(3)
}

/// The hint for integers or bools that differ.
fn without_mean(name: &str) -> String {
    format!(
        "such tensors have no mean: `except: [{{tensors: '{name}', action: copy}}]` takes the first model's, if what \
         reads them fits it; else these are not fine-tunes of one model"
    )
}

/// The most bytes of integers that are compared while a merge is planned; the run compares the rest.
const MOST_COMPARED: usize = 1 << 20;

/// Weights of task vectors that add up to more than this, with nothing to divide them, tend to overshoot.
const MOST_WEIGHT: f64 = 1.5;

struct Resolver<'a> {
    recipe: &'a Recipe,
    method: &'static dyn Method,
    models: &'a Models,
    counterparts: &'a [Counterparts],
    groups: &'a [SourceGroup<'a>],
    /// The names that the recipe asks for.
    wanted: HashSet<&'a str>,
    /// Copies of other output tensors, whose random draws they get.
    copies: HashMap<String, String>,
    /// What the tensors share.
    shared: Shared,
    alignment: Option<&'a Alignment<'a>>,
    seed: u64,
    problems: &'a mut Problems,
    notes: &'a mut Vec<String>,
    /// Names that a model lacks, by model.
    missing: BTreeMap<usize, Vec<String>>,
    /// Models whose head is missing.
    headless: BTreeSet<usize>,
    /// Parameters and models already reported to lack a value.
    unset: BTreeSet<(&'static str, usize)>,
    /// Parameter values that the method rejected: the first tensor, and how many.
    rejected: BTreeMap<Refusal, (String, usize)>,
    /// The tensor whose task vectors' weights add up to the most, if that is more than [`MOST_WEIGHT`], and the sum.
    heaviest: Option<(f64, String)>,
    /// Values of parameters that no source recommends, and the first tensor that has one.
    unusual: BTreeMap<&'static str, (f64, &'static Usual, String)>,
    /// Tensors that differ where they must not: position, message and hint.
    mismatched: Vec<(Position, String, String)>,
    /// Tensors whose shapes differ by dimensions of one alone.
    reshaped: Vec<String>,
    /// Counters that differ, of which the donor's are taken.
    counters: Vec<String>,
    /// Tensors that cannot be merged, by model and reason: the first, and how many.
    unmergeable: BTreeMap<(usize, Unmergeable), (usize, usize)>,
    /// Heads that must equal their embeddings.
    equal: BTreeSet<(usize, usize, usize)>,
    used: Vec<Vec<usize>>,
    /// Tensors that their model needs in the dtype that they are stored in, and whose dtype the recipe narrows.
    sensitive: Vec<String>,
    /// Tensors for which statistics are missing.
    without_statistics: Missing,
}

impl<'a> Resolver<'a> {
    /// Refuses checkpoints that lack a head although their config says that it is not a copy of the embedding.
    fn check_heads(&mut self) {
        for (model, names) in self.counterparts.iter().enumerate() {
            let checkpoint = &self.models.checkpoints[model];
            let generates = checkpoint.config().is_some_and(|config| {
                config
                    .architectures()
                    .iter()
                    .any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"))
            });
            let headless = names.embedding.is_some() && !names.has_head(checkpoint);
            if generates && headless && names.tied_by_config == Some(false) {
                self.headless.insert(model);
                let incomplete = "the checkpoint is incomplete, or the config should say true";
                let hint = match self.renames_of_head(model) {
                    Some(rules) => {
                        format!("{incomplete}; if it only names its head otherwise, add `{rules}`")
                    }
                    None => incomplete.to_owned(),
                };
                let message = format!(
                    "`{}` has no output head, and its config says `tie_word_embeddings: false`",
                    checkpoint.label()
                );
                self.problems
                    .add(self.models.at[model], message, Some(hint));
            }
        }
    }

    /// The rules of `rename` by which a model would have the donor's head.
    fn renames_of_head(&self, model: usize) -> Option<String> {
        let donor = &self.counterparts[self.models.donor];
        let head = donor.names.iter().find(|name| is_head(name))?;
        self.renames(model, std::slice::from_ref(head))
    }

    /// The rules of `rename` by which a model would have these tensors of the donor.
    fn renames(&self, model: usize, missing: &[String]) -> Option<String> {
        // Rules see the names of whole models.
        if !self.models.prefix.is_empty() {
            return None;
        }
        let of = |model: usize| (&*self.models.checkpoints[model], &self.counterparts[model]);
        renames::proposed(of(self.models.donor), of(model), missing)
    }

    /// Resolves one output tensor; `None` if it is left out or something is wrong with it.
    fn tensor(&mut self, wanted: &OutputTensor) -> Option<PlannedTensor> {
        let group = &self.groups[wanted.group];
        if is_head(&wanted.name)
            && self.counterparts[self.models.donor].tied
            && self.is_copy_everywhere(&wanted.name, group)
        {
            for source in &group.sources {
                self.leave_out_head(&wanted.name, source.model, source.at);
            }
            return None;
        }
        if is_derived_buffer(&wanted.name) {
            return self.derived_buffer(wanted, group);
        }
        if let Some(exception) = self.exception(wanted, group) {
            return self.excepted(exception, wanted, group);
        }
        let mut sources = Vec::with_capacity(group.sources.len());
        for (source, name) in group.sources.iter().zip(&wanted.picks) {
            match self.counterparts[source.model].find_or_tied(name) {
                Some(tensor) => sources.push(SourceTensor {
                    model: source.model,
                    tensor,
                }),
                None => self
                    .missing
                    .entry(source.model)
                    .or_default()
                    .push(name.clone()),
            }
        }
        if sources.len() < group.sources.len() {
            return None;
        }
        for source in &sources {
            self.used[source.model][source.tensor] += 1;
        }
        self.can_be_merged(wanted, &sources)?;
        let aligned = self.aligned(wanted, group)?;
        if aligned.is_none() {
            self.same_shapes(wanted, group, &sources)?;
        }
        self.operate(wanted, group, sources, aligned)
    }

    /// Whether a method can merge the values of these tensors.
    fn can_be_merged(&mut self, wanted: &OutputTensor, sources: &[SourceTensor]) -> Option<()> {
        let float =
            |source: &&SourceTensor| FloatType::from_dtype(self.entry(**source).dtype).is_some();
        let empty = sources
            .iter()
            .filter(float)
            .find(|source| self.entry(**source).shape == [0]);
        let (source, why) = match empty {
            Some(source) => (*source, Unmergeable::Empty),
            None if sources.len() > 1 && is_update_factor(&wanted.name) => {
                (sources[0], Unmergeable::Factor)
            }
            None => return Some(()),
        };
        let found = self.unmergeable.entry((source.model, why));
        found.or_insert((source.tensor, 0)).1 += 1;
        None
    }

    /// The `only` or `except` entry for the tensor, by its name in the output or else by its name in a source's file.
    fn exception(&self, wanted: &OutputTensor, group: &SourceGroup<'_>) -> Option<&'a Exception> {
        let recipe = self.recipe;
        let of_source = |(source, name): (&GroupSource<'_>, &String)| {
            let tensor = self.counterparts[source.model].find(name)?;
            let own = &self.models.checkpoints[source.model].tensors()[tensor].name;
            recipe.named_exception(&self.models.qualified(own))
        };
        recipe
            .exception(&self.models.qualified(&wanted.name))
            .or_else(|| group.sources.iter().zip(&wanted.picks).find_map(of_source))
    }

    /// Whether every stored head of that name can be compared with an embedding, so that it can be left out as a copy.
    fn is_copy_everywhere(&mut self, name: &str, group: &SourceGroup<'_>) -> bool {
        let alone = group
            .sources
            .iter()
            .find(|source| !self.may_be_copy(source.model, name));
        if let Some(source) = alone {
            self.notes.push(format!(
                "`{name}` is written though the config ties it to the embedding: `{}` has no embedding of its shape \
                 to compare it with",
                self.models.label(source.model)
            ));
        }
        alone.is_none()
    }

    /// Whether the model stores no head of that name, or also stores an embedding of the same shape.
    fn may_be_copy(&self, model: usize, head: &str) -> bool {
        let names = &self.counterparts[model];
        let Some(head) = names.find(head) else {
            return true;
        };
        let tensors = self.models.checkpoints[model].tensors();
        names
            .embedding
            .is_some_and(|embedding| tensors[embedding].shape == tensors[head].shape)
    }

    /// How the sources are aligned by token, if they have rows for tokens; `None` if they cannot be aligned.
    fn aligned(
        &mut self,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
    ) -> Option<Option<Aligned>> {
        let Some(alignment) = self.alignment else {
            return Some(None);
        };
        let models: Vec<usize> = group.sources.iter().map(|source| source.model).collect();
        let base = group.base.and_then(|base| models.get(base).copied());
        let find = |model: usize| {
            let place = models.iter().position(|other| *other == model);
            let name = place.map_or(&wanted.name, |place| &wanted.picks[place]);
            self.counterparts.get(model)?.find_or_tied(name)
        };
        match alignment.tensor(&wanted.name, &models, base, &find) {
            Ok(aligned) => Some(aligned),
            Err(message) => {
                self.problems.add(None, message, None);
                None
            }
        }
    }

    fn entry(&self, source: SourceTensor) -> &'a TensorEntry {
        &self.models.checkpoints[source.model].tensors()[source.tensor]
    }

    /// Leaves out a model's own head, as the output ties its head to its embedding. The head must be a copy.
    fn leave_out_head(&mut self, name: &str, model: usize, at: Position) {
        let names = &self.counterparts[model];
        let (Some(head), Some(embedding)) = (names.find(name), names.embedding) else {
            return;
        };
        if names.tied_by_config == Some(false) && model != self.models.donor {
            let (untied, donor) = (
                self.models.label(model),
                self.models.label(self.models.donor),
            );
            let message = format!(
                "`{untied}` has an output head of its own (`tie_word_embeddings: false`), which would be lost: \
                 `{donor}`, whose config the output gets, ties it to the embedding"
            );
            let mut hint =
                format!("make `{untied}` the base model or the first one, or leave it out");
            if self.is_adapted(model, &[head, embedding]) {
                hint.push_str(
                    "; `ensure_weight_tying: true` in its adapter_config.json lets one update change both",
                );
            }
            self.problems.add(Some(at), message, Some(hint));
        } else if names.tied_by_config != Some(true) && self.is_adapted(model, &[head, embedding]) {
            let label = self.models.label(model);
            let message = format!(
                "the adapter of `{label}` changes its output head or its embedding, of which the output keeps one: \
                 `{}`, whose config the output gets, ties them",
                self.models.label(self.models.donor)
            );
            let hint = format!(
                "say in the config of `{label}` whether the head is the embedding (`tie_word_embeddings`)"
            );
            self.problems.add(Some(at), message, Some(hint));
        } else if let Some(apart) = self.without_bytes(model, [head, embedding]) {
            let message = format!(
                "`{}` ties `{name}` to its embedding, and can't be checked for it: `{}` is a strided view in its file",
                self.models.label(model),
                self.models.checkpoints[model].tensors()[apart].name
            );
            let hint = "save it by `.contiguous()`, or as safetensors".to_owned();
            self.problems.add(Some(at), message, Some(hint));
        } else {
            self.equal.insert((model, head, embedding));
        }
    }

    fn is_adapted(&self, model: usize, tensors: &[usize]) -> bool {
        let model = &self.models.checkpoints[model];
        tensors.iter().any(|&tensor| model.is_adapted(tensor))
    }

    /// The first of two tensors whose bytes do not lie contiguously in a file.
    fn without_bytes(&self, model: usize, pair: [usize; 2]) -> Option<usize> {
        let checkpoint = &self.models.checkpoints[model];
        let mut pair = pair.into_iter();
        pair.find(|&tensor| checkpoint.is_stored() && checkpoint.stored(tensor).is_none())
    }

    /// A buffer that is computed from the config when the model is loaded: the donor's is copied unchanged.
    fn derived_buffer(
        &mut self,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
    ) -> Option<PlannedTensor> {
        let source = group
            .sources
            .iter()
            .zip(&wanted.picks)
            .find_map(|(source, name)| {
                let tensor = self.counterparts[source.model].find(name)?;
                Some(SourceTensor {
                    model: source.model,
                    tensor,
                })
            })?;
        self.used[source.model][source.tensor] += 1;
        let entry = self.entry(source);
        Some(PlannedTensor::plain(
            wanted.name.clone(),
            entry.dtype,
            entry.shape.clone(),
            vec![source],
            Operation::Copy,
        ))
    }

    fn same_shapes(
        &mut self,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
        sources: &[SourceTensor],
    ) -> Option<()> {
        let first = self.entry(sources[0]);
        let without_ones = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|&dim| dim != 1).collect()
        };
        // Dimensions of one change neither the values nor their order.
        let wide = without_ones(&first.shape);
        let same = |source: &SourceTensor| self.entry(*source).shape == first.shape;
        let odd = sources
            .iter()
            .position(|&source| without_ones(&self.entry(source).shape) != wide);
        let Some(odd) = odd else {
            if !sources.iter().all(same) {
                self.reshaped.push(wanted.name.clone());
            }
            return Some(());
        };
        let other = self.entry(sources[odd]);
        let vocabulary = (is_input_embedding(&wanted.name) || is_output_head(&wanted.name))
            && other.shape.get(1..) == first.shape.get(1..);
        let models = (sources[0].model, sources[odd].model);
        let message = format!(
            "`{}` has shape {:?} in `{}` and {:?} in `{}`",
            wanted.name,
            first.shape,
            self.models.label(models.0),
            other.shape,
            self.models.label(models.1)
        );
        let (message, hint) = match vocabulary {
            true => self.of_vocabularies(message, models),
            false if is_first_convolution(&wanted.name, &first.shape, &other.shape) => {
                (message, OTHER_INPUTS.to_owned())
            }
            false => (message, not_alike(&self.models.qualified(&wanted.name))),
        };
        self.mismatched.push((group.sources[odd].at, message, hint));
        None
    }

    /// The message on embeddings of different lengths, and what to do.
    fn of_vocabularies(&self, message: String, models: (usize, usize)) -> (String, String) {
        let [ours, theirs] = [models.0, models.1].map(|model| &self.models.checkpoints[model]);
        match compare_vocabularies(ours, theirs) {
            Ok(VocabularyComparison::Same) => (
                format!("{message}: their tokenizers are the same, so they differ in rows for padding"),
                "add `tokenizer: {source: base}` to the recipe, which gives all the base's number of rows (the first \
                 model's, if there is no base)"
                    .to_owned(),
            ),
            _ => (
                format!("{message}: their vocabularies differ, so token ids may not mean the same"),
                different_vocabularies(),
            ),
        }
    }

    fn operate(
        &mut self,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
        mut sources: Vec<SourceTensor>,
        aligned: Option<Aligned>,
    ) -> Option<PlannedTensor> {
        let first = self.entry(sources[0]);
        let (shape, mut views) = match aligned {
            Some(aligned) => (aligned.shape, aligned.views),
            None => {
                let donor = sources
                    .iter()
                    .find(|source| source.model == self.models.donor);
                let shape = donor
                    .map_or(first, |donor| self.entry(*donor))
                    .shape
                    .clone();
                (shape, Vec::new())
            }
        };
        let planned = |dtype, sources, base, views, operation, params| PlannedTensor {
            name: wanted.name.clone(),
            dtype,
            shape: shape.clone(),
            sources,
            base,
            views,
            operation,
            params,
            rounding: None,
            encoding: None,
        };
        let copied = |sources| {
            let (copy, params) = (Operation::Copy, TensorParams::default());
            planned(first.dtype, sources, None, Vec::new(), copy, params)
        };
        let formats: Vec<Option<FloatType>> = sources
            .iter()
            .map(|&source| FloatType::from_dtype(self.entry(source).dtype))
            .collect();
        let Some(formats) = formats.into_iter().collect::<Option<Vec<FloatType>>>() else {
            // Integers and bools are copied if all sources agree; the run compares them.
            if let Some(odd) = sources
                .iter()
                .position(|&source| self.entry(source).dtype != first.dtype)
            {
                let message = format!(
                    "`{}` is {:?} in `{}` and {:?} in `{}`",
                    wanted.name,
                    first.dtype,
                    self.models.label(sources[0].model),
                    self.entry(sources[odd]).dtype,
                    self.models.label(sources[odd].model)
                );
                let hint = not_alike(&self.models.qualified(&wanted.name));
                self.mismatched.push((group.sources[odd].at, message, hint));
                return None;
            }
            let sources = self.equal_integers(wanted, group, sources)?;
            return Some(copied(sources));
        };
        let widest = formats.iter().copied().reduce(FloatType::promote)?;
        if self.is_infinite_alike(&wanted.name, &sources, formats[0]) {
            return Some(copied(sources));
        }
        if first.elements() == 0 {
            return Some(copied(vec![sources[0]]));
        }
        let output = self.output_format(&wanted.name, widest);

        let params = self.params(wanted, group)?;
        let linear = self.linear(&wanted.name, &shape);
        let statistics = self.statistics(group, &sources, linear)?;
        self.weigh(&wanted.name, &params);
        let name = self.copies.get(&wanted.name).unwrap_or(&wanted.name);
        let tensor = Tensor {
            name: &self.models.qualified(name),
            shape: &shape,
            seed: self.seed,
            base: group.base,
            sources: sources.len(),
            linear,
            context: Context {
                depth: wanted.depth,
                models: &sources
                    .iter()
                    .map(|source| source.model)
                    .collect::<Vec<_>>(),
                shared: Some(&self.shared),
                statistics: &statistics,
            },
        };
        match self.method.action(&params, &tensor) {
            Ok(Action::Copy(source)) => {
                let stored = self.models.checkpoints[sources[source].model]
                    .bytes(sources[source].tensor)
                    .is_some();
                let of_source: Vec<Option<View>> = views.drain(..).skip(source).take(1).collect();
                let as_it_is = of_source.iter().all(Option::is_none);
                let operation = if stored && as_it_is && formats[source] == output {
                    Operation::Copy
                } else {
                    Operation::convert()
                };
                sources = vec![sources[source]];
                Some(planned(
                    output.dtype(),
                    sources,
                    None,
                    of_source,
                    operation,
                    params,
                ))
            }
            Ok(Action::Compute(program)) => Some(planned(
                output.dtype(),
                sources,
                group.base,
                views,
                Operation::Compute {
                    name: self.method.info().name,
                    program,
                },
                params,
            )),
            Err(message) => {
                let entry = self
                    .rejected
                    .entry(message)
                    .or_insert_with(|| (wanted.name.clone(), 0));
                entry.1 += 1;
                None
            }
        }
    }

    /// Notes the first tensor at which a parameter has a value that no source recommends.
    fn look_at_value(&mut self, info: &'static ParamInfo, value: ParamValue, name: &str) {
        let usual = methods::usual(self.method.info().name, info.name);
        if let (ParamValue::Number(value), Some(usual)) = (value, usual)
            && usual.excludes(value)
        {
            let first = || (value, usual, name.to_owned());
            self.unusual.entry(info.name).or_insert_with(first);
        }
    }

    /// Notes the tensor if its task vectors' weights add up to more than those of any before it.
    fn weigh(&mut self, name: &str, params: &TensorParams) {
        let info = self.method.info();
        let normalize = info.params.iter().any(|param| param.name == "normalize");
        if info.base != BaseRule::Required || !normalize || params.flag("normalize") {
            return;
        }
        let models = 0..params.sources.len();
        let sum: f64 = models
            .map(|model| params.source_number(model, "weight"))
            .sum();
        let lambda = params.tensor.iter().find(|(name, _)| *name == "lambda");
        let total = sum * lambda.map_or(1.0, |_| params.number("lambda"));
        if total
            > self
                .heaviest
                .as_ref()
                .map_or(MOST_WEIGHT, |(most, _)| *most)
        {
            self.heaviest = Some((total, name.to_owned()));
        }
    }

    /// Says that weights may be too much, and that values are none that sources recommend.
    fn note_values(&mut self) {
        for (param, (value, usual, name)) in &self.unusual {
            let Usual {
                min, max, source, ..
            } = usual;
            self.notes.push(format!(
                "`{param}` is {value} at `{name}`; values from {min} to {max} are usual ({source})"
            ));
        }
        if let Some((total, name)) = &self.heaviest {
            self.notes.push(format!(
                "the weights of task vectors, times lambda, add up to {} at `{name}`, and nothing divides them: more than \
                 about {MOST_WEIGHT} tends to overshoot; lower them, or set `normalize: true`",
                (total * 100.0).round() / 100.0
            ));
        }
    }

    /// The statistics of each source for a tensor, of the kind that the method needs.
    fn statistics(
        &mut self,
        group: &SourceGroup<'_>,
        sources: &[SourceTensor],
        linear: Option<Linear>,
    ) -> Option<Vec<Option<Arc<dyn TensorStatistics>>>> {
        let Some(need) = self.method.info().statistics else {
            return Some(Vec::new());
        };
        let of_source = |(at, source): (usize, &SourceTensor)| {
            let file = match need.of {
                NeedOf::EachModel => group.sources[at].statistics,
                NeedOf::Base if group.base == Some(at) => self.recipe.statistics.as_ref(),
                NeedOf::Base => None,
            };
            let Some(file) = file else {
                return Ok(None);
            };
            let file = self.models.index(&file.value);
            let file = file.and_then(|file| self.models.statistics.get(&file));
            let Some(file) = file else {
                return Ok(None);
            };
            let entry = self.entry(*source);
            let own = statistics::own_name(self.models, *source);
            statistics::of_tensor(file, need.kind, own.unwrap_or(&entry.name), entry, linear)
        };
        let found: Result<Vec<_>, Refusal> = sources.iter().enumerate().map(of_source).collect();
        let found = match found {
            Ok(found) => found,
            Err(refusal) => {
                let (message, hint) = refusal.into_parts();
                self.problems.add(None, message, hint);
                return None;
            }
        };
        let count = found.iter().flatten().count();
        let wanted = match need.of {
            NeedOf::EachModel => found.len(),
            NeedOf::Base => 1,
        };
        let entry = self.entry(sources[0]);
        let name = self.models.qualified(&entry.name).into_owned();
        if count == 0 && (linear.is_some() || need.kind == Statistic::Fisher) {
            self.without_statistics.none.push(name);
        } else if count > 0 && count < wanted {
            self.without_statistics.some.push(name);
        }
        Some(found)
    }

    /// How its matrices lie, if the tensor is the weight of linear layers.
    fn linear(&self, name: &str, shape: &[usize]) -> Option<Linear> {
        let config = self.models.donor().config().map(ModelConfig::value);
        let order = linear_weight(name, shape, config)?;
        Linear::new(shape, order == WeightOrder::InOut)
    }

    /// Whether the tensor bounds or masks values, and is infinite in all sources alike: infinity means that there is no
    /// bound, and has no mean with itself in every method.
    fn is_infinite_alike(&self, name: &str, sources: &[SourceTensor], format: FloatType) -> bool {
        let stored = |source: &SourceTensor| {
            let TensorEntry { dtype, len, .. } = *self.entry(*source);
            let len = usize::try_from(len)
                .ok()
                .filter(|&len| len <= MOST_COMPARED)?;
            let model = &self.models.checkpoints[source.model];
            Some((dtype, model.peek(source.tensor, 0..len)?))
        };
        may_be_infinite(name)
            && stored(&sources[0]).is_some_and(|first| {
                let found = format.non_finite(first.1);
                let alike = || {
                    sources[1..]
                        .iter()
                        .all(|other| stored(other) == Some(first))
                };
                found.infinite > 0 && found.nan == 0 && alike()
            })
    }

    /// The sources of integers or bools that are copied: all if they agree as far as they are compared here, the
    /// donor's alone for a counter of steps, which differs in all fine-tunes.
    fn equal_integers(
        &mut self,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
        sources: Vec<SourceTensor>,
    ) -> Option<Vec<SourceTensor>> {
        let bytes = |source: &SourceTensor| {
            let compared = self.entry(*source).len.min(MOST_COMPARED as u64);
            let model = &self.models.checkpoints[source.model];
            model.peek(source.tensor, 0..compared as usize)
        };
        let first = bytes(&sources[0]);
        let differs = |source: &SourceTensor| {
            let other = bytes(source);
            first.is_some() && other.is_some() && other != first
        };
        let Some(odd) = sources.iter().position(differs) else {
            return Some(sources);
        };
        if wanted.name.ends_with("num_batches_tracked") {
            self.counters.push(wanted.name.clone());
            let mut donors = sources
                .iter()
                .filter(|source| source.model == self.models.donor);
            return Some(vec![*donors.next().unwrap_or(&sources[0])]);
        }
        let last = wanted.name.rsplit('.').next().unwrap_or_default();
        let (first, other) = (
            self.models.label(sources[0].model),
            self.models.label(sources[odd].model),
        );
        let message = match last {
            "d2t" | "t2d" => format!(
                "`{}` maps the draft's vocabulary to the target's, and differs between `{first}` and `{other}`: their rows stand for different tokens",
                wanted.name
            ),
            _ => format!(
                "`{}` holds integers or bools that differ between `{first}` and `{other}`",
                wanted.name
            ),
        };
        let hint = without_mean(&self.models.qualified(&wanted.name));
        self.mismatched.push((group.sources[odd].at, message, hint));
        None
    }

    /// The effective parameter values of one tensor.
    fn params(&mut self, wanted: &OutputTensor, group: &SourceGroup<'_>) -> Option<TensorParams> {
        let own = self.models.qualified(&wanted.name);
        let shared: Vec<&Parameters> = group
            .levels
            .iter()
            .copied()
            .chain([&self.recipe.parameters])
            .collect();
        let mut params = TensorParams {
            tensor: Vec::new(),
            sources: vec![Vec::new(); group.sources.len()],
        };
        let mut complete = true;
        for info in self.method.info().params {
            if info.scope == ParamScope::Tensor {
                let value = recipe::resolve(info, &shared, &own, wanted.depth);
                complete &= self.accept(info, None, wanted, value, &mut params.tensor);
                continue;
            }
            for (index, (source, name)) in group.sources.iter().zip(&wanted.picks).enumerate() {
                if info.scope == ParamScope::EachButBase && group.base == Some(index) {
                    continue;
                }
                let levels: Vec<&Parameters> = source
                    .parameters
                    .into_iter()
                    .chain(shared.iter().copied())
                    .collect();
                let name = self.models.qualified(name);
                let value = recipe::resolve(info, &levels, &name, wanted.depth);
                complete &= self.accept(
                    info,
                    Some((source.model, source.at)),
                    wanted,
                    value,
                    &mut params.sources[index],
                );
            }
        }
        complete.then_some(params)
    }

    /// Takes a value, or reports that a required one is missing.
    fn accept(
        &mut self,
        info: &'static ParamInfo,
        model: Option<(usize, Position)>,
        wanted: &OutputTensor,
        value: Option<ParamValue>,
        values: &mut Vec<(&'static str, ParamValue)>,
    ) -> bool {
        if let Some(value) = value {
            self.look_at_value(info, value, &wanted.name);
            values.push((info.name, value));
            return true;
        }
        if info.required
            && self
                .unset
                .insert((info.name, model.map_or(usize::MAX, |(model, _)| model)))
        {
            let whose = model.map_or(String::new(), |(model, _)| {
                format!(" of `{}`", self.models.label(model))
            });
            self.problems.add(
                model.map(|(_, at)| at),
                format!(
                    "no value for the required parameter `{}`{whose} at tensor `{}`",
                    info.name, wanted.name
                ),
                Some(
                    "give one that holds for all tensors: an entry without `filter` comes last"
                        .to_owned(),
                ),
            );
        }
        !info.required
    }

    /// What happens to each input tensor; reports tensors that nothing asks for.
    fn usages(&mut self, cut: &[LayerMap]) -> Vec<Vec<TensorUsage>> {
        let mut usages = Vec::new();
        for (model, names) in self.counterparts.iter().enumerate() {
            let mut extra = Vec::new();
            let mut of_model = Vec::new();
            let mut groups = self.groups.iter();
            let whole = groups.any(|group| group.whole && group.has(model));
            let donor = &self.counterparts[self.models.donor];
            // A tensor that the donor has may belong to another module; one in a cut stack may be in no slice. A model
            // of which only some layers are asked for, or nothing, may have more tensors.
            let asked_elsewhere = |name: &str| {
                !whole
                    || donor.find(name).is_some()
                    || cut.iter().any(|map| name.starts_with(&map.prefix))
            };
            for (tensor, name) in names.names.iter().enumerate() {
                let uses = self.used[model][tensor];
                let usage = match uses {
                    0 if is_derived_buffer(name) => TensorUsage::DerivedBuffer,
                    0 if is_head(name) && self.is_left_out_head(model, name) => {
                        TensorUsage::TiedCopy
                    }
                    0 if self.is_excepted(name) => TensorUsage::Excepted,
                    0 if asked_elsewhere(name) => TensorUsage::OutsideSlices,
                    0 => {
                        extra.push(name.clone());
                        TensorUsage::OutsideSlices
                    }
                    count => TensorUsage::Used(count),
                };
                of_model.push(usage);
            }
            if !extra.is_empty() {
                let message = format!(
                    "`{}` has {} that `{}` lacks: {}",
                    self.models.label(model),
                    count(extra.len(), "tensor"),
                    self.models.label(self.models.donor),
                    some_of(&extra)
                );
                let extra: Vec<_> = extra
                    .iter()
                    .map(|name| self.models.qualified(name))
                    .collect();
                let hint = match pattern_of(&extra) {
                    Some(pattern) => format!(
                        "`except: [{{tensors: {pattern}, action: drop}}]` leaves them out, `action: copy` takes them \
                         from the first model that has them"
                    ),
                    None => "`except` with `action: drop` leaves them out, by pattern; `action: copy` takes them from \
                             the first model that has them"
                        .to_owned(),
                };
                self.problems
                    .add(self.models.at[model], message, Some(hint));
            }
            usages.push(of_model);
        }
        if usages
            .iter()
            .flatten()
            .any(|usage| *usage == TensorUsage::DerivedBuffer)
        {
            self.notes.push(
                "buffers that are computed from the config (rotary frequencies, causal masks, positions) are carried \
                 over from one model where the others have them too"
                    .to_owned(),
            );
        }
        usages
    }

    /// Whether a head that nothing asked for is a tied copy. If the donor stores no head, this is the first check of
    /// it.
    fn is_left_out_head(&mut self, model: usize, name: &str) -> bool {
        let donor = &self.counterparts[self.models.donor];
        if !self.may_be_copy(model, name) {
            return false;
        }
        if donor.tied && donor.find(name).is_none() {
            let mut sources = self.groups.iter().flat_map(|group| &group.sources);
            if let Some(at) = sources
                .find(|source| source.model == model)
                .map(|source| source.at)
            {
                self.leave_out_head(name, model, at);
            }
        }
        donor.tied
    }

    /// Whether the recipe excludes tensors of that name from the merge.
    fn is_excepted(&self, name: &str) -> bool {
        let exception = self.recipe.exception(&self.models.qualified(name));
        exception.is_some_and(|exception| {
            exception.fallback == Fallback::Drop || self.wanted.contains(name)
        })
    }

    /// The source that `only:` or `except:` takes instead of merging; none if the tensor is dropped.
    fn excepted(
        &mut self,
        exception: &Exception,
        wanted: &OutputTensor,
        group: &SourceGroup<'_>,
    ) -> Option<PlannedTensor> {
        let source = match exception.fallback {
            Fallback::Drop => return None,
            Fallback::Copy => {
                let mut places = group.sources.iter().zip(&wanted.picks);
                places
                    .position(|(source, name)| {
                        self.counterparts[source.model].find_or_tied(name).is_some()
                    })
                    .unwrap_or(0)
            }
            Fallback::Base => match group.base {
                Some(base) => base,
                None => {
                    self.rejected
                        .entry(
                            Refusal::new(
                                "`base` stands for the base model, and there is none here",
                            )
                            .with_hint("name a `base_model`, or say `copy` for the first model"),
                        )
                        .or_insert_with(|| (wanted.name.clone(), 0))
                        .1 += 1;
                    return None;
                }
            },
        };
        let (model, name) = (group.sources[source].model, &wanted.picks[source]);
        let Some(tensor) = self.counterparts[model].find_or_tied(name) else {
            self.missing.entry(model).or_default().push(name.clone());
            return None;
        };
        let aligned = self.aligned(wanted, group)?;
        let chosen = source;
        let source = SourceTensor { model, tensor };
        self.used[model][tensor] += 1;
        let entry = self.entry(source);
        let (shape, views) = match aligned {
            Some(mut aligned) => (
                aligned.shape,
                aligned.views.drain(..).skip(chosen).take(1).collect(),
            ),
            None => (entry.shape.clone(), Vec::new()),
        };
        let as_it_is = views.iter().all(Option::is_none);
        let stored = FloatType::from_dtype(entry.dtype);
        let output = stored.map(|stored| self.output_format(&wanted.name, stored));
        let bytes = self.models.checkpoints[model].bytes(tensor);
        Some(PlannedTensor {
            name: wanted.name.clone(),
            dtype: output.map_or(entry.dtype, FloatType::dtype),
            shape,
            sources: vec![source],
            base: None,
            views,
            operation: if stored == output && as_it_is && bytes.is_some() {
                Operation::Copy
            } else {
                Operation::convert()
            },
            params: TensorParams::default(),
            rounding: None,
            encoding: None,
        })
    }

    /// The format that the recipe asks for, else the widest that is stored, as for tensors that their model needs in it.
    fn output_format(&mut self, name: &str, widest: FloatType) -> FloatType {
        let asked = self.recipe.out_dtype.or(self.recipe.dtype);
        let Some(asked) = asked.and_then(FloatType::from_dtype) else {
            return widest;
        };
        let config = self.models.donor().config().map(ModelConfig::value);
        if asked.size() >= widest.size() || !keeps_dtype(config, name) {
            return asked;
        }
        self.sensitive.push(name.to_owned());
        match self.recipe.keep_dtype {
            true => widest,
            false => asked,
        }
    }

    /// Notes what became of tensors that their model needs in the dtype that they are stored in.
    fn note_sensitive(&mut self) {
        if self.sensitive.is_empty() {
            return;
        }
        let names = some_of(&self.sensitive);
        self.notes.push(match self.recipe.keep_dtype {
            true => format!(
                "some tensors keep the wider dtype that they are stored in, as their model computes with it \
                 (`keep_dtype: false` rounds them like the others): {names}"
            ),
            false => format!(
                "`keep_dtype: false` rounds tensors that their model computes with in the wider dtype that they are \
                 stored in: {names}"
            ),
        });
    }

    /// Reports the collected problems, and what was decided for many tensors.
    fn report(&mut self) {
        let donor = self.models.label(self.models.donor);
        if !self.reshaped.is_empty() {
            self.notes.push(format!(
                "shapes that differ by dimensions of one alone are those of `{donor}`: {}",
                some_of(&self.reshaped)
            ));
        }
        if !self.counters.is_empty() {
            self.notes.push(format!(
                "counters of batches are those of `{donor}`: {}",
                some_of(&self.counters)
            ));
        }
        for (model, mut names) in std::mem::take(&mut self.missing) {
            // The missing head of an untied model has already been reported.
            if self.headless.contains(&model) {
                names.retain(|name| !is_head(name));
            }
            if names.is_empty() {
                continue;
            }
            let (label, donor) = (
                self.models.label(model),
                self.models.label(self.models.donor),
            );
            let message = format!(
                "`{label}` lacks {} that `{donor}` has: {}",
                count(names.len(), "tensor"),
                some_of(&names)
            );
            let rules = self.renames(model, &names);
            let hint = missing_hint(
                &self.counterparts[model],
                &names,
                &self.models.prefix,
                rules,
            );
            self.problems
                .add(self.models.at[model], message, Some(hint));
        }
        for (refusal, (name, tensors)) in std::mem::take(&mut self.rejected) {
            let (message, hint) = refusal.into_parts();
            let tensors = count(tensors, "tensor");
            self.problems.add(
                None,
                format!("{message}, in {tensors} (the first is `{name}`)"),
                hint,
            );
        }
        for ((model, why), (tensor, tensors)) in std::mem::take(&mut self.unmergeable) {
            let checkpoint = &self.models.checkpoints[model];
            let entry = &checkpoint.tensors()[tensor];
            let file = checkpoint.place(tensor).map(|(file, _)| file);
            let what = match why {
                Unmergeable::Empty => format!("has the shape {:?}, so no elements", entry.shape),
                Unmergeable::Factor => "is a part of a low-rank update, not a weight".to_owned(),
            };
            let more = match tensors - 1 {
                0 => String::new(),
                more => format!(
                    "; so {} {}",
                    if more == 1 { "is" } else { "are" },
                    count(more, "more tensor")
                ),
            };
            let message = format!(
                "`{}` of `{}`{} {what}{more}",
                entry.name,
                checkpoint.label(),
                file.map_or(String::new(), |file| format!(" in {}", file.file_name())),
            );
            let hint = why.hint().to_owned();
            self.problems
                .add(self.models.at[model], message, Some(hint));
        }
        let mismatched = std::mem::take(&mut self.mismatched);
        let more = mismatched.len().saturating_sub(MISMATCHES);
        for (at, message, hint) in mismatched.into_iter().take(MISMATCHES) {
            self.problems.add(Some(at), message, Some(hint));
        }
        if more > 0 {
            let more = count(more, "more tensor");
            self.problems
                .add(None, format!("{more} of other shapes"), None);
        }
    }
}

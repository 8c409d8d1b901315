//! The plan: what happens to every tensor, before a weight is read.
//!
//! [`plan`] takes a recipe and the headers of the checkpoints it names. The plan has the shape, dtype, place, sources,
//! operation and parameter values of every output tensor, and says what happens to every input tensor. Only what
//! depends on the weights themselves is left open. `run` executes a plan; [`text`] and [`json`] show it.
//!
//! This layer reads headers, configs and tokenizers, and writes nothing. Of weights it asks only whether tensors are
//! equal to the byte (`copies`).

mod around;
mod comparable;
mod comparisons;
mod config;
mod copies;
mod counterparts;
mod draft;
mod explain;
mod layers;
mod licences;
mod models;
mod modules;
mod output_part;
mod outputs;
mod parts;
mod pipelines;
mod planned;
mod problems;
mod quantise;
mod renames;
mod results;
mod served;
mod statistics;
mod tokenizer;
mod views;
mod vocabularies;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

pub use config::dtype_name;
pub use explain::{Detail, json, left_out, merged_text, operation_text, text, values_text};
pub use licences::{InputLicence, licence_notes, licences_of, listed_licences, shared_licence};
pub use output_part::OutputPart;
pub use planned::{Operation, PlannedTensor, SourceTensor};
pub use problems::{count, warnings};
pub use quantise::Quantized;
pub use results::MergeResult;
pub use tokenizer::{Filled, VocabularySummary};
pub use views::{ColumnRatio, Cut, LatePicks, MatrixPart, StackedRows, View};
pub use vocabularies::check as check_vocabularies;

use checkpoint::{
    Checkpoint, ModelConfig, ModelRef, Resolver, ShardLayout, Sidecar, index_json, index_name,
    json_text,
};
pub use draft::Draft;
use engine::{Cost, Limits, Settings};
use layers::OutputTensor;
use methods::{self, MethodInfo};
pub use models::Models;
use parts::Whole;
pub use problems::Problems;
use recipe::{Located, Recipe, RecipeError, Rounding};
pub use results::Results;

/// What a plan depends on besides the recipe and the checkpoints.
#[derive(Debug, Clone)]
pub struct Options {
    /// The engine's arguments.
    pub settings: Settings,
    /// The seed of random masks and roundings.
    pub seed: u64,
    /// The most bytes of tensors in an output file.
    pub shard_size: u64,
    /// The model whose tokenizer files go into the output, if not the base or the first model.
    pub tokenizer_from: Option<ModelRef>,
}

/// What a plan is for, if not a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// The command that runs it.
    pub command: &'static str,
    /// What it makes, in words.
    pub description: String,
    /// The command's own switches that are on, by name.
    pub switches: Vec<&'static str>,
}

/// A merge that is ready to run.
pub struct Plan {
    /// The method.
    pub method: &'static MethodInfo,
    /// What it is for, if not a merge.
    pub purpose: Option<Purpose>,
    /// Whether the result depends on the seed.
    pub random: bool,
    /// How computed values are rounded.
    pub rounding: Rounding,
    /// The seed.
    pub seed: u64,
    /// The recipe's file and text.
    pub recipe: (String, String),
    /// The most bytes of tensors in an output file.
    pub shard_size: u64,
    /// The model whose tokenizer files were asked for, if not the base or the first model.
    pub tokenizer_from: Option<String>,
    /// The models, opened, in order of first appearance.
    pub models: Vec<Arc<Checkpoint>>,
    /// The models that are results of other documents of the recipe, by their number.
    pub results: BTreeMap<usize, Arc<MergeResult>>,
    /// The model that the output takes names, order, config and files from.
    pub donor: usize,
    /// The model whose tokenizer files the output gets.
    pub tokenizer_donor: usize,
    /// The base model, if the recipe names one.
    pub base: Option<usize>,
    /// The output's tensors, in order.
    pub tensors: Vec<PlannedTensor>,
    /// Pairs of input tensors that must be equal, because one of them is left out: (model, left out, kept).
    pub equal: Vec<(usize, usize, usize)>,
    /// What happens to each input tensor, for each model.
    pub usages: Vec<Vec<TensorUsage>>,
    /// The output's weight files.
    pub shards: Vec<ShardLayout>,
    /// The parts of the output whose weights lie apart: one, unless the donor has several.
    pub parts: Vec<OutputPart>,
    /// The output's `config.json`, if the donor has one.
    pub config: Option<serde_json::Value>,
    /// Files copied from the models: the model, and the file.
    pub sidecars: Vec<(usize, Sidecar)>,
    /// Generated files: name and bytes.
    pub made: Vec<(String, Vec<u8>)>,
    /// How weights are stored, if the recipe says so.
    pub quantization: Option<Quantized>,
    /// The vocabulary, if the recipe chooses one.
    pub vocabulary: Option<VocabularySummary>,
    /// The licences that the inputs state, once it is [`looked_over`]; empty if none states any.
    pub licences: Vec<InputLicence>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The engine's arguments.
    pub settings: Settings,
    /// The engine's limits that follow from them.
    pub limits: Limits,
    /// The most that one tensor needs of the engine; includes results that are computed where they are read.
    pub cost: Cost,
    /// The most bytes that the merge reads, over all passes, without the reads of results that are made once.
    read_itself: u64,
    /// The most bytes read, over all passes.
    pub bytes_read: u64,
}

/// What happens to an input tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorUsage {
    /// It goes into this many output tensors.
    Used(usize),
    /// It is a copy of a tied embedding, and is left out.
    TiedCopy,
    /// No slice of the recipe asks for it.
    OutsideSlices,
    /// It is computed from the config when the model is loaded; another model's is copied.
    DerivedBuffer,
    /// `only:` or `except:` in the recipe drops it, or takes it from another model.
    Excepted,
    /// The plan takes only other tensors of this model.
    NotTaken,
}

impl Plan {
    /// The indexes of the output's weight files: their paths from its folder, and their texts.
    pub fn indexes(&self) -> Vec<(String, String)> {
        let several = self.parts.iter().filter(|part| part.shards.len() > 1);
        let index = |part: &OutputPart| {
            let shards = &self.shards[part.shards.clone()];
            let signatures = part.signatures(&self.tensors);
            let text = index_json(shards, part.tensors.start, &signatures);
            (index_name(shards), text)
        };
        several.map(index).collect()
    }

    /// The command that runs it: `merge`, if no other is named.
    pub fn command(&self) -> &'static str {
        (self.purpose.as_ref()).map_or("merge", |purpose| purpose.command)
    }

    /// Whether this switch of the command that runs it is on.
    pub fn has_switch(&self, name: &str) -> bool {
        let purpose = self.purpose.as_ref();
        purpose.is_some_and(|purpose| purpose.switches.contains(&name))
    }

    /// The most bytes that a tensor of the output reads, over all passes, without those of results that are made once.
    pub fn reads_of(&self, tensor: usize) -> u64 {
        (self.tensors.get(tensor)).map_or(0, |tensor| {
            results::reading(tensor, &self.models, &self.results).bytes(tensor)
        })
    }

    /// Bytes of each tensor of the output.
    pub fn lens(&self) -> Vec<u64> {
        self.tensors.iter().map(PlannedTensor::bytes).collect()
    }

    /// The text of the output's `config.json`, if the donor has one: what is as in the donor's keeps its text.
    pub fn config_text(&self) -> Option<String> {
        let original = self.models[self.donor].config();
        let config = self.config.as_ref()?;
        Some(json_text(config, original.and_then(ModelConfig::text)))
    }

    /// The output's configs: the path of each from the output's folder, what it says, and its text.
    pub fn configs(&self) -> impl Iterator<Item = (String, &serde_json::Value, String)> {
        self.parts.iter().filter_map(|part| {
            let (value, text) = self.config_of(part)?;
            Some((format!("{}config.json", part.folder()), value, text))
        })
    }

    /// The config of a part of the output and its text, if it has one.
    pub fn config_of<'p>(
        &'p self,
        part: &'p OutputPart,
    ) -> Option<(&'p serde_json::Value, String)> {
        if part.prefix.is_empty() {
            return Some((self.config.as_ref()?, self.config_text()?));
        }
        let mut parts = self.models[self.donor].parts().iter();
        let donor = parts.find(|donor| donor.prefix == part.prefix);
        let original = donor.and_then(|donor| donor.model.config()?.text());
        let config = part.config.as_ref()?;
        Some((config, json_text(config, original)))
    }

    /// Bytes of the output's weight files.
    pub fn bytes_written(&self) -> u64 {
        self.shards.iter().map(|shard| shard.file_size).sum()
    }

    /// How many output tensors have each dtype.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut dtypes = BTreeMap::new();
        for tensor in &self.tensors {
            *dtypes.entry(format!("{:?}", tensor.dtype)).or_default() += 1;
        }
        dtypes
    }
}

/// Plans the merge that a recipe asks for.
///
/// # Errors
/// Everything that can be found wrong without reading a weight, in one error.
pub fn plan(
    recipe: &Recipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &Options,
) -> Result<Plan, RecipeError> {
    let mut problems = Problems::default();
    let documents = recipe.results.iter().chain([recipe]);
    for output in documents.filter_map(|document| document.output.as_ref()) {
        let message = "`output` makes an adapter, which only `weld merge` of one document writes";
        let hint = "leave it out: `weld extract-lora` makes an adapter of a finished merge";
        problems.add(Some(output.at), message, Some(hint.to_owned()));
    }
    let results = results_of(
        &recipe.results,
        &mut recipe.mentions(),
        path,
        resolver,
        options,
        &mut problems,
    );
    let Some((results, notes)) = results else {
        return Err(problems.into_error(path, &recipe.text.read));
    };
    let plan = attempt(recipe, path, resolver, options, &results, &mut problems);
    match plan {
        Some(mut plan) if problems.is_empty() => {
            plan.notes.splice(..0, notes);
            Ok(looked_over(plan))
        }
        _ => Err(problems.into_error(path, &recipe.text.read)),
    }
}

/// The plan with notes on the whole of it: the licences of its inputs, and what runtimes make of its output.
pub fn looked_over(mut plan: Plan) -> Plan {
    licences::look(&mut plan);
    served::note_runtimes(&mut plan);
    plan
}

/// Plans the merges that others use, by name, and returns notes on them; `None` if one cannot be planned.
///
/// `mentions` are the models named by what is planned last.
pub fn results_of<'r>(
    documents: &'r [Recipe],
    mentions: &mut dyn Iterator<Item = &'r Located<ModelRef>>,
    path: &str,
    resolver: &dyn Resolver,
    options: &Options,
    problems: &mut Problems,
) -> Option<(Results, Vec<String>)> {
    let uses = uses(documents, mentions);
    let mut results = Results::new();
    let mut notes = Vec::new();
    for document in documents {
        refuse_files_of_a_result(document, problems);
        let plan = attempt(document, path, resolver, options, &results, problems);
        if let (Some(plan), Some(name)) = (plan, &document.name) {
            let of_document = plan.notes.iter();
            notes.extend(of_document.map(|note| format!("`{}`: {note}", name.value)));
            let several = uses.get(name.value.as_str()).is_some_and(|&uses| uses > 1);
            results.insert(
                name.value.clone(),
                Arc::new(MergeResult::new(plan, several)),
            );
        }
        // A merge that uses a document which cannot be planned cannot be planned either.
        if !problems.is_empty() {
            return None;
        }
    }
    Some((results, notes))
}

/// The number of merges that name each model.
fn uses<'r>(
    documents: &'r [Recipe],
    last: &mut dyn Iterator<Item = &'r Located<ModelRef>>,
) -> HashMap<&'r str, usize> {
    let mut uses = HashMap::new();
    let mut count = |names: BTreeSet<&'r str>| {
        for name in names {
            *uses.entry(name).or_default() += 1;
        }
    };
    count(last.map(|model| model.value.path.as_str()).collect());
    for document in documents {
        let mentions = document.mentions();
        count(mentions.map(|model| model.value.path.as_str()).collect());
    }
    uses
}

/// Refuses a result that would need files of its own: other merges read it, and it is never written.
fn refuse_files_of_a_result(document: &Recipe, problems: &mut Problems) {
    let asked = [
        ("tokenizer", document.tokenizer.as_ref().map(|key| key.at)),
        (
            "chat_template",
            document.chat_template.as_ref().map(|template| template.at),
        ),
        (
            "quantization",
            document.quantization.as_ref().map(|key| key.at),
        ),
        (
            "expert_layout",
            document.expert_layout.as_ref().map(|key| key.at),
        ),
    ];
    for (key, at) in asked {
        if at.is_some() {
            let message = format!("`{key}` has no place in a document that others are made from");
            let hint = "say it in the document that is written".to_owned();
            problems.add(at, message, Some(hint));
        }
    }
}

/// The plan, or `None` if a problem makes it impossible to go on; other problems are only collected.
fn attempt(
    recipe: &Recipe,
    path: &str,
    resolver: &dyn Resolver,
    options: &Options,
    results: &Results,
    problems: &mut Problems,
) -> Option<Plan> {
    let method = methods::find(recipe.method.name)?;
    let tokenizer_from = options.tokenizer_from.as_ref();
    let mut models = models::open(recipe, resolver, tokenizer_from, results, problems)?;
    let mut notes: Vec<String> = warnings(&recipe.warnings);
    statistics::check(recipe, &models, &mut notes, problems);
    renames::apply(recipe, &mut models, &mut notes, problems);
    if !problems.is_empty() {
        return None;
    }
    notes.extend(models.notes());
    if let (Some(dtype), Some(out)) = (recipe.dtype, recipe.out_dtype)
        && dtype.bitsize() < out.bitsize()
    {
        notes.push(format!(
            "`out_dtype` names what is written, so `dtype: {dtype:?}` has no effect: arithmetic is never narrower \
             than float32"
        ));
    }
    refuse_texts_of_a_pipeline(recipe, tokenizer_from, &models, problems);
    let parts = parts::parts(recipe, &models, &mut notes, problems);
    if !problems.is_empty() {
        return None;
    }
    let mut allowed = Vec::new();
    let mut one_architecture = true;
    for part in parts.iter().filter(|part| part.is_merged) {
        let (allowed, notes) = (&mut allowed, &mut notes);
        one_architecture &=
            comparable::compare_configs(recipe, &part.models, allowed, notes, problems);
    }
    comparable::unused_allowances(recipe, &allowed, &mut notes);
    if !one_architecture {
        return None;
    }
    comparable::compare_side_configs(&models, &mut notes);
    // The vocabulary is that of the folder itself, if it has weights.
    let main = parts.first().filter(|part| part.models.prefix.is_empty());
    let main = main.map(|part| &part.models);
    let alignment = main.and_then(|main| tokenizer::align(recipe, main, &mut notes, problems));
    match main {
        Some(main) if recipe.tokenizer.is_none() => {
            vocabularies::check(main, &mut notes, problems);
        }
        Some(_) if alignment.is_none() => return None,
        _ => {}
    }

    let mut whole = Whole::new(&models);
    let mut wanted = Vec::new();
    let mut config = None;
    let mut alike: BTreeSet<usize> = (0..models.merged).collect();
    for part in &parts {
        let is_main = part.models.prefix.is_empty();
        let mut merge = match part.is_merged {
            true => outputs::resolve(
                recipe,
                method,
                &part.models,
                alignment.as_ref().filter(|_| is_main),
                options.seed,
                &mut notes,
                problems,
            ),
            false => part.copied(recipe),
        };
        if !problems.is_empty() {
            continue;
        }
        comparable::compare_labels(
            recipe,
            &part.models,
            &mut merge.tensors,
            &mut notes,
            problems,
        );
        alike.retain(|model| merge.alike.contains(model));
        wanted.extend(
            merge
                .wanted
                .drain(..)
                .map(|wanted| wanted.qualified(&part.models)),
        );
        let edited = part.config().map(|donor| {
            let label = part.models.donor().label();
            let maps = &merge.layer_maps;
            config::edited(donor, &merge.tensors, maps, label, &mut notes, problems)
        });
        if is_main {
            config = edited.clone();
        }
        whole.add(part, merge, edited.filter(|_| !is_main));
    }
    if !problems.is_empty() {
        return None;
    }
    pipelines::compare(recipe, &models, &whole.tensors, &mut notes, problems);
    // What is said of every part is said once.
    let mut said = BTreeSet::new();
    notes.retain(|note| said.insert(note.clone()));
    note_what_was_asked(recipe, &models, &wanted, &alike, &mut notes);
    if whole.tensors.is_empty() {
        problems.add(None, "the recipe leaves no tensor to write", None);
        return None;
    }

    let mut config = config.map(|mut config| {
        let donor = models.donor().label();
        let mut asked = recipe.architectures.iter();
        if let Some((_, class)) = asked.find(|(model, _)| model.text() == donor) {
            config["architectures"] = [class.as_str()].as_slice().into();
        }
        if let Some(alignment) = &alignment {
            alignment.edit_config(&mut config, &mut notes);
        }
        config
    });
    let quantization = quantise::apply(
        recipe,
        &models,
        &mut whole,
        &mut config,
        &mut notes,
        problems,
    );
    let mut sidecars = models.sidecars(&mut notes, problems)?;
    let made = made(
        recipe,
        &models,
        alignment.as_ref(),
        config.as_ref(),
        &mut notes,
        problems,
    )?;
    let with_config = whole.parts.iter().filter(|part| part.config.is_some());
    let configs: Vec<String> = with_config
        .map(|part| format!("{}config.json", part.folder()))
        .collect();
    let is_made = |name: &String| made.iter().any(|(made, _)| made == name);
    sidecars.retain(|(_, file)| !is_made(&file.name) && !configs.contains(&file.name));
    let vocabulary = alignment.map(|alignment| alignment.summary(&mut notes));
    let draft = Draft {
        method: method.info(),
        purpose: None,
        random: method.info().random || recipe.rounding == Rounding::Stochastic,
        rounding: recipe.rounding,
        recipe: (path.to_owned(), recipe.text.resolved.clone()),
        models,
        tensors: whole.tensors,
        equal: whole.equal,
        usages: whole.usages,
        parts: whole.parts,
        config,
        sidecars,
        made,
        vocabulary,
        notes,
    };
    let plan = draft.finish(options, problems)?;
    Some(Plan {
        quantization,
        ..plan
    })
}

/// Refuses what a recipe says of a vocabulary where the model is a pipeline, whose parts may have several.
fn refuse_texts_of_a_pipeline(
    recipe: &Recipe,
    tokenizer_from: Option<&ModelRef>,
    models: &Models,
    problems: &mut Problems,
) {
    let asked = [
        (
            "`tokenizer`",
            recipe.tokenizer.as_ref().map(|key| Some(key.at)),
        ),
        (
            "`chat_template`",
            recipe.chat_template.as_ref().map(|key| Some(key.at)),
        ),
        ("`--tokenizer-from`", tokenizer_from.map(|_| None)),
    ];
    let asked = asked.into_iter().filter_map(|(key, at)| Some((key, at?)));
    for (key, at) in asked.filter(|_| models.donor().is_pipeline()) {
        let message = format!(
            "{key} is for one model, and `{}` is a pipeline",
            models.donor().label()
        );
        let hint = "leave it out; to change one component, merge its folders";
        problems.add(at, message, Some(hint.to_owned()));
    }
}

/// Notes what of the recipe fits no tensor, and models that are copies of the donor.
fn note_what_was_asked(
    recipe: &Recipe,
    models: &Models,
    wanted: &[OutputTensor],
    alike: &BTreeSet<usize>,
    notes: &mut Vec<String>,
) {
    let merged = models.checkpoints[..models.merged].iter();
    let own: Vec<&str> = merged
        .flat_map(|model| model.tensors())
        .map(|tensor| tensor.name.as_str())
        .collect();
    comparisons::unused_filters(recipe, wanted, &own, notes);
    comparisons::flat_gradients(recipe, wanted, notes);
    for &model in alike.iter().filter(|&&model| model != models.donor) {
        let (label, of) = (models.label(model), models.label(models.donor));
        notes.push(format!(
            "`{label}` has the bytes of `{of}` at the start, in the middle and at the end of every tensor: \
             if it should differ, it was not saved as it was trained"
        ));
    }
}

/// The files that the merge generates for its vocabulary and its chat template.
fn made(
    recipe: &Recipe,
    models: &models::Models,
    alignment: Option<&tokenizer::Alignment<'_>>,
    config: Option<&serde_json::Value>,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Option<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut sound = Ok(());
    if let Some(alignment) = alignment {
        match tokenizer::made_files(alignment, notes) {
            Ok(made) => files = made,
            Err(error) => sound = Err(error),
        }
    }
    if let Some(asked) = &recipe.chat_template
        && let Some(template) = tokenizer::chat_template(asked, models, notes, problems)
    {
        let of = &models.checkpoints[models.tokenizer_donor];
        sound = sound.and_then(|()| tokenizer::with_template(&template, of, &mut files));
    }
    sound = sound.and_then(|()| {
        tokenizer::stop_at_turns(
            recipe, models, alignment, config, &mut files, notes, problems,
        )
    });
    if let Err(error) = sound {
        problems.add_error(models.at[models.tokenizer_donor], &error);
    }
    problems.is_empty().then_some(files)
}

/// A path as it is shown to people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

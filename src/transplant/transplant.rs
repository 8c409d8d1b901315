//! From two models to the plan of a third.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use architecture::{Family, is_input_embedding, is_output_head};
use checkpoint::{
    Checkpoint, CheckpointError, InMemory, ModelConfig, ModelRef, Resolver, SidecarsFrom,
    TensorEntry, map_parts, settings,
};
use engine::Observer;
use errors::{Refusal, printable, some_of};
use forward::Tokenizer;
use plan::{Options, Plan, Purpose};
use recipe::RecipeError;
use serde_json::{Map, Value};

use super::overlay::Overlay;
use super::recipe::TransplantRecipe;
use super::report::Report;
use super::rows::{self, Method, Table, Vocabularies};
use super::tokens::Vocabulary;

/// The fields of configs that name tokens by their ids.
const IDS: [&str; 7] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "mask_token_id",
    "cls_token_id",
    "sep_token_id",
];

/// The most names that a message has.
const MOST_NAMES: usize = 8;

const GENERATION: &str = "generation_config.json";

/// What is asked for.
pub struct Request<'a> {
    /// The model, by its name.
    pub model: &'a ModelRef,
    /// The model whose vocabulary it gets.
    pub donor: &'a ModelRef,
    /// How rows of tokens come about that the model does not have.
    pub method: Method,
    /// Opens models.
    pub resolver: &'a dyn Resolver,
    /// Memory, threads, and the size of shards.
    pub options: Options,
    /// A folder for the new rows, in a file without a name.
    pub scratch: &'a Path,
}

/// A model with another vocabulary: its new rows are made, the folder is not written.
pub struct Transplant {
    /// The plan that writes the model.
    pub plan: Plan,
    /// How the new rows came about.
    pub report: Report,
}

/// Why there is no such model.
#[derive(Debug)]
pub enum Failure {
    /// What is wrong with the models.
    Refused(Refusal),
    /// What is wrong with the plan.
    Plan(RecipeError),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Refused(refusal)
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        Failure::Refused(Refusal::from(&error))
    }
}

impl Transplant {
    /// Makes the new rows, and plans the model.
    ///
    /// # Errors
    /// The models have no vocabulary or no table that can be read, or the plan finds something wrong.
    pub fn new(request: &Request<'_>, observer: &dyn Observer) -> Result<Self, Failure> {
        let model = request.resolver.resolve(request.model)?;
        let donor = request.resolver.resolve(request.donor)?;
        if let Some(part) = model.parts().iter().find(|part| !part.prefix.is_empty()) {
            let why = format!(
                "`{}` has weights apart from its own, in `{}`, which a transplant does not write",
                model.label(),
                part.prefix
            );
            let hint = "copy the folder without them, and name the copy";
            return Err(Refusal::new(why).with_hint(hint).into());
        }
        let (of_model, of_donor) = (Vocabulary::read(&model)?, Vocabulary::read(&donor)?);
        let cutter = match request.method {
            Method::Subword => {
                Some(Tokenizer::open(&model).map_err(|error| Refusal::from(&error))?)
            }
            _ => None,
        };
        let vocabularies = Vocabularies {
            model: &of_model,
            donor: &of_donor,
            cutter: cutter.as_ref(),
        };
        let tables = tables(&model, &donor)?;
        let donor_rows = tables.first().map_or(0, |(_, donor)| donor.rows());
        let (rows, label) = (of_donor.end().max(donor_rows), donor.label());
        // A file of few bytes may name an id of billions.
        if rows > donor_rows.saturating_add(of_donor.tokens.len()) {
            let why = format!(
                "the tokenizer of `{label}` has ids up to {}, and its embedding has {donor_rows} rows",
                rows - 1
            );
            let hint = "`weld check` says more of it";
            return Err(Refusal::new(why).with_hint(hint).into());
        }
        let file = tempfile::tempfile_in(request.scratch).map_err(|error| {
            Refusal::new(format!(
                "cannot make a file in {}: {error}",
                request.scratch.display()
            ))
        })?;
        let mut report = Report {
            tokens: of_donor.tokens.len(),
            rows,
            ..Report::default()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(request.options.settings.threads)
            .build()
            .map_err(|error| Refusal::new(format!("cannot start threads: {error}")))?;
        let mut parts = Vec::new();
        let mut end = 0;
        for (table, of_donor) in &tables {
            let entry = table.entry();
            let bytes = (rows as u64)
                .saturating_mul(entry.shape[1] as u64)
                .saturating_mul(entry.dtype.bitsize() as u64 / 8);
            let pair = (*table, *of_donor);
            let method = request.method;
            let made = pool
                .install(|| rows::write(pair, &vocabularies, method, rows, (&file, end), observer));
            report.tables.push(made?);
            parts.push(end..end + bytes);
            end += bytes;
        }
        let parts = map_parts(&file, parts);
        let parts =
            parts.map_err(|error| Refusal::new(format!("cannot read the new rows: {error}")))?;
        let tensors = tables.iter().zip(parts).map(|((table, _), bytes)| {
            let entry = table.entry();
            let shape = vec![rows, entry.shape[1]];
            (entry.name.clone(), entry.dtype, shape, bytes)
        });
        let values = InMemory::new(tensors).map_err(|error| Refusal::new(error.to_string()))?;
        let plan = plan(request, &model, &donor, values, rows)?;
        Ok(Self { plan, report })
    }
}

/// The tables of the model, each with that of the donor.
fn tables<'a>(
    model: &'a Checkpoint,
    donor: &'a Checkpoint,
) -> Result<Vec<(Table<'a>, Table<'a>)>, Refusal> {
    let embeddings = (embedding(model)?, embedding(donor)?);
    let mut tables = vec![embeddings];
    if let Some(head) = table(model, is_output_head).first() {
        let head = Table {
            model,
            tensor: *head,
        };
        // A copy of the embedding stays one.
        let of_donor = match is_tied(model) {
            true => None,
            false => self::head(donor),
        };
        tables.push((head, of_donor.unwrap_or(embeddings.1)));
    }
    refuse_others(model, &tables)?;
    Ok(tables)
}

/// Refuses a model that has more than these tables with a row for each token: it would have two vocabularies.
fn refuse_others(model: &Checkpoint, tables: &[(Table<'_>, Table<'_>)]) -> Result<(), Refusal> {
    let rows = tables.first().map(|(table, _)| table.rows());
    let is_other = |(index, tensor): &(usize, &TensorEntry)| {
        let name = &tensor.name;
        let speaks = is_output_head(name) || name.contains("embed") || name.ends_with("bias");
        let is_made = tables.iter().any(|(table, _)| table.tensor == *index);
        tensor.shape.first().copied() == rows && speaks && !is_made
    };
    match model.tensors().iter().enumerate().find(is_other) {
        None => Ok(()),
        Some((_, tensor)) => {
            let why = format!(
                "`{}` of `{}` has a row for each token too, and a transplant knows only the embedding and the head",
                tensor.name,
                model.label()
            );
            Err(Refusal::new(why).with_hint("choose a model without such a tensor"))
        }
    }
}

fn embedding(model: &Checkpoint) -> Result<Table<'_>, Refusal> {
    let found = table(model, is_input_embedding);
    match found[..] {
        [tensor] => Ok(Table { model, tensor }),
        _ => {
            let names = found.iter().map(|index| &model.tensors()[*index].name);
            let names = match found.is_empty() {
                true => "none".to_owned(),
                false => printable(&some_of(names, MOST_NAMES)).to_string(),
            };
            let why = format!(
                "expected one input embedding in `{}`, found {names}",
                model.label()
            );
            Err(Refusal::new(why)
                .with_hint("name a language model, by the folder of its own weights"))
        }
    }
}

/// The head, where it is a tensor of its own.
fn head(model: &Checkpoint) -> Option<Table<'_>> {
    let found = table(model, is_output_head);
    let tensor = found.first().copied().filter(|_| !is_tied(model))?;
    Some(Table { model, tensor })
}

fn is_tied(model: &Checkpoint) -> bool {
    model.config().is_some_and(|config| {
        let family = config.model_type().and_then(Family::named);
        let usual = || family.is_some_and(Family::is_tied);
        config.tie_word_embeddings().unwrap_or_else(usual)
    })
}

/// The matrices that have such a name.
fn table(model: &Checkpoint, is_such: fn(&str) -> bool) -> Vec<usize> {
    let tensors = model.tensors().iter().enumerate();
    tensors
        .filter(|(_, tensor)| is_such(&tensor.name) && tensor.shape.len() == 2)
        .map(|(index, _)| index)
        .collect()
}

fn plan(
    request: &Request<'_>,
    model: &Arc<Checkpoint>,
    donor: &Checkpoint,
    values: InMemory,
    rows: usize,
) -> Result<Plan, Failure> {
    let label = model.label();
    let Some(config) = model.config() else {
        let why = format!("`{label}` has no config.json, which says how many tokens it has");
        return Err(Refusal::new(why)
            .with_hint("name the model's folder, not its file")
            .into());
    };
    let ids = ids_of(donor.config().map(|config| config.value()));
    let mut changed = config.value().clone();
    for part in [None, Some("text_config")] {
        let place = match part {
            None => changed.as_object_mut(),
            Some(part) => changed.get_mut(part).and_then(Value::as_object_mut),
        };
        let Some(place) = place else { continue };
        if part.is_none() || place.contains_key("vocab_size") {
            if place.contains_key("vocab_size") || config.value().get("text_config").is_none() {
                place.insert("vocab_size".to_owned(), rows.into());
            }
            with_ids(place, &ids);
        }
    }
    let path = model.location().path.join("config.json");
    let source = Arc::new(Overlay::new(Arc::clone(model.source()), values));
    let changed = Checkpoint::new(
        label,
        model.location().clone(),
        Some(ModelConfig::made(path, changed)),
        SidecarsFrom::Folder,
        source,
    )
    .with_vocabulary_of(donor);
    let resolver = Changed {
        model: request.model,
        changed: Arc::new(changed),
        otherwise: request.resolver,
    };
    let quoted = label.replace('\'', "''");
    let text = format!("merge_method: passthrough\nmodels:\n  - model: '{quoted}'\n");
    let name = "weld transplant";
    let recipe = recipe::parse_with_registry(name, &text).map_err(Failure::Plan)?;
    let options = Options {
        tokenizer_from: Some(request.donor.clone()),
        ..request.options.clone()
    };
    let mut plan = plan::plan(&recipe, name, &resolver, &options).map_err(Failure::Plan)?;
    plan.purpose = Some(Purpose {
        command: "transplant",
        description: format!("{label} with the vocabulary of {}", donor.label()),
        // Which points a pursuit chooses may hang on the last bits of products.
        switches: match request.method {
            Method::Pursuit(_) => vec!["products"],
            _ => Vec::new(),
        },
    });
    plan.recipe.1 = TransplantRecipe::new(request.model, request.donor, request.method).text();
    generation(&mut plan, model, donor, &ids)?;
    plan.notes.extend(other_ids(config.value()));
    Ok(plan)
}

/// The note on tokens that the config names beside [`IDS`]: those of images, say.
fn other_ids(config: &Value) -> Option<String> {
    let parts = [Some(config), config.get("text_config")];
    let fields = parts.into_iter().flatten().filter_map(Value::as_object);
    let is_other = |(key, value): &(&String, &Value)| {
        let ends = ["_token_id", "_token_ids", "_token_index"];
        let names_tokens = ends.iter().any(|end| key.ends_with(end));
        names_tokens && !IDS.contains(&key.as_str()) && !value.is_null()
    };
    let keys: BTreeSet<&str> = fields
        .flatten()
        .filter(is_other)
        .map(|(key, _)| key.as_str())
        .collect();
    (!keys.is_empty()).then(|| {
        format!(
            "config.json keeps ids of the old vocabulary: {}; set them to tokens of the new one",
            printable(&some_of(keys, MOST_NAMES))
        )
    })
}

/// The ids of the tokens that have a purpose.
fn ids_of(config: Option<&Value>) -> Map<String, Value> {
    let text = config.and_then(|config| config.get("text_config"));
    let value = |key: &str| {
        let own = config.and_then(|config| config.get(key));
        own.or_else(|| text?.get(key)).cloned()
    };
    let ids = IDS
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), value(key)?)));
    ids.collect()
}

/// Puts the ids in the place of those of the old vocabulary.
fn with_ids(place: &mut Map<String, Value>, ids: &Map<String, Value>) {
    for key in IDS {
        match ids.get(key) {
            Some(id) => drop(place.insert(key.to_owned(), id.clone())),
            None => drop(place.shift_remove(key)),
        }
    }
}

/// The model's settings for generation, with the ids of the donor's.
fn generation(
    plan: &mut Plan,
    model: &Checkpoint,
    donor: &Checkpoint,
    ids: &Map<String, Value>,
) -> Result<(), Failure> {
    let Some(mut own) = settings(model, GENERATION)? else {
        return Ok(());
    };
    let of_donor = settings(donor, GENERATION)?.map(Value::Object);
    let mut ids = ids.clone();
    ids.extend(ids_of(of_donor.as_ref()));
    with_ids(&mut own, &ids);
    plan.sidecars.retain(|(_, file)| file.name != GENERATION);
    let made = plan.made.iter().position(|(name, _)| name == GENERATION);
    if let Some((_, text)) = made.map(|place| plan.made.remove(place)) {
        stop_too(&mut own, &text);
    }
    let text = format!("{:#}\n", Value::Object(own));
    plan.made.push((GENERATION.to_owned(), text.into_bytes()));
    Ok(())
}

/// Adds the stop token that the plan found in the chat template; it comes first in the file that the plan made.
fn stop_too(own: &mut Map<String, Value>, made: &[u8]) {
    let made: Value = serde_json::from_slice(made).unwrap_or_default();
    let Some(id) = made.pointer("/eos_token_id/0") else {
        return;
    };
    let stops = own.entry("eos_token_id").or_insert(Value::Null);
    let mut all = match stops.take() {
        Value::Null => Vec::new(),
        Value::Array(all) => all,
        one => vec![one],
    };
    if !all.contains(id) {
        all.insert(0, id.clone());
    }
    *stops = all.into();
}

/// The model, with its new tables in place.
struct Changed<'a> {
    model: &'a ModelRef,
    changed: Arc<Checkpoint>,
    otherwise: &'a dyn Resolver,
}

impl Resolver for Changed<'_> {
    fn resolve(&self, model: &ModelRef) -> Result<Arc<Checkpoint>, CheckpointError> {
        match model.text() == self.model.text() {
            true => Ok(Arc::clone(&self.changed)),
            false => self.otherwise.resolve(model),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Plan(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

//! What the components of a pipeline that have no weights say of those that have: its scheduler and its tokenizers.

use std::sync::Arc;

use super::models::Models;
use super::planned::{Operation, PlannedTensor};
use super::problems::Problems;
use checkpoint::{
    Checkpoint, InMemory, Location, SidecarsFrom, VocabularyComparison, compare_vocabularies,
    parse_json, read_sidecar,
};
use recipe::Recipe;

/// The field of a scheduler that says what the model before it predicts: noise, velocity, the image itself.
const PREDICTION: &str = "prediction_type";

/// The components whose output a scheduler reads.
const DENOISERS: [&str; 3] = ["unet", "transformer", "prior"];

/// Tokenizers, and the component that reads the ids of each.
const ENCODERS: [(&str, &str); 3] = [
    ("tokenizer", "text_encoder"),
    ("tokenizer_2", "text_encoder_2"),
    ("tokenizer_3", "text_encoder_3"),
];

/// Compares pipelines where components of both are merged that would mean something else by these files.
pub(super) fn compare(
    recipe: &Recipe,
    models: &Models,
    tensors: &[PlannedTensor],
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    if !models.donor().is_pipeline() {
        return;
    }
    for model in (0..models.merged).filter(|&model| model != models.donor) {
        let meet = |component: &str| {
            let of_component = |tensor: &PlannedTensor| {
                let name = tensor.name.strip_prefix(component);
                let computed = matches!(tensor.operation, Operation::Compute { .. });
                computed && name.is_some_and(|name| name.starts_with('/'))
            };
            let mut tensors = tensors.iter().filter(|tensor| of_component(tensor));
            let has = |tensor: &PlannedTensor, model: usize| {
                tensor.sources.iter().any(|source| source.model == model)
            };
            tensors.any(|tensor| has(tensor, model) && has(tensor, models.donor))
        };
        let mut denoisers = DENOISERS.into_iter().filter(|component| meet(component));
        if let Some(component) = denoisers.next().filter(|_| !recipe.allows(PREDICTION)) {
            predictions(models, model, component, problems);
        }
        for (tokenizer, encoder) in ENCODERS {
            if meet(encoder) {
                vocabularies(models, model, (tokenizer, encoder), notes, problems);
            }
        }
    }
}

/// Refuses models that predict something else.
fn predictions(models: &Models, model: usize, component: &str, problems: &mut Problems) {
    let of = |model: usize| prediction(&models.checkpoints[model]);
    let (Some(ours), Some(theirs)) = (of(models.donor), of(model)) else {
        return;
    };
    if ours == theirs {
        return;
    }
    let message = format!(
        "`{component}` predicts `{}` in `{}` and `{}` in `{}`, as their schedulers say (`{PREDICTION}`)",
        ours.escape_debug(),
        models.label(models.donor),
        theirs.escape_debug(),
        models.label(model)
    );
    let hint = format!(
        "such weights have no mean; if it is meant, add `allow_config_differences: [{PREDICTION}]` to the recipe"
    );
    problems.add(models.at[model], message, Some(hint));
}

/// What the scheduler of a pipeline says; it is noise where it says nothing.
fn prediction(model: &Checkpoint) -> Option<String> {
    let path = model
        .file_beside("scheduler/scheduler_config.json")
        .ok()??;
    let config = parse_json(&read_sidecar(&path).ok()?).ok()?;
    let said = config.get(PREDICTION).and_then(serde_json::Value::as_str);
    Some(said.unwrap_or("epsilon").to_owned())
}

/// Refuses text encoders whose ids mean other tokens.
fn vocabularies(
    models: &Models,
    model: usize,
    (tokenizer, encoder): (&str, &str),
    notes: &mut Vec<String>,
    problems: &mut Problems,
) {
    let of = |model: usize| {
        let model = &models.checkpoints[model];
        let label = format!("{}/{tokenizer}", model.label());
        let location = Location::local(model.location().path.join(tokenizer));
        let nothing = Arc::new(InMemory::default());
        Checkpoint::new(&label, location, None, SidecarsFrom::Folder, nothing)
    };
    let (ours, theirs) = (of(models.donor), of(model));
    if [&ours, &theirs]
        .iter()
        .any(|model| !model.location().path.is_dir())
    {
        return;
    }
    let labels = format!("`{}` and `{}`", ours.label(), theirs.label());
    match compare_vocabularies(&ours, &theirs) {
        Err(error) => problems.add_error(models.at[model], &error),
        Ok(VocabularyComparison::Same | VocabularyComparison::Unknown) => {}
        Ok(VocabularyComparison::Compatible { only_a, only_b }) => notes.push(format!(
            "the tokenizers {labels} differ: {only_a} ids only in the first, {only_b} only in the second; the output \
             has the first"
        )),
        Ok(VocabularyComparison::Conflict { differing, .. }) => {
            let message = format!(
                "the vocabularies of {labels} differ: {differing} token ids do not mean the same token"
            );
            let hint = format!(
                "rows of an embedding can be merged only where the same id means the same token: `except: [{{tensors: \
                 '{encoder}/*', action: copy}}]` keeps the first model's text encoder"
            );
            problems.add(models.at[model], message, Some(hint));
        }
    }
}

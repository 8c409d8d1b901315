//! Whether generation stops where the output's chat template ends a turn.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Alignment;
use super::files::{Made, made};
use crate::models::Models;
use crate::problems::{Problems, some_of};
use checkpoint::{
    CheckpointError, Tokenizer, TokenizerKind, chat_template, parse_json, settings,
    turn_end_beside, unknown_turn_tokens,
};
use recipe::Recipe;

const FILE: &str = "generation_config.json";
const FIELD: &str = "eos_token_id";

/// Lets generation stop at the end of turns where the chat template is of another model than the generation config,
/// and refuses a template of the recipe whose turns the vocabulary has no tokens for.
///
/// # Errors
/// If a file of a model cannot be read.
pub(crate) fn stop_at_turns(
    recipe: &Recipe,
    models: &Models,
    alignment: Option<&Alignment<'_>>,
    config: Option<&Value>,
    files: &mut Vec<Made>,
    notes: &mut Vec<String>,
    problems: &mut Problems,
) -> Result<(), CheckpointError> {
    let asked = recipe.chat_template.as_ref();
    if asked.is_none() && models.tokenizer_donor == models.donor {
        return Ok(());
    }
    let source = &models.checkpoints[models.tokenizer_donor];
    let written = files.iter().find(|(name, _)| name == "chat_template.jinja");
    let template = match written {
        Some((_, text)) => Some(String::from_utf8_lossy(text).into_owned()),
        None => chat_template(source)?,
    };
    let own = match alignment {
        Some(_) => None,
        None => match Tokenizer::open(source)? {
            TokenizerKind::Fast(tokenizer) => Some(tokenizer),
            _ => None,
        },
    };
    let vocabulary = alignment
        .map(|alignment| &alignment.vocabulary)
        .or(own.as_deref());
    let (Some(template), Some(vocabulary)) = (template, vocabulary) else {
        return Ok(());
    };
    let unknown = unknown_turn_tokens(&template, vocabulary);
    if let (Some(asked), false) = (asked, unknown.is_empty()) {
        let message = format!(
            "the chat template marks turns with {}, and the output's vocabulary has no such token",
            some_of(&unknown)
        );
        let hint = format!(
            "add it under `tokenizer:`, such as `tokens: {{\"{}\": {{source: MODEL}}}}` with a model that has it, or take \
             a template of the models",
            unknown[0]
        );
        problems.add(Some(asked.at), message, Some(hint));
        return Ok(());
    }
    let before = files.iter().position(|(name, _)| name == FILE);
    let entries: Option<Map<String, Value>> = match before {
        Some(place) => match parse_json(&files[place].1) {
            Ok(Value::Object(entries)) => Some(entries),
            _ => None,
        },
        None => settings(models.donor(), FILE)?,
    };
    let of_file = entries.as_ref().and_then(|entries| entries.get(FIELD));
    let stops: Vec<u64> = of_file
        .filter(|value| !value.is_null())
        .or_else(|| config?.get(FIELD))
        .map(ids)
        .unwrap_or_default();
    let known: BTreeSet<u64> = stops.iter().copied().collect();
    let Some((token, id)) = turn_end_beside(&template, vocabulary, &known) else {
        return Ok(());
    };
    let mut entries = entries.unwrap_or_default();
    let all: Vec<u64> = [u64::from(id)].into_iter().chain(stops).collect();
    entries.insert(FIELD.into(), json!(all));
    if let Some(place) = before {
        files.remove(place);
    }
    files.push(made(FILE, entries));
    notes.push(format!(
        "the chat template ends turns with `{token}`, which is no stop token of `{}`: its id {id} is added to `{FIELD}` in \
         {FILE}",
        models.label(models.donor)
    ));
    Ok(())
}

/// An id, or a list of ids.
fn ids(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(list) => list.iter().filter_map(Value::as_u64).collect(),
        value => value.as_u64().into_iter().collect(),
    }
}

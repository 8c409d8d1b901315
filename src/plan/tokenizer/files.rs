//! The files that hold the output's vocabulary and chat template.

use serde_json::{Map, Value};

use super::Alignment;
use checkpoint::{AddedToken, Checkpoint, CheckpointError, json_text, parse_json, settings};

/// A generated file: its name and bytes.
pub(super) type Made = (String, Vec<u8>);

pub(super) fn made(name: &str, entries: Map<String, Value>) -> Made {
    let text = json_text(&Value::Object(entries), None);
    (name.to_owned(), text.into_bytes())
}

/// The tokenizer files that differ from the source's, and the donor's generation settings if ids changed.
pub(crate) fn made_files(
    alignment: &Alignment<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Made>, CheckpointError> {
    let mut files = Vec::new();
    if let Some(mut entries) = settings(alignment.models.donor(), "generation_config.json")?
        && alignment.renumber(&mut entries, "generation_config.json", notes)
    {
        files.push(made("generation_config.json", entries));
    }
    let vocabulary = &alignment.vocabulary;
    if vocabulary.added() == alignment.original.added() {
        return Ok(files);
    }
    let source = &alignment.models.checkpoints[alignment.source];
    let json = vocabulary.to_json().into_bytes();
    files.push(("tokenizer.json".to_owned(), json));
    if let Some(mut entries) = settings(source, "tokenizer_config.json")?
        && entries.contains_key("added_tokens_decoder")
    {
        let by_id = vocabulary.added().iter();
        let by_id = by_id.map(|token| (token.id.to_string(), token.entry(false)));
        entries.insert(
            "added_tokens_decoder".into(),
            Value::Object(by_id.collect()),
        );
        files.push(made("tokenizer_config.json", entries));
    }
    // The files of slow tokenizers hold the model's own vocabulary, which is unchanged; this file adds to it.
    if settings(source, "added_tokens.json")?.is_some() {
        let ids = |token: &AddedToken| (token.content.clone(), token.id.into());
        let beyond = vocabulary
            .added()
            .iter()
            .filter(|token| !vocabulary.is_of_model(token));
        files.push(made("added_tokens.json", beyond.map(ids).collect()));
    }
    Ok(files)
}

/// Puts a chat template where each version of transformers looks for it: into the tokenizer's config, whether
/// generated or copied, and into a file of its own.
pub(crate) fn with_template(
    template: &str,
    tokenizer: &Checkpoint,
    files: &mut Vec<Made>,
) -> Result<(), CheckpointError> {
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let before = files.iter().position(|(made, _)| made == name);
        let entries = match before {
            Some(place) => match parse_json(&files.swap_remove(place).1) {
                Ok(Value::Object(entries)) => Some(entries),
                _ => None,
            },
            None => settings(tokenizer, name)?,
        };
        if let Some(mut entries) = entries {
            entries.insert("chat_template".into(), template.into());
            files.push(made(name, entries));
        }
    }
    files.push(("chat_template.jinja".to_owned(), template.into()));
    Ok(())
}

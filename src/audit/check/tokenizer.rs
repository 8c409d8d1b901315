//! Checks the tokenizer's files, and that every token id has a row in the embedding.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{Finding, Place, Report, Severity};
use architecture::is_input_embedding;
use chat::parses;
use checkpoint::{
    Checkpoint, CheckpointError, Tokenizer, TokenizerKind, chat_template, settings,
    turn_end_beside, unknown_turn_end, vocabulary_end,
};

checks! {
    MALFORMED = "tokenizer.malformed", Error,
        "A file of the tokenizer or of the generation settings is malformed",
        "The tokenizer does not load, or not as it was meant.",
        "correct the file, or download it again";
    TEMPLATE = "tokenizer.chat-template", Error,
        "The chat template is not sound Jinja",
        "Every conversation fails at its first message.",
        "correct the template, or take that of the model that it comes from";
    TEMPLATES = "tokenizer.chat-templates-differ", Warning,
        "There are two chat templates, and they differ",
        "transformers takes chat_template.jinja; tools that go by tokenizer_config.json write conversations another way.",
        "remove the one that is not meant";
    NO_ROW = "tokenizer.id-without-row", Error,
        "The tokenizer gives ids that the embedding has no row for",
        "A text with such a token crashes, or reads memory of something else.",
        "resize the embedding, or remove the tokens";
    SPECIAL = "tokenizer.special-id", Error,
        "The id of a special token is beyond the embedding",
        "Generation starts with, or waits for, a token that cannot be.",
        "correct the id";
    UNKNOWN = "tokenizer.unknown-special-token", Warning,
        "A special token is not in the vocabulary",
        "Loaders add it behind the last token, where the embedding may have no row for it.",
        "add it to the tokenizer, or name the token that is meant";
    TURN_END = "tokenizer.turn-end", Warning,
        "Generation does not stop where the chat template ends a turn",
        "The model answers, and goes on with turns of its own until the longest length is reached.",
        "add the token to `eos_token_id` in generation_config.json";
    DISAGREE = "tokenizer.ids-disagree", Note,
        "Files disagree on the id of a special token",
        "Which of them is used depends on how the model is loaded.",
        "make them agree if that is not meant";
}

const SPECIAL_TOKENS: [&str; 3] = ["bos", "eos", "pad"];

/// Checks the tokenizer, and the ids of special tokens in every file that names one.
pub(super) fn check_tokenizer(model: &Checkpoint, report: &mut Report) {
    if model.is_single_file() {
        return;
    }
    // A model without tokens writes a vocabulary of one, and leaves the ids of its decoder's class in the config.
    let rows = rows(model).filter(|&rows| rows > 1);
    let malformed = |error: &CheckpointError, file: &str| {
        let found = match error {
            // The finding names the file already.
            CheckpointError::JsonMalformed { detail, .. } => detail.clone(),
            error => error.to_string(),
        };
        Finding::new(&MALFORMED, Place::file(file), "a sound file", found)
    };
    let tokenizer = match Tokenizer::open(model) {
        Ok(TokenizerKind::Fast(tokenizer)) => Some(tokenizer),
        Ok(_) => None,
        // `container` reports what is no file.
        Err(CheckpointError::NotOfFolder { .. }) => None,
        Err(error) => {
            report.add(malformed(&error, "tokenizer.json"));
            None
        }
    };
    let mut files = BTreeMap::new();
    for name in [
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        match settings(model, name) {
            Ok(found) => {
                files.extend(found.map(|entries| (name, entries)));
            }
            Err(CheckpointError::NotOfFolder { .. }) => {}
            Err(error) => report.add(malformed(&error, name)),
        }
    }
    if let (Some(tokenizer), Some(rows)) = (&tokenizer, rows)
        && tokenizer.end() > rows
    {
        let pads = |file: &str| {
            let token = files.get(file)?.get("pad_token")?;
            tokenizer.id(texts(token).next()?)
        };
        let mut pads = ["tokenizer_config.json", "special_tokens_map.json"]
            .into_iter()
            .filter_map(pads);
        let found = Finding::new(
            &NO_ROW,
            Place::file("tokenizer.json"),
            format!("ids below {rows}, the rows of the embedding"),
            format!("ids up to {}", tokenizer.end() - 1),
        );
        // The padding token of a fine-tune that never trained it. Such a model runs without it, one text at a time.
        let padding_alone = tokenizer.end() == rows + 1 && pads.any(|id| id as usize == rows);
        report.add(match padding_alone {
            true => found.with_severity(Severity::Note),
            false => found,
        });
    }
    if let (None, Some(rows)) = (&tokenizer, rows) {
        other_vocabulary(model, rows, report);
    }
    if let Some(tokenizer) = &tokenizer {
        let file = "special_tokens_map.json";
        let named = files.get(file).into_iter().flatten();
        for (field, text) in
            named.flat_map(|(field, value)| texts(value).map(move |text| (field, text)))
        {
            if tokenizer.id(text).is_none() {
                let found = format!("`{}`, which is none", text.escape_debug());
                let place = Place::field(file, field);
                report.add(Finding::new(
                    &UNKNOWN,
                    place,
                    "a token of tokenizer.json",
                    found,
                ));
            }
        }
    }
    let template = template(model, report);
    if let (Some(template), Some(tokenizer)) = (template, &tokenizer) {
        let of_file = |name: &str| files.get(name)?.get("eos_token_id").and_then(ids_of);
        let of_config = || model.config()?.get("eos_token_id").and_then(ids_of);
        let stops = of_file("generation_config.json")
            .or_else(of_config)
            .unwrap_or_default();
        let stops: BTreeSet<u64> = stops
            .into_iter()
            .filter_map(|id| u64::try_from(id).ok())
            .collect();
        // A template may write the end of a text out, and name other tokens to cut them off.
        let named = ["tokenizer_config.json", "special_tokens_map.json"];
        let named = named
            .iter()
            .filter_map(|name| files.get(name)?.get("eos_token"));
        let ends_text = named.flat_map(texts).any(|end| template.contains(end));
        let unknown = unknown_turn_end(&template, tokenizer).filter(|_| !ends_text);
        report.extend(unknown.map(|token| {
            Finding::new(
                &TURN_END,
                Place::file("the chat template"),
                format!("`{token}`, with which it ends turns, in the vocabulary"),
                "no such token",
            )
            .with_remedy("add the token to the vocabulary, or take the template that fits it")
        }));
        // Where nothing says what generation stops at, the caller does.
        let end = turn_end_beside(&template, tokenizer, &stops).filter(|_| !stops.is_empty());
        if let Some((token, id)) = end {
            report.add(Finding::new(
                &TURN_END,
                Place::field("generation_config.json", "eos_token_id"),
                format!("{id}, the id of `{token}`, among the stop tokens"),
                format!("{stops:?}"),
            ));
        }
    }
    for token in SPECIAL_TOKENS {
        let mut ids: Vec<(&str, Vec<i64>)> = Vec::new();
        let key = format!("{token}_token_id");
        let of_config = model.config().and_then(|config| config.get(&key));
        let generation = files.get("generation_config.json");
        let of_generation = generation.and_then(|entries| entries.get(&key));
        for (file, value) in [
            ("config.json", of_config),
            ("generation_config.json", of_generation),
        ] {
            ids.extend(value.and_then(ids_of).map(|ids| (file, ids)));
        }
        for (file, ids) in &ids {
            // Configs write -1 for none.
            let bad = ids
                .iter()
                .find(|&&id| rows.is_some_and(|rows| id >= 0 && id as u64 >= rows as u64));
            if let (Some(bad), Some(rows)) = (bad, rows) {
                report.add(Finding::new(
                    &SPECIAL,
                    Place::field(*file, key.clone()),
                    format!("an id below {rows}, the rows of the embedding"),
                    bad.to_string(),
                ));
            }
        }
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let entries = files.get(file);
            let value = entries.and_then(|entries| entries.get(&format!("{token}_token")));
            let text = value.and_then(|value| texts(value).next());
            let id = text.and_then(|text| tokenizer.as_ref()?.id(text));
            ids.extend(id.map(|id| (file, vec![i64::from(id)])));
        }
        // If there are several ids, one in common is enough.
        if let [(_, first), others @ ..] = &ids[..]
            && let Some((file, other)) = others
                .iter()
                .find(|(_, ids)| !ids.iter().any(|id| first.contains(id)))
        {
            report.add(Finding::new(
                &DISAGREE,
                Place::field(*file, key.clone()),
                format!("{first:?}, as in {}", ids[0].0),
                format!("{other:?}"),
            ));
        }
    }
}

/// Checks the chat template, and returns it if it is sound.
fn template(model: &Checkpoint, report: &mut Report) -> Option<String> {
    match chat_template(model) {
        Ok(None) => {}
        Ok(Some(text)) => match parses(&text) {
            Ok(()) => {
                report.extend(second_template(model, &text));
                return Some(text);
            }
            Err(why) => report.add(Finding::new(
                &TEMPLATE,
                Place::file("the chat template"),
                "a template that parses",
                why,
            )),
        },
        Err(CheckpointError::NotOfFolder { .. }) => {}
        // A malformed tokenizer_config.json has been reported already.
        Err(CheckpointError::JsonMalformed { path, .. })
            if path.ends_with("tokenizer_config.json") => {}
        Err(error) => report.add(Finding::new(
            &TEMPLATE,
            Place::file("the chat template"),
            "a template that can be read",
            error.to_string(),
        )),
    }
    None
}

/// The finding that tokenizer_config.json has another template than the file of its own that most loaders take.
fn second_template(model: &Checkpoint, taken: &str) -> Option<Finding> {
    let file = model.location().path.join("chat_template.jinja");
    file.is_file().then_some(())?;
    let settings = settings(model, "tokenizer_config.json").ok()??;
    let second = settings.get("chat_template")?.as_str()?;
    (second.trim() != taken.trim()).then(|| {
        let place = Place::field("tokenizer_config.json", "chat_template");
        let expected = "the template of chat_template.jinja, or none";
        Finding::new(&TEMPLATES, place, expected, "another")
    })
}

/// The text of a token, or the texts of a list of tokens; each is a string or an object with flags.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        value => std::slice::from_ref(value),
    };
    list.iter()
        .filter_map(|value| value.as_str().or_else(|| value.get("content")?.as_str()))
}

/// A single id or a list of ids.
fn ids_of(value: &Value) -> Option<Vec<i64>> {
    match value {
        Value::Array(list) => Some(list.iter().filter_map(Value::as_i64).collect()),
        value => Some(vec![value.as_i64()?]),
    }
    .filter(|ids| !ids.is_empty())
}

/// Checks a vocabulary without a `tokenizer.json`. Some tokenizers move its ids, so it is no error that there are more.
fn other_vocabulary(model: &Checkpoint, rows: usize, report: &mut Report) {
    // What cannot be read is found elsewhere, or no vocabulary.
    let Ok(Some((file, end))) = vocabulary_end(model) else {
        return;
    };
    let beyond = end.saturating_sub(rows as u64);
    if beyond > 0 && file != "tokenizer.json" {
        let expected = format!("ids below {rows}, the rows of the embedding");
        let found = format!("ids up to {}", end - 1);
        // One more is the padding token of a fine-tune that never trained it.
        report.add(
            Finding::new(&NO_ROW, Place::file(file), expected, found).with_severity(match beyond {
                1 => Severity::Note,
                _ => Severity::Warning,
            }),
        );
    }
}

/// The number of rows of the largest token embedding.
fn rows(model: &Checkpoint) -> Option<usize> {
    let tensors = model.tensors().iter();
    let embeddings = tensors.filter(|tensor| is_input_embedding(&tensor.name));
    embeddings
        .filter_map(|tensor| tensor.shape.first().copied())
        .max()
}

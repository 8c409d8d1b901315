//! Token ids in configs: renumbered for another vocabulary.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::Alignment;
use crate::problems::some_of;
use checkpoint::{Tokenizer, TokenizerKind};

/// Fields with token ids whose name does not say so.
const LISTS: [&str; 3] = ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"];

/// A field with pairs of a position and a token id.
const PAIRS: &str = "forced_decoder_ids";

/// The field with the number of tokens.
const SIZE: &str = "vocab_size";

/// The new ids for the donor's ids.
struct Renumbering<'a> {
    new: &'a HashMap<u64, Option<u64>>,
    /// Fields that name a token which the vocabulary lacks.
    lost: Vec<String>,
}

impl Renumbering<'_> {
    /// A field's new value.
    fn field(&mut self, key: &str, value: &mut Value) {
        match value {
            Value::Number(number) => {
                // Not a token: -1, or an id beyond the tokenizer.
                let Some(new) = number.as_u64().and_then(|id| self.new.get(&id)) else {
                    return;
                };
                match new {
                    Some(id) => *value = (*id).into(),
                    None => {
                        self.lost.push(key.to_owned());
                        *value = Value::Null;
                    }
                }
            }
            Value::Array(items) => {
                for item in items.iter_mut() {
                    self.field(key, item);
                }
                items.retain(|item| !item.is_null());
            }
            _ => {}
        }
    }

    fn object(&mut self, entries: &mut Map<String, Value>) {
        for (key, value) in entries.iter_mut() {
            if is_token_field(key) {
                self.field(key, value);
            } else if key == PAIRS {
                let pairs = value.as_array_mut().into_iter().flatten();
                for pair in pairs.filter_map(Value::as_array_mut) {
                    if let [_, id] = pair.as_mut_slice() {
                        self.field(key, id);
                    }
                }
            } else if let Value::Object(nested) = value {
                self.object(nested);
            }
        }
    }
}

fn is_token_field(key: &str) -> bool {
    ["token_id", "token_ids", "token_index"]
        .iter()
        .any(|end| key.ends_with(end))
        || LISTS.contains(&key)
}

/// Replaces the old number of rows by the new one wherever it stands for the size of a vocabulary.
fn set_size(entries: &mut Map<String, Value>, old: &[u64], rows: usize, top: bool) {
    for (key, value) in entries.iter_mut() {
        if key == SIZE
            && value
                .as_u64()
                .is_some_and(|size| top || old.contains(&size))
        {
            *value = rows.into();
        } else if let Value::Object(nested) = value {
            set_size(nested, old, rows, false);
        }
    }
}

impl Alignment<'_> {
    /// Sets the size of the vocabulary and the ids of tokens in the donor's `config.json`.
    pub(crate) fn edit_config(&self, config: &mut Value, notes: &mut Vec<String>) {
        let donor = self.models.donor();
        let rows = self.tokens[self.models.donor]
            .as_ref()
            .map(|tokens| tokens.rows as u64);
        let said = donor.config().and_then(|config| config.vocab_size());
        let old: Vec<u64> = rows
            .into_iter()
            .chain(said.map(|size| size as u64))
            .collect();
        if let Some(entries) = config.as_object_mut() {
            set_size(entries, &old, self.rows, true);
            self.renumber(entries, "config.json", notes);
        }
    }

    /// Renumbers the donor's token ids in a file for the output's vocabulary; returns whether any changed.
    pub(super) fn renumber(
        &self,
        entries: &mut Map<String, Value>,
        file: &str,
        notes: &mut Vec<String>,
    ) -> bool {
        let Some(new) = self.new_ids() else {
            return false;
        };
        let before = entries.clone();
        let mut renumbering = Renumbering {
            new: &new,
            lost: Vec::new(),
        };
        renumbering.object(entries);
        let lost = renumbering.lost;
        if !lost.is_empty() {
            notes.push(format!(
                "{file}: {} named tokens of `{}` that the vocabulary of `{}` lacks, and are left empty",
                some_of(&lost),
                self.models.donor().label(),
                self.models.label(self.source)
            ));
        }
        *entries != before
    }

    /// Maps the donor's ids to those of the same tokens in the output; `None` if they are equal.
    fn new_ids(&self) -> Option<HashMap<u64, Option<u64>>> {
        // The source keeps its ids.
        if self.source == self.models.donor {
            return None;
        }
        let Ok(TokenizerKind::Fast(donor)) = Tokenizer::open(self.models.donor()) else {
            return None;
        };
        let new = |token: &str| self.vocabulary.id(token).map(u64::from);
        let ids = donor.tokens().into_iter();
        Some(ids.map(|(id, token)| (u64::from(id), new(token))).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_follow_their_tokens_wherever_they_stand() {
        let new = HashMap::from([(1, Some(5)), (2, Some(1)), (3, None)]);
        let mut config = json!({
            "bos_token_id": 1, "eos_token_id": [1, 2, 3, 9], "pad_token_id": -1, "sep_token_id": null,
            "decoder_start_token_id": 3, "image_token_index": 2, "hidden_size": 2,
            "bad_words_ids": [[1, 2], [3]], "suppress_tokens": [2], "forced_decoder_ids": [[1, 2], [2, null]],
            "text_config": {"eos_token_id": 2, "vocab_size": 16},
        });
        let mut renumbering = Renumbering {
            new: &new,
            lost: Vec::new(),
        };
        let entries = config.as_object_mut().expect("an object");
        renumbering.object(entries);
        assert_eq!(
            renumbering.lost,
            ["eos_token_id", "decoder_start_token_id", "bad_words_ids"]
        );
        set_size(entries, &[16], 32, true);
        assert_eq!(
            config,
            json!({
                "bos_token_id": 5, "eos_token_id": [5, 1, 9], "pad_token_id": -1, "sep_token_id": null,
                "decoder_start_token_id": null, "image_token_index": 1, "hidden_size": 2,
                "bad_words_ids": [[5, 1], []], "suppress_tokens": [1], "forced_decoder_ids": [[1, 1], [2, null]],
                "text_config": {"eos_token_id": 1, "vocab_size": 32},
            })
        );
    }

    #[test]
    fn sizes_of_other_vocabularies_stay() {
        let mut config =
            json!({"vocab_size": 15, "audio_config": {"vocab_size": 128}, "t": {"vocab_size": 16}});
        set_size(config.as_object_mut().expect("an object"), &[16], 20, true);
        assert_eq!(
            config,
            json!({"vocab_size": 20, "audio_config": {"vocab_size": 128}, "t": {"vocab_size": 20}})
        );
    }
}

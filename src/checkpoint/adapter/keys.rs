//! The tensor names in an adapter's weight file: the module and the part that each belongs to.

use super::lycoris;

/// What a tensor of an adapter is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// A part of a module's low-rank update.
    FactorPart {
        /// The module, by its name in the adapted model.
        module: String,
        /// How many other adapted parameters of the same module lie below this one: PEFT wraps one in the other.
        depth: usize,
        /// Which part.
        part: FactorPart,
    },
    /// A part of an update by LoHa or LoKr.
    PairPart {
        /// The module, by its name in the adapted model.
        module: String,
        /// Which part.
        part: &'static str,
    },
    /// A whole tensor that replaces the model's tensor of that name.
    Whole {
        /// Its name in the adapted model.
        name: String,
    },
    /// The model's own tensor that a saved module replaces; some trainers save it too.
    Original {
        /// Its name in the adapted model.
        name: String,
    },
    /// New rows for some tokens.
    TokenRows {
        /// The embedding, by its name in the adapted model.
        module: String,
    },
}

/// The parts of a low-rank update; shapes are those of a linear map from `in` to `out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum FactorPart {
    /// `[rank, in]`.
    A,
    /// `[out, rank]`.
    B,
    /// `[out]`: added to the module's bias.
    BiasOfB,
    /// `[rank, vocabulary]`.
    EmbeddingA,
    /// `[hidden, rank]`.
    EmbeddingB,
    /// DoRA's norms, `[out]`.
    Magnitude,
}

/// The prefix that PEFT adds to every name of the model that it wraps.
const PREFIX: &str = "base_model.model.";

/// What PEFT calls the module that it wrapped.
const BELOW: &str = "base_layer";

/// PEFT's default name of an adapter.
const DEFAULT_NAME: &str = "default";

/// Parses a name; the error says why no LoRA adapter has it.
///
/// PEFT omits the adapter's own name when it saves; other tools include it: `lora_A.default.weight`.
pub(super) fn parse(key: &str) -> Result<Key, &'static str> {
    let name = key.strip_prefix(PREFIX).unwrap_or(key);
    let words: Vec<&str> = name.split('.').collect();
    if let Some(place) = words.iter().position(|word| *word == "token_adapter") {
        return token_rows(&words[..place], &words[place + 1..]);
    }
    let of_pair = |word: &&str| word.starts_with("hada_") || word.starts_with("lokr_");
    if let Some(place) = words.iter().position(of_pair) {
        return pair_part(&words[..place], &words[place..]);
    }
    let Some(place) = words.iter().position(|word| word.starts_with("lora_")) else {
        return whole(&words);
    };
    let (module, rest) = words.split_at(place);
    let depth = module
        .iter()
        .rev()
        .take_while(|word| **word == BELOW)
        .count();
    let module = &module[..module.len() - depth];
    if module.is_empty() {
        return Err("names no module");
    }
    // The adapter's name is a single word: PEFT refuses dots in it.
    let part = match rest {
        ["lora_A", "weight"] | ["lora_A", _, "weight"] => FactorPart::A,
        ["lora_B", "weight"] | ["lora_B", _, "weight"] => FactorPart::B,
        ["lora_B", "bias"] | ["lora_B", _, "bias"] => FactorPart::BiasOfB,
        ["lora_embedding_A"] | ["lora_embedding_A", _] => FactorPart::EmbeddingA,
        ["lora_embedding_B"] | ["lora_embedding_B", _] => FactorPart::EmbeddingB,
        ["lora_magnitude_vector"]
        | ["lora_magnitude_vector", _]
        | ["lora_magnitude_vector", _, "weight"] => FactorPart::Magnitude,
        _ => return Err("is no part of a LoRA or DoRA module"),
    };
    Ok(Key::FactorPart {
        module: module.join("."),
        depth,
        part,
    })
}

fn pair_part(module: &[&str], rest: &[&str]) -> Result<Key, &'static str> {
    let module: Vec<&str> = (module.iter().copied())
        .filter(|word| *word != BELOW)
        .collect();
    let part = match rest {
        [part] | [part, _] if !module.is_empty() => lycoris::part(part),
        _ => None,
    };
    Ok(Key::PairPart {
        module: module.join("."),
        part: part.ok_or("is no part of a LoHa or LoKr module")?,
    })
}

fn token_rows(module: &[&str], rest: &[&str]) -> Result<Key, &'static str> {
    let module: Vec<&str> = module
        .iter()
        .copied()
        .filter(|word| *word != BELOW)
        .collect();
    match rest {
        ["trainable_tokens_delta"] | ["trainable_tokens_delta", _] if !module.is_empty() => {
            Ok(Key::TokenRows {
                module: module.join("."),
            })
        }
        _ => Err("is no part of rows for tokens"),
    }
}

fn whole(words: &[&str]) -> Result<Key, &'static str> {
    let is_original = words.contains(&"original_module");
    let mut name: Vec<&str> = Vec::with_capacity(words.len());
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        match word {
            BELOW | "original_module" => {}
            "modules_to_save" => {
                words.next_if_eq(&DEFAULT_NAME);
            }
            word => name.push(word),
        }
    }
    if name.is_empty() || name.contains(&"") {
        return Err("names no tensor");
    }
    let name = name.join(".");
    Ok(match is_original {
        true => Key::Original { name },
        false => Key::Whole { name },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_peft_and_others_write_them() {
        let q = "model.layers.0.self_attn.q_proj";
        let parts = [
            ("lora_A.weight", FactorPart::A),
            ("lora_A.default.weight", FactorPart::A),
            ("lora_A.my-adapter.weight", FactorPart::A),
            ("lora_B.weight", FactorPart::B),
            ("lora_B.bias", FactorPart::BiasOfB),
            ("lora_B.default.bias", FactorPart::BiasOfB),
            ("lora_embedding_A", FactorPart::EmbeddingA),
            ("lora_embedding_B.default", FactorPart::EmbeddingB),
            ("lora_magnitude_vector", FactorPart::Magnitude),
            ("lora_magnitude_vector.weight", FactorPart::Magnitude),
            (
                "lora_magnitude_vector.default.weight",
                FactorPart::Magnitude,
            ),
        ];
        for (end, part) in parts {
            for prefix in ["base_model.model.", ""] {
                let module = q.to_owned();
                let depth = 0;
                let expected = Ok(Key::FactorPart {
                    module,
                    depth,
                    part,
                });
                assert_eq!(parse(&format!("{prefix}{q}.{end}")), expected, "{end}");
            }
        }
        let wholes = [
            ("base_model.model.score.weight", "score.weight"),
            (
                "base_model.model.score.modules_to_save.weight",
                "score.weight",
            ),
            (
                "base_model.model.score.modules_to_save.default.dense.bias",
                "score.dense.bias",
            ),
            (
                "base_model.model.model.embed_tokens.base_layer.weight",
                "model.embed_tokens.weight",
            ),
            ("base_model.model.q_proj.base_layer.bias", "q_proj.bias"),
            ("q_proj.bias", "q_proj.bias"),
        ];
        for (key, name) in wholes {
            let name = name.to_owned();
            assert_eq!(parse(key), Ok(Key::Whole { name }), "{key}");
        }
    }

    #[test]
    fn further_names_of_peft() {
        let key = |name: &str| parse(&format!("base_model.model.{name}")).unwrap();
        let below = key("mlp.experts.base_layer.base_layer.lora_A.weight");
        let module = "mlp.experts".to_owned();
        let (depth, part) = (2, FactorPart::A);
        assert_eq!(
            below,
            Key::FactorPart {
                module,
                depth,
                part
            }
        );
        let module = "embed_tokens".to_owned();
        for rows in [
            "embed_tokens.token_adapter.trainable_tokens_delta",
            "embed_tokens.base_layer.token_adapter.trainable_tokens_delta.default",
        ] {
            let module = module.clone();
            assert_eq!(key(rows), Key::TokenRows { module });
        }
        let name = "score.weight".to_owned();
        assert_eq!(key("score.original_module.weight"), Key::Original { name });
    }

    #[test]
    fn parts_of_loha_and_lokr() {
        for (end, part) in [("hada_w1_a", "hada_w1_a"), ("lokr_t2.default", "lokr_t2")] {
            let key = format!("base_model.model.model.layers.0.q.base_layer.{end}");
            let module = "model.layers.0.q".to_owned();
            assert_eq!(parse(&key), Ok(Key::PairPart { module, part }));
        }
    }

    #[test]
    fn what_is_no_lora_is_refused() {
        for key in [
            "q.hada_w3_a",
            "hada_w1_a",
            "q.lokr_w1.a.b",
            "base_model.model.lora_A.weight",
            "lora_A.weight",
            "base_model.model.q.lora_E",
            "base_model.model.base_layer.lora_A.weight",
            "base_model.model.embed_tokens.token_adapter.other",
            "base_model.model.token_adapter.trainable_tokens_delta",
            "base_model.model.q.lora_diag",
            "base_model.model.q.lora_A",
            "base_model.model.q.lora_A.a.b.weight",
            "base_model.model.q.lora_A.bias",
            "base_model.model.",
            "",
            "a..b",
            "base_layer",
        ] {
            assert!(parse(key).is_err(), "{key:?}");
        }
    }
}
